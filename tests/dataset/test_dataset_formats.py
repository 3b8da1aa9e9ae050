"""The formats of shards: round trips, what other programs read, and broken files."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_cases import ENCODING, MODEL, L, as_dict, make_row, picture, some_rows, with_key, write_rows
from hypothesis import given
from hypothesis import strategies as st

from vartok.dataset.encoding import Encoding
from vartok.dataset.formats import FORMATS, find_format, open_writer, read_shard
from vartok.dataset.formats.parquet import ROW_GROUP_SIZE
from vartok.dataset.shard_files import HashedFile
from vartok.errors import DatasetError, VartokError
from vartok.schedule import token_count
from vartok.token_sources import read_tokens
from vartok.tokens import ImageTokens

pytest_plugins = ["dataset_cases"]


texts = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=9))
rows = st.builds(
    lambda key, seed, **rest: make_row(key, np.random.default_rng(seed).integers(0, 64, L), **rest),
    key=st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
        st.text("./%\n\0a2E", max_size=6),  # characters that a tar or its readers treat specially
    ),
    seed=st.integers(0, 99),
    width=st.integers(1, 1 << 24),
    height=st.integers(1, 1 << 24),
    label=st.one_of(st.none(), st.integers(0, (1 << 63) - 1)),
    caption=texts,
    metadata=texts,
)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(DatasetError, match="is one of parquet, wds, jsonl, not 'csv'"):
        find_format("csv")


@pytest.mark.parametrize("format", FORMATS)
@given(found=st.lists(rows, max_size=5, unique_by=lambda row: row.image.source))
def test_rows_survive_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, format: str, found: list[ImageTokens]
) -> None:
    path = tmp_path_factory.getbasetemp() / f"rows{FORMATS[format].suffix}"
    told = write_rows(path, format, found)
    back = list(read_shard(format, path, ENCODING))
    assert [as_dict(row) for row in back] == [as_dict(row) for row in found]
    assert all(row.flatten().dtype == np.uint16 for row in back)
    assert told.size == path.stat().st_size
    data = path.read_bytes()
    assert write_rows(path, format, found).sha256 == told.sha256
    assert path.read_bytes() == data


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("scales", [1, 2])
def test_rows_of_the_first_scales_survive_a_round_trip(tmp_path: Path, format: str, scales: int) -> None:
    encoding = replace(ENCODING, scales=scales)
    assert Encoding.from_dict(encoding.to_dict()) == encoding
    length = token_count(ENCODING.schedule[:scales])
    found = [make_row(f"{n}", np.arange(n, n + length), encoding=encoding) for n in range(3)]
    path = tmp_path / f"a{FORMATS[format].suffix}"
    write_rows(path, format, found, encoding)
    back = list(read_shard(format, path, encoding))
    assert back == found
    assert {(row.schedule, row.grids) for row in back} == {(ENCODING.schedule, ENCODING.schedule[:scales])}
    with pytest.raises(DatasetError, match=r"not 21 integers|another encoding|the data set has 3"):
        list(read_shard(format, path, ENCODING))


@pytest.mark.parametrize("scales", [0, 4, 1.5, True, "2"])
def test_a_number_of_scales_that_no_schedule_has_is_refused(scales: Any) -> None:
    document = ENCODING.to_dict()
    document["image"]["scales"] = scales
    with pytest.raises(VartokError, match="scales"):
        Encoding.from_dict(document)


def test_parquet_is_written_in_row_groups(tmp_path: Path) -> None:
    """A writer that kept everything would grow with the shard, and a reader too."""
    path = tmp_path / "a.parquet"
    write_rows(path, "parquet", some_rows(2 * ROW_GROUP_SIZE + 5))
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [
        ROW_GROUP_SIZE,
        ROW_GROUP_SIZE,
        5,
    ]


def test_parquet_stores_its_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_rows(path, "parquet", some_rows(3))
    schema = pq.read_schema(path)
    about = json.loads(schema.metadata[b"vartok"])
    assert Encoding.from_dict(about) == ENCODING
    assert (about["format"], about["version"]) == ("vartok.dataset", 1)
    assert schema.field("tokens").type == pa.list_(pa.uint16(), L)
    large = replace(ENCODING, model=replace(MODEL, vocab_size=70_000))
    row = make_row("k", np.full(L, 69_999, np.uint32), encoding=large)
    write_rows(path, "parquet", [row], large)
    assert pq.read_schema(path).field("tokens").type == pa.list_(pa.uint32(), L)
    assert as_dict(next(read_shard("parquet", path, large))) == as_dict(row)


def test_parquet_takes_about_12_bits_a_token(tmp_path: Path) -> None:
    """12 bits a token of 4096 codes, and little beside them."""
    encoding = replace(ENCODING, model=replace(MODEL, vocab_size=4096), schedule=((16, 16), (20, 20)))
    length = token_count(encoding.schedule)
    rng = np.random.default_rng(0)
    found = [
        make_row(f"{n:08}", rng.integers(0, 4096, length), 256, 256, encoding=encoding) for n in range(1024)
    ]
    size = write_rows(tmp_path / "a.parquet", "parquet", found, encoding).size
    assert size < 1024 * (length * 1.5 + 40)


def test_pyarrow_and_datasets_read_parquet(tmp_path: Path) -> None:
    import datasets
    import pyarrow.dataset

    found = some_rows(20)
    for n in range(2):
        write_rows(tmp_path / f"0000{n}-0000.parquet", "parquet", found[10 * n : 10 * n + 10])
    read = pyarrow.dataset.dataset(tmp_path, format="parquet").to_table()
    assert read.column("key").to_pylist() == [row.image.source for row in found]
    assert read.column("tokens").to_pylist() == [row.flatten().tolist() for row in found]
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["label"] == [row.label for row in found]
    assert [item["tokens"] for item in loaded] == [row.flatten().tolist() for row in found]
    assert loaded.with_format("torch")[3]["tokens"].tolist() == found[3].flatten().tolist()


def test_webdataset_reads_tars(tmp_path: Path) -> None:
    import webdataset

    found = some_rows(5)
    with open(tmp_path / "a.tar", "wb") as file:
        writer = open_writer("wds", HashedFile(file), ENCODING)
        for n, row in enumerate(found):
            writer.add(row, picture(n, format="WEBP"))
        writer.close()
    read = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode("pil"))
    assert [sample["json"]["key"] for sample in read] == [row.image.source for row in found]
    assert [sample["tokens.npy"].tolist() for sample in read] == [row.flatten().tolist() for row in found]
    assert [sample["json"]["caption"] for sample in read] == [row.caption for row in found]
    assert [sample["webp"].size for sample in read] == [(12, 9)] * 5
    assert [sample["__key__"] for sample in read] == [f"k/{n}%2Ex" for n in range(5)]
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert {(member.mtime, member.uid, member.uname) for member in archive} == {(0, 0, "")}


def test_names_in_a_tar_stay_below_its_root(tmp_path: Path) -> None:
    import webdataset

    odd = [
        "../../etc/x",
        "/abs",
        "a//b",
        "",
        "a/",
        ".",
        "..",
        "a/..",
        "%",
        "%25",
        "a\nb",
        "a.b",
        "a%2Eb",
        "x/./y",
    ]
    found = [with_key(row, key) for row, key in zip(some_rows(len(odd)), odd, strict=True)]
    write_rows(tmp_path / "a.tar", "wds", found)
    with tarfile.open(tmp_path / "a.tar") as archive:
        inside = archive.getnames()
    assert not any({"", ".", ".."} & {*name.split("/")} for name in inside)
    assert len(set(inside)) == 2 * len(odd)
    read = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode()
    assert [sample["json"]["key"] for sample in read] == odd


def test_a_tar_refuses_the_same_key_twice_in_a_row(tmp_path: Path) -> None:
    first, second = some_rows(2)
    with pytest.raises(DatasetError, match="has the key of the picture before it"):
        write_rows(tmp_path / "a.tar", "wds", [first, with_key(second, first.image.source)])


def test_token_file_reader_reads_json_lines(tmp_path: Path) -> None:
    found = some_rows(3)
    write_rows(tmp_path / "a.jsonl", "jsonl", found)
    with open(tmp_path / "a.jsonl", "rb") as file:
        read = list(read_tokens(file))
    assert [item.flatten().tolist() for item in read] == [row.flatten().tolist() for row in found]
    assert [item.image.source for item in read] == [row.image.source for row in found]
    assert read[0].model == MODEL


@pytest.mark.parametrize("format", FORMATS)
def test_rows_do_not_hold_how_their_picture_is_damaged(tmp_path: Path, format: str) -> None:
    [row] = some_rows(1)
    damaged = replace(row, image=replace(row.image, damaged="is truncated"))
    for name, tokens in (("whole", row), ("damaged", damaged)):
        write_rows(tmp_path / name, format, [tokens])
    assert (tmp_path / "damaged").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("format", FORMATS)
def test_broken_shards_are_refused(tmp_path: Path, format: str) -> None:
    path = tmp_path / "a"
    write_rows(path, format, some_rows(3))
    data = path.read_bytes()
    for broken in (b"junk" * 300, data[: len(data) // 2], data.replace(b"width", b"WIDTH")):
        path.write_bytes(broken)
        with pytest.raises(DatasetError, match=r"is not a .* shard|row|is missing|another encoding"):
            list(read_shard(format, path, ENCODING))
    write_rows(path, format, some_rows(3))
    with pytest.raises(DatasetError, match=r"not 5 integers|another (encoding|checkpoint or schedule)"):
        list(read_shard(format, path, replace(ENCODING, schedule=((1, 1), (2, 2)))))
    if format != "wds":  # whose tars say nothing of it
        with pytest.raises(DatasetError, match=r"another (encoding|checkpoint or schedule)"):
            list(read_shard(format, path, replace(ENCODING, model=replace(MODEL, fingerprint="1" * 64))))
    with pytest.raises(FileNotFoundError):
        list(read_shard(format, tmp_path / "nope", ENCODING))
