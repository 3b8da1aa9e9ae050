"""Convert values of Arrow, Parquet's types in memory, to the label and the texts of a sample."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from vartok.errors import ImageError
from vartok.sources.samples import MAX_SAMPLE_TEXT, check_label

MAX_LABEL_BYTES = 1 << 10
"""Size limit in bytes of a label that is text; a longer text is neither a number nor the name of a class."""

MAX_TEXT_BYTES = 4 * MAX_SAMPLE_TEXT
"""Size limit in bytes of a text, since a character of UTF-8 has up to 4 bytes."""


ITEM_BYTES = 12
"""Bytes that an item of a list counts at least: in JSON it has 3 characters or more, with the comma."""


class NotWholeError(Exception):
    """Raised for a label that is not a whole number, such as the name of a class."""


class UnknownClassError(Exception):
    """Raised for the name of a class that has no number."""


def value_type(kind: Any) -> Any:
    """Return the type of the values of a dictionary (a pandas categorical) or extension type, else `kind`."""
    import pyarrow

    while isinstance(kind, pyarrow.BaseExtensionType) or pyarrow.types.is_dictionary(kind):
        kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind.storage_type
    return kind


def plain(value: Any) -> Any:
    """Return the scalar that a dictionary or extension scalar refers to, without a copy; else `value`."""
    while value.is_valid and isinstance(value, _wrappers()):
        value = value.value
    return value


@functools.cache
def _wrappers() -> Any:
    import pyarrow

    return pyarrow.DictionaryScalar, pyarrow.ExtensionScalar


def _holds_text(value: Any) -> bool:
    """Return True for a scalar of text or bytes. It is read for every row, and faster than `is_text`."""
    return hasattr(value, "as_buffer")


def is_number(kind: Any) -> bool:
    """Return True for integers, floats, booleans and decimals."""
    return _is(kind, "integer", "floating", "boolean", "decimal")


def is_integer(kind: Any) -> bool:
    """Return True for integers of any width."""
    return _is(kind, "integer")


def is_text(kind: Any) -> bool:
    """Return True for strings, and for bytes, which may be text in UTF-8."""
    return is_binary(kind) or _is(kind, "string", "large_string", "string_view")


def is_binary(kind: Any) -> bool:
    """Return True for bytes of varying length."""
    return _is(kind, "binary", "large_binary", "binary_view")


def is_list(kind: Any) -> bool:
    """Return True for lists, but not for maps."""
    return _is(kind, "list", "large_list", "fixed_size_list", "list_view", "large_list_view")


def is_null(kind: Any) -> bool:
    """Return True for the type of a column that holds only nulls, as pandas may write it."""
    return _is(kind, "null")


def is_nested(kind: Any) -> bool:
    """Return True for structs, maps and lists, which become JSON."""
    return is_list(kind) or _is(kind, "struct", "map")


def _is(kind: Any, *names: str) -> bool:
    """Return True if the values are of one of the types; older versions of Arrow lack some of them."""
    from pyarrow import types

    kind = value_type(kind)
    return any(getattr(types, f"is_{name}", lambda _: False)(kind) for name in names)


def as_label(value: Any, classes: Mapping[str, int] | None = None) -> int | None:
    """Return the class index that a scalar holds: a whole number of any type, or text.

    Args:
        value: the scalar.
        classes: class indices by the names of classes, which texts are; None if texts are whole numbers.

    Returns:
        The class index; None for null, NaN, an empty text, or a negative number.

    Raises:
        NotWholeError: the value is not a whole number, nor a text if `classes` is given.
        UnknownClassError: the value is a text that is not in `classes`.
        ImageError: the label is too large, or bytes that are not UTF-8.
    """
    value = plain(value)
    if not value.is_valid:
        return None
    if _holds_text(value):
        text = as_text(value, "label") if _size(value) <= MAX_LABEL_BYTES else None
        if text is not None and not text.strip():
            return None
        if classes is not None:
            if text is None or text not in classes:
                raise UnknownClassError
            return classes[text]
        if text is None or not is_whole(text):
            raise NotWholeError
        return check_label(int(text.partition(".")[0]))
    number = value.as_py()
    if not isinstance(number, int | Decimal):
        number = float(number)  # older versions of Arrow give NumPy's float16
    if isinstance(number, float) and math.isnan(number):  # pandas stores a missing value so
        return None
    if isinstance(number, float | Decimal) and not (math.isfinite(number) and number == int(number)):
        raise NotWholeError
    return check_label(int(number))


def is_whole(text: str) -> bool:
    """Return True for the text of a whole number, such as "7", "-1" or "7.0"."""
    return re.fullmatch(r"[+-]?[0-9]{1,30}(\.0*)?", text.strip()) is not None


def as_key(value: Any) -> str:
    """Return the key that a valid scalar of text or a whole number holds.

    Raises:
        ImageError: the text has more than `MAX_SAMPLE_TEXT` characters, or is not UTF-8.
    """
    return as_text(value, "key") if _holds_text(value) else str(int(value.as_py()))


def as_text(value: Any, role: str) -> str:
    """Return the text of a valid scalar of string or UTF-8 bytes.

    Args:
        value: the scalar.
        role: name of the value in messages, such as "caption".

    Raises:
        ImageError: the text has more than `MAX_SAMPLE_TEXT` characters, or is not UTF-8.
    """
    value = plain(value)
    _check_size(value, role)
    try:
        text = value.as_py()
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError:
        raise ImageError(f"its {role} is not text in UTF-8") from None
    return _checked(text, role)


def as_texts(value: Any, role: str) -> list[str]:
    """Return the texts of a valid scalar of text or a list of texts, without nulls.

    Raises:
        ImageError: the texts together have more than `MAX_SAMPLE_TEXT` characters, or one is not UTF-8.
    """
    value = plain(value)
    if _holds_text(value):
        return [as_text(value, role)]
    _check_size(value, role)
    texts = [as_text(item, role) for item in value.values if plain(item).is_valid]
    if sum(map(len, texts)) > MAX_SAMPLE_TEXT:
        raise _too_long(role)
    return texts


def as_json(value: Any, role: str) -> str:
    """Return a valid scalar of text as it is, and a struct, map or list as JSON text.

    NaN becomes null, and a value that JSON does not have, such as a date, becomes text.

    Raises:
        ImageError: the JSON text has more than `MAX_SAMPLE_TEXT` characters, or a text in it is not UTF-8.
    """
    value = plain(value)
    if _holds_text(value):
        return as_text(value, role)
    _check_size(value, role)
    try:
        return dump_json(_json_value(value), role)
    except UnicodeDecodeError:
        raise ImageError(f"its {role} is not text in UTF-8") from None


def dump_json(value: Any, role: str) -> str:
    """Return an object as JSON text.

    Raises:
        ImageError: the JSON text has more than `MAX_SAMPLE_TEXT` characters.
    """
    return _checked(json.dumps(value, ensure_ascii=False), role)


def _json_value(value: Any) -> Any:
    value = plain(value)
    if not value.is_valid:
        return None
    if _is(value.type, "struct"):
        return {field.name: _json_value(value[i]) for i, field in enumerate(value.type)}
    if _is(value.type, "map"):
        pairs = ((_json_value(pair[0]), _json_value(pair[1])) for pair in value.values)
        return {key if isinstance(key, str) else json.dumps(key): item for key, item in pairs}
    if is_list(value.type):
        return [_json_value(item) for item in value.values]
    content = value.as_py()
    if isinstance(content, bytes):
        return content.decode()
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    return content if isinstance(content, str | int) else str(content)


def _check_size(value: Any, role: str) -> None:
    if _size(value) > MAX_TEXT_BYTES:
        raise _too_long(role)


def _size(value: Any) -> int:
    """Return the size of a scalar in bytes, before it is copied; of a large one, only that it is too large.

    Lists are measured item by item: the items may be references to one large value.
    """
    value = plain(value)
    if not value.is_valid:
        return 1
    if _holds_text(value):
        return int(value.as_buffer().size)
    total = 1
    if _is(value.type, "struct"):
        # With the names, which JSON repeats.
        total += sum(len(field.name) + _size(value[i]) for i, field in enumerate(value.type))
    elif is_nested(value.type):
        items = value.values
        if len(items) * ITEM_BYTES > MAX_TEXT_BYTES:
            return MAX_TEXT_BYTES + 1
        for item in items:
            total += ITEM_BYTES + _size(item)
            if total > MAX_TEXT_BYTES:
                break
    return total


def _checked(text: str, role: str) -> str:
    if len(text) > MAX_SAMPLE_TEXT:
        raise _too_long(role)
    return text


def _too_long(role: str) -> ImageError:
    return ImageError(f"its {role} has more than {MAX_SAMPLE_TEXT:,} characters")
