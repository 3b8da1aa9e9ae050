"""The page of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vartok.errors import counted
from vartok.evaluation import EvaluationReport, Figure, PictureScores, Scores
from vartok.evaluation.tables import (
    FORMAT_TITLES,
    NO_VALUE,
    agreement_rows,
    figure_rows,
    figure_text,
    method_rows,
    picture_figures,
    scale_rows,
    trip_rows,
    worse_scales,
)
from vartok.reports.charts import bar_chart, line_chart
from vartok.reports.codebook import codebook_section
from vartok.reports.gallery import MAX_SIDE, QUALITY, Gallery
from vartok.reports.page import failure_rows, render
from vartok.tokenizer import Tokenizer

MAX_ROWS = 500
"""Largest number of pictures in the table, those of lowest PSNR."""


@dataclass(frozen=True)
class _Row:
    """A picture in the table: name, number among the pictures shown or 0, notes, and (value, text) cells."""

    name: str
    link: int
    notes: tuple[str, ...]
    cells: tuple[tuple[str, str], ...]


def evaluation_page(
    report: EvaluationReport,
    tokenizer: Tokenizer,
    gallery: Gallery,
    *,
    labels: Sequence[str] | None = None,
    versions: Mapping[str, str] | None = None,
) -> str:
    """Return the HTML page of an evaluation, of less than 10 MB.

    Args:
        report: the report of at least one picture.
        tokenizer: the first tokenizer that was measured, whose codebook is drawn.
        gallery: the gallery that `evaluate_files` filled.
        labels: heading of each checkpoint; its name if None.
        versions: versions of the packages that the figures depend on, by name.
    """
    labels = _distinct(labels or [scores.model.name for scores in report.models])
    exhibits = gallery.pictures
    folder = _common_folder([scores.name for scores in report.by_picture])
    columns = [*labels, *(FORMAT_TITLES[scores.format] for scores in report.baselines)]
    headings, rows = _picture_rows(report, labels, {one.name: n for n, one in enumerate(exhibits, 1)})
    first = report.models[0]
    return render(
        "evaluation.html",
        title=f"Evaluation of {' and '.join(labels)}",
        subtitle=counted(report.pictures, "picture") + (f" in {folder}" if folder else ""),
        folder=folder,
        notes=_notes(report, gallery),
        figures=(["", *columns], figure_rows(report)),
        charts=_charts(report, labels),
        exhibits=exhibits,
        pictures_text=f"Lowest PSNR first. Drag across a picture to compare: the original is on the left. "
        f"Pictures are WebP of quality {QUALITY}, at most {MAX_SIDE} pixels a side; figures come from exact "
        "pixels.",
        labels=labels,
        headings=headings,
        rows=rows,
        rows_text=f"The {MAX_ROWS:,} of lowest PSNR." if report.pictures > MAX_ROWS else "",
        scales=[
            (label, scale_rows(scores), worse_scales(scores))
            for label, scores in zip(labels, report.models, strict=True)
        ],
        trips=[
            (label, trip_rows(scores))
            for label, scores in zip(labels, report.models, strict=True)
            if scores.round_trips
        ],
        agreement=agreement_rows(report.agreements) if report.agreements else None,
        codebook=codebook_section(tokenizer, report.code_counts[0], first.usage),
        failures=failure_rows([(one.name, one.error) for one in report.failures]),
        settings=[*_checkpoint_rows(report, labels), *method_rows(report, versions or {})],
    )


def _checkpoint_rows(report: EvaluationReport, labels: Sequence[str]) -> list[list[str]]:
    models = [scores.model for scores in report.models]
    return [
        [label, f"{model.vocab_size:,} codes, fingerprint {model.fingerprint}"]
        for label, model in zip(labels, models, strict=True)
    ]


def _distinct(labels: Sequence[str]) -> list[str]:
    """Return labels, those that are equal with a number."""
    return [
        f"{label} ({labels[: n + 1].count(label)})" if labels.count(label) > 1 else label
        for n, label in enumerate(labels)
    ]


def _common_folder(names: Sequence[str]) -> str:
    """Return the longest beginning of all names that ends in a slash, or ""."""
    first, last = min(names), max(names)
    pairs = enumerate(zip(first, last, strict=False))
    differs = next((n for n, (one, other) in pairs if one != other), len(first))
    return first[: first.rfind("/", 0, differs) + 1]


def _notes(report: EvaluationReport, gallery: Gallery) -> list[str]:
    """Return sentences on what the page leaves out, and what the evaluation did not read as it was."""
    channels = report.fit.channels
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in report.passed_over.items())
    notes = [
        (gallery.left_out, "of higher PSNR not shown, for the size of this file; the figures count all"),
        (len(report.failures), "not measured; see below"),
        (len(report.damaged()), "damaged: what could be decoded was measured"),
        (report.converted_to_grey, "converted to grey levels"),
    ]
    texts = [f"{counted(number, 'picture')} {text}." for number, text in notes if number]
    shown = "first is" if channels == 2 else "first three are"
    texts += [f"Pictures have {channels} channels; the {shown} shown."] * (channels not in (1, 3))
    return texts + [f"Passed over: {kinds}."] * bool(kinds)


def _charts(report: EvaluationReport, labels: Sequence[str]) -> list[object]:
    counts, names = _histogram([scores.models[0].psnr for scores in report.by_picture])
    models = list(zip(labels, report.models, strict=True))
    psnr = {label: list(enumerate(one.scale_psnr, 1)) for label, one in models if one.scale_psnr}
    st_lpips = {label: list(enumerate(one.scale_st_lpips, 1)) for label, one in models if one.scale_st_lpips}
    return [
        line_chart("PSNR by scale, dB", psnr, "scale"),
        *([line_chart("ST-LPIPS (AlexNet) by scale", st_lpips, "scale", digits=4)] if st_lpips else []),
        bar_chart(f"Pictures by PSNR of {labels[0]}", counts, names, "dB"),
    ]


def _histogram(values: Sequence[float]) -> tuple[list[int], list[str]]:
    """Return the number of values in each of at most 24 intervals of whole numbers, and its start as text."""
    low, high = int(min(values)), int(max(values))
    step = -(-(high - low + 1) // 24)
    counts = [0] * ((high - low) // step + 1)
    for value in values:
        counts[(int(value) - low) // step] += 1
    return counts, [str(low + step * n) for n in range(len(counts))]


def _picture_rows(
    report: EvaluationReport, labels: Sequence[str], shown: Mapping[str, int]
) -> tuple[list[str], list[_Row]]:
    """Return the headings and rows of the table of pictures.

    Args:
        report: the report.
        labels: heading of each checkpoint.
        shown: number in the page of each picture that it shows, by name.
    """
    worst = report.worst(MAX_ROWS)
    figures = picture_figures(worst)
    psnr = figures[0]
    others = [f"PSNR of {label}" for label in labels[1:]]
    others += [f"PSNR of {FORMAT_TITLES[scores.format]}" for scores in report.baselines]
    headings = ["picture", *(figure.title for figure in figures), *others, "width", "height"]

    def row(scores: PictureScores) -> _Row:
        own, *compared = scores.models
        pairs: list[tuple[Figure, Scores]] = [(figure, own) for figure in figures]
        pairs += [(psnr, one) for one in (*compared, *scores.baselines)]
        notes = (*scores.notes, *([f"damaged: {scores.damage}"] if scores.damage else []))
        sides = [(str(side), f"{side:,}") for side in (scores.width, scores.height)]
        cells = (*(_cell(*pair) for pair in pairs), *sides)
        return _Row(scores.name, shown.get(scores.name, 0), notes, cells)

    return headings, [row(scores) for scores in worst]


def _cell(figure: Figure, scores: Scores) -> tuple[str, str]:
    """Return the value of a figure for sorting, "" if there is none, and its text."""
    text = figure_text(figure, scores)
    return ("" if text == NO_VALUE else repr(float(getattr(scores, figure.name))), text)
