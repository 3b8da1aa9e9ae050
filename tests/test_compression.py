"""Compressed token files and tars: written, read, broken, and hostile."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from commands import QUICK, tokens_of
from conftest import Vartok, names, save

import vartok as library
from vartok import compression, optional
from vartok.compression import DecompressionError, compressed, decompressed
from vartok.metadata import ImageInfo, ModelInfo
from vartok.operations.inputs import TOKEN_KINDS, find_inputs
from vartok.token_files import dump_json, dump_npz
from vartok.token_sources import load_tokens, read_tokens
from vartok.token_streams import iter_tokens, read_metadata
from vartok.tokens import ImageTokens

MODEL = ModelInfo(name="m", fingerprint="0" * 64, vocab_size=16)


def item(source: str) -> ImageTokens:
    info = ImageInfo(
        source=source, width=1, height=1, size=(16, 16), fit="crop", zoom=1.0, device="cpu", dtype="float32"
    )
    return ImageTokens((np.ones((1, 1), np.uint16),), MODEL, info)


LINES = "".join(f"{dump_json(item(name))}\n" for name in "ab").encode()


def zstd(data: bytes) -> bytes:
    found: bytes = pyarrow.compress(data, "zstd", asbytes=True)
    return found


@pytest.mark.parametrize("compress", [gzip.compress, zstd, bz2.compress, lzma.compress])
def test_token_files_are_read_compressed(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "x"
    path.write_bytes(compress(LINES))
    assert [found.image.source for found in read_tokens(path)] == ["a", "b"]
    assert [found.image.source for found in read_metadata(path)] == ["a", "b"]
    path.write_bytes(compress(dump_npz(item("a"))))
    assert load_tokens(path) == item("a")
    path.write_bytes(compress(compress(LINES)))
    with pytest.raises(library.TokenFileError, match="x: not a token file"):
        load_tokens(path)


@pytest.mark.parametrize(("suffix", "compress"), [(".bz2", bz2.compress), (".xz", lzma.compress)])
def test_a_search_takes_every_compressed_jsonl_for_a_collection(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"all.tokens.jsonl{suffix}"
    path.write_bytes(compress(LINES))
    (tmp_path / "a.png").touch()
    [found] = find_inputs(tmp_path, TOKEN_KINDS, recursive=True)
    assert found.is_collection
    assert [row.tokens for row in found.rows()] == [item("a"), item("b")]
    assert [picture.place for picture in find_inputs(tmp_path, recursive=True)] == [str(tmp_path / "a.png")]


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_compressed_files_that_are_cut_off_or_hostile(
    monkeypatch: pytest.MonkeyPatch, compress: Callable[[bytes], bytes]
) -> None:
    many = b"".join(f"{dump_json(item(str(i)))}\n".encode() for i in range(2000))
    data = compress(many)
    *found, last = iter_tokens(io.BytesIO(data[: len(data) // 2]))
    assert all(isinstance(image, ImageTokens) for image in found)
    assert "cannot be read to its end: " in str(last)
    monkeypatch.setattr(compression, "FREE_BYTES", 1 << 16)
    monkeypatch.setattr(compression, "MAX_RATIO", 10)
    bomb = compress(bytes(1 << 20))
    stream = decompressed(io.BytesIO(bomb[4:]), bomb[:4])
    assert stream
    with pytest.raises(DecompressionError, match="decompresses to more than 10 times its size"):
        stream.read()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_encode_writes_and_commands_read_compressed_jsonl(
    vartok: Vartok, here: Path, tokenizer: library.Tokenizer, suffix: str
) -> None:
    for name in "ab":
        save(here / f"in/{name}.png", 64, 64)
    vartok("encode", "-r", "in", "-o", "all.jsonl", *QUICK)
    vartok("encode", "-r", "in", "-o", f"all.jsonl{suffix}", *QUICK)
    data = (here / f"all.jsonl{suffix}").read_bytes()
    stream = decompressed(io.BytesIO(data[10:]), data[:10])
    assert stream
    assert stream.read() == (here / "all.jsonl").read_bytes()
    vartok("encode", "-r", "in", "-o", f"all.jsonl{suffix}", *QUICK, "--force")
    assert (here / f"all.jsonl{suffix}").read_bytes() == data
    assert len(tokens_of(data)) == 2
    assert (
        "skipped"
        in vartok("encode", "-r", "in", "-o", f"all.jsonl{suffix}", *QUICK, "--skip-existing").stderr
    )
    vartok("decode", f"all.jsonl{suffix}", "-o", "out")
    assert names(here / "out") == ["a.decoded.png", "b.decoded.png"]
    (here / "sub").mkdir()
    (here / f"all.jsonl{suffix}").rename(here / f"sub/all.jsonl{suffix}")
    assert len(vartok("inspect", "-r", "sub", "--json").stdout.splitlines()) == 2
    assert library.usage.count_usage("sub", tokenizer).images == 2
    assert (
        "by its suffix"
        in vartok("encode", "in/a.png", "-o", f"x.jsonl{suffix}", "--format", "npz", code=2).stderr
    )
    assert "unknown suffix" in vartok("encode", "in/a.png", "-o", f"x{suffix}", code=2).stderr


def test_zstd_without_pyarrow(vartok: Vartok, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "x.jsonl.zst").write_bytes(zstd(LINES))
    save(here / "a.png", 64, 64)
    monkeypatch.setattr(optional, "is_installed", lambda package: False)
    cure = "not installed: pyarrow (needed for zstd): run pip install '.[dataset]' in a clone of vartok"
    assert f"x.jsonl.zst: {cure}" in vartok("decode", "x.jsonl.zst", code=1).stderr
    assert vartok("encode", "a.png", "-o", "y.jsonl.zst", code=1).stderr == f"vartok: {cure}\n"
    assert names(here) == ["a.png", "x.jsonl.zst"]


def test_a_tar_of_zstd_is_read(vartok: Vartok, here: Path) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        archive.add(save(here / "a.png", 64, 64), "k.png")
    (here / "t.tar.zst").write_bytes(zstd(plain.getvalue()))
    vartok("encode", "t.tar.zst", "-o", "out", *QUICK)
    assert names(here / "out") == ["k.tokens.npz"]


def test_equal_data_give_equal_bytes(tmp_path: Path) -> None:
    for suffix in (".gz", ".zst", ".jsonl"):
        found = []
        for number in range(2):
            with open(tmp_path / f"{number}", "wb") as file, compressed(file, f"{number}x{suffix}") as stream:
                stream.write(LINES)
            found.append((tmp_path / f"{number}").read_bytes())
        assert found[0] == found[1]
        assert (found[0] == LINES) == (suffix == ".jsonl")
