"""The frame of every command: it expands options, prints an error as one line, and sets the exit code."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import typer

from vartok.errors import ArgumentError, VartokError, VartokWarning

from .messages import FAILED, INTERRUPTED, PIPE_CLOSED, TERMINATED, explain, option_names, say
from .options import expand_options

PARAMETERS = {"force": "overwrite", "as_json": "json"}
"""Parameters of commands that the library calls by another name, and that name."""


class Frame:
    """Mixin of commands and groups: a failed write of a help page or of the version sets the exit code."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Parse arguments; --help and --version print and exit here."""
        with _exit_codes(debug=False):
            try:
                return super().make_context(*args, **options)  # type: ignore[misc]
            except OSError as error:
                error.filename = error.filename or "<stdout>"  # Click writes help without naming the stream
                raise


class Group(Frame, typer.core.TyperGroup):
    """A group of commands."""


class Command(Frame, typer.core.TyperCommand):
    """A command that shows no names of Python's exceptions and no braces in its usage line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments; remove the exception's name from the message of an invalid one."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line: "DATA...", where Typer would write "{DATA...}"."""
        pieces = super().collect_usage_pieces(ctx)
        return [re.sub(r"\{(.*?)(\.\.\.)?\}", r"\1", piece) for piece in pieces]


class Terminated(BaseException):
    """SIGTERM arrived."""


def command(run: Callable[..., None]) -> Callable[..., None]:
    """Turn a function into a command: expand its dataclasses of options, and handle its errors.

    An error becomes one line on stderr and an exit code; with --debug, a traceback.
    """
    run = expand_options(run)
    options = _options(run)

    @functools.wraps(run)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        debug = bool(kwargs.get("debug"))
        _open_closed_streams()
        _quieten_libraries(debug, notes=not kwargs.get("quiet"))
        token = option_names.set(options)
        try:
            with _exit_codes(debug=debug), _sigterm():
                run(*args, **kwargs)
        finally:
            option_names.reset(token)

    # \b keeps Click from rewrapping the lines below it.
    wrapped.__doc__ = (run.__doc__ or "").replace("    Examples:", "    \b\n    Examples:")
    return wrapped


@contextlib.contextmanager
def _exit_codes(*, debug: bool) -> Iterator[None]:
    """Turn errors, Ctrl-C and SIGTERM into the exit codes of `messages`, and errors into one line.

    Raises:
        typer.Exit: the code to exit with.
        typer.BadParameter: arguments that are wrong, which exits with 2.
    """
    try:
        yield
    except BrokenPipeError:
        # Python flushes stdout once more when it exits, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(PIPE_CLOSED) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except Terminated:
        say("terminated")
        raise typer.Exit(TERMINATED) from None
    except (VartokError, OSError, MemoryError) as error:
        if debug:
            raise
        if isinstance(error, ArgumentError):
            raise typer.BadParameter(explain(error)) from None
        say(explain(error))
        raise typer.Exit(FAILED) from None


def _options(run: Callable[..., None]) -> dict[str, str]:
    """Map the library's parameters to a command's options: {"overwrite": "--force", ...}.

    An option that has several names is given by its first long one.
    """
    found = {}
    for name, parameter in inspect.signature(run, eval_str=True).parameters.items():
        for value in getattr(parameter.annotation, "__metadata__", ()):
            if isinstance(value, typer.models.OptionInfo):
                long = [text for text in value.param_decls or () if text.startswith("--")]
                option = (long or [f"--{name.replace('_', '-')}"])[0].partition("/")[0]
                found[PARAMETERS.get(name, name)] = option
    return found


@contextlib.contextmanager
def _sigterm() -> Iterator[None]:
    """Raise Terminated when SIGTERM arrives, in the main thread; other threads get no signals."""

    def end(*_: object) -> NoReturn:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _open_closed_streams() -> None:
    """Replace standard streams that the parent process closed by the null device."""
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull)  # noqa: SIM115 - for reading, so that writing fails
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _quieten_libraries(debug: bool, *, notes: bool) -> None:
    """Print vartok's warnings as notes on stderr; hide those of other libraries unless debugging."""
    if not debug:
        logging.lastResort = logging.NullHandler()
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", VartokWarning)

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if notes:
            say(f"note: {message}")

    warnings.showwarning = show
