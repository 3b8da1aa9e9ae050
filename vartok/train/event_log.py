"""The log of a run, for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vartok.train.folder import LOGS
from vartok.train.progress import Progress
from vartok.train.state import TrainingState


class EventLog:
    """TensorBoard's log in the run's folder; the first `add` creates it.

    Args:
        run: folder of the run.
    """

    def __init__(self, run: Path) -> None:
        self._folder = run / LOGS
        self._writer: Any = None

    def add(self, step: int, **values: float) -> None:
        """Add scalars, by their names, at a step."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what its thread still holds, and end the thread."""
        if self._writer is not None:
            self._writer.close()

    def add_progress(self, progress: Progress, means: dict[str, float], state: TrainingState) -> None:
        """Add the scalars of a report: means, perplexities, replaced codes, speed and learning rate.

        Args:
            progress: the report.
            means: means of the values of `training_step` over the steps of the report, by name.
            state: state of the run.
        """
        self.add(progress.step, **{f"train/{name}": value for name, value in means.items()})
        scales = {f"perplexity/scale_{k:02}": value for k, value in enumerate(progress.perplexity)}
        total = {"perplexity/all": state.codebook.total_perplexity()}
        others = {
            "train/replaced_codes": float(progress.replaced_codes),
            "train/images_per_second": progress.images_per_second,
            "train/lr": state.optimizer.param_groups[0]["lr"],
        }
        self.add(progress.step, **scales, **total, **others)
