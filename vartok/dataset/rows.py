"""The rows of a finished data set, read shard by shard: what loaders and exports share."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vartok.dataset.encoding import Encoding, bucket_name
from vartok.dataset.formats import ALL_COLUMNS, find_format, read_shard
from vartok.dataset.schema import OPTIONAL_COLUMNS, open_dataset
from vartok.errors import DatasetError
from vartok.files import check_regular, os_error_reason
from vartok.tokens import ImageTokens

VERIFY = "run `vartok dataset verify` to find what is damaged"
"""Hint for a data set whose shards are not those that dataset.json states."""


@dataclass(frozen=True)
class Shard:
    """A shard that dataset.json lists.

    Attributes:
        path: the shard.
        rows: number of its rows.
        bytes: size of the file.
        sha256: sha256 of the file, in hex.
    """

    path: Path
    rows: int
    bytes: int
    sha256: str

    def check(self) -> None:
        """Check that the file is there, and has its size.

        Raises:
            DatasetError: it has another size, or cannot be accessed.
        """
        try:
            check_regular(self.path)
            size = self.path.stat().st_size
        except OSError as error:
            raise DatasetError(f"{self.path}: {os_error_reason(error)}") from None
        if size != self.bytes:
            raise DatasetError(
                f"{self.path} has {size:,} bytes, but dataset.json says {self.bytes:,}", hint=VERIFY
            )

    def check_content(self) -> None:
        """Check that the file has its sha256.

        Raises:
            DatasetError: it has another, or cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DatasetError(f"{self.path}: {os_error_reason(error)}") from None
        if digest != self.sha256:
            raise DatasetError(f"{self.path}: its sha256 is not the one in dataset.json", hint=VERIFY)


@dataclass(frozen=True)
class DatasetBucket:
    """The shards of one size and schedule; a data set without buckets has one bucket.

    Attributes:
        name: name of the bucket, such as "256x384"; "" in a data set without buckets.
        format: name of the format of its shards.
        encoding: the settings that its tokens share.
        shards: its shards, in order.
        columns: the columns of `OPTIONAL_COLUMNS` that any row of the data set has.
    """

    name: str
    format: str
    encoding: Encoding
    shards: tuple[Shard, ...]
    columns: tuple[str, ...]

    @functools.cached_property
    def rows(self) -> int:
        """Number of rows: all views of all pictures."""
        return sum(shard.rows for shard in self.shards)

    @functools.cached_property
    def digest(self) -> str:
        """The sha256, in hex, of all that determines the rows."""
        shards = [(shard.path.name, shard.rows, shard.bytes, shard.sha256) for shard in self.shards]
        content = [self.encoding.to_dict(), self.format, self.columns, shards]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def read(
        self,
        shard: Shard,
        low: int = 0,
        high: int | None = None,
        *,
        columns: Collection[str] = ALL_COLUMNS,
    ) -> Iterator[ImageTokens]:
        """Yield the rows `low` to `high` - 1 of a shard, by default all, in order.

        Args:
            shard: one of `shards`.
            low: number of the first row, from 0.
            high: number after the last row; None for all rows from `low` on.
            columns: the columns of `ALL_COLUMNS` to read; the others are None.

        Raises:
            DatasetError: the shard is broken, cannot be read, has another number of rows than dataset.json
                states, or has not all views of a picture, one after the other; the message names it.
        """
        high = shard.rows if high is None else high
        views = self.encoding.rows_per_picture
        count = low
        try:
            rows = read_shard(self.format, shard.path, self.encoding, columns)
            for row in islice(rows, low, high):
                if row.view is not None and row.view.number != count % views:
                    raise DatasetError(f"row {count + 1} is view {row.view.number}, not {count % views}")
                count += 1
                yield row
            if count < high or (high == shard.rows and next(rows, None) is not None):
                found = f"{count:,}" if count < high else f"more than {high:,}"
                raise DatasetError(f"has {found} rows, but dataset.json says {shard.rows:,}", hint=VERIFY)
        except DatasetError as error:
            raise DatasetError(f"{shard.path}: {error}", hint=error.hint) from None
        except OSError as error:
            raise DatasetError(f"{shard.path}: {os_error_reason(error)}") from None


@dataclass(frozen=True)
class FinishedDataset:
    """A complete data set, as dataset.json describes it.

    Attributes:
        folder: folder of the data set.
        buckets: its buckets that have rows; at least one.
        classes: names of the labels, if folders or tables gave them; else empty.
    """

    folder: Path
    buckets: tuple[DatasetBucket, ...]
    classes: tuple[str, ...]

    @classmethod
    def open(cls, folder: str | Path) -> FinishedDataset:
        """Read dataset.json, and check that the data set is complete and its shards have their sizes.

        Raises:
            DatasetError: the folder holds no data set, or an incomplete one; or a shard is missing, or has
                another size.
            VartokError: a package that the format of the shards needs is not installed.
        """
        folder = Path(folder)
        description, encoding = open_dataset(folder)
        find_format(description["files"])
        if not description.get("complete"):
            raise DatasetError(
                f"{folder} is not complete",
                hint="run the same build again, for each part if it was made in parts",
            )
        counts = description.get("carried", {})
        columns = tuple(name for name in OPTIONAL_COLUMNS if counts.get(name))
        names = [bucket_name(bucket.size) for bucket in encoding.buckets] or [""]
        shards: dict[str, list[Shard]] = {name: [] for name in names}
        for item in description["shards"]:
            shard = _parse_shard(folder, item, encoding)
            shard.check()
            shards["/".join(item["name"].split("/")[1:-1])].append(shard)
        found = [
            DatasetBucket(name, description["files"], encoding.of_bucket(name), tuple(items), columns)
            for name, items in shards.items()
        ]
        buckets = [bucket for bucket in found if bucket.rows] or found[:1]
        return cls(folder, tuple(buckets), tuple(description.get("classes", ())))

    @property
    def rows(self) -> int:
        """Number of rows of all buckets."""
        return sum(bucket.rows for bucket in self.buckets)


def _parse_shard(folder: Path, item: dict[str, Any], encoding: Encoding) -> Shard:
    size, digest = item.get("bytes"), item.get("sha256")
    if type(size) is not int or not isinstance(digest, str):
        raise DatasetError(f"{folder}: dataset.json lists a shard without its size or sha256", hint=VERIFY)
    return Shard(folder / item["name"], encoding.count_rows(item), size, digest)
