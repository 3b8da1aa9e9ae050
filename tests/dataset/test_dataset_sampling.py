"""Data sets with buckets: their items, batches of one bucket, and streams."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import names
from dataset_cases import BUCKETED, bucketed_rows, write_dataset
from torch.utils.data import DataLoader

import vartok
from vartok import TokenMaps
from vartok.dataset import BucketBatchSampler, TokenDataset, TokenStream, verify
from vartok.dataset.loader import TrainingRows
from vartok.errors import DatasetError

pytest_plugins = ["dataset_cases"]


@pytest.fixture(scope="module")
def bucketed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 60 pictures in three buckets; a fourth has none."""
    rows = bucketed_rows()
    return write_dataset(
        tmp_path_factory.mktemp("bucketed") / "out", [rows[:40], rows[40:]], encoding=BUCKETED
    )


def test_the_items_of_a_bucket_follow_one_another(bucketed: Path) -> None:
    rows = {row.key: row for row in bucketed_rows()}
    dataset = TokenDataset(bucketed)
    assert [bucket.size for bucket in dataset.buckets] == [(8, 8), (4, 12), (12, 4)]
    assert [bucket.items for bucket in dataset.buckets] == [range(10), range(10, 40), range(40, 60)]
    assert sorted(item["key"] for item in dataset) == sorted(rows)
    for order in ([59, 0, 12, 41, 1, -60], range(60)):
        for index, item in zip(order, dataset.__getitems__(order), strict=True):
            assert item["tokens"].tolist() == rows[item["key"]].flatten().tolist()
            assert index % 60 in dataset.buckets[item["bucket"]].items
            assert rows[item["key"]].schedule == dataset.buckets[item["bucket"]].schedule
    maps = TokenDataset(bucketed, maps=True)[10]["maps"]
    assert [tuple(scale.shape) for scale in maps] == list(BUCKETED.buckets[1].schedule)
    assert names(bucketed / "cache") == ["rows-12x4.bin", "rows-4x12.bin", "rows-8x8.bin"]
    assert verify(bucketed).problems == []


@pytest.mark.parametrize(("world", "drop_last"), [(1, False), (1, True), (3, False), (3, True)])
def test_a_batch_comes_from_one_bucket(bucketed: Path, world: int, drop_last: bool) -> None:
    dataset = TokenDataset(bucketed)
    epochs = []
    for epoch in range(2):
        ranks = []
        for rank in range(world):
            sampler = BucketBatchSampler(dataset, 4, drop_last=drop_last, seed=1, rank=rank, world=world)
            sampler.set_epoch(epoch)
            batches = [batch["bucket"].tolist() for batch in DataLoader(dataset, batch_sampler=sampler)]
            assert len(batches) == len(sampler)
            assert all(len(set(batch)) == 1 for batch in batches)
            ranks.append(batches)
        assert all(batches == ranks[0] for batches in ranks)  # so all ranks compute equally long
        epochs.append(ranks[0])
        samplers = [BucketBatchSampler(dataset, 4, rank=rank, world=world) for rank in range(world)]
        items = [number for sampler in samplers for batch in sampler for number in batch]
        assert len(set(items)) == len(items) == (60 if world == 1 else 60 - 10 % 3 - 20 % 3)
    assert epochs[0] != epochs[1]
    counts = Counter(bucket for batch in epochs[0] for bucket in batch)
    expected = {  # of 10, 30 and 20 items, by ranks and batches of four
        (1, False): [10, 30, 20],
        (1, True): [8, 28, 20],
        (3, False): [3, 10, 6],
        (3, True): [0, 8, 4],
    }[world, drop_last]
    assert [counts[bucket] for bucket in range(3)] == expected


def test_a_sampler_without_shuffle_keeps_the_order(bucketed: Path) -> None:
    dataset = TokenDataset(bucketed)
    batches = list(BucketBatchSampler(dataset, 25, shuffle=False))
    assert batches == [[*range(10)], [*range(10, 35)], [*range(35, 40)], [*range(40, 60)]]
    with pytest.raises(DatasetError, match="batch_size"):
        BucketBatchSampler(dataset, 0)


def test_a_stream_has_one_bucket(bucketed: Path) -> None:
    dataset = TokenDataset(bucketed)
    stream = TokenStream(bucketed, bucket=1)
    assert [item["key"] for item in stream] == [dataset[i]["key"] for i in range(10, 40)]
    assert len(stream) == 30
    with pytest.raises(DatasetError, match="has 3 buckets"):
        TokenStream(bucketed)
    with pytest.raises(DatasetError, match="a number from 0 to 2, not 3"):
        TokenStream(bucketed, bucket=3)


def test_var_inputs_take_the_schedule_of_the_batchs_bucket(
    bucketed: Path, small_tokenizer: vartok.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, stream = TokenDataset(bucketed), TokenStream(bucketed, bucket=2)
    model = dataclasses.replace(dataset.model, fingerprint=small_tokenizer.fingerprint)
    monkeypatch.setattr(TrainingRows, "model", model)
    for bucket in (1, 2):  # one is the other's transpose, and has equally many tokens
        schedule = BUCKETED.buckets[bucket].schedule
        batch = next(iter(DataLoader(dataset, 3, sampler=dataset.buckets[bucket].items)))
        expected = small_tokenizer.var_inputs(TokenMaps.unflatten(batch["tokens"], schedule))
        for given in (bucket, batch["bucket"]):
            assert torch.equal(dataset.var_inputs(small_tokenizer, batch["tokens"], given), expected)
    assert stream.schedule == schedule
    assert torch.equal(stream.var_inputs(small_tokenizer, batch["tokens"]), expected)
    mixed = next(iter(DataLoader(dataset, 2, sampler=[10, 40])))
    for wrong, reason in ((None, "none is named"), (mixed["bucket"], r"\[1, 2\]"), (3, "from 0 to 2, not 3")):
        with pytest.raises(DatasetError, match=reason):
            dataset.var_inputs(small_tokenizer, mixed["tokens"], wrong)
