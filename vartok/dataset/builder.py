"""Build a data set: training-ready shards of tokens from sources of pictures.

`build` checks its arguments, plans the tasks, and runs the engine that its argument `engine` names.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vartok.buckets import Bucket, BucketsLike
from vartok.dataset.arguments import check_arguments, check_packages, warn_of_gaps
from vartok.dataset.encoding import Encoding
from vartok.dataset.lock import run_lock
from vartok.dataset.plan import Job, default_shard_size, plan_tasks, prepare_folder
from vartok.dataset.progress import Progress, ProgressTotals, Summary
from vartok.dataset.run import output_errors, run_engine
from vartok.errors import ArgumentError
from vartok.images import Fit
from vartok.operations.settings import (
    GPU_BATCH_SIZE,
    default_batch_size,
    default_workers,
    make_fit,
    make_schedule,
    resolve_fit,
)
from vartok.processors import available_processors
from vartok.schedule import Schedule, adapt_schedule
from vartok.sources import NamedColumns, SearchReport, find_input_shards, folder_classes
from vartok.sources.classes import table_classes

if TYPE_CHECKING:
    from vartok.tokenizer import Tokenizer


def build(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    format: str = "parquet",
    shard_size: int | None = None,
    keep_pictures: bool = False,
    size: str | int | tuple[int, int] | None = None,
    fit: str = "crop",
    buckets: BucketsLike | None = None,
    zoom: float = 1.0,
    resample: str = "lanczos",
    views: str = "center",
    seed: int | None = None,
    latents: bool = False,
    background: str = "white",
    schedule: Schedule | str | None = None,
    scales: int | None = None,
    max_pixels: int = 100_000_000,
    max_bytes: int = 1 << 26,
    allow_damaged: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
    key_column: str | None = None,
    folder_labels: bool = False,
    full_names: bool = False,
    tokenizer: Tokenizer | None = None,
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
    """Tokenize pictures into a data set, or complete a data set that an interrupted run has begun.

    A shard file appears when it is complete. An error that ends the run, also KeyboardInterrupt, tells in its
    message or in a note how many shards are done. After an interruption the same call makes the missing ones;
    unless `compile` is set, they have the bytes that the interrupted run would have given them. Samples that
    fail are left out; failed.jsonl lists them with the reason.

    Args:
        sources: paths or URLs of folders, tars, tables (Parquet, Arrow), lists of paths (.txt) and pictures.
        out: folder of the data set, local or shared between machines.
        format: format of the shards: "parquet", "wds" (tars in WebDataset's layout) or "jsonl".
        shard_size: largest number of pictures (not of their views) in a shard, failed ones included; at least
            1. If None, that of the data set that `out` holds, or for a new one `CPU_SHARD_SIZE` on a CPU and
            `SHARD_SIZE` elsewhere, both of `vartok.dataset.plan`.
        keep_pictures: store the picture files with their tokens, of several views with the first; needs the
            format "wds".
        size: side, or (height, width), of the encoded pixels, or a text such as "256x384"; the checkpoint's
            own if None.
        fit: "crop": scale to cover the size, then cut out the centre; "pad": scale to fit inside, with
            `background` around; "stretch": scale each side; "bucket": crop to the size of `buckets` whose
            aspect ratio is nearest, into shards of that size alone.
        buckets: table of the sizes with the fit "bucket": "sdxl", as if None, "infinity", a file with a size
            HxW on each line, or (h, w) pairs; scaled to the number of pixels of `size`, see `vartok.buckets`.
        zoom: with "crop" and "bucket": factor by which a picture is scaled up before the cut, 1 to 100;
            VAR's own transform has 1.125.
        resample: "lanczos"; or "adm", for "crop" and "bucket": as guided-diffusion crops; see `Fit`.
        views: views of each picture, each of which is a row: "center", the fitted picture; "flip": it and its
            mirror image; "ten-crop": the corners and the centre of `size` times `zoom`, and their mirror
            images; "random:N": N crops at random, each mirrored or not. "ten-crop" and "random:N" need the
            fit "crop" or "bucket".
        seed: seed of random views; 0 if None.
        latents: store the latents too, before quantization, in float16.
        background: colour under transparency and around a padded picture: a CSS name or "#rrggbb".
        schedule: (h, w) of every scale, or a text such as "1,2,4" or "var-512"; the checkpoint's own if None.
        scales: encode only the first `scales` scales; all if None.
        max_pixels: pixel limit of a picture; a larger one fails before it is decoded.
        max_bytes: size limit in bytes of a picture in a tar, a table or at a URL, and with `keep_pictures`
            of every picture; a larger one fails.
        allow_damaged: take what can be decoded of a truncated or corrupt picture, which else fails;
            damaged.jsonl lists those taken.
        image_column: column of the tables that holds the pictures; needed if several columns might.
        label_column: column of the tables that holds the labels, whole numbers or names of classes, which are
            numbered in sorted order over all tables; if None, the one called label or cls.
        caption_column: column of the tables that holds the captions; if None, caption, text or txt.
        key_column: column of the tables that holds the keys, texts or whole numbers; if None, key or
            __key__.
        folder_labels: label picture files by their first folder below the source: its index in sorted order,
            in which folders without pictures count too.
        full_names: keep the suffixes of picture files in their keys.
        tokenizer: a loaded tokenizer, with which this process does all the work; `weights`, `device`, `dtype`
            and `compile` are then not used.
        weights: a checkpoint, as `vartok.load` takes it; the shipped one if None.
        device: torch device of the encoder; "auto" takes CUDA, then MPS, then the CPU.
        dtype: dtype of the encoder: "float32", "tf32", "bfloat16" or "float16".
        compile: compile the networks with torch.compile, which takes a minute; for long runs on a GPU.
        batch_size: views per batch; if None, 32 on a GPU; on a CPU 16, or 1 for pictures of more than
            131,072 pixels after the fit.
        workers: threads per process that read pictures; on a CPU they also encode. If None, one more than
            the process's share of the cores, at most 8.
        processes: number of local processes; if None, one for every GPU, or without GPUs only this process.
        shard: (i, n), 0 <= i < n: take only input shards i, i + n, i + 2n, ...; for n calls, such as on n
            machines.
        engine: "local": processes on this machine; "ray": a Ray cluster.
        address: address of the Ray cluster, such as "auto" or "ray://host:10001"; if None, a cluster that
            Ray finds here (RAY_ADDRESS or a running one), or a new one.
        retry_failed: make the shards in which samples failed again.
        max_failures: stop when more samples than this have failed in this run; None for no limit.
        progress: function that is called with a `Progress` several times a second.

    Returns:
        The state of the data set and, as `run`, the work of this run.

    Raises:
        ArgumentError: an argument has an invalid value, contradicts another, or does not suit the checkpoint.
        SourceError: a source cannot be found or searched, there are no pictures, the labels of some tables
            are whole numbers and those of others are names, or those of a table at a URL cannot be read.
        DatasetError: `out` holds something else or a data set of other settings; another run is at work in
            it; more than `max_failures` samples failed; or the engine failed.
        OutputError: a file cannot be written.
        CheckpointError, DeviceError: the tokenizer cannot be loaded.
        VartokError: an optional package is not installed.

    Warns:
        VartokWarning: files, or members of tars, were passed over; there are fewer input shards than the
            n of `shard`; pictures have no label, with `folder_labels`; there are no tables for named columns;
            columns of a table, or values in them, are not carried; or a worker process died.
    """
    out = Path(out)
    check_arguments(out, format, keep_pictures, shard, engine, address, processes)
    if tokenizer is not None:
        if engine == "ray" or (processes or 1) > 1:
            raise ArgumentError(
                "a loaded tokenizer cannot be sent to other processes", hint="set `weights` in its place"
            )
        if weights is not None or dtype not in ("float32", tokenizer.dtype):
            raise ArgumentError("`weights` and `dtype` are those of the tokenizer", hint="leave them out")
        device, dtype, processes = str(tokenizer.device), tokenizer.dtype, 1
    if fit == "native":
        raise ArgumentError(
            "a data set cannot have the fit native: its pictures have one size, or those of a few buckets",
            hint="set `fit` to crop, pad, stretch or bucket",
        )
    pixels = make_fit(
        fit,
        size=size,
        buckets=buckets,
        zoom=zoom,
        resample=resample,
        views=views,
        seed=seed,
        background=background,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
        allow_damaged=allow_damaged,
    )
    grids = make_schedule(schedule)
    check_packages(*["ray"] * (engine == "ray"))
    columns = NamedColumns(image_column, label_column, caption_column, key_column)
    # Not imported at the top, since this module imports torch.
    from vartok.dataset.engines import WorkerConfig, choose_processes, run_here, run_processes, share_machine

    with contextlib.ExitStack() as stack:
        if engine == "ray":
            from vartok.dataset.ray import ray_cluster

            device = stack.enter_context(ray_cluster(address, device))
        else:
            device, processes = choose_processes(device, processes)
        shard_size = shard_size or default_shard_size(out, device)
        report = SearchReport()
        shards = find_input_shards(
            [str(source) for source in ([sources] if isinstance(sources, str | Path) else sources)],
            shard_size,
            full_names=full_names,
            folder_labels=folder_labels,
            columns=columns,
            exclude=out,
            report=report,
        )
        files = [file for input_shard in shards for file in input_shard.files]
        names = table_classes(shards)
        if names is not None and folder_labels:
            raise ArgumentError(
                "the labels of the tables are names, which number classes otherwise than the folders do",
                hint="make two data sets, or leave out `folder_labels`",
            )
        warn_of_gaps(shards, columns, folder_labels=folder_labels, parts=shard[1])
        alone = processes == 1  # else this process needs only the checkpoint's config
        if tokenizer is None:
            own = (device, dtype) if alone else ("cpu", dtype if device == "cpu" else "float32")
            tokenizer = _load(weights, *own, compile=compile and alone)
        pixels = resolve_fit([tokenizer], pixels, size=size, schedule=grids, scales=scales)
        job = Job(
            out=out,
            format=format,
            shard_size=shard_size,
            encoding=_encoding(tokenizer, pixels, grids, device, dtype, latents=latents, scales=scales),
            fit=pixels,
            keep_pictures=keep_pictures,
            classes=tuple(folder_classes(files, report)) if folder_labels else names or (),
            label_names=names is not None,
            passed_over=tuple(sorted(report.passed_over.items())),
        )
        ours = {i: one for i, one in enumerate(shards) if i % shard[1] == shard[0]}
        with output_errors(out):
            prepare_folder(job)
            stack.enter_context(run_lock(out, shard))
            tasks = plan_tasks(job, shards, retry_failed=retry_failed)
        tasks = [task for task in tasks if task.index in ours]
        count = max(1, min(processes or 1, len(tasks)))
        config = WorkerConfig(
            weights=weights,
            device=device,
            dtype=dtype,
            compile=compile,
            batch_size=default_batch_size(batch_size, tokenizer, max(map(math.prod, pixels.sizes)))
            if device == "cpu"
            else batch_size or GPU_BATCH_SIZE,
            workers=default_workers(workers, processors=available_processors() // count),
        )
        if engine == "ray":
            from vartok.dataset.ray import run_ray

            reports = run_ray(job, tasks, config, workers)
        elif count > 1:
            reports = run_processes(job, tasks, share_machine(config, count))
        else:
            if tasks and not alone:
                with warnings.catch_warnings(action="ignore"):  # the load above gave the same ones
                    tokenizer = _load(weights, device, dtype, compile=compile)
            sizes = {"batch_size": config.batch_size, "workers": config.workers}
            reports = run_here(job, tasks, tokenizer, **sizes)
        del tokenizer  # worker processes and Ray actors load their own
        totals = ProgressTotals(tasks)
        return run_engine(job, reports, totals, ours, len(shards), max_failures, progress)


def _encoding(
    tokenizer: Tokenizer,
    fit: Fit,
    schedule: Schedule | None,
    device: str,
    dtype: str,
    *,
    latents: bool,
    scales: int | None,
) -> Encoding:
    step = tokenizer.config.downsample
    latent = (fit.size[0] // step, fit.size[1] // step)
    own = Bucket(fit.size, schedule or adapt_schedule(tokenizer.config.patch_nums, latent))
    size, grids = fit.buckets[0] if fit.buckets else own
    return Encoding(
        model=tokenizer.info,
        schedule=grids,
        size=size,
        fit=fit.mode,
        zoom=fit.zoom,
        background=fit.background,
        device=device.partition(":")[0],
        dtype=dtype,
        resample=fit.resample,
        views=str(fit.views),
        seed=fit.views.seed,
        latent_channels=tokenizer.config.z_channels if latents else None,
        buckets=fit.buckets,
        scales=scales if scales != len(grids) else None,
    )


def _load(weights: str | Path | None, device: str, dtype: str, *, compile: bool) -> Tokenizer:
    from vartok.loading import load

    return load(weights, device=device, dtype=dtype, compile=compile)
