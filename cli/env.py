"""`vartok env`: shows versions, devices, threads and caches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vartok.errors import printable

from .command import command
from .messages import print_result
from .options import DebugOption, JsonOption


@command
def env(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Show versions, devices, threads and caches, for bug reports.

    Environment variables are shown by a fixed list of names, none of which holds a password.

    Examples:
      vartok env
      vartok env --json
    """
    import vartok
    from vartok.environment import describe_environment

    found = {"vartok": vartok.__version__, **describe_environment()}
    print_result(json.dumps(found) if as_json else "\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    for name, value in found.items():
        rows = list(_flatten(value))
        for n, row in enumerate(rows):
            yield f"{name if n == 0 else '':<11} {printable(row)}"


def _flatten(value: Any) -> Iterator[str]:
    """Yield the lines of a value: one of each entry of an object."""
    if not isinstance(value, dict):
        yield str(value)
        return
    for name, entry in value.items():
        if isinstance(entry, dict):
            yield f"{name}: {', '.join(f'{key} {part}' for key, part in entry.items())}"
        else:
            yield f"{name} {'-' if entry is None else entry}"
