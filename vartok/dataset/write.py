"""Write shards of encoded samples, their stats files, and the summary of the whole data set."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vartok.dataset.card import write_card
from vartok.dataset.encoding import bucket_name
from vartok.dataset.plan import Job, SampleSlot, is_complete, remove_leftovers
from vartok.dataset.schema import DAMAGED, DATASET, FAILED, OPTIONAL_COLUMNS, shard_name, write_text
from vartok.dataset.shard_files import open_shard
from vartok.dataset.stats import DamagedSample, FailedSample, ShardId, ShardStats, read_stats, stats_path
from vartok.errors import VartokError
from vartok.images.channels import CONVERTED
from vartok.sources import InputShard, Sample
from vartok.tokens import ImageTokens

REPORT_INTERVAL = 0.2
"""Seconds between two progress reports of a shard, at least; a failure is reported at once."""

REPEATED_KEYS = "keys that an earlier row of the shard has: a number follows them, as in a#2"
"""Text in `not_carried` for rows whose keys were changed, so that the keys of a shard differ."""

COLOURS = "colours of pictures: converted to grey levels, as the checkpoint has one channel"
"""Text in `not_carried` for pictures that `CONVERTED` notes."""

SampleResult = tuple[SampleSlot, list[ImageTokens] | VartokError]
"""A sample's slot, and the tokens of its views; if the sample failed, the error instead of tokens."""


@dataclass(frozen=True)
class ShardProgress:
    """The state of a shard that is being written.

    Attributes:
        shard: name of the shard, such as "00003-0000"; "00003" for an error that no shard records.
        index: position of its input shard among all input shards, from 0.
        pictures: pictures whose rows the shard has so far.
        bytes: bytes that the shard has so far.
        failures: samples that failed since the last report of this shard.
        read_fraction: fraction of the input shard that has been read, 0 to 1; None if unknown.
        finished: True once the shard and its stats file are written.
        last: True if the finished shard is the last of its input shard.
        worker: number of the process that writes the shard, from 0.
    """

    shard: str
    index: int
    pictures: int
    bytes: int
    failures: tuple[FailedSample, ...]
    read_fraction: float | None = None
    finished: bool = False
    last: bool = False
    worker: int = 0


def write_shards(job: Job, results: Iterable[SampleResult]) -> Iterator[ShardProgress]:
    """Write encoded samples into shards.

    A shard's file appears when it is complete, and its stats file after it.

    Args:
        job: the data set.
        results: results of `encode_views` for the slots of `pending_samples`, in their order.

    Yields:
        Reports on the shard that is being written, one shard after the other.

    Raises:
        OSError: a file cannot be written.
    """
    for (index, part), run in itertools.groupby(results, lambda item: item[0].shard):
        if part is None:
            failed = tuple(
                FailedSample(slot.sample.key, str(result), getattr(result, "hint", None))
                for slot, result in run
                if slot.sample is not None
            )
            yield ShardProgress(f"{index:05d}", index, 0, 0, failed)
        else:
            yield from _write_shard(job, (index, part), run)


def _write_shard(job: Job, shard: ShardId, results: Iterator[SampleResult]) -> Iterator[ShardProgress]:
    index, part = shard
    stats_file = stats_path(job.out, shard)
    stats_file.unlink(missing_ok=True)  # first: a shard without stats is not done
    pictures, failed, last, identity = 0, list[FailedSample](), False, ""
    column_counts = Counter(dict.fromkeys(OPTIONAL_COLUMNS, 0))
    not_carried, passed_over = Counter[str](), Counter[str]()
    damaged = list[DamagedSample]()
    keys = _ShardKeys()
    reported_at, reported_failures = time.monotonic(), 0
    with open_shard(job, shard) as files:
        for slot, result in results:
            identity, sample = slot.input, slot.sample
            passed_over.update(dict(slot.passed_over))
            if sample is None:
                last = True
                break
            try:
                if isinstance(result, VartokError):
                    raise result
                views, renamed = keys.distinguish([_add_columns(view, sample) for view in result])
                picture = sample.picture if isinstance(sample.picture, bytes) else b""
                files.add(views, picture or None)  # `Sample.without_bytes` leaves b""
            except VartokError as error:
                failed.append(FailedSample(sample.key, str(error), error.hint))
            else:
                pictures += 1
                column_counts.update(name for name in OPTIONAL_COLUMNS if getattr(views[0], name) is not None)
                not_carried.update(sample.not_carried)
                not_carried[REPEATED_KEYS] += renamed
                not_carried[COLOURS] += CONVERTED in views[0].notes
                if (damage := views[0].image.damaged) is not None:
                    damaged.append(DamagedSample(views[0].key, damage))
            if len(failed) > reported_failures or time.monotonic() - reported_at > REPORT_INTERVAL:
                new = tuple(failed[reported_failures:])
                yield ShardProgress(shard_name(*shard), index, pictures, files.size, new, sample.progress)
                reported_at, reported_failures = time.monotonic(), len(failed)
    for bucket in set(job.bucket_names) - files.stats.keys():  # of another run, with other pictures
        job.shard_path(shard, bucket).unlink(missing_ok=True)
    stats = ShardStats(
        input=identity,
        files=files.stats,
        failed=tuple(failed),
        carried=dict(column_counts),
        last=last,
        not_carried=dict(sorted((+not_carried).items())),
        passed_over=dict(sorted((+passed_over).items())),
        damaged=tuple(damaged),
    )
    write_text(stats_file, stats.to_json())
    if last:
        _remove_parts_after(job, index, part)
    new = tuple(failed[reported_failures:])
    yield ShardProgress(shard_name(*shard), index, pictures, files.size, new, finished=True, last=last)


class _ShardKeys:
    """The keys of a shard's rows.

    Tars that are joined may hold equal keys, and so may a column of keys. Different shards may have equal
    keys, as from tars that number their files alike.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}  # the last number that was given to a key

    def distinguish(self, views: list[ImageTokens]) -> tuple[list[ImageTokens], bool]:
        """Return the rows of a picture with a key that none before has, and whether their key was changed."""
        key = views[0].key
        if key not in self._last:
            self._last[key] = 1
            return views, False
        number = self._last[key] + 1
        while f"{key}#{number}" in self._last:
            number += 1
        self._last[key] = number
        self._last[f"{key}#{number}"] = 1
        image = replace(views[0].image, source=f"{key}#{number}")
        return [replace(view, image=image) for view in views], True


def _add_columns(tokens: ImageTokens, sample: Sample) -> ImageTokens:
    """Return the tokens with the label, caption and metadata that the sample has."""
    values = {name: getattr(sample, name) for name in OPTIONAL_COLUMNS}
    given = {name: value for name, value in values.items() if value is not None}
    return replace(tokens, **given) if given else tokens


def _remove_parts_after(job: Job, index: int, end: int) -> None:
    """Remove the parts after `end` and their stats; they are left from when the input shard was longer."""
    for part in itertools.count(end + 1):
        files = [job.shard_path((index, part), bucket) for bucket in job.bucket_names]
        paths = (stats_path(job.out, (index, part)), *files)
        if not any(path.exists() for path in paths):
            break
        for path in paths:
            path.unlink(missing_ok=True)


def write_summary(job: Job, input_shards: int) -> dict[str, Any]:
    """Write dataset.json, failed.jsonl and damaged.jsonl from the stats of all finished shards.

    Temporary files are removed.

    Several machines may call this at once: each writes again until the stats no longer change.

    Args:
        job: the data set.
        input_shards: number of input shards of the data set.

    Returns:
        The object that dataset.json holds.

    Raises:
        OSError: a file cannot be written.
    """
    remove_leftovers(job)  # of a worker process that died during this run
    finished = _finished_shards(job)
    while True:
        for name, field in ((FAILED, "failed"), (DAMAGED, "damaged")):
            lines = [
                json.dumps({"key": sample.key, "cause": sample.cause, "shard": shard_name(*shard)})
                for shard, stats in finished.items()
                for sample in getattr(stats, field)
            ]
            if lines:
                write_text(job.out / name, "".join(f"{line}\n" for line in lines))
            else:
                (job.out / name).unlink(missing_ok=True)
        summary = _summarize(job, finished, input_shards)
        write_text(job.out / DATASET, json.dumps(summary, indent=1) + "\n")
        if job.encoding.buckets:
            filled = {bucket for stats in finished.values() for bucket in stats.files}
            write_card(job.out, job.format, sorted(filled), job.encoding.model.name)
        again = _finished_shards(job)
        if again == finished:
            break
        finished = again
    return summary


def describe_done(job: Job, shards: Mapping[int, InputShard]) -> str:
    """Return how many shards are done, as in "2 of 5 shards are done".

    Args:
        job: the data set.
        shards: the input shards to count, by their positions among all. An unfinished tar or table may make
            more shards than one: "2 of 5 or more".
    """
    parts: dict[int, set[int]] = {index: set() for index in shards}
    ends: dict[int, int] = {}
    for (index, part), stats in _finished_shards(job).items():
        if index in parts:
            parts[index].add(part)
            if stats.last:
                ends[index] = part
    unfinished = [shards[index] for index in shards if not is_complete(parts[index], ends.get(index))]
    done = sum(map(len, parts.values()))
    more = " or more" if any(shard.kind != "files" for shard in unfinished) else ""
    return f"{done:,} of {done + len(unfinished):,}{more} shards are done"


def _finished_shards(job: Job) -> dict[ShardId, ShardStats]:
    return {shard: stats for shard, stats in read_stats(job.out).items() if job.has_shard(shard, stats)}


def _summarize(job: Job, finished: dict[ShardId, ShardStats], input_shards: int) -> dict[str, Any]:
    parts: dict[int, set[int]] = {}
    ends: dict[int, int] = {}
    for (index, part), stats in finished.items():
        parts.setdefault(index, set()).add(part)
        if stats.last:
            ends[index] = part
    columns = {
        name: sum(stats.carried.get(name, 0) for stats in finished.values()) for name in OPTIONAL_COLUMNS
    }
    not_carried, passed_over = Counter[str](), Counter(dict(job.passed_over))
    damaged = sum(len(stats.damaged) for stats in finished.values())
    for stats in finished.values():
        not_carried.update(stats.not_carried)
        passed_over.update(stats.passed_over)
    description = job.describe()
    for bucket in description.get("buckets", ()):
        files = [stats.files.get(bucket_name(bucket["size"])) for stats in finished.values()]
        bucket["pictures"] = sum(file.pictures for file in files if file)
    return {
        **description,
        "complete": all(is_complete(parts.get(i, ()), ends.get(i)) for i in range(input_shards)),
        "pictures": sum(stats.pictures for stats in finished.values()),
        "failed": sum(len(stats.failed) for stats in finished.values()),
        **({"damaged": damaged} if damaged else {}),
        "bytes": sum(stats.bytes for stats in finished.values()),
        "carried": columns,
        **({"not_carried": dict(sorted(not_carried.items()))} if not_carried else {}),
        **({"passed_over": dict(sorted(passed_over.items()))} if passed_over else {}),
        "shards": [
            {
                "name": job.shard_path(shard, bucket).relative_to(job.out).as_posix(),
                "pictures": file.pictures,
                **({} if bucket else {"failed": len(stats.failed)}),  # a broken picture has no bucket
                "bytes": file.bytes,
                "sha256": file.sha256,
            }
            for shard, stats in finished.items()
            for bucket, file in stats.files.items()
        ],
    }
