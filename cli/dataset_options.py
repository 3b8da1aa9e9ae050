"""Options of `vartok dataset` that no other command has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from vartok.errors import printable

from .options import CompileOption


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Options for the shards of the data set."""

    format: Annotated[
        Literal["parquet", "wds", "jsonl"],
        typer.Option("--format", help="Format of shards: Parquet, WebDataset's tars, or JSON lines."),
    ] = "parquet"
    shard_size: Annotated[
        int | None,
        typer.Option(
            "--shard-size",
            min=1,
            help="Largest number of pictures, not views, in a shard; default: 10,000 on a GPU, 500 on a CPU.",
        ),
    ] = None
    keep_pictures: Annotated[
        bool,
        typer.Option("--keep-pictures", help="With wds: store the picture files too, next to their tokens."),
    ] = False


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """Options for the views of each picture."""

    views: Annotated[
        str,
        typer.Option(
            "--views",
            help="Rows of each picture: center; flip, with its mirror image; ten-crop, corners and centre "
            "with theirs; or random:N crops. Crops come from --zoom.",
        ),
    ] = "center"
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of the random views; default: 0.")
    ] = None
    latents: Annotated[
        bool, typer.Option("--latents", help="Store the latents before quantization too, in float16.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Options for the columns of tables, and for the labels and the keys of picture files."""

    image_column: Annotated[
        str | None,
        typer.Option(
            "--image-column",
            help="Column of tables that holds the pictures; needed if several hold binary data.",
        ),
    ] = None
    label_column: Annotated[
        str | None,
        typer.Option("--label-column", help="Column of tables that holds the labels; default: label, cls."),
    ] = None
    caption_column: Annotated[
        str | None,
        typer.Option(
            "--caption-column", help="Column of tables that holds the captions; default: caption, text, txt."
        ),
    ] = None
    key_column: Annotated[
        str | None,
        typer.Option("--key-column", help="Column of tables that holds the keys; default: key, __key__."),
    ] = None
    folder_labels: Annotated[
        bool,
        typer.Option(
            "--folder-labels",
            help="Label files by their top folder in SRC, numbered in sorted order, as ImageFolder does.",
        ),
    ] = False
    full_names: Annotated[
        bool, typer.Option("--full-names", help="Keep the suffixes of files in their keys: a.jpg, not a.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options for dividing the work among processes and machines."""

    compile: CompileOption = False
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Do only part I of N of the input shards, I from 0 to N - 1; for N machines.",
        ),
    ] = None
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes", min=1, max=256, help="Number of processes; default: one per GPU, or one on a CPU."
        ),
    ] = None
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option("--engine", help="Work in processes on this machine, or on a Ray cluster."),
    ] = "local"
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="Address of a Ray cluster, auto or ray://host:10001; default: RAY_ADDRESS or a new one.",
        ),
    ] = None
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Make shards again in which pictures failed.")
    ] = False

    def arguments(self) -> dict[str, Any]:
        """Return the options as keyword arguments of `vartok.dataset.build`."""
        return {**vars(self), "shard": _parse_shard(self.shard)}


@dataclass(frozen=True, kw_only=True)
class FailureOptions:
    """Options for pictures that fail."""

    on_error: Annotated[
        Literal["skip", "stop"],
        typer.Option("--on-error", help="If a picture fails: skip it, or stop the run."),
    ] = "skip"
    max_failures: Annotated[
        int | None,
        typer.Option("--max-failures", min=0, help="Stop the run when more than this many pictures fail."),
    ] = None

    def limit(self) -> int | None:
        """Return the largest number of failures with which a run continues; None for no limit.

        Raises:
            typer.BadParameter: both --on-error stop and --max-failures are given.
        """
        if self.on_error == "skip":
            return self.max_failures
        if self.max_failures is not None:
            raise typer.BadParameter("--on-error stop allows no failures: leave --max-failures out")
        return 0


def _parse_shard(text: str | None) -> tuple[int, int]:
    """Parse "I/N", part I of N, to (I, N); None gives (0, 1), the whole work.

    Raises:
        typer.BadParameter: another text, or I is not below N.
    """
    if text is None:
        return 0, 1
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise typer.BadParameter(f"--shard must be I/N with I from 0 to N - 1, not {printable(text)}")
    return int(part), int(parts)
