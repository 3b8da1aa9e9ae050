"""Stats files: each marks one shard as done, and holds the shard's counts, sha256 and failed samples."""

from __future__ import annotations

import contextlib
import errno
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vartok.dataset.schema import STATS, shard_name
from vartok.errors import DatasetError
from vartok.files import check_regular, os_error_reason

OPTIONAL_COUNTS = ("not_carried", "passed_over")
"""Counts in `ShardStats` that are not written if they are empty."""

BUCKET = "(?:[0-9]{1,9}x[0-9]{1,9})?"
"""Pattern of the names of buckets, which are names of folders; the one file without buckets has none."""

ShardId = tuple[int, int]
"""A shard: (index of its input shard, number of its part), both from 0."""


class FailedSample(NamedTuple):
    """A sample that has no tokens.

    Attributes:
        key: key of the sample.
        cause: the reason, on one line.
        hint: how to avoid the failure, or None; not written to files.
    """

    key: str
    cause: str
    hint: str | None = None


class DamagedSample(NamedTuple):
    """A sample that has the tokens of what could be decoded of its picture.

    Attributes:
        key: key of the sample.
        cause: how its picture is damaged, on one line.
    """

    key: str
    cause: str


class FileStats(NamedTuple):
    """Facts about a file of a finished shard.

    Attributes:
        pictures: number of pictures that have rows in it, one for each view.
        bytes: size of the file in bytes.
        sha256: sha256 of the file, in hex.
    """

    pictures: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardStats:
    """Facts about a finished shard.

    Attributes:
        input: identity of its input shard.
        files: facts about its files, by bucket; without buckets it has one file, of the name "".
        failed: samples that failed, and so have no row.
        carried: for each optional column, the number of pictures that have a value.
        last: True if the shard is the last one of its input shard.
        not_carried: for each text of `Sample.not_carried`, the number of rows; not written if empty.
        passed_over: number of members of a tar that were passed over, by kind; not written if empty.
        damaged: samples whose pictures are damaged and were taken; not written if empty.
    """

    input: str
    files: dict[str, FileStats]
    failed: tuple[FailedSample, ...]
    carried: dict[str, int]
    last: bool
    not_carried: dict[str, int] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)
    damaged: tuple[DamagedSample, ...] = ()

    @property
    def pictures(self) -> int:
        """Number of pictures that have rows, one for each view."""
        return sum(file.pictures for file in self.files.values())

    @property
    def bytes(self) -> int:
        """Size of all its files in bytes."""
        return sum(file.bytes for file in self.files.values())

    def to_json(self) -> str:
        """Return the stats as a JSON object on one line, with a newline.

        The facts about the one file of a data set without buckets stand in the object itself; those about
        files of buckets in "files", by bucket.
        """
        only = self.files.get("")
        values = {
            "input": self.input,
            **({"pictures": only.pictures} if only else {}),
            "failed": [{"key": sample.key, "cause": sample.cause} for sample in self.failed],
            "carried": self.carried,
            **({"bytes": only.bytes, "sha256": only.sha256} if only else {"files": _as_dicts(self.files)}),
            "last": self.last,
            **{name: getattr(self, name) for name in OPTIONAL_COUNTS if getattr(self, name)},
            **({"damaged": [sample._asdict() for sample in self.damaged]} if self.damaged else {}),
        }
        return json.dumps(values) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ShardStats:
        """Parse the result of `to_json`.

        Raises:
            DatasetError: `text` is not JSON, lacks a value, or has a value of the wrong type.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            failed = tuple(
                FailedSample(str(item["key"]), str(item["cause"])) for item in values.pop("failed")
            )
            damaged = tuple(
                DamagedSample(str(item["key"]), str(item["cause"])) for item in values.pop("damaged", ())
            )
            found = values.pop("files") if "files" in values else {"": _pop_file(values)}
            files = {name: FileStats(**file) for name, file in found.items() if re.fullmatch(BUCKET, name)}
            stats = cls(failed=failed, files=files, damaged=damaged, **values)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise DatasetError(
                "is empty, torn, or not a stats file of vartok: build the data set again"
            ) from None
        types = {"input": str, "carried": dict, "last": bool}
        checked = [(name, kind, getattr(stats, name)) for name, kind in types.items()]
        for file in stats.files.values():
            checked += zip(FileStats._fields, (int, int, str), file, strict=True)
        for name, kind, value in checked:
            if type(value) is not kind:
                raise DatasetError(f"{name} is not of type {kind.__name__}: build the data set again")
        for name in OPTIONAL_COUNTS:
            counts = getattr(stats, name)
            if type(counts) is not dict or not all(type(count) is int for count in counts.values()):
                raise DatasetError(f"{name} does not hold counts: build the data set again")
        return stats


def _as_dicts(files: dict[str, FileStats]) -> dict[str, Any]:
    return {name: file._asdict() for name, file in files.items()}


def _pop_file(values: dict[str, Any]) -> dict[str, Any]:
    """Remove the facts about the one file from the values of a stats file, and return them."""
    return {name: values.pop(name) for name in FileStats._fields}


def stats_path(out: Path, shard: ShardId) -> Path:
    """Return the path of a shard's stats file."""
    return out / STATS / f"{shard_name(*shard)}.json"


def read_stats(out: Path) -> dict[ShardId, ShardStats]:
    """Return the stats of all shards that have a stats file, by shard, in order.

    A stats file that is broken, for instance by a power cut, is left out: its shard counts as not done, and
    the next run makes it again.

    Raises:
        OSError: a file cannot be read.
    """
    return {shard: stats for shard, stats in _scan(out).items() if isinstance(stats, ShardStats)}


def broken_stats(out: Path) -> dict[ShardId, DatasetError]:
    """Return the error of every stats file that `read_stats` leaves out, by shard, in order."""
    return {shard: error for shard, error in _scan(out).items() if isinstance(error, DatasetError)}


def _scan(out: Path) -> dict[ShardId, ShardStats | DatasetError]:
    found: dict[ShardId, ShardStats | DatasetError] = {}
    for path in (out / STATS).iterdir() if (out / STATS).is_dir() else ():
        if match := re.fullmatch(r"([0-9]{5,9})-([0-9]{4,9})\.json", path.name):
            shard = int(match[1]), int(match[2])
            try:
                with contextlib.suppress(FileNotFoundError):  # another process is making the shard again
                    check_regular(path)
                    found[shard] = ShardStats.from_json(path.read_text(errors="replace"))
            except DatasetError as error:
                found[shard] = error
            except OSError as error:
                if error.errno not in (errno.EISDIR, errno.EINVAL):  # no file, see `check_regular`
                    raise
                found[shard] = DatasetError(os_error_reason(error))
    return dict(sorted(found.items()))
