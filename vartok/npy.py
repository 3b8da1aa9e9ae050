"""Read the header of an npy array; nothing in it is evaluated."""

from __future__ import annotations

import re
from typing import Any, BinaryIO, NamedTuple

import numpy as np

MAGIC = b"\x93NUMPY"

MAX_NPY_HEADER = 10_000
"""Size limit in bytes of the text of a header; numpy's own readers have the same."""

MAX_NPY_START = 12 + MAX_NPY_HEADER
"""Largest number of bytes before an array's data: signature, version, length and text of the header."""

FIELD = re.compile(rb"""['"](\w+)['"]\s*:\s*('[^']*'|"[^"]*"|\w+|\([^()]*\))""")
"""Matches a field of a header: its name, and a text, a word, or a tuple of numbers."""

SHAPE = re.compile(rb"\(\s*(?:[0-9]{1,20}L?\s*,\s*)*(?:[0-9]{1,20}L?\s*)?\)")
"""Matches a shape; Python 2 wrote "L" after the numbers."""

DTYPE = re.compile(r"[<>|=]?[?bBiufcSUVOmM][0-9]{0,9}(\[[a-zA-Z0-9]{1,9}\])?")
"""Matches a dtype that is not structured."""

LENGTH_BYTES = {(1, 0): 2, (2, 0): 4}
"""Bytes of the length of the header's text, by the version of the format."""


class NpyHeader(NamedTuple):
    """Header of an npy array; the array's data follows it in the file.

    Attributes:
        shape: shape of the array; every dimension is 0 or more.
        fortran_order: True if the first axis varies fastest in the file.
        dtype: dtype of the array; not a structured one.
    """

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]


def read_npy_header(stream: BinaryIO) -> NpyHeader:
    """Read an npy array's header, of version 1.0 or 2.0, and leave the stream at the array's data.

    Raises:
        ValueError: the stream does not begin with such a header.
        OSError: the stream cannot be read.

    Source: numpy.lib.format, whose reader warns of headers that Python 2 wrote.
    """
    start = stream.read(len(MAGIC) + 2)
    size = LENGTH_BYTES.get((start[-2], start[-1])) if len(start) == len(MAGIC) + 2 else None
    if not start.startswith(MAGIC) or size is None:
        raise ValueError("not an npy array of version 1.0 or 2.0")
    length = int.from_bytes(stream.read(size), "little")
    text = stream.read(length) if length <= MAX_NPY_HEADER else b""
    if not text or len(text) != length:
        raise ValueError("its header is cut short, or too long")
    fields: dict[bytes, bytes] = dict(FIELD.findall(text))
    sides = re.findall(rb"[0-9]{1,20}", fields.get(b"shape", b""))
    descr = fields.get(b"descr", b"")[1:-1].decode("latin-1")
    if (
        fields.keys() != {b"shape", b"fortran_order", b"descr"}
        or fields[b"fortran_order"] not in (b"True", b"False")
        or not SHAPE.fullmatch(fields[b"shape"])
        or not DTYPE.fullmatch(descr)
    ):
        raise ValueError("its header is damaged")
    try:
        return NpyHeader(tuple(map(int, sides)), fields[b"fortran_order"] == b"True", np.dtype(descr))
    except (ValueError, TypeError):
        raise ValueError("its header has an unknown dtype") from None
