"""`vartok dataset`: folders, tars, tables and buckets of pictures to training-ready shards of tokens."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from vartok.errors import DatasetError, VartokError

from .options import (
    BackgroundOption,
    BatchSizeOption,
    CompileOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    FullNamesOption,
    JsonOption,
    MaxPixelsOption,
    QuietOption,
    ScheduleOption,
    SizeOption,
    WeightsOption,
    WorkersOption,
    ZoomOption,
    default_batch_size,
    default_workers,
    fit_to,
    load_tokenizer,
    parse_fit,
)
from .report import FAILED, SOME_FAILED, command, duration, say, shown, usage_errors

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from rich.table import Table

    from vartok.dataset.job import Job, Progress, Task
    from vartok.images import Fit
    from vartok.schedule import Schedule
    from vartok.sources import InputShard
    from vartok.tokenizer import Tokenizer

PACKAGES = ("pyarrow", "webdataset", "fsspec")
LINE_EVERY = 30.0  # seconds, where stderr is no terminal
NAMED = 20  # failures that are named; failed.jsonl has all
TERMINATED = 143  # what a shell says of a process that SIGTERM ended


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
    format: Annotated[
        Literal["parquet", "wds", "jsonl"],
        typer.Option("--format", help="Of the shards; wds: tars in WebDataset's layout."),
    ] = "parquet",
    shard_size: Annotated[
        int, typer.Option("--shard-size", min=1, help="Pictures of a shard, at most.")
    ] = 10_000,
    keep_pictures: Annotated[
        bool, typer.Option("--keep-pictures", help="With wds: keep the pictures beside their tokens.")
    ] = False,
    size: SizeOption = None,
    fit: Annotated[
        Literal["crop", "pad", "stretch"],
        typer.Option("--fit", help="crop: the centre; pad: all of it, framed; stretch."),
    ] = "crop",
    zoom: ZoomOption = 1.0,
    background: BackgroundOption = "white",
    schedule: ScheduleOption = None,
    max_pixels: MaxPixelsOption = 100_000_000,
    image_column: Annotated[
        str | None,
        typer.Option("--image-column", help="Of Parquet files, where several columns may hold pictures."),
    ] = None,
    folder_labels: Annotated[
        bool,
        typer.Option(
            "--folder-labels",
            help="Label files by the folders in SRC, numbered in sorted order as ImageFolder does.",
        ),
    ] = False,
    full_names: FullNamesOption = False,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    compile: CompileOption = False,
    batch_size: BatchSizeOption = None,
    workers: WorkersOption = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", min=1, max=256, help="Default: one for every GPU here, else one."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Do part I of N of the input shards, from 0/N: one for each machine.",
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="ray: on a Ray cluster, or one started here.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option("--address", help="Of the Ray cluster: auto, or ray://host:10001.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also do shards again in which pictures failed.")
    ] = False,
    on_error: Annotated[
        Literal["skip", "stop"], typer.Option("--on-error", help="What to do when a picture fails.")
    ] = "skip",
    max_failures: Annotated[
        int | None, typer.Option("--max-failures", min=0, help="Stop when more than this many fail.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Turn many pictures into a data set of tokens.

    Shards appear whole; stopped or killed, the same command does what is missing, and gives the same
    bytes. What fails is in OUT/failed.jsonl. Needs pip install 'vartok[dataset]', and for --engine ray
    'vartok[ray]'. `vartok dataset verify OUT` checks what is there.

    Examples:
      vartok dataset photos -o tokens
      vartok dataset imagenet/train -o tokens --folder-labels
      vartok dataset shards/*.tar -o tokens --format wds
      vartok dataset s3://bucket/imagenet -o tokens --processes 8
      vartok dataset shards/*.tar -o tokens --shard $SLURM_ARRAY_TASK_ID/64
      vartok dataset verify tokens
    """
    _check_packages(*PACKAGES, *(["ray"] if engine == "ray" else []))
    part, parts = _parse_part(shard)
    if engine == "ray" and (processes or shard):
        raise typer.BadParameter("--engine ray deals out the work itself: leave --processes and --shard out")
    if address and engine != "ray":
        raise typer.BadParameter("--address is for --engine ray")
    if on_error == "stop":
        if max_failures is not None:
            raise typer.BadParameter("--on-error stop and --max-failures: which one?")
        max_failures = 0
    if "://" in str(output) or str(output).startswith(("s3:/", "gs:/", "hf:/", "memory:/")):
        raise typer.BadParameter(f"-o {shown(output)}: a data set is made in a local or a shared folder")
    if keep_pictures and format != "wds":
        raise typer.BadParameter("--keep-pictures is for --format wds")
    fitted = parse_fit(fit, size, zoom, background, max_pixels)
    from vartok.schedule import parse_schedule
    from vartok.sources import find_input_shards, folder_classes

    with usage_errors():
        grids = parse_schedule(schedule) if schedule is not None else None
        shards = find_input_shards(
            sources,
            shard_size,
            full_names=full_names,
            folder_labels=folder_labels,
            image_column=image_column,
            exclude=output,
        )

    if not quiet:
        _tell_of_shares(shards, folder_labels=folder_labels, parts=parts)
    from vartok.dataset.engines import Loading, ray_cluster, run_here, run_processes, run_ray
    from vartok.dataset.job import Job, finish, plan
    from vartok.images import configure_pillow
    from vartok.runtime import choose_device

    configure_pillow(quiet=not debug)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # where Ray tells of workers that die
        gpus = 0
        if engine == "ray":
            with contextlib.nullcontext() if debug else _no_stderr():
                gpus = stack.enter_context(ray_cluster(address))
        stack.enter_context(_interruptions())  # set after Ray's own, which it replaces
        many = processes or 1
        if engine == "ray":
            chosen = ("cuda" if gpus else "cpu") if device == "auto" else device
        else:
            found = choose_device(device)
            chosen, many = str(found), processes or (_count_gpus() if str(found) == "cuda" else 1)
        apart = engine == "ray" or many > 1
        tokenizer = load_tokenizer(weights, "cpu" if apart else chosen, dtype, compile=compile and not apart)
        fitted = fit_to([tokenizer], fitted, size, grids)
        job = Job(
            out=output,
            format=format,
            shard_size=shard_size,
            encoding=_encoding(tokenizer, fitted, grids, chosen, dtype),
            fit=fitted,
            keep_pictures=keep_pictures,
            classes=tuple(folder_classes(shards)) if folder_labels else (),
        )
        tasks = [task for task in plan(job, shards, retry_failed=retry_failed) if task.index % parts == part]
        many = max(1, min(many, len(tasks)))
        loading = Loading(
            weights=weights,
            device=chosen,
            dtype=dtype,
            compile=compile,
            batch_size=batch_size
            or (32 if chosen != "cpu" else default_batch_size(None, tokenizer, math.prod(fitted.size))),
            workers=workers or max(1, -(-default_workers(None) // many)),
        )
        if engine == "ray":
            progress: Generator[Progress, None, None] = run_ray(job, tasks, loading)
        elif many > 1:
            progress = run_processes(job, tasks, _loadings(loading, many))
        else:
            if apart and tasks:  # fewer than processes: what was loaded only told of the checkpoint
                with warnings.catch_warnings(action="ignore"):  # was said already
                    tokenizer = load_tokenizer(weights, chosen, dtype, compile=compile)
            progress = run_here(job, tasks, tokenizer, batch_size=loading.batch_size, workers=loading.workers)
        del tokenizer
        view = _View(job, tasks, quiet=quiet)
        try:
            with contextlib.closing(progress):
                for step in progress:
                    view.show(step)
                    if max_failures is not None and view.failed > max_failures:
                        raise DatasetError(f"stopped: {view.failed:,} failed; what is done stays")
            summary = finish(job, len(shards))
        except BaseException as error:
            with contextlib.suppress(OSError, VartokError):
                finish(job, len(shards))
            view.close()
            if debug or not isinstance(error, OSError):
                raise
            reason = error.strerror or error
            say(f"cannot write in {shown(output)}: {reason}; what is done stays, the same command goes on")
            raise typer.Exit(SOME_FAILED if view.shards else FAILED) from None
        view.close()
    _end(view, summary, as_json=as_json, quiet=quiet, whole=parts == 1)


@command
def verify(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of a data set.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Check a data set: counts, hashes, index ranges, and that no key stands twice.

    Examples:
      vartok dataset verify tokens
    """
    _check_packages(*PACKAGES)
    from vartok.dataset.verify import verify

    report = verify(folder)
    for problem in report.problems:
        say(f"{shown(folder / problem.file)}: {problem.what}")
    if as_json:
        problems = [problem._asdict() for problem in report.problems]
        print(json.dumps({**vars(report), "problems": problems}))
    elif not quiet:
        state = _count(len(report.problems), "problem") if report.problems else "all well"
        if report.failed and not report.problems:
            state = f"what is there is well; {shown(folder / 'failed.jsonl')} has the others"
        counts = f"{_count(report.pictures, 'picture')} in {_count(report.shards, 'shard')}"
        say(f"{counts}, {report.failed:,} failed: {state}")
    if report.problems:
        raise typer.Exit(FAILED)


class DefaultCommand(typer.core.TyperGroup):
    """Commands of which one, the first, is meant where none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name the command that is meant."""
        if not args or args[0] not in self.commands:
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=DefaultCommand, add_completion=False, rich_markup_mode=None)
app.command(name="make")(make)
app.command(name="verify")(verify)


class _View:
    """What is seen of a run: a live table on a terminal, else a line now and then."""

    def __init__(self, job: Job, tasks: list[Task], *, quiet: bool) -> None:
        self._out = job.out
        self._quiet = quiet
        self._inputs = {task.index: task.shard for task in tasks}
        self._tasks = dict.fromkeys(self._inputs, 0.0)  # the share of each that is done
        self._now: dict[int, Progress] = {}  # of every worker
        self._start = self._said = time.monotonic()
        self._live: Any = None
        self._finished: dict[str, Progress] = {}
        self._failures: set[tuple[str, str]] = set()  # by shard and key: a shard may be taken up again

    @property
    def pictures(self) -> int:
        """Encoded in this run, those of unfinished shards too."""
        return sum(step.pictures for step in (*self._finished.values(), *self._now.values()))

    @property
    def failed(self) -> int:
        """That failed in this run."""
        return len(self._failures)

    @property
    def shards(self) -> int:
        """Finished in this run."""
        return len(self._finished)

    @property
    def seconds(self) -> float:
        """That it has taken."""
        return time.monotonic() - self._start

    def show(self, step: Progress) -> None:
        """Take in what has happened."""
        for failure in step.failures:
            if (step.shard, failure.key) in self._failures:
                continue
            self._failures.add((step.shard, failure.key))
            if self.failed <= NAMED:
                place = self._inputs[step.index].find(failure.key)
                self._say(f"{shown(place)}: {shown(failure.cause)}")
            if self.failed == NAMED:
                self._say(f"what else fails is not named here, but in {shown(self._out / 'failed.jsonl')}")
        # One worker is at an input shard at a time; whoever had it before has died.
        self._now = {n: now for n, now in self._now.items() if n != step.worker and now.index != step.index}
        if step.finished:
            self._finished[step.shard] = step
        else:
            self._now[step.worker] = step
        if step.finished and step.last:
            self._tasks[step.index] = 1.0
        elif step.reached is not None:
            self._tasks[step.index] = step.reached
        if self._quiet:
            return
        if sys.stderr.isatty():
            if self._live is None:
                from rich.console import Console
                from rich.live import Live

                self._live = Live(console=Console(stderr=True), transient=True, refresh_per_second=4)
                self._live.start()
            self._live.update(self._table())
        elif time.monotonic() - self._said > LINE_EVERY:
            self._said = time.monotonic()
            say(self._line())

    def close(self) -> None:
        """Take the table away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, message: str) -> None:
        if self._live is None:
            say(message)
        else:
            self._live.console.print(f"vartok: {message}", markup=False, highlight=False, soft_wrap=True)

    def _line(self) -> str:
        done = sum(self._tasks.values()) / len(self._tasks)
        left = self.seconds / done * (1 - done) if done > 0.01 else None
        parts = [
            _count(self.pictures, "picture"),
            f"{self.pictures / self.seconds:.1f}/s",
            f"{sum(step.bytes for step in (*self._finished.values(), *self._now.values())) / 1e6:,.1f} MB",
            f"{self.failed:,} failed",
            f"{done:.0%}" + (f", {duration(left)} left" if left is not None else ""),
        ]
        return ", ".join(parts)

    def _table(self) -> Table:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_row(self._line())
        if len(self._now) > 1:
            for worker, step in sorted(self._now.items()):
                reached = f"{step.reached:.0%} of its input" if step.reached is not None else ""
                pictures = _count(step.pictures, "picture")
                table.add_row(f"  process {worker}: shard {step.shard}, {pictures}  {reached}")
        return table


def _end(view: _View, summary: dict[str, Any], *, as_json: bool, quiet: bool, whole: bool) -> None:
    """Sum up, and leave with the exit code."""
    rate = view.pictures / view.seconds if view.pictures else 0.0
    if as_json:
        run = {
            "pictures": view.pictures,
            "failed": view.failed,
            "shards": view.shards,
            "seconds": round(view.seconds, 3),
            "pictures_per_second": round(rate, 2),
        }
        names = ("complete", "pictures", "failed", "bytes")
        print(
            json.dumps(
                {"run": run, **{name: summary[name] for name in names}, "shards": len(summary["shards"])}
            )
        )
    elif not quiet:
        did = (
            f"encoded {view.pictures:,} in {view.seconds:.1f} s ({rate:.1f}/s)"
            if view.shards
            else "nothing to do"
        )
        state = "complete" if summary["complete"] else "not complete yet"
        counts = f"{_count(summary['pictures'], 'picture')} in {_count(len(summary['shards']), 'shard')}"
        rest = f"{summary['bytes'] / 1e6:,.1f} MB, {summary['failed']:,} failed"
        say(f"{did}; the data set is {state}: {counts}, {rest}")
    if view.failed or (whole and (summary["failed"] or not summary["complete"])):
        raise typer.Exit(SOME_FAILED if summary["pictures"] else FAILED)


def _tell_of_shares(shards: Sequence[InputShard], *, folder_labels: bool, parts: int) -> None:
    """Say what of the sources a user may expect more of than there is."""
    if parts > len(shards):
        inputs = _count(len(shards), "input shard")
        say(f"note: {inputs} for {parts} parts, so that some have none; of files, --shard-size makes more")
    bare = sum(file.label is None for shard in shards for file in shard.files) if folder_labels else 0
    if bare:
        say(f"note: {_count(bare, 'picture')} in no folder of a class: without a label")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)


def _encoding(tokenizer: Tokenizer, fit: Fit, grids: Schedule | None, device: str, dtype: str) -> Any:
    from vartok.dataset.shards import Encoding
    from vartok.schedule import adapt_schedule

    step = tokenizer.config.downsample
    latent = (fit.size[0] // step, fit.size[1] // step)
    return Encoding(
        model=tokenizer.info,
        schedule=grids or adapt_schedule(tokenizer.config.patch_nums, latent),
        size=fit.size,
        fit=fit.mode,
        zoom=fit.zoom,
        background=fit.background,
        device=device.partition(":")[0],
        dtype=dtype,
    )


def _loadings(loading: Any, count: int) -> list[Any]:
    """One for each of so many processes: a GPU of its own, or its share of the processor."""
    import torch

    if loading.device == "cpu":
        return [dataclasses.replace(loading, threads=max(1, torch.get_num_threads() // count))] * count
    if loading.device == "cuda":
        gpus = _count_gpus()
        return [dataclasses.replace(loading, device=f"cuda:{number % gpus}") for number in range(count)]
    return [loading] * count


def _count_gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def _parse_part(shard: str | None) -> tuple[int, int]:
    """What --shard says: part I of N."""
    if shard is None:
        return 0, 1
    part, slash, parts = shard.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise typer.BadParameter(f"--shard is I/N, I from 0 to N - 1, as 0/4 to 3/4, not {shown(shard)}")
    return int(part), int(parts)


def _check_packages(*names: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        extra = "ray" if "ray" in missing else "dataset"
        raise VartokError(f"data sets need {', '.join(missing)}: pip install 'vartok[{extra}]'")


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Nothing is said meanwhile, not even by what is not Python: Ray says there which log level it has."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


@contextlib.contextmanager
def _interruptions() -> Iterator[None]:
    """Ctrl-C and SIGTERM end a run in order, and say how to go on."""

    def end(*_: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        say("stopped; what is done stays, the same command goes on")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
