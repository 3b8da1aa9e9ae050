"""Verify a data set: compare its shards with their stats files, and dataset.json with both."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vartok.dataset.encoding import Encoding, bucket_name
from vartok.dataset.formats import find_format, read_shard
from vartok.dataset.schema import DAMAGED, DATA, DATASET, FAILED, STATS, open_dataset, shard_file, shard_name
from vartok.dataset.stats import FileStats, broken_stats, read_stats
from vartok.errors import DatasetError, counted, one_line
from vartok.files import check_regular, os_error_reason

MAX_NAMED_KEYS = 5
"""Largest number of duplicate keys that `verify` names; it only counts the others."""


class Problem(NamedTuple):
    """A defect of a data set.

    Attributes:
        file: path of the file, relative to the data set's folder.
        cause: what is wrong with the file, on one line.
    """

    file: str
    cause: str


@dataclass
class Report:
    """The result of `verify`.

    Attributes:
        shards: number of shards that have a stats file.
        pictures: number of pictures in the intact shards; each has a row for every view.
        failed: number of samples that failed, according to the stats files.
        damaged: number of samples whose pictures are damaged and were taken, according to the stats files.
        problems: the defects; empty if the data set is intact and complete. Some are found only when others
            are repaired.
    """

    shards: int = 0
    pictures: int = 0
    failed: int = 0
    damaged: int = 0
    problems: list[Problem] = field(default_factory=list)


def verify(out: str | Path) -> Report:
    """Check the counts, hashes and index ranges of a data set, and that no key occurs twice in a shard.

    Different shards may have equal keys, as from tars that number their files alike.

    Args:
        out: folder of the data set.

    Returns:
        The counts and the defects that were found.

    Raises:
        DatasetError: the folder holds no data set, dataset.json is broken, or a stats file cannot be read. A
            shard that cannot be read is a defect instead.
        VartokError: a package that the format of the shards needs is not installed.
    """
    out = Path(out)
    description, encoding = open_dataset(out)
    suffix = find_format(description["files"]).suffix
    try:
        stats = {shard_name(*shard): values for shard, values in read_stats(out).items()}
        broken = broken_stats(out)
    except OSError as error:
        raise DatasetError(f"{error.filename or out / STATS}: {os_error_reason(error)}") from None
    report = Report(
        failed=sum(len(values.failed) for values in stats.values()),
        damaged=sum(len(values.damaged) for values in stats.values()),
    )
    files = {
        shard_file(name, bucket, suffix): (bucket, expected)
        for name, values in stats.items()
        for bucket, expected in values.files.items()
    }
    for file, (bucket, expected) in files.items():
        report.shards += 1
        try:
            keys = _check_shard(out / file, description["files"], encoding.of_bucket(bucket), expected)
        except FileNotFoundError:
            report.problems.append(Problem(file, "is missing: build the data set again"))
        except DatasetError as error:
            report.problems.append(Problem(file, str(error)))
        except OSError as error:
            report.problems.append(Problem(file, f"cannot be read: {os_error_reason(error)}"))
        else:
            report.pictures += expected.pictures
            report.problems += (Problem(file, cause) for cause in _repeated_keys(keys))
    for shard, reason in broken.items():
        report.problems.append(Problem(f"{STATS}/{shard_name(*shard)}.json", str(reason)))
    expected_files = {file: expected for file, (_, expected) in files.items()}
    report.problems += _check_summary(out, description, encoding, expected_files, report)
    return report


def _check_shard(path: Path, format: str, encoding: Encoding, stats: FileStats) -> Counter[str]:
    """Return the keys of a shard's rows, with the numbers of views, each with the number of its rows.

    Raises:
        DatasetError: the shard is broken, or its stats do not match it.
        OSError: the file cannot be read.
    """
    check_regular(path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != stats.sha256:
        raise DatasetError(
            f"its sha256 is not that of its stats, {stats.sha256[:12]}...: remove it and build the data set "
            "again"
        )
    keys = Counter(row.row_key for row in read_shard(format, path, encoding))
    rows = stats.pictures * encoding.rows_per_picture
    if keys.total() != rows:
        raise DatasetError(f"has {keys.total():,} rows, but its stats say {rows:,}")
    return keys


def _repeated_keys(keys: Counter[str]) -> Iterator[str]:
    """Yield the causes of problems for keys that occur more than once, up to `MAX_NAMED_KEYS`."""
    repeated = {key: count for key, count in keys.items() if count > 1}
    for key, count in itertools.islice(repeated.items(), MAX_NAMED_KEYS):
        yield f"{one_line(key)} occurs {count:,} times"
    if len(repeated) > MAX_NAMED_KEYS:
        yield f"{len(repeated) - MAX_NAMED_KEYS:,} more keys occur more than once"


def _check_summary(
    out: Path,
    description: dict[str, Any],
    encoding: Encoding,
    files: dict[str, FileStats],
    report: Report,
) -> Iterator[Problem]:
    """Yield the differences of dataset.json, data/, failed.jsonl and damaged.jsonl from the stats.

    If dataset.json says that the data set is incomplete, that is the only problem.

    Args:
        out: folder of the data set.
        description: the parsed dataset.json.
        encoding: the encoding in it.
        files: stats of the files of all shards, by their paths in the data set.
        report: the report so far; its `failed` and `damaged` are the numbers of lines of these files.
    """
    if not description.get("complete"):
        yield Problem(
            DATASET, "is not complete: run the same build again, for each part if it was made in parts"
        )
        return
    listed = {
        str(item.get("name")): (item.get("pictures"), item.get("sha256"))
        for item in description.get("shards", ())
        if isinstance(item, dict)
    }
    if listed != {name: (item.pictures, item.sha256) for name, item in files.items()}:
        yield Problem(DATASET, "lists other shards than the stats files: build the data set again")
    folders = {DATA, *(f"{DATA}/{bucket_name(bucket.size)}" for bucket in encoding.buckets)}
    for folder in sorted(folders):
        for path in sorted((out / folder).iterdir()) if (out / folder).is_dir() else ():
            if (name := f"{folder}/{path.name}") not in folders and name not in files:
                yield Problem(name, "is not a shard of this data set: remove it")
    for name, count, noun in (
        (FAILED, report.failed, "failure"),
        (DAMAGED, report.damaged, "damaged picture"),
    ):
        file = out / name
        lines = file.read_bytes().count(b"\n") if file.is_file() else 0
        if lines != count:
            cause = (
                f"has {lines:,} lines, but the stats have {counted(count, noun)}: build the data set again"
            )
            yield Problem(name, cause)
