"""Rows of Parquet tables are samples."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_cases import samples_of, table

from vartok.errors import ImageError
from vartok.sources import find_input_shards, tables


def test_a_tables_columns_are_carried(tmp_path: Path) -> None:
    path = table(
        tmp_path / "t.parquet",
        image=[{"bytes": b"a", "path": "a.png"}, {"bytes": None, "path": "b.png"}, None],
        label=[3, -1, None],
        text=["a", None, "c"],
        other=[1.5, 2.5, 3.5],
    )
    a, b, c = samples_of(path)
    assert (a.key, a.picture, a.label, a.caption, a.metadata) == ("t/00000000", b"a", 3, "a", None)
    assert str(b.picture) == str(c.picture) == "its row has no picture"
    assert [a.progress, b.progress, c.progress] == [1 / 3, 2 / 3, 1]

    path = table(
        tmp_path / "u.parquet", __key__=["k1", "k2"], jpg=[b"a", b"b"], cls=[-1, 0], json=["{}", None]
    )
    a, b = samples_of(path)
    assert [(s.key, s.picture, s.label, s.metadata) for s in (a, b)] == [
        ("k1", b"a", None, "{}"),
        ("k2", b"b", 0, None),
    ]


def test_text_in_a_table_has_its_bounds(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", image=[b"a", b"b"], text=["x" * (1 << 20), "x" * ((1 << 20) + 1)])
    a, b = samples_of(path)
    assert a.picture == b"a"
    assert str(b.picture) == "its caption has more than 1,048,576 characters"


def test_an_ambiguous_column_of_pictures_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", one=[b"1"], two=[b"2"], name=["x"])
    (failed,) = samples_of(path)
    assert str(failed.picture) == "several columns may hold pictures (one, two)"
    assert samples_of(path, image_column="two")[0].picture == b"2"
    for wrong in ("name", "three"):
        (failed,) = samples_of(path, image_column=wrong)
        assert str(failed.picture) == f"the table has no column '{wrong}' that holds pictures"
    (failed,) = samples_of(table(tmp_path / "u.parquet", name=["x"]))
    assert (
        str(failed.picture) == 'the table has no column of pictures: binary, or a struct with binary "bytes"'
    )


def test_large_pictures_in_a_table_are_not_read_and_the_rest_is(tmp_path: Path) -> None:
    images = [b"a" * 10, b"b" * 11, None, b"c"]
    for column in (images, [{"bytes": image, "path": "x"} for image in images]):
        path = table(tmp_path / "t.parquet", image=column)
        (shard,) = find_input_shards([path], 10)
        a, b, c, d = shard.samples(10)
        assert (a.picture, d.picture) == (b"a" * 10, b"c")
        assert str(b.picture) == "has more than 10 bytes"
        assert isinstance(b.picture, ImageError)
        assert "`max_bytes`" in str(b.picture.hint)
        assert str(c.picture) == "its row has no picture"


def test_rows_of_large_pictures_are_read_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.parquet"
    images = [os.urandom(1000) for _ in range(7)] + [b"x"] * 40
    pq.write_table(pa.table({"image": images}), path, row_group_size=7)
    monkeypatch.setattr(tables, "BATCH_BYTES", 1500)
    with pq.ParquetFile(path) as file:
        sizes = [tables._rows_at_once(file.metadata.row_group(n)) for n in (0, 1)]
    assert sizes == [1, 16]
    found = samples_of(path)
    assert [sample.picture for sample in found] == images
    assert [sample.key for sample in found] == [f"t/{n:08d}" for n in range(47)]
