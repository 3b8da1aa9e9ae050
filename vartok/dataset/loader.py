"""Load a data set's tokens for training, by the numbers of its rows."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vartok.dataset.batches import Batch, Item
from vartok.dataset.cache import RowCache, open_caches
from vartok.dataset.encoding import Encoding
from vartok.dataset.rows import DatasetBucket, FinishedDataset
from vartok.errors import DatasetError, quoted
from vartok.metadata import ModelInfo
from vartok.runtime import keep_freed_memory
from vartok.schedule import Schedule
from vartok.tokens import TokenMaps, split_tokens

if TYPE_CHECKING:
    from vartok.tokenizer import Tokenizer


class TrainingRows:
    """The tokens of a data set, as `TokenDataset` and `TokenStream` give them."""

    _dataset: FinishedDataset
    _bucket: DatasetBucket | None  # the bucket of all items; None if they come from several
    _maps: bool

    @property
    def schedule(self) -> Schedule:
        """(h, w) of every scale of the whole schedule; that of the first bucket, if there are several."""
        return self._encoding.schedule

    @property
    def model(self) -> ModelInfo:
        """The checkpoint whose codebook the tokens index."""
        return self._encoding.model

    @property
    def grids(self) -> Schedule:
        """(h, w) of each scale of the rows: `schedule`, or its first grids if only these were encoded."""
        return self._encoding.grids

    @property
    def classes(self) -> list[str]:
        """Names of the labels, if folders or tables gave them; else empty."""
        return list(self._dataset.classes)

    @property
    def _encoding(self) -> Encoding:
        return (self._bucket or self._dataset.buckets[0]).encoding

    def var_inputs(self, tokenizer: Tokenizer, tokens: Tensor, bucket: int | Tensor | None = None) -> Tensor:
        """Compute the inputs that teacher-force a next-scale transformer on a batch of this data set.

        Args:
            tokenizer: a tokenizer with the codebook that the data set was made with.
            tokens: [B, L] integers: "tokens" of a batch.
            bucket: number of the batch's bucket, or "bucket" of the batch, [B] integers; needed if the items
                come from several.

        Returns:
            [B, L - h_0 w_0, C] float32, on the tokenizer's device; see `Tokenizer.var_inputs`.

        Raises:
            DatasetError: there are several buckets and `bucket` is None; or the batch mixes buckets; or there
                is no such bucket.
            TokenFileError: the tokenizer has another codebook.
            TokensError: `tokens` is not [B, L], or holds an index outside the vocabulary.
        """
        tokenizer.check_model(self.model)
        encoding = self._find_bucket(bucket).encoding
        return tokenizer.var_inputs(TokenMaps.unflatten(tokens, encoding.schedule, encoding.scales))

    def _find_bucket(self, bucket: int | Tensor | None) -> DatasetBucket:
        """Return a batch's bucket: the number of tokens does not tell it, as 64x96 and 96x64 have as many."""
        if bucket is None and self._bucket is not None:
            return self._bucket
        numbers: list[int] = [] if bucket is None else torch.as_tensor(bucket).unique().tolist()
        count = len(self._dataset.buckets)
        if len(numbers) != 1:
            given = "none is named" if bucket is None else f"it has {numbers}"
            raise DatasetError(
                f"the data set has {count} buckets, and a batch must be of one: {given}",
                hint='make batches with `BucketBatchSampler`, and set `bucket` to "bucket" of the batch',
            )
        if not 0 <= numbers[0] < count:
            raise DatasetError(f"`bucket` is a number from 0 to {count - 1}, not {quoted(numbers[0])}")
        return self._dataset.buckets[numbers[0]]

    def _split(self, tokens: Tensor, bucket: DatasetBucket) -> list[Tensor]:
        """Split [L] tokens into K maps; map k is [h_k, w_k]."""
        grids = bucket.encoding.grids
        scales = tokens.split([h * w for h, w in grids])
        return [scale.view(grid) for scale, grid in zip(scales, grids, strict=True)]


class BucketItems(NamedTuple):
    """The items of a bucket of a `TokenDataset`.

    Attributes:
        size: (height, width) of the encoded pixels.
        schedule: (h, w) of every scale of the whole schedule, coarse to fine.
        items: numbers of its items.
    """

    size: tuple[int, int]
    schedule: Schedule
    items: range


class TokenDataset(TrainingRows, Dataset[dict[str, Any]]):
    """The pictures of a data set by their numbers, as dicts that a DataLoader can batch.

    An item has "key"; "tokens", [L] int64, scales coarse to fine, each scale row by row; and "width" and
    "height" of the original picture, in pixels. If any row of the data set has a label, a caption or
    metadata, every item has "label" (-1 if unknown), "caption" or "metadata" ("" if unknown).

    Where pictures have several views, an item is a view of a picture: it has "view", its number; "box", [4]
    float64, the part of the original that was encoded, see `View`; and "flipped". With latents, an item has
    "latent", [C, h, w] float16. In a data set with several buckets, an item has "bucket", the number of its
    bucket in `buckets`; the items of a bucket follow one another, and `BucketBatchSampler` makes batches
    of one bucket each.

    Torch's own samplers choose the order: `DataLoader(dataset, shuffle=True)` shuffles all items, and
    `DistributedSampler` divides them among ranks. When a data set is opened for the first time, its rows are
    copied into one file beside the shards for each bucket, cache/rows.bin, of about 2 bytes a token, which is
    memory-mapped from then on. `TokenStream` needs no such file.

    Args:
        folder: folder of the data set.
        maps: give an item "maps", K tensors [h_k, w_k] int64, instead of "tokens".
        view: with several views of a picture: the number of the view to give; "all" for each view as an item
            of its own, the views of a picture one after the other; or None to draw a view of each picture,
            by `seed` and epoch.
        seed: seed of the draws of views.

    Raises:
        DatasetError: the folder holds no data set, or an incomplete or broken one; or the rows cannot be
            written into a file; or pictures have no such view.
        VartokError: a package that the format of the shards needs is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        maps: bool = False,
        view: int | Literal["all"] | None = None,
        seed: int = 0,
    ) -> None:
        self._maps = maps
        self._dataset = FinishedDataset.open(folder)
        self._bucket = self._dataset.buckets[0] if len(self._dataset.buckets) == 1 else None
        self._views = self._encoding.rows_per_picture
        if view not in (None, "all") and (type(view) is not int or not 0 <= view < self._views):
            raise DatasetError(f"a view is from 0 to {self._views - 1} or 'all', not {quoted(view)}")
        self._view = view
        self._seed = seed
        # In shared memory, so that persistent workers of a DataLoader see `set_epoch`.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        keep_freed_memory()  # batches of over 128 kB would fault their pages in again each time
        divisor = 1 if view == "all" else self._views
        counts = [bucket.rows // divisor for bucket in self._dataset.buckets]
        self._ends = np.cumsum(counts)  # of the items of each bucket
        self._caches: list[RowCache] = open_caches(self._dataset)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the memory maps, which another process opens for itself."""
        return {name: value for name, value in vars(self).items() if name != "_caches"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._caches = open_caches(self._dataset)

    def __len__(self) -> int:
        """Return the number of items."""
        return int(self._ends[-1])

    @property
    def buckets(self) -> list[BucketItems]:
        """The buckets that have items; a data set without buckets has one."""
        ends = self._ends.tolist()
        return [
            BucketItems(bucket.encoding.size, bucket.encoding.schedule, range(start, end))
            for bucket, start, end in zip(self._dataset.buckets, [0, *ends], ends, strict=False)
        ]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which with `seed` determines the views that are drawn; call it before each epoch."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield all items in order."""
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return an item.

        Raises:
            IndexError: there is no such item.
        """
        (item,) = self.__getitems__([index])
        return item

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
        """Return the items of a batch; a DataLoader calls it.

        Raises:
            IndexError: an item does not exist.
        """
        count = len(self)
        items = np.fromiter(map(operator.index, indices), np.int64, len(indices))
        missing = items[(items < -count) | (items >= count)]
        if len(missing):
            raise IndexError(f"the data set has no item {missing[0]}: it has {count:,}, numbered from 0")
        items = np.where(items < 0, items + count, items)
        if len(self._caches) == 1:
            return Batch(self._columns(0, items))
        numbers = np.searchsorted(self._ends, items, side="right")
        found: list[Item] = [Item()] * len(items)
        for bucket in np.unique(numbers).tolist():
            (places,) = np.nonzero(numbers == bucket)
            local = items[places] - (self._ends[bucket - 1] if bucket else 0)
            batch = Batch({**self._columns(bucket, local), "bucket": np.full(len(places), bucket)})
            if len(batch) == len(items):
                return batch
            for place, item in zip(places, batch, strict=True):
                found[place] = item
        return found

    def _columns(self, bucket: int, items: NDArray[np.int64]) -> dict[str, Any]:
        """Return the columns of a `Batch` of items of a bucket, by their numbers in it."""
        cache, rows = self._caches[bucket], self._rows(items)
        columns: dict[str, Any] = {name: cache.texts(name, rows) for name in cache.text_columns}
        for name, values in cache.columns.items():
            columns[name] = values[rows]
        if self._maps:
            grids = self._dataset.buckets[bucket].encoding.grids
            columns["maps"] = list(split_tokens(columns.pop("tokens"), grids))
        return columns

    def _rows(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of each item."""
        if self._views == 1 or self._view == "all":
            return items
        if self._view is not None:
            return items * self._views + self._view
        return items * self._views + draw_views(self._seed, int(self._epoch), items, self._views)


def draw_views(seed: int, epoch: int, pictures: NDArray[np.int64], views: int) -> NDArray[np.int64]:
    """Draw a view of each picture, which depends on nothing but seed, epoch and the picture's number.

    Returns:
        [N] numbers from 0 to `views` - 1.

    Source: Steele et al. 2014, Fast splittable pseudorandom number generators: SplitMix64.
    """

    def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    state = np.zeros(1, np.uint64)
    for number in (np.array([seed]), np.array([epoch]), pictures):
        state = mix(state + number.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1))
    return (state % np.uint64(views)).astype(np.int64)
