"""Ordered work in threads, and batches."""

import itertools
import threading
import time
import weakref
from collections.abc import Iterator

import pytest
import torch
from conftest import count_worker_threads
from hypothesis import given
from hypothesis import strategies as st

from vartok.errors import (
    DeviceError,
    TokenFileError,
    VartokError,
    VartokWarning,
)
from vartok.parallel import map_batches, map_ordered


@pytest.mark.parametrize(("workers", "limit"), [(1, 1), (1, 4), (4, 2), (3, 7)])
def test_map_ordered_keeps_order_and_its_limit(workers: int, limit: int) -> None:
    taken: list[int] = []
    done: list[int] = []
    most = 0

    def items() -> Iterator[int]:
        for i in range(40):
            taken.append(i)
            yield i

    def work(i: int) -> int:
        time.sleep(0.002 * (i % 3))
        return -i

    for result in map_ordered(work, items(), workers=workers, limit=limit):
        most = max(most, len(taken) - len(done))
        done.append(result)
    assert done == [-i for i in range(40)]
    assert most == limit


def test_map_ordered_works_on_several_items_at_once() -> None:
    barrier = threading.Barrier(3)
    assert len(list(map_ordered(lambda _: barrier.wait(timeout=10), range(6), workers=3, limit=3))) == 6


def test_closing_stops_the_threads() -> None:
    before = count_worker_threads()
    started = []

    def work(i: int) -> int:
        started.append(i)
        time.sleep(0.01)
        return i

    results = map_ordered(work, iter(range(10_000)), workers=4, limit=50)
    assert next(results) == 0
    assert count_worker_threads() > before
    results.close()
    assert count_worker_threads() == before
    assert len(started) <= 50
    time.sleep(0.05)
    assert len(started) <= 50


def test_an_error_of_the_work_is_raised_and_stops_the_threads() -> None:
    before = count_worker_threads()

    def work(i: int) -> float:
        return 1 / (3 - i)

    results = map_ordered(work, range(9), workers=2, limit=4)
    with pytest.raises(ZeroDivisionError):
        list(results)
    assert count_worker_threads() == before


def test_an_error_of_the_items_is_raised() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("source")

    with pytest.raises(KeyError, match="source"):
        list(map_ordered(lambda i: i, items(), workers=2, limit=4))


item_lists = st.lists(st.one_of(st.integers(-3, 12), st.just(None)), max_size=30)


@given(item_lists, st.integers(1, 8), st.booleans())
def test_batches_equal_single_items(values: list[int | None], size: int, prefetch: bool) -> None:
    """Sevens fail in collate, negatives in compute, None before; the key is the tens digit."""
    handed_on = TokenFileError("before")
    seen: list[list[int]] = []

    def collate(batch: list[int]) -> tuple[int, ...]:
        if 7 in batch:
            raise TokenFileError(f"seven among {batch}")
        return tuple(batch)

    def compute(batch: tuple[int, ...]) -> list[int | VartokError]:
        seen.append([*batch])
        if any(value < 0 for value in batch):
            raise TokenFileError(f"negative among {[*batch]}")
        return [value * 2 for value in batch]

    items: list[tuple[int, int | VartokError]] = [
        (i, handed_on if value is None else value) for i, value in enumerate(values)
    ]
    results = [
        *map_batches(
            compute, items, size=size, key=lambda value: value // 10, collate=collate, prefetch=prefetch
        )
    ]

    assert [caller for caller, _ in results] == list(range(len(values)))
    for value, (_, result) in zip(values, results, strict=True):
        if value is None:
            assert result is handed_on
        elif value < 0 or value == 7:
            assert str(result) == f"{'seven' if value == 7 else 'negative'} among [{value}]"
        else:
            assert result == value * 2
    assert all(len(batch) <= size and len({value // 10 for value in batch}) == 1 for batch in seen)


def test_prefetch_collates_while_the_batch_before_is_computed() -> None:
    loaded = [threading.Event() for _ in range(3)]

    def collate(batch: list[int]) -> int:
        loaded[batch[0]].set()
        return batch[0]

    def compute(number: int) -> list[bool]:
        return [number == 2 or loaded[number + 1].wait(20)]

    results = map_batches(
        compute, enumerate(range(3)), size=1, key=lambda _: 0, collate=collate, prefetch=True
    )
    assert [result for _, result in results] == [True, True, True]


def test_batches_are_full() -> None:
    seen = []

    def compute(batch: list[int]) -> list[int | VartokError]:
        seen.append(batch)
        return [*batch]

    list(map_batches(compute, enumerate([1, 11, 2, 12, 3, 13, 4]), size=4, key=lambda value: value // 10))
    assert seen == [[1, 2], [11, 12], [3, 4], [13]]


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 8))
def test_heavy_items_make_smaller_batches(weights: list[int], size: int) -> None:
    seen: list[list[int]] = []

    def compute(batch: list[int]) -> list[int | VartokError]:
        seen.append(batch)
        return [*batch]

    results = map_batches(compute, enumerate(weights), size=size, key=lambda _: 0, weight=float)
    assert [result for _, result in results] == weights
    assert all(len(batch) == 1 or sum(batch) <= size for batch in seen)
    for batch, following in itertools.pairwise(seen):
        assert sum(batch) + following[0] > size  # no room for the next one


def test_a_heavy_batch_that_does_not_fit_into_memory_is_halved_by_weight() -> None:
    sizes = []

    def compute(batch: list[int]) -> list[int | VartokError]:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise MemoryError
        return [*batch]

    found = map_batches(compute, enumerate([4] * 8), size=16, key=lambda _: 0, weight=float)
    with pytest.warns(VartokWarning, match="4 pictures at once do not fit into memory: going on with 2"):
        assert [result for _, result in found] == [4] * 8
    assert sizes == [4, 2, 2, 2, 2]


@given(st.lists(st.integers(0, 7), max_size=6), st.integers(1, 4), st.integers(0, 6))
def test_batches_of_a_group_do_not_depend_on_earlier_groups(runs: list[int], size: int, skipped: int) -> None:
    """Leaving out the first groups does not change the batches of the others."""

    def batches(chosen: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        seen: list[list[tuple[int, int]]] = []

        def compute(batch: list[tuple[int, int]]) -> list[tuple[int, int] | VartokError]:
            seen.append(batch)
            return [*batch]

        items = [(run, (run, i)) for run, i in chosen]
        list(map_batches(compute, items, size=size, key=lambda _: 0, group_key=lambda run: run))
        return seen

    items = [(run, i) for run, length in enumerate(runs) for i in range(length)]
    whole = batches(items)
    assert all(len({run for run, _ in batch}) == 1 for batch in whole)
    assert batches([item for item in items if item[0] >= skipped]) == [
        batch for batch in whole if batch[0][0] >= skipped
    ]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: 12"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 7.93 GiB, max allowed: 9.07 GiB)."),
        RuntimeError("Invalid buffer size: 12.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
        RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_an_item_too_large_for_memory_fails_alone(error: Exception) -> None:
    def compute(batch: list[int]) -> list[int | VartokError]:
        if sum(batch) > 10:
            raise error
        return [*batch]

    with pytest.warns(VartokWarning):
        results = [
            result for _, result in map_batches(compute, enumerate([4, 5, 99, 6]), size=4, key=lambda _: 0)
        ]
    assert results[:2] == [4, 5]
    assert results[3] == 6
    assert isinstance(results[2], DeviceError)
    assert "not enough memory" in str(results[2])


def test_the_memory_of_a_batch_that_does_not_fit_is_freed_before_its_halves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Held:
        """Stands for a tensor on the device."""

    held: list[weakref.ref[Held]] = []
    freed: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(all(ref() is None for ref in held)))

    def compute(batch: list[int]) -> list[int | VartokError]:
        tensor = Held()
        held.append(weakref.ref(tensor))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [*batch]

    with pytest.warns(VartokWarning):
        assert [result for _, result in map_batches(compute, enumerate([4, 5]), size=2, key=lambda _: 0)] == [
            4,
            5,
        ]
    assert freed == [True]


@pytest.mark.parametrize("prefetch", [False, True])
def test_out_of_memory_halves_this_batch_and_later_ones(prefetch: bool) -> None:
    sizes = []

    def compute(batch: list[int]) -> list[int | VartokError]:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise MemoryError
        return [*batch]

    found = map_batches(compute, enumerate(range(20)), size=8, key=lambda _: 0, prefetch=prefetch)
    with pytest.warns(VartokWarning) as said:
        results = list(found)
    assert [result for _, result in results] == [*range(20)]
    assert sizes == [8, 4] + [2] * 10
    assert [str(warning.message) for warning in said] == [
        "8 pictures at once do not fit into memory: going on with 4",
        "4 pictures at once do not fit into memory: going on with 2",
    ]


def test_other_errors_are_raised() -> None:
    def compute(batch: list[int]) -> list[int | VartokError]:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        list(map_batches(compute, [(0, 1)], size=2, key=lambda _: 0))
