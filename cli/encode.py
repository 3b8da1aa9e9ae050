"""`vartok encode`: pictures to token files."""

from __future__ import annotations

import math
import sys
from pathlib import Path, PurePath
from typing import Annotated

import typer

from vartok.errors import VartokError

from .files import Input, Output, choose_format, gather_pictures, is_free, stem, write_file, write_stream
from .options import (
    BackgroundOption,
    BatchSizeOption,
    CompileOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    FilesFromOption,
    FitOption,
    ForceOption,
    FullNamesOption,
    MaxPixelsOption,
    NullOption,
    OutputOption,
    QuietOption,
    RecursiveOption,
    ScheduleOption,
    SizeOption,
    SkipExistingOption,
    TokenFormat,
    WeightsOption,
    WorkersOption,
    ZoomOption,
    default_batch_size,
    default_workers,
    fit_to,
    load_tokenizer,
    parse_fit,
)
from .report import Report, command, shown, usage_errors

FORMATS_BY_SUFFIX: dict[str, TokenFormat] = {".npz": "npz", ".json": "json", ".jsonl": "jsonl"}


@command
def encode(
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT", help="Pictures, folders (-r), or - for stdin.")
    ] = None,
    output: OutputOption = None,
    format: Annotated[
        TokenFormat | None,
        typer.Option(
            "--format", help="Default: by -o's suffix, else npz. jsonl puts all pictures into one file."
        ),
    ] = None,
    size: SizeOption = None,
    fit: FitOption = "crop",
    zoom: ZoomOption = 1.0,
    background: BackgroundOption = "white",
    schedule: ScheduleOption = None,
    max_pixels: MaxPixelsOption = 100_000_000,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    compile: CompileOption = False,
    recursive: RecursiveOption = False,
    files_from: FilesFromOption = None,
    null: NullOption = False,
    full_names: FullNamesOption = False,
    force: ForceOption = False,
    skip_existing: SkipExistingOption = False,
    batch_size: BatchSizeOption = None,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Turn pictures into tokens.

    img.png becomes img.tokens.npz beside it, or under -o DIR.

    Examples:
      vartok encode img.png
      vartok encode -r photos -o tokens
      vartok encode *.jpg -o all.jsonl
      cat img.png | vartok encode | vartok decode > out.png
    """
    from vartok.schedule import parse_schedule, token_count

    fitted = parse_fit(fit, size, zoom, background, max_pixels)
    with usage_errors():
        grids = parse_schedule(schedule) if schedule is not None else None
    files = gather_pictures(inputs, recursive=recursive, files_from=files_from, null=null, debug=debug)
    chosen = choose_format(output, format, FORMATS_BY_SUFFIX, default="npz")
    report = Report(len(files), verb="encoded", quiet=quiet, debug=debug)

    def rename(name: PurePath) -> PurePath:
        base = stem(name, (), full=full_names)
        return base.with_name(f"{base.name}.tokens.{chosen}")

    if chosen == "jsonl":
        if output and (output.endswith("/") or Path(output).is_dir()):
            raise typer.BadParameter(f"-o {shown(output)} is a folder: name the one jsonl file in it")
        target = Output(rename, stream=True, file=None if output in (None, "-") else Path(str(output)))
    else:
        target = Output.resolve(
            output,
            files,
            rename,
            many=len(files) > 1 or recursive or files_from is not None,
            suffixes=FORMATS_BY_SUFFIX,
        )
        if target.stream and chosen == "npz" and sys.stdout.isatty():
            raise typer.BadParameter("npz is binary, and stdout a terminal: use -o, or --format json")
    planned = target.plan(files, report, force=force, skip=skip_existing)
    if not planned:
        report.finish()
        return

    tokenizer = load_tokenizer(weights, device, dtype, compile=compile)
    from vartok.operations import encode_pictures

    def free(item: Input, path: Path | None) -> bool:  # still: other runs may fill the same folder
        return path is None or is_free(item, path, report, force=force, skip=skip_existing)

    fitted = fit_to([tokenizer], fitted, size, grids)
    results = encode_pictures(
        tokenizer,
        ((entry, entry[0].source, entry[0].read()) for entry in planned if free(*entry)),
        fitted,
        schedule=grids,
        batch_size=default_batch_size(
            batch_size, tokenizer, None if fitted.mode == "native" else math.prod(fitted.size)
        ),
        workers=min(default_workers(workers), len(planned)),
    )
    with target.open(overwrite=force) as stream:
        for (item, path), result in results:
            if isinstance(result, VartokError):
                report.fail(str(item), result)
                continue
            place = shown(path or target.file or "stdout")
            try:
                data = result.to_npz() if chosen == "npz" else f"{result.to_json()}\n".encode()
                if path is None:
                    write_stream(stream, data, place)
                else:
                    write_file(path, data, overwrite=force)
            except VartokError as error:
                if path is None or free(item, path):  # else it appeared just now, and that is said
                    report.fail(str(item), error)
            else:
                report.succeed(str(item), f"{token_count(result.schedule)} tokens in {place}", result.notes)
        if not report.done:
            report.finish()  # raises, so that no file of nothing appears
    report.finish()
