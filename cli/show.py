"""`vartok show`: draws pictures, tokens and checkpoints in the terminal, or as a PNG."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from vartok.errors import VartokError, counted, printable

from .command import command
from .files import STDIO, check_output, output_name, parse_inputs, protect_inputs
from .messages import say
from .options import (
    ForceOption,
    InputOptions,
    MessageOptions,
    ModelOptions,
    RowOptions,
    load_tokenizer,
    warn_if_unused,
)
from .report import Report

if TYPE_CHECKING:
    from PIL import Image

    from vartok.drawing import Tile
    from vartok.operations.show import Drawing
    from vartok.tokenizer import Tokenizer

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Suffixes of a file that can be written."""


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Options for what is drawn."""

    sheet: Annotated[
        bool,
        typer.Option(
            "--sheet",
            help="Draw all in one picture, labelled; decoded tokens beside their original, if it is at hand.",
        ),
    ] = False
    build_up: Annotated[
        bool,
        typer.Option("--scales", help="Draw the images decoded from the first 1, 2, ... scales of tokens."),
    ] = False
    maps: Annotated[
        bool,
        typer.Option(
            "--tokens", help="Draw the token maps, in the colours of their codes, above what each scale adds."
        ),
    ] = False
    animate: Annotated[
        bool,
        typer.Option(
            "--animate",
            help="Write the build-up of an image's tokens as an animation to -o: .webp, .gif, .png or .apng.",
        ),
    ] = False
    rows: Annotated[
        str | None,
        typer.Option(
            "--rows",
            metavar="N,N-N,...",
            help="Take only these rows, counted from 0, of data sets and arrays; without --rows, --keys "
            "and --limit the first 8.",
        ),
    ] = None
    any_weights: Annotated[
        bool,
        typer.Option("--any-weights", help="Also decode tokens that were made with another codebook."),
    ] = False


@command
def show(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="X", help="Pictures, token files, arrays (.npy), data sets, checkpoints, or - for stdin."
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT.png",
            parser=output_name,
            help="Write one picture (.png, .jpg, .webp; with --animate .webp, .gif, .png, .apng), or - for a "
            "PNG on stdout; default: the terminal, or stdout if it is none.",
        ),
    ] = None,
    *,
    options: ShowOptions,
    selection: RowOptions,
    model: ModelOptions,
    force: ForceOption = False,
    messages: MessageOptions,
) -> None:
    """Show pictures, tokens and checkpoints in the terminal.

    Tokens are decoded, and of a checkpoint its atlas is drawn: all codes, similar ones side by
    side. A caption states size and checkpoint, and PSNR where the original is at hand: named
    too, or beside the token file. Terminals with sixel or kitty graphics show pictures, others
    coloured half blocks; TERM=dumb and NO_COLOR letters.

    Examples:
      vartok show img.png
      vartok show img.tokens.npz --scales
      vartok show img.tokens.npz --tokens
      vartok show img.tokens.npz --animate -o img.webp
      vartok show img.png img.tokens.npz --sheet -o both.png
      vartok show DATASET --rows 0,7,100-103
      vartok show light
    """
    from vartok.operations.inputs import peek
    from vartok.operations.show import draw_files

    given = parse_inputs(inputs, InputOptions())
    if options.animate and options.sheet:
        raise typer.BadParameter("--animate does not go with --sheet")
    if not inputs and not isinstance(given[0], str) and not peek(given[0]):
        raise typer.BadParameter(
            "no X, and standard input is empty: name pictures, tokens or checkpoints, or pipe one in"
        )
    names = [name for name in given if isinstance(name, str)]
    target = _parse_target(output, names, force, animate=options.animate)
    loaded: list[str | None] = []

    def load(weights: str | None) -> Tokenizer:
        loaded.append(weights)
        return load_tokenizer(weights, model.device, model.dtype)

    drawings = draw_files(
        given,
        load=load,
        weights=model.weights,
        build_up=options.build_up,
        maps=options.maps,
        animate=options.animate,
        originals=options.sheet,
        any_weights=options.any_weights,
        rows=parse_rows(options.rows),
        **selection.arguments(),
    )
    report = Report(None, verb="shown", quiet=True, debug=messages.debug)
    with report:
        succeeded = _succeeded(drawings, report, quiet=messages.quiet)
        if target is None and not options.sheet:
            _show_each(succeeded)
        else:
            _show_sheet(succeeded, target, options, messages, overwrite=force)
        if model.weights not in loaded:
            warn_if_unused("no tokens were decoded", weights=model.weights)
        if not loaded:
            warn_if_unused("no checkpoint was loaded", device=model.device, dtype=model.dtype)
        report.finish()


def parse_rows(text: str | None) -> list[int] | None:
    """Return the numbers of --rows: "0,7,100-103" is [0, 7, 100, 101, 102, 103].

    Raises:
        typer.BadParameter: the text is of another form, or names more than a million rows.
    """
    if text is None:
        return None
    rows: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()) or (dash and not last) or len(part) > 30:
            raise typer.BadParameter(
                f"--rows takes numbers and ranges, as 0,7,100-103, not {printable(part)}"
            )
        if not 0 <= int(last or first) - int(first) < 1_000_000 - len(rows):
            raise typer.BadParameter(f"--rows {printable(text, 60)}: a range is empty, or too long")
        rows += range(int(first), int(last or first) + 1)
    return rows


def _parse_target(
    output: str | None, inputs: list[str], force: bool, *, animate: bool = False
) -> Path | BinaryIO | None:
    """Return the file of the output, or stdout; None for the terminal.

    Raises:
        typer.BadParameter: the file is an input, an animation has no file, or a PNG would go to the terminal.
        typer.BadParameter, OutputError: see `check_output`.
    """
    from vartok.images.animation import ANIMATIONS

    if animate and output in (None, STDIO):
        raise typer.BadParameter("--animate needs a file: -o OUT.webp, OUT.gif, OUT.png or OUT.apng")
    if output is None:
        return None if sys.stdout.isatty() else sys.stdout.buffer
    if output == STDIO:
        if sys.stdout.isatty():
            raise typer.BadParameter("a PNG is binary, but stdout is a terminal: leave -o out")
        return sys.stdout.buffer
    path = Path(output)
    protect_inputs(path, inputs)
    check_output(path, tuple(ANIMATIONS) if animate else PICTURE_SUFFIXES, "-o", force=force)
    return path


def _succeeded(drawings: Iterator[Drawing], report: Report, *, quiet: bool) -> Iterator[Drawing]:
    """Yield the drawings that are no failures; report these, and print notes."""
    for drawing in drawings:
        if drawing.error is not None:
            report.fail(drawing.label, drawing.error)
            continue
        report.succeed(drawing.label, "shown")
        for note in drawing.notes if not quiet else ():
            say(f"{drawing.label}: {note}")
        yield drawing


def _show_each(drawings: Iterator[Drawing]) -> None:
    from .terminal import Screen

    screen = Screen()
    for drawing in drawings:
        screen.show(drawing.tiles, columns=len(drawing.tiles), heading=drawing.heading)


def _show_sheet(
    drawings: Iterator[Drawing],
    target: Path | BinaryIO | None,
    options: ShowOptions,
    messages: MessageOptions,
    *,
    overwrite: bool,
) -> None:
    """Draw all in one picture. A single picture without --sheet goes to a file as it is, without a caption.

    Raises:
        ImageError: the sheet would be too large.
        OutputError, OSError: the picture cannot be written.
    """
    from vartok.drawing import as_image
    from vartok.operations.sheets import collect_tiles, draw_groups, lay_out

    headings: list[str] = []

    def tiles_of_drawings() -> Iterator[Sequence[Tile]]:
        for drawing in drawings:
            headings.append(drawing.heading)
            yield drawing.tiles

    groups = collect_tiles(tiles_of_drawings())
    if not groups:
        return
    shown = counted(sum(map(len, groups)), "frame" if options.animate else "picture")
    told = f"drew {shown} in {printable(target)}" if isinstance(target, Path) else ""
    if target is None:
        from .terminal import Screen

        screen = Screen()
        if any(headings):
            for group, heading in zip(groups, headings, strict=True):
                screen.show(group, columns=len(group), heading=heading)
        else:
            tiles, columns = lay_out(groups)
            screen.show(tiles, columns=columns)
    elif options.animate:
        _write_animation(groups, target, overwrite)
    elif options.sheet or sum(map(len, groups)) > 1:
        _write(draw_groups(groups, headings), target, overwrite)
    else:
        [[tile]] = groups
        _write(as_image(tile.picture), target, overwrite)
        told = tile.caption.replace("\n", ", ")
    if told and not messages.quiet:
        say(told)


def _write(image: Image.Image, target: Path | BinaryIO, overwrite: bool) -> None:
    import numpy as np

    from vartok.files import write_bytes
    from vartok.images import SUFFIXES, encode_picture
    from vartok.operations.outputs import write_stream

    pixels = np.atleast_3d(np.asarray(image))
    if isinstance(target, Path):
        data = encode_picture(pixels, SUFFIXES[target.suffix.lower()])
        write_bytes(target, data, overwrite=overwrite)
    else:
        write_stream(target, encode_picture(pixels, "png"))


def _write_animation(groups: list[list[Tile]], target: object, overwrite: bool) -> None:
    """Write the build-up of one image's tokens.

    Raises:
        VartokError: there are several images.
    """
    import numpy as np

    from vartok.files import write_bytes
    from vartok.images.animation import ANIMATIONS, encode_animation

    assert isinstance(target, Path)
    if len(groups) > 1:
        raise VartokError(
            f"an animation is of one image, but there are {len(groups)}",
            hint="vartok decode --animate writes one for each",
        )
    frames = [np.atleast_3d(np.asarray(tile.picture)) for tile in groups[0]]
    write_bytes(target, encode_animation(frames, ANIMATIONS[target.suffix.lower()]), overwrite=overwrite)
