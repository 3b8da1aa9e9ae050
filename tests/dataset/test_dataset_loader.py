"""TokenDataset: rows by number, torch's samplers, its row cache, and what it refuses."""

import json
import os
import pickle
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Vartok
from dataset_cases import (
    KEYS,
    VIEWED,
    L,
    class_sorted_shards,
    make_job,
    picture,
    run,
    some_rows,
    tar,
    viewed_rows,
    write_dataset,
)
from noise import SMALL
from noise import tokenizer as noise_tokenizer
from torch.utils.data import DataLoader, DistributedSampler, default_collate

import vartok
from vartok.dataset import TokenDataset, TokenStream, cache, verify
from vartok.dataset.batches import WorkerBatch
from vartok.dataset.formats import FORMATS
from vartok.dataset.lock import folder_lock
from vartok.dataset.rows import DatasetBucket, FinishedDataset
from vartok.errors import DatasetError

pytest_plugins = ["dataset_cases"]


def keys(batches: Any) -> list[str]:
    return [key for batch in batches for key in batch["key"]]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A data set of two shards with 5 and 3 rows, labels and captions."""
    found = some_rows(8)
    return write_dataset(tmp_path / "rows", [found[:5], found[5:]])


def test_a_class_sorted_data_set_is_shuffled_over_all_its_rows(tmp_path: Path) -> None:
    dataset = TokenDataset(write_dataset(tmp_path / "out", class_sorted_shards()))
    torch.manual_seed(0)
    loader = DataLoader(dataset, batch_size=64, shuffle=True)
    epochs = [keys(loader) for _ in range(2)]
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        assert sorted(epoch) == sorted(item["key"] for item in dataset)
        assert len({key.partition("/")[0] for key in epoch[:64]}) > 40


def test_ranks_workers_and_epochs_share_one_permutation(rows: Path) -> None:
    dataset = TokenDataset(rows)
    epochs = []
    for epoch in range(2):
        seen = []
        for rank in range(3):
            sampler: Any = DistributedSampler(dataset, num_replicas=3, rank=rank, seed=1, drop_last=True)
            sampler.set_epoch(epoch)
            workers = 2 if rank == epoch else 0
            mine = keys(DataLoader(dataset, 2, sampler=sampler, num_workers=workers))
            assert len(mine) == 2
            seen += mine
        assert len(set(seen)) == 6
        epochs.append(seen)
    assert epochs[0] != epochs[1]


def test_batches_suit_a_training_loop(dataset: Path, small_tokenizer: vartok.Tokenizer) -> None:
    found = TokenDataset(dataset)
    (batch,) = DataLoader(found, batch_size=16)
    assert batch["key"] == KEYS
    assert batch.keys() == {"key", "tokens", "width", "height"}  # nothing was carried along
    assert batch["tokens"].shape == (16, L)
    assert batch["tokens"].dtype == torch.int64
    maps = vartok.TokenMaps.unflatten(batch["tokens"], SMALL.patch_nums)
    assert torch.equal(found.var_inputs(small_tokenizer, batch["tokens"]), small_tokenizer.var_inputs(maps))
    (apart,) = DataLoader(TokenDataset(dataset, maps=True), batch_size=16)
    assert all(torch.equal(one, two) for one, two in zip(apart["maps"], maps.maps, strict=True))
    other = noise_tokenizer(dataset.parent / "other.safetensors", SMALL, seed=1)
    with pytest.raises(vartok.TokenFileError, match="the tokens were made with"):
        found.var_inputs(other, batch["tokens"])


def test_rows_are_those_of_the_shards(rows: Path) -> None:
    dataset = TokenDataset(rows)
    expected = some_rows(8)
    assert len(dataset) == 8
    for copy in (dataset, pickle.loads(pickle.dumps(dataset))):
        for item, row in zip(copy, expected, strict=True):
            assert item["tokens"].tolist() == row.flatten().tolist()
            assert (item["key"], item["width"], item["height"]) == (row.key, row.image.width, 9)
            assert (item["label"], item["caption"]) == (row.label, row.caption)
    assert dataset[-1]["key"] == dataset[7]["key"] == expected[7].key
    assert [item["key"] for item in dataset.__getitems__([3, 3, 0])] == ["k/3.x", "k/3.x", "k/0.x"]
    assert list(dataset.__getitems__([])) == []
    for index in (8, -9):
        with pytest.raises(IndexError, match=r"has no item (8|-9): it has 8"):
            dataset[index]


@pytest.mark.parametrize("format", FORMATS)
def test_hugging_face_loads_the_folder(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer, format: str
) -> None:
    import datasets

    job = make_job(tmp_path / "out", small_tokenizer, format=format)
    run(job, source, small_tokenizer)
    assert len(TokenDataset(job.out)) == len(KEYS)  # its cache does not disturb
    loaded = datasets.load_dataset(str(job.out), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row.get("key") or row["json"]["key"] for row in loaded] == KEYS
    (job.out / "README.md").write_text("more of it")
    run(job, source, small_tokenizer)
    assert (job.out / "README.md").read_text() == "more of it"
    assert verify(job.out).problems == []


@pytest.mark.parametrize("format", FORMATS)
def test_optional_columns_are_loaded_and_inspected(
    tmp_path: Path, small_tokenizer: vartok.Tokenizer, format: str, vartok: Vartok
) -> None:
    text = b"two\n" + "ü".encode() + 200 * b"x"
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
    assert re.search(r"\n  caption     two üx{100,120}\.\.\.\n", shown)
    assert json.loads(vartok("inspect", job.out, "--json").stdout.splitlines()[1])["caption"] == text.decode()


def test_unusable_data_sets_are_refused(tmp_path: Path, rows: Path) -> None:
    with pytest.raises(DatasetError, match="holds no data set"):
        TokenDataset(tmp_path)
    path = rows / "dataset.json"
    text = path.read_text()
    path.write_text(text.replace('"complete": true', '"complete": false'))
    with pytest.raises(DatasetError, match="is not complete"):
        TokenDataset(rows)
    path.write_text(text.replace('"pictures": 5,', '"pictures": 6,'))
    with pytest.raises(DatasetError, match=r"00000-0000\.parquet: has 5 rows, but dataset\.json says 6"):
        TokenDataset(rows)
    path.write_text(text.replace('"pictures": 5,', '"pictures": 4,'))
    with pytest.raises(DatasetError, match="has more than 4 rows"):
        TokenDataset(rows)
    path.write_text(text.replace('"bytes": ', '"size": '))
    with pytest.raises(DatasetError, match="without its size"):
        TokenDataset(rows)
    path.write_text(text)
    shard = rows / "data/00000-0000.parquet"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(DatasetError, match=f"has {len(data) - 1:,} bytes, but dataset.json says"):
        TokenDataset(rows)
    shard.write_bytes(bytes([data[0], data[1] ^ 1]) + data[2:])
    with pytest.raises(DatasetError, match=r"00000-0000\.parquet: its sha256 is not"):
        TokenDataset(rows)
    assert not (rows / "cache/rows.bin").exists()


def test_no_rows_are_an_empty_data_set(tmp_path: Path) -> None:
    dataset = TokenDataset(write_dataset(tmp_path / "out", [[]]))
    assert len(dataset) == len(list(dataset)) == 0


# Views.


@pytest.fixture(scope="module")
def viewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 40 pictures with three views each, in two shards."""
    rows = viewed_rows(40)
    return write_dataset(tmp_path_factory.mktemp("viewed") / "out", [rows[:90], rows[90:]], encoding=VIEWED)


def test_an_item_is_a_view_of_a_picture(viewed: Path) -> None:
    rows = viewed_rows(40)
    for dataset, expected in (
        (TokenDataset(viewed, view="all"), rows),
        (TokenDataset(viewed, view=1), rows[1::3]),
        (TokenStream(viewed), rows),
    ):
        for item, row in zip(dataset, expected, strict=True):
            assert row.view is not None
            assert row.latent is not None
            assert item["tokens"].tolist() == row.flatten().tolist()
            assert (item["key"], item["view"], item["flipped"]) == (
                row.key,
                row.view.number,
                row.view.flipped,
            )
            assert item["box"].tolist() == list(row.view.box)
            assert item["latent"].tolist() == row.latent.tolist()
    (batch,) = DataLoader(TokenDataset(viewed), batch_size=40)
    assert (batch["box"].dtype, batch["box"].shape) == (torch.float64, (40, 4))
    assert (batch["latent"].dtype, batch["latent"].shape) == (torch.float16, (40, 2, 4, 4))
    assert batch["flipped"].dtype == torch.bool
    for view in (3, -1, True, "one"):
        with pytest.raises(DatasetError, match="a view is from 0 to 2 or 'all'"):
            TokenDataset(viewed, view=view)  # type: ignore[arg-type]


@pytest.mark.parametrize("read", [(), ("maps", "label", "latent")])
def test_a_batch_arrives_from_a_worker_as_it_was(viewed: Path, read: Sequence[str]) -> None:
    dataset = TokenDataset(viewed, maps=True)
    items: Any = dataset.__getitems__([5, 0, 7])
    expected = default_collate(items)
    columns = WorkerBatch(items.columns)
    for name in read:
        columns[name]
    assert [*columns] == [*expected]
    assert len(pickle.dumps(WorkerBatch(items.columns))) < len(pickle.dumps(expected)) / 2
    assert columns.pop("caption") == expected.pop("caption")
    added = {"large": torch.tensor([1 << 40, 0]), "negative": torch.tensor([-1, 3]), "none": torch.ones(0)}
    added |= {"half": torch.ones(2, dtype=torch.bfloat16)}
    columns.update(added)
    expected |= added
    arrived = pickle.loads(pickle.dumps(columns))
    assert type(arrived) is dict
    assert arrived.keys() == expected.keys()
    for name, value in expected.items():
        for one, two in zip(*(x if name == "maps" else [x] for x in (value, arrived[name])), strict=True):
            same = (
                torch.equal(one, two) and one.dtype == two.dtype
                if isinstance(one, torch.Tensor)
                else one == two
            )
            assert same, name


@pytest.mark.parametrize("maps", [False, True])
def test_a_batch_is_collated_from_columns_as_from_its_items(viewed: Path, maps: bool) -> None:
    dataset = TokenDataset(viewed, maps=maps)
    items: Any = dataset.__getitems__([5, 0, 7])
    of_dicts = default_collate([dict(item) for item in items])
    for batch in (default_collate(items), default_collate(items[:]), default_collate([*items])):
        assert batch.keys() == of_dicts.keys() == items[0].keys()
        for name, values in of_dicts.items():
            if isinstance(values, torch.Tensor):
                assert batch[name].dtype == values.dtype
                assert torch.equal(batch[name], values)
            elif name == "maps":
                assert all(torch.equal(one, two) for one, two in zip(batch[name], values, strict=True))
            else:
                assert batch[name] == values


def test_a_view_of_each_picture_is_drawn_by_seed_and_epoch_alone(viewed: Path) -> None:
    def views(seed: int, epoch: int, order: Sequence[int] = range(40)) -> list[int]:
        dataset = TokenDataset(viewed, seed=seed)
        dataset.set_epoch(epoch)
        assert [dataset[i]["key"] for i in order] == [f"k/{i}.x" for i in order]
        return [item["view"] for item in dataset.__getitems__(order)]

    draws = [views(seed, epoch) for seed in range(2) for epoch in range(3)]
    assert len({tuple(found) for found in draws}) == 6
    assert all(4 < Counter(found)[view] < 24 for found in draws for view in range(3))
    assert views(1, 2, range(39, -1, -1)) == draws[5][::-1]


def test_a_loader_with_workers_draws_the_views_of_its_epoch(viewed: Path) -> None:
    dataset = TokenDataset(viewed)
    loader = DataLoader(dataset, batch_size=40, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        assert next(iter(loader))["view"].tolist() == [item["view"] for item in dataset]


def test_views_that_do_not_follow_one_another_are_refused(tmp_path: Path) -> None:
    rows = viewed_rows(2)
    out = write_dataset(tmp_path / "out", [[*rows[:4], rows[5], rows[4]]], encoding=VIEWED)
    with pytest.raises(DatasetError, match=r"00000-0000\.parquet: row 5 is view 2, not 1"):
        TokenDataset(out)


# The row cache.


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The row caches that are written."""
    found: list[Path] = []
    write = cache._write

    def noted(path: Path, bucket: DatasetBucket) -> None:
        found.append(path)
        write(path, bucket)

    monkeypatch.setattr(cache, "_write", noted)
    return found


def test_the_cache_is_written_once_and_again_when_it_is_stale_or_torn(
    rows: Path, written: list[Path]
) -> None:
    path = rows / "cache/rows.bin"
    expected = [row.key for row in some_rows(8)]
    assert [item["key"] for item in TokenDataset(rows)] == expected
    data = path.read_bytes()
    TokenDataset(rows)
    assert written == [path]
    torn = [b"", data[:100], data[:-1], data + b"0", data[:3] + b"0" + data[4:], data[:-1000]]
    for count, bad in enumerate(torn, 2):
        path.write_bytes(bad)
        assert [item["key"] for item in TokenDataset(rows)] == expected
        assert len(written) == count
        assert path.read_bytes() == data
    other = write_dataset(rows.parent / "other", [some_rows(5)])
    (rows / "cache/rows-8x8.bin").write_bytes(b"of a bucket that it had")
    shutil.copytree(other, rows, dirs_exist_ok=True)  # the same folder, with other shards
    assert [item["key"] for item in TokenDataset(rows)] == expected[:5]
    assert os.listdir(rows / "cache") == ["rows.bin"]


def test_a_data_set_that_cannot_be_written_has_its_cache_in_the_users_folder(
    rows: Path, written: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = rows.parent / "home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    (rows / "cache").write_text("no folder")
    for _ in range(2):
        assert len(list(TokenDataset(rows))) == 8
    assert written == [cache.user_rows(rows) / "rows.bin"]
    shutil.rmtree(home)
    home.write_text("no folder either")
    with pytest.raises(DatasetError, match=r"cannot write the row cache of .*rows in .*home/vartok/rows-"):
        TokenDataset(rows)


def test_a_full_disk_is_said_and_leaves_no_file(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(rows: object, names: object) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_chunks", full)
    with pytest.raises(DatasetError, match="no space left on the disk") as caught:
        TokenDataset(rows)
    assert "TokenStream" in str(caught.value.hint)
    assert os.listdir(rows / "cache") == []


def test_a_process_waits_for_another_that_writes_the_cache(
    rows: Path, written: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process is played by a lock that is given only once the cache is there."""
    (bucket,) = FinishedDataset.open(rows).buckets

    def late(folder: Path) -> Any:
        cache._write(folder / "rows.bin", bucket)
        return folder_lock(folder)

    monkeypatch.setattr(cache, "folder_lock", late)
    assert len(list(TokenDataset(rows))) == 8
    assert len(written) == 1


def test_a_part_of_a_cache_is_bounded_in_rows_and_in_text(
    rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(TokenDataset(rows))

    def check(sizes: Sequence[int]) -> None:
        found = list(cache._chunks(some_rows(8), ("key", "caption")))
        assert [len(chunk) for chunk in found] == sizes
        (rows / "cache/rows.bin").unlink()
        assert str(list(TokenDataset(rows))) == str(expected)

    monkeypatch.setattr(cache, "CHUNK_ROWS", 3)
    check([3, 3, 2])
    monkeypatch.setattr(cache, "CHUNK_TEXT", 10)
    check([2, 2, 2, 2])
