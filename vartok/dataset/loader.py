"""A data set's tokens, for training: shuffled, and dealt out to processes and their workers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from vartok.dataset.shards import CARRIED, open_dataset, read_shard
from vartok.errors import DatasetError
from vartok.tokens import TokenMaps

if TYPE_CHECKING:
    from vartok.tokenizer import Tokenizer


class TokenDataset(IterableDataset[dict[str, Any]]):
    """The rows of a data set that `vartok dataset` made, as dicts that a DataLoader can batch.

    Each has "key"; "tokens", [L] int64, coarse to fine, each scale row by row; "width" and "height" of the
    original picture; and, where any row of the data set has them, "label" (-1 where this one has none),
    "caption" and "metadata" ("" where it has none).

    Every rank and every worker of a DataLoader goes through a part of its own. Ranks get equally many rows:
    where their number does not divide the rows, a few are left out, others in each epoch if it shuffles.

    Args:
        folder: of the data set.
        shuffle: in an order of its own for every epoch: of shards, and of rows in each.
        seed: of that order; the same on every rank.
        maps: give "maps" instead of "tokens": K tensors [h_k, w_k] int64.
        rank: which part of the data is this process's; if None what torch.distributed says.
        world: of how many parts; likewise.

    Attributes:
        schedule: the (h, w) grid of every scale.
        model: the checkpoint whose codebook the tokens index, a `ModelInfo`.
        classes: the names of labels, where folders told them.

    Raises:
        DatasetError: no data set, or one that is not complete.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        shuffle: bool = False,
        seed: int = 0,
        maps: bool = False,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        self._folder = Path(folder)
        self._description, self._encoding = open_dataset(self._folder)
        if not self._description.get("complete"):
            raise DatasetError(f"{folder} is not complete: run vartok dataset again")
        if (rank is None) != (world is None) or (
            rank is not None and world is not None and not 0 <= rank < world
        ):
            raise DatasetError(f"rank {rank} of {world}: give both, rank from 0 to world - 1")
        self._shuffle = shuffle
        self._seed = seed
        self._maps = maps
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that persist see it too
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._rank = rank if rank is not None else torch.distributed.get_rank() if distributed else 0
        self._world = world if world is not None else torch.distributed.get_world_size() if distributed else 1
        self._shards: list[tuple[str, int]] = [
            (item["name"], item["pictures"]) for item in self._description["shards"]
        ]
        carried = self._description.get("carried", {})
        self._carried = [name for name in CARRIED if carried.get(name)]
        self.schedule = self._encoding.schedule
        self.model = self._encoding.model
        self.classes: list[str] = self._description.get("classes", [])

    def __len__(self) -> int:
        """The rows of this rank."""
        return sum(rows for _, rows in self._shards) // self._world

    def set_epoch(self, epoch: int) -> None:
        """Choose an epoch's order, before a DataLoader goes through it."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """This rank's rows; in a worker of a DataLoader, that one's part of them."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # All rows in the epoch's order stand in a line, of which everybody takes a stretch.
        first = self._rank * len(self)
        epoch = int(self._epoch)
        start, stop = (first + len(self) * part // workers for part in (worker, worker + 1))
        shards = list(self._shards)
        if self._shuffle:
            random.Random(f"{self._seed}/{epoch}").shuffle(shards)
        reached = 0
        for name, rows in shards:
            low, high = max(start - reached, 0), min(stop - reached, rows)
            if low < high:
                yield from self._rows(name, rows, low, high, epoch)
            reached += rows

    def var_inputs(self, tokenizer: Tokenizer, tokens: Tensor) -> Tensor:
        """What a next-scale transformer is teacher-forced with, of a batch of this data set.

        Args:
            tokenizer: the checkpoint that the data set was made with.
            tokens: [B, L] integers, as a DataLoader gives them.

        Returns:
            [B, L - h_0 w_0, C] float32, on the tokenizer's device; see `Tokenizer.var_inputs`.

        Raises:
            TokenFileError: another checkpoint's codebook.
            TokensError: not [B, L], or an index outside the vocabulary.
        """
        tokenizer.check_model(self.model)
        return tokenizer.var_inputs(TokenMaps.unflatten(tokens, self.schedule))

    def _rows(self, name: str, rows: int, low: int, high: int, epoch: int) -> Iterator[dict[str, Any]]:
        """Rows low to high of a shard, in the epoch's order."""
        path = self._folder / name
        found = read_shard(self._description["files"], path, self._encoding)
        everything = list(found)
        if len(everything) != rows:
            what = f"has {len(everything):,} rows, where {rows:,} were told: vartok dataset verify tells more"
            raise DatasetError(f"{path} {what}")
        order = list(range(rows))
        if self._shuffle:
            random.Random(f"{self._seed}/{epoch}/{name}").shuffle(order)
        for row in (everything[i] for i in order[low:high]):
            item: dict[str, Any] = {"key": row.key, "width": row.width, "height": row.height}
            tokens = torch.from_numpy(row.tokens.astype(np.int64))
            if self._maps:
                parts = tokens.split([h * w for h, w in self.schedule])
                item["maps"] = [part.view(grid) for part, grid in zip(parts, self.schedule, strict=True)]
            else:
                item["tokens"] = tokens
            for column in self._carried:
                value = getattr(row, column)
                item[column] = value if value is not None else -1 if column == "label" else ""
            yield item
