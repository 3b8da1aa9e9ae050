"""Ordered maps in threads, and batching with prefetch; independent of models, and imports torch lazily."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from vartok.errors import DeviceError, VartokError, warn

MAX_NBYTES = 1 << 28
"""Limit on the bytes of the items that `map_ordered` has taken and not yet yielded."""

OUT_OF_MEMORY = re.compile(
    "out of memory"  # CUDA, HIP, XPU, MPS
    "|can't allocate memory|not enough memory: you tried"  # the CPU; on Windows
    "|Invalid buffer size"  # MPS, for a tensor larger than it allows
    "|_ALLOC_FAILED|ALLOCATION_FAILED"  # cuBLAS, cuDNN, cuSOLVER, hipBLAS
    "|rocblas_status_memory_error|miopenStatusAllocFailed",
    re.IGNORECASE,
)
"""How torch and its libraries word a lack of memory in a plain RuntimeError."""

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
    nbytes: Callable[[T], int] = lambda item: 0,
) -> Generator[R, None, None]:
    """Call `work` on every item in threads, and yield the results in the items' order.

    Args:
        work: function of one item; an exception in it is raised here, in place of the item's result.
        items: taken one by one, in the caller's thread, when the limits allow.
        workers: number of threads.
        limit: largest number of items that are taken and whose results are not yet yielded.
        initializer: called at the start of every thread.
        nbytes: returns the size of an item in bytes. While the items not yet yielded exceed `MAX_NBYTES`,
            no further item is taken.
    """
    waiting: deque[tuple[Future[R], int]] = deque()
    total = 0
    pool = ThreadPoolExecutor(workers, initializer=initializer)
    try:
        for item in items:
            size = nbytes(item)
            waiting.append((pool.submit(work, item), size))
            del item  # else it would stay in memory until the next item comes
            total += size
            while waiting and (len(waiting) >= limit or total > MAX_NBYTES):
                future, size = waiting.popleft()
                total -= size
                yield future.result()
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)


def map_batches(
    compute: Callable[[Any], list[R]],
    items: Iterable[tuple[S, T | VartokError]],
    *,
    size: int,
    key: Callable[[T], Hashable],
    weight: Callable[[T], float] = lambda item: 1.0,
    group_key: Callable[[S], Hashable] | None = None,
    collate: Callable[[list[T]], Any] = list,
    prefetch: bool = False,
) -> Iterator[tuple[S, R | VartokError]]:
    """Compute items in batches, and yield the results in the items' order.

    Items are taken in windows of consecutive items, whose weights add up to at most `size`; items of a window
    with equal keys form a batch. A batch that fails is computed again in halves, so that only the items at
    fault fail.

    Args:
        compute: maps the output of `collate` to one result per item of the batch.
        items: pairs of an id and an item; an error in an item's place is yielded unchanged.
        size: number of items of weight 1 in a window, and so in the largest batch.
        key: maps an item to its batch key, such as the shape of its pixels.
        weight: maps an item to the number of usual items whose memory it takes, 1 or more. An item that is
            heavier than `size` is alone in its window.
        group_key: maps an item's id to a group; a batch never spans two groups, so batch composition does
            not depend on where a run resumes.
        collate: maps a batch, a list of items, to the input of `compute`.
        prefetch: collate the next window in a thread while `compute` runs, so that a device need not wait.
            This is left out for windows of several batches, which might not fit into memory together.

    Yields:
        Pairs of an item's id and its result, or its error: the error given in the item's place, a
        VartokError of `compute`, or a DeviceError if the item alone does not fit into memory.

    Raises:
        RuntimeError: `compute` fails for another reason than memory.

    Warns:
        VartokWarning: a batch did not fit into memory; later batches are smaller.
    """
    room: float = size

    def attempt(batch: list[T], values: Any = None) -> list[R | VartokError]:
        nonlocal room
        half = len(batch) // 2
        if len(batch) == 1 or sum(map(weight, batch)) <= room:  # which may have shrunk since
            out_of_memory = False
            try:
                return [*compute(collate(batch) if values is None else values)]
            except (VartokError, MemoryError, RuntimeError) as error:
                if len(batch) == 1:
                    return [_as_vartok_error(error)]
                out_of_memory = is_out_of_memory(error)
            if out_of_memory:  # the error is gone, whose traceback kept the batch's tensors
                free_cached_memory()
                if (lighter := sum(map(weight, batch[:half]))) < room:
                    room = lighter
                    warn(f"{len(batch)} pictures at once do not fit into memory: going on with {half}")
        return [*attempt(batch[:half]), *attempt(batch[half:])]

    def windows() -> Iterator[list[tuple[S, T | VartokError]]]:
        for _, group in itertools.groupby(items, lambda item: group_key and group_key(item[0])):
            window: list[tuple[S, T | VartokError]] = []
            load = 0.0
            for pair in group:
                heavy = 1.0 if isinstance(pair[1], VartokError) else weight(pair[1])
                if window and load + heavy > room:
                    yield window
                    window, load = [], 0.0
                window.append(pair)
                load += heavy
                if load + 1 > room:  # no other item fits
                    yield window
                    window, load = [], 0.0
            if window:
                yield window

    def split(window: list[tuple[S, T | VartokError]]) -> tuple[list[tuple[S, T | VartokError]], list[Any]]:
        batches: dict[Hashable, dict[int, T]] = {}
        for i, (_, item) in enumerate(window):
            if not isinstance(item, VartokError):
                batches.setdefault(key(item), {})[i] = item
        early = prefetch and len(batches) == 1
        return window, [(batch, collate_early(batch) if early else None) for batch in batches.values()]

    def collate_early(batch: dict[int, T]) -> Any:
        with contextlib.suppress(Exception):  # `attempt` collates again, and handles the error
            return collate([*batch.values()])
        return None

    made = map_ordered(split, windows(), workers=1, limit=2) if prefetch else (split(w) for w in windows())
    with contextlib.closing(made):
        for window, batches in made:
            results: dict[int, R | VartokError] = {}
            for batch, values in batches:
                results.update(zip(batch, attempt([*batch.values()], values), strict=True))
            for i, (item_id, item) in enumerate(window):
                yield item_id, item if isinstance(item, VartokError) else results[i]


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that the memory of the CPU or of another device ran out."""
    import torch

    if isinstance(error, RuntimeError):  # which most of torch's are; also torch.OutOfMemoryError
        return isinstance(error, torch.OutOfMemoryError) or bool(OUT_OF_MEMORY.search(str(error)))
    return isinstance(error, MemoryError)


def free_cached_memory() -> None:
    """Return the memory that torch keeps for later tensors to CUDA and MPS; it may be in pieces too small."""
    import torch

    torch.cuda.empty_cache()  # does nothing where CUDA was not used
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _as_vartok_error(error: Exception) -> VartokError:
    """Return the error to yield: a VartokError itself, a DeviceError if memory ran out; raise any other."""
    if isinstance(error, VartokError):
        return error
    if is_out_of_memory(error):
        return DeviceError("not enough memory for a picture of this size", hint="use a smaller `size`")
    raise error
