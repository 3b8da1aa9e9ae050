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
"""Exit codes. Click uses 2 for arguments that are wrong whatever the files hold.

A file that is missing, exists already, or cannot be read or written is a failure: 1, or 3 if other inputs
were done or skipped. Every command reports a missing file, folder or checkpoint as "NAME: no such file or
folder".
"""

STREAMS = {"<stdout>": "stdout", "<stdin>": "standard input"}
"""Names of the standard streams in messages, by their names in Python."""

option_names: ContextVar[Mapping[str, str]] = ContextVar("option_names", default=MappingProxyType({}))
"""Options of the running command, by the library's parameters: {"overwrite": "--force", ...}."""


def say(message: str) -> None:
    """Print a message on stderr, as one line that begins with "vartok: "."""
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
    """Return an error as one line: its message, and after a colon its hint, if any.

    Library parameters in backticks become options: `max_pixels` is shown as --max-pixels. The hint is left
    out if the command lacks an option that it names. An OSError is shown as its file's name and the reason.
    """
    if isinstance(error, OSError):
        name = str(error.filename or "")
        where = f"{STREAMS.get(name, name)}: " if name else ""
        return where + os_error_reason(error)
    if isinstance(error, MemoryError):
        return str(error) or "not enough memory"
    text = with_options(str(error))
    hint = getattr(error, "hint", None)
    if not hint or not _parameters(hint) <= option_names.get().keys():
        return text
    return f"{text}: {with_options(hint)}"


def _parameters(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_]+)`", text))


def with_options(text: str) -> str:
    """Return text with parameters in backticks replaced by options; other names only lose the backticks."""
    names = option_names.get()
    return re.sub(r"`([a-z_]+)`", lambda found: names.get(found[1], found[1]), text)


def duration(seconds: float) -> str:
    """Format seconds as m:ss, or h:mm:ss from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
