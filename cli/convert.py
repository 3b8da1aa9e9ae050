"""`vartok convert`: any checkpoint to vartok's format."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from vartok.errors import CheckpointError

from .options import DebugOption, ForceOption, JsonOption
from .report import command, shown


@command
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A checkpoint: VAR-style .pth, or safetensors.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write.")],
    sha256: Annotated[
        str | None, typer.Option("--sha256", metavar="HEX", help="Stop unless the input file has this hash.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config", metavar="JSON", help="What the file does not say, e.g. '{\"patch_nums\": [1, 2, 4]}'."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What token files shall call it.")] = None,
    license: Annotated[str | None, typer.Option("--license", help="The licence of its weights.")] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Bring a checkpoint into vartok's format.

    That is safetensors with the configuration in it. VAR's published vae_ch160v4096z32.pth is
    recognised by its hash.

    Examples:
      vartok convert vae_ch160v4096z32.pth vae.safetensors
      vartok convert trained.pth mine.safetensors --config '{"using_znorm": true}'
    """
    overrides = _parse(config)
    if output.suffix != ".safetensors":
        raise typer.BadParameter(f"{shown(output)}: name the output .safetensors")
    if output.exists() and not force:
        raise CheckpointError(f"{shown(output)} exists: use --force to overwrite it")
    if output.exists() and output.samefile(source):
        raise typer.BadParameter(f"{shown(output)} is the input, which would be lost")

    from vartok import checkpoints

    try:
        found = checkpoints.file_sha256(source)
        if sha256 and found != sha256.lower():
            raise CheckpointError(f"has sha256 {found}, not {sha256}")
        checkpoint = checkpoints.read_checkpoint(source, overrides)
    except CheckpointError as error:
        raise CheckpointError(f"{shown(source)}: {error}") from None
    published = found == checkpoints.PUBLISHED_SHA256
    if published:
        checkpoint = dataclasses.replace(checkpoint, name=checkpoints.PUBLISHED_NAME, license="MIT", notes=())
    checkpoint = dataclasses.replace(
        checkpoint, name=name or checkpoint.name, license=license or checkpoint.license
    )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.write_checkpoint(output, checkpoint, overwrite=force)
    except OSError as error:
        raise CheckpointError(f"cannot write {shown(output)}: {error.strerror or error}") from None

    report = {
        "name": checkpoint.name,
        "license": checkpoint.license,
        "published": published,
        "sha256": found,
        "tensors": len(checkpoint.tensors),
        "parameters": sum(t.numel() for key, t in checkpoint.tensors.items() if key != checkpoints.HITS),
        "config": json.loads(checkpoint.config.to_json()),
        "notes": checkpoint.notes,
        "output": str(output),
    }
    if as_json:
        print(json.dumps(report))
        return
    if published:
        print("This is the tokenizer that VAR's authors published.")
    for key in ("name", "license", "sha256", "tensors", "parameters"):
        value = report[key]
        print(f"{key:<12}{f'{value:,}' if isinstance(value, int) else shown(value or 'not told')}")
    for key, value in json.loads(checkpoint.config.to_json()).items():
        print(f"  {key:<18}{shown(value)}")
    for note in checkpoint.notes:
        print(f"note: {shown(note)}")
    print(f"written to {shown(output)}")


def _parse(config: str | None) -> dict[str, object]:
    try:
        values = json.loads(config or "{}")
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"--config is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise typer.BadParameter("--config is a JSON object, as '{\"patch_nums\": [1, 2, 4]}'")
    return values
