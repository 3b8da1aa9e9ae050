"""The page of a training run, which is written anew at every validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from vartok.errors import counted
from vartok.reports.charts import Points, line_chart
from vartok.reports.gallery import Gallery
from vartok.reports.page import render
from vartok.schedule import Schedule

RELOAD = 60
"""Seconds after which a browser loads the page of a running run again."""


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """The figures of a run so far; every curve is pairs of a step and a value.

    Attributes:
        name: name of the checkpoint.
        step: number of steps done.
        seconds: time of the run in seconds, over all sessions.
        running_at: time (UTC) at which the run went on, after its last validation; None once it has ended.
        pictures: number of validation pictures.
        loss: total loss.
        psnr: PSNR of training crops, in dB.
        validation_psnr: PSNR of the validation pictures, in dB.
        used: number of codes that the validation pictures use, for each scale.
        total_used: number of codes that they use on all scales together.
        perplexity: perplexity of their use of the codebook, for each scale.
        schedule: (h, w) of every scale.
        vocab_size: number of codes.
        settings: the settings of the run, as TOML.
    """

    name: str
    step: int
    seconds: float
    running_at: datetime | None
    pictures: int
    loss: Points
    psnr: Points
    validation_psnr: Points
    used: Sequence[Points]
    total_used: Points
    perplexity: Sequence[Points]
    schedule: Schedule
    vocab_size: int
    settings: str


def training_page(figures: RunFigures, gallery: Gallery) -> str:
    """Return the HTML page of a run. While the run goes on, browsers load it again every minute.

    Args:
        figures: the figures of the run.
        gallery: validation pictures and their reconstructions; pictures are shown in the order of names.
    """
    scales = [f"{h}x{w}" for h, w in figures.schedule]
    state = "Ended"
    if figures.running_at is not None:  # true also of a run that was killed since
        state = f"Running at {figures.running_at:%Y-%m-%d %H:%M} UTC, after a validation"
    exhibits = sorted(gallery.pictures, key=lambda exhibit: (len(exhibit.name), exhibit.name))
    psnr = {"training crops": figures.psnr, "validation": figures.validation_psnr}
    return render(
        "training.html",
        title=f"Training of {figures.name}",
        subtitle=f"{state}: {counted(figures.step, 'step')} in {figures.seconds / 60:.1f} minutes.",
        notes=[] if figures.pictures else ["No validation: no readable picture is held out."],
        reload=None if figures.running_at is None else RELOAD,
        charts=[
            line_chart("Loss", {"loss": figures.loss}, "step", digits=4),
            line_chart("PSNR, dB", psnr, "step"),
            line_chart("Codes used by all scales", {"codes": figures.total_used}, "step", digits=0),
            _by_scale("Codes used by scale, validation", scales, figures.used),
            _by_scale("Perplexity by scale, validation", scales, figures.perplexity),
        ],
        latest=_latest(figures, scales),
        exhibits=exhibits,
        pictures=figures.pictures,
        settings=figures.settings,
    )


def _by_scale(title: str, scales: Sequence[str], curves: Sequence[Points]) -> object:
    names = [f"{number}: {grid}" for number, grid in enumerate(scales, 1)]
    return line_chart(title, dict(zip(names, curves, strict=False)), "step", ordered=True, digits=0)


def _latest(figures: RunFigures, scales: Sequence[str]) -> tuple[list[str], list[list[str]]] | None:
    """Return headings and rows of the table of the last validation; None before the first."""
    if not figures.total_used:
        return None
    both = zip(scales, figures.used, figures.perplexity, strict=True)
    rows = [
        [str(number), grid, f"{used[-1][1]:,.0f}", f"{found[-1][1]:,.0f}"]
        for number, (grid, used, found) in enumerate(both, 1)
    ]
    total = ["all", "", f"{figures.total_used[-1][1]:,.0f} of {figures.vocab_size:,}", ""]
    return ["scale", "grid", "codes used", "perplexity"], [*rows, total]
