"""The frame of every command: expand its options, set its exit code, and print an error as one line."""

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
"""Library parameters whose options have another name, by the command's parameter."""


class Command(typer.core.TyperCommand):
    """A command whose usage line and messages leave out what only developers understand."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments; the name of Python's exception is left out of a message."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line, such as "DATA...", without braces around required ones."""
        pieces = super().collect_usage_pieces(ctx)
        return [re.sub(r"\{(.*?)(\.\.\.)?\}", r"\1", piece) for piece in pieces]


class Terminated(BaseException):
    """SIGTERM arrived."""


def command(run: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function: expand its options, and end it in an exit code.

    Errors become one line on stderr, without a traceback unless --debug is set.
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
            with _sigterm():
                run(*args, **kwargs)
                sys.stdout.flush()
        except BrokenPipeError:
            # What is still buffered would raise again when Python exits.
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
        finally:
            option_names.reset(token)

    # \b: Click does not rewrap the lines below.
    wrapped.__doc__ = (run.__doc__ or "").replace("    Examples:", "    \b\n    Examples:")
    return wrapped


def _options(run: Callable[..., None]) -> dict[str, str]:
    """Return the first long name of every option, by the library parameter that it sets."""
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
    """Raise Terminated where SIGTERM arrives."""

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
    """Replace closed standard streams by the null device."""
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull)  # noqa: SIM115 - for reading: writing fails, and loses nothing
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _quieten_libraries(debug: bool, *, notes: bool) -> None:
    """Show vartok's own warnings as notes on stderr, and other libraries' only to developers."""
    if not debug:
        logging.lastResort = logging.NullHandler()
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", VartokWarning)

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if notes:
            say(f"note: {message}")

    warnings.showwarning = show
