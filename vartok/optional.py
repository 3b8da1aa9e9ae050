"""Checks for optional packages, such as those of the extra `train`."""

from __future__ import annotations

import importlib.util

from vartok.errors import VartokError


def is_installed(package: str) -> bool:
    """Return whether a package can be imported, without importing it.

    Args:
        package: its top-level module, such as "torchmetrics".
    """
    return importlib.util.find_spec(package) is not None


def require(*packages: str, extra: str, purpose: str) -> None:
    """Check that optional packages are installed, without importing them.

    Args:
        packages: their top-level modules.
        extra: the extra of vartok that installs them: "train", "dataset" or "ray".
        purpose: what they are needed for, as a noun: "training".

    Raises:
        VartokError: a package is missing; the message names all that are.
    """
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        raise VartokError(
            f"not installed: {', '.join(missing)} (needed for {purpose})",
            hint=f"pip install '.[{extra}]' from a clone",
        )
