"""From input shards to the shards of a data set: what is made, what is done already, and what is left.

OUT/
  dataset.json            what the whole is: model, schedule, shards with their sha256; whether it is complete
  data/00003-0000.parquet rows of the input shard 3: the first `shard_size` of them, whatever became of each
  stats/00003-0000.json   written after it, as the mark that it is done: counts, sha256, what failed
  failed.jsonl            everything that failed: key, cause and shard of each
  README.md               tells Hugging Face's loader, and people, which files hold the rows

A shard is a function of its input shard, and of nothing that happens meanwhile. So machines need not talk
to each other, and what is made again is the same to the byte.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from vartok.dataset.shards import (
    CARRIED,
    DATA,
    DATASET,
    FORMAT,
    SUFFIXES,
    VERSION,
    Encoding,
    HashedFile,
    Row,
    read_description,
    write_shard,
)
from vartok.errors import DatasetError, VartokError, one_line, quoted
from vartok.files import ABANDONED, TEMPORARY, atomic_write, remove_stale_temp_files
from vartok.images import Fit, Picture
from vartok.sources import InputShard, Sample
from vartok.tokens import ImageTokens

STATS = "stats"
FAILED = "failed.jsonl"

README = "README.md"
CARD = """---
configs:
- config_name: default
  data_files: {data}/*{suffix}
---
Pictures as the tokens of {model}, made by `vartok dataset`; dataset.json tells how.
"""

TELL_EVERY = 0.2
"""Seconds between two tidings of one shard's progress; of a failure it is told at once."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A data set to be made.

    Attributes:
        out: its folder.
        format: of its shards, one of `SUFFIXES`.
        shard_size: samples of a shard, at most; those that fail count too.
        encoding: what its tokens have in common.
        fit: how pictures become pixels; what `encoding` says of it is the same.
        keep_pictures: whether tars keep the pictures beside the tokens.
        classes: the names of labels, where folders tell them.

    Raises:
        DatasetError: values that contradict each other.
    """

    out: Path
    format: str
    shard_size: int
    encoding: Encoding
    fit: Fit
    keep_pictures: bool = False
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what can be wrong."""
        if self.format not in SUFFIXES:
            raise DatasetError(f"shards are {', '.join(SUFFIXES)}, not {quoted(self.format)}")
        if self.fit.mode == "native":
            raise DatasetError("pictures of a data set have one size: crop, pad or stretch them")
        if self.keep_pictures and self.format != "wds":
            raise DatasetError("only tars keep pictures beside the tokens: --format wds")

    def data(self, name: str) -> Path:
        """Where the shard of this name is."""
        return self.out / DATA / f"{name}{SUFFIXES[self.format]}"

    def has(self, index: int, part: int, mark: Mark) -> bool:
        """Whether the shard that a mark is of is there, by its size."""
        data = self.data(shard_name(index, part))
        try:
            return data.stat().st_size == mark.bytes
        except FileNotFoundError:
            return False

    def describe(self) -> dict[str, Any]:
        """What dataset.json says of the whole before anything is made; runs that add to it must agree."""
        return {
            "format": FORMAT,
            "version": VERSION,
            **self.encoding.to_dict(),
            "files": self.format,
            "shard_size": self.shard_size,
            "keeps_pictures": self.keep_pictures,
            "classes": list(self.classes),
        }


class Failure(NamedTuple):
    """A sample that has no tokens, and why."""

    key: str
    cause: str


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What is known of a finished shard.

    Attributes:
        input: the identity of its input shard.
        pictures: its rows.
        failed: the samples that are not among them.
        carried: rows that have a label, a caption, metadata.
        bytes: its size.
        sha256: of its bytes, in hex.
        last: whether its input shard ends with it.
    """

    input: str
    pictures: int
    failed: tuple[Failure, ...]
    carried: dict[str, int]
    bytes: int
    sha256: str
    last: bool

    def to_json(self) -> str:
        """One object, on one line."""
        failed = [failure._asdict() for failure in self.failed]
        return json.dumps({**vars(self), "failed": failed}) + "\n"

    @classmethod
    def read(cls, path: Path) -> Mark:
        """Read a stats file.

        Raises:
            DatasetError: it is none.
            OSError: it cannot be read.
        """
        try:
            values = json.loads(path.read_bytes())
            failed = tuple(Failure(str(item["key"]), str(item["cause"])) for item in values.pop("failed"))
            mark = cls(failed=failed, **values)
            checked = {
                "input": str,
                "pictures": int,
                "carried": dict,
                "bytes": int,
                "sha256": str,
                "last": bool,
            }
            if any(type(getattr(mark, name)) is not kind for name, kind in checked.items()):
                raise ValueError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise DatasetError(f"{path} is no stats file of vartok's: remove it") from None
        return mark


@dataclass(frozen=True)
class Task:
    """An input shard to work on.

    Attributes:
        index: its place in the order.
        shard: itself.
        done: which of its shards are done already.
        end: which of those it ends with, as far as they know.
    """

    index: int
    shard: InputShard
    done: frozenset[int]
    end: int | None = None


@dataclass(frozen=True)
class Slot:
    """Where a sample goes.

    Attributes:
        index: its input shard's place in the order.
        part: which of that one's shards; None if it is to be told of, and goes nowhere.
        input: the input shard's identity.
        sample: what goes there; None says that the input shard ends with this part.
    """

    index: int
    part: int | None
    input: str
    sample: Sample | None

    @property
    def place(self) -> tuple[int, int | None]:
        """What all of a shard share."""
        return self.index, self.part


@dataclass(frozen=True)
class Progress:
    """How far a shard is.

    Attributes:
        shard: its name.
        index: its input shard's place in the order.
        pictures: rows that it has.
        bytes: written of it.
        failures: samples that are not among them, those since the last time.
        reached: the share of the input shard that has been read, 0 to 1; None if that is not known.
        finished: whether it is done.
        last: whether its input shard is, too.
        worker: which of several processes tells it.
    """

    shard: str
    index: int
    pictures: int
    bytes: int
    failures: tuple[Failure, ...]
    reached: float | None = None
    finished: bool = False
    last: bool = False
    worker: int = 0


def plan(job: Job, shards: Sequence[InputShard], *, retry_failed: bool = False) -> list[Task]:
    """What is left to do, in order; makes the folder, or checks that what it holds is this data set.

    Raises:
        DatasetError: the folder holds something else.
        OSError: it cannot be written.
    """
    path = job.out / DATASET
    wanted = job.describe()
    if path.exists():
        found = read_description(job.out)
        old, new = _flat(found, wanted), _flat(wanted, wanted)
        for name in {**new, **old}:
            if old.get(name) != new.get(name):
                raise DatasetError(
                    f"{job.out} holds a data set with {name} {_told(old.get(name))}, not "
                    f"{_told(new.get(name))}: give the same sources and options, or name another folder"
                )
    else:
        if job.out.exists() and (not job.out.is_dir() or not all(map(_is_ours, job.out.iterdir()))):
            raise DatasetError(f"{job.out} exists and holds no data set: name a new folder")
        for folder in (DATA, STATS):
            (job.out / folder).mkdir(parents=True, exist_ok=True)
        if not (job.out / README).exists():  # whoever wants to says more in it
            card = CARD.format(data=DATA, suffix=SUFFIXES[job.format], model=job.encoding.model.name)
            _write(job.out / README, card)
        _write(path, json.dumps({**wanted, "complete": False}, indent=1) + "\n")
    done: dict[int, set[int]] = {}
    ends: dict[int, int] = {}
    for (index, part), mark in read_marks(job.out).items():
        if index < len(shards) and mark.input != shards[index].identity and not mark.pictures:
            continue  # nothing came of it, as where a table's column was not named
        if index >= len(shards) or mark.input != shards[index].identity:
            now = one_line(shards[index].identity) if index < len(shards) else "nothing more"
            raise DatasetError(
                f"{job.out} was made of other pictures: its shard {shard_name(index, part)} is of "
                f"{one_line(mark.input)}, where the sources have {now}; name another folder, or put the "
                "sources back as they were (a picture that fails may stay, or be mended)"
            )
        if job.has(index, part, mark) and not (retry_failed and mark.failed):
            done.setdefault(index, set()).add(part)
            if mark.last:
                ends[index] = part
    tasks = [
        Task(index, shard, frozenset(done.get(index, ())), ends.get(index))
        for index, shard in enumerate(shards)
    ]
    return [task for task in tasks if not _is_whole(task.done, task.end)]


def samples(job: Job, tasks: Iterable[Task]) -> Iterator[tuple[Slot, str, Any]]:
    """The samples that are to be encoded, as `encode_pictures` takes them, and the end of each task."""
    for task in tasks:
        index, shard, done = task.index, task.shard, task.done
        identity = shard.identity
        count = 0
        for count, sample in enumerate(shard.samples(), 1):
            part: int | None = (count - 1) // job.shard_size
            if part in done:
                if not sample.final:
                    continue
                part = None  # what is missing lies beyond, and cannot be reached now
            if job.keep_pictures:
                sample = sample.with_bytes()
            kept = sample if job.keep_pictures else sample.without_bytes()
            yield Slot(index, part, identity, kept), sample.key, sample.read
            if part is None:
                break
        else:
            last = max(0, count - 1) // job.shard_size
            if last not in done:
                yield Slot(index, last, identity, None), "", _no_picture
            elif last != task.end:  # it was longer once: what it ends with now does not know that
                yield from samples(job, [replace(task, done=done - {last})])


def write_shards(job: Job, results: Iterable[tuple[Slot, ImageTokens | VartokError]]) -> Iterator[Progress]:
    """Write the shards of what was encoded, each whole or not at all, and its stats file after it.

    Args:
        job: what is made.
        results: of each sample of some tasks in order, and of the ends of tasks.

    Raises:
        OSError: a file cannot be written.
    """
    for (index, part), run in itertools.groupby(results, lambda item: item[0].place):
        if part is None:
            lost = [(slot.sample, result) for slot, result in run]
            failures = tuple(Failure(sample.key, str(result)) for sample, result in lost if sample)
            yield Progress(f"{index:05d}", index, 0, 0, failures)
            continue
        name = shard_name(index, part)
        stats = job.out / STATS / f"{name}.json"
        stats.unlink(missing_ok=True)  # first: from here on the shard is not done
        pictures, failed, last = 0, [], False
        carried = Counter(dict.fromkeys(CARRIED, 0))
        told, told_of = time.monotonic(), 0  # when, and of how many failures
        with atomic_write(job.data(name), overwrite=True) as file:
            stream = HashedFile(file)
            writer = write_shard(job.format, stream, job.encoding)
            for slot, result in run:
                sample = slot.sample
                if sample is None:
                    last = True
                    break
                try:
                    if isinstance(result, VartokError):
                        raise result
                    row = _row(sample, result)
                    writer.add(row)
                except VartokError as error:
                    failed.append(Failure(sample.key, str(error)))
                else:
                    pictures += 1
                    carried.update(column for column in CARRIED if getattr(row, column) is not None)
                if len(failed) > told_of or time.monotonic() - told > TELL_EVERY:
                    yield Progress(
                        name, index, pictures, stream.size, tuple(failed[told_of:]), sample.progress
                    )
                    told, told_of = time.monotonic(), len(failed)
            writer.close()
        mark = Mark(
            input=slot.input,
            pictures=pictures,
            failed=tuple(failed),
            carried=dict(carried),
            bytes=stream.size,
            sha256=stream.sha256,
            last=last,
        )
        _write(stats, mark.to_json())
        for path in (job.data(name), stats):
            remove_stale_temp_files(path)
        if last:
            _remove_beyond(job, index, part)
        yield Progress(name, index, pictures, stream.size, tuple(failed[told_of:]), finished=True, last=last)


def finish(job: Job, shards: int) -> dict[str, Any]:
    """Sum up in dataset.json and failed.jsonl what is done of so many input shards; returns the former.

    Any number of machines may do this at any time: who writes last looks once more.

    Raises:
        OSError: a file cannot be written.
    """
    marks = _done(job)
    while True:
        complete = _are_whole(marks, shards)
        failures = [
            json.dumps({"key": failure.key, "cause": failure.cause, "shard": shard_name(*place)})
            for place, mark in marks.items()
            for failure in mark.failed
        ]
        if failures:
            _write(job.out / FAILED, "".join(f"{line}\n" for line in failures))
        else:
            (job.out / FAILED).unlink(missing_ok=True)
        summary = _summary(job, marks, complete)
        _write(job.out / DATASET, json.dumps(summary, indent=1) + "\n")
        again = _done(job)
        if again == marks:
            break
        marks = again
    for name in (FAILED, DATASET, README):
        remove_stale_temp_files(job.out / name, age=ABANDONED)
    return summary


def read_marks(out: Path) -> dict[tuple[int, int], Mark]:
    """The stats of all shards that have any, in order, by their input shard's place and their part of it.

    Raises:
        DatasetError: a file among them is none.
    """
    found = {}
    for path in (out / STATS).iterdir() if (out / STATS).is_dir() else ():
        if match := re.fullmatch(r"([0-9]{5,9})-([0-9]{4,9})\.json", path.name):
            with contextlib.suppress(FileNotFoundError):  # another process begins to make it again
                found[int(match[1]), int(match[2])] = Mark.read(path)
    return dict(sorted(found.items()))


def _done(job: Job) -> dict[tuple[int, int], Mark]:
    """The stats of all shards that are there."""
    return {place: mark for place, mark in read_marks(job.out).items() if job.has(*place, mark)}


def shard_name(index: int, part: int) -> str:
    """What a shard is called: by its input shard's place in the order, and its part of it."""
    return f"{index:05d}-{part:04d}"


def _flat(description: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those entries of a description, and instead of an object what is in it."""
    flat: dict[str, Any] = {}
    for name in names:
        value = description.get(name)
        if isinstance(value, dict):
            flat |= {f"{name} {key}": item for key, item in value.items()}
        else:
            flat[name] = value
    return flat


def _told(value: Any) -> str:
    """A value of a description, as a message has it."""
    text = one_line(json.dumps(value), 100)
    return f"{text} ({len(value)} in all)" if text.endswith("...") and isinstance(value, list) else text


def _is_ours(path: Path) -> bool:
    """Whether a file or folder may be one that this module made."""
    return path.name in (DATA, STATS, DATASET, FAILED, README) or path.name.startswith(TEMPORARY)


def _remove_beyond(job: Job, index: int, end: int) -> None:
    """Remove the shards of an input shard that was longer once."""
    for part in itertools.count(end + 1):
        name = shard_name(index, part)
        paths = (job.out / STATS / f"{name}.json", job.data(name))
        if not any(path.exists() for path in paths):
            break
        for path in paths:
            path.unlink(missing_ok=True)


def _summary(job: Job, marks: dict[tuple[int, int], Mark], complete: bool) -> dict[str, Any]:
    """What dataset.json says of what is done."""
    carried = {column: sum(mark.carried.get(column, 0) for mark in marks.values()) for column in CARRIED}
    return {
        **job.describe(),
        "complete": complete,
        "pictures": sum(mark.pictures for mark in marks.values()),
        "failed": sum(len(mark.failed) for mark in marks.values()),
        "bytes": sum(mark.bytes for mark in marks.values()),
        "carried": carried,
        "shards": [
            {
                "name": f"{DATA}/{job.data(shard_name(*place)).name}",
                "pictures": mark.pictures,
                "failed": len(mark.failed),
                "bytes": mark.bytes,
                "sha256": mark.sha256,
            }
            for place, mark in marks.items()
        ],
    }


def _are_whole(marks: dict[tuple[int, int], Mark], shards: int) -> bool:
    """Whether so many input shards are done, all their parts."""
    parts: dict[int, set[int]] = {}
    ends: dict[int, int] = {}
    for (index, part), mark in marks.items():
        parts.setdefault(index, set()).add(part)
        if mark.last:
            ends[index] = part
    return all(_is_whole(parts.get(index, set()), ends.get(index)) for index in range(shards))


def _is_whole(parts: Iterable[int], end: int | None) -> bool:
    """Whether an input shard's parts are all there, up to the one at its end."""
    return end is not None and set(range(end + 1)) <= set(parts)


def _row(sample: Sample, result: ImageTokens) -> Row:
    return Row(
        key=sample.key,
        tokens=result.flatten(),
        width=result.image.width,
        height=result.image.height,
        label=sample.label,
        caption=sample.caption,
        metadata=sample.metadata,
        picture=sample.picture if isinstance(sample.picture, bytes) and sample.picture else None,
    )


def _no_picture(fit: Fit) -> Picture:
    raise DatasetError("the end of an input shard")


def _write(path: Path, text: str) -> None:
    with atomic_write(path, overwrite=True) as file:
        file.write(text.encode())
