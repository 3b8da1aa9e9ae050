"""The names of classes in the columns of labels are found in all tables."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather
from source_cases import table

from vartok.errors import SourceError, VartokWarning
from vartok.sources import NamedColumns, classes, find_input_shards
from vartok.sources.classes import table_classes
from vartok.sources.shards import InputShard

TEXTS = ["dog", "cat", None, " ", "cat"]


def found(folder: Path, *labels: Any, name: str = "label", suffix: str = "parquet", **options: Any) -> Any:
    for n, column in enumerate(labels):
        rows = pa.table({"image": [b"1"] * len(column), name: column})
        if suffix == "parquet":
            pq.write_table(rows, folder / f"{n}.parquet")
        else:
            feather.write_feather(rows, str(folder / f"{n}.{suffix}"))
    return table_classes(find_input_shards([folder], 1, **options))


@pytest.mark.parametrize("suffix", ["parquet", "feather"])
@pytest.mark.parametrize(
    "column",
    [
        pa.array(TEXTS),
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS, pa.string_view()),
        pa.array([text and text.encode() for text in TEXTS]),
        pa.array(TEXTS).dictionary_encode(),
        pa.array(TEXTS, pa.large_string()).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_names_are_read_from_every_type_of_text(tmp_path: Path, column: Any, suffix: str) -> None:
    assert found(tmp_path, column, suffix=suffix) == ("cat", "dog")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([["7", "-1", None], [" 8.0 ", ""]], None),
        ([[1, 2], ["7"]], None),
        ([["7"], ["b", "7"]], ("7", "b")),
        ([["b"], pa.nulls(2)], ("b",)),
        ([["b"], [float("nan"), None], [-1, None]], ("b",)),
        ([["b", "x" * 2000]], ("b",)),
        ([[b"b", b"\xe9"]], ("b",)),
        ([[True, False], [1.0, 2.0]], None),
        ([], None),
    ],
)
def test_texts_are_names_unless_all_are_whole_numbers(
    tmp_path: Path, labels: Sequence[Any], expected: tuple[str, ...] | None
) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"junk")  # it fails when its pictures are read
    assert found(tmp_path, *labels) == expected


def test_a_name_that_is_not_text_is_left_out(tmp_path: Path) -> None:
    offsets = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1]
    texts = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"b\xe9a"))
    assert found(tmp_path, texts) == found(tmp_path, texts, suffix="feather") == ("a", "b")


def test_names_beside_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"labels of .*1\.parquet are names of classes, but those of .*0\.par"
    ):
        found(tmp_path, [1], ["a"])


def test_the_number_of_names_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "MAX_CLASSES", 3)
    monkeypatch.setattr(classes, "VALUES", 2)
    assert found(tmp_path, ["a", "b", "c"], ["c"]) == ("a", "b", "c")
    assert found(tmp_path, list("1234567"), ["8"]) is None
    for labels in ([["a", "b", "c"], ["d"]], [list("1234567a"), ["8"]]):
        with pytest.warns(VartokWarning, match="the labels of the tables have more than 3 names"):
            assert found(tmp_path, *labels) == ()


def test_the_column_of_labels_may_be_named_and_its_type_counts(tmp_path: Path) -> None:
    assert found(tmp_path, ["a"], name="breed") is None
    assert found(tmp_path, ["a"], name="breed", columns=NamedColumns(label="breed")) == ("a",)
    table(tmp_path / "0.parquet", image=[b"1"], label=["cat"], cls=[2])
    assert table_classes(find_input_shards([tmp_path], 1)) is None


@pytest.mark.parametrize("url", [True, False])
def test_a_url_that_fails_does_not_number_classes_differently(
    monkeypatch: pytest.MonkeyPatch, url: bool
) -> None:
    place = "http://me:pass@host/a.parquet" if url else "a.parquet"

    def fail(*_: object, **__: object) -> None:
        raise OSError("the connection broke")

    monkeypatch.setattr(classes, "open_table", fail)
    shards = [InputShard("table", place)]
    if url:
        reason = "^http://host/a.parquet: its labels cannot be read: the connection broke\n"
        with pytest.raises(SourceError, match=reason):
            table_classes(shards)
    else:
        assert table_classes(shards) is None
    with pytest.raises(SourceError) if url else contextlib.nullcontext():
        assert not classes._has_numbers(shards[0])
