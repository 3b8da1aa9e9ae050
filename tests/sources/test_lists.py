"""Lists of paths are read in the encodings that shells write."""

import codecs
import os
from pathlib import Path

import pytest
from commands import QUICK
from conftest import Vartok, names, save

from vartok.errors import SourceError
from vartok.sources import find_files
from vartok.sources.lists import parse_list

NAMES = ["a.png", "sub/é.png", "一\u2028.png"]
MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\0"])
def test_a_list_may_have_a_byte_order_mark(encoding: str, line_break: str) -> None:
    text = line_break.join([*NAMES, "", ""])
    data = MARKS[encoding] + text.encode(encoding)
    assert parse_list(data) == NAMES
    if line_break == "\0":
        assert parse_list(data, null=True) == NAMES


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_needs_no_byte_order_mark(encoding: str) -> None:
    assert parse_list("\r\n".join([*NAMES, ""]).encode(encoding)) == NAMES


def test_a_mark_may_stand_before_every_line() -> None:
    one = codecs.BOM_UTF8 + b"a.png\r\n"  # two lists that were joined
    assert parse_list(one + one.replace(b"a", b"b")) == ["a.png", "b.png"]


def test_names_are_bytes_that_may_end_in_nul() -> None:
    latin1 = os.fsdecode(b"caf\xe9.png")
    assert parse_list(b"caf\xe9.png\nb.png") == [latin1, "b.png"]
    assert parse_list(b"caf\xe9.png\0b\n.png\0") == [latin1, "b\n.png"]
    assert parse_list(b"a\0b\0\r\n") == ["a", "b"]
    assert parse_list(b"a\0\n\0", null=True) == ["a", "\n"]
    assert parse_list(b"") == parse_list(b"\n\r\n") == parse_list(codecs.BOM_UTF16_LE) == []


@pytest.mark.parametrize("data", [codecs.BOM_UTF16_LE + b"a\0b", codecs.BOM_UTF16_LE + b"\0\xd8"])
def test_broken_utf_16_is_refused(vartok: Vartok, here: Path, data: bytes) -> None:
    Path("list.txt").write_bytes(data)
    with pytest.raises(SourceError, match=r"^list\.txt: is not valid UTF-16 text$"):
        find_files("list.txt")
    result = vartok("encode", "--files-from", "list.txt", "-o", "out", code=2)
    assert "list.txt: is not valid UTF-16 text" in " ".join(result.stderr.replace("│", " ").split())


def test_commands_read_a_list_in_utf_16(vartok: Vartok, here: Path) -> None:
    for name in NAMES[:2]:
        save(Path(name))
    data = "\r\n".join([*NAMES[:2], ""]).encode("utf-16")
    Path("list.txt").write_bytes(data)
    assert [file.place for file in find_files("list.txt")] == NAMES[:2]
    vartok("encode", "--files-from", "list.txt", "-o", "one", *QUICK)
    vartok("encode", "--files-from", "-", "-o", "two", *QUICK, stdin=data)
    vartok("encode", "list.txt", "-o", "three", *QUICK)
    assert names(here / "one") == names(here / "two") == names(here / "three")
    assert names(here / "one") == ["a.tokens.npz", "é.tokens.npz"]
