"""Values of Arrow become labels, texts and JSON."""

import datetime
import decimal
import json
from typing import Any

import pyarrow as pa
import pytest

from vartok.errors import ImageError
from vartok.sources.arrow_values import NotWholeError, as_json, as_label, as_text, as_texts


def bad_text() -> pa.Array:
    """Return an array of one string whose bytes are not UTF-8, as Parquet files may hold it."""
    offsets = pa.array([0, 1], pa.int32()).buffers()[1]
    return pa.StringArray.from_buffers(1, offsets, pa.py_buffer(b"\xe9"))


@pytest.mark.parametrize(
    ("value", "kind", "label"),
    [
        (3, pa.int8(), 3),
        (250, pa.uint8(), 250),
        ((1 << 63) - 1, pa.uint64(), (1 << 63) - 1),
        (2.0, pa.float16(), 2),
        (2.0, pa.float32(), 2),
        (float("nan"), pa.float64(), None),
        (False, pa.bool_(), 0),
        (True, pa.bool_(), 1),
        (decimal.Decimal("7.00"), pa.decimal128(5, 2), 7),
        ("3", pa.string(), 3),
        (" 3.0\n", pa.large_string(), 3),
        ("3", pa.string_view(), 3),
        (b"3", pa.binary(), 3),
        ("", pa.string(), None),
        ("-1", pa.string(), None),
        (-1.0, pa.float64(), None),
        (None, pa.string(), None),
    ],
)
def test_whole_numbers_of_any_type_are_labels(value: Any, kind: pa.DataType, label: int | None) -> None:
    assert as_label(pa.array([value], kind)[0]) == label


@pytest.mark.parametrize(
    "value", ["cat", "1.5", "1e3", "x" * 2000, 1.5, float("inf"), decimal.Decimal("0.5")]
)
def test_other_values_are_no_labels(value: Any) -> None:
    with pytest.raises(NotWholeError):
        as_label(pa.array([value])[0])


@pytest.mark.parametrize("value", [1e19, "9223372036854775808", pa.scalar(1 << 63, pa.uint64())])
def test_too_large_labels_are_refused(value: Any) -> None:
    with pytest.raises(ImageError, match="its label is larger than 9,223,372,036,854,775,807"):
        as_label(value if isinstance(value, pa.Scalar) else pa.scalar(value))


def test_categoricals_are_read_by_their_values() -> None:
    assert [as_label(value) for value in pa.array(["7", None, "5", "7"]).dictionary_encode()] == [
        7,
        None,
        5,
        7,
    ]
    assert as_text(pa.array(["a"]).dictionary_encode()[0], "caption") == "a"


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.string(), 3),
        pa.list_(pa.binary()),
    ],
)
def test_lists_of_texts_are_read_without_nulls(kind: pa.DataType) -> None:
    assert as_texts(pa.array([["a", None, "é"]], kind)[0], "caption") == ["a", "é"]


def test_text_that_is_not_utf_8_is_refused() -> None:
    nested = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), bad_text())
    struct = pa.StructArray.from_arrays([bad_text()], ["a"])
    for read, value in (
        (as_text, bad_text()[0]),
        (as_text, pa.array([b"\xe9"])[0]),
        (as_texts, nested[0]),
        (as_json, nested[0]),
        (as_json, struct[0]),
    ):
        with pytest.raises(ImageError, match="its caption is not text in UTF-8"):
            read(value, "caption")


def test_structs_become_json() -> None:
    value = {
        "n": 1,
        "f": 0.5,
        "nan": float("nan"),
        "b": b"x",
        "l": [{"a": "é"}, None],
        "t": datetime.date(2024, 1, 2),
    }
    text = as_json(pa.array([value])[0], "metadata")
    assert "é" in text
    assert json.loads(text) == {**value, "nan": None, "b": "x", "t": "2024-01-02"}
    pairs = pa.array([[("a", 1), ("b", None)]], pa.map_(pa.string(), pa.int64()))
    assert as_json(pairs[0], "metadata") == '{"a": 1, "b": null}'
    assert as_json(pa.array(['{"a":1}'])[0], "metadata") == '{"a":1}'  # text stays as it is


def test_large_values_are_refused_before_they_are_copied() -> None:
    large = pa.array(["x" * (1 << 21)] * 4)
    few = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["y" * (1 << 20)]))
    many = pa.array([0] * 400_000)  # as JSON, 1.2 million characters
    for values in (large, few, many):  # `few` would be 100 GB
        listed = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
        for read in (as_texts, as_json):
            with pytest.raises(ImageError, match="its caption has more than 1,048,576 characters"):
                read(listed[0], "caption")
