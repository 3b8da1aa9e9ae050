"""`vartok dataset export`: writes a data set in the formats of other repositories."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from vartok.errors import counted, printable
from vartok.stopping import as_exceptions

from .command import command
from .display import Display
from .files import output_path
from .messages import SOME_FAILED, print_result, say
from .options import ForceOption, JsonOption, MessageOptions


@command
def export(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the data set.")],
    dest: Annotated[
        Path, typer.Argument(metavar="DEST", parser=output_path, help="Folder to write; it appears whole.")
    ],
    to: Annotated[
        Literal["npy", "jsonl", "bin", "llamagen"],
        typer.Option(
            "--to",
            help="npy: tokens.npy [N, L] and labels.npy; jsonl: lines of class_id and tokens, for TiTok and "
            "RAR; bin: train.bin, for nanoGPT; llamagen: two files a picture, for LlamaGen.",
        ),
    ],
    messages: MessageOptions,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export a data set to the files that other training loops read.

    DEST also gets metadata.json, with the checkpoint and the schedule, and rows.jsonl, with the
    key, size, label and texts of each row. Pictures without a label are left out by jsonl and
    llamagen, and counted; the exit code is then 3.

    Examples:
      vartok dataset export tokens arrays --to npy
      vartok dataset export tokens imagenet_code_flip --to llamagen
    """
    from vartok.dataset import export

    folder.stat()  # raises FileNotFoundError for a missing folder, whose message all commands share
    display = Display(quiet=messages.quiet)

    def show(done: int, rows: int) -> None:
        display.update(f"{done:,} of {counted(rows, 'row')}, {done / max(1, rows):.0%}")

    with as_exceptions(), contextlib.closing(display):
        summary = export(folder, dest, to, overwrite=force, progress=show)
    if as_json:
        print_result(json.dumps(vars(summary)))
    elif not messages.quiet:
        pictures = counted(summary.pictures, "picture")
        say(f"exported {counted(summary.rows, 'row')} of {pictures} to {printable(dest)}")
    if summary.left_out:
        raise typer.Exit(SOME_FAILED)
