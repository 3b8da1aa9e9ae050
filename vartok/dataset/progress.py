"""Progress and result of a build: the sums over the reports of all processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vartok.dataset.plan import InputTask
from vartok.dataset.write import ShardProgress


class Failure(NamedTuple):
    """A sample that failed.

    Attributes:
        place: path or URL of the picture file; for a sample in a tar or table, "shard.tar: key".
        cause: the reason, on one line.
        hint: how to avoid the failure, or None.
    """

    place: str
    cause: str
    hint: str | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The state of a running build. Counts are those of this run, not of the whole data set.

    Attributes:
        pictures: pictures encoded, including those in unfinished shards.
        failed: samples that failed.
        shards: shards finished.
        bytes: bytes of shards written, including unfinished shards.
        seconds: seconds since the start of the engine.
        fraction: mean over this run's input shards of the fraction that is done, 0 to 1.
        failures: samples that failed since the last report.
        active: shards that are being written, in the order of the processes that write them.
    """

    pictures: int
    failed: int
    shards: int
    bytes: int
    seconds: float
    fraction: float
    failures: tuple[Failure, ...] = ()
    active: tuple[ShardProgress, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The work of one run of `build`.

    Attributes:
        pictures: pictures encoded.
        failed: samples that failed.
        shards: shards finished.
        seconds: seconds from the start of the engine; with several processes or Ray they include the loading
            of the checkpoint in each.
        pictures_per_second: `pictures` / `seconds`; 0 if no picture was encoded.
    """

    pictures: int
    failed: int
    shards: int
    seconds: float
    pictures_per_second: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The state of a data set after a run of `build`.

    Attributes:
        run: the work of this run.
        complete: True if all input shards are done.
        pictures: number of pictures in the finished shards; each has a row for every view.
        views: number of views of each picture.
        failed: number of samples of the finished shards that failed, and so have no row.
        bytes: total size of the finished shards in bytes.
        shards: number of finished shards.
        damaged: number of the pictures whose files are damaged, and of which was taken what can be decoded.
        not_carried: what came with the pictures and is left out, such as "column 'label': labels that are not
            whole numbers", and the number of its rows.
        passed_over: number of files in the sources, and of members of tars, that are not read, by kind: by
            suffix, or as in `vartok.sources.passed_over`.
    """

    run: RunSummary
    complete: bool
    pictures: int
    failed: int
    bytes: int
    shards: int
    passed_over: dict[str, int]
    views: int = 1
    damaged: int = 0
    not_carried: dict[str, int] = field(default_factory=dict)


class ProgressTotals:
    """Sums up the progress of all processes.

    Args:
        tasks: the tasks of the run; every report is on a shard of one of them.
    """

    def __init__(self, tasks: Sequence[InputTask]) -> None:
        self._inputs = {task.index: task.shard for task in tasks}
        self._fractions = dict.fromkeys(self._inputs, 0.0)  # of each input shard
        self._active: dict[int, ShardProgress] = {}  # by worker
        self._finished: dict[str, ShardProgress] = {}  # by shard
        self._failed: set[tuple[str, str]] = set()  # shard and key, as a shard may be started twice
        self._start = time.monotonic()

    def add(self, report: ShardProgress) -> Progress:
        """Add a report, and return the new state with the failures that the report adds."""
        new = {
            (report.shard, failure.key): failure
            for failure in report.failures
            if (report.shard, failure.key) not in self._failed
        }
        self._failed |= new.keys()
        # An input shard has one process at a time: another one that worked on it has died.
        self._active = {
            worker: active
            for worker, active in self._active.items()
            if worker != report.worker and active.index != report.index
        }
        if report.finished:
            self._finished[report.shard] = report
        else:
            self._active[report.worker] = report
        if report.finished and report.last:
            self._fractions[report.index] = 1.0
        elif report.read_fraction is not None:
            self._fractions[report.index] = report.read_fraction
        place = self._inputs[report.index].find
        return self.state(
            tuple(Failure(place(failed.key), failed.cause, failed.hint) for failed in new.values())
        )

    def state(self, failures: tuple[Failure, ...] = ()) -> Progress:
        """Return the current state, with `failures` as the new failures."""
        reports = (*self._finished.values(), *self._active.values())
        return Progress(
            pictures=sum(report.pictures for report in reports),
            failed=len(self._failed),
            shards=len(self._finished),
            bytes=sum(report.bytes for report in reports),
            seconds=time.monotonic() - self._start,
            fraction=sum(self._fractions.values()) / max(1, len(self._fractions)),
            failures=failures,
            active=tuple(report for _, report in sorted(self._active.items())),
        )
