"""A run's folder: the names of its files, and its creation."""

from __future__ import annotations

from pathlib import Path

from vartok.checkpoints import RUN_STATE, RUN_WEIGHTS
from vartok.errors import OutputError, TrainError
from vartok.files import os_error_reason

STATE = RUN_STATE
"""The state of the run, from which it is resumed."""
SETTINGS = "settings.toml"
"""All settings of the run."""
WEIGHTS = RUN_WEIGHTS
"""The exported checkpoint."""
CARD = "weights.md"
"""The card of the exported checkpoint."""
SAMPLES = "samples"
"""Folder of samples: validation pictures above their reconstructions."""
LOGS = "log"
"""Folder of TensorBoard's logs."""
REPORT = "report.html"
"""The HTML report of the run so far."""
HISTORY = "history.json"
"""The curves of the report."""


def prepare_folder(run: Path, resume: bool) -> None:
    """Create the run's folder.

    Raises:
        TrainError: without `resume`, the folder holds a run; with it, the folder holds no state.
        OutputError: the folder cannot be created.
    """
    if not resume and ((run / STATE).is_file() or (run / WEIGHTS).is_file()):
        raise TrainError(f"{run} holds a run already", hint="set `resume`, or name another folder")
    if resume and not (run / STATE).is_file():
        raise TrainError(f"{run} holds no state of a run to resume", hint="leave `resume` out")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {run}: {os_error_reason(error)}") from None
