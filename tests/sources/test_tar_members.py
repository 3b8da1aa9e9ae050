"""Sizes in a tar's headers are never trusted, and its members are read in bounded time and memory."""

import bz2
import gzip
import io
import lzma
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vartok.errors import ImageError, printable
from vartok.sources import read_tar
from vartok.sources.tars import TarSample


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < 20


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytearray:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return bytearray(info.tobuf(tarfile.GNU_FORMAT))


def with_checksum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def file(name: str, data: bytes) -> bytes:
    return bytes(header(name, len(data))) + padded(data)


def pax(*records: tuple[str, str]) -> bytes:
    data = b""
    for name, value in records:
        body = f" {name}={value}\n".encode()
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length += 1
        data += str(length).encode() + body
    return bytes(header("pax", len(data), tarfile.XHDTYPE)) + padded(data)


END = bytes(1024)


def read(data: bytes) -> list[TarSample]:
    return list(read_tar(io.BytesIO(data)))


def read_until_error(tmp_path: Path, data: bytes) -> tuple[list[str], str]:
    (tmp_path / "a.tar").write_bytes(data)
    keys, text = [], ""
    with open(tmp_path / "a.tar", "rb") as stream:
        try:
            for sample in read_tar(stream):
                keys.append(sample.key)
        except ImageError as error:
            text = str(error)
    return keys, text


@pytest.mark.parametrize("size", [1 << 33, 10**18, 1 << 80])
@pytest.mark.parametrize("name", ["b.png", "b.mp4"])
def test_a_size_beyond_the_end_of_the_file_is_an_error(tmp_path: Path, size: int, name: str) -> None:
    data = file("a.png", b"one") + bytes(header(name, size)) + b"x" * 5000
    keys, text = read_until_error(tmp_path, data)
    assert keys[0] == "a"
    assert text == "is not a whole tar file: unexpected end of data"
    with pytest.raises(ImageError, match="unexpected end of data"):
        read(gzip.compress(data))


@pytest.mark.parametrize("size", [str(10**18), "1" * 5000, "-1", "1e9", ""])
def test_a_size_in_a_pax_header_is_checked(tmp_path: Path, size: str) -> None:
    data = file("a.png", b"one") + pax(("size", size)) + file("b.png", b"two") + END
    keys, text = read_until_error(tmp_path, data)
    assert keys[0] == "a"
    assert text.startswith("is not a whole tar file: ")


def test_a_pax_header_gives_name_and_size() -> None:
    data = pax(("comment", "c" * 3000), ("path", "é" * 300 + ".png"), ("size", "3"))
    data += bytes(header("short", 0)) + padded(b"one") + file("b.png", b"two") + END
    assert [(sample.key, sample.pictures) for sample in read(data)] == [
        ("é" * 300, [b"one"]),
        ("b", [b"two"]),
    ]


@pytest.mark.parametrize(
    "content", [b"1" * (1 << 20), b"1 " * (1 << 19), b"9 a=\n" * 200_000, b"5 =\n\n" * 200_000]
)
def test_a_pax_header_is_parsed_in_linear_time(content: bytes) -> None:
    data = bytes(header("pax", len(content), tarfile.XHDTYPE)) + padded(content) + file("a.png", b"x") + END
    with pytest.raises(ImageError, match="not a whole tar file: "):
        read(data + bytes(header("pax", 3, tarfile.XHDTYPE)))


def test_many_extended_headers_in_a_row_do_not_overflow_the_stack() -> None:
    long_name = bytes(header("././@LongLink", 6, tarfile.GNUTYPE_LONGNAME)) + padded(b"b.png\0")
    assert [sample.key for sample in read(long_name * 3000 + file("a.png", b"x") + END)] == ["b"]


def sparse(name: str, stored: bytes, extents: list[tuple[int, int]], size: int, more: bytes = b"") -> bytes:
    block = header(name, len(stored), tarfile.GNUTYPE_SPARSE)
    block[345:512] = bytes(167)
    for n, (offset, length) in enumerate(extents):
        block[386 + 24 * n : 410 + 24 * n] = b"%011o\0%011o\0" % (offset, length)
    block[482] = bool(more)
    block[483:495] = b"%011o\0" % size
    return with_checksum(block) + more + padded(stored)


EXTENTS = [(512, 512), (2048, 512), (3000, 0)]
STORED = b"a" * 512 + b"b" * 512
CONTENT = bytes(512) + b"a" * 512 + bytes(1024) + b"b" * 512 + bytes(440)
FLAT = ",".join(f"{offset},{size}" for offset, size in EXTENTS)
MAP = padded("".join(f"{n}\n" for n in (3, *(n for pair in EXTENTS for n in pair))).encode())


@pytest.mark.parametrize(
    "member",
    [
        sparse("a.png", STORED, EXTENTS, 3000),
        pax(("GNU.sparse.size", "3000"), ("GNU.sparse.map", FLAT), ("GNU.sparse.name", "a.png"))
        + file("GNUSparseFile.1/x", STORED),
        pax(
            ("GNU.sparse.size", "3000"),
            *(
                (f"GNU.sparse.{key}", str(value))
                for pair in EXTENTS
                for key, value in zip(("offset", "numbytes"), pair, strict=True)
            ),
        )
        + file("a.png", STORED),
        pax(
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "a.png"),
            ("GNU.sparse.realsize", "3000"),
        )
        + file("GNUSparseFile.1/x", MAP + STORED),
    ],
    ids=["gnu", "0.1", "0.0", "1.0"],
)
def test_sparse_files_are_read_as_by_tarfile(member: bytes) -> None:
    data = member + file("b.png", b"two") + END
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        content = archive.extractfile("a.png")
        assert content is not None
        assert content.read() == CONTENT
    assert [(sample.key, sample.pictures) for sample in read(data)] == [("a", [CONTENT]), ("b", [b"two"])]


def test_a_sparse_file_of_many_extents_takes_no_memory() -> None:
    extension = bytearray(b"%011o\0%011o\0" % (1, 1) * 21 + b"\1" + bytes(7))
    more = bytes(extension) * 5_000 + bytes(512)
    data = sparse("a.png", b"", [(0, 0)] * 4, 1 << 20, more) + file("b.png", b"two") + END
    tracemalloc.start()
    try:
        first, second = read(gzip.compress(data))
        assert tracemalloc.get_traced_memory()[1] < 15 << 20
    finally:
        tracemalloc.stop()
    assert str(first.pictures[0]) == "is a sparse file that is broken"
    assert second.pictures == [b"two"]


@pytest.mark.parametrize("extents", [[(0, 4096)], [(512, 512), (0, 512)], [(2900, 512)]])
def test_extents_outside_a_sparse_file_cost_one_picture(extents: list[tuple[int, int]]) -> None:
    first, second = read(sparse("a.png", STORED, extents, 3000) + file("b.png", b"two") + END)
    assert str(first.pictures[0]) == "is a sparse file that is broken"
    assert second.pictures == [b"two"]


def test_a_sparse_file_larger_than_the_limit_is_not_read() -> None:
    first, second = read(sparse("a.png", b"", [], (1 << 33) - 1) + file("b.png", b"two") + END)
    assert "has more than" in str(first.pictures[0])
    assert second.pictures == [b"two"]


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress])
def test_a_bomb_is_not_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch, compress: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr("vartok.compression.FREE_BYTES", 1 << 20)
    data = compress(file("a.png", b"one") + bytes(header("b.mp4", 8 << 20)) + bytes(8 << 20) + END)
    with pytest.raises(ImageError, match="its data decompresses to more than 2,000 times its size"):
        read(data)


def test_a_compressed_tar_is_decompressed_in_small_parts() -> None:
    """Ten kilobytes of bzip2 may hold gigabytes."""
    data = bz2.compress(bytes(header("b.mp4", 16 << 20)) + bytes(16 << 20) + file("a.png", b"one") + END)
    tracemalloc.start()
    try:
        assert [sample.key for sample in read(data)] == ["a"]
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()


def test_long_names_are_read_in_linear_time_and_shortened_in_messages() -> None:
    name = "a/" * 100_000 + "b.png"
    data = bytes(header("././@LongLink", len(name) + 1, tarfile.GNUTYPE_LONGNAME))
    data += padded(name.encode() + b"\0") + file("short", b"one") + END
    (sample,) = read(data)
    assert sample.key == name[:-4]
    assert len(printable(sample.key)) == 1000
    assert printable(sample.key).startswith("a/a/")
    assert printable(sample.key).endswith("/a/b")
    assert "..." in printable(sample.key)
