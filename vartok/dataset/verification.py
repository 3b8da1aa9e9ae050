"""Verify a data set: compare its shards with their stats files, and dataset.json with both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vartok.dataset.formats import find_format, read_shard
from vartok.dataset.schema import DATA, DATASET, FAILED, STATS, Encoding, open_dataset, shard_name
from vartok.dataset.stats import ShardStats, broken_stats, read_stats
from vartok.errors import DatasetError, one_line

MAX_NAMED_KEYS = 5
"""Largest number of duplicate keys that are named; more are only counted."""


class Problem(NamedTuple):
    """A defect of a data set.

    Attributes:
        file: path of the file, relative to the data set's folder.
        cause: the defect, on one line.
    """

    file: str
    cause: str


@dataclass
class Report:
    """The result of `verify`.

    Attributes:
        shards: number of shards that have stats.
        pictures: rows of these shards.
        failed: samples that have no row, according to the stats.
        problems: all defects; empty if the data set is intact and complete.
    """

    shards: int = 0
    pictures: int = 0
    failed: int = 0
    problems: list[Problem] = field(default_factory=list)


def verify(out: str | Path) -> Report:
    """Check a data set: counts, hashes, ranges of indices, and that no key occurs twice.

    Args:
        out: folder of the data set.

    Raises:
        DatasetError: the folder holds no data set.
        OSError: a file cannot be read.
    """
    out = Path(out)
    description, encoding = open_dataset(out)
    suffix = find_format(description["files"]).suffix
    stats = {shard_name(*shard): values for shard, values in read_stats(out).items()}
    report = Report()
    hashes: list[NDArray[np.uint64]] = []
    for name, expected in stats.items():
        file = f"{DATA}/{name}{suffix}"
        found = np.empty(0, np.uint64)
        try:
            found = _check_shard(out / file, description["files"], encoding, expected)
        except FileNotFoundError:
            report.problems.append(Problem(file, "is missing"))
        except DatasetError as error:
            report.problems.append(Problem(file, str(error)))
        hashes.append(found)
        report.shards += 1
        report.pictures += len(found)
        report.failed += len(expected.failed)
    for shard, reason in broken_stats(out).items():
        report.problems.append(Problem(f"{STATS}/{shard_name(*shard)}.json", str(reason)))
    report.problems += _check_summary(out, description, stats, report)
    report.problems += _check_keys(out, description["files"], encoding, list(stats), hashes)
    return report


def _check_shard(path: Path, format: str, encoding: Encoding, stats: ShardStats) -> NDArray[np.uint64]:
    """Check a shard, and return the hashes of its keys."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != stats.sha256:
        raise DatasetError(
            f"its sha256 is not that of its stats, {stats.sha256[:12]}...: remove it, and build it again"
        )
    keys = [_hash_key(row.image.source) for row in read_shard(format, path, encoding)]
    if len(keys) != stats.pictures:
        raise DatasetError(f"has {len(keys):,} rows, but its stats say {stats.pictures:,}")
    return np.array(keys, np.uint64)


def _check_summary(
    out: Path, description: dict[str, Any], stats: dict[str, ShardStats], report: Report
) -> Iterator[Problem]:
    """Compare dataset.json, data/ and failed.jsonl with `stats`, the stats of all shards by name."""
    suffix = find_format(description["files"]).suffix
    if not description.get("complete"):
        yield Problem(DATASET, "is not complete: build it again, or the parts that are left")
        return
    listed = {
        str(item.get("name")): (item.get("pictures"), item.get("sha256"))
        for item in description.get("shards", ())
        if isinstance(item, dict)
    }
    if listed != {f"{DATA}/{name}{suffix}": (item.pictures, item.sha256) for name, item in stats.items()}:
        yield Problem(DATASET, "lists other shards than the stats files")
    known = {f"{name}{suffix}" for name in stats}
    for path in sorted((out / DATA).iterdir()):
        if path.name not in known:
            yield Problem(f"{DATA}/{path.name}", "is not a shard of this data set")
    failed = out / FAILED
    lines = failed.read_bytes().count(b"\n") if failed.exists() else 0
    if lines != report.failed:
        yield Problem(FAILED, f"has {lines:,} lines, but the stats have {report.failed:,} failures")


def _check_keys(
    out: Path, format: str, encoding: Encoding, names: list[str], hashes: list[NDArray[np.uint64]]
) -> Iterator[Problem]:
    """Report duplicate keys, found by 64-bit hashes, as the keys themselves might fill the memory."""
    values, counts = np.unique(np.concatenate([*hashes, np.empty(0, np.uint64)]), return_counts=True)
    duplicates = values[counts > 1]
    if not len(duplicates):
        return
    shards: dict[str, list[str]] = {}
    wanted = set(duplicates[:MAX_NAMED_KEYS].tolist())
    for name, found in zip(names, hashes, strict=True):
        if wanted & set(found.tolist()):
            path = out / DATA / f"{name}{find_format(format).suffix}"
            for row in read_shard(format, path, encoding):
                if _hash_key(row.image.source) in wanted:
                    shards.setdefault(row.image.source, []).append(name)
    for key, where in shards.items():
        yield Problem(DATA, f"{one_line(key)} occurs {len(where)} times, in {', '.join(sorted(set(where)))}")
    if len(duplicates) > MAX_NAMED_KEYS:
        yield Problem(DATA, f"{len(duplicates) - MAX_NAMED_KEYS:,} more keys occur more than once")


def _hash_key(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
