"""The files that a command line names, and the standard streams."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import typer

from vartok.errors import printable
from vartok.files import os_error_reason

if TYPE_CHECKING:
    from vartok.tokens import ImageTokens

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


class PictureFile:
    """A picture to evaluate."""

    def __init__(self, place: str | None) -> None:
        self.place = place

    def __str__(self) -> str:
        return printable(self.place or "standard input")

    def read(self) -> Path | bytes:
        """Return the picture's path, or the bytes of standard input."""
        return Path(self.place) if self.place else sys.stdin.buffer.read()


def gather_pictures(
    names: list[str] | None, *, recursive: bool, files_from: str | None, null: bool, debug: bool
) -> list[PictureFile]:
    """Return the pictures that a command line names."""
    from vartok.images import configure_pillow
    from vartok.operations import find_inputs

    from .options import InputOptions

    configure_pillow(quiet=not debug)
    given = parse_inputs(names, InputOptions(recursive=recursive, files_from=files_from, null=null))
    return [PictureFile(item.place) for item in find_inputs(given, recursive=recursive)]


TOKEN_SUFFIXES = (".npz", ".tokens.json", ".jsonl")
Input = Any


def gather(names: list[str], **_: Any) -> list[Input]:
    """Return the token files that a command line names."""
    from vartok.operations import find_inputs
    from vartok.operations.inputs import TOKENS

    return find_inputs(names, TOKENS, recursive=True)


def read_inputs(item: Input, report: Any) -> Iterator[ImageTokens]:
    """Yield the tokens of a file; errors are reported."""
    from vartok.operations import read_input

    for tokens in read_input(item):
        if isinstance(tokens, Exception):
            report.fail(str(item), tokens)
        else:
            yield tokens


def write_file(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Write a file."""
    from vartok.files import write_bytes

    write_bytes(path, data, overwrite=overwrite)
