"""Options that several commands share, each declared once."""

from __future__ import annotations

import dataclasses
import functools
import gc
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

if TYPE_CHECKING:
    from vartok.images import Fit
    from vartok.schedule import Schedule
    from vartok.tokenizer import Tokenizer

Dtype = Literal["float32", "bfloat16", "float16"]
TokenFormat = Literal["npz", "json", "jsonl"]
PictureFormat = Literal["png", "jpg", "webp"]
FitMode = Literal["crop", "pad", "stretch", "native"]

SizeOption = Annotated[
    str | None,
    typer.Option(
        "--size", metavar="N|HxW", help="Side, or height x width, of the encoded pixels; default: 256."
    ),
]
FitOption = Annotated[
    FitMode,
    typer.Option("--fit", help="crop: the centre; pad: all of it, framed; stretch; native: its own size."),
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
    typer.Option(
        "--schedule",
        help="Grids of the scales, as 1,2,4,8x12 (height x width); default: the checkpoint's.",
    ),
]
MaxPixelsOption = Annotated[
    int,
    typer.Option("--max-pixels", min=1, help="Refuse larger pictures before they are decoded."),
]
MaxBytesOption = Annotated[
    int,
    typer.Option("--max-bytes", min=1, help="Larger pictures in tars, tables, URLs and pipes are not read."),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        "-w",
        envvar="VARTOK_WEIGHTS",
        metavar="WEIGHTS",
        help="Checkpoint: a file or the folder of a training run; default: `shipped`, vartok's own.",
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", envvar="VARTOK_DEVICE", help="auto, cpu, cuda, cuda:1, mps, ...")
]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        help="float32 gives VAR's own tokens; bfloat16 and float16 change many.",
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
        help="Search folders; their tree is mirrored under -o. Pictures that decode wrote are left out.",
    ),
]
FilesFromOption = Annotated[
    str | None,
    typer.Option("--files-from", metavar="FILE", help="Read input names from FILE (-: stdin), one a line."),
]
NullOption = Annotated[
    bool,
    typer.Option("--null", "-0", help="Names in --files-from end with NUL (find -print0)."),
]
FullNamesOption = Annotated[
    bool,
    typer.Option("--full-names", help="Keep the input's suffix in the output's name: img.png.tokens.npz."),
]
ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Overwrite files that exist.")]
SkipExistingOption = Annotated[bool, typer.Option("--skip-existing", help="Skip inputs whose output exists.")]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        max=4096,
        help="Pictures per batch; default: 32 on a GPU; on a CPU 16 to encode small ones, else 1.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        max=256,
        help="Threads that read and write pictures; default: cores + 1, up to 8.",
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Options for the files that a command reads, besides its arguments."""

    recursive: RecursiveOption = False
    files_from: FilesFromOption = None
    null: NullOption = False


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """Options for the pixels that are encoded, and the grids of their tokens."""

    size: SizeOption = None
    fit: FitOption = "crop"
    zoom: ZoomOption = 1.0
    background: BackgroundOption = "white"
    schedule: ScheduleOption = None
    max_pixels: MaxPixelsOption = 100_000_000
    max_bytes: MaxBytesOption = 1 << 26

    def resolve(self, *tokenizers: Tokenizer) -> tuple[Fit, Schedule | None]:
        """Return the fit, in a size that all tokenizers take, and the schedule; None is the checkpoint's own.

        Without tokenizers the values are checked, and the fit's size is left open.

        Raises:
            ArgumentError: options that contradict each other, or do not suit a checkpoint.
        """
        from vartok.operations import make_fit, make_schedule, resolve_fit

        fit = make_fit(
            self.fit,
            size=self.size,
            zoom=self.zoom,
            background=self.background,
            max_pixels=self.max_pixels,
            max_bytes=self.max_bytes,
        )
        schedule = make_schedule(self.schedule)
        if tokenizers:
            fit = resolve_fit(tokenizers, fit, size=self.size, schedule=schedule)
        return fit, schedule


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options for the checkpoint, its device and its dtype."""

    weights: WeightsOption = None
    device: DeviceOption = "auto"
    dtype: DtypeOption = "float32"

    def load(self, *, compile: bool = False) -> Tokenizer:
        """Load the tokenizer."""
        return load_tokenizer(self.weights, self.device, self.dtype, compile=compile)


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """Options for the names of outputs, and for files that exist."""

    full_names: FullNamesOption = False
    force: ForceOption = False
    skip_existing: SkipExistingOption = False

    def arguments(self) -> dict[str, Any]:
        """Return the options as the library's functions take them."""
        return {
            "full_names": self.full_names,
            "overwrite": self.force,
            "skip_existing": self.skip_existing,
        }


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """Options for batches and threads."""

    batch_size: BatchSizeOption = None
    workers: WorkersOption = None


@dataclass(frozen=True, kw_only=True)
class MessageOptions:
    """Options for messages."""

    quiet: QuietOption = False
    debug: DebugOption = False


def expand_options(run: Callable[..., None]) -> Callable[..., None]:
    """Replace parameters that are annotated with dataclasses by the fields of these, which Typer can read.

    Args:
        run: a command; some of its parameters are annotated with dataclasses of this module.

    Returns:
        The same command, with one parameter for every option.
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


def load_tokenizer(weights: Any, device: str, dtype: str, *, compile: bool = False) -> Tokenizer:
    """Import torch and load the checkpoint: the slow part of a command's start, so done last.

    It changes the process for the better of one short program: Python collects no garbage among torch's own
    objects, and the C library keeps freed memory.
    """
    collects = gc.isenabled()
    gc.disable()  # to search the objects of torch's import again and again takes a fifth of its time
    try:
        from vartok import loading, runtime

        runtime.keep_freed_memory()
        return loading.load(weights, device=device, dtype=dtype, compile=compile)
    finally:
        gc.freeze()
        if collects:
            gc.enable()
