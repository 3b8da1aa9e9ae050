"""`vartok eval`: how well a checkpoint reconstructs pictures."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vartok.errors import printable

from .command import command
from .files import parse_inputs
from .messages import say
from .options import (
    InputOptions,
    JsonOption,
    MessageOptions,
    ModelOptions,
    PictureOptions,
    WorkOptions,
    load_tokenizer,
)
from .report import Report
from .tables import new_table, print_tables

if TYPE_CHECKING:
    from rich.table import Table

    from vartok.evaluation import (
        BaselineScores,
        EvaluationReport,
        Failure,
        Figure,
        ModelScores,
        PictureScores,
        Scores,
    )

NO_VALUE = "-"
FORMAT_TITLES = {"jpeg": "JPEG", "webp": "WebP"}


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """Options for the figures that are measured."""

    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="WEIGHTS",
            help="Measure this checkpoint too, or `shipped`, on the same pixels.",
        ),
    ] = None
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Measure JPEG and WebP too, in files of the tokens' bytes."),
    ] = False
    lpips: Annotated[
        bool, typer.Option("--lpips", help="Measure LPIPS too; needs torchvision and AlexNet's weights.")
    ] = False
    rfid: Annotated[
        bool, typer.Option("--rfid", help="Measure rFID too; needs torch-fidelity and Inception's weights.")
    ] = False
    no_scales: Annotated[
        bool, typer.Option("--no-scales", help="Leave out the PSNR of each scale, which takes most time.")
    ] = False
    worst: Annotated[
        int, typer.Option("--worst", metavar="N", min=0, help="List the N pictures of lowest PSNR.")
    ] = 0


@command
def eval(
    *,
    pictures: Annotated[
        list[str] | None, typer.Argument(metavar="PICTURE", help="Pictures, folders (-r), or - for stdin.")
    ] = None,
    measure: MeasureOptions,
    picture: PictureOptions,
    model: ModelOptions,
    inputs: InputOptions,
    work: WorkOptions,
    as_json: JsonOption = False,
    messages: MessageOptions,
) -> None:
    """Measure how well pictures are reconstructed.

    PSNR, SSIM, MS-SSIM, bits per pixel, blockiness, and the figures of every scale, on the
    pixels that are encoded. The method of each figure is printed below the tables.

    Examples:
      vartok eval -r photos
      vartok eval -r photos --baselines --worst 10
      vartok eval -r photos -w mine.safetensors --compare shipped --json
    """
    from vartok.images import configure_pillow
    from vartok.operations import find_inputs

    picture.resolve()  # its errors come before those of the inputs
    configure_pillow(quiet=not messages.debug)
    files = find_inputs(parse_inputs(pictures, inputs), recursive=inputs.recursive)
    checkpoints: list[str | None] = [model.weights, *[measure.compare] * bool(measure.compare)]
    tokenizers = [load_tokenizer(weights, model.device, model.dtype) for weights in checkpoints]
    from vartok.evaluation import evaluate_files

    total = None if any(item.is_collection for item in files) else len(files)
    progress = Report(total, verb="evaluated", quiet=messages.quiet, debug=messages.debug)
    report = evaluate_files(
        files,
        tokenizer=tokenizers[0],
        compare=tokenizers[1] if measure.compare else None,
        baselines=measure.baselines,
        lpips=measure.lpips,
        rfid=measure.rfid,
        scales=not measure.no_scales,
        progress=lambda result: _tell(progress, result),
        **dataclasses.asdict(picture),
        **dataclasses.asdict(work),
    )
    progress.close()
    if report.pictures:
        _tell_what_is_missing(report, measure)
        if as_json:
            print(json.dumps(_as_json(report, measure.worst, checkpoints)))
        else:
            print_tables(*_tables(report, measure.worst, checkpoints))
    progress.finish()


def _tell(progress: Report, result: PictureScores | Failure) -> None:
    from vartok.evaluation import Failure

    if isinstance(result, Failure):
        progress.fail(result.name, result.error)
    else:
        progress.succeed(result.name, f"PSNR {result.models[0].psnr:.2f} dB", result.notes)


def _tell_what_is_missing(report: EvaluationReport, measure: MeasureOptions) -> None:
    from vartok.metrics import LPIPS_MIN_SIDE

    if measure.lpips and report.models[0].lpips is None:
        say(f"no LPIPS: it needs pictures of {LPIPS_MIN_SIDE} pixels a side or more")
    if measure.rfid and report.models[0].rfid is None:
        say("no rFID: it needs two pictures or more")


def _as_json(report: EvaluationReport, worst: int, checkpoints: list[str | None]) -> dict[str, Any]:
    fit = report.fit
    native = fit.mode == "native"
    return {
        "pictures": report.pictures,
        "ms_ssim_pictures": report.ms_ssim_pictures,
        "models": [
            {"weights": path and str(path), **dataclasses.asdict(model)}
            for path, model in zip(checkpoints, report.models, strict=True)
        ],
        "baselines": [dataclasses.asdict(scores) for scores in report.baselines],
        "worst": [dataclasses.asdict(scores) for scores in report.worst(worst)],
        "failures": [{"name": one.name, "error": str(one.error)} for one in report.failures],
        "preprocessing": {
            "fit": fit.mode,
            "size": None if native else fit.size,
            "multiple": fit.multiple if native else None,
            "zoom": fit.zoom,
            "background": fit.background,
            "resampling": "lanczos",
        },
        "methods": report.methods(),
        "device": report.device,
        "dtype": report.dtype,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    """Return the versions of the packages that figures depend on."""
    return {name: version(name) for name in ("vartok", "torch", "torchmetrics", "pillow")}


def _tables(report: EvaluationReport, worst: int, checkpoints: list[str | None]) -> list[Table]:
    labels = _labels(report, checkpoints)
    tables = [_figures_table(report, labels)]
    tables += [_scales_table(model, label) for model, label in zip(report.models, labels, strict=True)]
    if worst:
        tables.append(_worst_table(report.worst(worst), labels))
    return [*tables, _methods_table(report)]


def _labels(report: EvaluationReport, checkpoints: list[str | None]) -> list[str]:
    """Return the headings of the checkpoints' columns: their names, or their files where names are equal."""
    names = [printable(scores.model.name) for scores in report.models]
    if len(set(names)) < len(names):
        return [printable(path or "shipped") for path in checkpoints]
    return names


def _figures_table(report: EvaluationReport, labels: list[str]) -> Table:
    from vartok.evaluation import FIGURES

    columns = [*report.models, *report.baselines]
    titles = [FORMAT_TITLES[scores.format] for scores in report.baselines]
    table = new_table(f"{report.pictures:,} picture{'s' * (report.pictures != 1)}", "", *labels, *titles)
    for figure in FIGURES:
        cells = [_cell(figure, scores) for scores in columns]
        if figure.optional and set(cells) == {NO_VALUE}:
            continue
        title = figure.title
        if figure.name == "ms_ssim" and 0 < report.ms_ssim_pictures < report.pictures:
            title += f", {report.ms_ssim_pictures:,} of {report.pictures:,} pictures"
        table.add_row(title, *cells)
    return table


def _cell(figure: Figure, scores: ModelScores | BaselineScores | Scores) -> str:
    value = getattr(scores, figure.name, None)
    if figure.name == "codes_used" and value is not None:
        return f"{value:,} of {scores.usage.vocab_size:,}"  # type: ignore[union-attr]
    return NO_VALUE if value is None else f"{value:,.{figure.digits}f}"


def _scales_table(scores: ModelScores, label: str) -> Table:
    from vartok.evaluation import SCALE_FIGURES

    psnr_by_scale, *of_usage = SCALE_FIGURES
    with_psnr = scores.scale_psnr is not None
    headings = [psnr_by_scale.title, "gain"] * with_psnr + [figure.title for figure in of_usage]
    table = new_table(f"Scales of {label}", "scale", "grid", *headings)
    for k, usage in enumerate(scores.usage.scales):
        cells = []
        if scores.scale_psnr is not None:
            found = scores.scale_psnr[k]
            gain = f"{found - scores.scale_psnr[k - 1]:+.2f}" if k else NO_VALUE
            cells = [f"{found:.{psnr_by_scale.digits}f}", gain]
        grid = "x".join(map(str, scores.schedule[k])) if scores.schedule else ""
        cells += [f"{usage.used:,}", f"{usage.coverage:.1%}", f"{usage.perplexity:,.0f}"]
        table.add_row(str(k), grid, *cells)
    return table


def _worst_table(worst: list[PictureScores], labels: list[str]) -> Table:
    from vartok.evaluation import FIGURES

    first = [scores.models[0] for scores in worst]
    figures = [
        figure
        for figure in FIGURES
        if figure.name in ("psnr", "ssim", "ms_ssim")
        or (figure.name == "lpips" and any(scores.lpips is not None for scores in first))
    ]
    others = [f"PSNR of {label}" for label in labels[1:]]
    headings = [figure.title for figure in figures]
    table = new_table(f"Lowest PSNR of {labels[0]}", "picture", "pixels", *headings, *others)
    for scores in worst:
        own, *compared = scores.models
        table.add_row(
            scores.name,
            f"{scores.width} x {scores.height}",
            *(_cell(figure, own) for figure in figures),
            *(f"{one.psnr:.2f}" for one in compared),
        )
    return table


def _methods_table(report: EvaluationReport) -> Table:
    from vartok.evaluation import FIGURES, SCALE_FIGURES

    table = new_table("How", "", "")
    fit = report.fit
    pixels = f"each side to the nearest multiple of {fit.multiple}"
    if fit.mode != "native":
        pixels = f"{fit.size[1]} x {fit.size[0]}" + f", zoom {fit.zoom:g}" * (fit.mode == "crop")
    background = "#{:02x}{:02x}{:02x}".format(*fit.background)
    table.add_row("pixels", f"{fit.mode}, {pixels}, Lanczos; transparency on {background}")
    versions = ", ".join(f"{name} {number}" for name, number in _versions().items())
    table.add_row("computed", f"{report.dtype} on {report.device}; {versions}")
    titles = {figure.name: figure.title for figure in (*FIGURES, *SCALE_FIGURES)} | FORMAT_TITLES
    for name, method in report.methods().items():
        table.add_row(titles.get(name, name), method)
    return table
