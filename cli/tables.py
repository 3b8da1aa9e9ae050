"""Tables, as all commands print them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

PIPED_WIDTH = 120
"""Columns of a table that goes to a file or a pipe, unless COLUMNS says otherwise."""

NARROW = 100
"""Columns below which a table leaves out what repeats other figures, and shortens headings."""


def table_width() -> int:
    """Return the columns that tables may take: the terminal's."""
    return shutil.get_terminal_size((PIPED_WIDTH, 0)).columns


def new_table(title: str, *columns: str) -> Table:
    """Make a table without rows; numbers are right-aligned, names and columns without heading are not."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
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
    """Print tables on stdout, separated by empty lines; cells are plain text without markup."""
    from rich.console import Console

    # No markup: a name may have brackets.
    console = Console(highlight=False, markup=False, emoji=False, width=table_width())
    texts = []
    for table in tables:
        with console.capture() as text:
            console.print(table)
        texts.append("\n".join(line.rstrip() for line in text.get().rstrip("\n").split("\n")))
    print("\n\n".join(texts))  # not by Rich, which takes a closed pipe for a failure
