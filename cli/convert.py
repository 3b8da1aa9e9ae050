"""`vartok convert`: converts a checkpoint of a VAR-style tokenizer to vartok's format."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vartok.errors import ArgumentError, CheckpointError, OutputError, printable, quoted
from vartok.files import file_sha256, named_errors
from vartok.metadata import MAX_TEXT

from .command import command
from .files import output_path
from .messages import print_result, with_options
from .options import DebugOption, ForceOption, JsonOption

if TYPE_CHECKING:
    from vartok.checkpoints import Checkpoint, CheckpointFile


@command
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="Checkpoint: a .pth or safetensors file, a folder with one, a name, or hf://OWNER/REPO/FILE.",
        ),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT.safetensors", parser=output_path, help="The file to write.")
    ],
    sha256: Annotated[
        str | None, typer.Option("--sha256", metavar="HEX", help="Fail unless IN has this sha256.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="JSON",
            help="Values that complete or replace IN's configuration, as '{\"patch_nums\": [1, 2, 4]}'.",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            "--part",
            help="Key of the tokenizer in a file of several, as ema or trainer.vae_local; default: the only "
            "one, or the only one named EMA.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the checkpoint, written to its token files; default: IN's."),
    ] = None,
    license: Annotated[
        str | None, typer.Option("--license", help="Licence of the weights; default: IN's.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Convert a checkpoint to vartok's format.

    The format is safetensors with the configuration in its metadata. VAR's published
    vae_ch160v4096z32.pth is recognised by its hash.

    Examples:
      vartok convert vae_ch160v4096z32.pth vae.safetensors
      vartok convert trained.pth mine.safetensors --config '{"using_znorm": true}'
    """
    overrides = _parse(config)
    if name and (not name.isprintable() or len(name) > MAX_TEXT):
        raise ArgumentError(
            f"--name must be printable text of up to {MAX_TEXT:,} characters, not {quoted(name)}"
        )
    if license and re.search("[\ud800-\udfff]", license):  # bytes of an argument that are not UTF-8
        raise ArgumentError(f"--license is not valid Unicode: {quoted(license)}")
    if output.suffix != ".safetensors":
        raise ArgumentError(f"{printable(output)}: the output's name must end in .safetensors")
    if output.exists() and not force:
        raise OutputError(f"{printable(output)} exists", hint="set `overwrite` to replace it")

    from vartok import checkpoints

    file = checkpoints.locate_checkpoint(source)
    if output.exists() and output.samefile(file.path):
        raise ArgumentError(
            f"{printable(output)} is the input, which would be lost", hint="name another file"
        )
    checkpoint, found = _read(file, sha256, overrides, key)
    checkpoint = dataclasses.replace(
        checkpoint, name=name or checkpoint.name, license=license or checkpoint.license
    )
    checkpoints.write_checkpoint(output, checkpoint, overwrite=force)
    published = found == checkpoints.PUBLISHED_SHA256
    summary = _summary(checkpoint) | {"published": published, "sha256": found, "output": str(output)}
    print_result(json.dumps(summary) if as_json else _describe(summary))


def _read(
    file: CheckpointFile, sha256: str | None, overrides: dict[str, object], key: str | None
) -> tuple[Checkpoint, str]:
    """Return a checkpoint and the sha256 of its file.

    The checkpoint that VAR's authors published gets its name and licence.

    Args:
        file: the file.
        sha256: the expected sha256 in hex digits, or None.
        overrides: values that replace those of the checkpoint's configuration.
        key: key of the tokenizer in a file of several, or None.

    Raises:
        CheckpointError: the file has another sha256, or is not a checkpoint that vartok can run.
        OSError: the file cannot be read.
    """
    from vartok import checkpoints

    def hashed() -> str:
        with named_errors(file.path):
            return file_sha256(file.path)

    if sha256 and (found := hashed()) != sha256.lower():
        raise CheckpointError(f"{printable(file.label)}: has sha256 {found}, not {printable(sha256)}")
    checkpoint = checkpoints.read_checkpoint(file, overrides, key=key)  # refuses a large file of another kind
    found = hashed()
    if found == checkpoints.PUBLISHED_SHA256:
        name, license = checkpoints.PUBLISHED_NAME, checkpoints.KNOWN["var"].license
        checkpoint = dataclasses.replace(checkpoint, name=name, license=license, notes=())
    return checkpoint, found


def _summary(checkpoint: Checkpoint) -> dict[str, Any]:
    from vartok.checkpoints import HITS

    return {
        "name": checkpoint.name,
        "license": checkpoint.license,
        "tensors": len(checkpoint.tensors),
        "parameters": sum(t.numel() for key, t in checkpoint.tensors.items() if key != HITS),
        "config": json.loads(checkpoint.config.to_json()),
        "notes": [with_options(note) for note in checkpoint.notes],
    }


def _describe(summary: dict[str, Any]) -> str:
    lines = ["This is the tokenizer that VAR's authors published."] * summary["published"]
    for key in ("name", "license", "sha256", "tensors", "parameters"):
        value = summary[key]
        lines.append(
            f"{key:<12}{f'{value:,}' if isinstance(value, int) else printable(value or 'not known')}"
        )
    lines += [f"  {key:<18}{printable(value)}" for key, value in summary["config"].items()]
    lines += [f"note: {printable(note)}" for note in summary["notes"]]
    return "\n".join([*lines, f"written to {printable(summary['output'])}"])


def _parse(config: str | None) -> dict[str, object]:
    try:
        values = json.loads(config or "{}")
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"--config is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ArgumentError("--config must be a JSON object, as '{\"patch_nums\": [1, 2, 4]}'")
    return values
