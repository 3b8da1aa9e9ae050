"""Run an engine to its end, and sum up the data set, whether the run is complete or stopped."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from vartok.dataset.plan import Job
from vartok.dataset.progress import Progress, ProgressTotals, RunSummary, Summary
from vartok.dataset.schema import DAMAGED
from vartok.dataset.write import ShardProgress, describe_done, write_summary
from vartok.errors import DatasetError, OutputError, VartokError, counted, warn
from vartok.files import os_error_reason
from vartok.sources import InputShard
from vartok.sources.passed_over import warn_of_members


def run_engine(
    job: Job,
    reports: Generator[ShardProgress, None, None],
    totals: ProgressTotals,
    shards: Mapping[int, InputShard],
    input_shards: int,
    max_failures: int | None,
    progress: Callable[[Progress], None] | None,
) -> Summary:
    """Run an engine to its end; write dataset.json and failed.jsonl, even after an error.

    Args:
        job: the data set.
        reports: the reports of the engine.
        totals: sums of this run's reports.
        shards: the input shards of this run's part, also those that are done, by their positions among all.
        input_shards: number of input shards of the data set.
        max_failures: as for `build`.
        progress: as for `build`.

    Raises:
        DatasetError: more than `max_failures` samples failed, or the engine failed.
        OutputError: a file cannot be written.
        BaseException: as raised in the block. Its message, or a note of an exception that is not vartok's,
            tells how many shards are done.
    """
    try:
        with contextlib.closing(_with_output_errors(reports, job.out)) as written:
            for report in written:
                state = totals.add(report)
                if progress is not None:
                    progress(state)
                if max_failures is not None and state.failed > max_failures:
                    raise DatasetError(
                        f"stopped: {counted(state.failed, 'sample')} failed, more than the "
                        f"{max_failures:,} allowed"
                    )
        with output_errors(job.out):
            summary = write_summary(job, input_shards)
    except BaseException as error:
        with contextlib.suppress(OSError):
            write_summary(job, input_shards)
        done = "the shards that are done are kept"
        with contextlib.suppress(OSError):
            done = describe_done(job, shards)
        if isinstance(error, VartokError):
            raise type(error)(f"{error}; {done}", hint=error.hint) from error
        error.add_note(done)
        raise
    return _summarize(summary, job, totals)


def _summarize(summary: dict[str, Any], job: Job, totals: ProgressTotals) -> Summary:
    """Return the result of `build`; warn of what is not carried, and of members that were passed over.

    Args:
        summary: the object that dataset.json holds.
        job: the data set.
        totals: sums of the run's reports.
    """
    not_carried: dict[str, int] = summary.get("not_carried", {})
    for what, rows in not_carried.items():
        warn(f"not carried: {what} ({counted(rows, 'row')})")
    if damaged := summary.get("damaged", 0):
        pictures = counted(damaged, "damaged picture")
        warn(f"took what can be decoded of {pictures}, which {job.out / DAMAGED} lists")
    passed_over: dict[str, int] = summary.get("passed_over", {})
    warn_of_members(Counter(passed_over) - Counter(dict(job.passed_over)))
    state = totals.state()
    rate = state.pictures / state.seconds if state.pictures else 0.0
    return Summary(
        run=RunSummary(
            pictures=state.pictures,
            failed=state.failed,
            shards=state.shards,
            seconds=state.seconds,
            pictures_per_second=rate,
        ),
        complete=summary["complete"],
        pictures=summary["pictures"],
        views=job.encoding.rows_per_picture,
        failed=summary["failed"],
        bytes=summary["bytes"],
        shards=len(summary["shards"]),
        damaged=damaged,
        not_carried=not_carried,
        passed_over=passed_over,
    )


def _with_output_errors(
    reports: Generator[ShardProgress, None, None], out: Path
) -> Generator[ShardProgress, None, None]:
    """Yield the reports of an engine; only its own OSErrors become OutputErrors, not those of the caller."""
    with output_errors(out), contextlib.closing(reports):
        yield from reports


@contextlib.contextmanager
def output_errors(out: Path) -> Iterator[None]:
    """Turn an OSError in the block into an OutputError whose hint says how to resume."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write in {out}: {os_error_reason(error)}",
            hint="run the same call again to make the missing shards",
        ) from error
