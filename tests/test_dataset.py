"""Bulk tokenization: sources, shards, what is left to do, engines, verification and loading."""

import contextlib
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import names, photo, save
from hypothesis import given
from hypothesis import strategies as st
from noise import SMALL
from noise import tokenizer as noise_tokenizer

import vartok
from vartok.dataset import TokenDataset
from vartok.dataset.engines import Loading, run_here, run_processes
from vartok.dataset.job import Job, Progress, finish, plan, read_marks
from vartok.dataset.shards import (
    GROUP,
    SUFFIXES,
    Encoding,
    HashedFile,
    Row,
    open_dataset,
    read_shard,
    write_shard,
)
from vartok.dataset.verify import verify
from vartok.errors import DatasetError, VartokError, VartokWarning
from vartok.files import atomic_write
from vartok.images import Fit
from vartok.operations import encode_pictures
from vartok.schedule import token_count
from vartok.sources import InputShard, find_input_shards
from vartok.tokens import ModelInfo, read_tokens

Members = Sequence[tuple[str, bytes]]


def picture(seed: int = 0, width: int = 12, height: int = 9, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    photo(seed, width, height).save(buffer, format)
    return buffer.getvalue()


def tar(path: Path, members: Members, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def table(path: Path, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def keys(shard: InputShard) -> list[str]:
    return [sample.key for sample in shard.samples()]


# Shards.

MODEL = ModelInfo(name="noise", fingerprint="0" * 64, vocab_size=64)
ENCODING = Encoding(MODEL, ((1, 1), (2, 2), (4, 4)), (8, 8), "crop", 1.0, (255, 255, 255), "cpu", "float32")
L = token_count(ENCODING.schedule)

texts = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=9))
rows = st.builds(
    lambda key, seed, **rest: Row(
        key=key, tokens=np.random.default_rng(seed).integers(0, 64, L).astype(np.uint16), **rest
    ),
    key=st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
        st.text("./%\n\0a2E", max_size=6),  # what a tar or its readers might take for something else
    ),
    seed=st.integers(0, 99),
    width=st.integers(1, 1 << 24),
    height=st.integers(1, 1 << 24),
    label=st.one_of(st.none(), st.integers(0, (1 << 63) - 1)),
    caption=texts,
    metadata=texts,
)


def write(path: Path, format: str, found: Sequence[Row], encoding: Encoding = ENCODING) -> HashedFile:
    with open(path, "wb") as file:
        stream = HashedFile(file)
        writer = write_shard(format, stream, encoding)
        for row in found:
            writer.add(row)
        writer.close()
    return stream


def plain(row: Row) -> dict[str, Any]:
    return {**vars(row), "tokens": row.tokens.tolist()}


@pytest.mark.parametrize("format", SUFFIXES)
@given(found=st.lists(rows, max_size=5, unique_by=lambda row: row.key))
def test_a_shard_gives_back_its_rows(
    tmp_path_factory: pytest.TempPathFactory, format: str, found: list[Row]
) -> None:
    path = tmp_path_factory.getbasetemp() / f"rows{SUFFIXES[format]}"
    told = write(path, format, found)
    back = list(read_shard(format, path, ENCODING))
    assert [plain(row) for row in back] == [plain(row) for row in found]
    assert all(row.tokens.dtype == np.uint16 for row in back)
    assert told.size == path.stat().st_size
    data = path.read_bytes()
    assert write(path, format, found).sha256 == told.sha256
    assert path.read_bytes() == data


def some_rows(count: int) -> list[Row]:
    rng = np.random.default_rng(0)
    return [
        Row(f"k/{n}.x", rng.integers(0, 64, L).astype(np.uint16), 12 + n, 9, label=n % 10, caption=f"c{n}")
        for n in range(count)
    ]


def test_what_is_written_is_written_in_groups(tmp_path: Path) -> None:
    """A writer that kept everything would grow with the shard, and a reader too."""
    path = tmp_path / "a.parquet"
    write(path, "parquet", some_rows(2 * GROUP + 5))
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [GROUP, GROUP, 5]


def test_a_parquet_shard_tells_its_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, "parquet", some_rows(3))
    schema = pq.read_schema(path)
    about = json.loads(schema.metadata[b"vartok"])
    assert Encoding.from_dict(about) == ENCODING
    assert (about["format"], about["version"]) == ("vartok.dataset", 1)
    assert schema.field("tokens").type == pa.list_(pa.uint16(), L)
    large = replace(ENCODING, model=replace(MODEL, vocab_size=70_000))
    row = replace(some_rows(1)[0], tokens=np.full(L, 69_999, np.uint32))
    write(path, "parquet", [row], large)
    assert pq.read_schema(path).field("tokens").type == pa.list_(pa.uint32(), L)
    assert plain(next(read_shard("parquet", path, large))) == plain(row)


def test_tokens_take_about_their_bits(tmp_path: Path) -> None:
    """12 bits a token of 4096 codes, and little beside them."""
    encoding = replace(ENCODING, model=replace(MODEL, vocab_size=4096), schedule=((16, 16), (20, 20)))
    length = token_count(encoding.schedule)
    rng = np.random.default_rng(0)
    found = [Row(f"{n:08}", rng.integers(0, 4096, length).astype(np.uint16), 256, 256) for n in range(1024)]
    size = write(tmp_path / "a.parquet", "parquet", found, encoding).size
    assert size < 1024 * (length * 1.5 + 40)


def test_the_usual_loaders_read_parquet(tmp_path: Path) -> None:
    import datasets
    import pyarrow.dataset

    found = some_rows(20)
    for n in range(2):
        write(tmp_path / f"0000{n}-0000.parquet", "parquet", found[10 * n : 10 * n + 10])
    read = pyarrow.dataset.dataset(tmp_path, format="parquet").to_table()
    assert read.column("key").to_pylist() == [row.key for row in found]
    assert read.column("tokens").to_pylist() == [row.tokens.tolist() for row in found]
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["label"] == [row.label for row in found]
    assert [item["tokens"] for item in loaded] == [row.tokens.tolist() for row in found]
    assert loaded.with_format("torch")[3]["tokens"].tolist() == found[3].tokens.tolist()


def test_webdataset_reads_tars(tmp_path: Path) -> None:
    import webdataset

    found = [replace(row, picture=picture(n, format="WEBP")) for n, row in enumerate(some_rows(5))]
    write(tmp_path / "a.tar", "wds", found)
    read = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode("pil"))
    assert [sample["json"]["key"] for sample in read] == [row.key for row in found]
    assert [sample["tokens.npy"].tolist() for sample in read] == [row.tokens.tolist() for row in found]
    assert [sample["json"]["caption"] for sample in read] == [row.caption for row in found]
    assert [sample["webp"].size for sample in read] == [(12, 9)] * 5
    assert [sample["__key__"] for sample in read] == [f"k/{n}%2Ex" for n in range(5)]
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert {(member.mtime, member.uid, member.uname) for member in archive} == {(0, 0, "")}


def test_a_tars_names_lead_nowhere(tmp_path: Path) -> None:
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
    found = [replace(row, key=key) for row, key in zip(some_rows(len(odd)), odd, strict=True)]
    write(tmp_path / "a.tar", "wds", found)
    with tarfile.open(tmp_path / "a.tar") as archive:
        inside = archive.getnames()
    assert not any({"", ".", ".."} & {*name.split("/")} for name in inside)
    assert len(set(inside)) == 2 * len(odd)
    read = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode()
    assert [sample["json"]["key"] for sample in read] == odd


def test_a_tar_cannot_hold_one_key_twice_in_a_row(tmp_path: Path) -> None:
    first, second = some_rows(2)
    with pytest.raises(DatasetError, match="has the key of the picture before it"):
        write(tmp_path / "a.tar", "wds", [first, replace(second, key=first.key)])


def test_decode_reads_json_lines(tmp_path: Path) -> None:
    found = some_rows(3)
    write(tmp_path / "a.jsonl", "jsonl", found)
    with open(tmp_path / "a.jsonl", "rb") as file:
        read = [item for item in read_tokens(file) if not isinstance(item, Exception)]
    assert [item.flatten().tolist() for item in read] == [row.tokens.tolist() for row in found]
    assert [item.image.source for item in read] == [row.key for row in found]
    assert read[0].model == MODEL


@pytest.mark.parametrize("format", SUFFIXES)
def test_what_is_no_shard_is_refused(tmp_path: Path, format: str) -> None:
    path = tmp_path / "a"
    data = b""
    write(path, format, some_rows(3))
    data = path.read_bytes()
    for broken in (b"junk" * 300, data[: len(data) // 2], data.replace(b"width", b"WIDTH")):
        path.write_bytes(broken)
        with pytest.raises(DatasetError, match=r"is no .* shard|row|not both|another data set"):
            list(read_shard(format, path, ENCODING))
    write(path, format, some_rows(3))
    with pytest.raises(DatasetError, match=r"not 5 tokens|another data set"):
        list(read_shard(format, path, replace(ENCODING, schedule=((1, 1), (2, 2)))))
    if format != "wds":  # whose tars say nothing of it
        with pytest.raises(DatasetError, match="another data set"):
            list(read_shard(format, path, replace(ENCODING, model=replace(MODEL, fingerprint="1" * 64))))
    with pytest.raises(FileNotFoundError):
        list(read_shard(format, tmp_path / "nope", ENCODING))


# What is done, and what is left.


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> vartok.Tokenizer:
    return noise_tokenizer(tmp_path_factory.mktemp("noise") / "noise.safetensors", SMALL)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, tokenizer: vartok.Tokenizer) -> Path:
    return tmp_path_factory.getbasetemp() / "noise0" / "noise.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of 7 and 4 samples, one of which is broken; an empty one; one that is cut; 5 files."""
    folder = tmp_path_factory.mktemp("source")
    for n, count in enumerate((7, 4)):
        tar(folder / f"{n}.tar", [(f"{n}{i}.png", picture(10 * n + i)) for i in range(count)])
    tar(folder / "1.tar", [(f"1{i}.png", picture(i) if i != 2 else b"junk") for i in range(4)])
    tar(folder / "2.tar", [])
    cut = tar(folder / "3.tar", [(f"3{i}.png", picture(30 + i)) for i in range(4)])
    cut.write_bytes(cut.read_bytes()[:1500])
    for n in range(5):
        save(folder / f"{n}.png", n, 12, 9)
    return folder


def job(out: Path, tokenizer: vartok.Tokenizer, **changes: Any) -> Job:
    fit = Fit(size=(8, 8))
    encoding = Encoding(
        tokenizer.info, SMALL.patch_nums, (8, 8), "crop", 1.0, (255, 255, 255), "cpu", "float32"
    )
    values: dict[str, Any] = {"format": "parquet", "shard_size": 3, "keep_pictures": False, **changes}
    return Job(out=out, encoding=encoding, fit=fit, **values)


def run(work: Job, source: Path, tokenizer: vartok.Tokenizer, **options: Any) -> list[Progress]:
    shards = find_input_shards([str(source)], work.shard_size)
    tasks = plan(work, shards, **options)
    steps = list(run_here(work, tasks, tokenizer, batch_size=2, workers=2))
    finish(work, len(shards))
    return steps


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, source: Path, tokenizer: vartok.Tokenizer
) -> dict[str, bytes]:
    """What an undisturbed run leaves."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run(job(out, tokenizer), source, tokenizer)
    return contents(out)


ALL = ["00", "01", "02", "03", "04", "05", "06", "10", "11", "13", "30", "0", "1", "2", "3", "4"]
NAMES = ["00000-0000", "00000-0001", "00000-0002", "00001-0000", "00001-0001", "00002-0000", "00003-0000"]
NAMES += ["00004-0000", "00005-0000"]


def test_a_run_leaves_shards_stats_failures_and_a_description(
    tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer
) -> None:
    out = tmp_path / "out"
    steps = run(job(out, tokenizer), source, tokenizer)
    files = [f"{folder}/{name}" for folder in ("data", "stats") for name in NAMES]
    assert {name.partition(".")[0] for name in names(out)} == {"README", "dataset", "failed", *files}
    finished = [step for step in steps if step.finished]
    assert [step.shard for step in finished] == NAMES
    assert [step.pictures for step in finished] == [3, 3, 1, 2, 1, 0, 1, 3, 2]
    assert [step.last for step in finished] == [False, False, True, False, True, True, True, True, True]

    description, encoding = open_dataset(out)
    found = [
        row.key
        for shard in description["shards"]
        for row in read_shard("parquet", out / shard["name"], encoding)
    ]
    assert found == [
        "00",
        "01",
        "02",
        "03",
        "04",
        "05",
        "06",
        "10",
        "11",
        "13",
        "30",
        "0",
        "1",
        "2",
        "3",
        "4",
    ]
    assert description["complete"] is True
    assert (description["pictures"], description["failed"]) == (16, 2)
    assert [shard["pictures"] for shard in description["shards"]] == [3, 3, 1, 2, 1, 0, 1, 3, 2]
    failures = [json.loads(line) for line in (out / "failed.jsonl").read_text().splitlines()]
    assert failures[0] == {"key": "12", "cause": "not a picture that vartok can read", "shard": "00001-0000"}
    assert failures[1]["key"] == str(source / "3.tar")
    assert failures[1]["cause"].startswith("is not a whole tar file")
    assert verify(out).problems == []
    assert run(job(out, tokenizer), source, tokenizer) == []


def test_a_data_sets_tokens_are_those_of_encode(
    tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer
) -> None:
    work = job(tmp_path / "out", tokenizer)
    run(work, source, tokenizer)
    found = [row for name in NAMES[-2:] for row in read_shard("parquet", work.data(name), work.encoding)]
    files = [(n, f"{n}.png", source / f"{n}.png") for n in range(5)]
    for row, (_, item) in zip(found, encode_pictures(tokenizer, files, work.fit), strict=True):
        assert not isinstance(item, VartokError)
        assert row.tokens.tolist() == item.flatten().tolist()
        assert (row.width, row.height) == (12, 9)


def leave_unfinished(path: Path) -> None:
    """Leave what a process leaves that is killed while it writes a file."""
    with contextlib.suppress(KeyError), atomic_write(path, overwrite=True) as file:
        left = Path(file.name)
        left.with_stem(f"{left.stem}0").write_bytes(b"half of it")
        raise KeyError


def test_what_is_missing_is_made_again_to_the_byte(
    tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    run(job(out, tokenizer), source, tokenizer)
    assert contents(out) == whole
    rng = random.Random(0)
    for _ in range(8):
        files = [path for folder in ("data", "stats") for path in sorted((out / folder).iterdir())]
        for path in rng.sample(files, 4):
            leave_unfinished(path)
            path.unlink()
        run(job(out, tokenizer), source, tokenizer)
        assert contents(out) == whole


def test_a_run_that_is_stopped_anywhere_goes_on(
    tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer, whole: dict[str, bytes]
) -> None:
    for stop in range(1, len(NAMES)):
        out = tmp_path / str(stop)
        work = job(out, tokenizer)
        shards = find_input_shards([str(source)], 3)
        with contextlib.closing(
            run_here(work, plan(work, shards), tokenizer, batch_size=2, workers=2)
        ) as steps:
            for _ in itertools.islice((step for step in steps if step.finished), stop):
                pass
        assert finish(work, len(shards))["complete"] is False
        assert len([name for name in names(out) if name.startswith("stats/")]) == stop
        assert not [name for name in names(out) if ".tmp" in name]
        steps_left = [step.shard for step in run(work, source, tokenizer) if step.finished]
        assert steps_left == NAMES[stop:]
        assert contents(out) == whole


def test_parts_done_by_machines_that_do_not_talk_make_the_whole(
    tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer, whole: dict[str, bytes]
) -> None:
    work = job(tmp_path / "out", tokenizer)
    shards = find_input_shards([str(source)], 3)
    for part in (2, 0, 1):
        tasks = [task for task in plan(work, shards) if task.index % 3 == part]
        for _ in run_here(work, tasks, tokenizer, batch_size=2, workers=2):
            pass
        assert finish(work, len(shards))["complete"] is (part == 1)
    assert contents(tmp_path / "out") == whole


def test_what_failed_is_tried_again_where_that_is_wanted(
    tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer
) -> None:
    mine = tmp_path / "source"
    shutil.copytree(source, mine)
    out = tmp_path / "out"
    work = job(out, tokenizer)
    run(work, mine, tokenizer)
    tar(mine / "1.tar", [(f"1{i}.png", picture(i)) for i in range(4)])
    tar(mine / "3.tar", [(f"3{i}.png", picture(30 + i)) for i in range(7)])
    assert run(work, mine, tokenizer) == []
    again = [step.shard for step in run(work, mine, tokenizer, retry_failed=True) if step.finished]
    assert again == ["00001-0000", "00003-0000", "00003-0001", "00003-0002"]
    assert not (out / "failed.jsonl").exists()
    fresh = job(tmp_path / "fresh", tokenizer)
    run(fresh, mine, tokenizer)
    assert contents(out) == contents(fresh.out)


@pytest.mark.parametrize("count", [2, 3, 5, 6])
def test_a_tar_that_ends_elsewhere_than_before_is_made_whole(
    tmp_path: Path, tokenizer: vartok.Tokenizer, count: int
) -> None:
    """At first it breaks off after six samples, two shards; once mended it has as many as it has."""
    path = tar(tmp_path / "a.tar", [(f"{i}.png", picture(i)) for i in range(6)])
    path.write_bytes(path.read_bytes()[: 6 * 1024])  # no end mark
    work = job(tmp_path / "out", tokenizer)
    run(work, path, tokenizer)
    assert [len(mark.failed) for mark in read_marks(work.out).values()] == [0, 0, 1]
    tar(path, [(f"{i}.png", picture(i)) for i in range(count)])
    run(work, path, tokenizer, retry_failed=True)
    fresh = job(tmp_path / "fresh", tokenizer)
    run(fresh, path, tokenizer)
    assert contents(work.out) == contents(fresh.out)


def test_what_lies_beyond_an_error_is_not_lost_unsaid(tmp_path: Path, tokenizer: vartok.Tokenizer) -> None:
    path = tar(tmp_path / "a.tar", [(f"{i}.png", picture(i)) for i in range(7)])
    work = job(tmp_path / "out", tokenizer)
    run(work, path, tokenizer)
    whole = contents(work.out)
    work.data("00000-0002").unlink()
    data = path.read_bytes()
    path.write_bytes(data[:1024])
    (step,) = run(work, path, tokenizer)
    assert step.failures[0].key == str(path)
    assert open_dataset(work.out)[0]["complete"] is False
    path.write_bytes(data)
    run(work, path, tokenizer)
    assert contents(work.out) == whole


def test_a_shard_that_is_made_again_is_not_done_meanwhile(
    tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a kill after the shard and before its stats would leave the old ones beside it."""
    monkeypatch.setattr("vartok.dataset.job.TELL_EVERY", 0)
    work = job(tmp_path / "out", tokenizer)
    run(work, source, tokenizer)
    shards = find_input_shards([str(source)], work.shard_size)
    for step in run_here(work, plan(work, shards, retry_failed=True), tokenizer, batch_size=1, workers=1):
        assert (work.out / "stats" / f"{step.shard}.json").exists() is step.finished


def test_machines_may_start_at_once(tmp_path: Path, tokenizer: vartok.Tokenizer) -> None:
    for n in range(10):
        work = job(tmp_path / str(n), tokenizer)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda _, work=work: plan(work, []), range(8))) == [[]] * 8
    (tmp_path / "killed" / "data").mkdir(parents=True)  # before there was anything else
    assert plan(job(tmp_path / "killed", tokenizer), []) == []


def test_one_machine_may_end_while_another_writes(
    tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer, whole: dict[str, bytes]
) -> None:
    work = job(tmp_path / "out", tokenizer)
    shards = find_input_shards([str(source)], 3)
    for step in run_here(work, plan(work, shards), tokenizer, batch_size=2, workers=2):
        assert finish(work, len(shards))["complete"] is (step.finished and step.shard == NAMES[-1])
    assert contents(work.out) == whole


def test_tars_of_one_name_are_told_apart(tmp_path: Path, tokenizer: vartok.Tokenizer) -> None:
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(tar(tmp_path / folder / "x.tar", [(f"{folder}.png", picture(0))]))
    work = job(tmp_path / "out", tokenizer)
    plan(work, find_input_shards([str(path) for path in paths], 3))
    shards = find_input_shards([str(path) for path in paths], 3)
    list(run_here(work, plan(work, shards)[:1], tokenizer, batch_size=1, workers=1))
    with pytest.raises(DatasetError, match=r"is of a/x\.tar, where the sources have b/x\.tar;"):
        plan(work, find_input_shards([str(path) for path in reversed(paths)], 3))
    tables = [table(tmp_path / "t.parquet", one=[b"1"], two=[b"2"])]
    first, second = (find_input_shards([str(tables[0])], 3, image_column=name)[0] for name in ("one", "two"))
    assert first.identity != second.identity


def test_tars_that_come_later_are_added(tmp_path: Path, tokenizer: vartok.Tokenizer) -> None:
    mine = tmp_path / "source"
    mine.mkdir()
    work = job(tmp_path / "out", tokenizer)
    for n in range(2):
        tar(mine / f"{n}.tar", [(f"{n}.png", picture(n))])
        assert [step.shard for step in run(work, mine, tokenizer)] == [f"0000{n}-0000"]
    (mine / "0.tar").rename(mine / "a.tar")
    with pytest.raises(DatasetError, match=r"other pictures: its shard 00000-0000 is of source/0.tar, where"):
        run(work, mine, tokenizer)


@pytest.mark.parametrize(
    "change",
    [{"shard_size": 4}, {"format": "jsonl"}, {"format": "wds"}, {"model"}, {"schedule"}],
    ids=str,
)
def test_two_data_sets_do_not_mix(
    tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer, change: Any
) -> None:
    work = job(tmp_path / "out", tokenizer)
    run(work, source, tokenizer)
    if change == {"model"}:
        other = replace(work, encoding=replace(work.encoding, model=replace(MODEL, name="other")))
    elif change == {"schedule"}:
        other = replace(work, encoding=replace(work.encoding, schedule=((1, 1), (4, 4))))
    else:
        other = replace(work, **change)
    (key,) = change
    name = {"format": "files", "model": "model name"}.get(key, key)
    with pytest.raises(
        DatasetError, match=rf"holds a data set with {name} .*, not .*: give the same sources and options"
    ):
        plan(other, find_input_shards([str(source)], 3))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, tokenizer: vartok.Tokenizer) -> None:
    save(tmp_path / "photos" / "a.png", width=8, height=8)
    with pytest.raises(DatasetError, match="exists and holds no data set"):
        plan(job(tmp_path / "photos", tokenizer), [])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dataset.json").write_text('{"format": "else"}')
    with pytest.raises(DatasetError, match="describes no data set of vartok's"):
        plan(job(tmp_path / "other", tokenizer), [])
    (tmp_path / "other" / "dataset.json").write_text('{"format": "vartok.dataset", "version": 9}')
    with pytest.raises(DatasetError, match="version 9"):
        plan(job(tmp_path / "other", tokenizer), [])


def test_a_broken_stats_file_is_named(tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer) -> None:
    work = job(tmp_path / "out", tokenizer)
    run(work, source, tokenizer)
    path = tmp_path / "out/stats/00000-0000.json"
    for text in ("", "{}", "[1]", path.read_text().replace('"last": false', '"last": 1')):
        path.write_text(text)
        with pytest.raises(DatasetError, match=r"00000-0000\.json is no stats file"):
            run(work, source, tokenizer)


def test_files_that_are_none_of_ours_among_the_stats_are_passed_over(
    tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer
) -> None:
    work = job(tmp_path / "out", tokenizer)
    run(work, source, tokenizer)
    for name in ("00000-0000 (copy).json", "x-y.json", "notes"):
        (work.out / "stats" / name).write_text("{}")
    assert run(work, source, tokenizer) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"carried": {', '"carried": [], "x": {'),
        ('"shards": [', '"sherds": ['),
        ('"classes": []', '"classes": [1]'),
        ('"pictures": 3,', '"pictures": -3,'),
        ('"vocab_size": 64', '"vocab_size": "64"'),
        ('"schedule": [', '"schedule": [[0, 0], '),
        ('"files": "parquet"', '"files": "exe"'),
    ],
)
def test_a_description_that_cannot_be(dataset: Path, tmp_path: Path, old: str, new: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(dataset, out)
    text = (out / "dataset.json").read_text()
    assert old in text
    (out / "dataset.json").write_text(text.replace(old, new))
    for read in (verify, TokenDataset):
        with pytest.raises(DatasetError, match=r"dataset\.json is broken"):
            read(out)


def test_jobs_that_contradict_themselves(tmp_path: Path, tokenizer: vartok.Tokenizer) -> None:
    good = job(tmp_path, tokenizer)
    for changes in ({"format": "csv"}, {"fit": Fit(mode="native")}, {"keep_pictures": True}):
        with pytest.raises(DatasetError):
            replace(good, **changes)


@pytest.mark.parametrize("format", ["wds", "jsonl"])
def test_other_formats_hold_the_same_rows(
    tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer, format: str
) -> None:
    one, two = job(tmp_path / "one", tokenizer), job(tmp_path / "two", tokenizer, format=format)
    run(one, source, tokenizer)
    run(two, source, tokenizer)
    for name in NAMES:
        expected = [plain(row) for row in read_shard("parquet", one.data(name), one.encoding)]
        assert [plain(row) for row in read_shard(format, two.data(name), two.encoding)] == expected
    assert verify(two.out).problems == []


def test_tars_keep_no_pictures_unasked(tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer) -> None:
    work = job(tmp_path / "out", tokenizer, format="wds")
    run(work, source, tokenizer)
    for name in NAMES:
        with tarfile.open(work.data(name)) as archive:
            assert not [member for member in archive.getnames() if not member.endswith((".npy", ".json"))]


def test_tars_can_keep_the_pictures(tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer) -> None:
    work = job(tmp_path / "out", tokenizer, format="wds", keep_pictures=True)
    run(work, source, tokenizer)
    with tarfile.open(work.data(NAMES[0])) as archive:
        assert archive.getnames()[:3] == ["00.tokens.npy", "00.json", "00.png"]
        file = archive.extractfile("00.png")
        assert file is not None
        assert file.read() == picture(0)
    with tarfile.open(work.data(NAMES[-1])) as archive:
        file = archive.extractfile("4.png")
        assert file is not None
        assert file.read() == (source / "4.png").read_bytes()


# Engines.


def loading(weights: Path) -> Loading:
    return Loading(weights=weights, device="cpu", dtype="float32", batch_size=2, workers=1, threads=1)


def test_two_processes_make_what_one_makes(
    tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer, weights: Path, whole: dict[str, bytes]
) -> None:
    work = job(tmp_path / "out", tokenizer)
    shards = find_input_shards([str(source)], 3)
    steps = list(run_processes(work, plan(work, shards), [loading(weights)] * 2))
    finish(work, len(shards))
    assert contents(tmp_path / "out") == whole
    assert sorted(step.shard for step in steps if step.finished) == NAMES
    assert {step.worker for step in steps} <= {0, 1}  # the second may come too late


def test_what_a_process_that_is_killed_had_is_done_by_another(
    tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer, weights: Path, whole: dict[str, bytes]
) -> None:
    work = job(tmp_path / "out", tokenizer)
    shards = find_input_shards([str(source)], 3)
    steps = run_processes(work, plan(work, shards), [loading(weights)] * 2)
    first = next(steps)
    victim = multiprocessing.active_children()[0]
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.warns(VartokWarning, match=r"process \d has died"):
        left = list(steps)
    finish(work, len(shards))
    assert contents(tmp_path / "out") == whole
    assert {first.shard, *(step.shard for step in left)} == set(NAMES)


def test_when_all_processes_are_dead_it_ends(
    tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer, weights: Path
) -> None:
    work = job(tmp_path / "out", tokenizer)
    steps = run_processes(work, plan(work, find_input_shards([str(source)], 3)), [loading(weights)] * 2)
    next(steps)
    for child in multiprocessing.active_children():
        child.kill()
    with pytest.warns(VartokWarning), pytest.raises(DatasetError, match="processes have died"):
        list(steps)
    assert not multiprocessing.active_children()


def test_what_ends_a_process_is_told(
    tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer, weights: Path
) -> None:
    work = job(tmp_path / "out", tokenizer)
    tasks = plan(work, find_input_shards([str(source)], 3))
    with pytest.raises(VartokError, match=r"nope\.safetensors: No such file"):
        list(run_processes(work, tasks, [loading(tmp_path / "nope.safetensors")]))
    shutil.rmtree(tmp_path / "out" / "data")
    with pytest.raises(OSError, match="No such file") as raised:
        list(run_processes(work, tasks, [loading(weights)]))
    assert raised.value.filename
    assert not multiprocessing.active_children()


# Verification.


@pytest.mark.parametrize("format", SUFFIXES)
def test_verification_finds_what_is_wrong(
    tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer, format: str
) -> None:
    work = job(tmp_path / "out", tokenizer, format=format)
    run(work, source, tokenizer)
    path, stats = work.data(NAMES[0]), work.out / "stats" / f"{NAMES[0]}.json"
    data, mark, told = path.read_bytes(), stats.read_text(), (work.out / "dataset.json").read_text()

    def problems() -> str:
        return "; ".join(f"{problem.file}: {problem.what}" for problem in verify(work.out).problems)

    def put(found: Sequence[Row], change: Callable[[bytes], bytes] = bytes) -> None:
        """Write a shard whose hash and size are right."""
        write(path, format, found, work.encoding)
        path.write_bytes(change(path.read_bytes()))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        values = {**json.loads(mark), "sha256": sha256, "bytes": path.stat().st_size}
        stats.write_text(json.dumps(values))
        (work.out / "dataset.json").write_text(told.replace(json.loads(mark)["sha256"], sha256))

    assert problems() == ""
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "its sha256 is not that of its stats" in problems()
    path.unlink()
    assert f"data/{path.name}: is missing" in problems()
    path.write_bytes(data)

    good = list(read_shard(format, path, work.encoding))
    put(good[:2])
    assert "has 2 rows, where its stats say 3" in problems()
    put([*good[:2], replace(good[2], key="04")])
    assert f"04 stands 2 times, in {NAMES[0]}, {NAMES[1]}" in problems()
    if format == "jsonl":  # which is never written with such an index
        put(good, lambda text: text.replace(b'"scales":[[[', b'"scales":[[[64', 1))
    else:
        put([*good[:2], replace(good[2], tokens=np.full_like(good[2].tokens, 64))])
    assert "outside the vocabulary" in problems()
    put(good)
    assert problems() == ""

    (work.out / "data" / "notes").write_text("x")
    assert "data/notes: is no shard of this data set" in problems()
    (work.out / "data" / "notes").unlink()
    (work.out / "failed.jsonl").unlink()
    assert "failed.jsonl: has 0 lines, where the stats have 2 failures" in problems()
    (work.out / "dataset.json").write_text(told.replace('"complete": true', '"complete": false'))
    assert "is not complete" in problems()
    (work.out / "dataset.json").write_text(told.replace("data/00000-0000", "data/../../00000-0000"))
    with pytest.raises(DatasetError, match=r"dataset.json is broken: a shard called"):
        verify(work.out)
    (work.out / "dataset.json").write_text(told)
    stats.unlink()
    assert "names other shards" in problems()


# Loading.


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, source: Path, tokenizer: vartok.Tokenizer) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "out"
    run(job(out, tokenizer), source, tokenizer)
    return out


@pytest.mark.parametrize("shuffle", [False, True])
@given(world=st.integers(1, 20), epoch=st.integers(0, 3))
def test_ranks_share_the_rows_evenly_without_duplicates(
    dataset: Path, shuffle: bool, world: int, epoch: int
) -> None:
    seen = []
    for rank in range(world):
        part = TokenDataset(dataset, shuffle=shuffle, rank=rank, world=world)
        part.set_epoch(epoch)
        mine = [item["key"] for item in part]
        assert len(mine) == len(part) == len(ALL) // world
        seen += mine
    assert len(set(seen)) == len(seen)
    assert len(seen) == len(ALL) // world * world
    if not shuffle:
        assert seen == ALL[: len(seen)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_share_the_rows_without_duplicates(dataset: Path, workers: int) -> None:
    for shuffle in (False, True):
        loader = torch.utils.data.DataLoader(
            TokenDataset(dataset, shuffle=shuffle), batch_size=None, num_workers=workers
        )
        assert sorted(item["key"] for item in loader) == sorted(ALL)


def test_every_epoch_has_an_order_of_its_own(dataset: Path) -> None:
    def order(seed: int, epoch: int) -> list[str]:
        found = TokenDataset(dataset, shuffle=True, seed=seed)
        found.set_epoch(epoch)
        return [item["key"] for item in found]

    orders = [order(seed, epoch) for seed in range(2) for epoch in range(3)]
    assert len({tuple(keys) for keys in orders}) == 6
    assert order(1, 2) == orders[5]
    inside = [[key for key in keys if key in ("00", "01", "02")] for keys in orders]
    assert len({tuple(keys) for keys in inside}) > 1  # rows of a shard are mixed, too


def test_workers_that_persist_hear_of_the_epoch(dataset: Path) -> None:
    found = TokenDataset(dataset, shuffle=True)
    loader = torch.utils.data.DataLoader(found, batch_size=None, num_workers=1, persistent_workers=True)
    orders = []
    for epoch in (0, 1, 0):
        found.set_epoch(epoch)
        orders.append([item["key"] for item in loader])
    assert orders[0] == orders[2] != orders[1]


def test_batches_are_what_a_training_loop_takes(dataset: Path, tokenizer: vartok.Tokenizer) -> None:
    found = TokenDataset(dataset)
    (batch,) = torch.utils.data.DataLoader(found, batch_size=16)
    assert batch["key"] == ALL
    assert batch.keys() == {"key", "tokens", "width", "height"}  # nothing was carried along
    assert batch["tokens"].shape == (16, L)
    assert batch["tokens"].dtype == torch.int64
    maps = vartok.TokenMaps.unflatten(batch["tokens"], SMALL.patch_nums)
    assert torch.equal(found.var_inputs(tokenizer, batch["tokens"]), tokenizer.var_inputs(maps))
    (apart,) = torch.utils.data.DataLoader(TokenDataset(dataset, maps=True), batch_size=16)
    assert all(torch.equal(one, two) for one, two in zip(apart["maps"], maps.maps, strict=True))
    other = noise_tokenizer(dataset.parent / "other.safetensors", SMALL, seed=1)
    with pytest.raises(vartok.TokenFileError, match="was encoded with"):
        found.var_inputs(other, batch["tokens"])


@pytest.mark.parametrize("format", SUFFIXES)
def test_hugging_face_loads_the_folder(
    tmp_path: Path, source: Path, tokenizer: vartok.Tokenizer, format: str
) -> None:
    import datasets

    work = job(tmp_path / "out", tokenizer, format=format)
    run(work, source, tokenizer)
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset(str(work.out), split="train", cache_dir=cache)
    assert [row.get("key") or row["json"]["key"] for row in loaded] == ALL
    (work.out / "README.md").write_text("more of it")
    run(work, source, tokenizer)
    assert (work.out / "README.md").read_text() == "more of it"


@pytest.mark.parametrize("format", SUFFIXES)
def test_what_was_carried_along_is_there(tmp_path: Path, tokenizer: vartok.Tokenizer, format: str) -> None:
    members = [("a.png", picture(0)), ("a.cls", b"3"), ("b.png", picture(1)), ("b.txt", b"two")]
    path = tar(tmp_path / "a.tar", members)
    work = job(tmp_path / "out", tokenizer, format=format)
    run(work, path, tokenizer)
    a, b = TokenDataset(work.out)
    assert (a["label"], a["caption"]) == (3, "")
    assert (b["label"], b["caption"]) == (-1, "two")
    assert "metadata" not in a


def test_what_cannot_be_loaded(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(DatasetError, match="holds no data set"):
        TokenDataset(tmp_path)
    with pytest.raises(DatasetError, match="give both"):
        TokenDataset(dataset, rank=1)
    with pytest.raises(DatasetError, match="rank 2 of 2"):
        TokenDataset(dataset, rank=2, world=2)
    part = tmp_path / "part"
    shutil.copytree(dataset, part)
    path = part / "dataset.json"
    path.write_text(path.read_text().replace('"complete": true', '"complete": false'))
    with pytest.raises(DatasetError, match="is not complete"):
        TokenDataset(part)
