"""Tables, as all commands print them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def new_table(title: str, *columns: str) -> Table:
    """A table without rows yet; numbers go to the right, names and what has no heading to the left."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_header=any(columns)
    )
    for column in columns:
        left = column in ("", "scale", "grid", "picture")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    return table


def print_tables(*tables: Table) -> None:
    """Print tables on stdout, whatever characters they hold."""
    from rich.console import Console

    # No markup: a name may have brackets.
    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)
    with console.capture() as text:
        for table in tables:
            console.print(table)
    print(text.get(), end="")  # not by Rich, which takes a closed pipe for a failure
