"""Views and latents: rows of several views a picture, with the latents before quantization."""

import contextlib
import io
import itertools
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from dataset_cases import (
    ENCODING,
    SHARDS,
    VIEWED,
    contents,
    make_job,
    picture,
    plan,
    read_rows,
    run,
    some_rows,
    tar,
    viewed_rows,
    write_rows,
)
from PIL import Image

import vartok
from vartok.dataset import build, verify
from vartok.dataset.encoding import Encoding
from vartok.dataset.engines import run_here
from vartok.dataset.formats import FORMATS, iter_rows, read_shard
from vartok.dataset.schema import open_dataset
from vartok.dataset.write import write_summary
from vartok.errors import ArgumentError, DatasetError, TokensError, VartokError, VartokWarning
from vartok.images import to_tensor
from vartok.images.fit import fitted
from vartok.metadata import View
from vartok.sources import find_input_shards
from vartok.token_sources import read_tokens
from vartok.tokens import TokenMaps
from vartok.usage import count_usage

pytest_plugins = ["dataset_cases"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("changes", [{}, {"views": "center", "seed": 0}, {"latent_channels": None}])
def test_rows_with_views_and_latents_survive_a_round_trip(
    tmp_path: Path, format: str, changes: dict[str, Any]
) -> None:
    encoding = replace(VIEWED, **changes)
    found = viewed_rows(2, encoding)
    write_rows(tmp_path / "a", format, found, encoding)
    assert list(read_shard(format, tmp_path / "a", encoding)) == found
    light = [replace(row, caption=None, latent=None) for row in found]
    assert list(iter_rows(format, tmp_path / "a", encoding)) == light
    assert list(read_shard(format, tmp_path / "a", encoding, ("label",))) == light


def test_settings_are_written_only_where_they_differ_from_the_defaults() -> None:
    assert ENCODING.to_dict()["image"].keys() == {"size", "fit", "zoom", "background", "device", "dtype"}
    image = VIEWED.to_dict()["image"]
    assert {name: image[name] for name in image.keys() - ENCODING.to_dict()["image"].keys()} == {
        "views": "random:3",
        "seed": 5,
        "latent_channels": 2,
    }
    assert Encoding.from_dict(VIEWED.to_dict()) == VIEWED
    for changes in ({"views": "random:0"}, {"views": 3}, {"seed": "0"}, {"latent_channels": 0}):
        with pytest.raises(VartokError):
            Encoding.from_dict({**VIEWED.to_dict(), "image": {**image, **changes}})


def test_views_and_latents_are_columns_of_parquet(tmp_path: Path) -> None:
    found = viewed_rows(2)
    write_rows(tmp_path / "a.parquet", "parquet", found, VIEWED)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names[7:] == ["view", "box", "flipped", "latent"]
    assert table.schema.types[7:] == [
        pa.int32(),
        pa.list_(pa.float64(), 4),
        pa.bool_(),
        pa.list_(pa.float16(), 32),
    ]
    assert table["view"].to_pylist() == [0, 1, 2] * 2
    assert table["flipped"].to_pylist() == [False, True, False] * 2
    assert table["box"][1].as_py() == [0.1, 1 / 3, 8.5, 7]
    assert np.array_equal(
        table["latent"].combine_chunks().flatten().to_numpy(), np.ravel([row.latent for row in found])
    )


def test_webdataset_reads_each_view_as_a_sample(tmp_path: Path) -> None:
    import webdataset

    found = viewed_rows(2)
    write_rows(tmp_path / "a.tar", "wds", found, VIEWED)
    read = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in read] == [f"k/{n}%2Ex#{v}" for n in range(2) for v in range(3)]
    assert [sample["json"]["key"] for sample in read] == [row.key for row in found]
    assert (read[1]["json"]["view"], read[1]["json"]["flipped"]) == (1, True)
    assert read[4]["json"]["box"] == [0.1, 1 / 3, 8.5, 7]
    np.testing.assert_array_equal(read[4]["latent.npy"], found[4].latent)
    assert read[4]["latent.npy"].dtype == np.float16


@pytest.mark.parametrize("format", FORMATS)
def test_rows_without_their_view_or_latent_are_broken(tmp_path: Path, format: str) -> None:
    bare = replace(VIEWED, views="center", latent_channels=None)
    write_rows(tmp_path / "a", format, some_rows(1), bare)
    if format != "parquet":  # which records its encoding
        for encoding, reason in (
            (replace(VIEWED, latent_channels=None), "view must be"),
            (replace(VIEWED, views="center"), "its latent is not"),
        ):
            with pytest.raises(DatasetError, match=reason):
                list(read_shard(format, tmp_path / "a", encoding))
    write_rows(tmp_path / "a", format, viewed_rows(1), VIEWED)
    with pytest.raises(DatasetError, match=r"has view 2, but the views are flip|another encoding"):
        list(read_shard(format, tmp_path / "a", replace(VIEWED, views="flip")))
    with pytest.raises(DatasetError, match=r"its latent is not \[3, 4, 4\] float16|another encoding"):
        list(read_shard(format, tmp_path / "a", replace(VIEWED, latent_channels=3)))


@pytest.mark.parametrize(
    "values",
    [
        (-1, (0, 0, 1, 1)),
        (0, (0, 0, 0, 1)),
        (0, (0, 0, float("nan"), 1)),
        (0, "abcd"),
        (True, (0, 0, 1, 1)),
        (0, (0, 0, 1, 1), 1),
    ],
)
def test_broken_views_are_refused(values: Any) -> None:
    with pytest.raises(TokensError):
        View(*values)


def test_latents_have_the_grid_of_the_last_scale() -> None:
    [row] = some_rows(1)
    wrong: tuple[Any, ...] = (
        np.zeros((2, 4, 4)),
        np.zeros((4, 4), np.float16),
        np.zeros((2, 4, 2), np.float16),
    )
    for latent in wrong:
        with pytest.raises(TokensError, match="a latent"):
            replace(row, latent=latent)
    kept = replace(row, latent=np.zeros((2, 4, 4), np.float16))
    assert kept != row
    assert kept == replace(row, latent=np.zeros((2, 4, 4), np.float16))
    assert kept.latent is not None
    assert not kept.latent.flags.writeable


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """Settings of a data set with views and latents."""
    return {"views": "random:3", "zoom": 1.5, "latents": True, "shard_size": 2}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of three pictures each, one of them broken: four shards of two samples."""
    folder = tmp_path_factory.mktemp("few")
    tar(folder / "0.tar", [(f"{n}.png", picture(n)) for n in range(3)])
    tar(folder / "1.tar", [("3.png", picture(3)), ("4.png", b"junk"), ("5.png", picture(5))])
    return folder


@pytest.fixture(scope="module")
def viewed(few: Path, small_tokenizer: vartok.Tokenizer, settings: dict[str, Any]) -> Path:
    """The data set of `few` with these settings; not to be changed."""
    job = make_job(few.parent / "viewed", small_tokenizer, **settings)
    run(job, few, small_tokenizer)
    return job.out


def test_each_view_is_a_row_of_the_tokens_of_its_part(
    small_tokenizer: vartok.Tokenizer, viewed: Path, settings: dict[str, Any]
) -> None:
    job = make_job(viewed, small_tokenizer, **settings)
    rows = read_rows(job, "00000-0000")
    assert [row.row_key for row in rows] == [f"{key}#{view}" for key in (0, 1) for view in range(3)]
    for row in rows:
        image = Image.open(io.BytesIO(picture(int(row.key)))).convert("RGB")
        pixels, views = fitted(image, job.fit, row.key)
        assert row.view is not None
        assert row.view == views[row.view.number]
        latent = small_tokenizer.latent(to_tensor(pixels[row.view.number][None]))
        assert torch.equal(TokenMaps.stack([row]).flatten(), small_tokenizer.quantize(latent).flatten())
        np.testing.assert_array_equal(row.latent, latent[0].half().numpy())


def test_runs_that_stop_and_parts_give_the_same_bytes(
    tmp_path: Path, few: Path, small_tokenizer: vartok.Tokenizer, viewed: Path, settings: dict[str, Any]
) -> None:
    job = make_job(tmp_path / "out", small_tokenizer, **settings)
    shards = find_input_shards([str(few)], 2)
    for part in (1, 0):
        tasks = [task for task in plan(job, shards) if task.index % 2 == part]
        steps = run_here(job, tasks, small_tokenizer, batch_size=7, workers=1)
        with contextlib.closing(steps):
            next(step for step in steps if step.finished)
    run(job, few, small_tokenizer)
    assert contents(job.out) == contents(viewed)


def test_a_data_set_with_views_is_verified_and_counted(
    viewed: Path, small_tokenizer: vartok.Tokenizer
) -> None:
    report = verify(viewed)
    assert (report.pictures, report.failed, report.problems) == (5, 1, [])
    assert len(list(read_tokens(viewed))) == 15
    assert count_usage(viewed, small_tokenizer).images == 15
    described = json.loads((viewed / "dataset.json").read_text())
    assert (described["pictures"], described["image"]["views"]) == (5, "random:3")


def test_a_picture_whose_view_fails_has_no_rows(
    tmp_path: Path, small_tokenizer: vartok.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values beyond float16's range stand for any failure of one view."""
    tar(tmp_path / "a.tar", [("a.png", picture(0)), ("b.png", picture(1)), ("c.png", picture(2))])
    latent = small_tokenizer.latent
    calls = itertools.count()
    monkeypatch.setattr(
        type(small_tokenizer),
        "latent",
        lambda self, images: latent(images) * (1e6 if next(calls) == 3 else 1),
    )
    job = make_job(tmp_path / "out", small_tokenizer, views="flip", latents=True)
    tasks = plan(job, find_input_shards([str(tmp_path / "a.tar")], 3))
    list(run_here(job, tasks, small_tokenizer, batch_size=8, workers=1))
    assert write_summary(job, 1)["pictures"] == 2
    assert [row.row_key for row in read_rows(job, SHARDS[0])] == ["a#0", "a#1", "c#0", "c#1"]
    failed = json.loads((job.out / "failed.jsonl").read_text())
    assert (failed["key"], failed["cause"]) == ("b", "its latent has values beyond float16's range")


def test_repeated_keys_and_kept_pictures(tmp_path: Path, small_tokenizer: vartok.Tokenizer) -> None:
    pq.write_table(pa.table({"key": ["a", "a"], "image": [picture(0), picture(1)]}), tmp_path / "a.parquet")
    settings: dict[str, Any] = {"views": "flip", "format": "wds", "keep_pictures": True, "workers": 1}
    with pytest.warns(VartokWarning, match="keys that an earlier row"):
        build(tmp_path / "a.parquet", tmp_path / "out", tokenizer=small_tokenizer, **settings)
    with tarfile.open(tmp_path / "out/data/00000-0000.tar") as archive:
        members = archive.getnames()
    assert members == [
        *("a#0.tokens.npy", "a#0.json", "a#0.png", "a#1.tokens.npy", "a#1.json"),
        *("a#2#0.tokens.npy", "a#2#0.json", "a#2#0.png", "a#2#1.tokens.npy", "a#2#1.json"),
    ]


def test_buckets_have_views_and_latents_of_their_size(
    tmp_path: Path, small_tokenizer: vartok.Tokenizer
) -> None:
    members = [("a.png", picture(0, 20, 10)), ("b.png", picture(1, 10, 20))]
    settings: dict[str, Any] = {"fit": "bucket", "buckets": [(8, 16), (16, 8)], "zoom": 1.5, "workers": 1}
    build(
        tar(tmp_path / "a.tar", members),
        tmp_path / "out",
        tokenizer=small_tokenizer,
        views="random:2",
        latents=True,
        **settings,
    )
    assert verify(tmp_path / "out").problems == []
    for bucket, key in (("8x16", "a"), ("16x8", "b")):
        encoding = open_dataset(tmp_path / "out")[1].of_bucket(bucket)
        rows = list(read_shard("parquet", tmp_path / f"out/data/{bucket}/00000-0000.parquet", encoding))
        assert [row.row_key for row in rows] == [f"{key}#0", f"{key}#1"]
        assert {row.latent.shape[1:] for row in rows if row.latent is not None} == {rows[0].schedule[-1]}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"views": "mirror"}, "views are center, flip, ten-crop or random:N"),
        ({"views": "flip", "seed": 1}, "`seed` is only for random views"),
        ({"views": "ten-crop"}, "same five times"),
        ({"views": "random:2", "fit": "pad"}, "random views need the fit crop or bucket"),
    ],
)
def test_views_that_cannot_be_are_refused(
    tmp_path: Path, small_tokenizer: vartok.Tokenizer, arguments: dict[str, Any], reason: str
) -> None:
    tar(tmp_path / "a.tar", [])
    with pytest.raises(ArgumentError, match=reason):
        build(tmp_path / "a.tar", tmp_path / "out", tokenizer=small_tokenizer, **arguments)


def test_another_run_must_have_the_same_views(tmp_path: Path, small_tokenizer: vartok.Tokenizer) -> None:
    tar(tmp_path / "a.tar", [("a.png", picture())])
    build(tmp_path / "a.tar", tmp_path / "out", tokenizer=small_tokenizer, views="random:2", workers=1)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, 'image views "random:2", not'),
        ({"views": "random:2", "seed": 1}, "image seed .*, not 1"),
        ({"views": "random:2", "latents": True}, "image latent_channels .*, not 8"),
    )
    for arguments, told in cases:
        with pytest.raises(DatasetError, match=told):
            build(tmp_path / "a.tar", tmp_path / "out", tokenizer=small_tokenizer, workers=1, **arguments)
