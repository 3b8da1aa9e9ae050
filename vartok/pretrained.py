"""Load the weights of pretrained networks from installed packages: nothing is downloaded or imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from vartok.errors import VartokError
from vartok.files import file_sha256, os_error_reason
from vartok.optional import require


def load_pretrained(package: str, path: str, *, sha256: str, purpose: str) -> dict[str, Tensor]:
    """Load a .pth file of an installed package, after checking its hash.

    The package is not imported, so that what its modules import need not be installed.

    Args:
        package: top-level module of the package, such as "stlpips_pytorch".
        path: path of the file in the package's folder.
        sha256: the hash that the file must have, in hex.
        purpose: what the weights are needed for, as a noun, such as "ST-LPIPS".

    Returns:
        The state dict, on the CPU.

    Raises:
        VartokError: the package is not installed; or the file cannot be read, or has another hash.
    """
    require(package, extra="perceptual", purpose=purpose)
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    file = Path(folders[0] if folders else package, path)
    cure = f"install the package of {package} again"
    try:
        found = file_sha256(file)
    except OSError as error:
        raise VartokError(f"{file} cannot be read: {os_error_reason(error)}", hint=cure) from None
    if found != sha256:
        raise VartokError(
            f"{file} is damaged or of another version: its sha256 begins with {found[:8]}, "
            f"not with {sha256[:8]}",
            hint=cure,
        )
    tensors: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return tensors
