"""`vartok export`: writes a checkpoint's parts as ONNX or as torch's exported programs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vartok.errors import printable
from vartok.stopping import as_exceptions

from .command import command
from .display import Display
from .files import output_path
from .messages import print_result
from .options import ForceOption, JsonOption, MessageOptions, WeightsOption

if TYPE_CHECKING:
    from vartok.export import ExportReport


@command
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", parser=output_path, help="Folder of the files.")],
    to: Annotated[
        Literal["onnx", "torch-export"],
        typer.Option("--to", help="onnx: .onnx files; torch-export: .pt2 files, for torch.export.load."),
    ],
    messages: MessageOptions,
    weights: WeightsOption = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule",
            help="Schedule of quantizer and dequantizer: grids, coarse to fine, as 1,2,4,8x12 (h x w), or a "
            "name as var-512; default: the checkpoint's.",
        ),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export a checkpoint to files that run without vartok.

    OUT gets a file for each part: encoder (images to latent), quantizer (latent to tokens),
    dequantizer (tokens to f_hat) and decoder (f_hat to images). They are run on pictures that
    are made for that, and appear only if they agree with the checkpoint.

    Examples:
      vartok export exported --to onnx
      vartok export exported512 --to torch-export --schedule var-512
    """
    from vartok.export import export_checkpoint

    display = Display(quiet=messages.quiet)
    with as_exceptions(), contextlib.closing(display):
        report = export_checkpoint(
            weights, out, to, schedule=schedule, overwrite=force, progress=display.update
        )
    summary = _summary(report)
    if as_json or not messages.quiet:
        print_result(json.dumps(summary) if as_json else _describe(summary))


def _summary(report: ExportReport) -> dict[str, Any]:
    return {
        "files": {
            name: {"path": str(path), "bytes": path.stat().st_size} for name, path in report.files.items()
        },
        "metadata": report.metadata,
        "agreement": report.agreement and dataclasses.asdict(report.agreement),
    }


def _describe(summary: dict[str, Any]) -> str:
    lines = [f"{file['bytes']:>13,} bytes  {printable(file['path'])}" for file in summary["files"].values()]
    if agreement := summary["agreement"]:
        lines += [
            "agreement with the checkpoint:",
            f"  latent   within {agreement['latent']:.1e} of the largest value",
            f"  tokens   {agreement['tokens']:.2%} equal",
            f"  f_hat    within {agreement['f_hat']:.1e} of the largest value",
            f"  images   within {agreement['images']:.1e}, pixels being in [-1, 1]",
        ]
    return "\n".join(lines)
