"""The tables that `vartok eval` prints. Importing this module imports torch."""

from __future__ import annotations

from rich.table import Table

from vartok import evaluation
from vartok.errors import counted, printable
from vartok.evaluation import tables as texts

from .tables import new_table, print_tables


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
    labels = texts.model_labels(report, checkpoints)
    tables = [_figures_table(report, labels)]
    models = list(zip(report.models, labels, strict=True))
    for model, label in models:
        tables.append(_table(f"Scales of {label}", texts.scale_rows(model), texts.worse_scales(model)))
    if report.models[0].round_trips:
        tables += [_table(f"Round trips of {label}", texts.trip_rows(model)) for model, label in models]
    if report.agreements:
        title = f"Agreement of {labels[0]} with float32 on cpu"
        tables.append(_table(title, texts.agreement_rows(report.agreements)))
    if worst:
        tables.append(_worst_table(report.worst(worst), labels))
    print_tables(*tables, _methods_table(report, versions))


def _figures_table(report: evaluation.EvaluationReport, labels: list[str]) -> Table:
    titles = [texts.FORMAT_TITLES[scores.format] for scores in report.baselines]
    return _table(counted(report.pictures, "picture"), (["", *labels, *titles], texts.figure_rows(report)))


def _table(title: str, headings_and_rows: tuple[list[str], texts.Rows], caption: str = "") -> Table:
    headings, rows = headings_and_rows
    table = new_table(title, *headings, caption=caption)
    for row in rows:
        table.add_row(*row)
    return table


def _worst_table(worst: list[evaluation.PictureScores], labels: list[str]) -> Table:
    figures = texts.picture_figures(worst)
    others = [f"PSNR of {label}" for label in labels[1:]]
    headings = [figure.title for figure in figures]
    table = new_table(f"Lowest PSNR of {labels[0]}", "picture", "pixels", *headings, *others)
    for scores in worst:
        own, *compared = scores.models
        table.add_row(
            printable(scores.name),
            f"{scores.width} x {scores.height}",
            *(texts.figure_text(figure, own) for figure in figures),
            *(f"{one.psnr:.2f}" for one in compared),
        )
    return table


def _methods_table(report: evaluation.EvaluationReport, versions: dict[str, str]) -> Table:
    return _table("Methods", (["", ""], texts.method_rows(report, versions)))
