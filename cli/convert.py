"""`vartok convert`: any checkpoint to vartok's format."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vartok.errors import ArgumentError, CheckpointError, OutputError, printable
from vartok.files import os_error_reason

from .command import command
from .options import DebugOption, ForceOption, JsonOption

if TYPE_CHECKING:
    from vartok.checkpoints import Checkpoint


@command
def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="IN", help="A checkpoint: VAR-style .pth, safetensors, a folder."),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write.")],
    sha256: Annotated[
        str | None, typer.Option("--sha256", metavar="HEX", help="Stop unless the input file has this hash.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="JSON",
            help="Values that the file does not tell, e.g. '{\"patch_nums\": [1, 2, 4]}'.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Its name in token files.")] = None,
    license: Annotated[str | None, typer.Option("--license", help="The licence of its weights.")] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Convert a checkpoint to vartok's format.

    That is safetensors with the configuration in it. VAR's published vae_ch160v4096z32.pth is
    recognised by its hash.

    Examples:
      vartok convert vae_ch160v4096z32.pth vae.safetensors
      vartok convert trained.pth mine.safetensors --config '{"using_znorm": true}'
    """
    overrides = _parse(config)
    if output.suffix != ".safetensors":
        raise ArgumentError(f"{printable(output)}: the output's name ends in .safetensors")
    if output.exists() and not force:
        raise OutputError(f"{printable(output)} exists", hint="set `overwrite` to replace it")

    from vartok import checkpoints

    path = checkpoints.find_checkpoint(source)
    if output.exists() and path.exists() and output.samefile(path):
        raise ArgumentError(f"{printable(output)} is the input, which would be lost")
    try:
        found = checkpoints.file_sha256(path)
        if sha256 and found != sha256.lower():
            raise CheckpointError(f"{printable(path)}: has sha256 {found}, not {sha256}")
        checkpoint = checkpoints.read_checkpoint(path, overrides)
    except OSError as error:
        raise CheckpointError(f"{printable(path)}: {os_error_reason(error)}") from None
    published = found == checkpoints.PUBLISHED_SHA256
    if published:
        checkpoint = dataclasses.replace(checkpoint, name=checkpoints.PUBLISHED_NAME, license="MIT", notes=())
    checkpoint = dataclasses.replace(
        checkpoint, name=name or checkpoint.name, license=license or checkpoint.license
    )
    checkpoints.write_checkpoint(output, checkpoint, overwrite=force)
    summary = _summary(checkpoint) | {"published": published, "sha256": found, "output": str(output)}
    if as_json:
        print(json.dumps(summary))
    else:
        _print(summary)


def _summary(checkpoint: Checkpoint) -> dict[str, Any]:
    from vartok.checkpoints import HITS

    return {
        "name": checkpoint.name,
        "license": checkpoint.license,
        "tensors": len(checkpoint.tensors),
        "parameters": sum(t.numel() for key, t in checkpoint.tensors.items() if key != HITS),
        "config": json.loads(checkpoint.config.to_json()),
        "notes": checkpoint.notes,
    }


def _print(summary: dict[str, Any]) -> None:
    if summary["published"]:
        print("This is the tokenizer that VAR's authors published.")
    for key in ("name", "license", "sha256", "tensors", "parameters"):
        value = summary[key]
        print(f"{key:<12}{f'{value:,}' if isinstance(value, int) else printable(value or 'not known')}")
    for key, value in summary["config"].items():
        print(f"  {key:<18}{printable(value)}")
    for note in summary["notes"]:
        print(f"note: {printable(note)}")
    print(f"written to {printable(summary['output'])}")


def _parse(config: str | None) -> dict[str, object]:
    try:
        values = json.loads(config or "{}")
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"--config is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ArgumentError("--config is a JSON object, as '{\"patch_nums\": [1, 2, 4]}'")
    return values
