"""`vartok decode`: token files to pictures."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from vartok.errors import printable

from .command import command
from .files import parse_inputs, parse_output
from .options import (
    CompileOption,
    InputOptions,
    MessageOptions,
    ModelOptions,
    OutputOption,
    PictureFormat,
    WorkOptions,
    WriteOptions,
)
from .report import Report


@command
def decode(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", help="Token files, folders (-r), or - for stdin."),
    ] = None,
    output: OutputOption = None,
    format: Annotated[
        PictureFormat | None, typer.Option("--format", help="Default: by -o's suffix, else png.")
    ] = None,
    scales: Annotated[
        int | None,
        typer.Option("--scales", min=1, help="Decode only the first SCALES scales; default: all."),
    ] = None,
    strip: Annotated[
        bool, typer.Option("--strip", help="One wide picture: after 1, 2, ... scales, side by side.")
    ] = False,
    restore_size: Annotated[
        bool,
        typer.Option(
            "--restore-size", help="Undo --fit pad, stretch or native: the original's width and height."
        ),
    ] = False,
    any_weights: Annotated[
        bool,
        typer.Option("--any-weights", help="Decode tokens of another checkpoint's codebook all the same."),
    ] = False,
    *,
    model: ModelOptions,
    compile: CompileOption = False,
    sources: InputOptions,
    write: WriteOptions,
    work: WorkOptions,
    messages: MessageOptions,
) -> None:
    """Turn tokens into pictures.

    img.tokens.npz becomes img.decoded.png beside it, or under -o DIR. The pictures of
    a JSONL file, or of stdin, are named by the sources that their tokens name.

    Examples:
      vartok decode img.tokens.npz
      vartok decode img.tokens.npz --scales 4 -o coarse.png
      vartok decode img.tokens.npz --strip
      vartok decode all.jsonl -o pictures --format webp
    """
    from vartok.operations import decode_files

    given = parse_inputs(inputs, sources)
    results = decode_files(
        given,
        parse_output(output, given, binary="use -o"),
        format=format,
        scales=scales,
        strip=strip,
        restore_size=restore_size,
        any_weights=any_weights,
        recursive=sources.recursive,
        tokenizer=lambda: model.load(compile=compile),
        **write.arguments(),
        **dataclasses.asdict(work),
    )
    report = Report(results.total, verb="decoded", quiet=messages.quiet, debug=messages.debug)
    for result in results:
        report.add(result, f"decoded to {printable(result.output or 'stdout')}")
    report.finish()
