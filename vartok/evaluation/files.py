"""Evaluate picture files: what `vartok eval` does, as a function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

from vartok.errors import SourceError
from vartok.evaluation.run import Evaluation
from vartok.evaluation.scores import EvaluationReport, Failure, PictureScores
from vartok.images import MAX_PIXELS, Fit
from vartok.metrics import load_inception, load_lpips
from vartok.operations import (
    default_batch_size,
    default_workers,
    make_fit,
    make_schedule,
    resolve_fit,
)
from vartok.schedule import Schedule
from vartok.sources import Sample, find_input_shards
from vartok.tokenizer import Tokenizer, load

FILES_PER_SHARD = 1 << 30  # all files of a source in one shard: an evaluation is not divided


def evaluate_files(
    pictures: str | Path | Iterable[str | Path | Sample],
    *,
    weights: str | Path | None = None,
    tokenizer: Tokenizer | None = None,
    compare: str | Path | Tokenizer | None = None,
    device: str = "auto",
    dtype: str = "float32",
    size: str | int | tuple[int, int] | None = None,
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
    grids = make_schedule(schedule)
    if not isinstance(fit, Fit):
        fit = make_fit(fit, size=size, zoom=zoom, background=background, max_pixels=max_pixels)
        fit = resolve_fit(tokenizers, fit, size=size, schedule=grids)
    else:
        fit = resolve_fit(tokenizers, fit, size=fit.size, schedule=grids)
    evaluation = Evaluation(tokenizers, fit, schedule=grids, baselines=baselines, scales=scales, **networks)
    results = evaluation.measure(
        _find_samples(pictures),
        batch_size=default_batch_size(batch_size, first),
        workers=default_workers(workers),
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
