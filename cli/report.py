"""Count the results of a command over many files, show its progress, and set its exit code."""

from __future__ import annotations

import re
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import typer

from vartok.errors import VartokError, printable
from vartok.stopping import stop

from .display import Display
from .messages import FAILED, SOME_FAILED, duration, explain, print_result, say

if TYPE_CHECKING:
    from vartok.operations import FileResult
    from vartok.operations.outputs import FileResults

    from .options import MessageOptions, WriteOptions


MAX_LINES = 3
"""Largest number of failures that are named one by one if all inputs fail alike, after the first."""

MAX_HELD = 1000
"""Largest number of failures whose lines are held back; further ones are only counted."""


def after_stop(results: FileResults, output: object, *, force: bool) -> str:
    """Return what Ctrl-C leaves of a run's results and how to go on, for the line that it prints.

    Args:
        results: the results.
        output: name of the output, a stream, or None.
        force: whether the run replaces files that exist.
    """
    if results.separate:
        instead = " in place of --force" * force
        return f"the same command with --skip-existing{instead} does the rest"
    if not isinstance(output, str):
        return ""
    return (
        f"{printable(output)} was not written, and the same command begins anew; into a folder, "
        "--skip-existing would go on"
    )


class Report:
    """Counts successes, failures and skipped inputs, reports them on stderr, and sets the exit code.

    A failure is a line. But if all inputs that are not skipped fail alike, or outputs that exist differ alike
    from what was asked, the first is named and the others are counted. A block `with report:` prints what was
    held back until then if an exception ends it.

    Args:
        total: number of inputs; None if unknown. For a single input, `succeed` prints its result.
        verb: what was done to an input, as "encoded".
        quiet: print errors only.
        debug: print the traceback of every error.
        after_stop: what the line of Ctrl-C says after the counts, if anything.
    """

    def __init__(
        self, total: int | None, *, verb: str, quiet: bool, debug: bool = False, after_stop: str = ""
    ) -> None:
        self.done = self.failed = self.skipped = 0
        self.damaged = 0  # of those done
        self._total, self._verb, self._quiet, self._debug = total, verb, quiet, debug
        self._start = time.monotonic()
        self._display = Display(quiet=quiet, lines=False)
        self._differing: Counter[str] = Counter()  # outputs that exist and differ
        self._reason: tuple[type, str] | None = None  # of all failures so far
        self._held_lines: list[str] = []  # of failures after the first, while all inputs fail alike
        self._held = 0  # number of these failures
        self._holding = True
        stop.describe_progress = lambda: self._counts() + f"; {after_stop}" * bool(after_stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._print_rest()
        self.close()

    def succeed(self, name: str, result: str, notes: tuple[str, ...] = (), *, damaged: bool = False) -> None:
        """Count a success; print its notes, and if the command has one input, `result`."""
        self.done += 1
        self.damaged += damaged
        self._print_held()
        for note in notes:
            self.note(f"{name}: {note}")
        if self._total == 1:
            self._display.say(f"{name}: {result}")
        self._advance()

    def fail(self, name: str, reason: Exception | str) -> None:
        """Count a failure, and print its reason."""
        self.failed += 1
        if self._debug and isinstance(reason, BaseException):
            self._display.close()
            traceback.print_exception(reason)
        line = f"{name}: {reason if isinstance(reason, str) else explain(reason)}"
        common = _reason(reason)
        difference = getattr(reason, "difference", None)
        if difference is not None:
            self._differing[difference] += 1
            if self._differing[difference] == 1:
                self._display.say(line, error=True)
        elif self._reason is None:
            self._reason = common
            self._display.say(line, error=True)
        elif self._holding and self._reason == common:
            self._held += 1
            if self._held <= MAX_HELD:
                self._held_lines.append(line)
        else:
            self._print_held()
            self._display.say(line, error=True)
        self._advance()

    def skip(self) -> None:
        """Count an input that was skipped."""
        self.skipped += 1
        self._advance()

    def note(self, text: str) -> None:
        """Print a note on stderr, unless `quiet`."""
        self._display.say(text)

    def finish(self) -> None:
        """Print a summary of several inputs, and exit if one failed.

        Raises:
            typer.Exit: an input failed: `SOME_FAILED` if others were done or skipped, else `FAILED`.
        """
        self._print_rest()
        self.close()
        left = (self._total or 0) - self.done - self.skipped - self.failed
        only_failure = (self.done, self.skipped, self.failed) == (0, 0, 1) and left <= 0  # its line says all
        if not self._quiet and self._total != 1 and not only_failure:
            say(f"{self._counts(left)} in {time.monotonic() - self._start:.1f} s")
        if self.failed:
            raise typer.Exit(SOME_FAILED if self.done or self.skipped else FAILED)

    def close(self) -> None:
        """Remove the status from the terminal."""
        self._display.close()

    def _print_rest(self) -> None:
        """Print or count the failures that have not been printed."""
        for difference, count in self._differing.items():
            if count > 1:
                self._display.say(
                    f"{count - 1:,} more that exist are kept for the same reason: {difference}", error=True
                )
        self._differing.clear()
        self._print_held(all_failed=not self.done)

    def _print_held(self, *, all_failed: bool = False) -> None:
        """Print the failures that were held back, and hold back none from now on.

        Args:
            all_failed: only count them if they are more than `MAX_LINES`.
        """
        lines = [] if all_failed and self._held > MAX_LINES else self._held_lines
        for line in lines:
            self._display.say(line, error=True)
        if self._held > len(lines):
            self._display.say(f"{self._held - len(lines):,} others failed for the same reason", error=True)
        self._held_lines, self._held, self._holding = [], 0, False

    def _counts(self, left: int = 0) -> str:
        parts = [f"{self._verb} {self.done:,}" + f" ({self.damaged:,} damaged)" * bool(self.damaged)]
        parts += [f"{self.skipped:,} skipped"] * bool(self.skipped)
        parts += [f"{self.failed:,} failed"] * bool(self.failed)
        parts += [f"{left:,} not reached"] * (left > 0)
        return ", ".join(parts)

    def _advance(self) -> None:
        count = self.done + self.failed + self.skipped
        status = f"{self._verb} {count:,}"
        if self._total is not None:
            left = (time.monotonic() - self._start) / count * (self._total - count)
            status += f" of {self._total:,}, {duration(left)} left"
        if self.failed:
            status += f", {self.failed:,} failed"
        self._display.update(status)


def report_results(
    results: FileResults,
    output: object,
    describe: Callable[[FileResult], str],
    *,
    verb: str,
    write: WriteOptions,
    messages: MessageOptions,
) -> None:
    """Run `encode_files` or `decode_files` to its end, and report every result; see `Report`.

    Args:
        results: the results.
        output: name of the output, a stream, or None.
        describe: returns what is printed of a success if the command has one input.
        verb: what was done to an input, as "encoded".
        write: the options for outputs; with --dry-run every input and its output is printed on stdout.
        messages: the options for messages.

    Raises:
        typer.Exit: an input failed, see `Report.finish`.
    """
    report = Report(
        results.total,
        verb="dry run: planned" if write.dry_run else verb,
        quiet=messages.quiet,
        debug=messages.debug,
        after_stop=after_stop(results, output, force=write.force),
    )
    with report:
        for result in results:
            if result.error is not None:
                report.fail(result.input, result.error)
            elif result.skipped:
                report.skip()
            elif write.dry_run:
                print_result(_planned(result))
                report.succeed(result.input, "")
            else:
                damaged = result.tokens is not None and result.tokens.image.damaged is not None
                report.succeed(result.input, describe(result), result.notes, damaged=damaged)
        report.finish()


def _planned(result: FileResult) -> str:
    """Return an input of a dry run and its output, as "img.png -> img.tokens.npz"."""
    notes = f" ({', '.join(result.notes)})" if result.notes else ""
    return f"{result.input} -> {printable(result.output or 'stdout')}{notes}"


def _reason(reason: Exception | str) -> tuple[type, str]:
    """Return what failures for the same reason have in common."""
    text = reason if isinstance(reason, str) else str(reason)
    if isinstance(reason, VartokError):
        text = reason.hint or text
    return type(reason), re.sub(r"[0-9][0-9,.]*", "0", text)
