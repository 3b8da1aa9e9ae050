"""Load a data set's tokens for training: shuffled, and divided among processes and their workers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from vartok.dataset.formats import find_format, read_shard
from vartok.dataset.schema import OPTIONAL_COLUMNS, open_dataset
from vartok.errors import DatasetError
from vartok.files import os_error_reason
from vartok.tokens import ImageTokens, TokenMaps

if TYPE_CHECKING:
    from vartok.tokenizer import Tokenizer


class TokenDataset(IterableDataset[dict[str, Any]]):
    """The rows of a data set, as dicts that a DataLoader can batch.

    A row has "key"; "tokens", [L] int64, scales coarse to fine, each scale row by row; and "width" and
    "height" of the original picture, in pixels. If any row of the data set has a label, a caption or
    metadata, every row has "label" (-1 if unknown), "caption" or "metadata" ("" if unknown).

    Every rank reads different rows, and so does every worker of a DataLoader. Ranks get equally many rows: if
    the number of ranks does not divide the rows, the last few rows of the epoch's order are left out.

    Args:
        folder: folder of the data set.
        shuffle: shuffle the shards, and the rows within each shard; `set_epoch` gives another order.
        seed: seed of the shuffle; it must be the same on every rank.
        maps: give a row "maps", K tensors [h_k, w_k] int64, instead of "tokens".
        rank: rank of this process, from 0; if None, that of torch.distributed, or 0 without it.
        world: number of ranks; if None, that of torch.distributed, or 1 without it.

    Attributes:
        schedule: (h, w) of every scale of the whole schedule, coarse to fine.
        grids: (h, w) of each scale of the rows: `schedule`, or its first grids if only these were encoded.
        model: `ModelInfo` of the checkpoint whose codebook the tokens index.
        classes: names of the labels, if folders or tables gave them; else empty.

    Raises:
        DatasetError: the folder holds no data set, or an incomplete one; or `rank` and `world` are invalid.
        VartokError: a package that the format of the shards needs is not installed.
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
        find_format(self._description["files"])
        if not self._description.get("complete"):
            raise DatasetError(
                f"{folder} is not complete",
                hint="run the same build again, for each part if it was made in parts",
            )
        if (rank is None) != (world is None) or (
            rank is not None and world is not None and not 0 <= rank < world
        ):
            raise DatasetError(f"rank {rank} and world {world}: give both or none, rank from 0 to world - 1")
        self._shuffle = shuffle
        self._seed = seed
        self._maps = maps
        # In shared memory, so that persistent workers of a DataLoader see `set_epoch`.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._rank = rank if rank is not None else torch.distributed.get_rank() if distributed else 0
        self._world = world if world is not None else torch.distributed.get_world_size() if distributed else 1
        self._shards: list[tuple[str, int]] = [
            (item["name"], self._encoding.count_rows(item)) for item in self._description["shards"]
        ]
        counts = self._description.get("carried", {})
        self._columns = [name for name in OPTIONAL_COLUMNS if counts.get(name)]
        self.schedule = self._encoding.schedule
        self.grids = self._encoding.grids
        self.model = self._encoding.model
        self.classes: list[str] = self._description.get("classes", [])

    def __len__(self) -> int:
        """Return the number of rows of this rank."""
        return sum(rows for _, rows in self._shards) // self._world

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which with `seed` determines the order of a shuffle; call it before each epoch."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of this rank; in a worker of a DataLoader, only that worker's share of them.

        Raises:
            DatasetError: a shard is broken or cannot be read.
        """
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # All rows, in the epoch's order, form one sequence; each rank and worker takes a slice of it.
        first = self._rank * len(self)
        epoch = int(self._epoch)
        start, stop = (first + len(self) * part // workers for part in (worker, worker + 1))
        shards = list(self._shards)
        if self._shuffle:
            random.Random(f"{self._seed}/{epoch}").shuffle(shards)
        offset = 0
        for name, rows in shards:
            low, high = max(start - offset, 0), min(stop - offset, rows)
            if low < high:
                yield from self._rows(name, rows, low, high, epoch)
            offset += rows

    def var_inputs(self, tokenizer: Tokenizer, tokens: Tensor) -> Tensor:
        """Compute the inputs that teacher-force a next-scale transformer on a batch of this data set.

        Args:
            tokenizer: a tokenizer with the codebook that the data set was made with.
            tokens: [B, L] integers: "tokens" of a batch.

        Returns:
            [B, L - h_0 w_0, C] float32, on the tokenizer's device; see `Tokenizer.var_inputs`.

        Raises:
            TokenFileError: the tokenizer has another codebook.
            TokensError: `tokens` is not [B, L], or holds an index outside the vocabulary.
        """
        tokenizer.check_model(self.model)
        return tokenizer.var_inputs(TokenMaps.unflatten(tokens, self.schedule, len(self.grids)))

    def _rows(self, name: str, rows: int, low: int, high: int, epoch: int) -> Iterator[dict[str, Any]]:
        """Yield rows `low` to `high` - 1 of a shard in the epoch's order; the shard has `rows` rows."""
        path = self._folder / name
        try:
            shard = list(read_shard(self._description["files"], path, self._encoding))
        except DatasetError as error:
            raise DatasetError(f"{path}: {error}", hint=error.hint) from None
        except OSError as error:
            raise DatasetError(f"{path}: {os_error_reason(error)}") from None
        if len(shard) != rows:
            raise DatasetError(
                f"{path} has {len(shard):,} rows, but dataset.json says {rows:,}",
                hint="run `vartok dataset verify` to find what is damaged",
            )
        order = list(range(rows))
        if self._shuffle:
            random.Random(f"{self._seed}/{epoch}/{name}").shuffle(order)
        for i in order[low:high]:
            yield self._as_dict(shard[i])

    def _as_dict(self, row: ImageTokens) -> dict[str, Any]:
        image = row.image
        item: dict[str, Any] = {"key": image.source, "width": image.width, "height": image.height}
        if self._maps:
            item["maps"] = [torch.from_numpy(scale.astype(np.int64)) for scale in row.scales]
        else:
            item["tokens"] = torch.from_numpy(row.flatten().astype(np.int64))
        for column in self._columns:
            value = getattr(row, column)
            item[column] = value if value is not None else -1 if column == "label" else ""
        return item
