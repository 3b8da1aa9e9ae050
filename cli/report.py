"""What a command says while it runs, and how it ends."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import typer

from vartok.errors import VartokError, VartokWarning

BAR_AFTER = 1.0  # seconds: what is done sooner needs no progress bar

FAILED, SOME_FAILED, INTERRUPTED, PIPE_CLOSED = 1, 3, 130, 141


def shown(text: object) -> str:
    """A path, or what a file says of itself, on one line, whatever characters it has."""
    return "".join(char if char.isprintable() else "?" for char in str(text))


def say(message: str) -> None:
    """One line on stderr."""
    print(f"vartok: {shown(message)}", file=sys.stderr, flush=True)


class Report:
    """Counts what is done and what failed, says so on stderr, and knows the exit code.

    A bar appears where stderr is a terminal and the work takes longer than a second.
    """

    def __init__(self, total: int | None, *, verb: str, quiet: bool, debug: bool = False) -> None:
        self.done = self.failed = self.skipped = 0
        self._total, self._verb, self._quiet, self._debug = total, verb, quiet, debug
        self._start = time.monotonic()
        self._bar: Any = None

    def succeed(self, name: str, result: str, notes: tuple[str, ...] = ()) -> None:
        """Count a success; `result` says what came of `name`, for where it is the only one."""
        self.done += 1
        for note in notes:
            self.note(f"{name}: {note}")
        if self._total == 1 and not self._quiet:
            self._say(f"{name}: {result}")
        self._advance()

    def fail(self, name: str, reason: object) -> None:
        """Count a failure, and say why."""
        self.failed += 1
        if self._debug and isinstance(reason, BaseException):
            self.close()
            traceback.print_exception(reason)
        self._say(f"{name}: {reason}")
        self._advance()

    def skip(self) -> None:
        """Count an input that was passed over."""
        self.skipped += 1
        self._advance()

    def note(self, text: str) -> None:
        """Say something that is no failure."""
        if not self._quiet:
            self._say(text)

    def finish(self) -> None:
        """Sum up, and leave with the exit code.

        Raises:
            typer.Exit: something failed.
        """
        self.close()
        if not self._quiet and self._total != 1:
            parts = [f"{self._verb} {self.done}"]
            parts += [f"{self.skipped} skipped"] * bool(self.skipped) + [f"{self.failed} failed"] * bool(
                self.failed
            )
            say(f"{', '.join(parts)} in {time.monotonic() - self._start:.1f} s")
        if self.failed:
            raise typer.Exit(SOME_FAILED if self.done or self.skipped else FAILED)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, message: str) -> None:
        if self._bar is None:
            say(message)
        else:
            self._bar.console.print(
                f"vartok: {shown(message)}", markup=False, highlight=False, soft_wrap=True
            )

    def _advance(self) -> None:
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0])
        elif not self._quiet and sys.stderr.isatty() and time.monotonic() - self._start > BAR_AFTER:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(
                self._verb, total=self._total, completed=self.done + self.failed + self.skipped
            )
            atexit.register(self._bar.stop)  # gives the cursor back, whatever ends the command
            self._bar.start()


def command(run: Callable[..., None]) -> Callable[..., None]:
    """Give a command its options and its ends: one line and an exit code, no traceback without --debug."""
    from .options import expand_options

    run = expand_options(run)

    @functools.wraps(run)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        debug = bool(kwargs.get("debug"))
        _open_closed_streams()
        _quieten_libraries(debug, notes=not kwargs.get("quiet"))
        try:
            run(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:
            # What is still buffered would raise again when Python exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(PIPE_CLOSED) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except (VartokError, OSError, MemoryError) as error:
            if debug:
                raise
            say(explain(error))
            raise typer.Exit(FAILED) from None

    # \b: what follows is shown line by line, as it stands.
    wrapped.__doc__ = (run.__doc__ or "").replace("    Examples:", "    \b\n    Examples:")
    return wrapped


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Errors about what the command line says end it with click's exit code, and its hint."""
    try:
        yield
    except VartokError as error:
        raise typer.BadParameter(str(error)) from None


def duration(seconds: float) -> str:
    """A time as people read it: minutes and seconds, hours before them where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def explain(error: Exception) -> str:
    """An error as one line: of the system's, which file and what."""
    if isinstance(error, OSError):
        where = f"{shown(error.filename)}: " if error.filename else ""
        return where + (error.strerror or str(error) or type(error).__name__)
    return str(error) or "not enough memory"


def _open_closed_streams() -> None:
    """Where whoever started us closed a standard stream: nothing to read, nowhere to write."""
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull)  # noqa: SIM115 - to read: what is written fails, and is not lost
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _quieten_libraries(debug: bool, *, notes: bool) -> None:
    """Vartok's own warnings are lines on stderr; other libraries' are for developers."""
    if not debug:
        logging.lastResort = logging.NullHandler()
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", VartokWarning)

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if notes:
            say(f"note: {message}")

    warnings.showwarning = show
