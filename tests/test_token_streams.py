"""Streams of token files: JSONL, pipes, limits, and arbitrary bytes."""

from __future__ import annotations

import copy
import io
import itertools
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_data import (
    FINGERPRINT,
    GOLDEN_JSON,
    META,
    attempt,
    document,
    entries,
    forge,
    golden,
    image_tokens,
    memory_below,
    npy,
    read,
    refused,
)

from vartok import token_files
from vartok.errors import TokenFileError
from vartok.schedule import square
from vartok.token_files import dump_json, dump_npz, parse_json, parse_npz
from vartok.token_streams import iter_tokens
from vartok.tokens import ImageTokens

# Streams


def outcomes(data: bytes) -> list[str]:
    """Return the source of every image, or the error in its place."""
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
        "line 3: it has version 2, but this vartok reads version 1; upgrade vartok",
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
        (b"", "not a token file: it is empty"),
        (b"\n \n", "not a token file: it is empty"),
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
        items = iter_tokens(reader)
        first = next(items)
        writer.write(line("b"))
        writer.close()
        second = next(items)
        assert isinstance(first, ImageTokens)
        assert isinstance(second, ImageTokens)
        assert (first.image.source, second.image.source) == ("a", "b")


@pytest.mark.parametrize(
    "data", [dump_npz(image_tokens(square(1, 300))), json.dumps(document(), indent=1).encode()]
)
def test_a_pipe_carries_npz_and_json(data: bytes) -> None:
    source, sink = os.pipe()

    def write() -> None:
        with os.fdopen(sink, "wb") as writer:
            writer.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(source, "rb") as reader:
        (item,) = iter_tokens(reader)
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
    monkeypatch.setattr(token_files, "MAX_DOCUMENT_BYTES", 1 << 20)
    too_long = "it is larger than 1 MiB, the limit for one image"

    def ten_mebibytes_of(byte: bytes) -> tuple[bytes, int]:
        return byte * (1 << 16), 160

    with memory_below(6 << 20):
        items = list(iter_tokens(stream(line("a"), b"\n", ten_mebibytes_of(b"x"), b"\n", line("b"))))
        assert [item.image.source for item in items if isinstance(item, ImageTokens)] == ["a", "b"]
        assert str(items[1]) == f"line 2: {too_long}"
        for start in (b"PK\3\4", b"PK\n", b"{", b"{\n", b"{\n\n  "):
            (item,) = iter_tokens(stream(start, ten_mebibytes_of(b"x")))
            assert str(item) == too_long
        items = list(iter_tokens(stream(b"{", ten_mebibytes_of(b"x"), b"\n", line("b"))))
        assert str(items[0]) == f"line 1: {too_long}"
        (item,) = iter_tokens(stream(ten_mebibytes_of(b"\xff")))
        assert str(item) == f"not a token file: {too_long}"
        items = list(
            iter_tokens(stream(line("a"), b"\n", ten_mebibytes_of(b" "), line("b"), b"\n", line("c")))
        )
        assert str(items[1]) == f"line 2: {too_long}"
        assert len(items) == 3
    assert refused(parse_npz, bytes(1 << 21)) == too_long


@pytest.mark.slow
def test_jsonl_memory_is_flat() -> None:
    text = dump_json(image_tokens()).encode() + b"\n"
    with memory_below(400_000):
        count = sum(1 for _ in iter_tokens(stream((text, 500))))
    assert count == 500


def test_no_torch_at_import() -> None:
    code = (
        "import sys; from vartok.token_files import dump_json, dump_npz; "
        "from vartok.token_streams import iter_tokens; "
        "(t,) = iter_tokens(sys.stdin.buffer); dump_npz(t); dump_json(t); sys.exit('torch' in sys.modules)"
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
        return mutate_bytes(dump_npz(golden()), rng)
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


@pytest.mark.parametrize(("reader", "mutate"), [(parse_npz, mutate_npz), (parse_json, mutate_json)])
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
