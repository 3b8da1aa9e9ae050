"""Data sets and single shards as sources of tokens, for decode, inspect and --usage."""

import io
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Vartok, names
from dataset_cases import KEYS, L, make_job, picture, run, some_rows, tar, write_rows

import vartok as library
from vartok.dataset.formats import FORMATS, parquet, wds
from vartok.errors import ArgumentError, TokenFileError, VartokError
from vartok.flat_tokens import FlatTokens
from vartok.token_sources import Row, read_path, read_tokens
from vartok.usage import count_usage

pytest_plugins = ["dataset_cases"]


def outcomes(rows: Iterable[Row]) -> list[str]:
    """Return the key of every row, or the error in its place."""
    return [str(row.tokens) if isinstance(row.tokens, VartokError) else str(row.key) for row in rows]


@pytest.fixture(scope="module", params=FORMATS)
def made(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    small_tokenizer: library.Tokenizer,
) -> Path:
    """A data set of four rows in two shards, in each format; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    keys = ["a", "deep/b", "deep/c.x", "d"]
    pictures = [folder / "in" / f"{key}.png" for key in keys]
    for n, path in enumerate(pictures):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(n))
    job = make_job(folder / "set", small_tokenizer, format=request.param)
    run(job, folder / "in", small_tokenizer)
    return job.out


ORDER = ["a", "d", "deep/b", "deep/c.x"]


def test_a_data_set_is_read_whole_and_by_shards(made: Path, tmp_path: Path) -> None:
    assert outcomes(read_path(made)) == ORDER
    shards = sorted((made / "data").iterdir())
    assert len(shards) == 2
    assert [key for shard in shards for key in outcomes(read_path(shard))] == ORDER
    assert list(read_tokens(made)) == [row for shard in shards for row in read_tokens(shard)]
    loose = tmp_path / shards[0].name  # without its dataset.json
    shutil.copy(shards[0], loose)
    found = [row.tokens for row in read_path(loose)]
    assert len(found) == 3
    if loose.suffix == ".tar":
        assert all(isinstance(tokens, FlatTokens) for tokens in found)
        assert [tokens.key for tokens in found if isinstance(tokens, FlatTokens)] == ORDER[:3]
    else:
        assert found == list(read_tokens(shards[0]))


def test_decode_selects_rows_and_names_them_by_key(
    made: Path, tmp_path: Path, small_tokenizer: library.Tokenizer
) -> None:
    list(library.decode_files(made, tmp_path / "first", tokenizer=small_tokenizer, limit=2))
    assert names(tmp_path / "first") == ["a.decoded.png", "d.decoded.png"]
    keys = ["deep/c.x", "gone"]
    *_, gone = library.decode_files(made, tmp_path / "out", tokenizer=small_tokenizer, keys=keys)
    assert (gone.input, str(gone.error)) == ("gone", "no row has this key")
    assert gone.error
    assert gone.error.hint == "the first row has the key a"
    assert names(tmp_path / "out") == ["deep/c.x.decoded.png"]


def test_inspect_and_usage_read_data_sets(
    made: Path, vartok: Vartok, here: Path, small_tokenizer: library.Tokenizer
) -> None:
    def inspected(*options: str, code: int = 0) -> list[str]:
        lines = vartok("inspect", made, "--json", *options, code=code).stdout.splitlines()
        return [json.loads(line)["image"]["source"] for line in lines if line.startswith("{")]

    (here / "keys.txt").write_text("deep/c.x\n")
    assert inspected("--limit", "3") == ORDER[:3]
    assert inspected("--keys", "a,gone", "--keys", "keys.txt", code=3) == ["a", "deep/c.x"]
    assert inspected("--keys", "gone", code=1) == []
    shards = sorted((made / "data").iterdir())
    assert count_usage(made, small_tokenizer).usage == count_usage(shards, small_tokenizer).usage
    assert count_usage(made.parent, small_tokenizer, keys=["a", "d"]).images == 2  # found by a search


def test_equal_keys_are_counted_and_not_overwritten(
    tmp_path: Path, dataset: Path, small_tokenizer: library.Tokenizer
) -> None:
    both = [dataset, dataset / "data"]  # twice the same
    with pytest.warns(library.VartokWarning, match="2 outputs got another name"):
        results = list(library.decode_files(both, tmp_path / "x", tokenizer=small_tokenizer, limit=18))
    assert [result.error for result in results] == [None] * 18
    assert len(names(tmp_path / "x")) == 18
    with pytest.raises(ArgumentError, match="is a data set, whose pictures need a folder"):
        library.decode_files(dataset, tokenizer=small_tokenizer)


def test_a_limit_counts_what_is_skipped(
    tmp_path: Path, dataset: Path, small_tokenizer: library.Tokenizer
) -> None:
    for skipped in ([False, False], [True, True]):
        results = library.decode_files(
            dataset, tmp_path, tokenizer=small_tokenizer, limit=2, skip_existing=True
        )
        assert [result.skipped for result in results] == skipped


def test_what_a_data_set_lacks_is_said(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    shards = sorted((copy / "data").iterdir())
    shards[0].write_bytes(b"junk")
    shards[1].unlink()
    shutil.copy(shards[2], shards[3])  # one row instead of two
    os.remove(shards[4])
    os.mkfifo(shards[4])
    path = copy / "dataset.json"
    path.write_text(path.read_text().replace('"complete": true', '"complete": false'))
    found = [text for text in outcomes(read_path(copy)) if text not in KEYS]
    assert [text.partition(": ")[0] for text in found[:-1]] == [
        f"data/{shards[n].name}" for n in (0, 1, 3, 4)
    ]
    reasons = ("is not a parquet shard", "no such file", "has 1 row, but dataset.json states 2", "a pipe")
    for text, reason in zip(found, (*reasons, "is not complete"), strict=True):
        assert reason in text
    path.write_text('{"format": "vartok.dataset"')
    assert "does not describe a data set" in outcomes(read_path(copy))[0]
    with pytest.raises(TokenFileError, match="does not describe"):
        list(read_tokens(copy))


def test_a_bad_row_costs_itself(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    shard = min((copy / "data").iterdir())
    if shard.suffix == ".parquet":
        table = pq.read_table(shard)
        tokens = pa.array([row if n != 1 else None for n, row in enumerate(table["tokens"].to_pylist())])
        column = pa.field("tokens", table.schema.field("tokens").type)
        table = table.set_column(1, column, tokens.cast(column.type))
        pq.write_table(table, shard)
    else:
        data = shard.read_bytes()
        at = data.index(b'"key": "d"' if shard.suffix == ".tar" else b'"key":"d"')
        shard.write_bytes(data[: at + 1] + b"x" + data[at + 2 :])
    found = outcomes(read_path(copy))
    assert [found[0], *found[2:]] == ["a", "deep/b", "deep/c.x"]
    assert "row" in found[1]


def test_hostile_tables_take_little_memory_and_time(tmp_path: Path) -> None:
    """A table of 3 kB that has 3,000 keys of a megabyte, as one that is repeated."""
    path, rows = tmp_path / "a.parquet", 3000
    write_rows(path, "parquet", some_rows(1))
    schema = pq.read_schema(path)
    keys = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["k" * (1 << 20)]))
    kind = schema.field("tokens").type
    tokens = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * L, np.uint16)), type=kind)
    sides = pa.array(np.ones(rows, np.int32))
    none = [pa.nulls(rows, schema.field(name).type) for name in ("label", "caption", "metadata")]
    schema = schema.set(0, pa.field("key", keys.type))
    columns = pa.Table.from_arrays([keys, tokens, sides, sides, *none], schema=schema)
    pq.write_table(columns, path, compression="zstd")
    begin = time.process_time()
    assert {text.partition(": ")[2] for text in outcomes(read_path(path))} == {
        "its key has more than 4,096 characters"
    }
    assert time.process_time() - begin < 2  # copies of all keys would take minutes, or 3 GB
    for name, value in (("MAX_ROWS_PER_BYTE", 0), ("MAX_GROUP_BYTES", 1 << 19)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parquet, name, value)
            [text] = outcomes(read_path(path))
            assert text.endswith("damaged or hostile")


def test_hostile_tars_and_tables_of_another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wds, "MAX_ROW_BYTES", 1 << 10)
    array = io.BytesIO()
    np.save(array, np.zeros(3, np.uint16))
    good = [("b.tokens.npy", array.getvalue()), ("b.json", b'{"key": "b", "width": 1, "height": 1}')]
    deep = [("c.tokens.npy", array.getvalue()), ("c.json", b"[" * 1000)]
    large = [("a.tokens.npy", bytes(1 << 11)), ("a.json", b"{}")]
    path = tar(tmp_path / "a.tar", [*large, *good, *deep, ("d.json", b"{}")])
    found = outcomes(read_path(path))
    assert found[1] == "b"
    assert [text.partition(": ")[0] for text in (found[0], *found[2:])] == ["row a", "row c", "row d"]
    for data, reason in ((b"junk", "is not a wds shard of tokens"), (b"", "is not a wds shard of tokens")):
        path.write_bytes(data)
        assert reason in outcomes(read_path(path))[-1]
    assert "holds no tokens" in outcomes(read_path(tar(path, [("a.png", b"")])))[-1]
    table = tmp_path / "b.parquet"
    pq.write_table(pa.table({"image": [b"x"]}), table)
    assert outcomes(read_path(table)) == ["it does not describe tokens, as a shard of vartok does"]
    os.truncate(table, 20)
    assert "is not a parquet shard of tokens" in outcomes(read_path(table))[0]
