"""Keep the pages of a file that tensors are mapped from out of the memory of the process."""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import mmap
import re
import sys
import weakref
from collections.abc import Mapping

from torch import Tensor

MAPS = "/proc/self/maps"
"""The mappings of this process, on Linux."""


def drop_pages_with(owners: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Drop the pages of a file that tensors are mapped from, now and when their owners are freed.

    The pages count as memory of the process until the file is unmapped, although the system may take them
    back. A model that is optimized copies its weights, so that the process would hold them twice. Pages are
    read again, mostly from the system's cache, when they are used again.

    Args:
        owners: parameters of a model, by name.
        tensors: what the parameters were made of, by the same names; not changed since they were mapped.
    """
    files = _mapped_files()
    for name, owner in owners.items():
        tensor = tensors[name]
        pages = _whole_pages(files, tensor)
        if pages is not None:
            _drop(*pages)
            # The finalizer keeps the file mapped: another mapping must not get the addresses before it runs.
            weakref.finalize(owner, _drop, *pages, tensor.detach()).atexit = False


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


def _drop(start: int, size: int, mapped: Tensor | None = None) -> None:
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
