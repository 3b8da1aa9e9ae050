"""The checkpoint among the files of a folder."""

from __future__ import annotations

from collections.abc import Iterable

from vartok.errors import CheckpointError, one_line

RUN_WEIGHTS = "weights.safetensors"
"""Name of the checkpoint in the folder of a training run."""

RUN_STATE = "state.pt"
"""Name of the state in the folder of a training run, which is no checkpoint."""

STANDARD_NAMES = (RUN_WEIGHTS, "model.safetensors", "diffusion_pytorch_model.safetensors")
"""Names of the checkpoint in a folder, of which the first that is there is taken."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
"""Suffixes of checkpoints; a folder's only file with one is its checkpoint."""

CONFIG_JSON = "config.json"
"""Name of the file beside weights in which Hugging Face's libraries write a model's arguments."""

MAX_CONFIG_BYTES = 1 << 20
"""Largest size of a `CONFIG_JSON`."""


def choose_file(names: Iterable[str], where: str) -> str:
    """Return the name of a folder's checkpoint: one of `STANDARD_NAMES`, or the only file of `SUFFIXES`.

    Args:
        names: names of the folder's files.
        where: the folder, for messages.

    Raises:
        CheckpointError: there is no checkpoint, or several of other names.
    """
    found = sorted(name for name in names if name.endswith(SUFFIXES) and name != RUN_STATE)
    for name in STANDARD_NAMES:
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
