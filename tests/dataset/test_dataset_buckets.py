"""Data sets of several sizes: a folder of shards for each bucket, under one dataset.json."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import names, save
from dataset_cases import contents

import vartok
from vartok.dataset import build, verify
from vartok.dataset.formats import read_shard
from vartok.dataset.schema import open_dataset
from vartok.dataset.stats import read_stats
from vartok.errors import ArgumentError, DatasetError
from vartok.operations import encode_file
from vartok.schedule import adapt_schedule
from vartok.token_sources import read_path, read_tokens
from vartok.tokens import ImageTokens

pytest_plugins = ["dataset_cases"]

BUCKETS = [(8, 8), (4, 12), (12, 4), (16, 2)]
SHAPES = [(20, 20), (30, 10), (10, 30), (31, 11), (21, 19), (9, 9), (60, 15)]
"""(width, height) of the pictures: of the buckets 8x8, 4x12, 12x4, 4x12, 8x8, 8x8 and 4x12."""

FILES = ["12x4/00000-0000", "4x12/00000-0000", "4x12/00001-0000", "4x12/00002-0000", "8x8/00000-0000"]
FILES += ["8x8/00001-0000"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for n, (width, height) in enumerate(SHAPES):
        save(folder / f"{n}.png", n, width, height)
    return folder


@pytest.fixture(scope="module")
def make(pictures: Path, small_tokenizer: vartok.Tokenizer) -> Callable[..., Any]:
    """Return a function that builds the data set of `pictures` in a folder."""

    def make(out: Path, source: Path = pictures, **options: Any) -> Any:
        settings: dict[str, Any] = {"fit": "bucket", "buckets": BUCKETS, "shard_size": 3, **options}
        return build(source, out, tokenizer=small_tokenizer, **settings)

    return make


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, make: Callable[..., Any]) -> Path:
    """The data set of `pictures`; not to be changed."""
    out = tmp_path_factory.mktemp("built") / "out"
    make(out)
    return out


@pytest.mark.parametrize("format", ["parquet", "wds", "jsonl"])
def test_rows_have_the_size_and_the_schedule_of_their_bucket(
    tmp_path: Path, pictures: Path, small_tokenizer: vartok.Tokenizer, make: Callable[..., Any], format: str
) -> None:
    summary = make(tmp_path / "out", format=format)
    assert (summary.pictures, summary.shards, summary.failed) == (7, 6, 0)
    assert [name.rpartition(".")[0] for name in names(tmp_path / "out/data")] == FILES
    assert verify(tmp_path / "out").problems == []
    found = {tokens.key: tokens for tokens in read_tokens(tmp_path / "out")}
    assert len(found) == 7
    for key, tokens in found.items():
        alone = encode_file(pictures / f"{key}.png", tokenizer=small_tokenizer, fit="bucket", buckets=BUCKETS)
        assert np.array_equal(tokens.flatten(), alone.flatten())
        assert tokens.schedule == alone.schedule
        assert tokens.image.size == alone.image.size
        assert (tokens.image.width, tokens.image.height) == SHAPES[int(key)]
    [path] = tmp_path.glob("out/data/4x12/00001-0000.*")
    assert [row.key for row in read_path(path)] == ["3"]
    if format == "parquet":
        shutil.copy(path, tmp_path / "alone.parquet")  # a Parquet file tells its encoding
        [row] = read_path(tmp_path / "alone.parquet")
        assert isinstance(row.tokens, ImageTokens)
        assert row.tokens.image.size == (4, 12)


def test_loaders_of_other_packages_read_one_bucket(
    tmp_path: Path, built: Path, make: Callable[..., Any]
) -> None:
    import datasets
    import webdataset

    make(tmp_path / "out", format="wds")
    shards = sorted(str(path) for path in tmp_path.glob("out/data/4x12/*.tar"))
    samples = webdataset.WebDataset(shards, shardshuffle=False).decode()
    assert [(row["__key__"], row["tokens.npy"].size) for row in samples] == [("1", 16), ("3", 16), ("6", 16)]
    rows = datasets.load_dataset(str(built), "4x12", split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["key"] == ["1", "3", "6"]
    assert [len(tokens) for tokens in rows["tokens"]] == [16, 16, 16]


def test_the_card_names_the_buckets_that_have_files(tmp_path: Path, make: Callable[..., Any]) -> None:
    make(tmp_path / "out")
    card = tmp_path / "out/README.md"
    text = card.read_text()
    assert re.findall("config_name: (.*)", text) == ["12x4", "4x12", "8x8"]  # a loader refuses one without
    more = "data_files: data/4x12/*.parquet\n- config_name: 16x2\n  data_files: data/16x2/*.parquet"
    changed = text.replace("data_files: data/4x12/*.parquet", more)
    card.write_bytes(f"{changed}\r\nmine \xff".encode("latin-1"))
    make(tmp_path / "out")
    assert card.read_bytes() == f"{text}\r\nmine \xff".encode("latin-1")


def test_the_description_has_the_schedule_and_the_pictures_of_each_bucket(
    built: Path, small_tokenizer: vartok.Tokenizer
) -> None:
    description, encoding = open_dataset(built)
    own = small_tokenizer.config.patch_nums
    step = small_tokenizer.config.downsample
    schedules = [adapt_schedule(own, (h // step, w // step)) for h, w in BUCKETS]
    assert description["buckets"] == [
        {"size": list(size), "schedule": [list(grid) for grid in schedule], "pictures": count}
        for size, schedule, count in zip(BUCKETS, schedules, (3, 3, 1, 0), strict=True)
    ]
    assert "schedule" not in description
    assert description["image"]["fit"] == "bucket"
    assert [shard["name"].rpartition(".")[0] for shard in description["shards"]] == sorted(
        (f"data/{name}" for name in FILES), key=lambda name: (name[-10:], name)
    )
    shard = encoding.of_shard("data/4x12/00000-0000.parquet")
    assert (shard.size, shard.schedule, shard.buckets) == ((4, 12), schedules[1], ())
    for name in ("data/00000-0000.parquet", "data/3x3/00000-0000.parquet"):
        with pytest.raises(DatasetError, match="is no bucket"):
            encoding.of_shard(name)


@pytest.mark.parametrize("format", ["parquet", "wds", "jsonl"])
def test_rows_of_buckets_have_views_and_latents(
    tmp_path: Path, small_tokenizer: vartok.Tokenizer, make: Callable[..., Any], format: str
) -> None:
    out = tmp_path / "out"
    summary = make(out, format=format, views="random:2", zoom=1.5, latents=True)
    assert (summary.pictures, summary.shards) == (7, 6)
    assert verify(out).problems == []
    description, encoding = open_dataset(out)
    assert [bucket["pictures"] for bucket in description["buckets"]] == [3, 3, 1, 0]
    for shard in description["shards"]:
        of_shard = encoding.of_shard(shard["name"])
        rows = list(read_shard(format, out / shard["name"], of_shard))
        assert len(rows) == 2 * shard["pictures"]
        for row in rows:
            assert row.view is not None
            assert row.latent is not None
            left, top, right, bottom = row.view.box
            height, width = row.image.size
            cell = width / (right - left)  # one scale of both sides, but for whole pixels
            assert height / (bottom - top) == pytest.approx(cell, rel=0.1)
            assert row.latent.shape == (small_tokenizer.config.z_channels, *of_shard.schedule[-1])


def test_parts_and_a_build_that_is_stopped_anywhere_give_the_same_bytes(
    tmp_path: Path, built: Path, make: Callable[..., Any]
) -> None:
    whole = contents(built)
    for part in (1, 0):
        make(tmp_path / "parts", shard=(part, 2))
    assert contents(tmp_path / "parts") == whole
    out = tmp_path / "out"
    shutil.copytree(built, out)
    for file in ("data/4x12/00000-0000.parquet", "data/8x8/00001-0000.parquet", "stats/00002-0000.json"):
        (out / file).unlink()
        left = out / Path(file).parent / ".vartok-0-0.tmp"  # of a machine of long ago
        left.write_bytes(b"half of it")
        os.utime(left, (0, 0))
        make(out)
        assert contents(out) == whole


def test_a_shard_that_is_made_again_leaves_no_file_of_other_pictures(
    tmp_path: Path, built: Path, pictures: Path, make: Callable[..., Any]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(pictures, source)
    make(out, source)
    assert {name.partition("/")[0] for name in names(out / "data")} == {"12x4", "4x12", "8x8"}
    (source / "2.png").write_bytes(b"broken")  # the only one of 12x4
    next((out / "stats").glob("00000-*")).unlink()
    summary = make(out, source)
    assert (summary.pictures, summary.failed) == (6, 1)
    assert {name.partition("/")[0] for name in names(out / "data")} == {"4x12", "8x8"}
    assert verify(out).problems == []
    assert open_dataset(out)[0]["buckets"][2]["pictures"] == 0


def test_a_shard_of_broken_pictures_has_no_file(tmp_path: Path, make: Callable[..., Any]) -> None:
    (tmp_path / "x.png").write_bytes(b"broken")
    summary = make(tmp_path / "out", tmp_path / "x.png")
    assert (summary.pictures, summary.failed, summary.shards, summary.complete) == (0, 1, 0, True)
    assert names(tmp_path / "out/data") == []
    assert make(tmp_path / "out", tmp_path / "x.png").run.shards == 0  # done


def test_verify_finds_what_is_wrong_in_the_folders_of_buckets(tmp_path: Path, built: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(built, out)
    first, second = out / "data/4x12/00000-0000.parquet", out / "data/4x12/00001-0000.parquet"
    second.write_bytes(first.read_bytes())
    first.unlink()
    (out / "data/8x8/x").write_bytes(b"")
    (out / "data/3x3").mkdir()
    stats = out / "stats/00002-0000.json"
    stats.write_text(stats.read_text().replace("4x12", "5x5"))
    causes = {problem.file: problem.cause for problem in verify(out).problems}
    assert causes.pop("dataset.json").startswith("lists other shards")
    assert causes.pop("data/4x12/00000-0000.parquet").startswith("is missing")
    assert causes.pop("data/4x12/00001-0000.parquet").startswith("its sha256 is not that of its stats")
    assert causes.pop("data/5x5/00002-0000.parquet") == "'5x5' is no bucket of this data set"
    stray = {"data/8x8/x", "data/3x3", "data/4x12/00002-0000.parquet"}
    assert causes == dict.fromkeys(stray, "is not a shard of this data set: remove it")


def test_stats_name_no_files_outside_the_folders_of_buckets(tmp_path: Path, built: Path) -> None:
    shutil.copytree(built, tmp_path / "out")
    stats = tmp_path / "out/stats/00002-0000.json"
    stats.write_text(stats.read_text().replace("4x12", "../stats"))
    assert read_stats(tmp_path / "out")[2, 0].files == {}


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ([], "'buckets' must be a list of 1 to 256 buckets"),
        (300 * [{"size": [8, 8], "schedule": [[1, 1]]}], "'buckets' must be a list of 1 to 256 buckets"),
        (2 * [{"size": [8, 8], "schedule": [[1, 1]]}], "'buckets' must have different sizes"),
        ([{"size": [8, 0], "schedule": [[1, 1]]}], "a bucket's 'size' must be"),
        ([{"size": [8, 8], "schedule": []}], "a schedule must be"),
        ([{"size": [8, 8]}], "it has no 'schedule'"),
        ([{"size": [9, 8], "schedule": [[1, 1]]}], "'8x8' is no bucket of this data set"),
        ([3], "not subscriptable"),
    ],
)
def test_broken_buckets_are_said(tmp_path: Path, built: Path, wrong: object, cause: str) -> None:
    description = json.loads((built / "dataset.json").read_text())
    description["buckets"] = wrong
    shards = [shard for shard in description["shards"] if "8x8" in shard["name"]]
    (tmp_path / "dataset.json").write_text(json.dumps({**description, "shards": shards}))
    with pytest.raises(DatasetError, match=re.escape(cause)):
        open_dataset(tmp_path)


def test_other_buckets_and_other_fits_are_refused(
    tmp_path: Path, built: Path, make: Callable[..., Any]
) -> None:
    with pytest.raises(DatasetError, match="holds a data set with buckets"):
        make(built, buckets=BUCKETS[:2])
    with pytest.raises(DatasetError, match='holds a data set with image fit "bucket", not "crop"'):
        make(built, fit="crop", buckets=None, size=8)
    with pytest.raises(ArgumentError, match="`buckets` needs the fit bucket"):
        make(tmp_path / "out", fit="crop")
    with pytest.raises(ArgumentError, match="multiples of 2 for this checkpoint, not 5x8"):
        make(tmp_path / "out", buckets=[(5, 8)])
    assert not (tmp_path / "out").exists()
