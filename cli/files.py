"""The files that a command line names, and the standard streams."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import typer

from vartok.errors import printable
from vartok.files import os_error_reason

if TYPE_CHECKING:
    from .options import InputOptions

STDIO = "-"


def parse_inputs(names: list[str] | None, options: InputOptions) -> list[str | BinaryIO]:
    """Return the inputs that arguments and --files-from name; standard input where they name none.

    Raises:
        typer.BadParameter: nothing is named and standard input is a terminal, an empty name, or standard
            input named twice.
        OSError: the list cannot be read.
    """
    given = list(names or ())
    if options.null and options.files_from is None:
        raise typer.BadParameter("-0 is for --files-from")
    if options.files_from is not None:
        given += _read_list(options.files_from, options.null)
    elif not given:
        if sys.stdin.isatty():
            raise typer.BadParameter("no INPUT: name files, or pipe one in")
        given = [STDIO]
    if "" in given:
        raise typer.BadParameter("an INPUT is empty")
    if given.count(STDIO) > (options.files_from != STDIO):
        raise typer.BadParameter("standard input can be read only once")
    return [sys.stdin.buffer if name == STDIO else name for name in given]


def parse_output(output: str | None, inputs: list[str | BinaryIO], *, binary: str) -> str | BinaryIO | None:
    """Return the output that -o names: stdout for "-", and by default where standard input is the one input.

    Args:
        output: value of -o.
        inputs: the inputs, as `parse_inputs` returns them.
        binary: the cure in the message that a terminal takes no binary data; "" where the data is text.

    Raises:
        typer.BadParameter: stdout is a terminal, and the data is binary.
    """
    if output is None and len(inputs) == 1 and not isinstance(inputs[0], str):
        output = STDIO
    if output != STDIO:
        return output
    if binary and sys.stdout.isatty():
        raise typer.BadParameter(f"the output is binary, and stdout a terminal: {binary}")
    return sys.stdout.buffer


def _read_list(source: str, null: bool) -> list[str]:
    try:
        data = sys.stdin.buffer.read() if source == STDIO else Path(source).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"--files-from {printable(source)}: {os_error_reason(error)}") from None
    if b"\0" in data and not null:
        raise typer.BadParameter(f"--files-from {printable(source)}: its names end with NUL, so use -0")
    names = data.split(b"\0") if null else data.splitlines()
    return [os.fsdecode(name) for name in names if name]
