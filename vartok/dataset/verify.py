"""Whether a data set is what it says it is."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vartok.dataset.job import FAILED, Mark, read_marks, shard_name
from vartok.dataset.shards import DATA, DATASET, SUFFIXES, Encoding, open_dataset, read_shard
from vartok.errors import DatasetError, one_line

NAMED = 5
"""Keys that stand twice, and are named."""


class Problem(NamedTuple):
    """Something that is wrong: the file, relative to the data set, and what."""

    file: str
    what: str


@dataclass
class Report:
    """What was found.

    Attributes:
        shards: that were read.
        pictures: their rows.
        failed: samples that became no rows, as the data set says itself.
        problems: what is wrong.
    """

    shards: int = 0
    pictures: int = 0
    failed: int = 0
    problems: list[Problem] = dataclasses.field(default_factory=list)


def verify(out: Path) -> Report:
    """Check counts, hashes, index ranges and that no key stands twice.

    Args:
        out: a data set's folder.

    Raises:
        DatasetError: it holds no data set at all.
        OSError: a file cannot be read.
    """
    description, encoding = open_dataset(out)
    marks = read_marks(out)
    report = Report()
    hashes: list[NDArray[np.uint64]] = []
    names = [shard_name(*place) for place in marks]
    for name, mark in zip(names, marks.values(), strict=True):
        file = f"{DATA}/{name}{SUFFIXES[description['files']]}"
        found = np.empty(0, np.uint64)
        try:
            found = _check_shard(out / file, description["files"], encoding, mark)
        except FileNotFoundError:
            report.problems.append(Problem(file, "is missing"))
        except DatasetError as error:
            report.problems.append(Problem(file, str(error)))
        hashes.append(found)
        report.shards += 1
        report.pictures += len(found)
        report.failed += len(mark.failed)
    report.problems += _check_whole(out, description, dict(zip(names, marks.values(), strict=True)), report)
    report.problems += _check_keys(out, description["files"], encoding, names, hashes)
    return report


def _check_shard(path: Path, format: str, encoding: Encoding, mark: Mark) -> NDArray[np.uint64]:
    """Check a shard, and return a hash of each of its keys."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != mark.sha256:
        raise DatasetError(
            f"its sha256 is not that of its stats, {mark.sha256[:12]}...: remove it, run again"
        )
    keys = []
    for row in read_shard(format, path, encoding):
        if row.tokens.max() >= encoding.model.vocab_size:
            raise DatasetError(f"{one_line(row.key)}: an index outside the vocabulary")
        keys.append(_hash(row.key))
    if len(keys) != mark.pictures:
        raise DatasetError(f"has {len(keys):,} rows, where its stats say {mark.pictures:,}")
    return np.array(keys, np.uint64)


def _check_whole(
    out: Path, description: dict[str, Any], marks: dict[str, Mark], report: Report
) -> Iterator[Problem]:
    """Compare what the files of the whole say with the stats of its shards."""
    suffix = SUFFIXES[description["files"]]
    if not description.get("complete"):
        yield Problem(DATASET, "says that it is not complete: run vartok dataset again, or the parts left")
        return
    told = {
        str(item.get("name")): (item.get("pictures"), item.get("sha256"))
        for item in description.get("shards", ())
        if isinstance(item, dict)
    }
    if told != {f"{DATA}/{name}{suffix}": (mark.pictures, mark.sha256) for name, mark in marks.items()}:
        yield Problem(DATASET, "names other shards than those that have stats")
    known = {f"{name}{suffix}" for name in marks}
    for path in sorted((out / DATA).iterdir()):
        if path.name not in known:
            yield Problem(f"{DATA}/{path.name}", "is no shard of this data set")
    failed = out / FAILED
    lines = failed.read_bytes().count(b"\n") if failed.exists() else 0
    if lines != report.failed:
        yield Problem(FAILED, f"has {lines:,} lines, where the stats have {report.failed:,} failures")


def _check_keys(
    out: Path, format: str, encoding: Encoding, names: list[str], hashes: list[NDArray[np.uint64]]
) -> Iterator[Problem]:
    """Tell which keys stand twice; by hashes, since the keys themselves might fill the memory."""
    everything = np.concatenate([*hashes, np.empty(0, np.uint64)])
    values, counts = np.unique(everything, return_counts=True)
    twice = values[counts > 1]
    if not len(twice):
        return
    named: dict[str, list[str]] = {}
    wanted = set(twice[:NAMED].tolist())
    for name, found in zip(names, hashes, strict=True):
        if wanted & set(found.tolist()):
            for row in read_shard(format, out / DATA / f"{name}{SUFFIXES[format]}", encoding):
                if _hash(row.key) in wanted:
                    named.setdefault(row.key, []).append(name)
    for key, places in named.items():
        yield Problem(
            DATA, f"{one_line(key)} stands {len(places)} times, in {', '.join(sorted(set(places)))}"
        )
    if len(twice) > NAMED:
        yield Problem(DATA, f"{len(twice) - NAMED:,} more keys stand more than once")


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
