"""`vartok inspect-codebook --code N`: shows one code, its neighbours, and where it is used."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vartok.errors import VartokError, counted, printable
from vartok.files import write_bytes

from .files import check_output, output_path
from .messages import print_result, say
from .tables import new_table, print_tables

if TYPE_CHECKING:
    from rich.table import Table

    from vartok.codebook import CodeReport
    from vartok.tokenizer import Tokenizer
    from vartok.usage import CodeUses


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeOptions:
    """Options for one code."""

    code: Annotated[
        int | None,
        typer.Option(
            "--code",
            metavar="N",
            min=0,
            help="Show this code instead: its nearest codes, and where TOKENS have it.",
        ),
    ] = None
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            metavar="OUT.png",
            parser=output_path,
            help="With --code: draw the code alone, in one cell of each scale, and where it is used.",
        ),
    ] = None

    def check(self, *, force: bool) -> None:
        """Check the options.

        Raises:
            typer.BadParameter, OutputError: there is no code; or see `check_output`.
        """
        if self.picture is None:
            return
        if self.code is None:
            raise typer.BadParameter("--picture is a picture of one code: set --code")
        check_output(self.picture, (".png",), "--picture", force=force)


def show_code(
    code: int,
    picture: Path | None,
    tokenizer: Tokenizer,
    find_uses: Callable[[], CodeUses] | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Print a code, and draw it.

    Args:
        code: its index.
        picture: path of its picture, or None.
        tokenizer: the tokenizer.
        find_uses: finds where tokens have it; None without tokens.
        force: replace the picture if it exists.
        as_json: print one JSON object instead of tables.

    Raises:
        typer.BadParameter: the codebook has no such code.
    """
    from vartok.codebook import describe_code

    try:
        report = describe_code(tokenizer.codebook.cpu().numpy(), code)
    except VartokError as error:
        raise typer.BadParameter(f"--code: {error}") from None
    uses = None if find_uses is None else find_uses()
    if as_json:
        print_result(json.dumps(_as_json(tokenizer, report, uses)))
    else:
        print_tables(_code_table(report, tokenizer.name), *([] if uses is None else [_uses_table(uses)]))
        if uses is not None:
            print_result(f"\n{_summary(uses)}")
    if picture is not None:
        from vartok.code_picture import draw_code_sheet
        from vartok.images import encode_picture

        drawn = draw_code_sheet(tokenizer, report, uses)
        write_bytes(picture, encode_picture(drawn, "png"), overwrite=force)
        if not as_json:
            say(f"drew code {code} in {printable(picture)}")


def _as_json(tokenizer: Tokenizer, report: CodeReport, uses: CodeUses | None) -> dict[str, Any]:
    told = uses and {**dataclasses.asdict(uses), "maps": [count.tolist() for count in uses.maps]}
    return {"model": dataclasses.asdict(tokenizer.info), **dataclasses.asdict(report), "uses": told}


def _code_table(report: CodeReport, checkpoint: str) -> Table:
    table = new_table(f"Code {report.code} of {printable(checkpoint)}", "", "")
    table.add_row("norm", f"{report.norm:#.3g}")
    for n, (code, distance) in enumerate(report.neighbours):
        table.add_row("nearest codes" if n == 0 else "", f"{code}, distance {distance:#.3g}")
    return table


def _uses_table(uses: CodeUses) -> Table:
    table = new_table("Where tokens have it", "scale", "grid", "tokens", "uses", "share")
    for number, (tokens, used) in enumerate(uses.scales, 1):
        grid = "x".join(map(str, uses.schedule[number - 1])) if uses.mapped == uses.images else ""
        table.add_row(str(number), grid, f"{tokens:,}", f"{used:,}", f"{used / tokens:.2%}")
    return table


def _summary(uses: CodeUses) -> str:
    told = f"in {uses.with_code:,} of {counted(uses.images, 'picture')}"
    if not uses.top:
        return told
    return f"{told}, most often in " + ", ".join(f"{printable(name)} ({n:,})" for name, n in uses.top)
