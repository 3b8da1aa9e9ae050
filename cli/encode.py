"""`vartok encode`: encodes pictures to token files."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from vartok.errors import counted, printable
from vartok.suffixes import TokenFormat

from .command import command
from .files import parse_inputs, parse_output
from .options import (
    CompileOption,
    EncodePictureOptions,
    InputOptions,
    MessageOptions,
    ModelOptions,
    OutputOption,
    ScalesOption,
    WorkOptions,
    WriteOptions,
)
from .report import report_results


@command
def encode(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            help="Pictures, tars, Parquet and Arrow files, lists (.txt), folders (-r); - for stdin.",
        ),
    ] = None,
    output: OutputOption = None,
    format: Annotated[
        TokenFormat | None,
        typer.Option(
            "--format",
            help="Default: by -o's suffix, else npz. jsonl: one file for all pictures.",
        ),
    ] = None,
    scales: ScalesOption = None,
    *,
    pictures: EncodePictureOptions,
    model: ModelOptions,
    compile: CompileOption = False,
    sources: InputOptions,
    write: WriteOptions,
    work: WorkOptions,
    messages: MessageOptions,
) -> None:
    """Turn pictures into tokens.

    img.png becomes img.tokens.npz, in the same folder or under -o DIR. The token file of a
    picture in a tar or a table is named by the picture's key.

    Examples:
      vartok encode img.png
      vartok encode -r photos -o tokens
      vartok encode img.png --scales 5 -o coarse.npz
      vartok encode *.jpg -o all.jsonl
      cat img.png | vartok encode | vartok decode > out.png
    """
    from vartok.images import configure_pillow
    from vartok.operations import FileResult, encode_files
    from vartok.schedule import token_count

    pictures.check(buckets=pictures.buckets)
    configure_pillow(quiet=not messages.debug)
    given = parse_inputs(inputs, sources)
    text = format in ("json", "jsonl")
    target = parse_output(
        "-" if output is None and format == "jsonl" else output,
        given,
        binary="" if text else "use -o, or --format json",
    )
    results = encode_files(
        given,
        target,
        format=format,
        scales=scales,
        recursive=sources.recursive,
        tokenizer=lambda: model.load(compile=compile),
        weights=model.weights or "shipped",
        dtype=model.dtype,
        **write.arguments(),
        **dataclasses.asdict(pictures),
        **dataclasses.asdict(work),
    )

    def describe(result: FileResult) -> str:
        count = token_count(result.tokens.grids) if result.tokens else 0
        return f"{counted(count, 'token')} in {printable(result.output or 'stdout')}"

    report_results(results, target, describe, verb="encoded", write=write, messages=messages)
