"""Check the arguments of `build`, and warn of those that have nothing to act on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vartok.dataset.formats import FORMATS
from vartok.errors import ArgumentError, counted, quoted, warn
from vartok.optional import require
from vartok.sources import InputShard, NamedColumns

PACKAGES = ("pyarrow", "webdataset", "fsspec")
ENGINES = ("local", "ray")
REMOTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(?=[^/])")
"""Matches the start of a URL, also with one slash, as `Path` leaves it; does not match a Windows drive."""


def check_arguments(
    out: Path,
    format: str,
    keep_pictures: bool,
    shard: tuple[int, int],
    engine: str,
    address: str | None,
    processes: int | None,
) -> None:
    """Raise ArgumentError for an unknown value, or for arguments that contradict each other."""
    if format not in FORMATS:
        raise ArgumentError(f"the format of shards is one of {', '.join(FORMATS)}, not {quoted(format)}")
    if keep_pictures and not FORMATS[format].keeps_pictures:
        raise ArgumentError(f"{format} shards cannot keep pictures", hint="set `format` to wds")
    if url := REMOTE.match(str(out)):
        place = f"{url[1]}://{str(out)[url.end() :]}"
        raise ArgumentError(
            f"{place}: a data set cannot be written to a URL", hint="name a local or a shared folder"
        )
    if not 0 <= shard[0] < shard[1]:
        raise ArgumentError(f"`shard` must be (i, n) with i from 0 to n - 1, not {shard}")
    if engine not in ENGINES:
        raise ArgumentError(f"the engine is one of {', '.join(ENGINES)}, not {quoted(engine)}")
    if engine == "ray" and (processes or shard != (0, 1)):
        raise ArgumentError(
            "Ray divides the work itself, without `processes` and `shard`", hint="leave them out"
        )
    if address and engine != "ray":
        raise ArgumentError("`address` is only for the engine ray", hint="set `engine` to ray")


def warn_of_gaps(
    shards: Sequence[InputShard], columns: NamedColumns, *, folder_labels: bool, parts: int
) -> None:
    """Warn of parts (see `shard` of `build`) without input shards, columns without tables, missing labels."""
    if columns.named() and not any(shard.kind == "table" for shard in shards):
        names = ", ".join(map(quoted, columns.named().values()))
        warn(f"there is no table for the columns {names}")
    if parts > len(shards):
        first, last = len(shards), parts - 1
        idle = f"part {last}" if first == last else f"parts {first} to {last}"
        warn(
            f"only {counted(len(shards), 'input shard')} for {parts} parts: no work for {idle} (counted "
            "from 0); a smaller shard size splits picture files into more input shards"
        )
    bare = sum(file.label is None for shard in shards for file in shard.files) if folder_labels else 0
    if bare:
        warn(f"no label for {counted(bare, 'picture')} outside of class folders")


def check_packages(*more: str) -> None:
    """Check that the optional packages for data sets are installed.

    Args:
        more: names of further packages that are needed: "ray".

    Raises:
        VartokError: a package is missing.
    """
    require(*PACKAGES, *more, extra="ray" if "ray" in more else "dataset", purpose="data sets")
