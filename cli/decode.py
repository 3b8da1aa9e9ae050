"""`vartok decode`: decodes token files to pictures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
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
    RowOptions,
    WorkOptions,
    WriteOptions,
)
from .report import report_results


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """Options for the decoded pictures."""

    format: Annotated[
        PictureFormat | None,
        typer.Option("--format", help="Default: by -o's suffix, else png; webp with --animate."),
    ] = None
    scales: Annotated[
        int | None,
        typer.Option("--scales", metavar="N", min=1, help="Decode only the first N scales; default: all."),
    ] = None
    strip: Annotated[
        bool,
        typer.Option(
            "--strip", help="Make one wide picture: the images decoded from the first 1, 2, ... scales."
        ),
    ] = False
    animate: Annotated[
        bool,
        typer.Option("--animate", help="Make an animation of these images: webp, gif or png (APNG)."),
    ] = False
    frame_time: Annotated[
        float | None,
        typer.Option(
            "--frame-time", metavar="SECONDS", help="With --animate: time of each image; default: 0.5."
        ),
    ] = None
    loops: Annotated[
        int | None,
        typer.Option("--loops", metavar="N", min=0, help="With --animate: play N times; default: no end."),
    ] = None
    maps: Annotated[
        bool,
        typer.Option(
            "--maps", help="Draw the token maps, in the colours of their codes, above what each scale adds."
        ),
    ] = False
    beside: Annotated[
        str | None,
        typer.Option(
            "--beside",
            metavar="PICTURE",
            help="Draw the original beside the decoded image, or beside those of --strip, with their PSNR.",
        ),
    ] = None
    restore_size: Annotated[
        bool,
        typer.Option(
            "--restore-size",
            help="Resize to the original's width and height; not for tokens of --fit crop or bucket.",
        ),
    ] = False
    any_weights: Annotated[
        bool,
        typer.Option("--any-weights", help="Also decode tokens that were made with another codebook."),
    ] = False


@command
def decode(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", help="Token files, arrays (.npy), data sets, folders (-r), or -."),
    ] = None,
    output: OutputOption = None,
    *,
    pictures: DecodeOptions,
    rows: RowOptions,
    model: ModelOptions,
    compile: CompileOption = False,
    sources: InputOptions,
    write: WriteOptions,
    work: WorkOptions,
    messages: MessageOptions,
) -> None:
    """Turn tokens into pictures.

    img.tokens.npz becomes img.decoded.png, in the same folder or under -o DIR; img.strip.png,
    img.animated.webp, img.maps.png or img.beside.png with the option of that name. Pictures of a
    JSONL file or of stdin are named by the source that is stored with their tokens, those of a
    data set by their keys, and those of an array [B, L] by their row.

    Examples:
      vartok decode img.tokens.npz
      vartok decode img.tokens.npz --scales 4 -o coarse.png
      vartok decode img.tokens.npz --strip
      vartok decode img.tokens.npz --animate
      vartok decode img.tokens.npz --maps
      vartok decode img.tokens.npz --beside img.png
      vartok decode all.jsonl -o pictures --format webp
      vartok decode DATASET -o pictures --limit 8
      vartok decode samples.npy -o pictures
    """
    from vartok.operations import decode_files

    given = parse_inputs(inputs, sources)
    target = parse_output(output, given, binary="use -o")
    results = decode_files(
        given,
        target,
        recursive=sources.recursive,
        tokenizer=lambda: model.load(compile=compile),
        **dataclasses.asdict(pictures),
        **rows.arguments(),
        **write.arguments(),
        **dataclasses.asdict(work),
    )
    report_results(
        results,
        target,
        lambda result: f"decoded to {printable(result.output or 'stdout')}",
        verb="decoded",
        write=write,
        messages=messages,
    )
