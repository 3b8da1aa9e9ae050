"""`vartok inspect`: shows the contents of token files."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vartok.errors import VartokError, counted, printable

from .command import command
from .files import parse_inputs
from .messages import print_result
from .options import DebugOption, InputOptions, JsonOption
from .report import Report

if TYPE_CHECKING:
    from vartok.tokens import ImageTokens

SHOWN_INDICES = 8
"""Largest number of indices of a scale that are shown."""


@command
def inspect(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", help="Token files, folders (-r), or - for stdin."),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Search folders for token files.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show the contents of token files.

    For each image, print its source, its checkpoint, and the grid and first indices of every scale.

    Examples:
      vartok inspect img.tokens.npz
      vartok inspect all.jsonl --json | jq .image.source
    """
    from vartok.operations import find_inputs, read_input
    from vartok.operations.inputs import TOKENS

    files = find_inputs(parse_inputs(inputs, InputOptions()), TOKENS, recursive=recursive)
    report = Report(len(files), verb="read", quiet=True, debug=debug)
    for item in files:
        for tokens in read_input(item):
            if isinstance(tokens, VartokError):
                report.fail(str(item), tokens)
                continue
            if as_json:
                print_result(json.dumps({"file": str(item), **_summary(tokens)}))
            else:
                print_result(_describe(str(item), tokens))
            report.done += 1
    report.finish()


def _summary(tokens: ImageTokens) -> dict[str, Any]:
    return {
        "model": dataclasses.asdict(tokens.model),
        "image": dataclasses.asdict(tokens.image),
        "schedule": tokens.schedule,
        "tokens": sum(scale.size for scale in tokens.scales),
        "first": [scale.ravel()[:SHOWN_INDICES].tolist() for scale in tokens.scales],
    }


def _describe(name: str, tokens: ImageTokens) -> str:
    image, model = tokens.image, tokens.model
    height, width = image.size
    zoom = f", zoom {image.zoom:g}" if image.zoom != 1 else ""
    where = f"{printable(image.dtype)} on {printable(image.device)}"
    identity = f"{counted(model.vocab_size, 'code')}, fingerprint {model.fingerprint[:12]}"
    total = sum(scale.size for scale in tokens.scales)
    lines = [
        name,
        f"  picture     {printable(image.source)}, {image.width} x {image.height} pixels",
        f"  encoded     {width} x {height} pixels, {printable(image.fit)}{zoom}, {where}",
        f"  checkpoint  {printable(model.name)}, {identity}",
        f"  tokens      {total:,} in {counted(len(tokens.scales), 'scale')}",
    ]
    for k, scale in enumerate(tokens.scales):
        first = " ".join(f"{index:>5}" for index in scale.ravel()[:SHOWN_INDICES])
        more = " ..." if scale.size > SHOWN_INDICES else ""
        lines.append(f"    {k:>2}  {'x'.join(map(str, scale.shape)):>7}  {first}{more}")
    return "\n".join(lines)
