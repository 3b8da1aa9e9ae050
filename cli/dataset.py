"""`vartok dataset`: builds and verifies data sets, shards of tokens for training."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vartok.errors import OutputError, VartokError, counted, printable
from vartok.stopping import Terminated, as_exceptions, stop

from .command import Command, Default, DefaultCommand, command
from .dataset_export import export
from .dataset_options import EngineOptions, FailureOptions, ShardOptions, SourceOptions, ViewOptions
from .dataset_plan import print_plan
from .display import Display
from .files import output_path
from .messages import FAILED, INTERRUPTED, SOME_FAILED, TERMINATED, duration, explain, print_result, say
from .options import (
    DryRunOption,
    JsonOption,
    MessageOptions,
    ModelOptions,
    SizedPictureOptions,
    WorkOptions,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vartok.dataset import Progress, Summary

MAX_NAMED_FAILURES = 20
"""Largest number of failures that are printed on stderr; failed.jsonl lists all."""


@command
def make(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC",
            help="Folders, tars, tables (Parquet, Arrow), lists (.txt), pictures; paths or URLs.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="OUT", parser=output_path, help="Folder of the data set."),
    ],
    shards: ShardOptions,
    pictures: SizedPictureOptions,
    views: ViewOptions,
    source: SourceOptions,
    model: ModelOptions,
    work: WorkOptions,
    engine: EngineOptions,
    failures: FailureOptions,
    messages: MessageOptions,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build a data set of tokens from many pictures.

    If a run is stopped or killed, the same command makes the missing shards, and the data set
    has the same bytes as without the stop. OUT/failed.jsonl lists pictures that failed.
    `vartok dataset verify OUT` checks a data set, and `vartok dataset export` writes other
    repositories' formats. This command needs pip install '.[dataset]'
    in a clone of the repository, and '.[ray]' for --engine ray.

    Examples:
      vartok dataset photos -o tokens
      vartok dataset imagenet/train -o tokens --folder-labels
      vartok dataset shards/*.tar -o tokens --format wds
      vartok dataset photos -o tokens --views random:8 --zoom 1.125
      vartok dataset s3://bucket/imagenet -o tokens --processes 8
      vartok dataset shards/*.tar -o tokens --shard $SLURM_ARRAY_TASK_ID/64
      vartok dataset verify tokens
    """
    from vartok.dataset import build

    options = (
        vars(shards)
        | vars(pictures)
        | vars(views)
        | vars(source)
        | vars(model)
        | vars(work)
        | engine.arguments()
    )
    limit = failures.limit()
    if dry_run:
        pictures.check(buckets=pictures.buckets)
        print_plan(sources, output, options, as_json=as_json, quiet=messages.quiet)
        return
    _prepare_process(messages.debug)
    view = _View(output, quiet=messages.quiet)
    with _stop_message(), contextlib.closing(view), view.errors(messages.debug):
        summary = build(sources, output, **options, max_failures=limit, progress=view.show)
    _print_summary(summary, as_json=as_json, quiet=messages.quiet)
    failed = summary.failed or not summary.complete
    if summary.run.failed or (options["shard"] == (0, 1) and failed):
        raise typer.Exit(SOME_FAILED if summary.pictures else FAILED)


@command
def verify(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the data set.")],
    messages: MessageOptions,
    as_json: JsonOption = False,
) -> None:
    """Verify a data set: its counts, hashes and index ranges, and the keys of each shard.

    Examples:
      vartok dataset verify tokens
    """
    from vartok.dataset import verify

    folder.stat()  # raises FileNotFoundError for a missing folder, whose message all commands share
    report = verify(folder)
    for problem in report.problems:
        say(f"{printable(folder / problem.file)}: {problem.cause}")
    if as_json:
        problems = [{"file": problem.file, "what": problem.cause} for problem in report.problems]
        print_result(json.dumps({**vars(report), "problems": problems}))
    elif not messages.quiet:
        state = counted(len(report.problems), "problem") if report.problems else "no problems"
        if report.failed and not report.problems:
            state = f"the shards are intact; {printable(folder / 'failed.jsonl')} lists the failures"
        counts = f"{counted(report.pictures, 'picture')} in {counted(report.shards, 'shard')}"
        damaged = f" ({report.damaged:,} damaged)" * bool(report.damaged)
        say(f"{counts}{damaged}, {report.failed:,} failed: {state}")
    if report.problems:
        raise typer.Exit(FAILED)


class DataSetGroup(DefaultCommand):
    """The group of `vartok dataset`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Say how a data set is built if the first argument is the name of the library's function."""
        if args and args[0] == "build" and not os.path.exists("build"):
            cure = "vartok dataset SRC... -o OUT builds a data set"
            raise typer.BadParameter(f"there is no command build: {cure}")
        return super().parse_args(ctx, args)


app = typer.Typer(cls=DataSetGroup, add_completion=False, rich_markup_mode=None)
app.command(name="make", cls=Default)(make)
app.command(name="verify", cls=Command)(verify)
app.command(name="export", cls=Command)(export)


class _View:
    """Shows the progress and the failures of a build."""

    def __init__(self, out: Path, *, quiet: bool) -> None:
        self._out = out
        self._display = Display(quiet=quiet)
        self._named = self._failures = 0
        self._told = False
        self._shards = 0

    def show(self, progress: Progress) -> None:
        """Print new failures, up to `MAX_NAMED_FAILURES` in the whole run, and update the status."""
        self._shards = progress.shards
        for failure in progress.failures[: MAX_NAMED_FAILURES - self._named]:
            cause = explain(VartokError(failure.cause, hint=failure.hint))
            self._display.say(f"{printable(failure.place)}: {printable(cause)}", error=True)
            self._named += 1
        self._failures += len(progress.failures)
        if self._failures > self._named and not self._told:
            self._told = True
            file = printable(self._out / "failed.jsonl")
            self._display.say(f"further failures are listed in {file} only", error=True)
        self._display.update(_status(progress), _worker_rows(progress))

    @contextlib.contextmanager
    def errors(self, debug: bool) -> Iterator[None]:
        """Exit with `SOME_FAILED` on an OutputError, if this run has finished a shard.

        Args:
            debug: raise the error unchanged.
        """
        try:
            yield
        except OutputError as error:
            if debug or not self._shards:
                raise
            self.close()
            say(explain(error))
            raise typer.Exit(SOME_FAILED) from None

    def close(self) -> None:
        """Remove the status."""
        self._display.close()


def _status(progress: Progress) -> str:
    seconds, done = max(progress.seconds, 1e-3), progress.fraction
    parts = [
        counted(progress.pictures, "picture"),
        f"{progress.pictures / seconds:.1f}/s",
        _size(progress.bytes),
        f"{progress.failed:,} failed",
        f"{done:.0%}" + (f", {duration(seconds / done * (1 - done))} left" if done > 0.01 else ""),
    ]
    return ", ".join(parts)


def _size(count: int) -> str:
    """Return a number of bytes as text: in kB below 1 MB."""
    return f"{count / 1e3:,.1f} kB" if count < 1e6 else f"{count / 1e6:,.1f} MB"


def _worker_rows(progress: Progress) -> list[str]:
    """Return a line for each working process; an empty list if fewer than two are working."""
    if len(progress.active) < 2:
        return []
    rows = []
    for shard in progress.active:
        read = f", {shard.read_fraction:.0%} of its input" if shard.read_fraction is not None else ""
        pictures = counted(shard.pictures, "picture")
        rows.append(f"  process {shard.worker}: shard {shard.shard}, {pictures}{read}")
    return rows


def _print_summary(summary: Summary, *, as_json: bool, quiet: bool) -> None:
    run = summary.run
    if as_json:
        rounded = {
            "seconds": round(run.seconds, 3),
            "pictures_per_second": round(run.pictures_per_second, 2),
        }
        print_result(json.dumps({**vars(summary), "run": {**vars(run), **rounded}}))
    elif not quiet:
        rate = f"{run.pictures_per_second:.1f}/s"
        did = f"encoded {run.pictures:,} in {run.seconds:.1f} s ({rate})" if run.shards else "nothing to do"
        state = "complete" if summary.complete else "not complete yet"
        if summary.failed and not summary.pictures:
            state = "empty, as no picture could be encoded"
        views = "" if summary.views == 1 else f" of {summary.views} views"
        counts = f"{counted(summary.pictures, 'picture')}{views} in {counted(summary.shards, 'shard')}"
        counts += f" ({summary.damaged:,} damaged)" * bool(summary.damaged)
        rest = f"{_size(summary.bytes)}, {summary.failed:,} failed"
        rest += " (--retry-failed tries them again)" * (summary.failed > run.failed)  # in earlier runs
        say(f"{did}; the data set is {state}: {counts}, {rest}")


def _prepare_process(debug: bool) -> None:
    """Configure Pillow for this process; with `debug`, let Ray's own processes log too."""
    from vartok.images import configure_pillow

    configure_pillow(quiet=not debug)
    if debug:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "info")


@contextlib.contextmanager
def _stop_message() -> Iterator[None]:
    """On Ctrl-C or SIGTERM, say how many shards are done and how to resume, and exit.

    A second signal ends the program at once. stdout goes to stderr in this context, as Ray prints warnings on
    stdout.
    """
    stop.describe_progress = lambda: "finished shards are kept; the same command goes on"
    try:
        with contextlib.redirect_stdout(sys.stderr), as_exceptions():
            yield
    except (KeyboardInterrupt, Terminated) as error:
        done = "; ".join(getattr(error, "__notes__", ["no shard was begun"]))
        say(f"stopped: {done}; the same command goes on")
        raise typer.Exit(TERMINATED if isinstance(error, Terminated) else INTERRUPTED) from None
