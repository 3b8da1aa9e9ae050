"""Turn the INPUT arguments and -o into names of files and folders, or standard streams."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import typer

from vartok.errors import OutputError, SourceError, printable
from vartok.files import named_errors

if TYPE_CHECKING:
    from .options import InputOptions

STDIO = "-"


def output_name(name: str) -> str:
    """Return the name of an output after checking it; Typer's parser for options and arguments of outputs.

    Raises:
        typer.BadParameter: the name is empty, or a URL.
    """
    from vartok.errors import printable
    from vartok.sources import is_url

    if not name:
        raise typer.BadParameter("the name is empty")
    if is_url(name):
        raise typer.BadParameter(f"{printable(name)} is a URL: outputs are files and folders, not URLs")
    return name


def output_path(name: str) -> Path:
    """Return the path of an output after checking it as `output_name` does."""
    return Path(output_name(name))


def protect_inputs(output: str | Path, inputs: list[str]) -> None:
    """Check that an output replaces no input.

    Raises:
        typer.BadParameter: it is one of the inputs.
    """
    if os.path.realpath(output) in map(os.path.realpath, inputs):
        raise typer.BadParameter(f"{printable(output)} is an input, which would be lost")


def check_output(path: Path, suffixes: tuple[str, ...], option: str, *, force: bool) -> None:
    """Check the path of a file to write, before any work is done for it.

    Args:
        path: the path.
        suffixes: suffixes that it may have, in lower case.
        option: the option that named it, or the argument.
        force: replace a file that exists.

    Raises:
        typer.BadParameter: the path has none of the suffixes.
        OutputError: the file exists, and `force` is False; it is a folder or a device; or its folder cannot
            be written.
    """
    from vartok.operations.outputs import check_folder

    if path.suffix.lower() not in suffixes:
        raise typer.BadParameter(f"{option} {printable(path)}: the name must end in {', '.join(suffixes)}")
    if os.path.lexists(path):
        if not force:
            raise OutputError(f"{printable(path)} exists", hint="set `overwrite` to replace it")
        if not path.is_file():
            raise OutputError(f"{printable(path)} is not a regular file, and is not replaced")
    check_folder(path.parent)


def parse_inputs(names: list[str] | None, options: InputOptions) -> list[str | BinaryIO]:
    """Return the inputs that arguments and --files-from name; stdin if neither is given.

    Args:
        names: the arguments.
        options: --files-from and -0.

    Returns:
        The name of every input; for "-" the binary stream of stdin.

    Raises:
        typer.BadParameter: a name is empty, stdin is named twice, or the only input is a terminal; or -0 is
            missing, or is given without --files-from.
        OSError: the file of --files-from cannot be read.
    """
    given = list(names or ())
    if options.null and options.files_from is None:
        raise typer.BadParameter("-0 needs --files-from")
    if options.files_from is not None:
        given += _read_list(options.files_from, options.null)
    elif not given:
        if sys.stdin.isatty():
            raise typer.BadParameter("no INPUT: name files, or pipe one in")
        given = [STDIO]
    if "" in given:
        raise typer.BadParameter("the name of an input is empty")
    if given.count(STDIO) > (options.files_from != STDIO):
        raise typer.BadParameter("standard input is named twice, but can be read only once")
    return [sys.stdin.buffer if name == STDIO else name for name in given]


def parse_output(output: str | None, inputs: list[str | BinaryIO], *, binary: str) -> str | BinaryIO | None:
    """Return the output that -o names, stdout for "-".

    Without -o: stdout if stdin is the only input, else None.

    Args:
        output: value of -o, or None.
        inputs: the inputs, as `parse_inputs` returns them.
        binary: advice for the error if stdout is a terminal, such as "use -o"; "" if the output is text,
            which may go there.

    Raises:
        typer.BadParameter: binary data would go to a terminal.
    """
    if output is None and len(inputs) == 1 and not isinstance(inputs[0], str):
        output = STDIO
    if output != STDIO:
        return output
    if binary and sys.stdout.isatty():
        raise typer.BadParameter(f"the output is binary, but stdout is a terminal: {binary}")
    return sys.stdout.buffer


def parse_keys(values: list[str] | None) -> list[str] | None:
    """Return the keys that --keys names; None without the option.

    Args:
        values: keys, divided by commas, or the name of a list of keys (.txt), for each use of the option.

    Raises:
        typer.BadParameter: a key is empty, or a list is not text.
        OSError: a list cannot be read.
    """
    from vartok.suffixes import LISTS

    if values is None:
        return None
    keys: list[str] = []
    for value in values:
        keys += _read_list(value, False, "--keys") if value.lower().endswith(LISTS) else value.split(",")
    if "" in keys:
        raise typer.BadParameter("a key in --keys is empty")
    return keys


def _read_list(source: str, null: bool, option: str = "--files-from") -> list[str]:
    from vartok.sources.lists import parse_list

    if not source:
        raise typer.BadParameter(f"the name in {option} is empty")
    with named_errors("<stdin>" if source == STDIO else source):
        data = sys.stdin.buffer.read() if source == STDIO else Path(source).read_bytes()
    try:
        names = parse_list(data, null=null)
    except SourceError as error:
        raise typer.BadParameter(f"{option} {printable(source)}: {error}") from None
    if not null and any("\0" in name for name in names):
        raise typer.BadParameter(f"{option} {printable(source)}: its names end in NUL, so use -0")
    return names
