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
        packages: top-level modules of the packages.
        extra: the extra of vartok that installs them: "train", "dataset" or "ray".
        purpose: what the packages are needed for, as a noun, such as "training".

    Raises:
        VartokError: a package is missing; the message names all missing packages.
    """
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        raise VartokError(
            f"not installed: {', '.join(missing)} (needed for {purpose})",
            hint=f"run pip install '.[{extra}]' in a clone of vartok",
        )
