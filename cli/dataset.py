"""`vartok dataset`: folders, tars, tables and buckets of pictures to training-ready shards of tokens."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vartok.errors import OutputError, VartokError, printable

from .command import Terminated, command
from .display import Display
from .messages import FAILED, INTERRUPTED, SOME_FAILED, TERMINATED, duration, explain, say
from .options import (
    CompileOption,
    FullNamesOption,
    JsonOption,
    MessageOptions,
    ModelOptions,
    PictureOptions,
    WorkOptions,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vartok.dataset import Progress, Summary

MAX_NAMED_FAILURES = 20
"""Failures that are named on stderr; failed.jsonl has all."""


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Options for the files of the data set."""

    format: Annotated[
        Literal["parquet", "wds", "jsonl"],
        typer.Option("--format", help="Format of the shards; wds: tars in WebDataset's layout."),
    ] = "parquet"
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Pictures of a shard, at most.")] = (
        10_000
    )
    keep_pictures: Annotated[
        bool, typer.Option("--keep-pictures", help="With wds: keep the pictures beside their tokens.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Options for keys and labels of pictures."""

    image_column: Annotated[
        str | None,
        typer.Option(
            "--image-column", help="Column of pictures in Parquet files, where several may hold some."
        ),
    ] = None
    folder_labels: Annotated[
        bool,
        typer.Option(
            "--folder-labels",
            help="Label files by the folders in SRC, numbered in sorted order as ImageFolder does.",
        ),
    ] = False
    full_names: FullNamesOption = False


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options for the processes and machines that work."""

    compile: CompileOption = False
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Do part I of N of the input shards, from 0/N: one for each machine.",
        ),
    ] = None
    processes: Annotated[
        int | None,
        typer.Option("--processes", min=1, max=256, help="Default: one for every GPU here, else one."),
    ] = None
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="ray: on a Ray cluster, or one started here.")
    ] = "local"
    address: Annotated[
        str | None, typer.Option("--address", help="Address of the Ray cluster: auto, or ray://host:10001.")
    ] = None
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also do shards again in which pictures failed.")
    ] = False

    def arguments(self) -> dict[str, Any]:
        """Return the options as `build` takes them."""
        return {**vars(self), "shard": _parse_shard(self.shard)}


@dataclass(frozen=True, kw_only=True)
class FailureOptions:
    """Options for pictures that fail."""

    on_error: Annotated[
        Literal["skip", "stop"], typer.Option("--on-error", help="What to do when a picture fails.")
    ] = "skip"
    max_failures: Annotated[
        int | None, typer.Option("--max-failures", min=0, help="Stop when more than this many fail.")
    ] = None

    def limit(self) -> int | None:
        """Return the number of failures that a run survives; None if any."""
        if self.on_error == "skip":
            return self.max_failures
        if self.max_failures is not None:
            raise typer.BadParameter("--on-error stop and --max-failures: which one?")
        return 0


@command
def make(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC", help="Folders, tars, Parquet files, lists (.txt) and pictures; paths or URLs."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="The folder of the data set.")
    ],
    shards: ShardOptions,
    pictures: PictureOptions,
    source: SourceOptions,
    model: ModelOptions,
    work: WorkOptions,
    engine: EngineOptions,
    failures: FailureOptions,
    messages: MessageOptions,
    as_json: JsonOption = False,
) -> None:
    """Turn many pictures into a data set of tokens.

    Shards appear whole; stopped or killed, the same command does what is missing, and gives the same
    bytes. What fails is in OUT/failed.jsonl. Needs pip install '.[dataset]' in a clone, and for
    --engine ray '.[ray]'. `vartok dataset verify OUT` checks what is there.

    Examples:
      vartok dataset photos -o tokens
      vartok dataset imagenet/train -o tokens --folder-labels
      vartok dataset shards/*.tar -o tokens --format wds
      vartok dataset s3://bucket/imagenet -o tokens --processes 8
      vartok dataset shards/*.tar -o tokens --shard $SLURM_ARRAY_TASK_ID/64
      vartok dataset verify tokens
    """
    from vartok.dataset import build

    options = vars(shards) | vars(pictures) | vars(source) | vars(model) | vars(work) | engine.arguments()
    limit = failures.limit()
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
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of a data set.")],
    messages: MessageOptions,
    as_json: JsonOption = False,
) -> None:
    """Check a data set: counts, hashes, index ranges, and that no key occurs twice.

    Examples:
      vartok dataset verify tokens
    """
    from vartok.dataset import verify

    report = verify(folder)
    for problem in report.problems:
        say(f"{printable(folder / problem.file)}: {problem.cause}")
    if as_json:
        problems = [{"file": problem.file, "what": problem.cause} for problem in report.problems]
        print(json.dumps({**vars(report), "problems": problems}))
    elif not messages.quiet:
        state = _count(len(report.problems), "problem") if report.problems else "all well"
        if report.failed and not report.problems:
            state = f"what is there is well; {printable(folder / 'failed.jsonl')} has the others"
        counts = f"{_count(report.pictures, 'picture')} in {_count(report.shards, 'shard')}"
        say(f"{counts}, {report.failed:,} failed: {state}")
    if report.problems:
        raise typer.Exit(FAILED)


class DefaultCommand(typer.core.TyperGroup):
    """A group whose first command runs if none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the first command's name if the arguments name none."""
        if not args or args[0] not in self.commands:
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=DefaultCommand, add_completion=False, rich_markup_mode=None)
app.command(name="make")(make)
app.command(name="verify")(verify)


class _View:
    """Shows a build's progress, and names its failures."""

    def __init__(self, out: Path, *, quiet: bool) -> None:
        self._out = out
        self._display = Display(quiet=quiet)
        self._named = 0
        self._shards = 0

    def show(self, progress: Progress) -> None:
        """Name new failures, and show the rest as a status."""
        self._shards = progress.shards
        for failure in progress.failures[: MAX_NAMED_FAILURES - self._named]:
            cause = explain(VartokError(failure.cause, hint=failure.hint))
            self._display.say(f"{printable(failure.place)}: {printable(cause)}", error=True)
            self._named += 1
            if self._named == MAX_NAMED_FAILURES:
                file = printable(self._out / "failed.jsonl")
                self._display.say(f"further failures are not named here, but in {file}", error=True)
        self._display.update(_status(progress), _worker_rows(progress))

    @contextlib.contextmanager
    def errors(self, debug: bool) -> Iterator[None]:
        """Turn a build's errors into this command's exit codes."""
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
        _count(progress.pictures, "picture"),
        f"{progress.pictures / seconds:.1f}/s",
        f"{progress.bytes / 1e6:,.1f} MB",
        f"{progress.failed:,} failed",
        f"{done:.0%}" + (f", {duration(seconds / done * (1 - done))} left" if done > 0.01 else ""),
    ]
    return ", ".join(parts)


def _worker_rows(progress: Progress) -> list[str]:
    """Return a line per process, where there are several."""
    if len(progress.active) < 2:
        return []
    rows = []
    for shard in progress.active:
        read = f", {shard.read_fraction:.0%} of its input" if shard.read_fraction is not None else ""
        pictures = _count(shard.pictures, "picture")
        rows.append(f"  process {shard.worker}: shard {shard.shard}, {pictures}{read}")
    return rows


def _print_summary(summary: Summary, *, as_json: bool, quiet: bool) -> None:
    run = summary.run
    if as_json:
        rounded = {
            "seconds": round(run.seconds, 3),
            "pictures_per_second": round(run.pictures_per_second, 2),
        }
        print(json.dumps({**vars(summary), "run": {**vars(run), **rounded}}))
    elif not quiet:
        rate = f"{run.pictures_per_second:.1f}/s"
        did = f"encoded {run.pictures:,} in {run.seconds:.1f} s ({rate})" if run.shards else "nothing to do"
        state = "complete" if summary.complete else "not complete yet"
        counts = f"{_count(summary.pictures, 'picture')} in {_count(summary.shards, 'shard')}"
        rest = f"{summary.bytes / 1e6:,.1f} MB, {summary.failed:,} failed"
        say(f"{did}; the data set is {state}: {counts}, {rest}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)


def _parse_shard(text: str | None) -> tuple[int, int]:
    """Parse "I/N", part I of N; None is all."""
    if text is None:
        return 0, 1
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise typer.BadParameter(f"--shard is I/N, I from 0 to N - 1, as 0/4 to 3/4, not {printable(text)}")
    return int(part), int(parts)


def _prepare_process(debug: bool) -> None:
    """Change settings of the whole process, which this command owns."""
    from vartok.images import configure_pillow

    configure_pillow(quiet=not debug)
    if debug:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "info")


@contextlib.contextmanager
def _stop_message() -> Iterator[None]:
    """Say after Ctrl-C and SIGTERM how to go on. Meanwhile stdout is stderr, as Ray prints warnings there."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (KeyboardInterrupt, Terminated) as error:
        say("stopped; finished shards stay, and the same command goes on")
        raise typer.Exit(TERMINATED if isinstance(error, Terminated) else INTERRUPTED) from None
