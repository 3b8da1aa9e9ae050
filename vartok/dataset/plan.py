"""Plan the remaining work: the shards that are still to be made from each input shard.

A shard depends only on its input shard and the job. So machines need not communicate, and a shard that is
made again has the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vartok.dataset.formats import find_format
from vartok.dataset.schema import (
    DATA,
    DATASET,
    FAILED,
    FORMAT,
    README,
    STATS,
    VERSION,
    Encoding,
    read_description,
    shard_name,
    write_text,
)
from vartok.dataset.stats import ShardId, ShardStats, read_stats
from vartok.errors import DatasetError, one_line
from vartok.files import TEMPORARY
from vartok.images import Fit, Picture
from vartok.sources import InputShard, Sample

CARD = """---
configs:
- config_name: default
  data_files: {data}/*{suffix}
---
Pictures as the tokens of {model}, made by `vartok dataset`; dataset.json tells how.
"""
"""README.md of a new data set; its header tells Hugging Face's loader which files hold the rows."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The data set that a call of `build` makes.

    Attributes:
        out: folder of the data set.
        format: format of its shards, one of `FORMATS`.
        shard_size: samples of a shard at most, failed ones included.
        encoding: settings that its tokens share.
        fit: the fit of pictures, with the same values as `encoding`.
        keep_pictures: store the picture files beside their tokens.
        classes: names of the labels, if folders give them; else empty.

    Raises:
        DatasetError: values contradict each other.
    """

    out: Path
    format: str
    shard_size: int
    encoding: Encoding
    fit: Fit
    keep_pictures: bool = False
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the values."""
        keeps_pictures = find_format(self.format).keeps_pictures
        if self.fit.mode == "native":
            raise DatasetError("pictures of a data set have one size", hint="crop, pad or stretch them")
        if self.keep_pictures and not keeps_pictures:
            raise DatasetError(
                f"{self.format} shards cannot keep pictures beside the tokens", hint='`format` "wds" can'
            )

    def shard_path(self, shard: ShardId) -> Path:
        """Return the path of a shard."""
        return self.out / DATA / f"{shard_name(*shard)}{find_format(self.format).suffix}"

    def has_shard(self, shard: ShardId, stats: ShardStats) -> bool:
        """Return True if the shard exists with the size in its stats."""
        try:
            return self.shard_path(shard).stat().st_size == stats.bytes
        except FileNotFoundError:
            return False

    def describe(self) -> dict[str, Any]:
        """Return the part of dataset.json in which all runs that add to the data set must agree."""
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
        index: position of the input shard in the order of all.
        shard: the input shard.
        done: parts of it, i.e. shards made from it, that are done already.
        end: the last part, if it is in `done` and its stats mark it as the last; else None.
    """

    index: int
    shard: InputShard
    done: frozenset[int]
    end: int | None = None


@dataclass(frozen=True)
class SampleSlot:
    """The place of a sample in the data set.

    Attributes:
        index: position of its input shard in the order of all.
        part: part of the input shard that it goes into; None for a failure that no shard records.
        input: identity of the input shard.
        sample: the sample; None marks the end of the input shard, whose last part is `part`.
    """

    index: int
    part: int | None
    input: str
    sample: Sample | None

    @property
    def shard(self) -> tuple[int, int | None]:
        """The index and the part, which identify the sample's shard."""
        return self.index, self.part


def plan_tasks(job: Job, shards: Sequence[InputShard], *, retry_failed: bool = False) -> list[InputTask]:
    """List the input shards with work left, in order.

    Creates the folder of a new data set, or checks that the existing one is the same data set.

    Args:
        job: the data set.
        shards: all its input shards.
        retry_failed: make shards with failed samples again.

    Raises:
        DatasetError: the folder holds something else, or a data set of other sources.
        OSError: the folder cannot be written.
    """
    if (job.out / DATASET).exists():
        _check_description(job)
    else:
        _create_folder(job)
    done: dict[int, set[int]] = {}
    ends: dict[int, int] = {}
    for (index, part), stats in read_stats(job.out).items():
        identity = shards[index].identity if index < len(shards) else None
        if stats.input != identity:
            if identity is not None and not stats.pictures:
                continue  # it has no rows, for instance as a table's column was not named
            _refuse_other_source(job.out, (index, part), stats.input, identity)
        if job.has_shard((index, part), stats) and not (retry_failed and stats.failed):
            done.setdefault(index, set()).add(part)
            if stats.last:
                ends[index] = part
    tasks = [
        InputTask(index, shard, frozenset(done.get(index, ())), ends.get(index))
        for index, shard in enumerate(shards)
    ]
    return [task for task in tasks if not is_complete(task.done, task.end)]


def pending_samples(job: Job, tasks: Iterable[InputTask]) -> Iterator[tuple[SampleSlot, str, Any]]:
    """Yield the samples that are to be encoded, and the end of each input shard.

    Yields:
        The input of `encode_pictures`: the slot, the key, and the function that reads the picture.
    """
    for task in tasks:
        index, identity = task.index, task.shard.identity
        count = 0
        for count, sample in enumerate(task.shard.samples(job.fit.max_bytes), 1):
            part: int | None = (count - 1) // job.shard_size
            if part in task.done:
                if not sample.final:
                    continue
                part = None  # the missing parts are beyond this error, and cannot be read now
            if job.keep_pictures:
                sample = sample.with_bytes(job.fit.max_bytes)
            kept = sample if job.keep_pictures else sample.without_bytes()
            yield SampleSlot(index, part, identity, kept), sample.key, sample.read
            if part is None:
                break
        else:
            last = max(0, count - 1) // job.shard_size
            if last not in task.done:
                yield SampleSlot(index, last, identity, None), "", _read_nothing
            elif last != task.end:  # the input shard was longer before: its stats do not mark this end
                yield from pending_samples(job, [replace(task, done=task.done - {last})])


def is_complete(parts: Iterable[int], end: int | None) -> bool:
    """Return True if `parts` are all parts of an input shard, up to its last one, `end`."""
    return end is not None and set(range(end + 1)) <= set(parts)


def _check_description(job: Job) -> None:
    """Raise DatasetError if the folder holds a data set with other settings."""
    wanted = job.describe()
    found = read_description(job.out)
    old, new = _flatten(found, wanted), _flatten(wanted, wanted)
    for name in {**new, **old}:
        if old.get(name) != new.get(name):
            raise DatasetError(
                f"{job.out} holds a data set with {name} {_shorten(old.get(name))}, not "
                f"{_shorten(new.get(name))}",
                hint="give the same sources and settings, or name another folder",
            )


def _create_folder(job: Job) -> None:
    """Create the files of an empty data set; several processes may do so at once."""
    if job.out.exists() and (not job.out.is_dir() or not all(map(_is_ours, job.out.iterdir()))):
        raise DatasetError(f"{job.out} exists and holds no data set", hint="name a new folder")
    for folder in (DATA, STATS):
        (job.out / folder).mkdir(parents=True, exist_ok=True)
    if not (job.out / README).exists():  # users may add to it
        suffix = find_format(job.format).suffix
        card = CARD.format(data=DATA, suffix=suffix, model=job.encoding.model.name)
        write_text(job.out / README, card)
    write_text(job.out / DATASET, json.dumps({**job.describe(), "complete": False}, indent=1) + "\n")


def _is_ours(path: Path) -> bool:
    """Return True for a file or folder that an interrupted run may have left before dataset.json existed."""
    return path.name in (DATA, STATS, DATASET, FAILED, README) or path.name.startswith(TEMPORARY)


def _refuse_other_source(out: Path, shard: ShardId, old: str, new: str | None) -> None:
    now = "nothing more" if new is None else one_line(new)
    raise DatasetError(
        f"{out} was made from other pictures: its shard {shard_name(*shard)} is from {one_line(old)}, but "
        f"the sources have {now}",
        hint="name another folder, or restore the sources (pictures that failed may be repaired or left)",
    )


def _flatten(description: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the entries of these names, with the entries of an object in place of the object."""
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
    text = one_line(json.dumps(value), 100)
    return f"{text} ({len(value)} in all)" if text.endswith("...") and isinstance(value, list) else text


def _read_nothing(fit: Fit) -> Picture:
    """The reader of the mark at the end of an input shard, which has no picture: raises an error."""
    raise DatasetError("the end of an input shard")
