"""Arrays of tokens: what is read of them, and at which schedule."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Vartok, names
from numpy.typing import NDArray
from token_data import memory_below, npy

import vartok as library
from vartok.errors import TokenFileError, TokensError, VartokWarning
from vartok.flat_tokens import FlatTokens, read_flat_tokens
from vartok.npy import MAGIC, read_npy_header
from vartok.schedule import (
    VAR_256,
    adapt_schedule,
    parse_schedule,
    schedule_of_length,
    square,
    stretch_schedule,
    token_count,
)
from vartok.token_sources import load_tokens, read_tokens
from vartok.usage import count_usage


def read(data: bytes) -> list[Any]:
    found = list(read_flat_tokens(io.BytesIO(data), "s"))
    return [(row.key, row.tokens.tolist()) if isinstance(row, FlatTokens) else str(row) for row in found]


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">u2", "i4", ">i8", "u8"])
def test_any_integers_in_any_order_are_read(dtype: str) -> None:
    rows = np.arange(6, dtype=dtype).reshape(2, 3)
    expected = [("s/00000000", [0, 1, 2]), ("s/00000001", [3, 4, 5])]
    for version in ((1, 0), (2, 0)):
        assert read(npy(rows, version=version)) == read(npy(np.asfortranarray(rows))) == expected
    assert read(npy(rows[1])) == [(None, [3, 4, 5])]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy(np.zeros(3)), "must hold integers, not dtype '<f8'"),
        (npy(np.zeros((1, 2, 3), int)), r"must be [L] or [B, L], not [1, 2, 3]"),
        (npy(np.zeros((2, 0), int)), "holds no tokens"),
        (npy(np.array([{}]), allow_pickle=True), "must hold integers"),
        (npy(np.zeros((2, 3), int))[:-1], "is cut short after 1 image"),
        (npy(np.zeros(3, int)).replace(b"(3,)", b"(3 )"), "cut short"),
        (npy(np.zeros(3, int)).replace(b"(3,)", b"(9999999,)"), "more than 4,194,304"),
        (npy(np.zeros(3, int)).replace(b"(3,)", b"(-3,)"), "its header is damaged"),
        (MAGIC + b"\2\0\xff\xff\xff\xff{", "its header is cut short, or too long"),
        (MAGIC + b"\3\0", "not an npy array of version"),
    ],
)
def test_other_arrays_are_one_error(data: bytes, reason: str) -> None:
    assert reason in read(data)[-1] or reason == "cut short"


def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for shape in (b"(999999, 4000000)", b"(4, 680)"):
        path.write_bytes(npy(np.zeros((3, 680), "u2")).replace(b"(3, 680)", shape))
        with open(path, "rb") as file, memory_below(1 << 20):
            [error] = read_flat_tokens(file, "a")
        assert "bytes of data, but its header states" in str(error)
    for name in ("descr", "shape"):  # nothing in a header is evaluated
        with pytest.raises(ValueError, match="damaged"):
            read_npy_header(io.BytesIO(npy(np.zeros(1, int)).replace(name.encode(), b"x" * len(name))))


@pytest.mark.parametrize("schedule", [VAR_256, parse_schedule("1,2x3,4x6")])
@pytest.mark.parametrize("side", [1, 7, 16, 32, 64])
def test_the_number_of_tokens_tells_the_size(schedule: Any, side: int) -> None:
    for sized in (adapt_schedule(schedule, (side, side)), stretch_schedule(schedule, (side, side))):
        assert schedule_of_length(schedule, token_count(sized)) == sized
    assert schedule_of_length(schedule, token_count(schedule)) == schedule
    assert schedule_of_length(schedule, 10**12) is None
    assert schedule_of_length(schedule, 0) is None


def test_a_length_without_a_schedule_names_both() -> None:
    flat = FlatTokens(None, np.zeros(500, int))
    with pytest.raises(TokensError, match=r"500 tokens, .*,13,16 has 680, and 500 at no other square size"):
        flat.find_schedule(None, VAR_256)
    with pytest.raises(TokensError, match="has 500 tokens, but the schedule 1,2 has 5"):
        flat.find_schedule(square(1, 2), VAR_256)
    assert FlatTokens(None, np.zeros(5, int)).find_schedule(square(1, 2), VAR_256) == square(1, 2)


@pytest.fixture
def arrays(here: Path) -> NDArray[Any]:
    """Tokens [2, 21] of pictures of 64 pixels, in s.npy, and the first in one.npy; too many in bad.npy."""
    tokens = np.random.default_rng(0).integers(0, 4096, (2, 21))
    np.save(here / "s.npy", tokens.astype(np.int32))
    np.save(here / "one.npy", tokens[0])
    np.save(here / "bad.npy", np.zeros((9, 500), int))
    return tokens


def test_decode_arrays(
    vartok: Vartok, here: Path, arrays: NDArray[Any], tokenizer: library.Tokenizer
) -> None:
    result = vartok("decode", "s.npy", "one.npy", "bad.npy", "--schedule", "1,2,4", "-o", "out", code=3)
    assert "bad.npy: has 500 tokens, but the schedule 1,2,4 has 21" in result.stderr
    assert len(result.stderr.splitlines()) == 2  # one line for an array, and the sum
    shown = ["one.decoded.png", "s/00000000.decoded.png", "s/00000001.decoded.png"]
    assert names(here / "out") == shown
    expected = tokenizer.decode(arrays[:1], schedule="1,2,4", as_pil=True)[0]
    assert library.decode_file("one.npy", tokenizer=tokenizer, schedule="1,2,4") == expected
    piped = vartok("decode", "--schedule", "1,2,4", "-o", "-", stdin=(here / "one.npy").read_bytes())
    assert piped.stdout_bytes == (here / "out" / "one.decoded.png").read_bytes()
    np.save(here / "high.npy", np.full(21, 4096))
    assert "outside the vocabulary" in vartok("decode", "high.npy", "--schedule", "1,2,4", code=1).stderr


def test_inspect_arrays(vartok: Vartok, here: Path, arrays: NDArray[Any]) -> None:
    text = vartok("inspect", "s.npy", "--schedule", "1,2,4", "--keys", "s/00000001").stdout
    assert text.splitlines()[1:3] == ["  picture     s/00000001", "  checkpoint  not stated"]
    assert "21 in 3 scales" in text
    result = vartok("inspect", "bad.npy", code=1)
    assert "has 500 tokens" in result.stderr
    assert result.stderr.count("\n") == 1


def test_usage_of_arrays(here: Path, arrays: NDArray[Any], tokenizer: library.Tokenizer) -> None:
    found = count_usage(["s.npy", "bad.npy"], tokenizer, schedule="1,2,4")
    assert (found.images, found.usage.overall.tokens) == (2, 42)
    assert [name for name, _ in found.failures] == ["bad.npy"]
    (here / "t.jsonl").write_bytes(b"{}\n{}\n")
    with pytest.warns(VartokWarning, match="the schedule was not used"):
        list(library.decode_files("t.jsonl", "out", tokenizer=tokenizer, schedule="1,2,4"))


def test_arrays_are_no_token_files(arrays: NDArray[Any], here: Path) -> None:
    for reader in (load_tokens, lambda path: list(read_tokens(path))):
        with pytest.raises(TokenFileError, match=r"one\.npy: is an array without metadata") as error:
            reader("one.npy")
        assert "numpy.load" in str(error.value.hint)
