"""The folder of a run: names of its files, and writing them whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vartok.errors import TrainError, one_line
from vartok.files import atomic_write

STATE = "state.pt"
"""Everything that a resumed run needs."""
SETTINGS = "settings.toml"
WEIGHTS, CARD = "weights.safetensors", "weights.md"
"""The exported checkpoint and its card."""
SAMPLES = "samples"
"""Folder of validation pictures, the originals above their reconstructions."""
LOGS = "log"
"""Folder of TensorBoard's logs."""


@contextlib.contextmanager
def open_output(run: Path, name: str) -> Iterator[BinaryIO]:
    """Open a file of a run for writing; it appears whole or not at all.

    Raises:
        TrainError: it cannot be written.
    """
    path = run / name
    with output_errors(path):
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path, overwrite=True) as file:
            yield file


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn errors of writing `path` into a TrainError."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save turns an OSError into a RuntimeError
        reason = getattr(error, "strerror", None) or one_line(error)
        raise TrainError(f"{path} cannot be written: {reason}; what it held before is kept") from None
