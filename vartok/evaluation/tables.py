"""The texts of an evaluation's tables, as the command line and HTML reports show them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from vartok.errors import counted, printable
from vartok.evaluation.agreement import Agreement
from vartok.evaluation.figures import FIGURES, SCALE_FIGURES, Figure
from vartok.evaluation.scores import (
    BaselineScores,
    EvaluationReport,
    ModelScores,
    PictureScores,
    Scores,
)

NO_VALUE = "-"
FORMAT_TITLES = {"jpeg": "JPEG", "webp": "WebP"}
METHOD_TITLES = {**FORMAT_TITLES, "round_trips": "round trips", "agreements": "agreement"}

Rows = list[list[str]]
"""The cells of a table, row by row."""


def model_labels(report: EvaluationReport, checkpoints: Sequence[str | None]) -> list[str]:
    """Return a heading for each checkpoint: its name, or its path if the checkpoints' names are equal.

    Args:
        report: the report.
        checkpoints: the checkpoints' paths as the user gave them; None for the shipped one.
    """
    names = [printable(scores.model.name) for scores in report.models]
    if len(set(names)) < len(names):
        return [printable(path or "shipped") for path in checkpoints]
    return names


def figure_text(figure: Figure, scores: Scores) -> str:
    """Return the value of a figure as a table shows it; `NO_VALUE` if the scores have none."""
    value = getattr(scores, figure.name, None)
    if figure.name == "codes_used" and isinstance(scores, ModelScores):
        return f"{value:,} of {scores.usage.vocab_size:,}"
    return NO_VALUE if value is None else f"{value:,.{figure.digits}f}"


def figure_rows(report: EvaluationReport) -> Rows:
    """Return the figures over all pictures: their titles, and the values of every checkpoint and baseline."""
    columns: list[ModelScores | BaselineScores] = [*report.models, *report.baselines]
    rows = []
    for figure in FIGURES:
        cells = [figure_text(figure, scores) for scores in columns]
        if figure.optional and set(cells) == {NO_VALUE}:
            continue
        title = figure.title
        measured = {
            "ms_ssim": report.ms_ssim_pictures,
            "st_lpips_alex": report.perceptual_pictures,
            "st_lpips_vgg": report.perceptual_pictures,
            "spectral_peak": report.models[0].spectral_peak_pictures if report.models else 0,
        }.get(figure.name, report.pictures)
        if 0 < measured < report.pictures:
            title += f", {measured:,} of {report.pictures:,} pictures"
        if figure.name == "frechet_lite2":
            title += f", {counted(report.perceptual_pictures, 'picture')}"
        rows.append([title, *cells])
    return rows


def scale_rows(scores: ModelScores) -> tuple[list[str], Rows]:
    """Return the headings and the rows of the table of a checkpoint's scales."""
    psnr_by_scale, st_lpips_by_scale, *of_usage = SCALE_FIGURES
    headings = ["scale", "grid"]
    if scores.scale_psnr is not None:
        headings += [psnr_by_scale.title, "gain"]
    if scores.scale_st_lpips is not None:
        headings.append(st_lpips_by_scale.title)
    headings += [figure.title for figure in of_usage]
    trips = sorted({1, len(scores.round_trips)} & set(range(1, len(scores.round_trips) + 1)))
    headings += [f"equal after {counted(number, 'trip')}" for number in trips]
    rows = []
    for k, usage in enumerate(scores.usage.scales):
        cells = [str(k + 1), "x".join(map(str, scores.schedule[k])) if scores.schedule else ""]
        if scores.scale_psnr is not None:
            found = scores.scale_psnr[k]
            gain = f"{found - scores.scale_psnr[k - 1]:+.2f}" if k else NO_VALUE
            cells += [f"{found:.{psnr_by_scale.digits}f}", gain]
        if scores.scale_st_lpips is not None:
            cells.append(f"{scores.scale_st_lpips[k]:.{st_lpips_by_scale.digits}f}")
        cells += [f"{usage.used:,}", f"{usage.coverage:.1%}", f"{usage.perplexity:,.0f}"]
        rows.append(cells + [f"{scores.round_trips[number - 1].equal.by_scale[k]:.1%}" for number in trips])
    return headings, rows


def worse_scales(scores: ModelScores) -> str:
    """Return a sentence that names the scales after which a figure is worse than before; "" if none is."""
    found = []
    for figure, values, verb, sign in (
        ("PSNR", scores.scale_psnr, "falls", 1),
        ("ST-LPIPS", scores.scale_st_lpips, "rises", -1),
    ):
        pairs = enumerate(itertools.pairwise(values or ()), 2)
        worse = [str(k) for k, (before, after) in pairs if sign * (after - before) < 0]
        if worse:
            found.append(f"{figure} {verb} with scale{'s' * (len(worse) > 1)} {', '.join(worse)}")
    return f"Worse: {'; '.join(found)}." if found else ""


def trip_rows(scores: ModelScores) -> tuple[list[str], Rows]:
    """Return the headings and the rows of the table of a checkpoint's round trips."""
    headings = ["trips", "equal tokens", "PSNR, dB", "PSNR to the trip before, dB"]
    rows = [
        [str(number), f"{trip.equal.share:.1%}", f"{trip.psnr:.2f}", f"{trip.previous_psnr:.2f}"]
        for number, trip in enumerate(scores.round_trips, 1)
    ]
    return headings, rows


def agreement_rows(agreements: Sequence[Agreement]) -> tuple[list[str], Rows]:
    """Return the headings and the rows of the table of agreements, at least one, a column for each."""
    headings = ["", *(f"{one.dtype} on {one.device}" for one in agreements)]
    rows = [["equal tokens", *(f"{one.equal.share:.2%}" for one in agreements)]]
    for k in range(len(agreements[0].equal.by_scale)):
        rows.append([f"  of scale {k + 1}", *(f"{one.equal.by_scale[k]:.2%}" for one in agreements)])
    for title, count, margin in (
        ("differences", "differences", "margin"),
        ("first differences", "first_differences", "first_margin"),
    ):
        rows.append([title, *(f"{getattr(one, count):,}" for one in agreements)])
        for name, statistic in (("median", "median"), ("largest", "maximum")):
            spreads = [getattr(one, margin) for one in agreements]
            cells = [NO_VALUE if one is None else f"{getattr(one, statistic):.2g}" for one in spreads]
            rows.append([f"  {name} margin", *cells])
    return headings, rows


def picture_figures(pictures: Sequence[PictureScores]) -> list[Figure]:
    """Return the figures that tables of pictures show."""
    first = [scores.models[0] for scores in pictures]
    optional = ("lpips", "st_lpips_alex", "st_lpips_vgg")
    shown = {name for name in optional if any(getattr(one, name) is not None for one in first)}
    return [figure for figure in FIGURES if figure.name in {"psnr", "ssim", "ms_ssim", *shown}]


def method_rows(report: EvaluationReport, versions: Mapping[str, str]) -> Rows:
    """Return the settings of a report and the methods of its figures: names and texts.

    Args:
        report: the report.
        versions: versions of the packages that the figures depend on, by name.
    """
    fit = report.fit
    pixels = f"each side to the nearest multiple of {fit.multiple}"
    if fit.mode != "native":
        pixels = f"{fit.size[1]} x {fit.size[0]}" + f", zoom {fit.zoom:g}" * (fit.mode == "crop")
    resampling = {"lanczos": "Lanczos", "adm": "ADM"}[fit.resample]
    background = "#{:02x}{:02x}{:02x}".format(*fit.background)
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    titles = {figure.name: figure.title for figure in (*FIGURES, *SCALE_FIGURES)} | METHOD_TITLES
    return [
        ["pixels", f"{fit.mode}, {pixels}, {resampling}; transparency on {background}"],
        ["computed", f"{report.dtype} on {report.device}; {packages}"],
        *([titles.get(name, name), method] for name, method in report.methods().items()),
    ]
