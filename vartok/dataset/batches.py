"""Batches of a `TokenDataset`: how torch's `default_collate` takes them, and how a worker sends them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from vartok.errors import DatasetError

PACKED = (torch.int64, torch.int32, torch.bool, torch.float16, torch.float32, torch.float64)
"""Dtypes of the tensors that are sent as plain bytes; a loop's own `collate_fn` may add others."""


class Item(dict[str, Any]):
    """An item of a `TokenDataset`. By its type torch's `default_collate` knows a `Batch`."""


class Batch(Sequence[Item]):
    """The items of a batch, each of which is made when it is asked for.

    `default_collate` takes the columns as they are: it would need most of a loader's time to make and stack
    the tensors of single items.

    Args:
        columns: values by name: arrays [B, ...], of which integers become int64 tensors; lists of B texts;
            and as "maps" a list of K arrays [B, h_k, w_k].
    """

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = columns

    @functools.cached_property
    def tensors(self) -> dict[str, Any]:
        """The columns with tensors in place of arrays."""
        return {name: _to_tensors(values) for name, values in self.columns.items()}

    def __len__(self) -> int:
        return len(self.columns["key"])

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        """Return an item: numbers as Python's, and views of the columns' tensors."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        item = Item()
        for name, values in self.tensors.items():
            if name == "maps":
                item[name] = [scale[index] for scale in values]
            else:
                value = values[index]
                item[name] = value.item() if isinstance(value, Tensor) and not value.ndim else value
        return item


class WorkerBatch(MutableMapping[str, Any]):
    """A collated batch in a worker of a DataLoader, which is sent as plain bytes.

    A column becomes tensors when it is read. The others are sent as arrays, tokens in 2 bytes in place of 8;
    to widen and narrow them again took a worker most of its time. Torch would send each tensor in shared
    memory by a connection of its own, which takes several milliseconds a batch. The process that trains gets
    a dict of tensors.

    Args:
        columns: as `Batch` has them.
    """

    def __init__(self, columns: dict[str, Any]) -> None:
        self._columns = dict(columns)

    def __getitem__(self, name: str) -> Any:
        value = self._columns[name] = _to_tensors(self._columns[name])
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        self._columns[name] = value

    def __delitem__(self, name: str) -> None:
        del self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, ({name: _pack(value) for name, value in self._columns.items()},)


class _Packed(NamedTuple):
    """A tensor as an array; `widen` if it is int64."""

    array: NDArray[Any]
    widen: bool


def _to_tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(np.int64) if value.dtype.kind in "iu" else value)
    if isinstance(value, list) and not _is_text(value):
        return [_to_tensors(one) for one in value]
    return value


def _pack(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _Packed(value, value.dtype.kind in "iu")
    if isinstance(value, list) and not _is_text(value):
        return [_pack(one) for one in value]
    if type(value) is not Tensor or value.dtype not in PACKED or value.layout != torch.strided:
        return value
    if value.device.type != "cpu" or value.requires_grad:
        return value
    small = False
    if value.dtype == torch.int64 and value.numel():
        low, high = value.aminmax()
        small = 0 <= int(low) <= int(high) < 1 << 16
    array = value.numpy()
    return _Packed(array.astype(np.uint16) if small else array, small)


def _unpack(columns: dict[str, Any]) -> dict[str, Any]:
    def restore(value: Any) -> Any:
        if isinstance(value, _Packed):
            return torch.from_numpy(value.array.astype(np.int64) if value.widen else value.array)
        if isinstance(value, list) and not _is_text(value):
            return [restore(one) for one in value]
        return value

    return {name: restore(value) for name, value in columns.items()}


def _is_text(values: list[Any]) -> bool:
    """Return whether a list starts with a text, and so holds no tensors: a column of keys, say."""
    return bool(values) and isinstance(values[0], str)


def _collate(batch: Sequence[Item], *, collate_fn_map: dict[Any, Any] | None = None) -> Any:
    """Collate items for torch's `default_collate`.

    Raises:
        DatasetError: the items are of several buckets.
    """
    if isinstance(batch, Batch):
        return batch.tensors if get_worker_info() is None else WorkerBatch(batch.columns)
    if len({item.get("bucket") for item in batch}) > 1:
        raise DatasetError(
            "a batch has items of several buckets",
            hint="make batches with `BucketBatchSampler`: DataLoader(dataset, batch_sampler=...)",
        )
    return collate([dict(item) for item in batch], collate_fn_map=collate_fn_map)


# The docstring of torch's `default_collate` describes this way to extend it.
default_collate_fn_map[Item] = _collate
