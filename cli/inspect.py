"""`vartok inspect`: shows the contents of token files, arrays of tokens and data sets."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NamedTuple

import typer

from vartok.checkpoints.folders import SUFFIXES
from vartok.errors import TokenFileError, VartokError, counted, one_line, printable

from .command import command
from .files import parse_inputs
from .messages import print_result
from .options import DebugOption, InputOptions, JsonOption, RowOptions
from .report import Report

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vartok.metadata import View
    from vartok.operations import FlatSchedules, Input
    from vartok.schedule import Schedule
    from vartok.token_sources import Row
    from vartok.tokens import ImageTokens

SHOWN_INDICES = 8
"""Largest number of indices of a scale that are shown."""


@command
def inspect(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", help="Token files, arrays (.npy), data sets, folders (-r), or -."),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Search folders for token files and data sets.")
    ] = False,
    *,
    rows: RowOptions,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show the contents of token files, arrays of tokens and data sets.

    For each image, print its source, its checkpoint, and the grid and first indices of every scale.
    An array (.npy) states no checkpoint; its grids are those of --schedule, by default VAR's.

    Examples:
      vartok inspect img.tokens.npz
      vartok inspect all.jsonl --json | jq .image.source
      vartok inspect DATASET --limit 1
    """
    from vartok.operations import FlatSchedules, RowSelection, find_inputs
    from vartok.operations.inputs import TOKEN_KINDS

    selected = rows.arguments()
    schedules = FlatSchedules(selected["schedule"])
    selection = RowSelection(selected["keys"], selected["limit"])
    given = parse_inputs(inputs, InputOptions())
    if not recursive:
        _refuse_checkpoints(given)
    files = find_inputs(given, TOKEN_KINDS, recursive=recursive)
    report = Report(len(files), verb="read", quiet=True, debug=debug)
    with report:
        for item, row in selection.read(files, schedules, texts=True):
            name = str(item)
            try:
                shown = _Shown.of(item, row, schedules)
            except VartokError as error:
                report.fail(name, _checkpoint_error(name) or error)
                continue
            print_result(json.dumps({"file": name, **shown.summary()}) if as_json else shown.describe(name))
            report.succeed(name, "shown")
        schedules.warn_if_unused()
        report.finish()


def _refuse_checkpoints(inputs: Sequence[str | BinaryIO]) -> None:
    """Check that no folder holds a checkpoint, as that of a training run does.

    Raises:
        typer.BadParameter: one does.
    """
    for name in inputs:
        if isinstance(name, str) and os.path.isdir(name):
            from vartok.operations.show import holds_checkpoint

            if holds_checkpoint(name):
                told = f"{printable(name)} holds a checkpoint, and no data set"
                raise typer.BadParameter(f"{told}: {_commands_of(name)}")


def _checkpoint_error(name: str) -> TokenFileError | None:
    """Return the error for a file without tokens that has the name of a checkpoint; None for others."""
    if not name.endswith(SUFFIXES) or not os.path.isfile(name):
        return None
    reason = "is a checkpoint by its name, and no token file, array of tokens or data set"
    return TokenFileError(reason, hint=_commands_of(name))


def _commands_of(checkpoint: str) -> str:
    return f"see vartok show {printable(checkpoint)}, or vartok inspect-codebook -w {printable(checkpoint)}"


class _Shown(NamedTuple):
    """An image as it is shown.

    Attributes:
        source: name of the image.
        tokens: its tokens with their metadata; None for those of an array.
        scales: K arrays, coarse to fine; array k is [h_k, w_k].
        schedule: (h, w) of every scale of the whole schedule, which begins with these K.
        class_name: name of its label, or None.
    """

    source: str
    tokens: ImageTokens | None
    scales: Sequence[NDArray[Any]]
    schedule: Schedule
    class_name: str | None = None

    @classmethod
    def of(cls, item: Input, row: Row, schedules: FlatSchedules) -> _Shown:
        """Make it of a row.

        Raises:
            VartokError: the row's tokens are an error, or their number fits no schedule.
        """
        from vartok.tokens import ImageTokens, split_tokens

        tokens = row.tokens
        if isinstance(tokens, VartokError):
            raise tokens
        if isinstance(tokens, ImageTokens):
            return cls(tokens.image.source, tokens, tokens.scales, tokens.schedule, row.class_name)
        source = item.source if tokens.key is None else tokens.key
        schedule = schedules.find(tokens)
        return cls(source, None, split_tokens(tokens.tokens, schedule), schedule)

    def summary(self) -> dict[str, Any]:
        """Return the object that --json prints."""
        tokens = self.tokens
        known = tokens and {
            "label": tokens.label,
            "class": self.class_name,
            "caption": tokens.caption,
            "view": tokens.view and dataclasses.asdict(tokens.view),
        }
        return {
            "model": tokens and dataclasses.asdict(tokens.model),
            "image": dataclasses.asdict(tokens.image) if tokens else {"source": self.source},
            **{name: value for name, value in (known or {}).items() if value is not None},
            "schedule": self.schedule,
            "scales": len(self.scales),
            "tokens": sum(scale.size for scale in self.scales),
            "first": [scale.ravel()[:SHOWN_INDICES].tolist() for scale in self.scales],
        }

    def describe(self, name: str) -> str:
        """Return the text that is printed."""
        from vartok.schedule import describe

        total = sum(scale.size for scale in self.scales)
        lines = [name, *self._describe_metadata()]
        found, scales = len(self.scales), counted(len(self.schedule), "scale")
        lines.append(
            f"  tokens      {total:,} in {f'the first {found} of ' * (found < len(self.schedule))}{scales}"
        )
        if found < len(self.schedule):
            lines.append(f"  schedule    {describe(self.schedule)}")
        for number, scale in enumerate(self.scales, 1):
            first = " ".join(f"{index:>5}" for index in scale.ravel()[:SHOWN_INDICES])
            more = " ..." if scale.size > SHOWN_INDICES else ""
            lines.append(f"    {number:>2}  {'x'.join(map(str, scale.shape)):>7}  {first}{more}")
        return "\n".join(lines)

    def _describe_metadata(self) -> list[str]:
        """Return the lines of a picture, its label and caption, and its checkpoint."""
        tokens = self.tokens
        if tokens is None:
            return [f"  picture     {printable(self.source)}", "  checkpoint  not stated"]
        image, model = tokens.image, tokens.model
        height, width = image.size
        zoom = f", zoom {image.zoom:g}" if image.zoom != 1 else ""
        resample = f", {printable(image.resample)}" if image.resample != "lanczos" else ""
        color = "#{:02x}{:02x}{:02x}".format(*image.background)
        background = f", on {color}" if color != "#ffffff" else ""
        fit = f"{printable(image.fit)}{zoom}{resample}{background}"
        where = f"{printable(image.dtype)} on {printable(image.device)}"
        identity = f"{counted(model.vocab_size, 'code')}, fingerprint {model.fingerprint[:12]}"
        name = "" if self.class_name is None else f", {printable(self.class_name, 100)}"
        label = [] if tokens.label is None else [f"  label       {tokens.label}{name}"]
        caption = [] if tokens.caption is None else [f"  caption     {one_line(tokens.caption)}"]
        return [
            f"  picture     {printable(self.source)}, {image.width} x {image.height} pixels",
            *([] if image.damaged is None else [f"  damaged     {one_line(image.damaged)}"]),
            *label,
            *caption,
            *_describe_view(tokens.view),
            f"  encoded     {width} x {height} pixels, {fit}, {where}",
            f"  checkpoint  {printable(model.name)}, {identity}",
        ]


def _describe_view(view: View | None) -> list[str]:
    """Return the line of a view; none if the picture has no views."""
    if view is None:
        return []
    left, top, right, bottom = view.box
    mirrored = ", mirrored" if view.flipped else ""
    return [f"  view        {view.number}: {left:g}, {top:g} to {right:g}, {bottom:g}{mirrored}"]
