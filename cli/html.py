"""The option --html, and the writing of HTML reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vartok.errors import printable
from vartok.files import write_bytes

from .files import check_output, output_path
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
        typer.BadParameter, OutputError: see `check_output`.
    """
    if path:
        check_output(path, (".html", ".htm"), "--html", force=force)


def write_html(path: Path, page: str, *, force: bool, quiet: bool) -> None:
    """Write a report, whole or not at all, and say so unless `quiet`.

    Raises:
        OutputError: the file cannot be written.
    """
    write_bytes(path, page.encode(), overwrite=force)
    if not quiet:
        say(f"wrote {printable(path)}; open it in a browser")
