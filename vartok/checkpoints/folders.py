"""The checkpoint among the files of a folder, and a file's hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from vartok.errors import CheckpointError, one_line
from vartok.files import check_regular

RUN_WEIGHTS = "weights.safetensors"
"""Name of the checkpoint in the folder of a training run."""

RUN_STATE = "state.pt"
"""Name of the state in the folder of a training run, which is no checkpoint."""

USUAL = (RUN_WEIGHTS, "model.safetensors", "diffusion_pytorch_model.safetensors")
"""Names of the checkpoint in a folder, of which the first that is there is taken."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
"""Suffixes of checkpoints; a folder's only file with one is its checkpoint."""


def choose_file(names: Iterable[str], where: str) -> str:
    """Return the name of the checkpoint among the files of a folder: one of `USUAL`, or the only one.

    Args:
        names: names of the folder's files.
        where: the folder, for messages.

    Raises:
        CheckpointError: there is no checkpoint, or several of other names.
    """
    found = sorted(name for name in names if name.endswith(SUFFIXES) and name != RUN_STATE)
    for name in USUAL:
        if name in found:
            return name
    if len(found) == 1:
        return found[0]
    if not found:
        raise CheckpointError(
            f"{where}: the folder has no checkpoint",
            hint="name a checkpoint file, or the folder of a training run",
        )
    shown = one_line(", ".join(found), 200)
    raise CheckpointError(
        f"{where}: the folder has {len(found)} checkpoints: {shown}", hint="name one of them"
    )


def file_sha256(path: str | Path) -> str:
    """Return the sha256 of a file, 64 hex digits.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    check_regular(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
