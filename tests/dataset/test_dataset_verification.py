"""Verification: every defect is found and named."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dataset_cases import SHARDS, make_job, run, shard_id, with_key, write_rows

import vartok
from vartok.dataset import TokenDataset, verify
from vartok.dataset.formats import FORMATS, read_shard
from vartok.errors import DatasetError, TokensError
from vartok.metadata import ModelInfo
from vartok.tokens import ImageTokens
from vartok.usage import count_usage

pytest_plugins = ["dataset_cases"]


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
def test_a_broken_description_is_refused(dataset: Path, tmp_path: Path, old: str, new: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(dataset, out)
    text = (out / "dataset.json").read_text()
    assert old in text
    (out / "dataset.json").write_text(text.replace(old, new))
    for read in (verify, TokenDataset):
        with pytest.raises(DatasetError, match=r"dataset\.json is broken|one of parquet, wds, jsonl"):
            read(out)


@pytest.mark.parametrize("format", FORMATS)
def test_verify_finds_defects(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer, format: str
) -> None:
    job = make_job(tmp_path / "out", small_tokenizer, format=format)
    run(job, source, small_tokenizer)
    path, stats = job.shard_path(shard_id(SHARDS[0])), job.out / "stats" / f"{SHARDS[0]}.json"
    data, mark, told = path.read_bytes(), stats.read_text(), (job.out / "dataset.json").read_text()

    def problems() -> str:
        return "; ".join(f"{problem.file}: {problem.cause}" for problem in verify(job.out).problems)

    def put(found: Sequence[ImageTokens], change: Callable[[bytes], bytes] = bytes) -> None:
        """Write a shard whose hash and size are right."""
        write_rows(path, format, found, job.encoding)
        path.write_bytes(change(path.read_bytes()))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        values = {**json.loads(mark), "sha256": sha256, "bytes": path.stat().st_size}
        stats.write_text(json.dumps(values))
        (job.out / "dataset.json").write_text(told.replace(json.loads(mark)["sha256"], sha256))

    assert problems() == ""
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "its sha256 is not that of its stats" in problems()
    path.unlink()
    assert f"data/{path.name}: is missing" in problems()
    path.write_bytes(data)

    good = list(read_shard(format, path, job.encoding))
    put(good[:2])
    assert "has 2 rows, but its stats say 3" in problems()
    put([*good[:2], with_key(good[2], "00")])
    assert f"data/{path.name}: 00 occurs 2 times" in problems()
    put([*good[:2], with_key(good[2], "04")])  # a key of another shard
    assert problems() == ""
    if format == "jsonl":  # no writer of ImageTokens stores such an index
        put(good, lambda text: text.replace(b'"scales":[[[', b'"scales":[[[64', 1))
    else:
        large = ModelInfo(name="large", fingerprint="0" * 64, vocab_size=65)
        scales = tuple(np.full_like(scale, 64) for scale in good[2].scales)
        put([*good[:2], replace(good[2], scales=scales, model=large)])
    assert "outside the vocabulary" in problems()
    put(good)
    assert problems() == ""

    (job.out / "data" / "notes").write_text("x")
    assert "data/notes: is not a shard of this data set" in problems()
    (job.out / "data" / "notes").unlink()
    (job.out / "failed.jsonl").unlink()
    assert "failed.jsonl: has 0 lines, but the stats have 2 failures" in problems()
    (job.out / "dataset.json").write_text(told.replace('"complete": true', '"complete": false'))
    assert "is not complete" in problems()
    (job.out / "dataset.json").write_text(told.replace("data/00000-0000", "data/../../00000-0000"))
    with pytest.raises(DatasetError, match=r"dataset.json is broken: .* is not a shard.s name"):
        verify(job.out)
    (job.out / "dataset.json").write_text(told)
    stats.write_text("")
    assert f"stats/{stats.name}: is empty, torn, or not a stats file" in problems()
    stats.unlink()
    assert "lists other shards" in problems()


NOT_A_FILE = "it is a pipe, not a file|it is a device, not a file|is a folder"


@pytest.mark.parametrize("name", ["data/00000-0000.parquet", "stats/00000-0000.json", "dataset.json"])
@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_regular_file_is_not_waited_for(
    dataset: Path,
    tmp_path: Path,
    small_tokenizer: vartok.Tokenizer,
    name: str,
    put: Callable[[Path], None],
) -> None:
    out = tmp_path / "out"
    shutil.copytree(dataset, out)
    (out / name).unlink()
    put(out / name)
    if name == "dataset.json":
        for read in (verify, TokenDataset):
            with pytest.raises(DatasetError, match=NOT_A_FILE):
                read(out)
        with pytest.raises(TokensError):
            count_usage(out, small_tokenizer)
        return
    problems = verify(out).problems
    assert any(problem.file == name and re.search(NOT_A_FILE, problem.cause) for problem in problems)
    if name.startswith("data"):
        with pytest.raises(DatasetError, match=f"{name}: .*({NOT_A_FILE})"):
            list(TokenDataset(out))
        ((failed, error),) = count_usage(out, small_tokenizer).failures
        assert failed == str(out)
        assert re.search(f"{name}: .*({NOT_A_FILE})", str(error))


def test_missing_folders_and_shards_are_defects(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(dataset, out)
    shutil.rmtree(out / "data")
    assert [problem.cause for problem in verify(out).problems] == [
        "is missing: build the data set again"
    ] * len(SHARDS)
    with pytest.raises(DatasetError, match=r"00000-0000\.parquet: no such file or folder"):
        list(TokenDataset(out))
    (out / "stats/00000-0000.json").unlink()
    (out / "stats/00000-0000.json").symlink_to("00000-0000.json")
    with pytest.raises(DatasetError, match=r"00000-0000\.json: its links lead in a circle"):
        verify(out)
