"""Flat tokens: arrays of integers without metadata, as training scripts save them in .npy files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from vartok.errors import TokenFileError, TokensError, counted, quoted
from vartok.npy import NpyHeader, read_npy_header
from vartok.schedule import Schedule, describe, schedule_of_length, token_count
from vartok.tokens import MAX_TOKENS

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_FORTRAN_BYTES = 1 << 26
"""Size limit in bytes of an array that is stored column by column, since it is read whole."""


@dataclass(frozen=True, eq=False)
class FlatTokens:
    """Tokens of one image whose schedule and checkpoint are not known.

    Attributes:
        key: name of the image; None for the only one of its file.
        tokens: [L] integers, scales coarse to fine, each scale row by row.
    """

    key: str | None
    tokens: NDArray[Any]

    def find_schedule(self, schedule: Schedule | None, default: Schedule) -> Schedule:
        """Return the (h, w) grid of every scale.

        Args:
            schedule: the schedule of the tokens; None if it is not known.
            default: a schedule that is adapted to the size of latent that has as many tokens.

        Raises:
            TokensError: `schedule` has another number of tokens, or no size gives `default` as many.
        """
        length = len(self.tokens)
        told = counted(length, "token")
        if schedule is None:
            found = schedule_of_length(default, length)
            if found is None:
                raise TokensError(
                    f"has {told}, but the schedule {describe(default)} has {token_count(default):,}, and "
                    f"{length:,} at no other square size",
                    hint="set `schedule` to the schedule of the tokens",
                )
            return found
        if token_count(schedule) != length:
            raise TokensError(
                f"has {told}, but the schedule {describe(schedule)} has {token_count(schedule):,}"
            )
        return schedule


def read_flat_tokens(stream: BinaryIO, stem: str) -> Iterator[FlatTokens | TokenFileError]:
    """Read an npy array of tokens, [L] or [B, L], one image at a time.

    The rows of [B, L] get keys such as "samples/00000007". Only one image is in memory at once, unless the
    array is stored column by column, as a transposed one is.

    Args:
        stream: a buffered binary stream at the array's beginning; it is read forward only.
        stem: name of the file without suffix, for the keys.

    Yields:
        The tokens of an image. Or, as the last item, why the array cannot be read, or not to its end.

    Raises:
        OSError: the stream cannot be read.
    """
    try:
        header = read_npy_header(stream)
        _check_header(header)
        _check_size(header, stream)
    except TokenFileError as error:
        yield error
        return
    except ValueError as error:
        yield TokenFileError(f"not an array of tokens: {error}")
        return
    length, dtype = header.shape[-1], header.dtype
    if header.fortran_order and len(header.shape) == 2:
        data = stream.read(MAX_FORTRAN_BYTES)
        if len(data) < _nbytes(header):
            yield TokenFileError("is cut short: it has less data than its header states")
            return
        rows = np.frombuffer(data, dtype, header.shape[0] * length).reshape(length, -1)
        for n in range(header.shape[0]):
            yield FlatTokens(f"{stem}/{n:08d}", rows[:, n])
        return
    for n in range(header.shape[0] if len(header.shape) == 2 else 1):
        data = stream.read(length * dtype.itemsize)
        if len(data) < length * dtype.itemsize:
            yield TokenFileError(f"is cut short after {counted(n, 'image')}")
            return
        key = f"{stem}/{n:08d}" if len(header.shape) == 2 else None
        yield FlatTokens(key, np.frombuffer(data, dtype))


def _check_header(header: NpyHeader) -> None:
    """Raise TokenFileError for an array that is not [L] or [B, L] integers."""
    if header.dtype.kind not in "iu":
        raise TokenFileError(f"an array of tokens must hold integers, not dtype {quoted(header.dtype.str)}")
    if len(header.shape) not in (1, 2):
        raise TokenFileError(f"an array of tokens must be [L] or [B, L], not {quoted(list(header.shape))}")
    if 0 in header.shape:
        raise TokenFileError(f"an array of shape {quoted(list(header.shape))} holds no tokens")
    if header.shape[-1] > MAX_TOKENS:
        raise TokenFileError(f"has {header.shape[-1]:,} tokens an image, more than {MAX_TOKENS:,}")
    if header.fortran_order and len(header.shape) == 2 and _nbytes(header) > MAX_FORTRAN_BYTES:
        raise TokenFileError(
            f"is stored column by column, and is larger than {MAX_FORTRAN_BYTES >> 20} MiB",
            hint="save it row by row: `numpy.ascontiguousarray(tokens)`",
        )


def _check_size(header: NpyHeader, stream: BinaryIO) -> None:
    """Raise TokenFileError for a regular file whose size is not the one that its header states."""
    try:
        status = os.fstat(stream.fileno())
    except (AttributeError, OSError):
        return
    if stat.S_ISREG(status.st_mode) and status.st_size - stream.tell() != _nbytes(header):
        raise TokenFileError(
            f"has {status.st_size - stream.tell():,} bytes of data, but its header states {_nbytes(header):,}"
        )


def _nbytes(header: NpyHeader) -> int:
    images = header.shape[0] if len(header.shape) == 2 else 1
    return images * header.shape[-1] * header.dtype.itemsize
