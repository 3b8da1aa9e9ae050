"""Number the names of classes that tables have as labels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from vartok.errors import ImageError, SourceError, VartokError, printable, warn
from vartok.files import os_error_reason
from vartok.sources.arrow_values import MAX_LABEL_BYTES, as_label, is_null, is_text, is_whole
from vartok.sources.columns import choose_columns
from vartok.sources.places import is_url, shorten_path
from vartok.sources.shards import InputShard
from vartok.sources.tables import open_table

MAX_CLASSES = 100_000
"""Largest number of classes; labels with more names are not carried."""

VALUES = 1024
"""Largest number of labels that are read at once."""

READERS = 8
"""Tables that are read at once; most of the time passes in waiting for them."""


class _Labels(NamedTuple):
    """The labels of a table.

    Attributes:
        numbers: True if the type of their column is one of numbers.
        names: the different labels in a column of texts; None if there are more than `MAX_CLASSES`.
        whole: True if all of them are whole numbers.
    """

    numbers: bool = False
    names: frozenset[str] | None = frozenset()
    whole: bool = True


def table_classes(shards: Sequence[InputShard]) -> tuple[str, ...] | None:
    """Return the names of the classes that the labels of all tables have, in sorted order.

    The index of a name is its label. Only the columns of labels are read. Texts are names unless all of them
    are whole numbers. A local table that cannot be read is left out, since reading it for its pictures tells
    of it. A failure of a URL is an error: it may pass, and with its names classes would have other numbers.

    Args:
        shards: all input shards of a data set.

    Returns:
        The names; None if labels are whole numbers; empty if there are more than `MAX_CLASSES` names.

    Raises:
        SourceError: the labels of some tables are whole numbers, and those of others are names; or a URL
            cannot be read.

    Warns:
        VartokWarning: there are more than `MAX_CLASSES` names.
    """
    tables = [shard for shard in shards if shard.kind == "table"]
    names: set[str] | None = set()
    numbered: list[InputShard] = []
    named = None
    with ThreadPoolExecutor(READERS) as pool:
        for shard, labels in zip(tables, pool.map(_read_labels, tables), strict=True):
            if labels.numbers:
                numbered.append(shard)
            elif not labels.whole:
                named = named or shard.name
            names = _limited(names, labels.names)
    if named is None:
        return None
    for shard in filter(_has_numbers, numbered):
        raise SourceError(
            f"the labels of {printable(named)} are names of classes, but those of {printable(shard.name)} "
            "are numbers",
            hint="number the names, or make two data sets",
        )
    if names is None:
        warn(f"the labels of the tables have more than {MAX_CLASSES:,} names, so they are not carried")
    return tuple(sorted(names or ()))


def _read_labels(shard: InputShard) -> _Labels:
    names: set[str] | None = set()
    whole = True
    with _damaged_left_out(shard):
        with open_table(shard.name) as table:
            column = choose_columns(table.schema, shard.columns).names.get("label")
            kind = column and table.schema.field(table.schema.get_all_field_indices(column)[0]).type
            if column is None or is_null(kind):
                return _Labels()
            if not is_text(kind):
                return _Labels(numbers=True)
        with open_table(shard.name, categories=[column]) as table:
            for rows in table.batches([column], VALUES):
                if not isinstance(rows, ImageError):  # a row that cannot be read
                    found = frozenset(filter(_is_name, _texts(rows) - (names or set())))
                    whole = whole and all(map(is_whole, found))
                    names = _limited(names, found)
                if names is None and not whole:
                    break
    return _Labels(False, names if names is None else frozenset(names), whole)


def _has_numbers(shard: InputShard) -> bool:
    """Return False for a table whose labels are all missing, such as NaN, as pandas writes them."""
    with _damaged_left_out(shard), open_table(shard.name) as table:
        column = choose_columns(table.schema, shard.columns).names["label"]
        for rows in table.batches([column], VALUES):
            if not isinstance(rows, ImageError) and any(
                as_label(value) is not None for value in rows.column(0)
            ):
                return True
    return False


@contextlib.contextmanager
def _damaged_left_out(shard: InputShard) -> Iterator[None]:
    """End the block quietly at an error, such as Arrow's for a damaged table, unless the table is at a URL.

    Raises:
        SourceError: the table at a URL cannot be read.
    """
    try:
        yield
    except VartokError:  # of what the table holds, or a missing package
        pass
    except Exception as error:  # any error of a remote file system's library, or of Arrow
        if is_url(shard.name):
            reason = f"its labels cannot be read: {os_error_reason(error)}"
            raise SourceError(
                f"{shorten_path(shard.name)}: {reason}", hint="try again later, or leave it out"
            ) from None


def _limited(names: set[str] | None, more: frozenset[str] | None) -> set[str] | None:
    """Return the union of two sets of names; None if it has more than `MAX_CLASSES`, or if one is None."""
    if names is None or more is None:
        return None
    names |= more
    return names if len(names) <= MAX_CLASSES else None


def _is_name(text: str) -> bool:
    return bool(text.strip()) and len(text.encode()) <= MAX_LABEL_BYTES


def _texts(rows: Any) -> set[str]:
    """Return the texts in the column of a record batch, without those that are not UTF-8."""
    values = rows.column(0)
    with contextlib.suppress(NotImplementedError, TypeError):  # of some types
        values = values.unique()
    if hasattr(values, "dictionary_decode"):  # a list of plain values is made faster
        values = values.dictionary_decode()
    try:
        texts = values.to_pylist()
    except UnicodeDecodeError:  # of one of them, which its row will tell
        texts = map(_value, values)
    return set(filter(None, (_decode(text) if isinstance(text, bytes) else text for text in texts)))


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return None


def _decode(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None
