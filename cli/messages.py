"""Messages on stderr, results on stdout, the wording of errors, and exit codes."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

from vartok.errors import printable
from vartok.files import os_error_reason

FAILED, SOME_FAILED, INTERRUPTED, PIPE_CLOSED, TERMINATED = 1, 3, 130, 141, 143
"""Exit codes. Click's usage errors have 2: the user has to change the arguments, whatever the files hold.

A file that is missing, exists already, or cannot be read or written is a failure: 1, or 3 if other inputs
were done. Every command reports a missing file, folder or checkpoint as "NAME: no such file or folder".
"""

STREAMS = {"<stdout>": "stdout", "<stdin>": "standard input"}
"""Python's names of the standard streams, and what messages call them."""

option_names: ContextVar[Mapping[str, str]] = ContextVar("option_names", default=MappingProxyType({}))
"""Library parameters that the running command has options for: {"overwrite": "--force", ...}."""


def say(message: str) -> None:
    """Print one line on stderr."""
    print(f"vartok: {printable(message)}", file=sys.stderr, flush=True)


def print_result(text: str) -> None:
    """Print a result on stdout, and flush it, so that the reader of a pipe has it at once.

    Raises:
        OSError: stdout cannot be written; `filename` is "<stdout>".
    """
    try:
        print(text, flush=True)
    except OSError as error:
        error.filename = "<stdout>"
        raise


def explain(error: BaseException) -> str:
    """Return an error as one line: its message, a colon, and its hint.

    Library parameters in backticks become options: `max_pixels` is shown as --max-pixels. The hint is left
    out if the command lacks an option that it names.
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
    """Replace parameters in backticks by options; without an option, only the backticks are removed."""
    names = option_names.get()
    return re.sub(r"`([a-z_]+)`", lambda found: names.get(found[1], found[1]), text)


def duration(seconds: float) -> str:
    """Format seconds as m:ss, or h:mm:ss from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
