"""`vartok schedules`: lists the schedules that have names, and the phis of their scales."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vartok.errors import printable

from .command import command
from .messages import print_result
from .options import DebugOption, JsonOption, WeightsOption
from .tables import new_table, print_tables

if TYPE_CHECKING:
    from rich.table import Table

    from vartok.config import TokenizerConfig


@command
def schedules(weights: WeightsOption = None, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the schedules that --schedule knows by name.

    For each schedule, print the size of its pictures, its number of tokens, the grids of its scales,
    and which phi of the checkpoint serves each scale. The checkpoint's own schedule is marked with *.

    Examples:
      vartok schedules
      vartok schedules -w vae.safetensors --json
    """
    name, config = _read_config(weights)
    rows = _rows(config)
    if as_json:
        print_result(json.dumps({"checkpoint": name, "phis": config.phi_count, "schedules": rows}))
    else:
        print_tables(_table(name, rows))


def _read_config(weights: str | None) -> tuple[str, TokenizerConfig]:
    """Return the name and the configuration of a checkpoint."""
    from vartok import checkpoints

    summary = checkpoints.read_summary(weights)
    if summary:
        return summary[1].name, summary[0]
    checkpoint = checkpoints.read_checkpoint(weights)
    return checkpoint.name, checkpoint.config


def _rows(config: TokenizerConfig) -> list[dict[str, Any]]:
    """Return what --json prints of each schedule; the checkpoint's own has the name None if it has none."""
    from vartok.schedule import NAMED, phis_by_scale, token_count

    own = config.patch_nums
    listed = [*NAMED.items(), *[(None, own)] * (own not in NAMED.values())]
    return [
        {
            "name": name,
            "own": schedule == own,
            "size": [cells * config.downsample for cells in schedule[-1]],
            "tokens": token_count(schedule),
            "schedule": schedule,
            "phi": phis_by_scale(len(schedule), config.phi_count) or None,
        }
        for name, schedule in listed
    ]


def _table(name: str, rows: list[dict[str, Any]]) -> Table:
    from vartok.schedule import describe

    table = new_table(f"Schedules, with the phis of {printable(name)}", "", "picture", "tokens")
    for heading in ("grids", "phi by scale"):
        table.add_column(heading, justify="left", overflow="fold")
    for row in rows:
        table.add_row(
            f"{row['name'] or 'its own'}{' *' if row['own'] else ''}",
            "x".join(map(str, row["size"])),
            f"{row['tokens']:,}",
            describe(row["schedule"]),
            ",".join(map(str, row["phi"] or ["none"])),
        )
    return table
