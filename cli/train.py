"""`vartok train`: trains a tokenizer on pictures."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vartok.checkpoints import RUN_STATE
from vartok.errors import ConfigError, VartokError, counted, printable
from vartok.metadata import MAX_IMAGE_CHANNELS
from vartok.stopping import WORDS, Terminated, as_exceptions, stop

from .command import command
from .display import Display
from .files import output_path
from .messages import duration, with_options
from .options import AllowDamagedOption, DeviceOption, MessageOptions

if TYPE_CHECKING:
    from vartok.train import Event, Progress, TrainSettings, Validation

BARS = " ▁▂▃▄▅▆▇█"

DataArgument = Annotated[
    list[str],
    typer.Argument(metavar="DATA", help="Folders, tar shards, lists of files (.txt), pictures."),
]
RunOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="RUN", parser=output_path, help="Folder of the run.")
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset", "-p", help="Settings: light (the default), light-looks, var-small, var, or a TOML file."
    ),
]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="WEIGHTS",
        help="Fine-tune a checkpoint: a file, a folder with one, a name that `vartok models` lists, or "
        "hf://OWNER/REPO[/FILE][@REVISION].",
    ),
]
KeepTokensOption = Annotated[
    bool,
    typer.Option(
        "--keep-tokens",
        help="With --from: train the decoder alone; pictures keep their tokens.",
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume", help="Continue the run in RUN, with its settings unless other options change them."
    ),
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", min=1, help="Number of optimizer steps; default: the preset's.")
]
MinutesOption = Annotated[
    float | None,
    typer.Option(
        "--minutes",
        min=0.01,
        help="Time limit of the run in minutes, with initialisation and sessions before --resume.",
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Crops per step, over all processes; default: the preset's."),
]
LrOption = Annotated[
    float | None,
    typer.Option("--lr", min=0, help="Learning rate of the decoder and the phis; default: the preset's."),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, help="Seed of initial weights, data order and crops; default: the preset's."
    ),
]
ChannelsOption = Annotated[
    int | None,
    typer.Option(
        "--channels",
        metavar="C",
        min=1,
        max=MAX_IMAGE_CHANNELS,
        help="Channels of a new tokenizer's pictures: 1 for grey levels; default: the preset's 3.",
    ),
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Name of the checkpoint; default: the name of RUN.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        max=256,
        help="Threads per process that read pictures; default: (cores + 1) / 2, up to 4.",
    ),
]


@command
def train(
    data: DataArgument,
    output: RunOption,
    preset: PresetOption = None,
    start: FromOption = None,
    keep_tokens: KeepTokensOption = False,
    channels: ChannelsOption = None,
    resume: ResumeOption = False,
    steps: StepsOption = None,
    minutes: MinutesOption = None,
    batch_size: BatchSizeOption = None,
    lr: LrOption = None,
    seed: SeedOption = None,
    name: NameOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    allow_damaged: AllowDamagedOption = False,
    *,
    messages: MessageOptions,
) -> None:
    """Train a multi-scale tokenizer on pictures.

    RUN will hold the checkpoint (weights.safetensors) and its card, a report to watch in a browser
    (report.html), the settings, the state to resume from, reconstructions of validation pictures
    (samples/), and TensorBoard logs (log/). Other commands take RUN with -w. Training needs
    pip install '.[train]' in a clone of the repository.

    Examples:
      vartok train photos -o run --minutes 30
      vartok train shards/*.tar -o run --preset var-small --steps 20000
      vartok train photos -o run --resume
      vartok train xrays -o run --channels 1
      vartok train xrays -o run --from shipped --steps 2000 --lr 3e-4
      vartok train xrays -o run --from shipped --keep-tokens
      vartok train photos -o run --preset light-looks
      accelerate launch -m vartok train shards/*.tar -o run --preset var
    """
    overrides: dict[str, Any] = {
        "run": _given(steps=steps, minutes=minutes, seed=seed),
        "data": _given(batch_size=batch_size, allow_damaged=allow_damaged or None),
        "model": _given(in_channels=channels),
        "start": _given(keep_tokens=keep_tokens or None),
        "optimizer": _given(lr=lr),
        **_given(name=name),
    }
    if resume and preset:
        raise typer.BadParameter("a resumed run keeps its settings: leave --preset out")
    if resume and start is not None:
        raise typer.BadParameter("a resumed run keeps its weights: leave --from out")
    if resume and keep_tokens:
        raise typer.BadParameter("a resumed run keeps its settings: leave --keep-tokens out")
    if channels is not None and (resume or start is not None):
        raise typer.BadParameter("a checkpoint has its own number of channels: leave --channels out")
    options = [] if device == "auto" else ["--device", device]
    again = shlex.join(["vartok", "train", *data, "-o", str(output), *options, "--resume"])
    stop.describe_progress = lambda: _describe_saved(output, again)
    settings = _read_settings(output, preset, start, overrides, resume=resume)
    if not messages.debug:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorBoard may import TensorFlow, which logs

    is_main = os.environ.get("RANK", "0") == "0"  # set by torchrun and accelerate
    display = Display(quiet=messages.quiet or not is_main)
    from vartok.operations import default_workers

    workers = workers or max(1, default_workers() // 2)
    _run(settings, data, output, again, resume=resume, device=device, workers=workers, display=display)


def _describe_saved(run: Path, again: str) -> str:
    """Return what an interrupted run has saved, and how to go on; `again` is the command that resumes it."""
    if (run / RUN_STATE).exists():
        return f"what was saved is kept. Continue: {again}"
    return "the run had saved nothing yet; the same command begins it again"


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _read_settings(
    run: Path, preset: str | None, start: str | None, overrides: dict[str, Any], *, resume: bool
) -> TrainSettings:
    from vartok.train import PRESETS, read_settings
    from vartok.train.folder import SETTINGS
    from vartok.train.loop import check_packages

    check_packages()
    from_scratch = set(PRESETS) - {"light-looks"}  # a file may name a checkpoint too
    if overrides["start"] and start is None and (preset or "light") in from_scratch:
        raise typer.BadParameter("--keep-tokens needs --from, the checkpoint whose tokens are kept")
    if preset and preset.endswith(".toml"):
        os.stat(preset)  # raises FileNotFoundError; an unknown preset without this suffix is a usage error
    if resume and not (run / SETTINGS).is_file():
        raise VartokError(f"there is no run in {printable(run)}", hint="leave `resume` out to begin one")
    try:
        return read_settings(run / SETTINGS if resume else preset or "light", overrides, weights=start)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def _run(
    settings: TrainSettings,
    data: list[str],
    run: Path,
    again: str,
    *,
    resume: bool,
    device: str,
    workers: int,
    display: Display,
) -> None:
    """Train, and show the progress; `again` is the command that resumes the run.

    Raises:
        typer.Exit: Ctrl-C (130) or SIGTERM (143) stopped the run after a step.
        KeyboardInterrupt: Ctrl-C stopped it at once: it was the second signal, or no step had ended.
        Terminated: SIGTERM did so.
    """
    from vartok.images import configure_pillow
    from vartok.train import train
    from vartok.train.distributed import destroy_process_group

    configure_pillow()
    stopper = _Stopper(display)
    try:
        with as_exceptions():
            done = train(
                settings,
                data,
                run,
                resume=resume,
                device=device,
                workers=workers,
                report=lambda event: _show(display, event),
                should_stop=stopper,
            )
        destroy_process_group()
    finally:
        display.close()
    if not done:
        launcher = " with the same launcher" * (int(os.environ.get("WORLD_SIZE", "1")) > 1)
        display.say(f"stopped; everything is saved. Continue{launcher}: {again}")
        raise typer.Exit(128 + (stopper.signal or signal.SIGINT))
    picture = "img.png" if settings.model.in_channels in (1, 3) else "array.npy"
    display.say(f"trained; to use it: vartok encode -w {shlex.quote(str(run))} {picture}")


class _Stopper:
    """Asks `train` to stop after a step when Ctrl-C or SIGTERM arrives; a second one stops at once.

    Signal handlers are set at the end of the first step. Before that there is nothing to save, and the first
    signal stops the program.

    Attributes:
        signal: number of the first signal that arrived; None if none has.
    """

    def __init__(self, display: Display) -> None:
        self._display = display
        self._listening = False
        self.signal: int | None = None

    def __call__(self) -> bool:
        """Return True if a signal has arrived; the first call sets the signal handlers."""
        if not self._listening:
            self._listening = True
            for number in WORDS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as in a shell's background jobs
                    signal.signal(number, self._receive)
        return self.signal is not None

    def _receive(self, number: int, _: object) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated
        self.signal = number
        with contextlib.suppress(RuntimeError):  # the signal came while Python was writing to the same stream
            alone = os.environ.get("WORLD_SIZE", "1") == "1"  # set by torchrun and accelerate
            step = "this step" if alone else "the next tenth step"
            self._display.say(f"stopping after {step}; a second signal stops at once")


def _show(display: Display, event: Event) -> None:
    from vartok.train import Progress, StartProgress, Validation

    if isinstance(event, StartProgress):
        display.update(f"{event.stage}: {event.done:,} of {event.total:,}")
    elif isinstance(event, Validation):
        display.say(_validation_line(event))
    elif isinstance(event, Progress):
        display.update(_status_line(event), [_usage_line(event)])
    else:
        display.say(with_options(event))


def _validation_line(validation: Validation) -> str:
    used = " ".join(map(str, validation.used))
    looks = validation.perceptual
    distance = "" if looks is None else f", perceptual distance {looks:.3f}"
    return (
        f"step {validation.step:,}: {validation.psnr:.2f} dB{distance} on "
        f"{counted(validation.pictures, 'validation picture')}; "
        f"codes used per scale: {used}; {validation.total_used:,} in all"
    )


def _status_line(progress: Progress) -> str:
    """Return the status of a run, in at most 79 characters for common values."""
    left = progress.seconds / progress.fraction * (1 - progress.fraction) if progress.fraction else 0
    return (
        f"step {progress.step:,} ({progress.fraction:.0%}), {duration(left)} left, "
        f"loss {progress.loss:.3f}, {progress.psnr:.2f} dB, {progress.images_per_second:.1f} images/s"
    )


def _usage_line(progress: Progress) -> str:
    """Return a line: a bar for each scale's perplexity, their range, and the unreadable pictures, if any."""
    low, high = min(progress.perplexity), max(progress.perplexity)
    bars = "".join(BARS[round(8 * value / high)] for value in progress.perplexity)
    unreadable = f", {progress.unreadable:,} unreadable" if progress.unreadable else ""
    return f"perplexity by scale (moving average) {bars} {low:,.0f} to {high:,.0f}{unreadable}"
