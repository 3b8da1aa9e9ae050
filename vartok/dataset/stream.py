"""Stream a data set's tokens from its shards for training: shuffled, divided, and resumed at any row."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from vartok.dataset.loader import TrainingRows
from vartok.dataset.rows import DatasetBucket, FinishedDataset, Shard
from vartok.dataset.sampling import find_rank
from vartok.errors import DatasetError, quoted
from vartok.tokens import ImageTokens

OPEN_SHARDS = 16
"""Number of shards that are read at once, and whose rows a shuffle mixes."""


class _Segment(NamedTuple):
    """Rows `low` to `high` - 1 of a shard."""

    shard: Shard
    low: int
    high: int


class TokenStream(TrainingRows, IterableDataset[dict[str, Any]]):
    """The rows of a data set as dicts that a DataLoader can batch, read from the shards in one pass.

    `TokenDataset` gives the same rows, is faster, and shuffles all rows of a data set; a stream is for data
    sets that are too large to be copied to a local disk. Its shuffle takes the shards in random order, reads
    16 of them at once, and mixes `buffer_size` of their rows at a time.

    Every rank reads other rows, and so does every worker of a DataLoader. Ranks get equally many rows: if the
    number of ranks does not divide the rows, the last few rows of the epoch's order are left out.

    A stream continues inside an epoch at the next row: torchdata's StatefulDataLoader calls `state_dict` and
    `load_state_dict` of the stream in each worker.

    Args:
        folder: folder of the data set.
        shuffle: shuffle the rows; `set_epoch` gives another order.
        buffer_size: number of rows that a shuffle mixes; each worker keeps as many in memory.
        seed: seed of the shuffle; it must be the same on every rank.
        maps: give a row "maps", K tensors [h_k, w_k] int64, instead of "tokens".
        bucket: number of the bucket to read, among those that have rows; needed if there are several.
        rank: rank of this process, from 0; if None, that of torch.distributed, or 0 without it.
        world: number of ranks; if None, that of torch.distributed, or 1 without it.

    Raises:
        DatasetError: the folder holds no data set, or an incomplete one; or `buffer_size`, or `rank` and
            `world`, are invalid.
        VartokError: a package that the format of the shards needs is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        shuffle: bool = False,
        buffer_size: int = 16384,
        seed: int = 0,
        maps: bool = False,
        bucket: int | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        if buffer_size < 1:
            raise DatasetError(f"`buffer_size` must be 1 or more, not {quoted(buffer_size)}")
        super().__init__()
        self._dataset = FinishedDataset.open(folder)
        count = len(self._dataset.buckets)
        if bucket is None and count > 1:
            raise DatasetError(f"{folder} has {count} buckets", hint="set `bucket` to the number of one")
        if bucket is not None and not 0 <= bucket < count:
            raise DatasetError(f"`bucket` is a number from 0 to {count - 1}, not {quoted(bucket)}")
        self._bucket: DatasetBucket = self._dataset.buckets[bucket or 0]
        self._rank, self._world = find_rank(rank, world)
        self._shuffle = shuffle
        self._buffer_size = buffer_size
        self._seed = seed
        self._maps = maps
        # In shared memory, so that persistent workers of a DataLoader see `set_epoch`.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._position = 0  # number of rows that the last iterator has given
        self._resume: dict[str, Any] | None = None  # where the next iterator begins

    def __len__(self) -> int:
        """Return the number of rows of this rank."""
        return self._bucket.rows // self._world

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which with `seed` determines the order of a shuffle; call it before each epoch."""
        self._epoch.fill_(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return where the last iterator of this process is: the epoch, and the rows that it has given."""
        if self._resume is not None:
            return dict(self._resume)
        return self._place() | {"position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iterator of this process begin after the rows that `state` counts, and set its epoch.

        If `set_epoch` then sets another epoch, that one begins at its first row.

        Raises:
            DatasetError: `state` is not from `state_dict`.
        """
        names = {*self._place(), "position"}
        if type(state) is not dict or state.keys() != names:
            raise DatasetError(f"the state of a stream has {', '.join(sorted(names))}, not {quoted(state)}")
        self._resume = dict(state)
        self.set_epoch(state["epoch"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of this rank; in a worker of a DataLoader, only that worker's share of them.

        Raises:
            DatasetError: a shard is broken or cannot be read; or the state that was loaded is that of another
                data set, rank or worker, or of other settings.
        """
        place, resume = self._place(), self._resume
        self._position, self._resume = 0, None
        if resume is not None and resume["epoch"] == place["epoch"]:
            if different := [name for name, value in place.items() if resume[name] != value]:
                told = ", ".join(f"{name} {resume[name]}, now {place[name]}" for name in different)
                raise DatasetError(f"the state of a stream with other settings cannot be continued: {told}")
            self._position = resume["position"]
        return self._iterate(place)

    def _iterate(self, place: dict[str, Any]) -> Iterator[dict[str, Any]]:
        # All rows, in the epoch's order of shards, form a sequence; each rank and worker takes a slice of it.
        first = self._rank * len(self)
        worker, workers = place["worker"], place["workers"]
        start, stop = (first + len(self) * part // workers for part in (worker, worker + 1))
        segments = self._segments(start, stop, place["epoch"])
        width = OPEN_SHARDS if self._shuffle else 1
        skip = self._position
        for i in range(0, len(segments), width):
            group = segments[i : i + width]
            rows = sum(segment.high - segment.low for segment in group)
            if skip < rows:
                order = random.Random(f"{self._seed}/{place['epoch']}/{start}/{i}")
                for row in self._mix(group, order, skip):
                    self._position += 1
                    yield self._as_dict(row)
            skip = max(0, skip - rows)

    def _segments(self, start: int, stop: int, epoch: int) -> list[_Segment]:
        """Return rows `start` to `stop` - 1 of the epoch's sequence."""
        shards = list(self._bucket.shards)
        if self._shuffle:
            random.Random(f"{self._seed}/{epoch}").shuffle(shards)
        segments, offset = [], 0
        for shard in shards:
            low, high = max(start - offset, 0), min(stop - offset, shard.rows)
            if low < high:
                segments.append(_Segment(shard, low, high))
            offset += shard.rows
        return segments

    def _mix(self, group: Sequence[_Segment], order: random.Random, skip: int) -> Iterator[ImageTokens]:
        """Yield the rows of segments that are read at once, without the first `skip` of them.

        The rows are those of one buffer after another: each has equally many rows of every segment.
        """
        readers = [self._bucket.read(*segment) for segment in group]
        left = [segment.high - segment.low for segment in group]
        part = max(1, self._buffer_size // len(group)) if self._shuffle else 1
        while any(left):
            counts = [min(part, count) for count in left]
            left = [before - count for before, count in zip(left, counts, strict=True)]
            numbers = list(range(sum(counts)))
            if self._shuffle:
                order.shuffle(numbers)
            rows = chain.from_iterable(map(islice, readers, counts))
            if skip < len(numbers):
                buffer = list(rows)
                for number in numbers[skip:]:
                    yield buffer[number]
                del buffer
            else:
                deque(rows, maxlen=0)
            skip = max(0, skip - len(numbers))
        for reader in readers:
            next(reader, None)  # it then checks that its shard has no further row

    def _as_dict(self, row: ImageTokens) -> dict[str, Any]:
        item: dict[str, Any] = {"key": row.key, "width": row.image.width, "height": row.image.height}
        for column in self._bucket.columns:
            value = getattr(row, column)
            item[column] = value if value is not None else -1 if column == "label" else ""
        if row.view is not None:
            box = torch.tensor(row.view.box, dtype=torch.float64)
            item |= {"view": row.view.number, "box": box, "flipped": row.view.flipped}
        if row.latent is not None:
            item["latent"] = torch.from_numpy(row.latent.copy())  # a copy can be written, as torch asks
        tokens = torch.from_numpy(row.flatten().astype(np.int64))
        return item | ({"maps": self._split(tokens, self._bucket)} if self._maps else {"tokens": tokens})

    def _place(self) -> dict[str, Any]:
        """Return all that determines the rows of an iterator in this process, and their order."""
        info = get_worker_info()
        return {
            "dataset": self._bucket.digest,
            "epoch": int(self._epoch),
            "shuffle": self._shuffle,
            "seed": self._seed,
            "buffer_size": self._buffer_size,
            "rank": self._rank,
            "world": self._world,
            "worker": info.id if info else 0,
            "workers": info.num_workers if info else 1,
        }
