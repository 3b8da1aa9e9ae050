"""Build a data set: training-ready shards of tokens from sources of pictures.

`build` checks its arguments, plans the tasks, and runs the engine that they name.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vartok.dataset.formats import FORMATS
from vartok.dataset.plan import Job, plan_tasks
from vartok.dataset.progress import Progress, ProgressTotals, RunSummary, Summary
from vartok.dataset.schema import Encoding
from vartok.dataset.write import ShardProgress, write_summary
from vartok.errors import (
    ArgumentError,
    DatasetError,
    OutputError,
    VartokError,
    VartokWarning,
    counted,
    quoted,
)
from vartok.files import os_error_reason
from vartok.images import Fit
from vartok.operations.settings import (
    GPU_BATCH_SIZE,
    default_batch_size,
    default_workers,
    make_fit,
    make_schedule,
    resolve_fit,
)
from vartok.optional import require
from vartok.schedule import Schedule, adapt_schedule
from vartok.sources import InputShard, find_input_shards, folder_classes

if TYPE_CHECKING:
    from vartok.tokenizer import Tokenizer

PACKAGES = ("pyarrow", "webdataset", "fsspec")
ENGINES = ("local", "ray")
REMOTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(?=[^/])")
"""The start of a URL, of whose slashes `Path` keeps one; a Windows path with its drive does not match."""


def build(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    format: str = "parquet",
    shard_size: int = 10_000,
    keep_pictures: bool = False,
    size: str | int | tuple[int, int] | None = None,
    fit: str = "crop",
    zoom: float = 1.0,
    background: str = "white",
    schedule: Schedule | str | None = None,
    max_pixels: int = 100_000_000,
    max_bytes: int = 1 << 26,
    image_column: str | None = None,
    folder_labels: bool = False,
    full_names: bool = False,
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    compile: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
    processes: int | None = None,
    shard: tuple[int, int] = (0, 1),
    engine: str = "local",
    address: str | None = None,
    retry_failed: bool = False,
    max_failures: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Tokenize pictures into a data set, or complete one that an earlier run has begun.

    Each shard file appears when it is complete. The same call completes an interrupted run, with the same
    bytes as without an interruption. Samples that fail are left out; failed.jsonl lists them with the reason.

    Args:
        sources: paths or URLs of folders, tars, Parquet files, lists of paths (.txt) and picture files.
        out: folder of the data set, local or shared between machines.
        format: format of the shards: "parquet", "wds" (tars in WebDataset's layout) or "jsonl".
        shard_size: largest number of samples in a shard, at least 1.
        keep_pictures: store the picture files beside their tokens; with "wds" only.
        size: side, or (height, width), of the encoded pixels, or a text such as "256x384"; the checkpoint's
            own if None.
        fit: "crop": cut out the centre; "pad": scale the whole picture and fill up with background;
            "stretch": scale each side.
        zoom: with "crop": scale up by this factor first, 1 to 100. VAR's own transform has 1.125.
        background: colour under transparency and around a padded picture.
        schedule: (h, w) of every scale, or a text such as "1,2,4,8x12"; the checkpoint's own if None.
        max_pixels: larger pictures fail before they are decoded.
        max_bytes: larger pictures in tars, tables and URLs fail before they are read.
        image_column: column of Parquet files that holds the pictures; needed if several might.
        folder_labels: label files by their first folder below the source, numbered in sorted order.
        full_names: keep the suffixes of files in their keys.
        weights: a checkpoint, as `vartok.load` takes it; the shipped one if None.
        device: torch device of the encoder; "auto" takes CUDA, then MPS, then the CPU.
        dtype: dtype of the encoder: "float32", "bfloat16" or "float16".
        compile: compile the networks, which takes a minute: for long runs on a GPU.
        batch_size: pictures per batch; if None, 32 on a GPU, and on a CPU 16 small ones or 1 large one.
        workers: threads per process that read pictures; if None, one more than cores, up to 8, divided among
            the processes.
        processes: number of processes; if None, one for every GPU here, or this process alone.
        shard: (i, n): take only input shards i, i + n, i + 2n, ..., as one of n calls, e.g. on n machines.
        engine: "local": processes on this machine; "ray": a Ray cluster.
        address: address of the Ray cluster, such as "auto" or "ray://host:10001"; one is started if None.
        retry_failed: make shards with failed samples again.
        max_failures: stop when more samples than this fail; never if None.
        progress: called with the state of the run, several times a second.

    Returns:
        The state of the data set, and the work of this run.

    Raises:
        ArgumentError: arguments contradict each other, or do not suit the checkpoint.
        SourceError: a source cannot be found or searched.
        DatasetError: `out` holds something else, more than `max_failures` failed, or workers died.
        OutputError: a file cannot be written.
        CheckpointError, DeviceError: the tokenizer cannot be loaded.

    Warns:
        VartokWarning: there are fewer input shards than the n of `shard`, or pictures have no label.
    """
    out = Path(out)
    _check_arguments(out, format, keep_pictures, shard, engine, address, processes)
    if fit == "native":
        raise ArgumentError("pictures of a data set have one size, not their native ones: crop or pad them")
    pixels = make_fit(
        fit, size=size, zoom=zoom, background=background, max_pixels=max_pixels, max_bytes=max_bytes
    )
    grids = make_schedule(schedule)
    check_packages(*["ray"] * (engine == "ray"))
    shards = find_input_shards(
        [str(source) for source in ([sources] if isinstance(sources, str | Path) else sources)],
        shard_size,
        full_names=full_names,
        folder_labels=folder_labels,
        image_column=image_column,
        exclude=out,
    )
    _warn_of_gaps(shards, folder_labels=folder_labels, parts=shard[1])
    # Imported here, as it imports torch.
    from vartok.dataset.engines import WorkerConfig, choose_processes, run_here, run_processes, share_machine

    with contextlib.ExitStack() as stack:
        if engine == "ray":
            from vartok.dataset.ray import ray_cluster

            gpus = stack.enter_context(ray_cluster(address))
            device = ("cuda" if gpus else "cpu") if device == "auto" else device
            processes = None
        else:
            device, processes = choose_processes(device, processes)
        alone = processes == 1  # else this process only reads the checkpoint's description, on the CPU
        tokenizer = _load(weights, device if alone else "cpu", dtype, compile=compile and alone)
        pixels = resolve_fit([tokenizer], pixels, size=size, schedule=grids)
        job = Job(
            out=out,
            format=format,
            shard_size=shard_size,
            encoding=_encoding(tokenizer, pixels, grids, device, dtype),
            fit=pixels,
            keep_pictures=keep_pictures,
            classes=tuple(folder_classes(shards)) if folder_labels else (),
        )
        with _output_errors(out):
            tasks = plan_tasks(job, shards, retry_failed=retry_failed)
        tasks = [task for task in tasks if task.index % shard[1] == shard[0]]
        count = max(1, min(processes or 1, len(tasks)))
        config = WorkerConfig(
            weights=weights,
            device=device,
            dtype=dtype,
            compile=compile,
            batch_size=default_batch_size(batch_size, tokenizer, math.prod(pixels.size))
            if device == "cpu"
            else batch_size or GPU_BATCH_SIZE,
            workers=workers or max(1, -(-default_workers() // count)),
        )
        if engine == "ray":
            from vartok.dataset.ray import run_ray

            reports = run_ray(job, tasks, config)
        elif count > 1:
            reports = run_processes(job, tasks, share_machine(config, count))
        else:
            if tasks and not alone:
                with warnings.catch_warnings(action="ignore"):  # the first load has given them
                    tokenizer = _load(weights, device, dtype, compile=compile)
            sizes = {"batch_size": config.batch_size, "workers": config.workers}
            reports = run_here(job, tasks, tokenizer, **sizes)
        del tokenizer  # processes and actors have their own
        return _run(job, reports, ProgressTotals(tasks), len(shards), max_failures, progress)


def _run(
    job: Job,
    reports: Generator[ShardProgress, None, None],
    totals: ProgressTotals,
    input_shards: int,
    max_failures: int | None,
    progress: Callable[[Progress], None] | None,
) -> Summary:
    """Run an engine until it ends or too many samples fail, and write the summary even after an error."""
    with _output_errors(job.out):
        try:
            with contextlib.closing(reports):
                for report in reports:
                    state = totals.add(report)
                    if progress is not None:
                        progress(state)
                    if max_failures is not None and state.failed > max_failures:
                        raise DatasetError(f"stopped: {state.failed:,} failed; finished shards stay")
            summary = write_summary(job, input_shards)
        except BaseException:
            with contextlib.suppress(OSError, VartokError):
                write_summary(job, input_shards)
            raise
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
        failed=summary["failed"],
        bytes=summary["bytes"],
        shards=len(summary["shards"]),
    )


@contextlib.contextmanager
def _output_errors(out: Path) -> Iterator[None]:
    """Turn an OSError into an OutputError whose hint says how to go on."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write in {out}: {os_error_reason(error)}; finished shards stay",
            hint="run the same call again to make the missing shards",
        ) from error


def _check_arguments(
    out: Path,
    format: str,
    keep_pictures: bool,
    shard: tuple[int, int],
    engine: str,
    address: str | None,
    processes: int | None,
) -> None:
    """Refuse arguments that contradict each other."""
    if format not in FORMATS:
        raise ArgumentError(f"the format of shards is one of {', '.join(FORMATS)}, not {quoted(format)}")
    if keep_pictures and not FORMATS[format].keeps_pictures:
        raise ArgumentError(f"{format} shards cannot keep pictures", hint="set `format` to wds")
    if url := REMOTE.match(str(out)):
        place = f"{url[1]}://{str(out)[url.end() :]}"
        raise ArgumentError(f"{place}: a data set is made in a local or a shared folder")
    if not 0 <= shard[0] < shard[1]:
        raise ArgumentError(f"the shard is i of n, i from 0 to n - 1, not {shard[0]} of {shard[1]}")
    if engine not in ENGINES:
        raise ArgumentError(f"the engine is one of {', '.join(ENGINES)}, not {quoted(engine)}")
    if engine == "ray" and (processes or shard != (0, 1)):
        raise ArgumentError("Ray divides the work itself", hint="leave `processes` and `shard` out")
    if address and engine != "ray":
        raise ArgumentError("only Ray has an address", hint="set `engine` to ray")


def _encoding(tokenizer: Tokenizer, fit: Fit, schedule: Schedule | None, device: str, dtype: str) -> Encoding:
    step = tokenizer.config.downsample
    latent = (fit.size[0] // step, fit.size[1] // step)
    return Encoding(
        model=tokenizer.info,
        schedule=schedule or adapt_schedule(tokenizer.config.patch_nums, latent),
        size=fit.size,
        fit=fit.mode,
        zoom=fit.zoom,
        background=fit.background,
        device=device.partition(":")[0],
        dtype=dtype,
    )


def _load(weights: str | Path | None, device: str, dtype: str, *, compile: bool) -> Tokenizer:
    from vartok.loading import load

    return load(weights, device=device, dtype=dtype, compile=compile)


def _warn_of_gaps(shards: Sequence[InputShard], *, folder_labels: bool, parts: int) -> None:
    """Warn of calls without work and of pictures without a label."""
    if parts > len(shards):
        warnings.warn(
            f"{counted(len(shards), 'input shard')} for {parts} parts, so that some have none; with a "
            "smaller shard size, single files make more input shards",
            VartokWarning,
            stacklevel=3,
        )
    bare = sum(file.label is None for shard in shards for file in shard.files) if folder_labels else 0
    if bare:
        warnings.warn(
            f"{counted(bare, 'picture')} in no class folder: without a label", VartokWarning, stacklevel=3
        )


def check_packages(*more: str) -> None:
    """Check that the optional packages for data sets are installed.

    Raises:
        VartokError: a package is missing.
    """
    require(*PACKAGES, *more, extra="ray" if "ray" in more else "dataset", purpose="data sets")
