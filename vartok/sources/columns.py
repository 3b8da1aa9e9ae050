"""Choose the columns of a table to read: those of pictures, keys, labels, captions and metadata."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from vartok.errors import ImageError, one_line, quoted
from vartok.sources.arrow_values import (
    is_binary,
    is_integer,
    is_list,
    is_nested,
    is_null,
    is_number,
    is_text,
    value_type,
)

ROLES = {
    "key": ("key", "__key__"),
    "label": ("label", "cls"),
    "caption": ("caption", "text", "txt"),
    "metadata": ("metadata", "json"),
}
"""Possible names of the column of each role, in any case, preferred names first; the last is WebDataset's."""

LOOKALIKES = {
    "labels": {"label", "labels", "cls", "class", "classes", "category", "categories", "target", "targets"},
    "captions": {"caption", "captions", "text", "texts", "txt", "prompt", "prompts", "sentence", "sentences"}
    | {"description", "descriptions"},
    "metadata": {"metadata", "meta", "json"},
}
"""Words in the names of columns that seem to hold labels, captions or metadata."""


MAX_NOTES = 20
"""Largest number of columns whose omission is noted, since a table may have any number."""


class NamedColumns(NamedTuple):
    """Names of the columns of tables that the caller chose; None: a column is chosen by its name and type.

    Attributes:
        image: the column of pictures.
        label: the column of labels.
        caption: the column of captions.
        key: the column of keys, which may be whole numbers.
    """

    image: str | None = None
    label: str | None = None
    caption: str | None = None
    key: str | None = None

    def named(self) -> dict[str, str]:
        """Return the columns that the caller chose, by role."""
        return {role: name for role, name in self._asdict().items() if name is not None}


ANY_COLUMNS = NamedColumns()
"""No column is chosen by the caller."""


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

    def pictures_only(self) -> Columns:
        """Return the columns of the picture and the key alone."""
        return Columns({role: name for role, name in self.names.items() if role in ("image", "key")}, ())


def choose_columns(schema: Any, named: NamedColumns) -> Columns:
    """Choose the columns of a table to read, by their names and types.

    Args:
        schema: Arrow's schema of the table.
        named: the columns that the caller chose.

    Raises:
        ImageError: a column that the caller chose is missing or has an unfit type, or the column of pictures
            is missing or ambiguous.
    """
    fields: dict[str, Any] = {}
    for field in schema:
        fields.setdefault(field.name, field.type)
    columns = {role: _named_column(fields, role, name) for role, name in named.named().items()}
    images = [name for name, kind in fields.items() if _holds_pictures(kind)]
    if "image" not in columns:
        columns["image"] = _image_column(fields, [name for name in images if name not in columns.values()])
    image = columns["image"]
    taken = set(columns.values())
    notes = []
    for role, names in ROLES.items():
        found = [
            name
            for name, kind in fields.items()
            if name.lower() in names and name not in taken and not is_null(kind)
        ]
        fitting = [name for name in found if SUITS_ROLE[role](fields[name])]
        if fitting and role not in columns:
            columns[role] = min(fitting, key=lambda name: _rank(name, fields[name], role))
        title = _title(role)
        for name in found:
            if name not in fitting:
                notes.append(f"{describe_column(name)}: {title} of type {one_line(fields[name], 60)}")
            elif name != columns[role]:
                notes.append(f"{describe_column(name)}: {describe_column(columns[role])} holds the {title}")
    known = {name for names in ROLES.values() for name in names}
    for name in fields:
        if name in taken or name.lower() in known or is_null(fields[name]):
            continue
        words = set(re.split(r"[^a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()))
        title = next((title for title, found in LOOKALIKES.items() if words & found), "")
        if title == "captions" and not _holds_captions(fields[name]):
            title = ""  # such as an embedding of the text
        if name in images:
            if name != image:
                notes.append(f"{describe_column(name)}: {describe_column(image)} holds the pictures")
        elif title:
            names = ROLES[title.removesuffix("s")]
            notes.append(f"{describe_column(name)}: {title} are read from a column {' or '.join(names)}")
        elif is_list(fields[name]) and _holds_pictures(value_type(fields[name]).value_type):
            notes.append(f"{describe_column(name)}: lists of pictures")
    counts = Counter(schema.names)
    for name in dict.fromkeys(columns.values()):
        if counts[name] > 1:
            notes.append(f"{describe_column(name)}: a second column of this name")
    more = ["further columns"] if len(notes) > MAX_NOTES else []
    return Columns(columns, (*notes[:MAX_NOTES], *more))


def describe_column(name: str) -> str:
    """Return the name of a column for messages: "column 'label'"."""
    return f"column {quoted(name)}"


def _named_column(fields: dict[str, Any], role: str, name: str) -> str:
    """Return the column of a role that the caller named: the one of this name, or of it in another case.

    Raises:
        ImageError: there is no such column, or its type does not suit the role.
    """
    found = [name] if name in fields else [other for other in fields if other.lower() == name.lower()]
    if not found:
        raise ImageError(
            f"the table has no column {quoted(name)}: its columns are {one_line(', '.join(fields), 300)}"
        )
    fits = _holds_pictures if role == "image" else SUITS_ROLE[role]
    fitting = [
        other
        for other in found
        if fits(fields[other]) or is_null(fields[other]) or (role == "key" and is_integer(fields[other]))
    ]
    if not fitting:
        title = "pictures" if role == "image" else _title(role)
        raise ImageError(
            f"{describe_column(found[0])} holds no {title}: its type is {one_line(fields[found[0]], 60)}"
        )
    return fitting[0]


def _title(role: str) -> str:
    return role if role == "metadata" else f"{role}s"


def _holds_captions(kind: Any) -> bool:
    """Return True for text, and for lists of texts."""
    if not is_list(kind):
        return is_text(kind)
    item = value_type(kind).value_type
    return is_text(item) or is_null(item)  # a column of empty lists has items of the type null


SUITS_ROLE: dict[str, Callable[[Any], bool]] = {
    "key": is_text,
    "label": lambda kind: is_number(kind) or is_text(kind),
    "caption": _holds_captions,
    "metadata": lambda kind: is_text(kind) or is_nested(kind),
}
"""For each role, a function that returns True for the types that its values may have."""


def _image_column(fields: dict[str, Any], images: list[str]) -> str:
    """Return the column of pictures among those that may hold pictures."""
    if not images:
        raise ImageError(
            'the table has no column of pictures, which are binary or a struct with binary "bytes": its '
            f"columns are {one_line(', '.join(f'{name} ({kind})' for name, kind in fields.items()), 300)}"
        )
    # Other columns may hold bytes too, such as captions.
    known = {name for names in ROLES.values() for name in names}
    likely = [name for name in images if name.lower() not in known] or images
    plain_bytes = [name for name in likely if _holds_pictures(fields[name], common=True)] or likely
    if len(plain_bytes) > 1:
        raise ImageError(
            f"several columns may hold pictures ({', '.join(map(one_line, plain_bytes))})",
            hint="set `image_column` to the name of the column of pictures",
        )
    return plain_bytes[0]


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
