"""JSON-lines shards: a line is the JSON object of a token file, after the row's key and optional columns.

A latent is in base64, a third of the size of a list of numbers, which would also have to be parsed.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vartok.dataset.encoding import Encoding
from vartok.dataset.formats.base import (
    ALL_COLUMNS,
    Format,
    check_fields,
    read_latent,
    read_view,
    row_fields,
)
from vartok.dataset.schema import LATENT, OPTIONAL_COLUMNS
from vartok.errors import DatasetError, VartokError
from vartok.token_files import dump_json, parse_json
from vartok.token_streams import read_lines
from vartok.tokens import ImageTokens


class JsonlWriter:
    """Writes one line per row; `vartok decode` reads the shard as a token file."""

    def __init__(self, stream: io.RawIOBase, encoding: Encoding) -> None:
        self._stream = stream

    def add(self, tokens: ImageTokens, picture: bytes | None = None) -> None:
        """Write a row; `picture` is ignored, and so is `image.damaged`, as in the other formats."""
        if tokens.image.damaged is not None:
            tokens = replace(tokens, image=replace(tokens.image, damaged=None))
        fields = row_fields(tokens)
        columns = {name: value for name, value in fields.items() if name not in ("width", "height")}
        if tokens.latent is not None:
            columns[LATENT] = base64.b64encode(tokens.latent.tobytes()).decode()
        line = json.dumps(columns, separators=(",", ":"))[:-1] + "," + dump_json(tokens)[1:]
        self._stream.write(f"{line}\n".encode())

    def close(self) -> None:
        """Do nothing: JSON lines have no footer."""


def read_jsonl(
    path: Path, encoding: Encoding, columns: Collection[str] = ALL_COLUMNS
) -> Iterator[ImageTokens | VartokError]:
    """Yield the rows of a JSON-lines shard, or the error of a row that is broken.

    A row is broken if its text is not a token file's, or has another checkpoint, schedule or number of
    scales, a broken column, or a key other than its image's source.

    Args:
        path: the shard.
        encoding: encoding of the data set.
        columns: the columns of `ALL_COLUMNS` to read.
    """
    with open(path, "rb") as file:
        for number, line in read_lines(file):
            try:
                yield _parse_row(line, encoding, columns)
            except VartokError as error:
                yield DatasetError(f"row {number}: {error}")


def _parse_row(line: bytes, encoding: Encoding, columns: Collection[str]) -> ImageTokens:
    tokens = parse_json(line)
    if tokens.model != encoding.model or tokens.schedule != encoding.schedule:
        raise DatasetError("has another checkpoint or schedule than the data set")
    if tokens.grids != encoding.grids:
        raise DatasetError(f"has {len(tokens.grids)} scales, but the data set has {len(encoding.grids)}")
    image = tokens.image
    document = json.loads(line)
    fields = check_fields({"width": image.width, "height": image.height, **document})
    if fields["key"] != image.source:
        raise DatasetError("its key is not the source of its image")
    more: dict[str, Any] = {
        name: fields[name] for name in OPTIONAL_COLUMNS if name in columns and fields[name] is not None
    }
    if encoding.has_views:
        more["view"] = read_view(document, encoding)
    if encoding.latents and LATENT in columns:
        more[LATENT] = read_latent(_decode(document.get(LATENT)), encoding)
    return replace(tokens, **more) if more else tokens


def _decode(text: object) -> NDArray[np.float16] | None:
    """Return the float16 values of a text in base64; None if it is none."""
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else None
        return None if data is None else np.frombuffer(data, "<f2")
    except ValueError:
        return None


JSONL = Format("jsonl", ".jsonl", JsonlWriter, read_jsonl)
