"""How many processors this process may use, and the settings of OpenMP that follow; imports no torch."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator, MutableMapping
from pathlib import Path, PurePosixPath

SPINS = "2000"
"""How often an OpenMP thread of GNU's library looks for work before it sleeps: for some 0.03 ms.

By default it looks for milliseconds. If another process has the processor of the thread that it waits for,
that time is lost at every operation: two programs at once take up to five times as long as one by one.
"""


def available_processors(root: Path = Path("/")) -> int:
    """Return the number of processors that this process may use at once: one at least.

    These are the processors of its affinity, or fewer if a quota of a control group, as containers have,
    gives it less time, rounded down.

    Args:
        root: folder below which the system's files are read.
    """
    return max(1, math.floor(min([_affinity(), *_quotas(root)])))


def configure_openmp(environment: MutableMapping[str, str] = os.environ, root: Path = Path("/")) -> None:
    """Set OpenMP's environment variables where the user has not; child processes inherit them.

    OpenMP reads them once, so a program calls this before anything imports torch. Threads number
    `available_processors` if a quota allows fewer than the affinity, which is all that OpenMP knows of.

    Args:
        environment: variables of this process.
        root: as for `available_processors`.
    """
    if not environment.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        environment["GOMP_SPINCOUNT"] = SPINS
    threads = available_processors(root)
    if "OMP_NUM_THREADS" not in environment and threads < _affinity():
        environment["OMP_NUM_THREADS"] = str(threads)


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> list[float]:
    """Return the quotas, in processors, of this process's control groups and their parents."""
    found = []
    for folder in _control_groups(root):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                quota, period = " ".join((folder / name).read_text() for name in names).split()
                if int(quota) > 0:  # -1 is none
                    found.append(int(quota) / max(1, int(period)))
    return found


def _control_groups(root: Path) -> Iterator[Path]:
    """Yield the folders of the control groups, of either version, that may limit this process's time."""
    try:
        groups = (root / "proc/self/cgroup").read_text(errors="replace").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:  # another system than Linux
        return
    paths = {}  # of this process's group, by version
    for line in groups:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" or "cpu" in controllers.split(","):
            paths["cgroup2" if number == "0" else "cgroup"] = path
    for line in mounts:
        fields, _, kind = line.partition(" - ")
        shown, place = (
            re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), text) for text in fields.split(" ")[3:5]
        )
        version, _, options = kind.partition(" ")
        if version not in paths or (version == "cgroup" and "cpu" not in options.split(" ")[-1].split(",")):
            continue
        mounted = root / place.lstrip("/")
        group = PurePosixPath(paths[version])
        # In a container the mounted folder may be the group itself, or show nothing of the path to it.
        visible = group.is_relative_to(shown) and ".." not in group.parts
        inside = group.relative_to(shown) if visible else PurePosixPath()
        for part in [inside, *inside.parents]:
            yield mounted / part
