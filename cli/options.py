"""Options that several commands share, each declared once; hence its length."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vartok.errors import warn

from .files import output_name

if TYPE_CHECKING:
    from vartok.tokenizer import Tokenizer


Dtype = Literal["float32", "tf32", "bfloat16", "float16"]
PictureFormat = Literal["png", "jpg", "webp", "npy", "gif"]
FitMode = Literal["crop", "pad", "stretch", "native", "bucket"]

SizeOption = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="N|HxW",
        help="Side, or height x width, of encoded pictures; default: the checkpoint's.",
    ),
]
FitOption = Annotated[
    FitMode,
    typer.Option(
        "--fit",
        help="How a picture gets that size: crop to the centre, pad, or stretch; native keeps its own; "
        "bucket crops to the nearest of --buckets.",
    ),
]
NativeFitOption = Annotated[
    Literal["crop", "pad", "stretch", "native"],
    typer.Option(
        "--fit",
        help="How a picture gets that size: crop to the centre, pad, or stretch; native keeps its own.",
    ),
]
BucketsOption = Annotated[
    str | None,
    typer.Option(
        "--buckets",
        metavar="FILE|NAME",
        help="With bucket: sdxl (the default), infinity, or a file with a size HxW on each line; scaled to "
        "as many pixels as --size has, without which a file's sizes are kept.",
    ),
]
SizedFitOption = Annotated[
    Literal["crop", "pad", "stretch", "bucket"],
    typer.Option(
        "--fit",
        help="How a picture gets that size: crop to the centre, pad, or stretch; bucket crops to the nearest "
        "of --buckets.",
    ),
]
MaxTokensOption = Annotated[
    int,
    typer.Option("--max-tokens", min=1, help="With native: refuse pictures of more than this many tokens."),
]
ZoomOption = Annotated[
    float,
    typer.Option(
        "--zoom",
        help="With crop or bucket: enlarge by this factor, 1 to 100, before the cut; VAR trains with 1.125.",
    ),
]
ResampleOption = Annotated[
    Literal["lanczos", "adm"],
    typer.Option(
        "--resample",
        help="How a picture is scaled. adm crops as guided-diffusion's center_crop_arr, which LlamaGen "
        "and MAR use too.",
    ),
]
BackgroundOption = Annotated[
    str, typer.Option("--background", help="Colour behind transparent pixels and around padded pictures.")
]
ScheduleOption = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        help="Grids of the scales, coarse to fine, as 1,2,4,8x12 (h x w), or a name that `vartok schedules` "
        "lists; default: the checkpoint's.",
    ),
]
ScalesOption = Annotated[
    int | None,
    typer.Option("--scales", metavar="N", min=1, help="Encode only the first N scales; default: all."),
]
MaxPixelsOption = Annotated[
    int,
    typer.Option("--max-pixels", min=1, help="Refuse pictures of more than this many pixels."),
]
MaxBytesOption = Annotated[
    int,
    typer.Option(
        "--max-bytes",
        min=1,
        help="Refuse pictures of more than this many bytes in tars, tables, URLs and pipes.",
    ),
]
AllowDamagedOption = Annotated[
    bool,
    typer.Option("--allow-damaged", help="Take what can be decoded of truncated or corrupt pictures."),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        "-w",
        envvar="VARTOK_WEIGHTS",
        metavar="WEIGHTS",
        help="Checkpoint: a file, a folder with one, a name that `vartok models` lists, or "
        "hf://OWNER/REPO[/FILE][@REVISION]; default: `light`, vartok's own.",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device", envvar="VARTOK_DEVICE", help="Device of the networks: auto, cpu, cuda, cuda:1, mps, ..."
    ),
]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        help="Precision of the networks. Only float32 gives VAR's tokens, the same in every batch; of the "
        "shipped checkpoint's, bfloat16 changes a third and float16 an eighth. tf32 is for CUDA.",
    ),
]
CompileOption = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the networks, which takes a minute or more; for long runs on a GPU.",
    ),
]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        parser=output_name,
        help="File (if OUT has a suffix), folder, or - for stdout; default: beside each input.",
    ),
]
RecursiveOption = Annotated[
    bool,
    typer.Option(
        "--recursive",
        "-r",
        help="Search folders, but skip pictures that decode wrote; -o gets the same subfolders.",
    ),
]
FilesFromOption = Annotated[
    str | None,
    typer.Option(
        "--files-from", metavar="FILE", help="Also read names of inputs from FILE (-: stdin), one per line."
    ),
]
NullOption = Annotated[
    bool,
    typer.Option("--null", "-0", help="Names in --files-from end in NUL, as find -print0 writes them."),
]
FullNamesOption = Annotated[
    bool,
    typer.Option("--full-names", help="Keep suffixes of inputs in names of outputs: img.png.tokens.npz."),
]
ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Overwrite files that exist.")]
SkipExistingOption = Annotated[
    bool,
    typer.Option(
        "--skip-existing",
        help="Skip inputs whose output exists. One that differs is kept, and is a failure: settings of "
        "tokens and sizes of pictures are compared, contents are not.",
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        "-n",
        help="Print what would be read and written, but write nothing and load no model; keys and the "
        "checkpoint's limits are not checked.",
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        max=4096,
        help="Pictures of the checkpoint's size per batch, of larger ones fewer; default: 32 on a GPU; on a "
        "CPU 16 to encode small pictures, else 1.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        max=256,
        help="Threads per process that read and write pictures; default: its cores + 1, up to 8.",
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Options that select inputs, in addition to the arguments."""

    recursive: RecursiveOption = False
    files_from: FilesFromOption = None
    null: NullOption = False


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """Options that select rows of tokens, and tell what arrays do not say."""

    keys: Annotated[
        list[str] | None,
        typer.Option(
            "--keys",
            metavar="KEY,...",
            help="Take only the rows of these keys; a name in .txt is a list of keys, one per line.",
        ),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="Take only the first N rows of all inputs."),
    ] = None
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule",
            help="Grids of the scales of .npy arrays, as 1,2,4,8x12 (h x w), or a name as var-512; default: "
            "the checkpoint's, for as many tokens.",
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Return the options as keyword arguments of `decode_files` and `count_usage`.

        Raises:
            typer.BadParameter: a key is empty, or the list of keys is not text.
            OSError: the list of keys cannot be read.
        """
        from .files import parse_keys

        return {"keys": parse_keys(self.keys), "limit": self.limit, "schedule": self.schedule}


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """Options for reading pictures and for the grids of their tokens."""

    size: SizeOption = None
    fit: FitOption = "crop"
    zoom: ZoomOption = 1.0
    resample: ResampleOption = "lanczos"
    background: BackgroundOption = "white"
    schedule: ScheduleOption = None
    max_pixels: MaxPixelsOption = 100_000_000
    max_bytes: MaxBytesOption = 1 << 26
    allow_damaged: AllowDamagedOption = False

    def check(self, *, buckets: str | None = None) -> None:
        """Check the values of the options, before inputs are opened and a checkpoint is loaded.

        Args:
            buckets: the value of --buckets of a command that has it.

        Raises:
            ArgumentError: an invalid value, or options that contradict each other.
        """
        from vartok.operations import make_fit, make_schedule

        make_fit(
            self.fit,
            size=self.size,
            buckets=buckets,
            zoom=self.zoom,
            resample=self.resample,
            background=self.background,
            max_pixels=self.max_pixels,
            max_bytes=self.max_bytes,
        )
        make_schedule(self.schedule)


@dataclass(frozen=True, kw_only=True)
class EncodePictureOptions(PictureOptions):
    """Options of a command that takes every fit."""

    buckets: BucketsOption = None
    max_tokens: MaxTokensOption = 1 << 18


@dataclass(frozen=True, kw_only=True)
class NativePictureOptions(PictureOptions):
    """Options of a command that can keep the sizes of pictures."""

    fit: NativeFitOption = "crop"
    max_tokens: MaxTokensOption = 1 << 18


@dataclass(frozen=True, kw_only=True)
class SizedPictureOptions(PictureOptions):
    """Options of a command that gives all pictures one size, or those of buckets."""

    fit: SizedFitOption = "crop"
    buckets: BucketsOption = None
    scales: ScalesOption = None


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options for the checkpoint, its device and its dtype."""

    weights: WeightsOption = None
    device: DeviceOption = "auto"
    dtype: DtypeOption = "float32"

    def load(self, *, compile: bool = False) -> Tokenizer:
        """Return the tokenizer that the options select; see `load_tokenizer`."""
        return load_tokenizer(self.weights, self.device, self.dtype, compile=compile)


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """Options for the names of outputs, and for files that exist."""

    full_names: FullNamesOption = False
    force: ForceOption = False
    skip_existing: SkipExistingOption = False
    dry_run: DryRunOption = False

    def arguments(self) -> dict[str, Any]:
        """Return the options as keyword arguments of `encode_files` and `decode_files`."""
        return {
            "full_names": self.full_names,
            "overwrite": self.force,
            "skip_existing": self.skip_existing,
            "dry_run": self.dry_run,
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


def load_tokenizer(weights: Any, device: str, dtype: str, *, compile: bool = False) -> Tokenizer:
    """Load a tokenizer as `vartok.load` does, and tune the process for one short program.

    Importing torch takes seconds, so commands check their arguments first. From then on Python's garbage
    collector ignores all objects that exist after loading, and the C library keeps freed memory.
    """
    collects = gc.isenabled()
    gc.disable()  # garbage collection would take a fifth of the time of torch's import
    try:
        from vartok import loading, runtime

        tokenizer = loading.load(weights, device=device, dtype=dtype, compile=compile)
        runtime.keep_freed_memory()  # after loading, which frees what nobody needs again
        return tokenizer
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def warn_if_unused(reason: str, **values: str | None) -> None:
    """Warn of options of a model that were not used; defaults and values of environment variables pass.

    Args:
        reason: why they were not used.
        values: the values of the options.

    Warns:
        VartokWarning: an option was given.
    """
    for name, value in values.items():
        if value not in (None, "auto", "float32", os.environ.get(f"VARTOK_{name.upper()}")):
            warn(f"--{name} was not used: {reason}")
