"""`vartok dataset --dry-run`: prints what a build would read and write."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vartok.errors import counted, printable

from .messages import print_result, say

if TYPE_CHECKING:
    from vartok.dataset import BuildPlan
    from vartok.sources import InputShard


def print_plan(sources: list[str], out: Path, options: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Print a line for each input shard with work left, and how many there are.

    Args:
        sources: the sources.
        out: folder of the data set.
        options: keyword arguments of `vartok.dataset.build`, of which those of `preview` are taken.
        as_json: print one JSON object instead of lines.
        quiet: do not print the sum.
    """
    from vartok.dataset import preview

    known = inspect.signature(preview).parameters
    plan = preview(sources, out, **{name: value for name, value in options.items() if name in known})
    buckets = options["fit"] == "bucket"
    if as_json:
        print_result(json.dumps(_as_json(plan, buckets=buckets)))
        return
    for task in plan.tasks:
        done = f" ({counted(len(task.done), 'shard')} of it finished)" if task.done else ""
        print_result(
            f"{_describe(task.shard)} -> {printable(out / plan.output(task, buckets=buckets))}{done}"
        )
    if not quiet:
        files = sum(len(task.shard.files) for task in plan.tasks)
        say(
            f"dry run: {len(plan.tasks):,} of {counted(plan.input_shards, 'input shard')} to be read, "
            f"{counted(files, 'picture file')} among them, into {printable(out)}"
        )


def _describe(shard: InputShard) -> str:
    if len(shard.files) < 2:
        return printable(shard.shown)
    return f"{printable(shard.shown)} and {counted(len(shard.files) - 1, 'file')} after it"


def _as_json(plan: BuildPlan, *, buckets: bool) -> dict[str, Any]:
    return {
        "out": str(plan.folder.out),
        "files": plan.folder.format,
        "shard_size": plan.shard_size,
        "input_shards": plan.input_shards,
        "to_do": [
            {
                "input": task.shard.shown,
                "kind": task.shard.kind,
                "pictures": len(task.shard.files) or None,
                "finished": len(task.done),
                "output": plan.output(task, buckets=buckets),
            }
            for task in plan.tasks
        ],
    }
