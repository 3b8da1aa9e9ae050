from __future__ import annotations

import copy
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vartok import tokens as tokens_module
from vartok.errors import ScheduleError, TokenFileError, TokensError
from vartok.schedule import VAR_256, Schedule, square, token_count
from vartok.tokens import ImageInfo, ImageTokens, ModelInfo, TokenMaps, read_tokens, stack, token_dtype

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
    with zipfile.ZipFile(io.BytesIO(golden().to_npz())) as archive:
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
    """Whether `data` reads; any error but one clean line fails the test."""
    try:
        tokens = reader(data)
    except TokenFileError as error:
        check_message(str(error))
        return False
    assert all(scale.max() < tokens.model.vocab_size for scale in tokens.scales)
    again = ImageTokens.from_json(ImageTokens.from_npz(tokens.to_npz()).to_json())
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


# Token maps


def test_flatten_is_coarse_to_fine_and_row_by_row() -> None:
    maps = TokenMaps((torch.tensor([[[7]], [[8]]]), torch.arange(12).view(2, 2, 3)))
    assert len(maps) == 2
    assert maps.schedule == ((1, 1), (2, 3))
    assert maps.flatten().tolist() == [[7, 0, 1, 2, 3, 4, 5], [8, 6, 7, 8, 9, 10, 11]]


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    grids = st.tuples(st.integers(1, height), st.integers(1, width))
    return (*draw(st.lists(grids, max_size=6)), (height, width))


@given(schedules(), st.integers(1, 4), st.sampled_from([torch.int64, torch.int32, torch.uint8]))
def test_unflatten_undoes_flatten(schedule: Schedule, batch: int, dtype: torch.dtype) -> None:
    flat = torch.randint(0, 256, (batch, token_count(schedule))).to(dtype)
    maps = TokenMaps.unflatten(flat, schedule)
    assert maps.schedule == schedule
    assert all(tokens.dtype == torch.int64 for tokens in maps.maps)
    assert torch.equal(maps.flatten(), flat.long())


@pytest.mark.parametrize(
    ("maps", "reason"),
    [
        ((), "1 to 64 grids"),
        ((torch.zeros(2, 3, dtype=torch.int64),), "token map 0: not a 3-d tensor of integers"),
        ((torch.zeros(1, 1, 1),), "integers"),
        ((torch.zeros(1, 1, 1, dtype=torch.bool),), "integers"),
        ((torch.zeros(1, 1, 1, dtype=torch.complex64),), "integers"),
        ((np.zeros((1, 1, 1), np.int64),), "integers"),
        ((torch.zeros(1, 1, 1).long(), torch.zeros(2, 2, 2).long()), "batch sizes differ: 1, 2"),
        ((torch.zeros(1, 2, 2).long(), torch.zeros(1, 1, 3).long()), "larger than the last"),
        ((torch.zeros(1, 0, 2).long(),), "1 to 16384 cells"),
    ],
)
def test_token_maps_check_their_tensors(maps: Any, reason: str) -> None:
    with pytest.raises(TokensError, match=reason):
        TokenMaps(maps)


def test_unflatten_checks_its_arguments() -> None:
    with pytest.raises(TokensError, match="679 tokens, but the schedule has 680 cells"):
        TokenMaps.unflatten(torch.zeros(1, 679).long(), VAR_256)
    with pytest.raises(TokensError, match="2-d"):
        TokenMaps.unflatten(torch.zeros(680).long(), VAR_256)
    with pytest.raises(TokensError, match="integers"):
        TokenMaps.unflatten(torch.zeros(1, 680), VAR_256)
    with pytest.raises(ScheduleError):
        TokenMaps.unflatten(torch.zeros(1, 680).long(), ())


def test_check_vocab() -> None:
    maps = TokenMaps((torch.tensor([[[0, 4095]]]),))
    maps.check_vocab(4096)
    with pytest.raises(TokensError, match="index 4095 is outside the vocabulary of 4095"):
        maps.check_vocab(4095)
    with pytest.raises(TokensError, match="index -3 is outside"):
        TokenMaps((torch.tensor([[[5, -3]]]),)).check_vocab(4096)
    TokenMaps((torch.zeros(0, 1, 1).long(),)).check_vocab(1)


def test_unflatten_and_stack_undo_flatten() -> None:
    maps = TokenMaps.unflatten(torch.randint(0, 4096, (3, 680)), VAR_256)
    rows = maps.flatten().numpy()
    infos = [image_info(source=f"{n}.png") for n in range(3)]
    files = [
        ImageTokens.unflatten(row, VAR_256, model_info(), info) for row, info in zip(rows, infos, strict=True)
    ]
    assert [item.image.source for item in files] == ["0.png", "1.png", "2.png"]
    assert all(item.schedule == VAR_256 for item in files)
    assert np.array_equal(np.stack([item.flatten() for item in files]), rows)
    assert files[0].flatten().dtype == token_dtype(4096) == np.uint16
    assert torch.equal(stack(files).flatten(), maps.flatten())
    assert torch.equal(stack(files[2:]).flatten(), maps.flatten()[2:])
    with pytest.raises(TokensError, match="680 cells"):
        ImageTokens.unflatten(rows[0][1:], VAR_256, model_info(), infos[0])
    with pytest.raises(TokensError, match="outside the vocabulary of 16"):
        ImageTokens.unflatten(rows[0], VAR_256, model_info(16), infos[0])
    with pytest.raises(TokensError, match="one schedule"):
        stack([image_tokens(), image_tokens(square(1, 2))])
    with pytest.raises(TokensError, match="one or more"):
        stack([])


# What files hold


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_dtype_follows_the_vocabulary(vocab_size: int, dtype: type) -> None:
    tokens = ImageTokens((np.array([[vocab_size - 1]]),), model_info(vocab_size), image_info())
    assert tokens.scales[0].dtype == dtype
    assert tokens.scales[0].item() == vocab_size - 1
    with np.load(io.BytesIO(tokens.to_npz()), allow_pickle=False) as archive:
        assert archive["scale_00"].dtype == dtype


def test_tokens_are_a_frozen_copy() -> None:
    array = np.zeros((1, 1), np.uint16)
    tokens = ImageTokens((array,), model_info(), image_info())
    array[0, 0] = 9
    assert tokens.scales[0].item() == 0
    with pytest.raises(ValueError, match="read-only"):
        tokens.scales[0][0, 0] = 1


@pytest.mark.parametrize(
    ("scales", "reason"),
    [
        ((), "1 to 64 grids"),
        ((np.zeros((1, 1)),), "scale 0 is not a 2-d array of integers"),
        ((np.zeros((1, 1), bool),), "integers"),
        ((np.zeros(4, int),), "2-d"),
        (([[1]],), "array"),
        ((np.zeros((0, 1), int),), "cells"),
        (
            (np.zeros((1, 1), int), np.full((1, 1), 4096)),
            "scale 1: index 4096 is outside the vocabulary of 4096",
        ),
        ((np.full((1, 1), -1),), "scale 0: index -1 is outside"),
        ((np.full((1, 1), 1 << 63, np.uint64),), "index 9223372036854775808"),
        ((np.zeros((2049, 2048), np.uint8),), "4196352 tokens: vartok takes up to 4194304"),
    ],
)
def test_tokens_check_their_scales(scales: Any, reason: str) -> None:
    with pytest.raises(TokensError, match=reason):
        ImageTokens(scales, model_info(), image_info())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"source": 7}, "source is a text"),
        ({"source": "x" * 4097}, "source is a text of up to 4096"),
        ({"source": "\ud800.png"}, "source is not Unicode"),
        ({"width": 0}, "width is a whole number"),
        ({"height": True}, "height is a whole number"),
        ({"height": 1 << 25}, "height is a whole number"),
        ({"size": [1, 2, 3]}, r"size is \[height, width\]"),
        ({"size": 16}, r"size is \[height, width\]"),
        ({"size": (16, 1.5)}, "size is a whole number"),
        ({"zoom": 0}, "zoom"),
        ({"zoom": float("nan")}, "zoom"),
        ({"zoom": float("inf")}, "zoom"),
        ({"zoom": True}, "zoom"),
        ({"zoom": "1"}, "zoom"),
    ],
)
def test_image_info_checks_its_values(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(TokensError, match=reason):
        image_info(**changes)


@pytest.mark.parametrize("fingerprint", ["", FINGERPRINT.upper(), FINGERPRINT[1:], FINGERPRINT + "\n", None])
def test_fingerprint_is_64_hex_digits(fingerprint: Any) -> None:
    with pytest.raises(TokensError, match="fingerprint is 64 hex digits"):
        ModelInfo(name="m", fingerprint=fingerprint, vocab_size=1)


# Written and read again


def test_golden_json() -> None:
    assert golden().to_json() == GOLDEN_JSON


@pytest.mark.skipif("ng" in zlib.ZLIB_RUNTIME_VERSION, reason="another zlib deflates to other bytes")
def test_golden_npz() -> None:
    assert hashlib.sha256(golden().to_npz()).hexdigest() == GOLDEN_NPZ


def test_npz_does_not_tell_when_or_where_it_was_written() -> None:
    with zipfile.ZipFile(io.BytesIO(golden().to_npz())) as archive:
        for entry in archive.infolist():
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            assert (entry.create_system, entry.external_attr) == (3, 0o644 << 16)
        names = ["scale_00.npy", "scale_01.npy", "meta.npy"]
        assert [entry.filename for entry in archive.infolist()] == names
        assert [entry.compress_type for entry in archive.infolist()] == [0, 0, 8]
        assert archive.read("scale_01.npy")[-12:] == struct.pack("<6H", 17, 903, 0, 5, 77, 4095)


def test_numpy_reads_our_npz() -> None:
    tokens = image_tokens()
    with np.load(io.BytesIO(tokens.to_npz()), allow_pickle=False) as archive:
        assert sorted(archive.files) == ["meta", *(f"scale_{k:02d}" for k in range(10))]
        for k, scale in enumerate(tokens.scales):
            assert np.array_equal(archive[f"scale_{k:02d}"], scale)
        meta = json.loads(str(archive["meta"]))
    assert meta == {key: value for key, value in json.loads(tokens.to_json()).items() if key != "scales"}


def test_size_of_680_tokens() -> None:
    assert len(image_tokens().to_npz()) < 4300


@given(
    schedules(),
    st.sampled_from([1, 2, 4096, 65_536, 65_537, 1 << 24]),
    st.integers(0, 1 << 32),
    st.text(max_size=20),
    st.floats(0, 1e6, exclude_min=True),
)
def test_round_trips(schedule: Schedule, vocab_size: int, seed: int, source: str, zoom: float) -> None:
    plain = image_tokens(schedule, vocab_size, seed)
    tokens = ImageTokens(plain.scales, plain.model, image_info(source=source, zoom=zoom))
    npz, text = tokens.to_npz(), tokens.to_json()
    assert "\n" not in text
    assert text.isascii()
    assert same(ImageTokens.from_npz(npz), tokens)
    assert same(ImageTokens.from_json(text), tokens)
    assert ImageTokens.from_json(ImageTokens.from_npz(npz).to_json()).to_npz() == npz
    assert ImageTokens.from_npz(ImageTokens.from_json(text.encode()).to_npz()).to_json() == text
    assert [same(item, tokens) for item in read(npz)] == [True]
    assert [same(item, tokens) for item in read(text.encode())] == [True]


def test_longest_metadata_round_trips() -> None:
    longest = "\U0001f600" * 4096  # two escapes of six characters each
    model = ModelInfo(name=longest, fingerprint=FINGERPRINT, vocab_size=1 << 24)
    image = image_info(source=longest, fit=longest, device=longest, dtype=longest)
    tokens = ImageTokens((np.zeros((1, 1), int),) * 64, model, image)
    assert same(ImageTokens.from_npz(tokens.to_npz()), tokens)
    assert same(ImageTokens.from_json(tokens.to_json()), tokens)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["<i8", ">i4", "<u2", ">u2", "<u8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpys_own_npz_reads(save: Callable[..., None], dtype: str, order: Any) -> None:
    tokens = image_tokens(((1, 1), (3, 5), (7, 9)))
    meta = json.dumps({key: value for key, value in json.loads(tokens.to_json()).items() if key != "scales"})
    arrays = {f"scale_{k:02d}": np.array(scale, dtype, order=order) for k, scale in enumerate(tokens.scales)}
    buffer = io.BytesIO()
    save(buffer, meta=np.array(meta), **arrays)
    assert same(ImageTokens.from_npz(buffer.getvalue()), tokens)


def test_json_in_another_layout_reads() -> None:
    value = {"extra": [1.5, None], **dict(reversed(document().items()))}
    value["image"] = {"extra": {}, **value["image"]}
    value["image"]["zoom"] = 1  # a whole number is a number
    for text in (
        json.dumps(value, indent=2),
        json.dumps(value, ensure_ascii=False),
        "\n " + json.dumps(value),
    ):
        tokens = ImageTokens.from_json(text)
        assert tokens.image.zoom == 1.0
        assert tokens.to_json() == GOLDEN_JSON.replace("1.125", "1.0")


# Malformed JSON


def changed(*path: Any, to: Any) -> str:
    value: Any = document()
    node = value
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = to
    return json.dumps(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("[1]", "not a JSON object"),
        ("{}", 'not a token file: its format is not "vartok.tokens"'),
        (GOLDEN_JSON[:200], "cut short"),
        (GOLDEN_JSON + "]", "not JSON"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff\xfe{", "not UTF-8 text"),
        (GOLDEN_JSON.replace("1.125", "NaN"), "NaN is not a number in JSON"),
        (GOLDEN_JSON.replace("1.125", "-Infinity"), "-Infinity is not a number in JSON"),
        (GOLDEN_JSON.replace("1.125", "1e999"), "zoom is a number above 0 and up to a million, not inf"),
        (GOLDEN_JSON.replace("1920", "9" * 5000), "too many digits"),
        (GOLDEN_JSON.replace("1920", "9" * 4000), "width is a whole number from 1 to 16777216, not 99"),
        (GOLDEN_JSON.replace("[[412]]", f"[[{'9' * 4000}]]"), "scale 0: an index outside the vocabulary"),
        (changed("format", to="other"), "not a token file"),
        (changed("version", to=2), "version 2: this vartok reads version 1; upgrade vartok"),
        (changed("version", to=True), "version is a whole number from 1, not True"),
        (changed("version", to=1.0), "version is a whole number from 1, not 1.0"),
        (changed("version", to=0), "version is a whole number"),
        (changed("model", to=[]), "model is not an object"),
        (changed("image", to={}), "image has no source"),
        (changed("model", "vocab_size", to=100), "scale 0: index 412 is outside the vocabulary of 100"),
        (changed("model", "vocab_size", to=0), "vocab_size is a whole number from 1"),
        (changed("image", "source", to="\ud800"), "source is not Unicode"),
        (changed("image", "size", to=[0, 1]), "size is a whole number"),
        (changed("schedule", to=[[1, 1]]), "scales is not a list of 1 grids"),
        (changed("schedule", to=[[2, 3], [1, 1]]), "scale 0 is 2x3: larger than the last"),
        (changed("schedule", 1, to=[3, 2]), "scale 1 is not 3 rows of 2 whole numbers"),
        (changed("schedule", 1, to=[[[]] * 99] * 2), "a grid is a side"),
        (changed("schedule", to="x" * 9999), "a schedule is a list"),
        (changed("schedule", 1, to=[16384, 16384]), "268435457 tokens: vartok takes up to"),
        (changed("scales", to=None), "scales is not a list of 2 grids"),
        (changed("scales", 0, to=[[412], [1]]), "scale 0 is not 1 rows of 1 whole numbers"),
        (changed("scales", 0, to=[[-1]]), "index -1 is outside"),
        (changed("scales", 0, 0, 0, to=True), "whole numbers"),
        (changed("scales", 0, 0, 0, to=1.0), "whole numbers"),
        (changed("scales", 0, 0, 0, to="7"), "whole numbers"),
        (changed("scales", 1, 1, to=[5, 77]), "scale 1 is not 2 rows of 3"),
        (changed("scales", 1, 1, 2, to=4096), "scale 1: index 4096 is outside"),
    ],
)
def test_malformed_json_is_refused(text: str | bytes, reason: str) -> None:
    assert reason in refused(ImageTokens.from_json, text)


def test_missing_keys_are_refused() -> None:
    whole = document()
    for key in ("format", "version", "model", "image", "schedule", "scales"):
        refused(ImageTokens.from_json, json.dumps({k: v for k, v in whole.items() if k != key}))
    for part in ("model", "image"):
        for key in whole[part]:
            text = changed(part, to={k: v for k, v in whole[part].items() if k != key})
            assert refused(ImageTokens.from_json, text) == f"{part} has no {key}"


def test_json_memory_is_in_proportion() -> None:
    rows = "[1]," * 250_000 + "[1]"
    text = GOLDEN_JSON.replace("[[412]]", f"[{rows}]")
    with memory_below(30 * len(text)):
        refused(ImageTokens.from_json, text)
    # Had numpy seen these before their types were checked, each would have had the longest one's room.
    row = json.dumps(["x" * 100_000, *["y"] * 9999])
    text = (
        GOLDEN_JSON.replace("[[412]]", f"[{row}]")
        .replace("[[1,1],", "[[1,10000],")
        .replace("[2,3]", "[2,10000]")
    )
    with memory_below(30 * len(text)):
        assert "whole numbers" in refused(ImageTokens.from_json, text)


# Malformed npz


def with_entry(name: str, content: bytes) -> bytes:
    return forge(list({**entries(), name: content}.items()))


def without(name: str) -> bytes:
    return forge([item for item in entries().items() if item[0] != name])


def npy_raw(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def npy_claim(descr: str, shape: str, data: bytes = b"") -> bytes:
    return npy_raw(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n", data)


META = json.dumps({key: value for key, value in document().items() if key != "scales"})


EXPLODED: list[str] = []


class Explosive:
    def __reduce__(self) -> tuple[Any, ...]:
        return EXPLODED.append, ("a pickle was read",)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an npz, or cut short"),
        (b"PK", "not an npz, or cut short"),
        (golden().to_npz()[:-30], "not an npz, or cut short"),
        (golden().to_npz()[:500], "not an npz, or cut short"),
        (forge([]), "0 entries, meta.npy not among them"),
        (without("meta.npy"), "2 entries, meta.npy not among them"),
        (without("scale_00.npy"), "2 entries, scale_00.npy not among them"),
        (without("scale_01.npy"), "1 scales, but a schedule of 2"),
        (with_entry("evil.py", b""), "4 entries, scale_02.npy not among them"),
        (with_entry("../scale_02.npy", b""), "scale_02.npy not among them"),
        (with_entry("scale_02.npy", npy([[1]])), "2"),
        (forge([*entries().items(), ("scale_00.npy", npy([[1]]))]), "scale_02.npy not among them"),
        (forge([(f"{n}.npy", b"") for n in range(1001)]), "more than a thousand entries"),
        (forge([*entries().items()], scale_00={"flags": 1}), "scale_00.npy is encrypted"),
        (forge([*entries().items()], scale_00={"method": 12}), "scale_00.npy is neither stored nor deflated"),
        (forge([*entries().items()], scale_00={"method": 8}), "scale_00.npy is damaged"),
        (forge([*entries().items()], scale_00={"crc": 1}), "scale_00.npy is damaged"),
        (forge([*entries().items()], scale_00={"flags": 0x40}), "scale_00.npy is damaged"),
        (forge([*entries().items()], scale_00={"size": 131}), "scale_00.npy is damaged"),
        (forge([*entries().items()], scale_00={"size": 129}), "scale_00.npy is damaged"),
        (forge([*entries().items()], scale_00={"size": 1 << 31}), "would inflate to 2147"),
        (forge([*entries().items()], scale_00={"size": 0xFFFFFFFF}), ""),  # zip64, without its field
        (with_entry("scale_00.npy", b""), "scale_00.npy is damaged, or not an npy array"),
        (with_entry("scale_00.npy", b"\x93NUMPY\x09\x00"), "not an npy array"),
        (with_entry("scale_00.npy", npy_raw("{" * 60_000)), "scale_00.npy is 60010 bytes, too many"),
        (with_entry("scale_00.npy", npy_raw("-" * 9000 + "1")), "not an npy array"),
        (with_entry("scale_00.npy", npy_raw("{[]: 1}")), "not an npy array"),
        (with_entry("scale_00.npy", npy_raw("(")), "not an npy array"),
        (with_entry("scale_00.npy", npy_claim("<u2", f"({1 << 40}, {1 << 20})")), "has shape (10995116277"),
        (with_entry("scale_00.npy", npy([[1, 2]])), "has shape (1, 2), not (1, 1)"),
        (with_entry("scale_00.npy", npy([1])), "has shape (1,), not (1, 1)"),
        (with_entry("scale_00.npy", npy([[1.0]])), "holds '<f8'"),
        (with_entry("scale_00.npy", npy([[True]])), "holds '|b1'"),
        (with_entry("scale_00.npy", npy(np.zeros((1, 1), "u2,u2"))), "holds '|V4'"),
        (with_entry("scale_00.npy", npy([[1]], version=(3, 0))), "not an npy array"),
        (with_entry("scale_00.npy", npy([[1]]) + b"\0"), "9 bytes of data"),
        (with_entry("scale_00.npy", npy([[1]])[:-1]), "7 bytes of data"),
        (with_entry("scale_00.npy", npy([[-1]])), "scale 0: index -1 is outside"),
        (with_entry("scale_01.npy", npy(np.full((2, 3), 4096))), "scale 1: index 4096 is outside"),
        (with_entry("scale_00.npy", npy_claim("|O", "(1, 1)", pickle.dumps(Explosive()))), "holds '|O'"),
        (with_entry("meta.npy", npy(np.array(Explosive(), object))), "holds '|O'"),
        (with_entry("meta.npy", npy(np.array(META.encode()))), "holds '|S"),
        (with_entry("meta.npy", npy(np.array([META]))), "meta.npy has shape (1,), not ()"),
        (with_entry("meta.npy", npy(np.array(""))), "empty"),
        (with_entry("meta.npy", npy(np.array("{"))), "not JSON"),
        (with_entry("meta.npy", npy(np.array("[" * 100_000))), "nested too deeply"),
        (with_entry("meta.npy", npy(np.array(META.replace(": 1,", ": 3,")))), "version 3: "),
        (with_entry("meta.npy", npy_claim("<U2", "()", b"\xff" * 8)), "meta.npy is not Unicode text"),
        (with_entry("meta.npy", npy(np.array("\ud800"))), "meta.npy is not Unicode text"),
        (with_entry("meta.npy", npy(np.array(META))[:-4] + b"\0\0\x11\0"), "meta.npy is not Unicode text"),
        (with_entry("meta.npy", npy_claim("<U0", "()")), "empty"),
        (with_entry("meta.npy", npy_claim("<U999999999999", "()")), "meta.npy is damaged"),
        (with_entry("meta.npy", npy(np.array(META + " " * (1 << 18)))), "meta.npy is 1050172 bytes"),
    ],
)  # fmt: skip
def test_malformed_npz_is_refused(data: bytes, reason: str) -> None:
    assert reason in refused(ImageTokens.from_npz, data)
    assert not EXPLODED


def test_forge_makes_zips_that_read() -> None:
    assert same(ImageTokens.from_npz(forge([*entries().items()])), golden())
    for meta in (
        np.array(META).astype(">U999"),
        np.array(META, "<U9999"),
    ):  # the other byte order; NULs at the end
        assert same(ImageTokens.from_npz(with_entry("meta.npy", npy(meta))), golden())
    reordered = forge([*entries().items()][::-1])
    assert same(ImageTokens.from_npz(b"an executable's stub" + reordered), golden())


def test_zip_bombs_do_not_go_off() -> None:
    bomb = zeros_deflated(2 << 30)
    assert zlib.decompressobj(-15).decompress(bomb, 5 << 20) == bytes(5 << 20)
    content = entries()["scale_00.npy"]
    files = [*entries().items()]
    honest = forge(files, scale_00={"method": 8, "payload": bomb, "size": 2 << 30})
    liar = forge(files, scale_00={"method": 8, "payload": bomb})
    modest = forge(files, scale_00={"method": 8, "payload": bomb, "size": 16 * len(bomb)})
    meta = forge(files, meta={"method": 8, "payload": bomb, "size": 16 * len(bomb)})
    with memory_below(4 * len(honest)):
        assert "would inflate to 2147" in refused(ImageTokens.from_npz, honest)
        assert "scale_00.npy is damaged" in refused(ImageTokens.from_npz, liar)
        assert "scale_00.npy is 33" in refused(ImageTokens.from_npz, modest)
        assert "meta.npy is 33" in refused(ImageTokens.from_npz, meta)
    # Where the directory and the checksum agree on the stream's beginning, that is the entry.
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    payload = deflate.compress(content) + deflate.flush(zlib.Z_FULL_FLUSH) + bomb
    with memory_below(4 * len(payload)):
        assert same(ImageTokens.from_npz(forge(files, scale_00={"method": 8, "payload": payload})), golden())


def test_a_huge_directory_is_refused_unread() -> None:
    data = forge([(f"{n}.npy", b"") for n in range(5000)]) * 20
    with memory_below(2 * len(data)):
        assert "thousand" in refused(ImageTokens.from_npz, data)


# Streams


def read(data: bytes) -> list[Any]:
    return list(read_tokens(io.BytesIO(data)))


def outcomes(data: bytes) -> list[str]:
    """Of each part its source or error."""
    return [str(item) if isinstance(item, TokenFileError) else item.image.source for item in read(data)]


def line(source: str) -> bytes:
    return GOLDEN_JSON.replace('caf\\u00e9 \\"1\\".png', source).encode()


def test_jsonl_reads_around_bad_lines() -> None:
    bad = line("b").replace(b'"version":1', b'"version":2')
    data = b"\n".join(
        [line("a"), b"", bad, b"  \t", line("c")[:100], b"\xff", b"[1]", line("d"), b"{}", line("e")]
    )
    assert outcomes(data) == [
        "a",
        "line 3: version 2: this vartok reads version 1; upgrade vartok",
        "line 5: not JSON, or cut short: Invalid control character at (character 101)",
        "line 6: not UTF-8 text",
        "line 7: not a JSON object",
        "d",
        'line 9: not a token file: its format is not "vartok.tokens"',
        "e",
    ]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n \n"])
@pytest.mark.parametrize("last", [b"", b"\n"])
@pytest.mark.parametrize("start", [b"", b"\n", b"\xef\xbb\xbf"])
def test_jsonl_line_ends(start: bytes, end: bytes, last: bytes) -> None:
    assert outcomes(start + end.join([line("a"), line("b"), line("c")]) + last) == ["a", "b", "c"]


def test_jsonl_with_a_first_line_cut_short() -> None:
    assert outcomes(line("a")[:95] + b"\n" + line("b") + b"\n" + line("c"))[1:] == ["b", "c"]
    assert outcomes(line("a")[:95])[0].startswith("not JSON, or cut short")


@pytest.mark.parametrize("indent", [0, 1, 2, "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\r\n\n"])
def test_json_on_several_lines(start: str, indent: Any) -> None:
    text = start + json.dumps(document(), indent=indent, ensure_ascii=False)
    for data in (text, text + "\n\n", text.replace("\n", "\r\n"), text.replace("{\n", "{", 1)):
        assert outcomes(data.encode()) == ['café "1".png']
    assert outcomes(text[:-20].encode())[0].startswith("not JSON, or cut short: ")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a token file: empty"),
        (b"\n \n", "not a token file: empty"),
        (b"\x89PNG\r\n\x1a\n{}\n{}\n", "not a token file: not UTF-8 text"),
        (b"412 17 903\n5 77\n", "not a token file: not JSON"),
        (b'["vartok.tokens"]\n', "not a token file: not a JSON object"),
        ("{}".encode("utf-16"), "not a token file: not UTF-8 text"),
        (b"PK\3\4 and no more", "not an npz, or cut short"),
    ],
)
def test_other_files_are_one_error(data: bytes, reason: str) -> None:
    (outcome,) = outcomes(data)
    assert outcome.startswith(reason)


def test_a_pipe_streams() -> None:
    """The first image of JSONL comes while the second is still to be written."""
    source, sink = os.pipe()
    with os.fdopen(source, "rb") as reader, os.fdopen(sink, "wb", buffering=0) as writer:
        writer.write(line("a") + b"\n")
        items = read_tokens(reader)
        first = next(items)
        writer.write(line("b"))
        writer.close()
        second = next(items)
        assert isinstance(first, ImageTokens)
        assert isinstance(second, ImageTokens)
        assert (first.image.source, second.image.source) == ("a", "b")


@pytest.mark.parametrize(
    "data", [image_tokens(square(1, 300)).to_npz(), json.dumps(document(), indent=1).encode()]
)
def test_a_pipe_carries_npz_and_json(data: bytes) -> None:
    source, sink = os.pipe()

    def write() -> None:
        with os.fdopen(sink, "wb") as writer:
            writer.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(source, "rb") as reader:
        (item,) = read_tokens(reader)
    thread.join()
    assert isinstance(item, ImageTokens)


class Chunks(io.RawIOBase):
    """A stream that never is in memory as a whole."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.chunks = iter(chunks)
        self.rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.rest = self.rest or next(self.chunks, b"")
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count


def stream(*parts: bytes | tuple[bytes, int]) -> BinaryIO:
    """A stream of these parts, of which (part, n) comes n times."""
    repeated = (itertools.repeat(*part) if isinstance(part, tuple) else [part] for part in parts)
    return io.BufferedReader(Chunks(itertools.chain.from_iterable(repeated)))


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "MAX_BYTES", 1 << 20)
    too_long = "larger than 1 MiB"

    def ten_mebibytes_of(byte: bytes) -> tuple[bytes, int]:
        return byte * (1 << 16), 160

    with memory_below(6 << 20):
        items = list(read_tokens(stream(line("a"), b"\n", ten_mebibytes_of(b"x"), b"\n", line("b"))))
        assert [item.image.source for item in items if isinstance(item, ImageTokens)] == ["a", "b"]
        assert str(items[1]) == f"line 2: {too_long}"
        for start in (b"PK\3\4", b"PK\n", b"{", b"{\n", b"{\n\n  "):
            (item,) = read_tokens(stream(start, ten_mebibytes_of(b"x")))
            assert str(item) == too_long
        items = list(read_tokens(stream(b"{", ten_mebibytes_of(b"x"), b"\n", line("b"))))
        assert str(items[0]) == f"line 1: {too_long}"
        (item,) = read_tokens(stream(ten_mebibytes_of(b"\xff")))
        assert str(item) == f"not a token file: {too_long}"
        items = list(
            read_tokens(stream(line("a"), b"\n", ten_mebibytes_of(b" "), line("b"), b"\n", line("c")))
        )
        assert str(items[1]) == f"line 2: {too_long}"
        assert len(items) == 3
    assert refused(ImageTokens.from_npz, bytes(1 << 21)) == too_long


def test_jsonl_memory_is_flat() -> None:
    text = image_tokens().to_json().encode() + b"\n"
    with memory_below(400_000):
        count = sum(1 for _ in read_tokens(stream((text, 500))))
    assert count == 500


def test_no_torch_at_import() -> None:
    code = (
        "import sys, io; from vartok.tokens import read_tokens, ImageTokens; "
        "(t,) = read_tokens(sys.stdin.buffer); t.to_npz(); t.to_json(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], input=GOLDEN_JSON.encode(), check=True, timeout=60)


# Fuzzing: whatever the bytes, tokens or a TokenFileError


NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 2, 1.5, 1 << 16, 1 << 31, 1 << 64, 10**300, 1e308, -0.0, float("nan"),
    "", "1", "vartok.tokens", FINGERPRINT, "\ud800", "\0\n", "x" * 5000, {}, {"a": 1},
    [], [[]], [[[]]], [1], [[1]], [[1, 1]], [1, 2], [[1] * 3] * 2,
]  # fmt: skip


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(5):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(changed):
                changed[at] = rng.choice(b'\0\1\x7f\xff{}[]",:0919-eE.\\u')
            case 2:
                del changed[at : at + rng.choice([1, 4, 50])]
            case 3:
                start = rng.randrange(len(changed) + 1)
                changed[at:at] = changed[start : start + rng.choice([1, 4, 50])]
            case 4 if rng.random() < 0.3:
                del changed[at:]
    return bytes(changed)


def mutate_tree(value: Any, rng: random.Random) -> Any:
    """Replace, delete, double or swap nodes of a JSON value."""
    for _ in range(rng.choice([1, 1, 2])):
        node = value
        while True:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            if not keys:
                break
            key: Any = rng.choice(list(keys))
            child = node[key]
            if isinstance(child, (dict, list)) and child and rng.random() < 0.75:
                node = child
                continue
            match rng.randrange(4):
                case 0:
                    del node[key]
                case 1 if isinstance(node, list):
                    node.insert(key, copy.deepcopy(rng.choice([child, *NASTY])))
                case 2 if isinstance(child, int) and not isinstance(child, bool):
                    node[key] = child + rng.choice([-1, 1, 4096, -4096])
                case _:
                    node[key] = copy.deepcopy(rng.choice(NASTY))
            break
    return value


def mutate_npz(rng: random.Random) -> bytes:
    """Damage an npz: its bytes, or its entries under checksums that are right, or its directory."""
    if rng.random() < 0.4:
        return mutate_bytes(golden().to_npz(), rng)
    files = [*entries().items()]
    lies: dict[str, dict[str, Any]] = {}
    for _ in range(rng.choice([1, 1, 2])):
        at = rng.randrange(len(files))
        name, content = files[at]
        match rng.randrange(6):
            case 0 | 1:
                files[at] = name, mutate_bytes(content, rng)
            case 2:
                value = mutate_tree(json.loads(META), rng)
                files = [(n, npy(np.array(json.dumps(value))) if n == "meta.npy" else c) for n, c in files]
            case 3:
                array = np.zeros(
                    rng.choice([(), (1,), (1, 1), (2, 3), (3, 2), (1, 1, 1)]), rng.choice("bBhHiIqQfdU?M")
                )
                files[at] = name, npy(array)
            case 4:
                lie = rng.choice([0, 1, 8, 9, 64, 130, 2048, 0xFFFF])
                lies[name.removesuffix(".npy")] = {rng.choice(["size", "crc", "flags", "method"]): lie}
            case 5:
                files[rng.randrange(len(files))] = files[at]
    rng.shuffle(files)
    return forge(files, **lies)


def mutate_json(rng: random.Random) -> str | bytes:
    """Damage a JSON object: its text, or its tree."""
    if rng.random() < 0.5:
        return mutate_bytes(GOLDEN_JSON.encode(), rng)
    return json.dumps(mutate_tree(document(), rng), ensure_ascii=rng.random() < 0.5)


@pytest.mark.parametrize(
    ("reader", "mutate"), [(ImageTokens.from_npz, mutate_npz), (ImageTokens.from_json, mutate_json)]
)
def test_fuzz(reader: Callable[[Any], ImageTokens], mutate: Callable[[random.Random], Any]) -> None:
    rng = random.Random(680)
    valid = sum(attempt(reader, mutate(rng)) for _ in range(1500))
    assert 10 < valid < 1200, "the mutations are too harsh or too mild to tell anything"


@settings(max_examples=300)
@given(st.binary(max_size=300), st.sampled_from([b"", b"PK", b"PK\3\4", b"{", b"{}\n", b"{\n"]))
def test_any_stream_ends_in_tokens_or_errors(data: bytes, start: bytes) -> None:
    assert all(isinstance(item, TokenFileError) for item in read(start + data))


def test_mutated_jsonl_keeps_its_good_lines() -> None:
    rng = random.Random(680)
    for _ in range(100):
        broken = mutate_bytes(line("b"), rng).replace(b"\n", b" ")
        results = outcomes(b"\n".join([line("a"), broken, line("c")]))
        assert (results[0], results[-1]) == ("a", "c")
        assert len(results) <= 3
