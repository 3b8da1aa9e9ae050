"""The environment that vartok runs in, for bug reports: versions, devices, threads, caches."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vartok.errors import one_line
from vartok.files import user_cache
from vartok.processors import available_processors

VARIABLES = (
    *("VARTOK_WEIGHTS", "VARTOK_DEVICE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"),
    *("GOMP_SPINCOUNT", "MKL_NUM_THREADS", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"),
    *("XDG_CACHE_HOME", "TERM", "COLORTERM", "NO_COLOR", "COLUMNS", "LANG", "LC_ALL"),
)
"""Environment variables that change what vartok does; none of them holds a password."""


def describe_environment() -> dict[str, Any]:
    """Return versions, devices, threads and caches, as a JSON object. A torch that is broken is told.

    Returns:
        python, platform: texts.
        location: folder of the package.
        packages: version of each package that vartok or one of its extras needs; None if it is not installed.
        torch: version, CUDA's version or None, and the number of threads; or the error of its import.
        devices: name of every device that torch can use, by device; "auto" is the one that vartok takes.
        processors: number of processors that this process may use.
        variables: those of `VARIABLES` that are set.
        caches: folder and bytes of vartok's cache, and the folder of the hub's.
    """
    torch, devices = _torch()
    return {
        "location": str(Path(__file__).parent),
        "python": f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "packages": dict(_packages()),
        "torch": torch,
        "devices": devices,
        "processors": available_processors(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "caches": {
            "vartok": {"folder": str(user_cache()), "bytes": _size(user_cache())},
            "hub": {"folder": _hub_cache()},
        },
    }


def _packages() -> Iterator[tuple[str, str | None]]:
    """Yield the names and versions of the packages that vartok's metadata name, without those of `dev`."""
    requirements = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # it runs from a folder of sources
        requirements = importlib.metadata.requires("vartok") or []
    for text in sorted(requirements, key=str.lower):
        name = re.match(r"[\w.-]+", text)
        if name is None or name[0] == "vartok" or re.search(r"extra\s*==\s*.dev", text):
            continue
        try:
            yield name[0], importlib.metadata.version(name[0])
        except importlib.metadata.PackageNotFoundError:
            yield name[0], None


def _torch() -> tuple[dict[str, Any], dict[str, str]]:
    try:
        import torch

        from vartok.runtime import choose_device

        devices = {"cpu": platform.processor() or platform.machine()}
        for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            found = torch.cuda.get_device_properties(n)
            devices[f"cuda:{n}"] = f"{found.name}, {found.total_memory / 2**30:.1f} GiB"
        if torch.backends.mps.is_available():
            devices["mps"] = platform.machine()
        told = {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "threads": torch.get_num_threads(),
        }
        return told, {**devices, "auto": str(choose_device("auto"))}
    except Exception as error:  # a library of CUDA that is missing, and many others
        return {"error": one_line(f"{type(error).__name__}: {error}", 300)}, {}


def _hub_cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return str(HF_HUB_CACHE)


def _size(folder: Path) -> int:
    """Return the bytes of the files below a folder; 0 if there is none."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total
