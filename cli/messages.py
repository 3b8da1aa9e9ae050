"""Messages on stderr, the wording of errors, and exit codes."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

from vartok.errors import printable
from vartok.files import os_error_reason

FAILED, SOME_FAILED, INTERRUPTED, PIPE_CLOSED, TERMINATED = 1, 3, 130, 141, 143

STREAMS = {"<stdout>": "stdout", "<stdin>": "standard input"}
"""Names of the standard streams in messages, by Python's own names of them."""

option_names: ContextVar[Mapping[str, str]] = ContextVar("option_names", default=MappingProxyType({}))
"""The running command's options, by the library parameters that they set: {"overwrite": "--force", ...}."""


def say(message: str) -> None:
    """Print one line on stderr."""
    print(f"vartok: {printable(message)}", file=sys.stderr, flush=True)


def explain(error: BaseException) -> str:
    """Return an error as one line: the message, and the hint where the command has the options that it names.

    Names of library parameters in backticks become the command's options: `max_pixels` is --max-pixels.
    """
    if isinstance(error, OSError):
        name = str(error.filename or "")
        where = f"{STREAMS.get(name, name)}: " if name else ""
        return where + os_error_reason(error)
    if isinstance(error, MemoryError):
        return str(error) or "not enough memory"
    text = _with_options(str(error))
    hint = getattr(error, "hint", None)
    if not hint or not _parameters(hint) <= option_names.get().keys():
        return text
    return f"{text}: {_with_options(hint)}"


def _parameters(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_]+)`", text))


def _with_options(text: str) -> str:
    """Replace parameters in backticks by options; those that the command has not stay as plain words."""
    names = option_names.get()
    return re.sub(r"`([a-z_]+)`", lambda found: names.get(found[1], found[1]), text)


def duration(seconds: float) -> str:
    """Return a time as minutes:seconds, with hours before them where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
