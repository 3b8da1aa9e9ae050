"""`vartok inspect-codebook`: shows statistics of a codebook, and of its usage by token files."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from vartok.errors import VartokError, counted, printable
from vartok.files import write_bytes

from .command import command
from .files import check_output, output_path
from .html import HtmlOption, check_html, write_html
from .inspect_code import CodeOptions, show_code
from .messages import print_result, say
from .options import (
    DebugOption,
    DeviceOption,
    ForceOption,
    JsonOption,
    RowOptions,
    WeightsOption,
    load_tokenizer,
)
from .report import Report
from .tables import NARROW, new_table, print_tables, table_width

if TYPE_CHECKING:
    from rich.table import Table

    from vartok.codebook import CodebookReport, UsageReport
    from vartok.tokenizer import Tokenizer
    from vartok.usage import CodeUses, TokenUsage

MAX_BARS = 64
"""Largest number of principal components that are drawn as bars, of one character each."""


@command
def inspect_codebook(
    tokens: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TOKENS",
            help="Token files, arrays (.npy), folders, data sets whose codes are counted; - for stdin.",
        ),
    ] = None,
    usage: Annotated[
        bool,
        typer.Option("--usage", help="Fail without TOKENS. TOKENS are counted with or without --usage."),
    ] = False,
    *,
    rows: RowOptions,
    atlas: Annotated[
        Path | None,
        typer.Option(
            "--atlas",
            metavar="OUT.png",
            parser=output_path,
            help="Write a picture of all codes, each decoded alone; similar codes are neighbours.",
        ),
    ] = None,
    numbers: Annotated[
        bool, typer.Option("--numbers", help="With --atlas: write the number of every code below it.")
    ] = False,
    html: HtmlOption = None,
    one: CodeOptions,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show statistics of a codebook and of its usage.

    Print norms, distances, duplicates and dimensions of the codes; with TOKENS also coverage and
    perplexity of every scale. In a picture the codes of all scales are summed, so a code looks
    different there than in the atlas.

    Examples:
      vartok inspect-codebook
      vartok inspect-codebook --usage tokens/ more/*.npz
      vartok inspect-codebook --atlas codes.png --numbers
      vartok inspect-codebook tokens/ --html codes.html
      vartok inspect-codebook tokens/ --code 1234 --picture code.png
    """
    named = tokens or []
    if usage and not named:
        raise typer.BadParameter("--usage needs TOKENS: name token files, folders or data sets")
    if "" in named:
        raise typer.BadParameter("the name of a token file is empty")
    selected = rows.arguments()
    if not named and any(value is not None for value in selected.values()):
        raise typer.BadParameter(
            "--keys, --limit and --schedule need TOKENS: name files or folders of tokens"
        )
    if numbers and atlas is None:
        raise typer.BadParameter("--numbers is only for the atlas: set --atlas")
    if one.code is not None and (atlas or html):
        raise typer.BadParameter("--code shows one code: leave --atlas and --html out")
    one.check(force=force)
    if atlas:
        check_output(atlas, (".png",), "--atlas", force=force)
    check_html(html, force=force)
    report = Report(None, verb="counted", quiet=True, debug=debug)
    tokenizer = load_tokenizer(weights, device, "float32")
    if one.code is not None:
        find = _uses_finder(one.code, named, tokenizer, report, selected) if named else None
        with report:
            show_code(one.code, one.picture, tokenizer, find, force=force, as_json=as_json)
            report.finish()
        return
    from vartok.codebook import describe_codebook

    codebook = describe_codebook(tokenizer.codebook.cpu().numpy())
    with report:
        used = _count_usage(named, tokenizer, report, selected) if named else None
    if as_json:
        print_result(json.dumps(_as_json(tokenizer, codebook, used)))
    else:
        print_tables(_codebook_table(tokenizer, codebook), *(_usage_tables(used) if used else ()))
    if atlas:
        _draw_atlas(atlas, tokenizer, force, numbers=numbers)
        if not as_json:
            say(f"drew {counted(tokenizer.config.vocab_size, 'code')} in {printable(atlas)}")
    if html:
        from vartok.reports import codebook_page

        write_html(html, codebook_page(tokenizer, codebook, used), force=force, quiet=as_json)
    report.finish()


def _draw_atlas(atlas: Path, tokenizer: Tokenizer, force: bool, *, numbers: bool) -> None:
    from vartok.atlas import draw_atlas, draw_numbered_atlas
    from vartok.images import encode_picture

    drawn = (draw_numbered_atlas if numbers else draw_atlas)(tokenizer)
    write_bytes(atlas, encode_picture(drawn, "png"), overwrite=force)


def _count_usage(
    names: list[str], tokenizer: Tokenizer, report: Report, selected: dict[str, Any]
) -> TokenUsage:
    """Return the usage of the codes by token files; files that cannot be counted are failures of `report`.

    Raises:
        typer.Exit: no file could be counted, and the reasons have been printed.
        VartokError: there are no tokens to count.
    """
    from vartok.usage import count_usage

    try:
        return count_usage(_sources(names), tokenizer, **selected, progress=_progress(report))
    except VartokError:
        report.finish()  # exits if a failure was printed: it explains why there are no tokens
        raise


def _uses_finder(
    code: int, names: list[str], tokenizer: Tokenizer, report: Report, selected: dict[str, Any]
) -> Callable[[], CodeUses]:
    """Return a function that finds where token files have a code; see `_count_usage` for failures."""

    def find() -> CodeUses:
        from vartok.usage import find_uses

        try:
            return find_uses(_sources(names), tokenizer, code, **selected, progress=_progress(report))
        except VartokError:
            report.finish()
            raise

    return find


def _sources(names: list[str]) -> list[str | BinaryIO]:
    return [sys.stdin.buffer if name == "-" else name for name in names]


def _progress(report: Report) -> Callable[[str, VartokError | None], None]:
    """Return a function that counts successes and failures in `report`."""

    def tell(name: str, error: VartokError | None) -> None:
        if error is None:
            report.succeed(printable(name), "counted")
        else:
            report.fail(printable(name), error)

    return tell


def _as_json(tokenizer: Tokenizer, codebook: CodebookReport, used: TokenUsage | None) -> dict[str, Any]:
    from vartok.schedule import phis_by_scale

    config = tokenizer.config
    return {
        "model": dataclasses.asdict(tokenizer.info),
        "codebook": dataclasses.asdict(codebook),
        "schedule": config.patch_nums,
        "phi": phis_by_scale(len(config.patch_nums), config.phi_count) or None,
        "usage": used and {"schedule": used.schedule, **dataclasses.asdict(used.usage)},
    }


def _codebook_table(tokenizer: Tokenizer, codebook: CodebookReport) -> Table:
    from vartok.codebook_tables import codebook_rows

    table = new_table(f"Codebook of {printable(tokenizer.name)}", "", "")
    for name, text in codebook_rows(tokenizer, codebook):
        bars = min(MAX_BARS, table_width() - len("phi by scale  ") - len(text) - 1)
        chart = f" {_bars(codebook.explained[: max(bars, 0)])}" if name == "dimensions" else ""
        table.add_row(name, text + chart)
    return table


def _usage_tables(used: TokenUsage) -> list[Table]:
    return [_usage_table(used), _top_table(used.usage)]


def _usage_table(used: TokenUsage) -> Table:
    from vartok.codebook import USAGE_METHODS
    from vartok.codebook_tables import usage_rows

    headings, rows = usage_rows(used)
    if table_width() < NARROW:
        shorter = {"perplexity": "perpl.", "divergence (chance)": "diverg. (chance)"}
        headings = [shorter.get(heading, heading) for heading in headings]
    else:
        after = headings.index("coverage") + 1
        headings.insert(after, "")
        for row, usage in zip(rows, (*used.usage.scales, used.usage.overall), strict=True):
            row.insert(after, _bar(usage.coverage))
    table = new_table("Use of the codes", *headings)
    for row in rows[:-1]:
        table.add_row(*row)
    table.add_section()
    table.add_row(*rows[-1])
    table.caption = USAGE_METHODS
    table.caption_justify = "left"
    return table


def _top_table(usage: UsageReport) -> Table:
    table = new_table("Most used codes, and their share of the scale's tokens", "scale", "")
    cells = [[f"{code.code} {code.share:.1%}" for code in scale.top] for scale in usage.scales]
    cells.append([f"{code.code} {code.share:.1%}" for code in usage.overall.top])
    width = max(len(cell) for row in cells for cell in row) + 2
    per_line = max(1, (table_width() - len("scale  ") + 2) // width)
    for number, row in enumerate(cells, 1):
        lines = [row[start : start + per_line] for start in range(0, len(row), per_line)]
        text = "\n".join("".join(cell.ljust(width) for cell in line).rstrip() for line in lines)
        table.add_row(str(number) if number <= len(usage.scales) else "all", text)
    return table


def _bar(share: float, width: int = 10) -> str:
    """Draw a horizontal bar for a share of 0 to 1, `width` characters long if full."""
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _bars(values: tuple[float, ...]) -> str:
    """Draw a vertical bar per value, one character each, relative to the largest."""
    top = max(values, default=0.0) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(value / top * 8))] for value in values)
