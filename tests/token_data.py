"""Tokens, their golden files, and ways to damage them, for the tests of tokens and token files."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from vartok.errors import TokenFileError
from vartok.metadata import ImageInfo, ModelInfo
from vartok.schedule import VAR_256, Schedule
from vartok.token_files import dump_json, dump_npz, parse_json, parse_npz
from vartok.token_streams import iter_tokens
from vartok.tokens import ImageTokens

FINGERPRINT = hashlib.sha256(b"codebook").hexdigest()

GOLDEN_JSON = (
    '{"format":"vartok.tokens","version":1,"model":{"name":"vartok-256","fingerprint":"'
    "8f25a0e4f702a314b5d8d7a4e1062bb9492e9166e6d10b2a3f61010021b06011"
    '","vocab_size":4096},"image":{"source":"caf\\u00e9 \\"1\\".png","width":1920,"height":1080,'
    '"size":[32,48],"fit":"crop","zoom":1.125,"device":"cpu","dtype":"float32"},'
    '"schedule":[[1,1],[2,3]],"scales":[[[412]],[[17,903,0],[5,77,4095]]]}'
)
GOLDEN_NPZ = "33ba608411848484b44bcc0547b0a963b49b4c2bba27daf3dff3855affc971b5"


def model_info(vocab_size: int = 4096) -> ModelInfo:
    return ModelInfo(name="vartok-256", fingerprint=FINGERPRINT, vocab_size=vocab_size)


def image_info(**changes: Any) -> ImageInfo:
    values: dict[str, Any] = {
        "source": 'café "1".png',
        "width": 1920,
        "height": 1080,
        "size": (32, 48),
        "fit": "crop",
        "zoom": 1.125,
        "device": "cpu",
        "dtype": "float32",
    }
    return ImageInfo(**{**values, **changes})


def image_tokens(schedule: Schedule = VAR_256, vocab_size: int = 4096, seed: int = 0) -> ImageTokens:
    rng = np.random.default_rng(seed)
    scales = tuple(rng.integers(0, vocab_size, grid) for grid in schedule)
    return ImageTokens(scales, model_info(vocab_size), image_info())


def golden() -> ImageTokens:
    scales = (np.array([[412]]), np.array([[17, 903, 0], [5, 77, 4095]]))
    return ImageTokens(scales, model_info(), image_info())


def document() -> dict[str, Any]:
    """The golden example as a JSON object, to be damaged."""
    value: dict[str, Any] = json.loads(GOLDEN_JSON)
    return value


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), **options)
    return buffer.getvalue()


def entries() -> dict[str, bytes]:
    """The entries of the golden example's npz, to be damaged."""
    with zipfile.ZipFile(io.BytesIO(dump_npz(golden()))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def forge(files: list[tuple[str, bytes]], **lies: dict[str, Any]) -> bytes:
    """A zip whose directory says of an entry what we like.

    Args:
        files: names and contents, deflated where `lies` says so.
        lies: of an entry, by its name without ".npy": method, flags, crc, size (inflated) and
            payload (as it lies in the file).
    """
    body, directory = b"", b""
    for name, content in files:
        lie = lies.get(name.removesuffix(".npy"), {})
        method = lie.get("method", zipfile.ZIP_STORED)
        payload = lie.get("payload", content)
        fields = struct.pack(
            "<HHHHHIIIHH",
            20,
            lie.get("flags", 0),
            method,
            0,
            33,
            lie.get("crc", zlib.crc32(content)),
            len(payload),
            lie.get("size", len(content)),
            len(name),
            0,
        )
        directory += b"PK\1\2" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, len(body))
        directory += name.encode()
        body += b"PK\3\4" + fields + name.encode() + payload
    end = struct.pack("<HHHHIIH", 0, 0, len(files), len(files), len(directory), len(body), 0)
    return body + directory + b"PK\5\6" + end


def zeros_deflated(size: int) -> bytes:
    """A raw deflate stream of `size` zeros, a multiple of 1 MiB, without deflating them all."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflate.compress(bytes(1 << 20))
    deflate.flush(zlib.Z_FULL_FLUSH)
    block = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return block * (size >> 20) + deflate.flush()


def same(a: ImageTokens, b: ImageTokens) -> bool:
    return (
        (a.model, a.image, a.schedule) == (b.model, b.image, b.schedule)
        and all(x.dtype == y.dtype for x, y in zip(a.scales, b.scales, strict=True))
        and all(np.array_equal(x, y) for x, y in zip(a.scales, b.scales, strict=True))
    )


def check_message(text: str) -> None:
    assert text.isprintable(), text
    assert 0 < len(text) <= 200, text


def attempt(reader: Callable[[Any], ImageTokens], data: Any) -> bool:
    """Return True if `data` reads; any error but one clean line fails the test."""
    try:
        tokens = reader(data)
    except TokenFileError as error:
        check_message(str(error))
        return False
    assert all(scale.max() < tokens.model.vocab_size for scale in tokens.scales)
    again = parse_json(dump_json(parse_npz(dump_npz(tokens))))
    assert same(again, tokens), "what was read does not survive being written"
    return True


def refused(reader: Callable[[Any], ImageTokens], data: Any) -> str:
    with pytest.raises(TokenFileError) as caught:
        reader(data)
    check_message(str(caught.value))
    return str(caught.value)


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak:,} bytes at the peak"


META = json.dumps({key: value for key, value in document().items() if key != "scales"})


def read(data: bytes) -> list[Any]:
    return list(iter_tokens(io.BytesIO(data)))


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    grids = st.tuples(st.integers(1, height), st.integers(1, width))
    return (*draw(st.lists(grids, max_size=6)), (height, width))
