"""Options that several commands share, each written once."""

from __future__ import annotations

import dataclasses
import functools
import gc
import inspect
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from .report import usage_errors

if TYPE_CHECKING:
    from vartok.images import Fit
    from vartok.schedule import Schedule
    from vartok.tokenizer import Tokenizer

Dtype = Literal["float32", "bfloat16", "float16"]
TokenFormat = Literal["npz", "json", "jsonl"]
PictureFormat = Literal["png", "jpg", "webp"]
FitMode = Literal["crop", "pad", "stretch", "native"]

SizeOption = Annotated[
    int | None,
    typer.Option("--size", min=1, help="Side of the encoded pixels; default: the checkpoint's, 256."),
]
FitOption = Annotated[
    FitMode,
    typer.Option("--fit", help="crop: the centre; pad: all of it, framed; stretch; native: in its own size."),
]
ZoomOption = Annotated[
    float,
    typer.Option("--zoom", help="With crop: scale up by this much first. VAR's own transform has 1.125."),
]
BackgroundOption = Annotated[
    str, typer.Option("--background", help="Colour under transparency and around a padded picture.")
]
ScheduleOption = Annotated[
    str | None,
    typer.Option("--schedule", help="Scales, as 1,2,4,8x12,16x24 (h x w); default: the checkpoint's."),
]
MaxPixelsOption = Annotated[
    int,
    typer.Option("--max-pixels", min=1, help="Larger pictures are turned away before they are decoded."),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        "-w",
        envvar="VARTOK_WEIGHTS",
        help="Checkpoint (safetensors or .pth); default: `shipped`, the one that comes with vartok.",
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", envvar="VARTOK_DEVICE", help="auto, cpu, cuda, cuda:1, mps, ...")
]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        "--dtype", help="float32 gives VAR's own tokens; bfloat16 and, on GPUs, float16 change many."
    ),
]
CompileOption = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the networks, which takes a minute or more: for long runs on a GPU.",
    ),
]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        help="A file (by its suffix), a folder, or - for stdout; default: beside each input.",
    ),
]
RecursiveOption = Annotated[
    bool,
    typer.Option(
        "--recursive",
        "-r",
        help="Search folders, but not for what decode drew; their tree is mirrored under -o.",
    ),
]
FilesFromOption = Annotated[
    str | None,
    typer.Option("--files-from", metavar="FILE", help="Read input names from FILE (-: stdin), one a line."),
]
NullOption = Annotated[
    bool, typer.Option("--null", "-0", help="Names in --files-from end with NUL, as find -print0.")
]
FullNamesOption = Annotated[
    bool,
    typer.Option("--full-names", help="Keep the input's suffix in the output's name, so that names differ."),
]
ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Overwrite files that exist.")]
SkipExistingOption = Annotated[
    bool, typer.Option("--skip-existing", help="Pass over inputs whose output exists.")
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        max=4096,
        help="Pictures that share a batch; default: on a GPU 32, on a CPU 16 to encode small ones, else 1.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        max=256,
        help="Threads that read and write pictures; default: one more than cores, up to 8.",
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only say what failed.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Which files a command reads, besides its arguments."""

    recursive: RecursiveOption = False
    files_from: FilesFromOption = None
    null: NullOption = False


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """How a picture becomes the pixels that are encoded, and the grids of its tokens."""

    size: SizeOption = None
    fit: FitOption = "crop"
    zoom: ZoomOption = 1.0
    background: BackgroundOption = "white"
    schedule: ScheduleOption = None
    max_pixels: MaxPixelsOption = 100_000_000


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The checkpoint, and what it runs on."""

    weights: WeightsOption = None
    device: DeviceOption = "auto"
    dtype: DtypeOption = "float32"


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How outputs are named, and what happens to those that exist."""

    full_names: FullNamesOption = False
    force: ForceOption = False
    skip_existing: SkipExistingOption = False


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """How much is done at a time."""

    batch_size: BatchSizeOption = None
    workers: WorkersOption = None


@dataclass(frozen=True, kw_only=True)
class MessageOptions:
    """How much a command says."""

    quiet: QuietOption = False
    debug: DebugOption = False


def expand_options(run: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of a dataclass's type by that dataclass's fields, for Typer to read.

    Args:
        run: a command, of which some parameters are annotated with the dataclasses of this module.

    Returns:
        The same command with a parameter for every option.
    """
    signature = inspect.signature(run, eval_str=True)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if not dataclasses.is_dataclass(parameter.annotation):
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
            continue
        groups[name] = group = parameter.annotation
        hints = get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in dataclasses.fields(group)
        ]

    @functools.wraps(run)
    def expanded(**values: Any) -> None:
        given = {
            name: group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        run(**values, **given)

    expanded.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return expanded


def default_workers(workers: int | None) -> int:
    """The number of threads where none is given: one waits for a file or its turn while the others work."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return workers or min(8, cores + 1)


def default_batch_size(batch_size: int | None, tokenizer: Tokenizer, pixels: int | None = None) -> int:
    """The batch size where none is given, for pictures of so many pixels; None: of any number.

    A CPU takes pictures through the networks one by one whatever the batch, and small ones together
    through the quantizer.
    """
    from vartok.operations import MAX_BATCHED_PIXELS

    if tokenizer.device.type != "cpu":
        return batch_size or 32
    return batch_size or (16 if pixels is not None and pixels <= MAX_BATCHED_PIXELS else 1)


def load_tokenizer(weights: Path | None, device: str, dtype: str, *, compile: bool = False) -> Tokenizer:
    """Import torch and load the checkpoint: what makes a command slow to start, so done last."""
    import vartok

    collects = gc.isenabled()
    gc.disable()  # searching what torch brings, over and over, would take a fifth of the time
    try:
        return vartok.load(weights, device=device, dtype=dtype, compile=compile)
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def parse_fit(mode: FitMode, size: int | None, zoom: float, background: str, max_pixels: int) -> Fit:
    """The fit that the options describe, before the checkpoint is known: `fit_to` gives it its size.

    Raises:
        typer.BadParameter: options that contradict each other, or a value that no fit can have.
    """
    from vartok.images import Fit, parse_color

    if zoom != 1 and mode != "crop":
        raise typer.BadParameter(f"--zoom is for --fit crop, not {mode}")
    if size and mode == "native":
        raise typer.BadParameter("--fit native keeps the picture's own size: leave --size out")
    with usage_errors():
        return Fit(mode=mode, zoom=zoom, background=parse_color(background), max_pixels=max_pixels)


def fit_to(tokenizers: Sequence[Tokenizer], fit: Fit, size: int | None, schedule: Schedule | None) -> Fit:
    """The fit whose pixels all the tokenizers take; where no size is given, the first one's own.

    Raises:
        typer.BadParameter: one cannot take that size, or not with that schedule.
    """
    from vartok.schedule import describe

    side = (size, size) if size else tokenizers[0].config.image_size
    for step in (tokenizer.config.downsample for tokenizer in tokenizers if fit.mode != "native"):
        if any(pixels % step for pixels in side):
            raise typer.BadParameter(f"--size is a multiple of {step} for this checkpoint, not {side[0]}")
        latent = (side[0] // step, side[1] // step)
        if schedule and schedule[-1] != latent:
            raise typer.BadParameter(f"--schedule ends in the latent's grid, here {describe((latent,))}")
    multiple = math.lcm(*(tokenizer.config.downsample for tokenizer in tokenizers))
    with usage_errors():
        return dataclasses.replace(fit, size=side, multiple=multiple)
