"""`vartok models`: lists known checkpoints, fetches them, and tells where they lie."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vartok.errors import CheckpointError, printable
from vartok.files import file_sha256

from .command import Command, Default, DefaultCommand, command
from .messages import print_result
from .options import DebugOption, JsonOption, QuietOption
from .tables import new_table, print_tables

if TYPE_CHECKING:
    from rich.table import Table

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="A name that `vartok models` lists, or hf://OWNER/REPO/FILE.")
]


@command
def models(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the checkpoints that -w knows by name.

    For each, print whose it is, whose tokens it makes, its schedules, the size of its file, and
    whether it is on this disk (*). A question mark is what was never checked against the file; --json
    says more. Nothing is fetched. `vartok models fetch NAME` fetches one, and `vartok models path
    NAME` prints where it lies on this disk.

    Examples:
      vartok models
      vartok models --json
      vartok models fetch var
      vartok models path var
    """
    rows = _rows()
    print_result(json.dumps(rows)) if as_json else print_tables(_table(rows))


@command
def fetch(name: NameArgument, quiet: QuietOption = False, debug: DebugOption = False) -> None:
    """Fetch a checkpoint from the Hugging Face hub, and print its path.

    A file that is there already is not fetched again, but the hub is asked for a newer one. Other
    commands fetch what -w names themselves, and use what is there without asking.

    Examples:
      vartok models fetch var
    """
    from vartok import checkpoints

    print_result(str(checkpoints.fetch_known(name)))


@command
def path(name: NameArgument, debug: DebugOption = False) -> None:
    """Print the path of a checkpoint that is on this disk.

    Examples:
      vartok models path light
    """
    from vartok import checkpoints

    found = checkpoints.known_on_disk(name)
    if found is None:
        raise CheckpointError(
            f"{printable(name)}: it is not on this disk",
            hint=f"vartok models fetch {printable(name)} fetches it",
        )
    print_result(str(found))


def _rows() -> list[dict[str, Any]]:
    """Return what --json prints of each known checkpoint."""
    from vartok.checkpoints import KNOWN, known_on_disk

    rows = []
    for name, known in KNOWN.items():
        found = known_on_disk(name)
        shipped = found if known.source is None else None
        rows.append(
            {
                "name": name,
                "authors": known.authors,
                "purpose": known.purpose,
                "schedules": known.schedules,
                "source": known.source,
                "size": found.stat().st_size if found else known.size,
                "sha256": file_sha256(shipped) if shipped else known.sha256,
                "license": known.license,
                "path": found and str(found),
                "not_verified": known.unverified,
            }
        )
    return rows


def _table(rows: list[dict[str, Any]]) -> Table:
    table = new_table("Known checkpoints; * is on this disk, ? not verified", "", "MB")
    for heading in ("licence", "schedules", "whose", "tokens of"):
        table.add_column(heading, justify="left", overflow="fold")
    for row in rows:
        doubt = " ".join(row["not_verified"])
        table.add_row(
            f"{row['name']}{' *' if row['path'] else ''}",
            f"{row['size'] / 1e6:,.1f}" if row["size"] else "?",
            row["license"] or "?",
            ", ".join(row["schedules"]) + (" ?" if "schedule" in doubt else ""),
            row["authors"],
            row["purpose"],
        )
    return table


app = typer.Typer(cls=DefaultCommand, add_completion=False, rich_markup_mode=None)
app.command(name="list", cls=Default)(models)
app.command(name="fetch", cls=Command)(fetch)
app.command(name="path", cls=Command)(path)
