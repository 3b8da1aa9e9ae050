"""Draw pictures in a terminal: by its graphics protocol, else as half blocks in colour, else as letters."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vartok.drawing import GAP, Tile, as_image, fit_inside, label, sheet
from vartok.errors import printable
from vartok.stopping import as_exceptions

from .messages import print_result

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

HALF = "▀"
"""A cell whose upper half has the colour of the text, and whose lower half that of the background."""

LETTERS = " .:-=+*#%@"
"""Letters from dark to bright, for a terminal without colours."""

TILE_CELLS = 20
"""Smallest width in cells of a picture of a sheet, where there is more than one column."""

MIN_TILE_LINES = 8
"""Smallest height in lines of a picture that is made smaller so that all fit the window."""

SILENT = ("linux", "eterm")
"""Starts of TERM of terminals that would print a query of their graphics as text."""

CELL = 10
"""Width in pixels of a cell, where pictures are laid out for a graphics protocol."""


class Screen:
    """The terminal on stdout. Its graphics protocol is asked for once, if stdin is a terminal too."""

    def __init__(self) -> None:
        size = shutil.get_terminal_size()
        self.columns, self.lines = max(size.columns, 1), max(size.lines, 4)

    def show(self, tiles: Sequence[Tile], *, columns: int = 1, heading: str = "") -> None:
        """Print pictures, each with its caption, fitted to the window.

        Args:
            tiles: the pictures.
            columns: number of pictures in a row, if there is room for as many.
            heading: text above them, of one or several lines.

        Raises:
            OSError: stdout cannot be written.
        """
        if heading:
            print_result(_printable_lines(heading))
        if self._graphics is None:
            room = self.lines - 1 - (heading.count("\n") + 1 if heading else 0)
            print_result(self._render(self._cells(tiles, columns, room)))
        elif len(tiles) == 1:
            print_result(self._render(self._graphics(as_image(tiles[0].picture), "auto", "auto")))
            print_result(_printable_lines(tiles[0].caption))
        else:
            for row in self._rows(tiles, columns):
                print_result(self._render(self._graphics(row, "auto", "auto")))

    @cached_property
    def has_colors(self) -> bool:
        """True if the terminal shows colours, and letters beyond ASCII."""
        if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
            return False
        try:
            HALF.encode(sys.stdout.encoding or "ascii")
        except UnicodeEncodeError:
            return False
        return True

    @cached_property
    def _graphics(self) -> Any:
        """The class of textual-image that draws by the terminal's protocol; None if it has none."""
        if not (self.has_colors and sys.stdin.isatty() and sys.stdout.isatty()) or _window_is_empty():
            return None
        if os.environ["TERM"].startswith(SILENT):
            return None
        try:
            with as_exceptions():  # Ctrl-C must not leave the terminal without echo
                from textual_image import renderable  # asks the terminal, and waits 0.1 s for each answer
        except Exception:  # keys pressed meanwhile make an answer of any form
            return None
        found = renderable.Image
        return found if found in (renderable.SixelImage, renderable.TGPImage) else None

    @cached_property
    def _console(self) -> Console:
        from rich.console import Console

        return Console(
            highlight=False,
            markup=False,
            emoji=False,
            width=self.columns,
            height=max(self.lines - 4, 1),
            force_terminal=self.has_colors,
            no_color=not self.has_colors,
        )

    def _render(self, renderable: RenderableType) -> str:
        with self._console.capture() as text:
            self._console.print(renderable, height=self._console.height)
        return "\n".join(line.rstrip(" ") for line in text.get().rstrip("\n").split("\n"))

    def _rows(self, tiles: Sequence[Tile], columns: int) -> Iterator[Image.Image]:
        """Draw the tiles in rows of one width, as many in each as the window has room for."""
        columns = self._fitting(columns, GAP + max(as_image(tile.picture).width for tile in tiles), CELL)
        rows = [sheet(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
        for row in rows:
            yield label(row, "", width=max(other.width for other in rows))

    def _fitting(self, columns: int, width: int, cell: int = 1) -> int:
        return max(1, min(columns, self.columns * cell // width))

    def _largest(self, tiles: Sequence[Tile], room: int) -> int:
        """Return the number of columns that makes tiles largest where all fit `room` lines; 0 for none."""
        wide = max(as_image(tile.picture).width / as_image(tile.picture).height for tile in tiles)
        text = max(len(tile.caption.split("\n")) for tile in tiles)
        best, found = 0.0, 0
        for columns in range(1, self._fitting(len(tiles), TILE_CELLS) + 1):
            height = room // math.ceil(len(tiles) / columns) - text
            width = min((self.columns + 1) // columns - 1, 2 * height * wide)
            if height >= MIN_TILE_LINES and width > best:
                best, found = width, columns
        return found

    def _cells(self, tiles: Sequence[Tile], columns: int, room: int) -> RenderableType:
        """Lay pictures of cells out in columns, each above its caption, for a window of `room` lines."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        reflow = self._largest(tiles, room) if columns == len(tiles) > 1 else 0
        columns = reflow or self._fitting(columns, TILE_CELLS)
        columns = math.ceil(len(tiles) / math.ceil(len(tiles) / columns))  # rows of one length
        width = (self.columns - columns + 1) // columns
        grid = Table.grid(padding=(0, 1), pad_edge=False)
        cells = []
        for tile in tiles:
            caption = Text(_printable_lines(tile.caption), overflow="fold")
            lines = room // (math.ceil(len(tiles) / columns) if reflow else 1)
            lines = max(lines - len(tile.caption.split("\n")), 1)
            picture = fit_inside(tile.picture, width, 2 * lines)
            cells.append(Group(_Cells(picture, self.has_colors), caption))
        for _ in range(columns):
            grid.add_column(width=width)
        for start in range(0, len(cells), columns):
            grid.add_row(*cells[start : start + columns])
        return grid


class _Cells:
    """A Rich renderable of a picture: two pixels in each cell, or a letter for both.

    Args:
        picture: the picture, in pixels as wide as half as high as a cell.
        colored: draw colours.
    """

    def __init__(self, picture: Image.Image, colored: bool) -> None:
        height = picture.height + picture.height % 2
        self._picture, self._colored = picture.convert("RGB").resize((picture.width, height)), colored

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the segments of the cells."""
        from rich.segment import Segment

        for line in self._lines():
            yield from line
            yield Segment("\n")

    def _lines(self) -> Iterator[list[Any]]:
        from rich.color import Color, ColorType
        from rich.color_triplet import ColorTriplet
        from rich.segment import Segment
        from rich.style import Style

        if not self._colored:
            levels = np.asarray(self._picture.convert("L"), np.uint16)
            for row in (levels[::2] + levels[1::2]) * len(LETTERS) // 512:
                yield [Segment("".join(LETTERS[level] for level in row))]
            return

        def color(levels: list[int]) -> Color:  # Color.from_rgb also makes a name, in half of all the time
            return Color("", ColorType.TRUECOLOR, triplet=ColorTriplet(*levels))

        pixels = np.asarray(self._picture).tolist()
        for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
            yield [
                Segment(HALF, Style.from_color(color(above), color(below)))
                for above, below in zip(upper, lower, strict=True)
            ]


def _printable_lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))


def _window_is_empty() -> bool:
    """Return whether the terminal states a window without cells, as some pseudo-terminals do."""
    try:
        return 0 in os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return True
