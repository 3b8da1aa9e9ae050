"""Arrow files, streams and Feather files are tables; damaged ones keep the rows before the damage."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pytest
from pyarrow import ipc
from source_cases import samples_of

from vartok.errors import ImageError
from vartok.sources import arrow_messages

TABLE = pa.table(
    {
        "image": [b"%d" % n for n in range(20)],
        "label": pa.array([1, None] * 10).dictionary_encode(),
        "caption": ["a"] * 20,
        "big": ["x" * 5000] * 20,
    }
)


def write(path: Path, table: Any = TABLE, *, stream: bool = True, rows: int = 7, **options: Any) -> Path:
    new = ipc.new_stream if stream else ipc.new_file
    with new(str(path), table.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


@pytest.mark.parametrize("name", ["t.arrow", "t.feather", "T.ARROW"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stream": False},
        {"stream": False, "compression": "lz4"},
        {"compression": "zstd"},
        {"use_legacy_format": True},
    ],
)
def test_arrow_files_and_streams_are_read_as_parquet_is(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    found = samples_of(write(tmp_path / name, **options))
    assert [sample.picture for sample in found] == [b"%d" % n for n in range(20)]
    assert [sample.label for sample in found] == [1, None] * 10
    assert {sample.caption for sample in found} == {"a"}
    assert found[3].key == f"{name[0]}/00000003"
    assert found[3].progress == 4 / 20


def test_a_parquet_file_may_have_the_name_of_an_arrow_file(tmp_path: Path) -> None:
    pa.parquet.write_table(TABLE, tmp_path / "t.arrow")
    assert len(samples_of(tmp_path / "t.arrow")) == 20


def test_the_footer_of_a_file_tells_where_its_batches_are(tmp_path: Path) -> None:
    """The schema at the beginning may lack its length, as in files that Polars writes."""
    for table in (TABLE, TABLE.slice(0, 0)):
        path = write(tmp_path / "t.arrow", table, stream=False)
        data = path.read_bytes()
        path.write_bytes(data[:8] + bytes(8) + data[16:])
        assert [sample.picture for sample in samples_of(path)] == table["image"].to_pylist()
        path.write_bytes(data[:8] + bytes(8) + data[16:-9])
        (failed,) = samples_of(path)
        assert str(failed.picture) == "is cut off: it has no footer"


def test_a_footer_cannot_multiply_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    table = TABLE.select(["image", "big"])
    with ipc.new_file(str(path), table.schema) as writer:
        for rows in (table[:15], table[15:16], table[16:]):
            writer.write_table(rows)
    data = path.read_bytes()
    end = len(data) - 10 - struct.unpack_from("<i", data, len(data) - 10)[0]
    footer = data[end:]
    first, _ = arrow_messages._FlatTable(footer, struct.unpack_from("<I", footer)[0]).vector(3)
    path.write_bytes(data[: end + first] + 2 * footer[first : first + 24] + footer[first + 48 :])
    *found, failed = samples_of(path)
    assert len(found) == 15
    assert str(failed.picture) == "is damaged: its footer lists a batch more than once"


def joined(data: bytes) -> bytes:
    return data + data


@pytest.mark.parametrize(
    ("stream", "damage", "rows", "message"),
    [
        (True, lambda data: data[:-8], 20, "is cut off: it has no end mark"),
        (True, lambda data: data[:-100], 14, "is cut off: it ends within a batch"),
        (True, joined, 20, "holds data after its end, as if two tables had been joined"),
        (False, joined, 20, "holds data after its end, as if two tables had been joined"),
        (False, lambda data: data[:-3], 20, "is cut off: it has no footer"),
        (True, lambda data: data[:-8] + b"\xff" * 8, 20, "is damaged: a header of -1 bytes"),
        (True, lambda data: data[:-8] + b"\xff" * 4 + b"\x04\0\0\0junk", 20, "is damaged: the header of"),
        (True, lambda data: data[:90], 0, "is not an Arrow table: it does not begin with a whole schema"),
        (True, lambda data: b"", 0, "is not an Arrow table"),
        (True, lambda data: b"junk" * 99, 0, "is not an Arrow table"),
        (True, lambda data: b"FEA1" + data, 0, "is a Feather file of version 1: write it as version 2"),
    ],
)
def test_damaged_files_keep_the_rows_before_the_damage(
    tmp_path: Path, stream: bool, damage: Callable[[bytes], bytes], rows: int, message: str
) -> None:
    path = write(tmp_path / "t.arrow", stream=stream)
    path.write_bytes(damage(path.read_bytes()))
    *found, failed = samples_of(path)
    assert [sample.picture for sample in found] == [b"%d" % n for n in range(rows)]
    assert str(failed.picture).startswith(message)
    assert failed.final


def test_a_value_that_is_not_valid_costs_its_row_only(tmp_path: Path) -> None:
    offsets = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1]
    texts = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"a\xe9c"))
    path = write(tmp_path / "t.arrow", pa.table({"image": [b"1", b"2", b"3"], "caption": texts}))
    a, b, c = samples_of(path)
    assert (a.picture, c.picture, c.caption) == (b"1", b"3", "c")
    assert (b.key, b.final) == ("t/00000001", False)
    assert str(b.picture).startswith("its row cannot be read: ")


@pytest.mark.parametrize("where", ["batch", "dictionary"])
def test_sizes_are_checked_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    values = pa.array(["x" * 100_000, "y" * 100_000])
    column = values if where == "batch" else pa.DictionaryArray.from_arrays(pa.array([0, 1]), values)
    table = pa.table({"image": [b"1", b"2"], "caption": column})
    path = write(tmp_path / "t.arrow", table, compression="zstd")
    assert [sample.picture for sample in samples_of(path)] == [b"1", b"2"]
    monkeypatch.setattr(arrow_messages, "MAX_BATCH", 150_000)
    (failed,) = samples_of(path)
    assert str(failed.picture) == "holds a batch of 0.0 GB, more than the 0.0 GB read at once"
    claimed = struct.pack("<q", 200_000)  # the size that stands before the compressed bytes
    data = path.read_bytes()
    assert claimed in data
    monkeypatch.undo()
    path.write_bytes(data.replace(claimed, struct.pack("<q", 1 << 60)))
    (failed,) = samples_of(path)
    assert "holds a batch of 1152921504.6 GB" in str(failed.picture)
    assert isinstance(failed.picture, ImageError)


def test_an_arrow_file_at_a_url_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    data = write(tmp_path / "t.arrow").read_bytes()
    system = fsspec.filesystem("memory")
    system.pipe("/arrow/t.arrow", data)
    assert len(samples_of("memory://arrow/t.arrow")) == 20
    monkeypatch.setattr(arrow_messages, "MAX_BATCH", 10_000)
    (failed,) = samples_of("memory://arrow/t.arrow")
    assert "holds a batch of" in str(failed.picture)
    system.rm("/arrow", recursive=True)
