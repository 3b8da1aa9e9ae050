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
        extra: the extra of vartok that installs them: "train", "perceptual", "dataset",
            "ray" or "onnx".
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


def require_file_system(url: str) -> None:
    """Check that the packages are installed with which fsspec opens a URL, such as s3fs for s3://.

    Args:
        url: the URL. fsspec also knows chains of several, such as "zip://a.png::s3://bucket/a.zip".

    Raises:
        VartokError: a package is missing.
    """
    require("fsspec", extra="dataset", purpose="URLs")
    from fsspec.registry import get_filesystem_class, known_implementations

    for scheme in (part.partition("://")[0] for part in url.split("::")):
        try:
            get_filesystem_class(scheme)
        except ValueError:  # an unknown scheme: fsspec says so when it opens the URL
            continue
        except ImportError:
            package = str(known_implementations[scheme]["class"]).partition(".")[0]  # also its name at PyPI
            if not is_installed(package):  # else fsspec says what is missing
                raise VartokError(
                    f"not installed: {package} (needed for {scheme}:// URLs)",
                    hint=f"run pip install {package}",
                ) from None
