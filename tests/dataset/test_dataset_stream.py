"""TokenStream: ranks, workers, epochs, its buffer, and continuing inside an epoch."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from dataset_cases import KEYS, class_sorted_shards, some_rows, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from vartok.dataset import TokenDataset, TokenStream
from vartok.errors import DatasetError

pytest_plugins = ["dataset_cases"]


@pytest.mark.parametrize("shuffle", [False, True])
@settings(max_examples=6)
@given(
    world=st.sampled_from([1, 2, 5, 17]), epoch=st.integers(0, 3), buffer_size=st.sampled_from([1, 4, 100])
)
def test_ranks_share_the_rows_evenly_without_duplicates(
    dataset: Path, shuffle: bool, world: int, epoch: int, buffer_size: int
) -> None:
    seen = []
    for rank in range(world):
        part = TokenStream(dataset, shuffle=shuffle, rank=rank, world=world, buffer_size=buffer_size)
        part.set_epoch(epoch)
        mine = [item["key"] for item in part]
        assert len(mine) == len(part) == len(KEYS) // world
        seen += mine
    assert len(set(seen)) == len(seen)
    assert len(seen) == len(KEYS) // world * world
    if not shuffle:
        assert seen == KEYS[: len(seen)]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_share_the_rows_without_duplicates(dataset: Path, workers: int) -> None:
    loader = torch.utils.data.DataLoader(
        TokenStream(dataset, shuffle=True), batch_size=None, num_workers=workers
    )
    assert sorted(item["key"] for item in loader) == sorted(KEYS)


def test_every_epoch_has_another_order(dataset: Path) -> None:
    def order(seed: int, epoch: int) -> list[str]:
        found = TokenStream(dataset, shuffle=True, seed=seed)
        found.set_epoch(epoch)
        return [item["key"] for item in found]

    orders = [order(seed, epoch) for seed in range(2) for epoch in range(3)]
    assert len({tuple(keys) for keys in orders}) == 6
    assert order(1, 2) == orders[5]


def test_persistent_workers_see_the_epoch(dataset: Path) -> None:
    found = TokenStream(dataset, shuffle=True)
    loader = torch.utils.data.DataLoader(found, batch_size=None, num_workers=1, persistent_workers=True)
    orders = []
    for epoch in (0, 1, 0):
        found.set_epoch(epoch)
        orders.append([item["key"] for item in loader])
    assert orders[0] == orders[2] != orders[1]


def test_rows_are_those_of_a_token_dataset(tmp_path: Path) -> None:
    rows = some_rows(5)
    out = write_dataset(tmp_path / "out", [rows[:3], rows[3:]])
    for maps in (False, True):
        for one, two in zip(TokenStream(out, maps=maps), TokenDataset(out, maps=maps), strict=True):
            assert {name: str(value) for name, value in one.items()} == {
                name: str(value) for name, value in two.items()
            }


def test_the_buffer_mixes_rows_of_many_shards(tmp_path: Path) -> None:
    out = write_dataset(tmp_path / "out", class_sorted_shards())
    first = [item["key"] for item in islice(TokenStream(out, shuffle=True, buffer_size=45), 45)]
    assert Counter(int(key.partition("/")[0]) // 20 for key in first) == dict.fromkeys(range(5), 9)
    assert len({int(key.partition("/")[0]) // 20 for key in first[:15]}) > 2


# Continuing inside an epoch.


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_stream_continues_at_the_next_row(dataset: Path, shuffle: bool) -> None:
    def stream() -> TokenStream:
        return TokenStream(dataset, shuffle=shuffle, buffer_size=4, rank=1, world=2)

    whole = stream()
    whole.set_epoch(3)
    expected = [item["key"] for item in whole]
    for position in (0, 1, 3, 4, 5, 7, 8):
        begun, other = stream(), stream()
        begun.set_epoch(3)
        assert len(list(islice(begun, position))) == position
        other.load_state_dict(begun.state_dict())
        assert other.state_dict() == begun.state_dict()
        assert [item["key"] for item in other] == expected[position:]
        assert len(list(other)) == len(expected)  # the next epoch is whole
    other.load_state_dict(begun.state_dict())
    other.set_epoch(4)
    assert len(list(other)) == len(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed 0, now 1"),
        ({"shuffle": True}, "shuffle False, now True"),
        ({"rank": 1, "world": 2}, "rank 0, now 1, world 1, now 2"),
    ],
)
def test_a_state_with_other_settings_is_refused(dataset: Path, change: dict[str, Any], message: str) -> None:
    stream = TokenStream(dataset, **change)
    stream.load_state_dict(TokenStream(dataset).state_dict())
    with pytest.raises(DatasetError, match=message):
        iter(stream)
    with pytest.raises(DatasetError, match="the state of a stream has"):
        stream.load_state_dict({"epoch": 0})


@pytest.mark.parametrize("map_style", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_torchdatas_stateful_loader_continues_at_the_next_batch(
    dataset: Path, workers: int, map_style: bool
) -> None:
    loaders = pytest.importorskip("torchdata.stateful_dataloader")

    def batches(state: Any = None, stop: int | None = None) -> tuple[list[list[str]], Any]:
        stream = TokenStream(dataset, shuffle=True, buffer_size=4)
        stream.set_epoch(1)
        generator = torch.Generator().manual_seed(1)
        loader = loaders.StatefulDataLoader(
            TokenDataset(dataset) if map_style else stream,
            batch_size=3,
            shuffle=map_style,
            num_workers=workers,
            generator=generator,
        )
        if state is not None:
            loader.load_state_dict(state)
        iterator: Iterator[Any] = iter(loader)
        seen = [batch["key"] for batch in islice(iterator, stop)]
        return seen, loader.state_dict()

    expected, _ = batches()
    assert sorted(key for batch in expected for key in batch) == sorted(KEYS)
    first, state = batches(stop=2)
    rest, _ = batches(state)
    assert first + rest == expected


def test_wrong_ranks_and_buffers_are_refused(dataset: Path) -> None:
    with pytest.raises(DatasetError, match="give both"):
        TokenStream(dataset, rank=1)
    with pytest.raises(DatasetError, match="rank 2 and world 2"):
        TokenStream(dataset, rank=2, world=2)
    with pytest.raises(DatasetError, match="buffer_size"):
        TokenStream(dataset, buffer_size=0)
