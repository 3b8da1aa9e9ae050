"""`vartok inspect`: the contents of token files."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vartok.errors import VartokError, printable

from .command import command
from .files import parse_inputs
from .options import DebugOption, InputOptions, JsonOption
from .report import Report

if TYPE_CHECKING:
    from vartok.tokens import ImageTokens

SHOWN_INDICES = 8


@command
def inspect(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", help="Token files, folders (-r), or - for stdin."),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Search folders.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show the contents of token files.

    The picture, the checkpoint, the schedule, and the first indices of every scale.

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
                print(json.dumps({"file": str(item), **_summary(tokens)}))
            else:
                _show(str(item), tokens)
            report.done += 1
            sys.stdout.flush()
    report.finish()


def _summary(tokens: ImageTokens) -> dict[str, Any]:
    return {
        "model": dataclasses.asdict(tokens.model),
        "image": dataclasses.asdict(tokens.image),
        "schedule": tokens.schedule,
        "tokens": sum(scale.size for scale in tokens.scales),
        "first": [scale.ravel()[:SHOWN_INDICES].tolist() for scale in tokens.scales],
    }


def _show(name: str, tokens: ImageTokens) -> None:
    image, model = tokens.image, tokens.model
    height, width = image.size
    zoom = f", zoom {image.zoom:g}" if image.zoom != 1 else ""
    print(name)
    print(f"  picture     {printable(image.source)}, {image.width} x {image.height} pixels")
    where = f"{printable(image.dtype)} on {printable(image.device)}"
    print(f"  encoded     {width} x {height} pixels, {printable(image.fit)}{zoom}, {where}")
    identity = f"{model.vocab_size} codes, fingerprint {model.fingerprint[:12]}"
    print(f"  checkpoint  {printable(model.name)}, {identity}")
    print(f"  tokens      {sum(scale.size for scale in tokens.scales)} in {len(tokens.scales)} scales")
    for k, scale in enumerate(tokens.scales):
        first = " ".join(f"{index:>5}" for index in scale.ravel()[:SHOWN_INDICES])
        more = " ..." if scale.size > SHOWN_INDICES else ""
        print(f"    {k:>2}  {'x'.join(map(str, scale.shape)):>7}  {first}{more}")
