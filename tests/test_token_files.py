"""Token files of one image: written, read again, and refused where malformed."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from token_data import (
    FINGERPRINT,
    GOLDEN_JSON,
    GOLDEN_NPZ,
    META,
    document,
    entries,
    forge,
    golden,
    image_info,
    image_tokens,
    memory_below,
    npy,
    read,
    refused,
    same,
    schedules,
    zeros_deflated,
)

from vartok.metadata import ModelInfo
from vartok.schedule import Schedule
from vartok.token_files import (
    TokenMetadata,
    dump_json,
    dump_npz,
    json_metadata,
    npz_metadata,
    parse_json,
    parse_npz,
)
from vartok.tokens import ImageTokens

# Written and read again


def test_golden_json() -> None:
    assert dump_json(golden()) == GOLDEN_JSON


@pytest.mark.skipif("ng" in zlib.ZLIB_RUNTIME_VERSION, reason="another zlib deflates to other bytes")
def test_golden_npz() -> None:
    assert hashlib.sha256(dump_npz(golden())).hexdigest() == GOLDEN_NPZ


def test_npz_does_not_tell_when_or_where_it_was_written() -> None:
    with zipfile.ZipFile(io.BytesIO(dump_npz(golden()))) as archive:
        for entry in archive.infolist():
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            assert (entry.create_system, entry.external_attr) == (3, 0o644 << 16)
        names = ["scale_00.npy", "scale_01.npy", "meta.npy"]
        assert [entry.filename for entry in archive.infolist()] == names
        assert [entry.compress_type for entry in archive.infolist()] == [0, 0, 8]
        assert archive.read("scale_01.npy")[-12:] == struct.pack("<6H", 17, 903, 0, 5, 77, 4095)


def test_numpy_reads_our_npz() -> None:
    tokens = image_tokens()
    with np.load(io.BytesIO(dump_npz(tokens)), allow_pickle=False) as archive:
        assert sorted(archive.files) == ["meta", *(f"scale_{k:02d}" for k in range(10))]
        for k, scale in enumerate(tokens.scales):
            assert np.array_equal(archive[f"scale_{k:02d}"], scale)
        meta = json.loads(str(archive["meta"]))
    assert meta == {key: value for key, value in json.loads(dump_json(tokens)).items() if key != "scales"}


def test_size_of_680_tokens() -> None:
    assert len(dump_npz(image_tokens())) < 4300


@given(
    schedules(),
    st.sampled_from([1, 2, 4096, 65_536, 65_537, 1 << 24]),
    st.integers(0, 1 << 32),
    st.text(max_size=20),
    st.floats(0, 1e6, exclude_min=True),
)
def test_round_trips(schedule: Schedule, vocab_size: int, seed: int, source: str, zoom: float) -> None:
    plain = image_tokens(schedule, vocab_size, seed)
    scales = plain.scales[: 1 + seed % len(schedule)]
    tokens = ImageTokens(scales, plain.model, image_info(source=source, zoom=zoom), schedule=schedule)
    npz, text = dump_npz(tokens), dump_json(tokens)
    assert "\n" not in text
    assert text.isascii()
    assert same(parse_npz(npz), tokens)
    assert same(parse_json(text), tokens)
    assert dump_npz(parse_json(dump_json(parse_npz(npz)))) == npz
    assert dump_json(parse_npz(dump_npz(parse_json(text.encode())))) == text
    wanted = TokenMetadata(tokens.model, tokens.image, schedule, len(scales))
    assert npz_metadata(npz) == json_metadata(text) == wanted
    assert [same(item, tokens) for item in read(npz)] == [True]
    assert [same(item, tokens) for item in read(text.encode())] == [True]


def test_longest_metadata_round_trips() -> None:
    longest = "\U0001f600" * 4096  # two escapes of six characters each
    model = ModelInfo(name=longest, fingerprint=FINGERPRINT, vocab_size=1 << 24)
    image = image_info(source=longest, fit=longest, device=longest, dtype=longest, resample=longest[:64])
    tokens = ImageTokens((np.zeros((1, 1), int),) * 64, model, image)
    assert same(parse_npz(dump_npz(tokens)), tokens)
    assert same(parse_json(dump_json(tokens)), tokens)


@pytest.mark.parametrize(
    ("change", "stated"),
    [
        ({"background": (255, 255, 255), "resample": "lanczos"}, ""),
        ({"background": (16, 32, 255)}, ',"background":[16,32,255]'),
        ({"resample": "adm"}, ',"resample":"adm"'),
    ],
)
def test_a_background_and_a_resampling_are_stated_unless_they_are_usual(
    change: dict[str, Any], stated: str
) -> None:
    tokens = replace(image_tokens(((1, 1),)), image=image_info(**change))
    text = dump_json(tokens)
    assert f'"dtype":"float32"{stated}}}' in text
    assert parse_json(text).image == parse_npz(dump_npz(tokens)).image == tokens.image


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["<i8", ">i4", "<u2", ">u2", "<u8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpys_own_npz_reads(save: Callable[..., None], dtype: str, order: Any) -> None:
    tokens = image_tokens(((1, 1), (3, 5), (7, 9)))
    meta = json.dumps({key: value for key, value in json.loads(dump_json(tokens)).items() if key != "scales"})
    arrays = {f"scale_{k:02d}": np.array(scale, dtype, order=order) for k, scale in enumerate(tokens.scales)}
    buffer = io.BytesIO()
    save(buffer, meta=np.array(meta), **arrays)
    assert same(parse_npz(buffer.getvalue()), tokens)


def test_json_in_another_layout_reads() -> None:
    value = {"extra": [1.5, None], **dict(reversed(document().items()))}
    value["image"] = {"extra": {}, **value["image"]}
    value["image"]["zoom"] = 1  # a whole number is a number
    for text in (
        json.dumps(value, indent=2),
        json.dumps(value, ensure_ascii=False),
        "\n " + json.dumps(value),
    ):
        tokens = parse_json(text)
        assert tokens.image.zoom == 1.0
        assert dump_json(tokens) == GOLDEN_JSON.replace("1.125", "1.0")


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
        (GOLDEN_JSON.replace("1.125", "NaN"), "NaN is not a number that JSON allows"),
        (GOLDEN_JSON.replace("1.125", "-Infinity"), "-Infinity is not a number that JSON allows"),
        (GOLDEN_JSON.replace("1.125", "1e999"), "zoom must be a number above 0 and up to a million, not inf"),
        (GOLDEN_JSON.replace("1920", "9" * 5000), "too many digits"),
        (GOLDEN_JSON.replace("1920", "9" * 4000), "width must be a whole number from 1 to 16777216, not 99"),
        (GOLDEN_JSON.replace("[[412]]", f"[[{'9' * 4000}]]"), "scale 1: an index is outside the vocabulary"),
        (changed("format", to="other"), "not a token file"),
        (changed("version", to=2), "version 2, but this vartok reads version 1; upgrade vartok"),
        (changed("version", to=True), "version must be a whole number from 1, not True"),
        (changed("version", to=1.0), "version must be a whole number from 1, not 1.0"),
        (changed("version", to=0), "version must be a whole number"),
        (changed("model", to=[]), "model must be a JSON object"),
        (changed("image", to={}), "image has no source"),
        (changed("model", "vocab_size", to=100), "scale 1: index 412 is outside the vocabulary of 100"),
        (changed("model", "vocab_size", to=0), "vocab_size must be a whole number from 1"),
        (changed("image", "source", to="\ud800"), "source is not valid Unicode"),
        (changed("image", "background", to="white"), "background must be three levels from 0 to 255"),
        (changed("image", "size", to=[0, 1]), "size must be a whole number"),
        (
            changed("schedule", to=[[1, 1]]),
            "scales must be 1 to 1 grids, the first of its schedule, but it has 2",
        ),
        (changed("schedule", to=[[2, 3], [1, 1]]), "scale 1, 2x3, is higher or wider than the last"),
        (changed("schedule", 1, to=[3, 2]), "scale 2 must be 3 rows of 2 whole numbers"),
        (changed("schedule", 1, to=[[[]] * 99] * 2), "a grid must be a side"),
        (changed("schedule", to="x" * 9999), "a schedule must be a list"),
        (changed("schedule", 1, to=[16384, 16384]), "268435457 tokens, but vartok takes up to"),
        (changed("scales", to=None), "scales must be 1 to 2 grids, the first of its schedule, but it has 0"),
        (changed("scales", 0, to=[[412], [1]]), "scale 1 must be 1 rows of 1 whole numbers"),
        (changed("scales", 0, to=[[-1]]), "index -1 is outside"),
        (changed("scales", 0, 0, 0, to=True), "whole numbers"),
        (changed("scales", 0, 0, 0, to=1.0), "whole numbers"),
        (changed("scales", 0, 0, 0, to="7"), "whole numbers"),
        (changed("scales", 1, 1, to=[5, 77]), "scale 2 must be 2 rows of 3"),
        (changed("scales", 1, 1, 2, to=4096), "scale 2: index 4096 is outside"),
    ],
)
def test_malformed_json_is_refused(text: str | bytes, reason: str) -> None:
    assert reason in refused(parse_json, text)


def test_missing_keys_are_refused() -> None:
    whole = document()
    for key in ("format", "version", "model", "image", "schedule", "scales"):
        refused(parse_json, json.dumps({k: v for k, v in whole.items() if k != key}))
    for part in ("model", "image"):
        for key in whole[part]:
            text = changed(part, to={k: v for k, v in whole[part].items() if k != key})
            assert refused(parse_json, text) == f"{part} has no {key}"


def test_json_memory_is_in_proportion() -> None:
    rows = "[1]," * 250_000 + "[1]"
    text = GOLDEN_JSON.replace("[[412]]", f"[{rows}]")
    with memory_below(30 * len(text)):
        refused(parse_json, text)
    # Had numpy seen these before their types were checked, each would have had the longest one's room.
    row = json.dumps(["x" * 100_000, *["y"] * 9999])
    text = (
        GOLDEN_JSON.replace("[[412]]", f"[{row}]")
        .replace("[[1,1],", "[[1,10000],")
        .replace("[2,3]", "[2,10000]")
    )
    with memory_below(30 * len(text)):
        assert "whole numbers" in refused(parse_json, text)


# Malformed npz


def with_entry(name: str, content: bytes) -> bytes:
    return forge(list({**entries(), name: content}.items()))


def without(name: str) -> bytes:
    return forge([item for item in entries().items() if item[0] != name])


def npy_raw(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def npy_claim(descr: str, shape: str, data: bytes = b"") -> bytes:
    return npy_raw(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n", data)


EXPLODED: list[str] = []


class Explosive:
    def __reduce__(self) -> tuple[Any, ...]:
        return EXPLODED.append, ("a pickle was read",)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an npz, or cut short"),
        (b"PK", "not an npz, or cut short"),
        (dump_npz(golden())[:-30], "not an npz, or cut short"),
        (dump_npz(golden())[:500], "not an npz, or cut short"),
        (forge([]), "its 0 entries do not include meta.npy"),
        (without("meta.npy"), "its 2 entries do not include meta.npy"),
        (without("scale_00.npy"), "its 2 entries do not include scale_00.npy"),
        (forge([("meta.npy", npy(META))]), "its scales must be 1 to 2 grids, the first of its schedule"),
        (with_entry("evil.py", b""), "its 4 entries do not include scale_02.npy"),
        (with_entry("../scale_02.npy", b""), "do not include scale_02.npy"),
        (with_entry("scale_02.npy", npy([[1]])), "the first of its schedule, but it has 3"),
        (forge([*entries().items(), ("scale_00.npy", npy([[1]]))]), "do not include scale_02.npy"),
        (forge([(f"{n}.npy", b"") for n in range(1001)]), "more than a thousand entries"),
        (forge([*entries().items()], scale_00={"flags": 1}), "scale_00.npy is encrypted"),
        (forge([*entries().items()], scale_00={"method": 12}), "compressed by another method than deflate"),
        (forge([*entries().items()], scale_00={"method": 8}), "scale_00.npy is damaged"),
        (forge([*entries().items()], scale_00={"crc": 1}), "scale_00.npy is damaged"),
        (forge([*entries().items()], scale_00={"flags": 0x40}), "scale_00.npy is damaged"),
        (forge([*entries().items()], scale_00={"size": 131}), "scale_00.npy is damaged"),
        (forge([*entries().items()], scale_00={"size": 129}), "scale_00.npy is damaged"),
        (forge([*entries().items()], scale_00={"size": 1 << 31}), "would inflate to 2,147"),
        (forge([*entries().items()], scale_00={"size": 0xFFFFFFFF}), ""),  # zip64, without its field
        (with_entry("scale_00.npy", b""), "scale_00.npy is damaged, or not an npy array"),
        (with_entry("scale_00.npy", b"\x93NUMPY\x09\x00"), "not an npy array"),
        (with_entry("scale_00.npy", npy_raw("{" * 60_000)), "has 60,010 bytes, more than its shape needs"),
        (with_entry("scale_00.npy", npy_raw("-" * 9000 + "1")), "not an npy array"),
        (with_entry("scale_00.npy", npy_raw("{[]: 1}")), "not an npy array"),
        (with_entry("scale_00.npy", npy_raw("(")), "not an npy array"),
        (with_entry("scale_00.npy", npy_claim("<u2", f"({1 << 40}, {1 << 20})")), "has shape (10995116277"),
        (with_entry("scale_00.npy", npy([[1, 2]])), "has shape (1, 2), not (1, 1)"),
        (with_entry("scale_00.npy", npy([1])), "has shape (1,), not (1, 1)"),
        (with_entry("scale_00.npy", npy([[1.0]])), "dtype '<f8'"),
        (with_entry("scale_00.npy", npy([[True]])), "dtype '|b1'"),
        (with_entry("scale_00.npy", npy(np.zeros((1, 1), "u2,u2"))), "scale_00.npy is damaged"),
        (with_entry("scale_00.npy", npy([[1]], version=(3, 0))), "not an npy array"),
        (with_entry("scale_00.npy", npy([[1]]) + b"\0"), "9 bytes of data"),
        (with_entry("scale_00.npy", npy([[1]])[:-1]), "7 bytes of data"),
        (with_entry("scale_00.npy", npy([[-1]])), "scale 1: index -1 is outside"),
        (with_entry("scale_01.npy", npy(np.full((2, 3), 4096))), "scale 2: index 4096 is outside"),
        (with_entry("scale_00.npy", npy_claim("|O", "(1, 1)", pickle.dumps(Explosive()))), "dtype '|O'"),
        (with_entry("meta.npy", npy(np.array(Explosive(), object))), "dtype '|O'"),
        (with_entry("meta.npy", npy(np.array(META.encode()))), "dtype '|S"),
        (with_entry("meta.npy", npy(np.array([META]))), "meta.npy has shape (1,), not ()"),
        (with_entry("meta.npy", npy(np.array(""))), "empty"),
        (with_entry("meta.npy", npy(np.array("{"))), "not JSON"),
        (with_entry("meta.npy", npy(np.array("[" * 100_000))), "nested too deeply"),
        (with_entry("meta.npy", npy(np.array(META.replace(": 1,", ": 3,")))), "version 3, "),
        (with_entry("meta.npy", npy_claim("<U2", "()", b"\xff" * 8)), "meta.npy is not Unicode text"),
        (with_entry("meta.npy", npy(np.array("\ud800"))), "meta.npy is not Unicode text"),
        (with_entry("meta.npy", npy(np.array(META))[:-4] + b"\0\0\x11\0"), "meta.npy is not Unicode text"),
        (with_entry("meta.npy", npy_claim("<U0", "()")), "empty"),
        (with_entry("meta.npy", npy_claim("<U999999999999", "()")), "meta.npy is damaged"),
        (with_entry("meta.npy", npy(np.array(META + " " * (1 << 18)))), "meta.npy has 1,050,172 bytes"),
    ],
)  # fmt: skip
def test_malformed_npz_is_refused(data: bytes, reason: str) -> None:
    assert reason in refused(parse_npz, data)
    assert not EXPLODED


def test_forge_makes_zips_that_read() -> None:
    assert same(parse_npz(forge([*entries().items()])), golden())
    for meta in (
        np.array(META).astype(">U999"),
        np.array(META, "<U9999"),
    ):  # the other byte order; NULs at the end
        assert same(parse_npz(with_entry("meta.npy", npy(meta))), golden())
    reordered = forge([*entries().items()][::-1])
    assert same(parse_npz(b"an executable's stub" + reordered), golden())


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
        assert "would inflate to 2,147" in refused(parse_npz, honest)
        assert "scale_00.npy is damaged" in refused(parse_npz, liar)
        assert "scale_00.npy has 33" in refused(parse_npz, modest)
        assert "meta.npy has 33" in refused(parse_npz, meta)
    # Where the directory and the checksum agree on the stream's beginning, that is the entry.
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    payload = deflate.compress(content) + deflate.flush(zlib.Z_FULL_FLUSH) + bomb
    with memory_below(4 * len(payload)):
        assert same(parse_npz(forge(files, scale_00={"method": 8, "payload": payload})), golden())


def test_a_huge_directory_is_refused_unread() -> None:
    data = forge([(f"{n}.npy", b"") for n in range(5000)]) * 20
    with memory_below(2 * len(data)):
        assert "thousand" in refused(parse_npz, data)
