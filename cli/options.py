"""Options that several commands share, each written once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from vartok.tokenizer import Tokenizer

Dtype = Literal["float32", "bfloat16", "float16"]
TokenFormat = Literal["npz", "json", "jsonl"]
PictureFormat = Literal["png", "jpg", "webp"]
FitMode = Literal["crop", "pad", "stretch", "native"]

WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        "-w",
        envvar="VARTOK_WEIGHTS",
        help="Checkpoint (safetensors or .pth); default: the shipped one.",
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", envvar="VARTOK_DEVICE", help="auto, cpu, cuda, cuda:1, mps, ...")
]
DtypeOption = Annotated[
    Dtype,
    typer.Option("--dtype", help="float32 gives VAR's own tokens; the others are for GPUs, and change many."),
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
        help="Pictures that go through the model together; default: 1 on a CPU, else 32.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, max=256, help="Threads that read or write pictures; default: one a core, up to 8."
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only say what failed.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def default_workers(workers: int | None) -> int:
    """The number of threads where none is given."""
    return workers or min(
        8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


def default_batch_size(batch_size: int | None, tokenizer: Tokenizer) -> int:
    """The batch size where none is given: a CPU takes pictures one by one whatever the batch."""
    return batch_size or (1 if tokenizer.device.type == "cpu" else 32)


def load_tokenizer(weights: Path | None, device: str, dtype: str) -> Tokenizer:
    """Import torch and load the checkpoint: what makes a command slow to start, so done last."""
    import vartok

    return vartok.load(weights, device=device, dtype=dtype)
