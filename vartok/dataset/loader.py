"""Load a data set's tokens for training, by the numbers of its rows."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vartok.dataset.cache import open_cache
from vartok.dataset.rows import FinishedDataset
from vartok.metadata import ModelInfo
from vartok.schedule import Schedule
from vartok.tokens import TokenMaps

if TYPE_CHECKING:
    from vartok.tokenizer import Tokenizer


class TrainingRows:
    """The tokens of a data set, as `TokenDataset` and `TokenStream` give them."""

    _dataset: FinishedDataset
    _maps: bool

    @property
    def schedule(self) -> Schedule:
        """(h, w) of every scale, coarse to fine."""
        return self._dataset.encoding.schedule

    @property
    def model(self) -> ModelInfo:
        """The checkpoint whose codebook the tokens index."""
        return self._dataset.encoding.model

    @property
    def classes(self) -> list[str]:
        """Names of the labels, if folders or tables gave them; else empty."""
        return list(self._dataset.classes)

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
        return tokenizer.var_inputs(TokenMaps.unflatten(tokens, self.schedule))

    def _split(self, tokens: Tensor) -> list[Tensor]:
        """Split [L] tokens into K maps; map k is [h_k, w_k]."""
        scales = tokens.split([h * w for h, w in self.schedule])
        return [scale.view(grid) for scale, grid in zip(scales, self.schedule, strict=True)]


class TokenDataset(TrainingRows, Dataset[dict[str, Any]]):
    """The rows of a data set by their numbers, as dicts that a DataLoader can batch.

    A row has "key"; "tokens", [L] int64, scales coarse to fine, each scale row by row; and "width" and
    "height" of the original picture, in pixels. If any row of the data set has a label, a caption or
    metadata, every row has "label" (-1 if unknown), "caption" or "metadata" ("" if unknown).

    Torch's own samplers choose the order: `DataLoader(dataset, shuffle=True)` shuffles all rows, and
    `DistributedSampler` divides them among ranks. When a data set is opened for the first time, its rows are
    copied into one file beside the shards, cache/rows.bin, of about 2 bytes a token; from then on the file
    is memory-mapped. `TokenStream` needs no such file.

    Args:
        folder: folder of the data set.
        maps: give a row "maps", K tensors [h_k, w_k] int64, instead of "tokens".

    Raises:
        DatasetError: the folder holds no data set, or an incomplete or broken one; or the rows cannot be
            written into a file.
        VartokError: a package that the format of the shards needs is not installed.
    """

    def __init__(self, folder: str | Path, *, maps: bool = False) -> None:
        self._maps = maps
        self._dataset = FinishedDataset.open(folder)
        self._cache = open_cache(self._dataset)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the memory map, which another process opens for itself."""
        return {name: value for name, value in vars(self).items() if name != "_cache"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._cache = open_cache(self._dataset)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._dataset.rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield all rows in order."""
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a row.

        Raises:
            IndexError: there is no such row.
        """
        (row,) = self.__getitems__([index])
        return row

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the rows of a batch; a DataLoader calls it.

        Raises:
            IndexError: a row does not exist.
        """
        count = len(self)
        rows = [operator.index(index) for index in indices]
        if rows and not -count <= min(rows) <= max(rows) < count:
            raise IndexError(f"the data set has rows 0 to {count - 1}, not {min(rows)} to {max(rows)}")
        rows = [row + count if row < 0 else row for row in rows]
        columns: dict[str, Sequence[Any]] = {
            name: self._cache.texts(name, rows) for name in self._cache.text_columns
        }
        columns |= {
            name: values[rows].tolist() for name, values in self._cache.columns.items() if name != "tokens"
        }
        tokens = torch.from_numpy(self._cache.columns["tokens"][rows].astype(np.int64))
        if self._maps:
            columns["maps"] = [self._split(flat) for flat in tokens]
        else:
            columns["tokens"] = tokens.unbind()
        return [dict(zip(columns, row, strict=False)) for row in zip(*columns.values(), strict=False)]
