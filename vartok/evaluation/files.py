"""Evaluate picture files: the function behind `vartok eval`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from vartok.errors import ArgumentError, ImageError, counted, printable
from vartok.evaluation.agreement import AgreementMeter, load_others
from vartok.evaluation.perceptual import load_perceptual
from vartok.evaluation.run import Evaluation
from vartok.evaluation.scores import EvaluationReport, Failure, PictureScores
from vartok.images import MAX_BYTES, MAX_PIXELS
from vartok.images.channels import CONVERTED, warn_of_grey
from vartok.loading import load
from vartok.metrics import load_inception, load_lpips, require_torchmetrics
from vartok.operations import (
    MAX_NATIVE_TOKENS,
    Input,
    default_batch_size,
    default_workers,
    find_inputs,
    make_fit,
    make_schedule,
    resolve_fit,
)
from vartok.operations.inputs import Inputs, Source
from vartok.reports.gallery import Gallery
from vartok.schedule import Schedule
from vartok.sources import Sample
from vartok.sources.passed_over import warn_of_members
from vartok.tokenizer import Tokenizer


def evaluate_files(
    pictures: Source | Iterable[Source | Input],
    *,
    weights: str | Path | None = None,
    tokenizer: Tokenizer | None = None,
    compare: str | Path | Tokenizer | None = None,
    device: str = "auto",
    dtype: str = "float32",
    size: str | int | tuple[int, int] | None = None,
    fit: str = "crop",
    zoom: float = 1.0,
    resample: str = "lanczos",
    background: str = "white",
    schedule: str | Schedule | None = None,
    max_pixels: int = MAX_PIXELS,
    max_tokens: int = MAX_NATIVE_TOKENS,
    max_bytes: int = MAX_BYTES,
    allow_damaged: bool = False,
    baselines: bool = False,
    lpips: bool = False,
    rfid: bool = False,
    perceptual: bool = True,
    scales: bool = True,
    again: int = 0,
    agree: str | Sequence[str] = (),
    gallery: Gallery | None = None,
    recursive: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
    progress: Callable[[PictureScores | Failure], None] | None = None,
) -> EvaluationReport:
    """Measure how well a checkpoint reconstructs pictures.

    Args:
        pictures: paths or URLs of pictures, folders, tars, Parquet files, lists of paths (.txt); binary
            streams; or inputs that `find_inputs` found.
        weights: the checkpoint, as for `vartok.load`; None is the shipped one.
        tokenizer: a loaded tokenizer; `weights` is then used for `agree` only.
        compare: a second checkpoint or loaded tokenizer to measure on the same pixels; None: only one.
        device: device on which checkpoints are loaded.
        dtype: dtype of the encoder and decoder of a checkpoint that is loaded.
        size: side, or (height, width), of the encoded pixels; the checkpoint's own if None.
        fit: how a picture becomes pixels of that size: "crop", "pad", "stretch"; or "native", which keeps
            the picture's own size, rounded to whole latent cells.
        zoom: with the fit "crop": factor by which a picture is scaled up before it is cropped.
        resample: "lanczos"; or "adm", for "crop": as guided-diffusion crops; see `Fit`.
        background: colour under transparency and around a padded picture; a CSS colour.
        schedule: (h, w) of every scale, or a text such as "1,2,4" or "var-512"; if None, each checkpoint's
            own.
        max_pixels: pixel limit of a picture; a larger one fails before it is decoded.
        max_tokens: limit of tokens of a picture with the fit "native".
        max_bytes: size limit in bytes of a picture in a tar or a table, at a URL or from a stream.
        allow_damaged: measure what can be decoded of a truncated or corrupt picture, which else fails.
        baselines: also measure JPEG and WebP files of the tokens' size.
        lpips: also measure LPIPS, which needs torchvision and AlexNet's weights.
        rfid: also measure rFID, which needs torch-fidelity and Inception's weights.
        perceptual: also measure ST-LPIPS, after each scale too, and the Fréchet distance (Lite2), if the
            packages of the extra "perceptual" are installed.
        scales: also measure figures after each scale, for which every picture is decoded once per scale.
        again: number of round trips to measure: a trip decodes the tokens to 8-bit pixels, as a PNG stores
            them, and encodes these again.
        agree: dtypes and devices, one or several: the first checkpoint's tokens in each are compared with
            those in float32 on the CPU. A dtype is computed on `device`, and a device computes in `dtype`.
        gallery: keeps pictures and their reconstructions for `evaluation_page` of `vartok.reports`.
        recursive: search folders; if False, a folder is an error.
        batch_size: number of pictures that the networks compute together; if None, 32 on a GPU, 1 on a CPU.
        workers: number of threads that read pictures, and of as many that compute metrics; one more than
            cores, up to 8, if None.
        progress: called after every picture, in order, with the picture's scores or failure.

    Returns:
        The figures over all pictures, the scores of every picture, and the failures.

    Raises:
        ImageError: every picture failed. As long as one is measured, the others are failures in the report.
        VartokError: a checkpoint cannot be loaded, a package or weights are missing, or arguments contradict
            each other.

    Warns:
        VartokWarning: files, or members of tars, were passed over; colours were converted to grey levels; or
            `perceptual` needs packages that are not installed, or pictures of other channels.
    """
    require_torchmetrics()  # before checkpoints and networks are loaded
    given = make_fit(
        fit,
        size=size,
        zoom=zoom,
        resample=resample,
        background=background,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
        allow_damaged=allow_damaged,
    )
    grids = make_schedule(schedule)
    if again < 0:
        raise ArgumentError(f"`again` must be 0 or more, not {again}")
    inputs, passed_over = _find_inputs(pictures, recursive)
    members = Counter[str]()
    networks = {"lpips": load_lpips() if lpips else None, "inception": load_inception() if rfid else None}
    first = tokenizer or load(weights, device=device, dtype=dtype)
    tokenizers = [first]
    if compare is not None:
        tokenizers.append(
            compare if isinstance(compare, Tokenizer) else load(compare, device=device, dtype=dtype)
        )
    agreement = None
    if agree:
        reference, loaded = load_others(agree, weights, first, device=device, dtype=dtype)
        agreement = AgreementMeter(reference, loaded, grids)
    channels = first.config.in_channels
    asked = {"baselines": baselines, "lpips": lpips, "rfid": rfid}
    if channels not in (1, 3) and any(asked.values()):
        name = next(name for name, wanted in asked.items() if wanted)
        message = f"`{name}` needs pictures of 1 or 3 channels, not the checkpoint's {channels}"
        raise ArgumentError(message, hint="leave it out")
    evaluation = Evaluation(
        tokenizers,
        resolve_fit(tokenizers, given, size=size, schedule=grids),
        schedule=grids,
        max_tokens=max_tokens,
        baselines=baselines,
        scales=scales,
        again=again,
        agreement=agreement,
        gallery=gallery,
        perceptual=load_perceptual(channels) if perceptual else None,
        **networks,
    )
    results = evaluation.measure(
        _find_samples(inputs, max_bytes, members),
        batch_size=default_batch_size(batch_size, first),
        workers=default_workers(workers),
    )
    with closing(results):
        for result in results:
            if isinstance(result, PictureScores) and CONVERTED in result.notes:  # said once, below
                result = dataclasses.replace(result, notes=tuple(n for n in result.notes if n != CONVERTED))
            if progress is not None:
                progress(result)
    warn_of_members(members)
    report = evaluation.report()
    warn_of_grey(report.converted_to_grey)
    if report.failures and not report.pictures:
        failed, *others = report.failures
        more = f"; {counted(len(others), 'other')} failed too" if others else ""
        cause = f"{printable(failed.name)}: {failed.error}{more}"
        raise ImageError(f"no picture could be measured: {cause}", hint=failed.error.hint)
    return dataclasses.replace(report, passed_over=dict(+(passed_over + members)))


def _find_inputs(
    pictures: Source | Iterable[Source | Input], recursive: bool
) -> tuple[list[Input], Counter[str]]:
    """Return the inputs of all sources, an `Input` unchanged; and the files that were passed over."""
    if isinstance(pictures, str | Path) or hasattr(pictures, "read"):
        pictures = find_inputs(pictures, recursive=recursive)  # type: ignore[arg-type]
    inputs: list[Input] = []
    passed_over = Counter(pictures.passed_over if isinstance(pictures, Inputs) else ())
    for source in pictures:
        found = source if isinstance(source, Input) else find_inputs(source, recursive=recursive)
        inputs += [found] if isinstance(found, Input) else found
        passed_over += found.passed_over if isinstance(found, Inputs) else Counter()
    return inputs, passed_over


def _find_samples(inputs: Iterable[Input], max_bytes: int, passed_over: Counter[str]) -> Iterator[Sample]:
    """Yield every picture as a sample. Its key is the input's path, plus the key in a tar or table."""
    for item in inputs:
        for key, sample in item.samples(max_bytes, passed_over):
            yield dataclasses.replace(sample, key=str(item) if key is None else f"{item}: {key}")
