"""`vartok eval`: measures how well a checkpoint reconstructs pictures."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vartok.errors import ImageError, counted

from .command import command
from .files import parse_inputs
from .html import HtmlOption, check_html, write_html
from .messages import print_result, say
from .options import (
    ForceOption,
    InputOptions,
    JsonOption,
    MessageOptions,
    ModelOptions,
    NativePictureOptions,
    WorkOptions,
    load_tokenizer,
)
from .report import Report

if TYPE_CHECKING:
    from vartok import evaluation
    from vartok.reports import Gallery
    from vartok.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """Options that select what is measured."""

    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="WEIGHTS",
            help="Also measure this checkpoint, as -w takes it, on the same pixels.",
        ),
    ] = None
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Also measure JPEG and WebP files of the tokens' size in bytes."),
    ] = False
    lpips: Annotated[
        bool, typer.Option("--lpips", help="Also measure LPIPS; needs torchvision and AlexNet's weights.")
    ] = False
    rfid: Annotated[
        bool, typer.Option("--rfid", help="Also measure rFID; needs torch-fidelity and Inception's weights.")
    ] = False
    no_perceptual: Annotated[
        bool,
        typer.Option(
            "--no-perceptual",
            help="Do not measure ST-LPIPS and the Fréchet distance (Lite2), which take most of the time.",
        ),
    ] = False
    no_scales: Annotated[
        bool,
        typer.Option(
            "--no-scales", help="Do not measure figures by scale, which take nearly half of the time."
        ),
    ] = False
    again: Annotated[
        int,
        typer.Option(
            "--again",
            metavar="N",
            min=0,
            help="Also make N round trips: decode to 8-bit pixels, and encode these again.",
        ),
    ] = 0
    agree: Annotated[
        list[str] | None,
        typer.Option(
            "--agree",
            metavar="NAME,...",
            help="Also compare tokens in a dtype (bfloat16, float16) or on a device (cuda, ...) with those "
            "in float32 on the CPU.",
        ),
    ] = None
    worst: Annotated[
        int, typer.Option("--worst", metavar="N", min=0, help="List the N pictures of lowest PSNR.")
    ] = 0

    def arguments(self) -> dict[str, Any]:
        """Return the options as keyword arguments of `evaluate_files`, but for --compare."""
        return {
            "baselines": self.baselines,
            "lpips": self.lpips,
            "rfid": self.rfid,
            "perceptual": not self.no_perceptual,
            "scales": not self.no_scales,
            "again": self.again,
            "agree": [name for value in self.agree or () for name in value.split(",")],
        }


@command
def eval(
    *,
    pictures: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PICTURE",
            help="Pictures, tars, Parquet and Arrow files, lists (.txt), folders (-r); - for stdin.",
        ),
    ] = None,
    measure: MeasureOptions,
    picture: NativePictureOptions,
    model: ModelOptions,
    inputs: InputOptions,
    work: WorkOptions,
    html: HtmlOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    messages: MessageOptions,
) -> None:
    """Measure how well a checkpoint reconstructs pictures.

    The tables give PSNR, SSIM, MS-SSIM, ST-LPIPS, bits per pixel, blockiness and spectral peak, and
    for each scale its PSNR, ST-LPIPS and codebook usage. Reconstructions are compared with the resized
    pictures that the encoder gets. The method of each figure is printed below the tables.

    Examples:
      vartok eval -r photos
      vartok eval -r photos --baselines --worst 10
      vartok eval -r photos --html report.html
      vartok eval -r photos -w mine.safetensors --compare light --json
      vartok eval -r photos --again 3 --agree bfloat16
    """
    from vartok.images import configure_pillow
    from vartok.operations import find_inputs

    picture.check()
    if force and html is None:
        raise typer.BadParameter("--force needs --html, the file that it overwrites")
    check_html(html, force=force)
    configure_pillow(quiet=not messages.debug)
    files = find_inputs(parse_inputs(pictures, inputs), recursive=inputs.recursive)
    checkpoints: list[str | None] = [model.weights, *[measure.compare] * bool(measure.compare)]
    tokenizers = [load_tokenizer(weights, model.device, model.dtype) for weights in checkpoints]
    from vartok.evaluation import evaluate_files
    from vartok.reports import Gallery

    gallery = Gallery() if html else None
    total = None if any(item.is_collection for item in files) else len(files)
    progress = Report(total, verb="evaluated", quiet=messages.quiet, debug=messages.debug)
    with progress:
        try:
            report = evaluate_files(
                files,
                **dataclasses.asdict(model),
                tokenizer=tokenizers[0],
                compare=tokenizers[1] if measure.compare else None,
                **measure.arguments(),
                gallery=gallery,
                progress=lambda result: _count(progress, result),
                **dataclasses.asdict(picture),
                **dataclasses.asdict(work),
            )
        except ImageError:  # no picture could be measured, and the failures have been told
            progress.finish()
            raise
        progress.close()
        if report.pictures:
            _explain_missing(report, measure)
            _print(report, measure.worst, checkpoints, as_json=as_json)
            if html and gallery:
                page = _page(report, tokenizers[0], gallery, checkpoints, quiet=messages.quiet)
                write_html(html, page, force=force, quiet=messages.quiet)
        progress.finish()


def _count(progress: Report, result: evaluation.PictureScores | evaluation.Failure) -> None:
    from vartok.evaluation import Failure

    if isinstance(result, Failure):
        progress.fail(result.name, result.error)
    else:
        text = f"PSNR {result.models[0].psnr:.2f} dB"
        progress.succeed(result.name, text, result.notes, damaged=result.damage is not None)


def _explain_missing(report: evaluation.EvaluationReport, measure: MeasureOptions) -> None:
    """Print why LPIPS or rFID was not measured, if an option asked for it."""
    from vartok.metrics import LPIPS_MIN_SIDE

    if measure.lpips and report.models[0].lpips is None:
        say(f"no LPIPS: it needs pictures of {LPIPS_MIN_SIDE} pixels a side or more")
    if measure.rfid and report.models[0].rfid is None:
        say("no rFID: it needs two pictures or more")


def _print(
    report: evaluation.EvaluationReport, worst: int, checkpoints: list[str | None], *, as_json: bool
) -> None:
    if as_json:
        print_result(json.dumps(_as_json(report, worst, checkpoints)))
    else:
        from .eval_tables import print_report

        print_report(report, worst, checkpoints, _versions())


def _page(
    report: evaluation.EvaluationReport,
    first: Tokenizer,
    gallery: Gallery,
    checkpoints: list[str | None],
    *,
    quiet: bool,
) -> str:
    """Return the HTML page of a report, and print what it leaves out unless `quiet`."""
    from vartok.evaluation.tables import model_labels
    from vartok.reports import evaluation_page

    if gallery.left_out and not quiet:
        left = counted(gallery.left_out, "picture")
        say(f"{left} of higher PSNR left out of the page, which keeps below 10 MB; its figures count all")
    labels = model_labels(report, checkpoints)
    return evaluation_page(report, first, gallery, labels=labels, versions=_versions())


def _versions() -> dict[str, str]:
    """Return the versions of the packages that the figures depend on."""
    return {name: version(name) for name in ("vartok", "torch", "torchmetrics", "pillow")}


def _as_json(
    report: evaluation.EvaluationReport, worst: int, checkpoints: list[str | None]
) -> dict[str, Any]:
    fit = report.fit
    native = fit.mode == "native"
    return {
        "pictures": report.pictures,
        "ms_ssim_pictures": report.ms_ssim_pictures,
        "perceptual_pictures": report.perceptual_pictures,
        "models": [
            {"weights": path and str(path), **dataclasses.asdict(model)}
            for path, model in zip(checkpoints, report.models, strict=True)
        ],
        "baselines": [dataclasses.asdict(scores) for scores in report.baselines],
        "worst": [dataclasses.asdict(scores) for scores in report.worst(worst)],
        "agreements": [dataclasses.asdict(one) for one in report.agreements],
        "failures": [{"name": one.name, "error": str(one.error)} for one in report.failures],
        "damaged": [{"name": one.name, "damage": one.damage} for one in report.damaged()],
        "passed_over": report.passed_over,
        "converted_to_grey": report.converted_to_grey,
        "preprocessing": {
            "fit": fit.mode,
            "size": None if native else fit.size,
            "multiple": fit.multiple if native else None,
            "zoom": fit.zoom,
            "background": fit.background,
            "resampling": fit.resample,
        },
        "methods": report.methods(),
        "device": report.device,
        "dtype": report.dtype,
        "versions": _versions(),
    }
