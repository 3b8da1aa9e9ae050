"""Speed of several vartok processes at once on one machine, as `xargs -P` starts them.

    python benchmarks/company.py [PICTURES] [--jobs 8] [--rounds 3] [--env NAME=VALUE ...] [--weights FILE]

The same jobs run 1, 2, 4 and 8 at a time. Threads that wait in a loop would show here, as processor seconds
that grow with the number of processes. `--env` adds rows of the same runs with environment variables set.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import table

from vartok.images import picture_suffixes

VARTOK = [sys.executable, "-m", "vartok"]
AT_ONCE = (1, 2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path, nargs="?", default=Path("../examples"))
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--per-job", type=int, default=8, help="pictures of a job")
    parser.add_argument("--at-once", type=int, nargs="+", default=AT_ONCE)
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE[,NAME=VALUE]")
    parser.add_argument("--weights", default="shipped")
    parser.add_argument("--size", default="256")
    given = parser.parse_args()
    found = sorted(path for path in given.pictures.rglob("*") if path.suffix.lower() in picture_suffixes())
    pictures = [str(path) for path in itertools.islice(itertools.cycle(found), given.per_job)]
    encode = [*VARTOK, "encode", "-q", "--device", "cpu", "-w", given.weights, "--size", given.size]

    cases = [(env, count) for count in given.at_once for env in ["", *given.env]]
    measured: dict[tuple[str, int], list[tuple[float, float]]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        for number, picture in enumerate(pictures):  # names that differ
            os.symlink(os.path.abspath(picture), f"{folder}/{number:03}{Path(picture).suffix}")
        inputs = [str(path) for path in sorted(Path(folder).iterdir())]
        for _ in range(given.rounds):  # cases take turns, so that other load affects all alike
            for env, count in cases:
                commands = [
                    [*encode, *inputs, "-o", f"{folder}/out{job}/", "--force"] for job in range(given.jobs)
                ]
                measured[env, count].append(
                    run(commands, count, dict(e.split("=") for e in env.split(",") if e))
                )
    rows = []
    for env, count in cases:
        wall, processor = (statistics.median(values) for values in zip(*measured[env, count], strict=True))
        alone = statistics.median(processor for _, processor in measured[env, cases[0][1]])
        rows.append(
            [str(count), env or "as it comes", f"{wall:.2f}", f"{processor:.2f}", f"{processor / alone:.2f}"]
        )
    print(table(["processes at once", "environment", "wall s", "processor s", "by one at a time"], rows))


def run(commands: list[list[str]], at_once: int, env: dict[str, str]) -> tuple[float, float]:
    """Run commands, `at_once` at a time; return seconds by the clock, and of processors in all."""
    begin, processor = time.perf_counter(), 0.0
    waiting, running = list(commands), 0
    while waiting or running:
        while waiting and running < at_once:
            subprocess.Popen(waiting.pop(), env={**os.environ, **env})
            running += 1
        _, status, usage = os.wait3(0)
        assert not status, "a job failed"
        processor += usage.ru_utime + usage.ru_stime
        running -= 1
    return time.perf_counter() - begin, processor


if __name__ == "__main__":
    main()
