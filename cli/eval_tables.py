"""The tables that `vartok eval` prints. Importing this module imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from vartok import evaluation
from vartok.errors import counted, printable

from .tables import new_table, print_tables

NO_VALUE = "-"
FORMAT_TITLES = {"jpeg": "JPEG", "webp": "WebP"}
METHOD_TITLES = {**FORMAT_TITLES, "round_trips": "round trips", "agreements": "agreement"}


def print_report(
    report: evaluation.EvaluationReport,
    worst: int,
    checkpoints: list[str | None],
    versions: dict[str, str],
) -> None:
    """Print the tables of a report on stdout.

    Args:
        report: the report of at least one picture.
        worst: number of pictures in the table of the lowest PSNR; 0 for no such table.
        checkpoints: the checkpoints' paths as the user gave them; None for the shipped one.
        versions: versions of the packages that the figures depend on.
    """
    labels = _labels(report, checkpoints)
    tables = [_figures_table(report, labels)]
    tables += [_scales_table(model, label) for model, label in zip(report.models, labels, strict=True)]
    if report.models[0].round_trips:
        tables += [_trips_table(model, label) for model, label in zip(report.models, labels, strict=True)]
    if report.agreements:
        tables.append(_agreement_table(report.agreements, labels[0]))
    if worst:
        tables.append(_worst_table(report.worst(worst), labels))
    print_tables(*tables, _methods_table(report, versions))


def _labels(report: evaluation.EvaluationReport, checkpoints: list[str | None]) -> list[str]:
    """Return a heading for each checkpoint: its name, or its path if the checkpoints' names are equal."""
    names = [printable(scores.model.name) for scores in report.models]
    if len(set(names)) < len(names):
        return [printable(path or "shipped") for path in checkpoints]
    return names


def _figures_table(report: evaluation.EvaluationReport, labels: list[str]) -> Table:
    columns = [*report.models, *report.baselines]
    titles = [FORMAT_TITLES[scores.format] for scores in report.baselines]
    table = new_table(counted(report.pictures, "picture"), "", *labels, *titles)
    for figure in evaluation.FIGURES:
        cells = [_cell(figure, scores) for scores in columns]
        if figure.optional and set(cells) == {NO_VALUE}:
            continue
        title = figure.title
        if figure.name == "ms_ssim" and 0 < report.ms_ssim_pictures < report.pictures:
            title += f", {report.ms_ssim_pictures:,} of {report.pictures:,} pictures"
        table.add_row(title, *cells)
    return table


def _cell(
    figure: evaluation.Figure, scores: evaluation.ModelScores | evaluation.BaselineScores | evaluation.Scores
) -> str:
    value = getattr(scores, figure.name, None)
    if figure.name == "codes_used" and value is not None:
        return f"{value:,} of {scores.usage.vocab_size:,}"  # type: ignore[union-attr]
    return NO_VALUE if value is None else f"{value:,.{figure.digits}f}"


def _scales_table(scores: evaluation.ModelScores, label: str) -> Table:
    psnr_by_scale, *of_usage = evaluation.SCALE_FIGURES
    with_psnr = scores.scale_psnr is not None
    trips = sorted({1, len(scores.round_trips)} & set(range(1, len(scores.round_trips) + 1)))
    headings = [psnr_by_scale.title, "gain"] * with_psnr + [figure.title for figure in of_usage]
    headings += [f"equal after {counted(number, 'trip')}" for number in trips]
    table = new_table(f"Scales of {label}", "scale", "grid", *headings)
    for k, usage in enumerate(scores.usage.scales):
        cells = []
        if scores.scale_psnr is not None:
            found = scores.scale_psnr[k]
            gain = f"{found - scores.scale_psnr[k - 1]:+.2f}" if k else NO_VALUE
            cells = [f"{found:.{psnr_by_scale.digits}f}", gain]
        grid = "x".join(map(str, scores.schedule[k])) if scores.schedule else ""
        cells += [f"{usage.used:,}", f"{usage.coverage:.1%}", f"{usage.perplexity:,.0f}"]
        cells += [f"{scores.round_trips[number - 1].equal.by_scale[k]:.1%}" for number in trips]
        table.add_row(str(k), grid, *cells)
    return table


def _trips_table(scores: evaluation.ModelScores, label: str) -> Table:
    headings = ("equal tokens", "PSNR, dB", "PSNR to the trip before, dB")
    table = new_table(f"Round trips of {label}", "trips", *headings)
    for number, trip in enumerate(scores.round_trips, 1):
        table.add_row(str(number), f"{trip.equal.share:.1%}", f"{trip.psnr:.2f}", f"{trip.previous_psnr:.2f}")
    return table


def _agreement_table(agreements: Sequence[evaluation.Agreement], label: str) -> Table:
    titles = [f"{one.dtype} on {one.device}" for one in agreements]
    table = new_table(f"Agreement of {label} with float32 on cpu", "", *titles)
    table.add_row("equal tokens", *(f"{one.equal.share:.2%}" for one in agreements))
    for k in range(len(agreements[0].equal.by_scale)):
        table.add_row(f"  of scale {k}", *(f"{one.equal.by_scale[k]:.2%}" for one in agreements))
    for title, count, margin in (
        ("differences", "differences", "margin"),
        ("first differences", "first_differences", "first_margin"),
    ):
        table.add_row(title, *(f"{getattr(one, count):,}" for one in agreements))
        for name, statistic in (("median", "median"), ("largest", "maximum")):
            spreads = [getattr(one, margin) for one in agreements]
            cells = [NO_VALUE if one is None else f"{getattr(one, statistic):.2g}" for one in spreads]
            table.add_row(f"  {name} margin", *cells)
    return table


def _worst_table(worst: list[evaluation.PictureScores], labels: list[str]) -> Table:
    first = [scores.models[0] for scores in worst]
    figures = [
        figure
        for figure in evaluation.FIGURES
        if figure.name in ("psnr", "ssim", "ms_ssim")
        or (figure.name == "lpips" and any(scores.lpips is not None for scores in first))
    ]
    others = [f"PSNR of {label}" for label in labels[1:]]
    headings = [figure.title for figure in figures]
    table = new_table(f"Lowest PSNR of {labels[0]}", "picture", "pixels", *headings, *others)
    for scores in worst:
        own, *compared = scores.models
        table.add_row(
            printable(scores.name),
            f"{scores.width} x {scores.height}",
            *(_cell(figure, own) for figure in figures),
            *(f"{one.psnr:.2f}" for one in compared),
        )
    return table


def _methods_table(report: evaluation.EvaluationReport, versions: dict[str, str]) -> Table:
    table = new_table("Methods", "", "")
    fit = report.fit
    pixels = f"each side to the nearest multiple of {fit.multiple}"
    if fit.mode != "native":
        pixels = f"{fit.size[1]} x {fit.size[0]}" + f", zoom {fit.zoom:g}" * (fit.mode == "crop")
    resampling = {"lanczos": "Lanczos", "adm": "ADM"}[fit.resample]
    background = "#{:02x}{:02x}{:02x}".format(*fit.background)
    table.add_row("pixels", f"{fit.mode}, {pixels}, {resampling}; transparency on {background}")
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    table.add_row("computed", f"{report.dtype} on {report.device}; {packages}")
    titles = {
        figure.name: figure.title for figure in (*evaluation.FIGURES, *evaluation.SCALE_FIGURES)
    } | METHOD_TITLES
    for name, method in report.methods().items():
        table.add_row(titles.get(name, name), method)
    return table
