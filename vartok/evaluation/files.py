"""Evaluate picture files: what `vartok eval` does, as a function."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

from vartok.errors import ImageError, SourceError
from vartok.evaluation.run import Evaluation
from vartok.evaluation.scores import EvaluationReport, Failure, PictureScores
from vartok.images import MAX_PIXELS, Fit, parse_color
from vartok.metrics import load_inception, load_lpips
from vartok.schedule import Schedule, describe, parse_schedule
from vartok.sources import Sample, find_input_shards
from vartok.tokenizer import Tokenizer, load

GPU_BATCH_SIZE = 32
MAX_WORKERS = 8
FILES_PER_SHARD = 1 << 30  # all files of a source in one shard: an evaluation is not divided


def evaluate_files(
    pictures: str | Path | Iterable[str | Path | Sample],
    *,
    weights: str | Path | None = None,
    tokenizer: Tokenizer | None = None,
    compare: str | Path | Tokenizer | None = None,
    device: str = "auto",
    dtype: str = "float32",
    size: int | tuple[int, int] | None = None,
    fit: Literal["crop", "pad", "stretch", "native"] | Fit = "crop",
    zoom: float = 1.0,
    background: str = "white",
    schedule: str | Schedule | None = None,
    max_pixels: int = MAX_PIXELS,
    baselines: bool = False,
    lpips: bool = False,
    rfid: bool = False,
    scales: bool = True,
    batch_size: int | None = None,
    workers: int | None = None,
    progress: Callable[[PictureScores | Failure], None] | None = None,
) -> EvaluationReport:
    """Measure how well a checkpoint reconstructs pictures.

    Args:
        pictures: picture files, folders (searched), tars, Parquet files, lists of paths (.txt), URLs of
            these, or samples that were found already.
        weights: the checkpoint, as for `vartok.load`; None is the shipped one.
        tokenizer: a loaded tokenizer instead of `weights`.
        compare: a second checkpoint, or a loaded tokenizer, to measure on the same pixels.
        device: device that checkpoints are loaded on.
        dtype: dtype of their encoders and decoders.
        size: side, or (height, width), of the encoded pixels; the checkpoint's own if None.
        fit: how a picture becomes pixels of that size; or a `Fit`, which tells size, zoom, background and
            max_pixels too.
        zoom: factor that a picture is scaled up by before it is cropped.
        background: colour under transparency and around a padded picture.
        schedule: (h, w) of every scale, or a text such as "1,2,4"; each checkpoint's own if None.
        max_pixels: pixels of the largest picture that is decoded.
        baselines: measure JPEG and WebP files of the tokens' size too.
        lpips: measure LPIPS too; needs torchvision and AlexNet's weights.
        rfid: measure rFID too; needs torch-fidelity and Inception's weights.
        scales: measure the PSNR after each scale too, which decodes a picture once for each.
        batch_size: pictures that go through the networks together; 32 on a GPU and 1 on a CPU if None.
        workers: threads that read pictures and compute metrics; one more than cores, up to 8, if None.
        progress: called after every picture, in order, with its figures or why there are none.

    Returns:
        The figures of all pictures, of each, and the failures.

    Raises:
        VartokError: a checkpoint cannot be loaded, a package or weights are missing, or options contradict
            each other. A picture or source that cannot be read is a failure in the report instead.
    """
    networks = {"lpips": load_lpips() if lpips else None, "inception": load_inception() if rfid else None}
    first = tokenizer or load(weights, device=device, dtype=dtype)
    tokenizers = [first]
    if compare is not None:
        tokenizers.append(
            compare if isinstance(compare, Tokenizer) else load(compare, device=device, dtype=dtype)
        )
    grids = parse_schedule(schedule) if isinstance(schedule, str) else schedule
    if not isinstance(fit, Fit):
        fit = Fit(
            mode=fit,
            size=_sides(size, first),
            zoom=zoom,
            background=parse_color(background),
            max_pixels=max_pixels,
        )
    fit = _fit_for(tokenizers, fit, grids)
    evaluation = Evaluation(tokenizers, fit, schedule=grids, baselines=baselines, scales=scales, **networks)
    results = evaluation.measure(
        _find_samples(pictures),
        batch_size=batch_size or (1 if first.device.type == "cpu" else GPU_BATCH_SIZE),
        workers=workers or min(MAX_WORKERS, _cores() + 1),
    )
    with closing(results):
        for result in results:
            if progress is not None:
                progress(result)
    return evaluation.report()


def _find_samples(pictures: str | Path | Iterable[str | Path | Sample]) -> Iterator[Sample]:
    """Find the pictures of sources; a source that cannot be searched becomes a sample that fails."""
    for source in [pictures] if isinstance(pictures, str | Path) else pictures:
        if isinstance(source, Sample):
            yield source
            continue
        try:
            shards = find_input_shards([str(source)], FILES_PER_SHARD, full_names=True)
        except SourceError as error:
            yield Sample(str(source), error)
            continue
        for shard in shards:
            for sample in shard.samples():
                yield dataclasses.replace(sample, key=shard.find(sample.key))


def _sides(size: int | tuple[int, int] | None, tokenizer: Tokenizer) -> tuple[int, int]:
    if size is None:
        return tokenizer.config.image_size
    return (size, size) if isinstance(size, int) else size


def _fit_for(tokenizers: Sequence[Tokenizer], fit: Fit, schedule: Schedule | None) -> Fit:
    """Return the fit whose pixels all tokenizers take.

    Raises:
        ImageError: the size, or the schedule's last grid, is wrong for one of them.
    """
    for step in (tokenizer.config.downsample for tokenizer in tokenizers if fit.mode != "native"):
        height, width = fit.size
        if height % step or width % step:
            raise ImageError(f"`size` is a multiple of {step} for this checkpoint, not {height}x{width}")
        latent = (height // step, width // step)
        if schedule and schedule[-1] != latent:
            raise ImageError(f"`schedule` ends in the latent's grid, here {describe((latent,))}")
    multiple = math.lcm(*(tokenizer.config.downsample for tokenizer in tokenizers))
    return dataclasses.replace(fit, multiple=multiple)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
