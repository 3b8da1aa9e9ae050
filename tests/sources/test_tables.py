"""Rows of Parquet tables are samples."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_cases import pictures_alone, samples_of, table

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
    with tables.open_table(str(path)) as opened:
        sizes = [batch.num_rows for batch in opened.batches(["image"], 16)]
    assert sizes == [1] * 7 + [7] * 5 + [5]
    found = samples_of(path)
    assert [sample.picture for sample in found] == images
    assert [sample.key for sample in found] == [f"t/{n:08d}" for n in range(47)]


def test_a_bad_value_costs_its_row_only(tmp_path: Path) -> None:
    offsets = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1]
    texts = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"a\xe9c"))
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [b"1", b"2", b"3"], "caption": texts}), path)
    a, b, c = samples_of(path)
    assert (a.caption, c.caption, c.picture) == ("a", "c", b"3")
    assert (b.key, str(b.picture), b.final) == ("t/00000001", "its caption is not text in UTF-8", False)
    assert [sample.picture for sample in pictures_alone(path)] == [b"1", b"2", b"3"]


def test_names_of_classes_are_named_as_not_carried(tmp_path: Path) -> None:
    path = table(
        tmp_path / "t.parquet",
        image=[b"1", b"2", b"3"],
        label=pa.array(["cat", "4", None]).dictionary_encode(),
    )
    a, b, c = samples_of(path)
    assert (a.label, b.label, c.label) == (None, 4, None)
    assert a.not_carried == ("column 'label': labels that are not whole numbers",)
    assert b.not_carried == c.not_carried == ()


def test_the_first_caption_is_the_caption_and_metadata_hold_all(tmp_path: Path) -> None:
    captions = [["a", "b"], ["c"], [], None]
    a, b, c, d = samples_of(table(tmp_path / "t.parquet", image=[b"1"] * 4, caption=captions))
    assert [s.caption for s in (a, b, c, d)] == ["a", "c", None, None]
    assert [s.metadata for s in (a, b, c, d)] == ['{"captions": ["a", "b"]}', None, None, None]
    a, b = samples_of(
        table(tmp_path / "u.parquet", image=[b"1"] * 2, caption=captions[:2], json=[{"n": 1}, {"n": 2}])
    )
    assert (a.caption, a.metadata, b.metadata) == ("a", '{"n": 1}', '{"n": 2}')
    assert a.not_carried == ("column 'caption': captions after the first of a row",)
    assert b.not_carried == ()


def test_a_page_that_claims_gigabytes_takes_none(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [b"1"] * 5}), path, compression="none", use_dictionary=False)
    data = path.read_bytes()
    kind, unpacked, packed = data[4:6], data[6:8], data[8:10]
    assert (kind[0], unpacked[0], packed[0], packed[1]) == (0x15, 0x15, 0x15, unpacked[1])  # a page's header
    path.write_bytes(data[:9] + b"\xfe\xff\xff\xff\x0f" + data[10:])
    before = pa.default_memory_pool().max_memory()
    (failed,) = samples_of(path)
    assert "Page was smaller" in str(failed.picture)
    assert pa.default_memory_pool().max_memory() < before + 1_000_000


def test_joined_parquet_files_are_refused(tmp_path: Path) -> None:
    paths = [table(tmp_path / f"{n}.parquet", image=[b"%d" % n] * 9, label=[n] * 9) for n in range(2)]
    (tmp_path / "both.parquet").write_bytes(paths[0].read_bytes() + paths[1].read_bytes())
    (failed,) = samples_of(tmp_path / "both.parquet")  # Arrow reads the first pictures as the second's
    assert str(failed.picture) == "is several Parquet files joined into one: name each file alone"
