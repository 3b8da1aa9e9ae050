"""Timing for the benchmarks: calls to compare take turns, so that noise of the machine affects all alike."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

SIDE = 2048  # rows of the matrices whose product measures the machine's speed


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 5,
    seconds: float = 0.2,
    deadline: float = math.inf,
) -> dict[str, float]:
    """Measure the time of calls that take turns, after one call of each to warm up.

    Args:
        calls: functions to measure, by name.
        rounds: number of rounds; in a round every function is repeated for `seconds`.
        seconds: shortest time of a function in a round, in seconds; it runs at least once.
        deadline: value of `time.monotonic()` after which no round begins but the first.

    Returns:
        The median over rounds of the mean time of one call, in seconds, by name.
    """
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        if number and time.monotonic() > deadline:
            break
        for name, call in calls.items():
            wait()
            begin, count = time.perf_counter(), 0
            while not count or time.perf_counter() - begin < seconds:
                call()
                count += 1
                wait()
            found[name].append((time.perf_counter() - begin) / count)
    return {name: statistics.median(times) for name, times in found.items()}


def product(dtype: torch.dtype, device: torch.device, side: int = SIDE) -> Callable[[], object]:
    """Return a function that multiplies two random side x side matrices: 2 side^3 operations."""
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b


def machine() -> str:
    """Return one line on this machine: CPU, threads, GPU and torch's version."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    parts = [names[0] if names else platform.processor(), f"{torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return f"{', '.join(parts)}; torch {torch.__version__}"


def table(heading: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (heading, *rows)]
    return "\n".join([lines[0], "| " + " | ".join("---" for _ in heading) + " |", *lines[1:]])


def wait() -> None:
    """Wait until the accelerator has done its work, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


if __name__ == "__main__":
    print(f"{machine()}\n", flush=True)
