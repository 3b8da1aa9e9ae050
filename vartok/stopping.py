"""Ctrl-C and SIGTERM end the program: one line on stderr, exit code 130 or 143, and nothing left behind."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""First word of the line, by the signal. A signal that the parent process ignores stays ignored."""


class Terminated(BaseException):
    """Raised for SIGTERM, as KeyboardInterrupt is for Ctrl-C, where the program does not end at once."""


class Stop:
    """Actions and words with which the program ends when it is stopped at once.

    Attributes:
        describe_progress: returns what is done and how to go on, for the line on stderr.
        cleanups: functions that leave files, processes and the terminal as they should be, called before
            that, the last one first.
    """

    def __init__(self) -> None:
        self.describe_progress: Callable[[], str] = lambda: "nothing was written"
        self.cleanups: list[Callable[[], None]] = []

    @contextlib.contextmanager
    def cleaning_up(self, clean: Callable[[], None]) -> Iterator[None]:
        """Have `clean` among the cleanups during the block."""
        self.cleanups.append(clean)
        try:
            yield
        finally:
            self.cleanups.remove(clean)


stop = Stop()


def install() -> None:
    """End the program at once when a signal arrives, from now on; for the main thread of a program.

    An exception would not do: it is lost in a callback from C or in a destructor, importing torch turns it
    into other errors, and before it ends the program it waits for threads that may be blocked.
    """
    for number in WORDS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end_at_once)
    atexit.register(_ignore)  # runs last: as Python shuts down, its own handlers come back


def end_at_once(number: int, _: FrameType | None = None) -> NoReturn:
    """Clean up, print the line, and end the program without waiting for its threads; a signal handler.

    A second signal ends the program as if it had no handler, since a cleanup may hang.
    """
    for each in WORDS:
        if signal.getsignal(each) != signal.SIG_IGN:
            signal.signal(each, signal.SIG_DFL)
    for clean in reversed(stop.cleanups):
        with contextlib.suppress(Exception):
            clean()
    text = WORDS[signal.Signals(number)]
    with contextlib.suppress(Exception):
        text += f"; {stop.describe_progress()}"
    encoding, errors = (getattr(sys.stderr, name, None) for name in ("encoding", "errors"))
    with contextlib.suppress(OSError):
        # Not print: the signal may have come while Python was writing to the same stream.
        os.write(2, f"vartok: {text}\n".encode(encoding or "ascii", errors or "replace"))
    os._exit(128 + number)


@contextlib.contextmanager
def as_exceptions() -> Iterator[None]:
    """Raise KeyboardInterrupt or Terminated in the block when a signal arrives; end at once at the second.

    Without `install`, and in a thread, handlers stay as they are.
    """
    numbers = [number for number in WORDS if signal.getsignal(number) is end_at_once]

    def end(number: int, _: FrameType | None) -> NoReturn:
        for each in numbers:
            signal.signal(each, end_at_once)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, end_at_once)


def _ignore() -> None:
    for number in WORDS:
        signal.signal(number, signal.SIG_IGN)
