"""The option --html, and the writing of HTML reports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from vartok.errors import OutputError, printable
from vartok.files import write_bytes

from .files import output_path
from .messages import say

HtmlOption = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="OUT.html",
        parser=output_path,
        help="Also write a page for a browser: one file, with pictures, charts and sortable tables.",
    ),
]


def check_html(path: Path | None, *, force: bool) -> None:
    """Check the path of a report, before anything is computed; None passes.

    Raises:
        typer.BadParameter: the path does not end in .html.
        OutputError: the file exists, and `force` is False; it is a folder or a device; or its folder cannot
            be written.
    """
    from vartok.operations.outputs import check_folder

    if path and path.suffix.lower() not in (".html", ".htm"):
        raise typer.BadParameter(f"--html {printable(path)}: the name must end in .html")
    if path and os.path.lexists(path) and not force:
        raise OutputError(f"{printable(path)} exists", hint="set `overwrite` to replace it")
    if path and os.path.lexists(path) and not path.is_file():
        raise OutputError(f"{printable(path)} is not a regular file, and is not replaced")
    if path:
        check_folder(path.parent)


def write_html(path: Path, page: str, *, force: bool, quiet: bool) -> None:
    """Write a report, whole or not at all, and say so unless `quiet`.

    Raises:
        OutputError: the file cannot be written.
    """
    write_bytes(path, page.encode(), overwrite=force)
    if not quiet:
        say(f"wrote {printable(path)}; open it in a browser")
