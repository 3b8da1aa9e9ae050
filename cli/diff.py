"""`vartok diff`: tells which tokens differ."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vartok.errors import VartokError, counted, printable
from vartok.files import write_bytes

from .command import command
from .files import STDIO, check_output, output_path, protect_inputs
from .messages import print_result, say
from .options import (
    DebugOption,
    DeviceOption,
    ForceOption,
    JsonOption,
    RowOptions,
    WeightsOption,
    warn_if_unused,
)
from .report import Report
from .tables import new_table, print_tables

if TYPE_CHECKING:
    from rich.table import Table

    from vartok.operations.diff import TokensDiff

DIFFER, TROUBLE = 1, 2
"""Exit codes, as those of `diff` and `cmp`: 2 also for files that cannot be read or compared."""


@functools.partial(command, failed=TROUBLE)
def diff(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A", help="Token file, array (.npy), data set, folder of these, or picture; - for stdin."
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT.png",
            parser=output_path,
            help="Draw each scale's grid: grey where tokens are equal, red where they differ.",
        ),
    ] = None,
    *,
    rows: RowOptions,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show which tokens differ, for each scale.

    Two token files are compared whatever their names; data sets, jsonl files, arrays and folders
    by keys. A picture is encoded with the settings of the tokens that it is compared with. The
    exit code is that of `diff`: 0 if all tokens are equal, 1 if some differ or have no
    counterpart, 2 if something cannot be read or compared.

    Examples:
      vartok diff a.tokens.npz b.tokens.npz
      vartok diff img.tokens.npz img.png
      vartok diff DATASET OTHER --json
      vartok diff DATASET OTHER -o differences.png
    """
    from vartok.operations.diff import diff_tokens, is_picture

    _check(a, b, output, force)
    report = Report(None, verb="compared", quiet=True, debug=debug)

    def tell(name: str, error: VartokError | None) -> None:
        if error is None:
            report.succeed(name, "compared")
        else:
            report.fail(name, error)

    sources = [sys.stdin.buffer if name == STDIO else name for name in (a, b)]
    with report:
        found = diff_tokens(*sources, **rows.arguments(), weights=weights, device=device, progress=tell)
    if not any(map(is_picture, sources)):
        warn_if_unused("no picture was encoded", weights=weights, device=device)
    if found.sources is not None:
        a_source, b_source = (printable(source, 200) for source in found.sources)
        say(f"note: the tokens are of two pictures, by their sources: {a_source} and {b_source}")
    if as_json:
        print_result(json.dumps(_as_json(found)))
    else:
        print_tables(_table(found))
        print_result(f"\n{_summary(found)}")
    if output is not None and found.pictures:
        _draw(output, found, (a, b), force=force, quiet=as_json)
    if not found.equal:
        raise typer.Exit(TROUBLE if found.failed else DIFFER)


def _check(a: str, b: str, output: Path | None, force: bool) -> None:
    """Check the arguments.

    Raises:
        typer.BadParameter: a name is empty, stdin is named twice, or `output` is an input.
        typer.BadParameter, OutputError: see `check_output`.
    """
    if "" in (a, b):
        raise typer.BadParameter("the name of an input is empty")
    if a == b == STDIO:
        raise typer.BadParameter("standard input is named twice, but can be read only once")
    if output is not None:
        protect_inputs(output, [a, b])
        check_output(output, (".png",), "-o", force=force)


def _draw(output: Path, found: TokensDiff, names: tuple[str, str], *, force: bool, quiet: bool) -> None:
    from vartok.images import encode_picture
    from vartok.operations.diff_maps import draw_diff

    write_bytes(output, encode_picture(draw_diff(found, names), "png"), overwrite=force)
    if found.uncharted:
        say(f"note: {counted(found.uncharted, 'picture')} of further schedules are not drawn")
    if not quiet:
        say(f"drew {counted(found.pictures - found.uncharted, 'picture')} in {printable(output)}")


def _as_json(found: TokensDiff) -> dict[str, Any]:
    schedule = next(iter(found.maps), None) if len(found.maps) == 1 else None
    return {
        "equal": found.equal,
        "pictures": found.pictures,
        "differing": found.differing,
        "only_a": found.only[0],
        "only_b": found.only[1],
        "failed": found.failed,
        "schedule": schedule,
        "scales": [scale._asdict() for scale in found.scales],
    }


def _table(found: TokensDiff) -> Table:
    table = new_table("Tokens that differ", "scale", "grid", "tokens", "differ", "share")
    grids = next(iter(found.maps)) if len(found.maps) == 1 else ()
    total = [sum(values) for values in zip(*found.scales, strict=True)] or [0, 0]
    for number, scale in enumerate(found.scales, 1):
        grid = "x".join(map(str, grids[number - 1])) if grids else ""
        table.add_row(str(number), grid, *_cells(*scale))
    table.add_section()
    table.add_row("all", "", *_cells(*total))
    return table


def _summary(found: TokensDiff) -> str:
    told = [f"{counted(found.pictures, 'picture')} compared, {found.differing:,} with other tokens"]
    for name, n, first in zip("AB", found.only, found.first_only, strict=True):
        if first is not None:
            told.append(f"{n:,} only in {name} (the first: {printable(first, 100)})")
    return "; ".join(told)


def _cells(tokens: int, differing: int) -> list[str]:
    return [f"{tokens:,}", f"{differing:,}", f"{differing / max(tokens, 1):.1%}"]
