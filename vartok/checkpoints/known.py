"""Find checkpoint files; and the sha256 by which the checkpoint of VAR's authors is recognized."""

from __future__ import annotations

import hashlib
import importlib.resources
from pathlib import Path

from vartok.errors import CheckpointError, printable
from vartok.files import check_regular, os_error_reason
from vartok.sources.places import is_url, shorten_path
from vartok.sources.web import lacks_slash

RUN_WEIGHTS = "weights.safetensors"
"""Name of the checkpoint in the folder of a training run."""

PUBLISHED_NAME = "vae_ch160v4096z32"
"""Name of the tokenizer that VAR's authors published."""

PUBLISHED_SHA256 = "7c3ec27ae28a3f87055e83211ea8cc8558bd1985d7b51742d074fb4c2fcf186c"
"""The sha256 of the .pth file of `PUBLISHED_NAME`."""


def shipped_checkpoint() -> Path:
    """Return the path of the checkpoint that is installed with vartok."""
    return Path(str(importlib.resources.files("vartok.weights") / "vartok-light-v1.safetensors"))


def find_checkpoint(weights: str | Path | None) -> Path:
    """Return the path of a checkpoint file.

    Args:
        weights: path of a checkpoint file, or of a training run's folder, whose `RUN_WEIGHTS` is taken. None
            or "shipped": the checkpoint that is installed with vartok.

    Raises:
        CheckpointError: the path is a URL, does not exist, cannot be accessed, or is a pipe or a device; or
            the folder has no `RUN_WEIGHTS`. The message begins with the path.
    """
    if weights is None or str(weights) == "shipped":
        return shipped_checkpoint()
    if is_url(str(weights)) or lacks_slash(str(weights)):  # a Path of a URL has lost a slash
        raise CheckpointError(
            f"{printable(shorten_path(str(weights)))}: a checkpoint is not read from a URL",
            hint="download it, and name the file",
        )
    path = Path(weights)
    try:
        if path.is_dir():
            if not (path / RUN_WEIGHTS).exists():
                raise CheckpointError(
                    f"{printable(path)}: the folder has no {RUN_WEIGHTS}",
                    hint="name a checkpoint file, or the folder of a training run",
                )
            path = path / RUN_WEIGHTS
        check_regular(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise CheckpointError(f"{printable(path)}: {os_error_reason(error)}") from None
    return path


def file_sha256(path: str | Path) -> str:
    """Return the sha256 of a file, 64 hex digits.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    check_regular(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
