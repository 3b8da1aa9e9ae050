"""`vartok eval`: how well a checkpoint redraws pictures."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vartok.errors import VartokError

from .files import gather_pictures
from .options import (
    BackgroundOption,
    BatchSizeOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    FilesFromOption,
    FitOption,
    JsonOption,
    MaxPixelsOption,
    NullOption,
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
from .report import Report, command, say, shown, usage_errors
from .tables import new_table, print_tables

if TYPE_CHECKING:
    from rich.table import Table

    from vartok.evaluation import BaselineReport, EvaluationReport, ModelReport, PictureScores
    from vartok.images import Fit
    from vartok.tokenizer import Tokenizer

NONE = "-"  # where there is no figure
TITLES = {"jpeg": "JPEG", "webp": "WebP"}


@command
def eval(
    pictures: Annotated[
        list[str] | None, typer.Argument(metavar="PICTURE", help="Pictures, folders (-r), or - for stdin.")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="WEIGHTS",
            help="Measure this checkpoint too, or `shipped`, on the same pixels.",
        ),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines", help="Measure JPEG and WebP too, in the bytes of the tokens or the least they can."
        ),
    ] = False,
    lpips: Annotated[
        bool, typer.Option("--lpips", help="Measure LPIPS too; needs torchvision and AlexNet's weights.")
    ] = False,
    rfid: Annotated[
        bool, typer.Option("--rfid", help="Measure rFID too; needs torch-fidelity and Inception's weights.")
    ] = False,
    worst: Annotated[
        int, typer.Option("--worst", metavar="N", min=0, help="Tell the N pictures of the lowest PSNR.")
    ] = 0,
    size: SizeOption = None,
    fit: FitOption = "crop",
    zoom: ZoomOption = 1.0,
    background: BackgroundOption = "white",
    schedule: ScheduleOption = None,
    max_pixels: MaxPixelsOption = 100_000_000,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Search folders, but not for what decode drew.")
    ] = False,
    files_from: FilesFromOption = None,
    null: NullOption = False,
    batch_size: BatchSizeOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure how well pictures come back.

    PSNR, SSIM, MS-SSIM, bits per pixel, blockiness, and every scale's part in them, on the
    pixels that are encoded. How each figure is computed stands below it.

    Examples:
      vartok eval -r photos
      vartok eval -r photos --baselines --worst 10
      vartok eval -r photos -w mine.safetensors --compare shipped --json
    """
    from vartok.schedule import parse_schedule

    fitted = parse_fit(fit, size, zoom, background, max_pixels)
    with usage_errors():
        grids = parse_schedule(schedule) if schedule is not None else None
    files = gather_pictures(pictures, recursive=recursive, files_from=files_from, null=null, debug=debug)

    from vartok.evaluation import LPIPS_SIDE, Evaluation, load_inception, load_lpips

    networks = {"lpips": load_lpips() if lpips else None, "inception": load_inception() if rfid else None}
    checkpoints = [weights, compare] if compare else [weights]
    tokenizers = [load_tokenizer(path, device, dtype) for path in checkpoints]
    fitted = fit_to(tokenizers, fitted, size, grids)
    evaluation = Evaluation(tokenizers, fitted, schedule=grids, baselines=baselines, **networks)
    report = Report(len(files), verb="evaluated", quiet=quiet, debug=debug)
    failures = []
    results = evaluation.run(
        ((item, str(item), item.read()) for item in files),
        batch_size=default_batch_size(batch_size, tokenizers[0]),
        workers=default_workers(workers),
    )
    for item, result in results:
        if isinstance(result, VartokError):
            report.fail(str(item), result)
            failures.append({"picture": str(item), "error": str(result)})
        else:
            report.succeed(str(item), f"PSNR {result.models[0].psnr:.2f} dB", result.notes)
    report.close()
    if report.done:
        found, chosen = evaluation.report(), evaluation.worst(worst)
        if lpips and found.models[0].lpips is None:
            say(f"no LPIPS: it needs pictures of {LPIPS_SIDE} pixels a side or more")
        if rfid and found.models[0].rfid is None:
            say("no rFID: it needs two pictures or more")
        if as_json:
            files_of = [str(path) if path else None for path in checkpoints]
            print(json.dumps(_as_json(found, chosen, files_of, tokenizers[0], fitted, failures)))
        else:
            _print(found, chosen, _labels(tokenizers, checkpoints), tokenizers[0], fitted)
    report.finish()


def _as_json(
    report: EvaluationReport,
    worst: list[PictureScores],
    weights: list[str | None],
    tokenizer: Tokenizer,
    fit: Fit,
    failures: list[dict[str, str]],
) -> dict[str, Any]:
    found = dataclasses.asdict(report)
    for model, path in zip(found["models"], weights, strict=True):
        model["weights"] = path
    return {
        **found,
        "worst": [dataclasses.asdict(scores) for scores in worst],
        "failures": failures,
        "preprocessing": {
            "fit": fit.mode,
            "size": None if fit.mode == "native" else fit.size,
            "multiple": fit.multiple if fit.mode == "native" else None,
            "zoom": fit.zoom,
            "background": fit.background,
            "resampling": "lanczos",
        },
        "methods": _methods(report),
        "device": tokenizer.device.type,
        "dtype": tokenizer.dtype,
        "versions": _versions(),
    }


def _methods(report: EvaluationReport) -> dict[str, str]:
    """How the figures of this report are computed."""
    from vartok.evaluation import METHODS

    absent = {name for name in ("lpips", "rfid") if getattr(report.models[0], name) is None}
    if not report.baselines:
        absent |= {"jpeg", "webp"}
    return {name: text for name, text in METHODS.items() if name not in absent}


def _versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {name: version(name) for name in ("vartok", "torch", "torchmetrics", "pillow")}


def _labels(tokenizers: list[Tokenizer], weights: list[Path | None]) -> list[str]:
    """What columns are called: the checkpoints' names, or their files where these are the same."""
    names = [shown(tokenizer.name) for tokenizer in tokenizers]
    if len(set(names)) < len(names):
        return [shown(path or "shipped") for path in weights]
    return names


def _print(
    report: EvaluationReport, worst: list[PictureScores], labels: list[str], tokenizer: Tokenizer, fit: Fit
) -> None:
    tables = [_figures(report, labels)]
    tables += [_scales(model, label) for model, label in zip(report.models, labels, strict=True)]
    if worst:
        tables.append(_worst(worst, labels))
    print_tables(*tables, _how(report, tokenizer, fit))


def _figures(report: EvaluationReport, labels: list[str]) -> Table:
    models, files = report.models, report.baselines
    table = new_table(
        f"{report.pictures:,} picture{'s' * (report.pictures != 1)}",
        "",
        *labels,
        *(TITLES[file.format] for file in files),
    )

    def row(name: str, own: list[str], others: list[str] | None = None) -> None:
        table.add_row(name, *own, *(others or [NONE] * len(files)))

    both: list[ModelReport | BaselineReport] = [*models, *files]
    some = f", of {report.ms_ssim_pictures:,} pictures" * (0 < report.ms_ssim_pictures < report.pictures)
    table.add_row("PSNR, dB", *(f"{one.psnr:.2f}" for one in both))
    row("  without quantization", [f"{one.unquantized_psnr:.2f}" for one in models])
    table.add_row("SSIM", *(f"{one.ssim:.4f}" for one in both))
    table.add_row(f"MS-SSIM{some}", *(_figure(one.ms_ssim, 4) for one in both))
    if models[0].lpips is not None:
        row("LPIPS", [_figure(one.lpips, 4) for one in models])
    if models[0].rfid is not None:
        row("rFID", [_figure(one.rfid, 2) for one in models])
    table.add_row("bits per pixel", *(f"{one.bits_per_pixel:.4f}" for one in both))
    table.add_row("bytes a picture", *(f"{one.size_bytes:,.0f}" for one in both))
    if files:
        blank = [NONE] * len(models)
        row("  pictures above the tokens' bytes", blank, [f"{one.over:,}" for one in files])
        row("  PSNR of the others", blank, [_figure(one.psnr_within, 2) for one in files])
        row(f"    of {labels[0]} there", blank, [_figure(one.tokens_psnr_within, 2) for one in files])
    row("blockiness", [_figure(one.blockiness, 3) for one in models])
    row("  of the originals", [_figure(one.reference_blockiness, 3) for one in models])
    row("codes used", [f"{one.usage.overall.used:,} of {one.model.vocab_size:,}" for one in models])
    return table


def _figure(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _scales(model: ModelReport, label: str) -> Table:
    table = new_table(
        f"Scales of {label}", "scale", "grid", "PSNR after it, dB", "gain", "codes used", "of possible"
    )
    table.add_column("perplexity", justify="right")
    before: float | None = None
    for k, (found, usage) in enumerate(zip(model.prefix_psnr, model.usage.scales, strict=True)):
        table.add_row(
            str(k),
            "x".join(map(str, model.schedule[k])) if model.schedule else "",
            f"{found:.2f}",
            NONE if before is None else f"{found - before:+.2f}",
            f"{usage.used:,}",
            f"{usage.coverage:.1%}",
            f"{usage.perplexity:,.0f}",
        )
        before = found
    return table


def _worst(worst: list[PictureScores], labels: list[str]) -> Table:
    with_lpips = worst[0].models[0].lpips is not None
    table = new_table(f"Worst by PSNR of {labels[0]}", "picture", "pixels", "PSNR, dB", "SSIM", "MS-SSIM")
    for heading in ["LPIPS"] * with_lpips + [f"PSNR of {label}" for label in labels[1:]]:
        table.add_column(heading, justify="right")
    for scores in worst:
        own, *others = scores.models
        table.add_row(
            scores.name,
            f"{scores.width} x {scores.height}",
            f"{own.psnr:.2f}",
            f"{own.ssim:.4f}",
            _figure(own.ms_ssim, 4),
            *([_figure(own.lpips, 4)] * with_lpips),
            *(f"{one.psnr:.2f}" for one in others),
        )
    return table


def _how(report: EvaluationReport, tokenizer: Tokenizer, fit: Fit) -> Table:
    table = new_table("How", "", "")
    pixels = f"each side to the nearest multiple of {fit.multiple}"
    if fit.mode != "native":
        pixels = f"{fit.size[1]} x {fit.size[0]}" + f", zoom {fit.zoom:g}" * (fit.mode == "crop")
    background = "#{:02x}{:02x}{:02x}".format(*fit.background)
    table.add_row("pixels", f"{fit.mode}, {pixels}, Lanczos; transparency on {background}")
    versions = ", ".join(f"{name} {number}" for name, number in _versions().items())
    table.add_row("computed", f"{tokenizer.dtype} on {tokenizer.device.type}; {versions}")
    for name, text in _methods(report).items():
        table.add_row(name.replace("_", " "), text)
    return table
