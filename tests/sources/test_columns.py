"""The columns of tables: which are read, as what, and which are named as not read."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_cases import samples_of, table

from vartok.sources import NamedColumns, columns, find_input_shards


def test_an_ambiguous_column_of_pictures_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", one=[b"1"], two=[b"2"], name=["x"])
    (failed,) = samples_of(path)
    assert str(failed.picture) == "several columns may hold pictures (one, two)"
    assert samples_of(path, columns=NamedColumns("two"))[0].picture == b"2"
    (failed,) = samples_of(table(tmp_path / "u.parquet", name=["x"]))
    assert (
        str(failed.picture)
        == "the table has no column of pictures, which are binary or a struct with binary "
        '"bytes": its columns are name (string)'
    )


def test_names_of_columns_may_have_any_case_and_bytes_may_be_text(tmp_path: Path) -> None:
    path = table(tmp_path / "t.PQ", Image=[b"1"], Label=[1.0], TEXT=[b"\xc3\xa9"], Key=["k"])
    (found,) = samples_of(path)
    assert (found.key, found.picture, found.label, found.caption) == ("k", b"1", 1, "é")
    assert found.not_carried == ()
    assert samples_of(path, columns=NamedColumns("image"))[0].picture == b"1"


def test_columns_of_usual_types_are_preferred(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", image=[b"1"], label=["cat"], cls=[2], caption=[["a"]], txt=["b"])
    (found,) = samples_of(path)
    assert (found.label, found.caption) == (2, "b")
    assert found.not_carried == (
        "column 'label': column 'cls' holds the labels",
        "column 'caption': column 'txt' holds the captions",
    )


def test_columns_that_are_not_read_but_look_like_it_are_named(tmp_path: Path) -> None:
    path = table(
        tmp_path / "t.parquet",
        image=[b"1"],
        mask=[b"2"],
        pages=[[b"3"]],
        label=[[1, 2]],
        Captions=["a"],
        labelName=["b"],
        text_embedding=[[0.5]],
        key=[7],
        meta=pa.nulls(1),
        other=["x"],
    )
    (found,) = samples_of(path, columns=NamedColumns("image"))
    assert (found.key, found.label, found.caption) == ("t/00000000", None, None)
    assert found.not_carried == (
        "column 'key': keys of type int64",
        "column 'label': labels of type list<element: int64>",
        "column 'mask': column 'image' holds the pictures",
        "column 'pages': lists of pictures",
        "column 'Captions': captions are read from a column caption or text or txt",
        "column 'labelName': labels are read from a column label or cls",
    )


def test_the_number_of_named_columns_is_bounded(tmp_path: Path) -> None:
    many = {f"label {n}": [n] for n in range(100)}
    (found,) = samples_of(table(tmp_path / "t.parquet", image=[b"1"], **many))
    assert len(found.not_carried) == columns.MAX_NOTES + 1
    assert found.not_carried[-1] == "further columns"


def test_two_columns_may_have_one_name(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64()), ("label", pa.int64())])
    pq.write_table(pa.table([pa.array([b"1"]), pa.array([3]), pa.array([4])], schema=schema), path)
    (found,) = samples_of(path)
    assert (found.picture, found.label) == (b"1", 3)
    assert found.not_carried == ("column 'label': a second column of this name",)


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = table(
        tmp_path / "t.parquet",
        photo=[b"1"],
        blurb=[b"a cup"],
        label=["cat"],
        Category=pa.array([3], pa.uint8()),
        caption=["other"],
        number=[7],
    )
    named = NamedColumns(label="category", caption="blurb", key="number")
    (found,) = samples_of(path, columns=named)
    assert (found.key, found.picture, found.label, found.caption) == ("7", b"1", 3, "a cup")
    assert found.not_carried == (
        "column 'label': column 'Category' holds the labels",
        "column 'caption': column 'blurb' holds the captions",
    )
    (plain,) = find_input_shards([str(path)], 1)
    (chosen,) = find_input_shards([str(path)], 1, columns=named)
    assert chosen.identity == f"{plain.identity}, label category, caption blurb, key number"


@pytest.mark.parametrize("role", NamedColumns._fields)
def test_named_columns_that_are_missing_or_unfit_are_refused(tmp_path: Path, role: str) -> None:
    path = table(tmp_path / "t.parquet", image=[b"1"], score=[[0.5]])
    for name, message in (
        ("nope", "the table has no column 'nope': its columns are image, score"),
        (
            "score",
            f"column 'score' holds no {role.replace('image', 'picture')}s: its type is list<element: double>",
        ),
    ):
        (failed,) = samples_of(path, columns=NamedColumns(**{role: name}))
        assert (str(failed.picture), failed.final) == (message, True)
