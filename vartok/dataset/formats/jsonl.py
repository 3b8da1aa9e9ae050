"""JSON-lines shards: a line is the JSON object of a token file, after the row's key and optional columns."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vartok.dataset.formats.base import Format, check_fields, row_fields
from vartok.dataset.schema import OPTIONAL_COLUMNS, Encoding
from vartok.errors import DatasetError, VartokError
from vartok.token_files import dump_json, parse_json
from vartok.token_streams import read_lines
from vartok.tokens import ImageTokens


class JsonlWriter:
    """Writes one line per row; `vartok decode` reads the shard as a token file."""

    def __init__(self, stream: io.RawIOBase, encoding: Encoding) -> None:
        self._stream = stream

    def add(self, tokens: ImageTokens, picture: bytes | None = None) -> None:
        """Write a row; `picture` is ignored."""
        fields = row_fields(tokens)
        columns = {name: fields[name] for name in ("key", *OPTIONAL_COLUMNS) if name in fields}
        line = json.dumps(columns, separators=(",", ":"))[:-1] + "," + dump_json(tokens)[1:]
        self._stream.write(f"{line}\n".encode())

    def close(self) -> None:
        """Do nothing: JSON lines have no footer."""


def read_jsonl(path: Path, encoding: Encoding, texts: bool = True) -> Iterator[ImageTokens | VartokError]:
    """Yield the rows of a JSON-lines shard, or the error of a row that is broken.

    A row is broken if its text is not a token file's, or has another checkpoint or schedule, a broken column,
    or a key other than its image's source.

    Args:
        path: the shard.
        encoding: encoding of the data set.
        texts: read captions and metadata.
    """
    with open(path, "rb") as file:
        for number, line in read_lines(file):
            try:
                yield _parse_row(line, encoding, texts)
            except VartokError as error:
                yield DatasetError(f"row {number}: {error}")


def _parse_row(line: bytes, encoding: Encoding, texts: bool) -> ImageTokens:
    tokens = parse_json(line)
    if tokens.model != encoding.model or tokens.schedule != encoding.schedule:
        raise DatasetError("has another checkpoint or schedule than the data set")
    image = tokens.image
    fields = check_fields({"width": image.width, "height": image.height, **json.loads(line)})
    if fields["key"] != image.source:
        raise DatasetError("its key is not the source of its image")
    names = OPTIONAL_COLUMNS if texts else ("label",)
    columns = {name: fields[name] for name in names if fields[name] is not None}
    return replace(tokens, **columns) if columns else tokens


JSONL = Format("jsonl", ".jsonl", JsonlWriter, read_jsonl)
