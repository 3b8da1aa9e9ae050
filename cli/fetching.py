"""The progress of a checkpoint that is fetched from the hub, on stderr."""

from __future__ import annotations

from .display import Display


class FetchDisplay:
    """Shows what is fetched, and on a terminal how far it is; see `vartok.checkpoints.hub.FetchListener`.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._display: Display | None = None

    def start(self, message: str) -> None:
        """Say what is fetched."""
        self._display = Display(quiet=self._quiet, lines=False)
        self._display.say(message)

    def update(self, name: str, done: int, total: int | None) -> None:
        """Show how much of the file is there."""
        if self._display is not None:
            of = f" of {total / 1e6:,.1f} MB, {done / total:.0%}" if total else " MB"
            self._display.update(f"{name}: {done / 1e6:,.1f}{of}")

    def end(self) -> None:
        """Remove the status."""
        if self._display is not None:
            self._display.close()
            self._display = None
