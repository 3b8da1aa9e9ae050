"""`vartok inspect`: what a token file holds."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .files import TOKEN_SUFFIXES, gather, read_inputs
from .options import DebugOption, JsonOption
from .report import Report, command, shown

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
    """Tell what token files hold.

    The picture, the checkpoint, the schedule, and the first indices of every scale.

    Examples:
      vartok inspect img.tokens.npz
      vartok inspect all.jsonl --json | jq .image.source
    """
    files = gather(
        inputs, recursive=recursive, files_from=None, null=False, suffixes=TOKEN_SUFFIXES, kind="token files"
    )
    report = Report(len(files), verb="read", quiet=True, debug=debug)
    for item in files:
        for tokens in read_inputs(item, report):
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
    print(f"  picture     {shown(image.source)}, {image.width} x {image.height} pixels")
    where = f"{shown(image.dtype)} on {shown(image.device)}"
    print(f"  encoded     {width} x {height} pixels, {shown(image.fit)}{zoom}, {where}")
    print(f"  checkpoint  {shown(model.name)}, {model.vocab_size} codes, codebook {model.fingerprint[:12]}")
    print(f"  tokens      {sum(scale.size for scale in tokens.scales)} in {len(tokens.scales)} scales")
    for k, scale in enumerate(tokens.scales):
        first = " ".join(f"{index:>5}" for index in scale.ravel()[:SHOWN_INDICES])
        more = " ..." if scale.size > SHOWN_INDICES else ""
        print(f"    {k:>2}  {'x'.join(map(str, scale.shape)):>7}  {first}{more}")
