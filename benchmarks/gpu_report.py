"""Rows of figures that are written as they come, and parts of a run with a time limit each."""

from __future__ import annotations

import contextlib
import json
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

RESERVED = 0.8  # share of a part's time after which it begins no further round


class TimeIsUp(BaseException):
    """The time of a part is up. No handler of errors on the way catches it."""


class Report:
    """Prints rows in Markdown, and appends them to two files of a folder: gpu.md, and gpu.jsonl in JSON.

    Args:
        folder: the folder; it is created.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._markdown = open(folder / "gpu.md", "a")  # noqa: SIM115
        self._json = open(folder / "gpu.jsonl", "a")  # noqa: SIM115
        self._title = ""
        self._columns: tuple[str, ...] = ()

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._markdown.close()
        self._json.close()

    def table(self, title: str) -> None:
        """Begin a table; its first row names the columns."""
        self._title, self._columns = title, ()

    def row(self, **values: Any) -> None:
        """Write a row of the table."""
        if self._columns != tuple(values):
            self._columns = tuple(values)
            self._print("", f"| {' | '.join((self._title, *values))} |", "| --- " * (1 + len(values)) + "|")
        self._print("| " + " | ".join(("", *map(_shown, values.values()))) + " |")
        self._write(values)

    def note(self, text: str) -> None:
        """Write a line between tables."""
        self._print("", text)
        self._columns = ()
        self._write({"note": text})

    def _print(self, *lines: str) -> None:
        for line in lines:
            print(line, flush=True)
            self._markdown.write(line + "\n")
        self._markdown.flush()

    def _write(self, values: dict[str, Any]) -> None:
        self._json.write(json.dumps({"part": self._title, **values}) + "\n")
        self._json.flush()


def _shown(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@contextlib.contextmanager
def time_limit(name: str, seconds: float, report: Report) -> Iterator[float]:
    """Run a part of the run for at most some seconds; a part that fails or takes longer is noted.

    Args:
        name: name of the part.
        seconds: its time limit; a part without time does not begin.
        report: report to write to.

    Yields:
        A value of `time.monotonic()`: the part should begin nothing new after it.
    """

    def stop(*_: object) -> None:
        raise TimeIsUp

    begin = time.monotonic()
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds))
    try:
        yield begin + RESERVED * seconds
        signal.setitimer(signal.ITIMER_REAL, 0)
        report.note(f"{name}: {time.monotonic() - begin:.0f} s")
    except TimeIsUp:
        report.note(f"{name}: cut off after {seconds:.0f} s")
    except Exception as error:
        traceback.print_exc()
        report.note(f"{name} failed: {type(error).__name__}: {str(error).strip()[:300]}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
