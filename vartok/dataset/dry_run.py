"""Tell what a call of `build` would read and write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vartok.dataset.arguments import check_arguments, warn_of_gaps
from vartok.dataset.formats import find_format
from vartok.dataset.plan import (
    InputTask,
    ShardFolder,
    check_no_other_files,
    default_shard_size,
    plan_tasks,
)
from vartok.dataset.schema import DATASET, read_description, shard_file, shard_name
from vartok.errors import DatasetError
from vartok.sources import NamedColumns, find_input_shards


@dataclass(frozen=True)
class BuildPlan:
    """The work of a call of `build`.

    Attributes:
        folder: the data set.
        shard_size: largest number of samples in a shard.
        input_shards: number of all input shards.
        tasks: the input shards of this call with work left, in order.
    """

    folder: ShardFolder
    shard_size: int
    input_shards: int
    tasks: list[InputTask]

    def output(self, task: InputTask, *, buckets: bool) -> str:
        """Return the name of the files that a task makes, as "data/00003-*.parquet" if there may be several.

        Args:
            task: one of `tasks`.
            buckets: whether every bucket has a file of its own.
        """
        name = shard_name(task.index, 0)
        if task.shard.kind != "files":  # of which the number of pictures is not known
            name = f"{name.partition('-')[0]}-*"
        return shard_file(name, "*" * buckets, find_format(self.folder.format).suffix)


def preview(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    format: str = "parquet",
    shard_size: int | None = None,
    keep_pictures: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
    key_column: str | None = None,
    folder_labels: bool = False,
    full_names: bool = False,
    device: str = "auto",
    shard: tuple[int, int] = (0, 1),
    retry_failed: bool = False,
) -> BuildPlan:
    """Return what a call of `build` would read and write; nothing is written, and no checkpoint is loaded.

    The sources are searched, but no picture is read, and settings of the encoder are not compared with those
    of a data set that `out` holds.

    Args:
        sources: as for `build`, and so are the other arguments.
        out: see there.
        format: see there.
        shard_size: see there.
        keep_pictures: see there.
        image_column: see there.
        label_column: see there.
        caption_column: see there.
        key_column: see there.
        folder_labels: see there.
        full_names: see there.
        device: see there; it decides about the default of `shard_size`.
        shard: see there.
        retry_failed: see there.

    Raises:
        ArgumentError, SourceError, DatasetError: as `build`, where the plan tells.

    Warns:
        VartokWarning: as `build`, where the plan tells.
    """
    out = Path(out)
    check_arguments(out, format, keep_pictures, shard, "local", None, None)
    if shard_size is None:
        from vartok.runtime import choose_device  # imports torch

        shard_size = default_shard_size(out, str(choose_device(device)))
    columns = NamedColumns(image_column, label_column, caption_column, key_column)
    shards = find_input_shards(
        [str(source) for source in ([sources] if isinstance(sources, str | Path) else sources)],
        shard_size,
        full_names=full_names,
        folder_labels=folder_labels,
        columns=columns,
        exclude=out,
    )
    warn_of_gaps(shards, columns, folder_labels=folder_labels, parts=shard[1])
    if (out / DATASET).exists():
        _check_settings(out, {"files": format, "shard_size": shard_size, "keeps_pictures": keep_pictures})
    else:
        check_no_other_files(out)
    folder = ShardFolder(out=out, format=format)
    tasks = [
        task
        for task in plan_tasks(folder, shards, retry_failed=retry_failed)
        if task.index % shard[1] == shard[0]
    ]
    return BuildPlan(folder, shard_size, len(shards), tasks)


def _check_settings(out: Path, wanted: dict[str, object]) -> None:
    found = read_description(out)
    for name, value in wanted.items():
        if found.get(name) != value:
            raise DatasetError(
                f"{out} holds a data set with {name} {found.get(name)}, not {value}",
                hint="give the same sources and settings, or name another folder",
            )
