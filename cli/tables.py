"""Tables that commands print on stdout."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from .messages import print_result

if TYPE_CHECKING:
    from rich.table import Table

PIPED_WIDTH = 120
"""Width in characters of tables in a file or a pipe, unless the variable COLUMNS is set."""

NARROW = 100
"""Width in characters below which tables leave out bars and shorten headings."""


def table_width() -> int:
    """Return the width of tables in characters: COLUMNS, else the terminal's, else `PIPED_WIDTH`."""
    return shutil.get_terminal_size((PIPED_WIDTH, 0)).columns


def new_table(title: str, *columns: str, caption: str = "") -> Table:
    """Make a table without rows; the caption stands below it.

    Columns without a heading, and "scale", "grid" and "picture", are left-aligned, the others right-aligned.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title, no_wrap=True, overflow="ignore"),  # on one line, even if wider than the table
        title_justify="left",
        title_style="bold",
        caption=Text(caption, no_wrap=True, overflow="ignore") if caption else None,
        caption_justify="left",
        caption_style="",
        box=box.Box(str(box.SIMPLE_HEAD), ascii=True),  # Rich would replace another by one with frames
        show_edge=False,
        pad_edge=False,
        padding=(0, 0, 0, 1),
        show_header=any(columns),
    )
    for column in columns:
        left = column in ("", "scale", "grid", "picture")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    return table


def print_tables(*tables: Table) -> None:
    """Print tables on stdout, separated by empty lines."""
    from rich.console import Console

    # Rich would take brackets in a file's name for markup.
    console = Console(highlight=False, markup=False, emoji=False, width=table_width())
    texts = []
    for table in tables:
        with console.capture() as text:
            console.print(table)
        texts.append("\n".join(line.rstrip() for line in text.get().rstrip("\n").split("\n")))
    print_result("\n\n".join(texts))  # Rich itself would exit with 1 if the pipe is closed
