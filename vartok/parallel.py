"""Ordered work in threads, and batches with prefetch; knows no model."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from vartok.errors import DeviceError, VartokError, VartokWarning

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


def map_ordered(
    work: Callable[[T], R],
    items: Iterable[T],
    *,
    workers: int,
    limit: int,
    initializer: Callable[[], None] | None = None,
) -> Generator[R, None, None]:
    """Do `work` in threads, on at most `limit` items at a time, and yield the results in order.

    Every thread begins with the `initializer`.
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers, initializer=initializer)
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= limit:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def map_batches(
    compute: Callable[[Any], list[R]],
    items: Iterable[tuple[S, T | VartokError]],
    *,
    size: int,
    key: Callable[[T], Hashable],
    group_key: Callable[[S], Hashable] | None = None,
    collate: Callable[[list[T]], Any] = list,
    prefetch: bool = False,
) -> Iterator[tuple[S, R | VartokError]]:
    """Compute items in batches of one key out of every `size` in a row; errors are handed on, in order.

    A batch that fails is tried again in halves, so that an item fails for itself alone.

    Args:
        compute: takes what `collate` makes of a batch, and returns a result for every item of it.
        items: of each: what the caller knows it by, and itself, or an error that is handed on.
        size: items in a row, out of which batches are made.
        key: maps an item to its batch: those of one key share one.
        group_key: maps an item's id to a group; a batch never spans two groups, so that batches do not
            depend on where a run resumes.
        collate: makes the input of `compute` from a batch.
        prefetch: collate in a thread while the row before is computed, so that a device need not wait;
            not where a row has several batches.

    Yields:
        What the caller knows an item by, and its result or its error; in order.

    Warns:
        VartokWarning: a batch did not fit into memory; what comes after it is taken in smaller ones.
    """

    def attempt(batch: list[T], values: Any = None) -> list[R | VartokError]:
        nonlocal size
        half = len(batch) // 2
        if len(batch) <= size:  # which may be less than when the batch was taken
            try:
                return [*compute(collate(batch) if values is None else values)]
            except (VartokError, MemoryError, RuntimeError) as error:
                if len(batch) == 1:
                    return [_as_vartok_error(error)]
                if is_out_of_memory(error) and half < size:
                    size = half
                    warnings.warn(
                        f"{len(batch)} pictures at once do not fit into memory: going on with {half}",
                        VartokWarning,
                        stacklevel=2,
                    )
        return [*attempt(batch[:half]), *attempt(batch[half:])]

    def rows() -> Iterator[list[tuple[S, T | VartokError]]]:
        for _, run in itertools.groupby(items, lambda item: group_key and group_key(item[0])):
            while row := list(itertools.islice(run, size)):
                yield row

    def split(row: list[tuple[S, T | VartokError]]) -> tuple[list[tuple[S, T | VartokError]], list[Any]]:
        batches: dict[Hashable, dict[int, T]] = {}
        for i, (_, item) in enumerate(row):
            if not isinstance(item, VartokError):
                batches.setdefault(key(item), {})[i] = item
        once = prefetch and len(batches) == 1  # what several sizes take together is not known to fit
        return row, [(batch, collate_early(batch) if once else None) for batch in batches.values()]

    def collate_early(batch: dict[int, T]) -> Any:
        with contextlib.suppress(Exception):  # what is wrong comes up again when it is computed
            return collate([*batch.values()])
        return None

    found = map_ordered(split, rows(), workers=1, limit=2) if prefetch else (split(row) for row in rows())
    with contextlib.closing(found):
        for row, batches in found:
            results: dict[int, R | VartokError] = {}
            for batch, values in batches:
                results.update(zip(batch, attempt([*batch.values()], values), strict=True))
            for i, (caller, item) in enumerate(row):
                yield caller, item if isinstance(item, VartokError) else results[i]


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is wanting, the processor's or a device's."""
    # On the CPU torch says so in a RuntimeError like any other.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _as_vartok_error(error: Exception) -> VartokError:
    """What the user should read; anything but want of memory is a defect of ours, and goes on."""
    if isinstance(error, VartokError):
        return error
    if is_out_of_memory(error):
        return DeviceError("not enough memory for a picture of this size: use a smaller one")
    raise error
