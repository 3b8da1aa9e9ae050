"""`vartok decode`: token files to pictures."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from vartok.errors import VartokError

from .files import (
    TOKEN_ENDINGS,
    TOKEN_SUFFIXES,
    Input,
    Output,
    choose_format,
    foreign,
    gather,
    is_free,
    read_inputs,
    stem,
    write_file,
    write_stream,
)
from .options import (
    BatchSizeOption,
    CompileOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    FilesFromOption,
    ForceOption,
    FullNamesOption,
    NullOption,
    OutputOption,
    PictureFormat,
    QuietOption,
    RecursiveOption,
    SkipExistingOption,
    WeightsOption,
    WorkersOption,
    default_batch_size,
    default_workers,
    load_tokenizer,
)
from .report import Report, command, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vartok.tokens import ImageInfo, ImageTokens


class Job(NamedTuple):
    """One picture to draw: what messages call it, the file it goes to (None: stdout), what it was."""

    label: str
    path: Path | None
    image: ImageInfo


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
        typer.Option("--scales", min=1, help="Draw what the first SCALES scales give; default: all."),
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
        bool, typer.Option("--any-weights", help="Draw tokens of another checkpoint's codebook all the same.")
    ] = False,
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
    """Draw the pictures of tokens.

    img.tokens.npz becomes img.decoded.png beside it, or under -o DIR. The pictures of
    a JSONL file, or of stdin, are named by what their tokens call their source.

    Examples:
      vartok decode img.tokens.npz
      vartok decode img.tokens.npz --scales 4 -o coarse.png
      vartok decode img.tokens.npz --strip
      vartok decode all.jsonl -o pictures --format webp
    """
    from vartok.images import SUFFIXES

    suffix = PurePath(output or "").suffix.lower()
    chosen = choose_format(output, format, SUFFIXES, default="png")

    def rename(name: PurePath) -> PurePath:
        base = stem(name, TOKEN_ENDINGS, full=full_names)
        return base.with_name(f"{base.name}.{'strip' if strip else 'decoded'}.{chosen}")

    files = gather(
        inputs,
        recursive=recursive,
        files_from=files_from,
        null=null,
        suffixes=TOKEN_SUFFIXES,
        kind="token files",
    )
    single = [item for item in files if not _is_collection(item)]
    report = Report(len(files) if single == files else None, verb="decoded", quiet=quiet, debug=debug)
    many = len(files) > 1 or recursive or files_from is not None
    many = many or (single != files and suffix not in SUFFIXES)
    target = Output.resolve(output, files, rename, many=many, suffixes=SUFFIXES)
    if target.stream and sys.stdout.isatty():
        raise typer.BadParameter("a picture is binary, and stdout a terminal: use -o")
    paths = dict(target.plan(single, report, force=force, skip=skip_existing))
    todo = [item for item in files if item in paths or _is_collection(item)]
    if not todo:
        report.finish()
        return

    tokenizer = load_tokenizer(weights, device, dtype, compile=compile)
    from vartok.operations import decode_tokens
    from vartok.parallel import map_ordered

    def jobs() -> Iterator[tuple[Job, ImageTokens | VartokError]]:
        taken: set[str] = set()
        for item in todo:
            for tokens in read_inputs(item, report):
                label, path = str(item), paths.get(item)
                if item not in paths:
                    source = tokens.image.source
                    label, path = f"{item}: {shown(source)}", target.path_in(item, source)
                job, place = Job(label, path, tokens.image), os.path.abspath(path) if path else "stdout"
                error: VartokError | None = None
                if place in taken:
                    error = VartokError(
                        f"{shown(path or place)} has a picture already: {_cure(item, target)}"
                    )
                elif path and not is_free(label, path, report, force=force, skip=skip_existing):
                    continue
                elif not any_weights:
                    error = foreign(tokens, tokenizer)
                taken.add(place)
                yield job, error or tokens

    def draw(drawn: tuple[Job, list[NDArray[np.uint8]] | VartokError]) -> tuple[Job, bytes | VartokError]:
        job, pictures = drawn
        if not isinstance(pictures, VartokError):
            try:
                return job, _draw(job, pictures, chosen, restore_size=restore_size, overwrite=force)
            except VartokError as error:
                return job, error
            except MemoryError:
                return job, VartokError("not enough memory to draw it")
        return job, pictures

    threads = default_workers(workers)
    batch = default_batch_size(batch_size, tokenizer)
    pictures = decode_tokens(tokenizer, jobs(), scales=scales, strip=strip, batch_size=batch)
    for job, result in map_ordered(draw, pictures, workers=threads, limit=2 * threads):
        if isinstance(result, VartokError):
            report.fail(job.label, result)
            continue
        if job.path is None:
            write_stream(sys.stdout.buffer, result, "stdout")
        report.succeed(job.label, f"drawn in {shown(job.path or 'stdout')}")
    report.finish()


def _is_collection(item: Input) -> bool:
    """Whether it may hold several images, whose names then come from what they call their source."""
    return item.path is None or item.path.suffix.lower() == ".jsonl"


def _cure(item: Input, target: Output) -> str:
    """What to do where a second picture would go to the place of a first."""
    if target.stream or target.file:
        return "-o names a folder"
    return "two are called so" if _is_collection(item) else "a file of several is named .jsonl"


def _draw(
    job: Job, pictures: list[NDArray[np.uint8]], format: str, *, restore_size: bool, overwrite: bool
) -> bytes:
    """The pictures side by side, as a file's bytes; written where the job has a path."""
    import numpy as np

    from vartok import images

    if restore_size:
        width, height, mode = job.image.width, job.image.height, job.image.fit
        room = images.MAX_PIXELS // len(pictures)
        with images.large_image_lock(len(pictures) * width * height):
            pictures = [
                images.restore_size(pixels, width=width, height=height, mode=mode, max_pixels=room)
                for pixels in pictures
            ]
            data = images.encode_picture(np.concatenate(pictures, axis=1), format)
    else:
        data = images.encode_picture(np.concatenate(pictures, axis=1), format)
    if job.path is not None:
        write_file(job.path, data, overwrite=overwrite)
    return data
