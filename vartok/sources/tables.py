"""Read Parquet tables: a column of pictures, and optional ones of keys, labels, captions and metadata."""

from __future__ import annotations

import itertools
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from vartok.errors import ImageError, one_line, quoted
from vartok.images import MAX_BYTES, bytes_error
from vartok.optional import require
from vartok.sources.arrow_values import (
    NotWholeError,
    as_json,
    as_label,
    as_text,
    as_texts,
    dump_json,
    is_binary,
    is_list,
    is_nested,
    is_null,
    is_number,
    is_text,
    plain,
    value_type,
)
from vartok.sources.find import open_place
from vartok.sources.samples import Sample, as_unicode
from vartok.sources.web import without_query

ROWS = 16
"""Largest number of rows that are read at once; each row holds a picture."""

BATCH_BYTES = 1 << 24
"""Approximate size in bytes of the rows that are read at once."""

BUFFER = 1 << 20
"""Bytes of a column that are read at once; by default Arrow reads the column's whole row group."""

ROLES = {
    "key": ("key", "__key__"),
    "label": ("label", "cls"),
    "caption": ("caption", "text", "txt"),
    "metadata": ("metadata", "json"),
}
"""Possible names of the column of each role, in any case, preferred names first; the last is WebDataset's."""

LOOKALIKES = {
    "labels": {"label", "labels", "cls", "class", "classes", "category", "categories", "target", "targets"},
    "captions": {"caption", "captions", "text", "texts", "txt", "prompt", "prompts", "sentence", "sentences"},
    "metadata": {"metadata", "meta", "json"},
}
"""Words in the names of columns that seem to hold labels, captions or metadata."""


MAX_NOTES = 20
"""Largest number of columns whose omission is noted, since a table may have any number."""


class Columns(NamedTuple):
    """The columns of a table that are read.

    Attributes:
        names: names of the columns by role: "image", "key", "label", "caption", "metadata". Only "image" is
            always there.
        notes: for each column that is not read but looks like a picture, key, label, caption or metadata, its
            name and the reason.
    """

    names: dict[str, str]
    notes: tuple[str, ...]


def read_table_samples(
    place: str, image_column: str | None = None, max_bytes: int = MAX_BYTES
) -> Iterator[Sample]:
    """Yield the rows of a Parquet table as samples.

    A row without a key gets the table's stem and the row's number, such as "table/00000007". A label is a
    whole number of any type, or text of one. Names of classes are no labels: numbering them would take a
    search of the whole data set before its first shard. A row with several captions gets the first as its
    caption, and all in its metadata if it has no other. `Sample.not_carried` names what is left out.

    Args:
        place: path or URL.
        image_column: name of the column of pictures; None if only one column can hold pictures: binary, or a
            struct with binary "bytes".
        max_bytes: size limit of a picture in bytes. A larger picture is replaced by an error.

    Raises:
        ImageError: the column of pictures is missing or ambiguous, or `place` is not a regular file.
        VartokError: pyarrow is not installed.
        OSError: the table cannot be opened. For a broken table, Arrow may raise other errors too.
    """
    require("pyarrow", extra="dataset", purpose="Parquet tables")
    import pyarrow.parquet

    with (
        open_place(place) as stream,
        pyarrow.parquet.ParquetFile(stream, buffer_size=BUFFER, pre_buffer=False) as table,
    ):
        columns = choose_columns(table.schema_arrow, image_column)
        names = list(dict.fromkeys(columns.names.values()))
        total = table.metadata.num_rows
        number = itertools.count()
        stem = as_unicode(posixpath.basename(without_query(place).replace(os.sep, "/"))).rpartition(".")[0]
        for group in range(table.metadata.num_row_groups):
            size = _rows_at_once(table.metadata.row_group(group))
            for rows in table.iter_batches(size, [group], columns=names, use_threads=False):
                # Two columns may have the same name.
                places = {name: rows.schema.get_all_field_indices(name)[0] for name in names}
                for i in range(rows.num_rows):
                    n = next(number)
                    # Arrow's scalars are views: nothing is copied before its size has been checked.
                    row = {role: rows.column(places[name])[i] for role, name in columns.names.items()}
                    yield _row_sample(row, columns, f"{stem}/{n:08d}", (n + 1) / total, max_bytes)


def _rows_at_once(group: Any) -> int:
    """Return how many rows of a row group to read at once, from their mean size."""
    mean: int = group.total_byte_size // max(1, group.num_rows)
    return max(1, min(ROWS, BATCH_BYTES // max(1, mean)))


def _row_sample(row: dict[str, Any], columns: Columns, key: str, progress: float, max_bytes: int) -> Sample:
    """Return the sample of a row, with an error as its picture if it has none or a value cannot be read.

    Args:
        row: Arrow scalars by the role of their column. Only "image" is always there.
        columns: the columns of the table.
        key: the key to use if the row has none.
        progress: see `Sample`.
        max_bytes: size limit of the picture in bytes.
    """
    notes = columns.notes
    role = "key"
    try:
        row = {name: plain(value) for name, value in row.items()}
        valid = {name for name, value in row.items() if value.is_valid}
        key = (as_text(row["key"], role) if "key" in valid else "") or key
        role = "picture"
        image = row["image"]
        while image.is_valid and hasattr(image.type, "get_field_index"):  # a struct
            image = plain(image["bytes"])
        if not image.is_valid:
            raise ImageError("its row has no picture")
        if image.as_buffer().size > max_bytes:
            raise bytes_error(max_bytes)
        label = None
        role = "label"
        try:
            label = as_label(row["label"]) if "label" in valid else None
        except NotWholeError:
            notes = (*notes, f"{_column(columns.names['label'])}: labels that are not whole numbers")
        role = "caption"
        captions = as_texts(row["caption"], role) if "caption" in valid else []
        role = "metadata"
        metadata = as_json(row["metadata"], role) if "metadata" in valid else None
        if len(captions) > 1 and metadata is None:
            metadata = dump_json({"captions": captions}, role)
        elif len(captions) > 1:
            notes = (*notes, f"{_column(columns.names['caption'])}: captions after the first of a row")
        picture = image.as_py()
    except ImageError as error:
        return Sample(key, error, progress=progress)
    except (ValueError, ArithmeticError, TypeError, NotImplementedError) as error:  # Arrow's, of a bad value
        return Sample(key, ImageError(f"its {role} cannot be read: {one_line(error)}"), progress=progress)
    caption = captions[0] if captions else None
    return Sample(key, picture, label, caption, metadata, progress, not_carried=notes)


def choose_columns(schema: Any, image_column: str | None) -> Columns:
    """Choose the columns of a table to read, by their names and types.

    Args:
        schema: Arrow's schema of the table.
        image_column: name of the column of pictures; None if only one column can hold pictures.

    Raises:
        ImageError: the column of pictures is missing or ambiguous.
    """
    fields: dict[str, Any] = {}
    for field in schema:
        fields.setdefault(field.name, field.type)
    image, images = _image_column(fields, image_column)
    columns = {"image": image}
    notes = []
    fits: dict[str, Callable[[Any], bool]] = {
        "key": is_text,
        "label": lambda kind: is_number(kind) or is_text(kind),
        "caption": _holds_captions,
        "metadata": lambda kind: is_text(kind) or is_nested(kind),
    }
    for role, names in ROLES.items():
        found = [
            name
            for name, kind in fields.items()
            if name.lower() in names and name != image and not is_null(kind)
        ]
        fitting = [name for name in found if fits[role](fields[name])]
        if fitting:
            columns[role] = min(fitting, key=lambda name: _rank(name, fields[name], role))
        title = role if role == "metadata" else f"{role}s"
        for name in found:
            if name not in fitting:
                notes.append(f"{_column(name)}: {title} of type {one_line(fields[name], 60)}")
            elif name != columns[role]:
                notes.append(f"{_column(name)}: {_column(columns[role])} holds the {title}")
    known = {name for names in ROLES.values() for name in names}
    for name in fields:
        if name == image or name.lower() in known or is_null(fields[name]):
            continue
        words = set(re.split(r"[^a-z]+", name.lower()))
        title = next((title for title, found in LOOKALIKES.items() if words & found), "")
        if title == "captions" and not _holds_captions(fields[name]):
            title = ""  # such as an embedding of the text
        if name in images:
            notes.append(f"{_column(name)}: {_column(image)} holds the pictures")
        elif title:
            names = ROLES[title.removesuffix("s")]
            notes.append(f"{_column(name)}: {title} are read from a column {' or '.join(names)}")
        elif is_list(fields[name]) and _holds_pictures(value_type(fields[name]).value_type):
            notes.append(f"{_column(name)}: lists of pictures")
    counts = Counter(schema.names)
    for name in columns.values():
        if counts[name] > 1:
            notes.append(f"{_column(name)}: a second column of this name")
    more = ["further columns"] if len(notes) > MAX_NOTES else []
    return Columns(columns, (*notes[:MAX_NOTES], *more))


def _holds_captions(kind: Any) -> bool:
    """Return True for text, and for lists of texts."""
    if not is_list(kind):
        return is_text(kind)
    item = value_type(kind).value_type
    return is_text(item) or is_null(item)  # a column of empty lists has items of the type null


def _image_column(fields: dict[str, Any], image_column: str | None) -> tuple[str, list[str]]:
    """Return the column of pictures, and all columns that may hold pictures."""
    images = [name for name, kind in fields.items() if _holds_pictures(kind)]
    if image_column is not None:
        named = [name for name in images if name.lower() == image_column.lower()]
        if image_column not in named and len(named) != 1:
            raise ImageError(f"the table has no column {quoted(image_column)} that holds pictures")
        return image_column if image_column in named else named[0], images
    if not images:
        raise ImageError('the table has no column of pictures: binary, or a struct with binary "bytes"')
    # Other columns may hold bytes too, such as captions.
    known = {name for names in ROLES.values() for name in names}
    likely = [name for name in images if name.lower() not in known] or images
    plain_bytes = [name for name in likely if _holds_pictures(fields[name], common=True)] or likely
    if len(plain_bytes) > 1:
        raise ImageError(
            f"several columns may hold pictures ({', '.join(map(one_line, plain_bytes))})",
            hint="set `image_column` to the name of the column of pictures",
        )
    return plain_bytes[0], images


def _holds_pictures(kind: Any, *, common: bool = False) -> bool:
    """Return True for bytes, and for a struct with "bytes".

    Args:
        kind: the type.
        common: accept only the types in which most tables hold pictures, no views and no categoricals.
    """
    from pyarrow import types

    if types.is_struct(value_type(kind)):
        kind = value_type(kind)
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_pictures(kind.field(index).type, common=common)
    return bool(types.is_binary(kind) or types.is_large_binary(kind)) if common else is_binary(kind)


def _rank(name: str, kind: Any, role: str) -> tuple[bool, int, bool]:
    """Return the rank of a column among those of its role: usual types first, then preferred names."""
    from pyarrow import types

    usual = (
        types.is_integer(kind) if role == "label" else types.is_string(kind) or types.is_large_string(kind)
    )
    exact = name in ROLES[role]
    return not (usual and exact), ROLES[role].index(name.lower()), not exact


def _column(name: str) -> str:
    return f"column {quoted(name)}"
