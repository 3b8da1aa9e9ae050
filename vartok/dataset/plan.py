"""Plan the remaining work: the shards that are still to be made from each input shard.

A shard depends only on its input shard and the job, on a GPU also on the batch size. So machines need not
communicate, and a shard that is made again has the same bytes.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vartok.dataset.card import write_card
from vartok.dataset.encoding import Encoding, bucket_name
from vartok.dataset.formats import find_format
from vartok.dataset.schema import (
    CACHE,
    DAMAGED,
    DATA,
    DATASET,
    FAILED,
    FORMAT,
    README,
    STATS,
    VERSION,
    read_description,
    shard_file,
    shard_name,
    without_count,
    write_text,
)
from vartok.dataset.stats import ShardId, ShardStats, read_stats
from vartok.errors import DatasetError, one_line
from vartok.files import TEMPORARY, remove_stale_temp_files
from vartok.images import Fit, Picture
from vartok.sources import InputShard, Sample

SHARD_SIZE = 10_000
"""Default of the largest number of samples in a shard."""

CPU_SHARD_SIZE = 500
"""The same on a CPU, so that a stopped run loses little work: the shipped checkpoint encodes 67 pictures a
second on two idle cores, and 7 beside other work."""


@dataclass(frozen=True, kw_only=True)
class ShardFolder:
    """The files of the shards of a data set.

    Attributes:
        out: folder of the data set.
        format: format of its shards, one of `FORMATS`.
    """

    out: Path
    format: str

    def shard_path(self, shard: ShardId, bucket: str = "") -> Path:
        """Return the path of a shard's file, with buckets that of one bucket."""
        return self.out / shard_file(shard_name(*shard), bucket, find_format(self.format).suffix)

    def has_shard(self, shard: ShardId, stats: ShardStats) -> bool:
        """Return True if the shard's files exist and have the sizes that its stats say."""
        try:
            return all(
                self.shard_path(shard, bucket).stat().st_size == file.bytes
                for bucket, file in stats.files.items()
            )
        except FileNotFoundError:
            return False


@dataclass(frozen=True, kw_only=True)
class Job(ShardFolder):
    """The data set that a call of `build` makes.

    Attributes:
        shard_size: largest number of samples in a shard, failed ones included; each is a row for every view.
        encoding: settings that all tokens of the data set share.
        fit: how pictures become pixels; it agrees with `encoding`.
        keep_pictures: store the picture files with their tokens.
        classes: names of the labels, if folders or tables give them; else empty.
        label_names: True if tables have names in `classes` as labels; False if they have whole numbers.
        passed_over: (suffix, number) of the files in the sources that are of kinds that are not read.
    """

    shard_size: int
    encoding: Encoding
    fit: Fit
    keep_pictures: bool = False
    classes: tuple[str, ...] = ()
    label_names: bool = False
    passed_over: tuple[tuple[str, int], ...] = ()

    @property
    def bucket_names(self) -> list[str]:
        """Names of the buckets; without buckets "" alone, the name of every shard's only file."""
        return [bucket_name(bucket.size) for bucket in self.encoding.buckets] or [""]

    def describe(self) -> dict[str, Any]:
        """Return the settings in dataset.json: every run that adds to the data set must have the same."""
        return {
            "format": FORMAT,
            "version": VERSION,
            **self.encoding.to_dict(),
            "files": self.format,
            "shard_size": self.shard_size,
            "keeps_pictures": self.keep_pictures,
            "classes": list(self.classes),
        }


@dataclass(frozen=True)
class InputTask:
    """An input shard with work left.

    Attributes:
        index: position of the input shard among all input shards, from 0.
        shard: the input shard.
        done: numbers of the parts (shards made from the input shard) that are finished.
        end: number of the last part, if it is in `done` and its stats mark it as the last; else None.
    """

    index: int
    shard: InputShard
    done: frozenset[int]
    end: int | None = None


@dataclass(frozen=True)
class SampleSlot:
    """The place of a sample in the data set.

    Attributes:
        index: position of its input shard among all input shards, from 0.
        part: number of its shard among those made from the input shard, from 0. None for an error that ends
            the input shard within a finished part: no shard records it.
        input: identity of the input shard.
        sample: the sample; None marks the end of the input shard, whose last part is `part`.
        passed_over: (kind, number) of the members of a tar that were passed over since the sample before.
    """

    index: int
    part: int | None
    input: str
    sample: Sample | None
    passed_over: tuple[tuple[str, int], ...] = ()

    @property
    def shard(self) -> tuple[int, int | None]:
        """(index, part), which identify the shard to which the sample belongs."""
        return self.index, self.part


def default_shard_size(out: Path, device: str) -> int:
    """Return the number of samples in a shard where the caller names none.

    Args:
        out: folder of the data set; one that exists keeps its own number, since its shards depend on it.
        device: torch device of the encoder.
    """
    with contextlib.suppress(DatasetError):  # a folder that holds no data set is refused later
        size = read_description(out).get("shard_size")
        if type(size) is int and size > 0:
            return size
    return CPU_SHARD_SIZE if device.startswith("cpu") else SHARD_SIZE


def prepare_folder(job: Job) -> None:
    """Create the folder of a new data set, or check that an existing one has the same settings.

    Temporary files that killed runs have left in it are removed.

    Raises:
        DatasetError: the folder holds something else, or a data set with other settings.
        OSError: the folder cannot be written.
    """
    if (job.out / DATASET).exists():
        _check_description(job)
    else:
        _create_folder(job)
    remove_leftovers(job)


def remove_leftovers(job: Job) -> None:
    """Remove temporary files that killed runs, or killed processes of this run, have left in the folder."""
    for folder in (*(f"{DATA}/{bucket}" for bucket in job.bucket_names), STATS, ""):
        remove_stale_temp_files(job.out / folder)


def plan_tasks(
    folder: ShardFolder, shards: Sequence[InputShard], *, retry_failed: bool = False
) -> list[InputTask]:
    """Return the input shards with work left, in order.

    Args:
        folder: the data set.
        shards: all input shards of the data set.
        retry_failed: treat shards in which samples failed as not done.

    Raises:
        DatasetError: the data set was made from other sources.
        OSError: the folder cannot be read.
    """
    done: dict[int, set[int]] = {}
    ends: dict[int, int] = {}
    for (index, part), stats in read_stats(folder.out).items():
        identity = shards[index].identity if index < len(shards) else None
        if stats.input != identity:
            if identity is not None and not stats.pictures:
                continue  # no rows are lost; e.g. the image column was not named before
            _refuse_other_source(folder.out, (index, part), stats.input, identity)
        if folder.has_shard((index, part), stats) and not (retry_failed and stats.failed):
            done.setdefault(index, set()).add(part)
            if stats.last:
                ends[index] = part
    tasks = [
        InputTask(index, shard, frozenset(done.get(index, ())), ends.get(index))
        for index, shard in enumerate(shards)
    ]
    return [task for task in tasks if not is_complete(task.done, task.end)]


def pending_samples(job: Job, tasks: Iterable[InputTask]) -> Iterator[tuple[SampleSlot, str, Any]]:
    """Yield the samples to encode, and the end of each input shard whose last part is to be made.

    Yields:
        (slot, key, function that reads the picture), as `encode_views` takes them. At an end,
        `slot.sample` is None, the key is empty, and the function raises an error.
    """
    classes = {name: label for label, name in enumerate(job.classes)} if job.label_names else None
    for task in tasks:
        index, identity = task.index, task.shard.identity
        count = 0
        members = Counter[str]()
        for count, sample in enumerate(task.shard.samples(job.fit.max_bytes, members, classes), 1):
            passed_over = tuple(members.items())
            members.clear()
            part: int | None = (count - 1) // job.shard_size
            if part in task.done:
                if not sample.final:
                    continue
                part = None  # the input shard cannot be read further, to its missing parts
            if job.keep_pictures:
                sample = sample.with_bytes(job.fit.max_bytes)
            kept = sample if job.keep_pictures else sample.without_bytes()
            yield SampleSlot(index, part, identity, kept, passed_over), sample.key, sample.read
            if part is None:
                break
        else:
            last = max(0, count - 1) // job.shard_size
            if last not in task.done:
                end = SampleSlot(index, last, identity, None, tuple(members.items()))
                yield end, "", _read_nothing
            elif last != task.end:  # done, but not marked as the last: make it again
                yield from pending_samples(job, [replace(task, done=task.done - {last})])


def is_complete(parts: Iterable[int], end: int | None) -> bool:
    """Return True if `parts` has all parts of an input shard, 0 to `end`; False if `end` is None."""
    return end is not None and set(range(end + 1)) <= set(parts)


def _check_description(job: Job) -> None:
    """Raise DatasetError if the settings in dataset.json differ from those of the job."""
    wanted = job.describe()
    found = read_description(job.out)
    if isinstance(found.get("buckets"), list):
        found["buckets"] = [without_count(bucket) for bucket in found["buckets"]]
    old, new = _flatten(found, wanted), _flatten(wanted, wanted)
    differing = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    differing.sort(key=lambda name: old.get(name) is None or new.get(name) is None)  # it tells least
    for name in differing:
        raise DatasetError(
            f"{job.out} holds a data set with {name} {_shorten(old.get(name))}, not "
            f"{_shorten(new.get(name))}",
            hint="give the same sources and settings, or name another folder",
        )


def check_no_other_files(out: Path) -> None:
    """Check that a path does not exist, or is a folder that holds nothing but a data set.

    Raises:
        DatasetError: the folder holds other files, or is a file.
        OSError: the folder cannot be read.
    """
    if out.exists() and (not out.is_dir() or not all(map(_is_ours, out.iterdir()))):
        raise DatasetError(f"{out} exists and holds no data set", hint="name a new folder")


def _create_folder(job: Job) -> None:
    """Create the files of an empty data set; several processes may call this at once.

    Raises:
        DatasetError: the folder holds files that are not those of a data set, or is a file.
        OSError: the folder cannot be written.
    """
    check_no_other_files(job.out)
    for folder in (DATA, STATS):
        (job.out / folder).mkdir(parents=True, exist_ok=True)
    if not (job.out / README).exists():  # an existing one may have the user's additions
        write_card(job.out, job.format, job.bucket_names, job.encoding.model.name)
    write_text(job.out / DATASET, json.dumps({**job.describe(), "complete": False}, indent=1) + "\n")


def _is_ours(path: Path) -> bool:
    """Return True if the name is one that vartok gives to parts of a data set, or to its temporary files."""
    names = (DATA, STATS, DATASET, FAILED, DAMAGED, CACHE, README)
    return path.name in names or path.name.startswith(TEMPORARY)


def _refuse_other_source(out: Path, shard: ShardId, old: str, new: str | None) -> None:
    now = "the sources end before it" if new is None else f"the sources now have {one_line(new)} there"
    raise DatasetError(
        f"{out} was made from other sources: its shard {shard_name(*shard)} is from {one_line(old)}, "
        f"but {now}",
        hint="name another folder, or restore the sources",
    )


def _flatten(description: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the entries `names` of dataset.json, None if missing; {"a": {"b": 1}} becomes {"a b": 1}."""
    flat: dict[str, Any] = {}
    for name in names:
        value = description.get(name)
        if isinstance(value, dict):
            flat |= {f"{name} {key}": item for key, item in value.items()}
        else:
            flat[name] = value
    return flat


def _shorten(value: Any) -> str:
    """Return a value of dataset.json as a short text for a message."""
    if value is None:
        return "unset"
    text = one_line(json.dumps(value), 100)
    return f"{text} ({len(value)} in all)" if text.endswith("...") and isinstance(value, list) else text


def _read_nothing(fit: Fit) -> Picture:
    """Raise DatasetError: the read function of an input shard's end, which has no picture."""
    raise DatasetError("the end of an input shard")
