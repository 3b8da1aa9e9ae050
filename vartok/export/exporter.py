"""Export a checkpoint to files that run without vartok."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from vartok.checkpoints import Checkpoint, build_model, locate_checkpoint, read_checkpoint
from vartok.errors import ArgumentError, ScheduleError, VartokError, one_line, quoted, warn
from vartok.export.agreement import IMAGES, Agreement, check, compare
from vartok.export.formats import FORMATS, Format, write_part
from vartok.export.parts import parts
from vartok.files import open_output
from vartok.optional import is_installed, require
from vartok.schedule import Schedule, ScheduleLike, as_schedule, describe, to_json
from vartok.tokenizer import Tokenizer

FORMAT, VERSION = "vartok.part", "1"

NAMES = ("encoder", "quantizer", "dequantizer", "decoder")
"""The parts of a tokenizer, in the order of their work."""


MAX_CELLS = 1 << 16
"""Largest number of cells of a schedule's last grid: a picture of 4096x4096 pixels, if downsample is 16."""

MAX_MEMORY = 5 << 30
"""Largest number of bytes that an export may need for the quantizer: 4 GiB for the distances of `MAX_CELLS`
cells to 4096 codes, and 1 GiB for matrices."""

SMALLER = "export a smaller `schedule`"


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The result of `export_checkpoint`.

    Attributes:
        files: the files that were written, by the names of their parts.
        metadata: what every file tells about the checkpoint.
        agreement: how far the files agree with the checkpoint; None if they could not be run here.
    """

    files: dict[str, Path]
    metadata: dict[str, str]
    agreement: Agreement | None


def export_checkpoint(
    weights: str | Path | None,
    out: str | Path,
    to: str = "onnx",
    *,
    schedule: ScheduleLike | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> ExportReport:
    """Export a checkpoint to four files, one for each part, that run without vartok.

    | part | input | output |
    | --- | --- | --- |
    | encoder | images [B, 3, H, W] in [-1, 1] | latent [B, C, H / d, W / d] |
    | quantizer | latent [B, C, h, w] | tokens [B, L] int64, as `TokenMaps.flatten` orders them |
    | dequantizer | tokens [B, L] int64 | f_hat [B, C, h, w] |
    | decoder | f_hat [B, C, h, w] | images [B, 3, d h, d w] in [-1, 1] |

    3 is `config.in_channels`, d is `config.downsample`. Tensors but tokens are float32. B is free; so is the
    size in encoder and decoder, H and W being multiples of d. In quantizer and dequantizer, h and w are those
    of `schedule`.
    The files appear only if they agree with the checkpoint on images that are made here.

    Args:
        weights: the checkpoint, as for `vartok.load`.
        out: folder of the files; it is made if it does not exist.
        to: "onnx": ONNX files, of operator set 18; "torch-export": .pt2 files for `torch.export.load`.
        schedule: (h, w) of every scale, or a text such as "1,2,4" or "var-512"; the checkpoint's own if None.
        overwrite: replace files that exist.
        progress: called with a line about each step.

    Raises:
        ArgumentError: there is no format `to`.
        ScheduleError: `schedule` is not a schedule. Or the schedule, given or the checkpoint's own, ends in a
            grid of more than `MAX_CELLS` cells, or needs more than `MAX_MEMORY` bytes.
        CheckpointError: `weights` does not exist, or is not a checkpoint that vartok can run.
        OutputError: a file exists and `overwrite` is false, or it cannot be written.
        VartokError: a package that the format needs is not installed; or torch cannot export a part; or the
            files do not run, or do not agree with the checkpoint.

    Warns:
        VartokWarning: the package that runs the files is not installed, so that they were not checked.
    """
    if to not in FORMATS:
        raise ArgumentError(f"a checkpoint is exported to {' or '.join(FORMATS)}, not {quoted(to)}")
    chosen = FORMATS[to]
    require(*chosen.packages, extra="onnx", purpose=f"export to {to}")
    paths = {name: Path(out, f"{name}{chosen.suffix}") for name in NAMES}
    grids = None if schedule is None else as_schedule(schedule)
    existed = os.path.lexists(out)
    try:
        with contextlib.ExitStack() as stack:
            files = {
                name: stack.enter_context(open_output(path, overwrite=overwrite))
                for name, path in paths.items()
            }
            file = locate_checkpoint(weights)
            checkpoint = read_checkpoint(file)
            grids = grids or checkpoint.config.patch_nums
            _check_memory(grids, checkpoint.config.vocab_size)
            for note in checkpoint.notes:
                warn(f"{file.label}: {note}")
            return _write(checkpoint, chosen, grids, files, paths, progress)
    except BaseException:
        if not existed:
            with contextlib.suppress(OSError):
                Path(out).rmdir()
        raise


def _check_memory(schedule: Schedule, vocab_size: int) -> None:
    """Refuse a schedule that is too large to export.

    `compare` quantizes `IMAGES` latents at once, and a runtime holds up to two tables of their float32
    distances to all codes. `MatrixQuantizer` has two float32 matrices for each side of a coarser grid.

    Raises:
        ScheduleError: the last grid has more than `MAX_CELLS` cells, or all that takes over `MAX_MEMORY`.
    """
    *coarser, latent = schedule
    cells = math.prod(latent)
    if cells > MAX_CELLS:
        raise ScheduleError(
            f"the last grid, {describe((latent,))}, has more than {MAX_CELLS:,} cells", hint=SMALLER
        )
    resized = {pair for grid in coarser for pair in zip(grid, latent, strict=True)}
    values = 2 * IMAGES * cells * vocab_size + 2 * sum(math.prod(pair) for pair in resized)
    if 4 * values > MAX_MEMORY:
        raise ScheduleError(
            f"{len(schedule)} scales up to {describe((latent,))} and {vocab_size:,} codes need "
            f"{4 * values / 1e9:,.1f} GB of memory for the export, more than {MAX_MEMORY / 1e9:.1f} GB",
            hint=SMALLER,
        )


def _write(
    checkpoint: Checkpoint,
    to: Format,
    schedule: Schedule,
    files: Mapping[str, BinaryIO],
    paths: Mapping[str, Path],
    progress: Callable[[str], None],
) -> ExportReport:
    """Write and check the parts of a checkpoint.

    Args:
        checkpoint: the checkpoint.
        to: format of the files.
        schedule: (h, w) of every scale.
        files: an open, empty file for each part.
        paths: where the files will be.
        progress: called with a line about each step.
    """
    config, model = checkpoint.config, build_model(checkpoint)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "name": checkpoint.name,
        **({"license": checkpoint.license} if checkpoint.license else {}),
        "fingerprint": model.quantize.fingerprint(),
        "schedule": json.dumps(to_json(schedule)),
        "config": config.to_json(),
    }
    for part in parts(model, config, schedule):
        progress(f"exporting the {part.name}")
        write_part(part, to, metadata | {"part": part.name}, files[part.name])
        files[part.name].flush()
    agreement = None
    if is_installed(to.runtime):
        progress(f"comparing the files with the checkpoint in {to.runtime}")
        agreement = _compare(to, files, checkpoint, schedule)
    else:
        warn(f"the files were not checked: {to.runtime} is not installed")
    return ExportReport(files=dict(paths), metadata=metadata, agreement=agreement)


def _compare(
    to: Format, files: Mapping[str, BinaryIO], checkpoint: Checkpoint, schedule: Schedule
) -> Agreement:
    """Compare files with the checkpoint's tokenizer.

    Raises:
        VartokError: the files do not run, or do not agree, or the tokenizer itself cannot encode.
    """
    tokenizer = Tokenizer(
        build_model(checkpoint),
        checkpoint.config,
        name=checkpoint.name,
        device=torch.device("cpu"),
        dtype="float32",
    )
    try:
        agreement = compare(lambda name: to.load(Path(files[name].name)), tokenizer, schedule)
    except VartokError:  # the checkpoint itself gives no finite latent
        raise
    except Exception as error:  # whatever a runtime raises
        raise VartokError(f"{to.runtime} cannot run the exported files: {one_line(error)}") from error
    check(agreement)
    return agreement
