"""`vartok train`: a tokenizer from a folder of pictures."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vartok.errors import ConfigError, VartokError

from .options import DebugOption, QuietOption, default_workers
from .report import INTERRUPTED, command, duration, say, shown

if TYPE_CHECKING:
    from vartok.train.card import Validation
    from vartok.train.trainer import Progress

LINE_EVERY = 30.0  # seconds, where stderr is no terminal
BARS = " ▁▂▃▄▅▆▇█"


@command
def train(
    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA...", help="Folders, tar shards, lists of files (.txt), pictures."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="RUN", help="The folder that the run is kept in.")
    ],
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", "-p", help="light (the default), var-small, var, or a TOML file of your own."
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="WEIGHTS",
            help="Train a checkpoint on instead of starting anew; `shipped`: the one that comes with vartok.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run in RUN; its settings hold, other options may change them."
        ),
    ] = False,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Length of the run; default: 100,000.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", min=0.01, help="Its length in time, the start included, if that is less."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Crops a step, over all processes; default: the preset's."),
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", min=0, help="Learning rate of the decoder.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of everything random.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Train on the CPU, whatever else there is.")] = False,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, max=256, help="Threads that read; default: half the cores."),
    ] = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a tokenizer, and watch that every scale uses the codebook.

    RUN/weights.safetensors is what encode and decode take with -w. RUN also holds the settings, the state to
    resume from, pictures held out as they come back (samples/), and logs for TensorBoard (log/).
    Needs pip install 'vartok[train]'.

    Examples:
      vartok train photos -o run --minutes 30
      vartok train shards/*.tar -o run --preset var-small --steps 20000
      vartok train photos -o run --resume
      vartok train xrays -o run --from shipped --steps 2000 --rate 3e-4
      accelerate launch -m vartok train shards/*.tar -o run --preset var
    """
    changes: dict[str, dict[str, Any]] = {
        "run": {"steps": steps, "minutes": minutes, "seed": seed},
        "data": {"batch_size": batch_size},
        "optimizer": {"rate": rate},
    }
    overrides = {
        table: {key: value for key, value in values.items() if value is not None}
        for table, values in changes.items()
    }
    if resume and preset:
        raise typer.BadParameter("a run that is resumed has its settings: leave --preset out")
    if resume and start is not None:
        raise typer.BadParameter("a run that is resumed has its weights: leave --from out")

    from vartok.checkpoints import find_checkpoint
    from vartok.train.settings import read_settings
    from vartok.train.trainer import SETTINGS, STATE, WEIGHTS, check_packages, train

    check_packages()
    if resume and not (output / SETTINGS).is_file():
        raise VartokError(f"{shown(output)} holds no run to resume")
    weights = None if start is None else find_checkpoint(start)
    try:
        settings = read_settings(
            str(output / SETTINGS) if resume else preset or "light", overrides, weights=weights
        )
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    if not debug:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorBoard's, where TensorFlow is installed

    first = os.environ.get("RANK", "0") == "0"  # of the processes that a launcher started
    display = _Display(quiet=quiet or not first)
    try:
        done = train(
            settings,
            data,
            output,
            resume=resume,
            cpu=cpu,
            workers=workers or max(1, default_workers(None) // 2),
            report=display.show,
            should_stop=_Stopper(display),
        )
    except KeyboardInterrupt:
        kept = "goes on from what was saved last" if (output / STATE).exists() else "had saved nothing yet"
        display.say(f"stopped at once; the run {kept}")
        raise
    finally:
        display.close()
    if not done:
        flags = ["--cpu"] if cpu else []
        again = shlex.join(["vartok", "train", *data, "-o", str(output), *flags, "--resume"])
        alike = ", by the same launcher," * (int(os.environ.get("WORLD_SIZE", "1")) > 1)
        display.say(f"stopped; everything is saved. Go on{alike} with: {again}")
        raise typer.Exit(INTERRUPTED)
    display.say(f"trained: vartok encode -w {shlex.quote(str(output / WEIGHTS))} img.png")


class _Stopper:
    """Takes the first Ctrl-C, or a cluster's SIGTERM, as a wish; a second one ends the program at once.

    From the first step on: before it there is nothing to save, and one is enough.
    """

    def __init__(self, display: _Display) -> None:
        self._display = display
        self._asked = self._listening = False

    def __call__(self) -> bool:
        if not self._listening:
            self._listening = True
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._ask)
        return self._asked

    def _ask(self, number: int, _: object) -> None:
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.default_int_handler)
        self._asked = True
        self._display.say("stopping after this step; once more to stop at once")


class _Display:
    """Shows on stderr how training goes: a line that changes on a terminal, else one every half minute."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet
        self._shown_at = -LINE_EVERY
        self._open = False

    def show(self, event: Progress | Validation | str) -> None:
        from vartok.train.trainer import Progress

        if isinstance(event, str):
            self.say(event)
        elif not isinstance(event, Progress):
            self.say(
                f"step {event.step:,}: {event.psnr:.2f} dB on {event.pictures} pictures held out; codes used "
                f"by scale {' '.join(map(str, event.used))}, {event.total:,} in all"
            )
        elif self._live:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            print(f"\r{self._line(event)[: width - 1]}\033[K", end="", file=sys.stderr, flush=True)
            self._open = True
        elif event.seconds - self._shown_at >= LINE_EVERY:
            self._shown_at = event.seconds
            self.say(self._line(event))

    def say(self, text: str) -> None:
        self.close()
        if not self._quiet:
            say(text)

    def close(self) -> None:
        """End the line that changes."""
        if self._open:
            print(file=sys.stderr)
            self._open = False

    def _line(self, progress: Progress) -> str:
        left = progress.seconds / progress.share * (1 - progress.share) if progress.share else 0
        top = max(progress.perplexity)
        use = "".join(BARS[round(8 * value / top)] for value in progress.perplexity)
        low, high = min(progress.perplexity), top
        bad = f", {progress.unreadable} unreadable" if progress.unreadable else ""
        return (
            f"step {progress.step:,} ({progress.share:.0%}), {duration(left)} left, "
            f"loss {progress.loss:.3f}, {progress.psnr:.2f} dB, {progress.images_per_second:.1f} images/s, "
            f"codebook use {use} {low:,.0f} to {high:,.0f}{bad}"
        )
