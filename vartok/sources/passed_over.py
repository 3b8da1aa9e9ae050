"""Counts of what lies in sources and is not read: files of folders and members of tars, by kind."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Mapping

from vartok.errors import counted, printable, warn

HIDDEN = "hidden"
FURTHER = "further pictures of a sample"
ALONE = "without a picture"
"""Kinds of members of tars, beside suffixes: those called ".name", pictures after a sample's first, and
labels, captions or metadata without a picture."""

MAX_SUFFIX = 16
"""Largest length of a suffix, with its dot; a longer one is part of the name."""

MAX_KINDS = 1000
"""Largest number of suffixes that are counted one by one; "" counts the files of all further ones."""

MAX_NAMED = 8
"""Largest number of kinds that a warning lists."""


def count_suffix(passed_over: Counter[str], name: str) -> None:
    """Count a file by its suffix in lower case; "" counts files without one."""
    suffix = os.path.splitext(posixpath.basename(name))[1].lower()
    known = suffix in passed_over or len(passed_over) < MAX_KINDS
    passed_over[suffix if known and len(suffix) <= MAX_SUFFIX else ""] += 1


def warn_passed_over(passed_over: Mapping[str, int], what: str, *, hint: str | None = None) -> None:
    """Warn of what was passed over, if anything was: "passed over 3 WHAT: 2 .heic, 1 hidden".

    Args:
        passed_over: numbers by kind.
        what: a noun, and what follows it, such as "file of kinds that are not read".
        hint: how to read them.

    Warns:
        VartokWarning: something was passed over.
    """
    ranked = sorted(((kind, count) for kind, count in passed_over.items() if count), key=_by_count)
    if not ranked:
        return
    parts = [f"{count:,} {printable(kind) or 'without suffix'}" for kind, count in ranked]
    if len(parts) > MAX_NAMED:
        parts[MAX_NAMED - 1 :] = [f"{sum(count for _, count in ranked[MAX_NAMED - 1 :]):,} others"]
    noun, _, rest = what.partition(" ")
    total = counted(sum(count for _, count in ranked), noun)
    warn(f"passed over {total} {rest}: {', '.join(parts)}{f'; {hint}' if hint else ''}")


def warn_of_members(passed_over: Mapping[str, int]) -> None:
    """Warn of members of tars that were passed over, if any were.

    Warns:
        VartokWarning: members were passed over.
    """
    warn_passed_over(passed_over, "member of tars")


def _by_count(entry: tuple[str, int]) -> tuple[int, str]:
    return -entry[1], entry[0]
