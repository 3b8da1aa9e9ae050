"""The curves of a run, for its report; they are kept in a file, so that a resumed run continues them."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path

from vartok.files import write_bytes
from vartok.reports.gallery import Gallery
from vartok.reports.training import RunFigures, training_page
from vartok.train.folder import HISTORY, REPORT
from vartok.train.progress import Progress, Validation
from vartok.train.settings import TrainSettings
from vartok.train.settings_file import dump_settings

MAX_POINTS = 2000
"""Number of progress points that are kept; from twice as many on, every second is dropped."""


class History:
    """The progress and the validations of a run.

    Attributes:
        progress: step, loss and PSNR, for each report of progress.
        validations: the validations.
    """

    def __init__(self) -> None:
        self.progress: list[tuple[float, ...]] = []
        self.validations: list[Validation] = []

    @classmethod
    def read(cls, run: Path, step: int, scales: int) -> History:
        """Return the history that `write` has written, up to a step; an empty one if it cannot be read.

        Args:
            run: folder of the run.
            step: last step that is taken.
            scales: number of scales.
        """
        history = cls()
        try:
            saved = json.loads((run / HISTORY).read_text(encoding="utf-8"))
            progress = [tuple(map(float, point))[:3] for point in saved["progress"]]
            validations = [
                Validation(**{**one, "used": tuple(one["used"]), "perplexity": tuple(one["perplexity"])})
                for one in saved["validations"]
            ]
            if all(len(point) == 3 for point in progress) and all(
                len(one.used) == len(one.perplexity) == scales for one in validations
            ):
                history.progress = [point for point in progress if point[0] <= step]
                history.validations = [one for one in validations if one.step <= step]
        except (OSError, ValueError, TypeError, KeyError, IndexError):  # the curves begin anew
            pass
        return history

    def add(self, event: Progress | Validation) -> None:
        """Add a report of progress or a validation; a validation replaces one of the same step."""
        if isinstance(event, Validation):
            self.validations = [one for one in self.validations if one.step < event.step] + [event]
            return
        self.progress.append((event.step, event.loss, event.psnr))
        if len(self.progress) >= 2 * MAX_POINTS:
            self.progress = self.progress[1::2]

    def write(self, run: Path) -> None:
        """Write the history to the run's folder.

        Raises:
            OutputError: the file cannot be written.
        """
        saved = {
            "progress": self.progress,
            "validations": [dataclasses.asdict(validation) for validation in self.validations],
        }
        write_bytes(run / HISTORY, json.dumps(saved).encode(), overwrite=True)


def write_report(
    run: Path,
    history: History,
    gallery: Gallery,
    settings: TrainSettings,
    *,
    step: int,
    seconds: float,
    running: bool,
) -> None:
    """Write the history and the HTML report to the run's folder.

    Args:
        run: folder of the run.
        history: the curves so far.
        gallery: the pictures of the last validation.
        settings: settings of the run.
        step: number of steps done.
        seconds: time of the run in seconds, over all sessions.
        running: whether the run goes on.

    Raises:
        OutputError: a file cannot be written.
    """
    history.write(run)
    config, progress, validations = settings.model, history.progress, history.validations
    scales = range(len(config.patch_nums))
    figures = RunFigures(
        name=settings.name,
        step=step,
        seconds=seconds,
        running_at=datetime.now(UTC) if running else None,
        pictures=validations[-1].pictures if validations else 0,
        loss=[(point[0], point[1]) for point in progress],
        psnr=[(point[0], point[2]) for point in progress],
        validation_psnr=[(one.step, one.psnr) for one in validations],
        used=[[(one.step, one.used[k]) for one in validations] for k in scales],
        total_used=[(one.step, one.total_used) for one in validations],
        perplexity=[[(one.step, one.perplexity[k]) for one in validations] for k in scales],
        schedule=config.patch_nums,
        vocab_size=config.vocab_size,
        settings=dump_settings(settings),
    )
    write_bytes(run / REPORT, training_page(figures, gallery).encode(), overwrite=True)
