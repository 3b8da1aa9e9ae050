"""JSON-lines shards: a line is the JSON object of a token file, after the row's key and optional columns."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vartok.dataset.formats.base import MAX_ROW_BYTES, Format, check_fields, row_fields
from vartok.dataset.schema import OPTIONAL_COLUMNS, Encoding
from vartok.errors import DatasetError
from vartok.token_files import dump_json, parse_json
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


def read_jsonl(path: Path, encoding: Encoding) -> Iterator[ImageTokens]:
    """Yield the rows of a JSON-lines shard.

    Raises:
        DatasetError: a row has another checkpoint or schedule, a broken column, or a key other than its
            image's source.
        TokenFileError: a line is not a token file's JSON.
    """
    with open(path, "rb") as file:
        while line := file.readline(MAX_ROW_BYTES):
            tokens = parse_json(line)
            if tokens.model != encoding.model or tokens.schedule != encoding.schedule:
                raise DatasetError("a row has another checkpoint or schedule than the data set")
            image = tokens.image
            fields = check_fields({"width": image.width, "height": image.height, **json.loads(line)})
            if fields["key"] != image.source:
                raise DatasetError("the key of a row is not the source of its image")
            columns = {name: fields[name] for name in OPTIONAL_COLUMNS if fields[name] is not None}
            yield replace(tokens, **columns) if columns else tokens


JSONL = Format("jsonl", ".jsonl", JsonlWriter, read_jsonl)
