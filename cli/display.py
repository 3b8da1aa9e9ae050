"""The status of a working command on stderr: live on a terminal, else a line every 30 s, or nothing."""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vartok.errors import printable
from vartok.stopping import stop

from .messages import say

if TYPE_CHECKING:
    from rich.live import Live

LIVE_AFTER = 1.0
"""Seconds from the start of the work to the first status."""

LINE_EVERY = 30.0
"""Seconds between status lines where stderr is no terminal."""


class Display:
    """A status on stderr, and messages above it.

    Args:
        quiet: show no status, and only error messages.
        lines: where stderr is no terminal, print the status every `LINE_EVERY` seconds.
    """

    def __init__(self, *, quiet: bool = False, lines: bool = True) -> None:
        self._quiet, self._lines = quiet, lines
        self._start = self._shown = time.monotonic()
        self._live: Live | None = None

    def say(self, message: str, *, error: bool = False) -> None:
        """Print a message of one line; with `quiet`, only if `error` is True."""
        if self._quiet and not error:
            return
        if self._live is None:
            say(message)
        else:
            text = f"vartok: {printable(message)}"
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, status: str, rows: Sequence[str] = ()) -> None:
        """Replace the status.

        Args:
            status: one line.
            rows: further lines, shown on a terminal only.
        """
        now = time.monotonic()
        if self._quiet or now - self._start < LIVE_AFTER:
            return
        if not sys.stderr.isatty():
            if self._lines and now - self._shown >= LINE_EVERY:
                self._shown = now
                say(status)
            return
        from rich.text import Text

        text = Text("\n".join([status, *rows]), overflow="ellipsis", no_wrap=True)
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), transient=True, refresh_per_second=4)
            atexit.register(self._live.stop)  # shows the cursor again even after an error
            stop.cleanups.append(self._live.stop)
            self._live.start()
        self._live.update(text)

    def close(self) -> None:
        """Remove the status. Messages can still be printed."""
        if self._live is not None:
            self._live.stop()
            self._live = None
