"""TokenDataset: ranks, workers, epochs, batches, and what it refuses."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Vartok
from dataset_cases import KEYS, L, make_job, picture, run, tar
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import SMALL
from noise import tokenizer as noise_tokenizer

import vartok
from vartok.dataset import TokenDataset
from vartok.dataset.formats import FORMATS
from vartok.errors import DatasetError

pytest_plugins = ["dataset_cases"]


@pytest.mark.parametrize("shuffle", [False, True])
@settings(max_examples=40)
@given(world=st.integers(1, 20), epoch=st.integers(0, 3))
def test_ranks_share_the_rows_evenly_without_duplicates(
    dataset: Path, shuffle: bool, world: int, epoch: int
) -> None:
    seen = []
    for rank in range(world):
        part = TokenDataset(dataset, shuffle=shuffle, rank=rank, world=world)
        part.set_epoch(epoch)
        mine = [item["key"] for item in part]
        assert len(mine) == len(part) == len(KEYS) // world
        seen += mine
    assert len(set(seen)) == len(seen)
    assert len(seen) == len(KEYS) // world * world
    if not shuffle:
        assert seen == KEYS[: len(seen)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_share_the_rows_without_duplicates(dataset: Path, workers: int) -> None:
    for shuffle in (False, True):
        loader = torch.utils.data.DataLoader(
            TokenDataset(dataset, shuffle=shuffle), batch_size=None, num_workers=workers
        )
        assert sorted(item["key"] for item in loader) == sorted(KEYS)


def test_every_epoch_has_another_order(dataset: Path) -> None:
    def order(seed: int, epoch: int) -> list[str]:
        found = TokenDataset(dataset, shuffle=True, seed=seed)
        found.set_epoch(epoch)
        return [item["key"] for item in found]

    orders = [order(seed, epoch) for seed in range(2) for epoch in range(3)]
    assert len({tuple(keys) for keys in orders}) == 6
    assert order(1, 2) == orders[5]
    inside = [[key for key in keys if key in ("00", "01", "02")] for keys in orders]
    assert len({tuple(keys) for keys in inside}) > 1  # rows of a shard are mixed, too


def test_persistent_workers_see_the_epoch(dataset: Path) -> None:
    found = TokenDataset(dataset, shuffle=True)
    loader = torch.utils.data.DataLoader(found, batch_size=None, num_workers=1, persistent_workers=True)
    orders = []
    for epoch in (0, 1, 0):
        found.set_epoch(epoch)
        orders.append([item["key"] for item in loader])
    assert orders[0] == orders[2] != orders[1]


def test_batches_suit_a_training_loop(dataset: Path, small_tokenizer: vartok.Tokenizer) -> None:
    found = TokenDataset(dataset)
    (batch,) = torch.utils.data.DataLoader(found, batch_size=16)
    assert batch["key"] == KEYS
    assert batch.keys() == {"key", "tokens", "width", "height"}  # nothing was carried along
    assert batch["tokens"].shape == (16, L)
    assert batch["tokens"].dtype == torch.int64
    maps = vartok.TokenMaps.unflatten(batch["tokens"], SMALL.patch_nums)
    assert torch.equal(found.var_inputs(small_tokenizer, batch["tokens"]), small_tokenizer.var_inputs(maps))
    (apart,) = torch.utils.data.DataLoader(TokenDataset(dataset, maps=True), batch_size=16)
    assert all(torch.equal(one, two) for one, two in zip(apart["maps"], maps.maps, strict=True))
    other = noise_tokenizer(dataset.parent / "other.safetensors", SMALL, seed=1)
    with pytest.raises(vartok.TokenFileError, match="the tokens were made with"):
        found.var_inputs(other, batch["tokens"])


@pytest.mark.parametrize("format", FORMATS)
def test_hugging_face_loads_the_folder(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer, format: str
) -> None:
    import datasets

    job = make_job(tmp_path / "out", small_tokenizer, format=format)
    run(job, source, small_tokenizer)
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset(str(job.out), split="train", cache_dir=cache)
    assert [row.get("key") or row["json"]["key"] for row in loaded] == KEYS
    (job.out / "README.md").write_text("more of it")
    run(job, source, small_tokenizer)
    assert (job.out / "README.md").read_text() == "more of it"


@pytest.mark.parametrize("format", FORMATS)
def test_optional_columns_are_loaded_and_inspected(
    tmp_path: Path, small_tokenizer: vartok.Tokenizer, format: str, vartok: Vartok
) -> None:
    text = b"two\n" + 200 * b"x"
    members = [("a.png", picture(0)), ("a.cls", b"3"), ("b.png", picture(1)), ("b.txt", text)]
    path = tar(tmp_path / "a.tar", members)
    job = make_job(tmp_path / "out", small_tokenizer, format=format)
    run(job, path, small_tokenizer)
    a, b = TokenDataset(job.out)
    assert (a["label"], a["caption"]) == (3, "")
    assert (b["label"], b["caption"]) == (-1, text.decode())
    assert "metadata" not in a
    shown = vartok("inspect", job.out).stdout
    assert "\n  label       3\n  encoded" in shown
    assert re.search(r"\n  caption     two x{100,120}\.\.\.\n", shown)
    assert json.loads(vartok("inspect", job.out, "--json").stdout.splitlines()[1])["caption"] == text.decode()


def test_unusable_data_sets_and_ranks_are_refused(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(DatasetError, match="holds no data set"):
        TokenDataset(tmp_path)
    with pytest.raises(DatasetError, match="give both"):
        TokenDataset(dataset, rank=1)
    with pytest.raises(DatasetError, match="rank 2 and world 2"):
        TokenDataset(dataset, rank=2, world=2)
    part = tmp_path / "part"
    shutil.copytree(dataset, part)
    path = part / "dataset.json"
    path.write_text(path.read_text().replace('"complete": true', '"complete": false'))
    with pytest.raises(DatasetError, match="is not complete"):
        TokenDataset(part)
