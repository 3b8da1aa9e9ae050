"""Keep the pages of a file that tensors are mapped from out of the memory of the process."""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import mmap
import re
import sys
import weakref
from collections.abc import Iterator, Mapping

from torch import Tensor

MAPS = "/proc/self/maps"
"""The mappings of this process, on Linux."""


@contextlib.contextmanager
def dropping_pages(owners: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Drop the pages of a file that tensors are mapped from: before, when an owner is freed, and after.

    The pages count as memory of the process until the file is unmapped, although the system may take them
    back. A model that is optimized or moved copies its weights, so that the process would hold them twice.
    Pages are read again, mostly from the system's cache, when they are used again.

    Args:
        owners: parameters of a model, by name, some of which the block frees.
        tensors: what the parameters were made of, by the same names; not changed since they were mapped.
    """
    files = _mapped_files()
    found = [(owner, _whole_pages(files, tensors[name])) for name, owner in owners.items()]
    pages = [place for _, place in found if place is not None]
    for place in pages:
        _drop(*place)
    # `tensors` keep the file mapped, so that nothing else gets the addresses before the block ends.
    finalizers = [weakref.finalize(owner, _drop, *place) for owner, place in found if place is not None]
    del owners, found  # else they would keep the parameters
    try:
        yield
    finally:
        for finalizer in finalizers:
            finalizer.detach()
        for place in pages:
            _drop(*place)


def _mapped_files() -> list[tuple[int, int]]:
    """Return the address ranges to which files are mapped, in order; none where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return []
    with contextlib.suppress(OSError), open(MAPS) as maps:
        lines = (re.match(r"([0-9a-f]+)-([0-9a-f]+) r\S* \S+ \S+ [1-9]\d* ", line) for line in maps)
        return [(int(found[1], 16), int(found[2], 16)) for found in lines if found]
    return []


def _whole_pages(files: list[tuple[int, int]], tensor: Tensor) -> tuple[int, int] | None:
    """Return address and size of the whole pages of a tensor; None if no file is mapped there."""
    start = tensor.data_ptr()
    end = start + tensor.nbytes
    at = bisect.bisect_right(files, (start, sys.maxsize)) - 1
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    is_mapped = at >= 0 and end <= files[at][1]
    return (first, last - first) if is_mapped and first < last and tensor.is_contiguous() else None


def _drop(start: int, size: int) -> None:
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
