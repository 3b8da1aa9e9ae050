"""Divide the items of a data set among ranks, and into batches of one bucket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Sampler

from vartok.errors import DatasetError, quoted

if TYPE_CHECKING:
    from vartok.dataset.loader import TokenDataset


class BucketBatchSampler(Sampler[list[int]]):
    """Makes batches each of which comes from one bucket; the `batch_sampler` of a DataLoader.

    The batches of all buckets come in one random order, so that a bucket has batches in proportion to its
    items. The ranks' batches of a step come from the same bucket, and have the same size.

    Args:
        dataset: a `TokenDataset`.
        batch_size: number of items in a batch of each rank.
        shuffle: shuffle the items of each bucket, and the batches; `set_epoch` gives another order.
        drop_last: leave out the last batch of a bucket if it is smaller. Otherwise, only the items of it that
            the number of ranks does not divide are left out.
        seed: seed of the shuffle; it must be the same on every rank.
        rank: rank of this process, from 0; if None, that of torch.distributed, or 0 without it.
        world: number of ranks; if None, that of torch.distributed, or 1 without it.

    Raises:
        DatasetError: `batch_size` is below 1, or `rank` and `world` are invalid.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise DatasetError(f"`batch_size` must be 1 or more, not {quoted(batch_size)}")
        self._rank, self._world = find_rank(rank, world)
        self._buckets = [bucket.items for bucket in dataset.buckets]
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which with `seed` determines the order of a shuffle; call it before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of this rank."""
        return sum(len(self._sizes(len(items))) for items in self._buckets)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the numbers of the items of each batch of this rank."""
        generator = torch.Generator().manual_seed(self._seed + self._epoch)

        def order(count: int) -> Tensor:
            return torch.randperm(count, generator=generator) if self._shuffle else torch.arange(count)

        steps = [
            step
            for items in self._buckets
            for step in (order(len(items)) + items.start).split(self._batch_size * self._world)
        ]
        steps = [step for step in steps if self._sizes(len(step))]
        for number in order(len(steps)).tolist():
            (size,) = self._sizes(len(steps[number]))
            yield steps[number][self._rank * size : (self._rank + 1) * size].tolist()

    def _sizes(self, count: int) -> list[int]:
        """Return the sizes of each rank's batches of `count` items."""
        whole, rest = divmod(count, self._batch_size * self._world)
        last = [rest // self._world] * (rest >= self._world and not self._drop_last)
        return [self._batch_size] * whole + last


def find_rank(rank: int | None, world: int | None) -> tuple[int, int]:
    """Return the rank of this process, from 0, and the number of ranks.

    Args:
        rank: the rank; if None, that of torch.distributed, or 0 without it.
        world: the number of ranks; if None, that of torch.distributed, or 1 without it.

    Raises:
        DatasetError: only one of both is given, or `rank` is not from 0 to `world` - 1.
    """
    if rank is not None and world is not None and 0 <= rank < world:
        return rank, world
    if rank is not None or world is not None:
        raise DatasetError(f"rank {rank} and world {world}: give both or none, rank from 0 to world - 1")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
