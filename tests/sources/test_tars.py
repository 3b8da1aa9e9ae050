"""Tars are read in samples, whatever breaks in them."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_cases import picture, samples_of, tar

from vartok.errors import ImageError
from vartok.sources import read_tar
from vartok.sources.tars import SIDECARS


def test_a_tar_is_read_in_samples(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar",
        [
            ("README", b"no extension: no sample"),
            ("__index__/0.json", b"{}"),
            ("a/1.jpg", b"one"),
            ("a/1.cls", b"7"),
            ("a/1.txt", "café".encode()),
            ("a/1.json", b'{"x": 1}'),
            ("a/2.left.PNG", b"left"),
            ("a/2.right.png", b"right"),
            ("a/2.mp3", b"noise"),
            ("b.c/3.webp", b"three"),
        ],
    )
    with open(path, "rb") as stream:
        assert [tuple(sample) for sample in read_tar(stream)] == [
            ("a/1", [b"one"], {"cls": b"7", "txt": "café".encode(), "json": b'{"x": 1}'}),
            ("a/2", [b"left", b"right"], {}),
            ("b.c/3", [b"three"], {}),
        ]


def test_a_tar_is_read_as_webdataset_reads_it(tmp_path: Path) -> None:
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for n in range(5):
            writer.write({"__key__": f"x/{n:03}", "png": picture(n), "cls": n, "txt": f"text {n}"})
    with open(tmp_path / "a.tar", "rb") as stream:
        ours = [(s.key, s.pictures[0], s.sidecars["cls"]) for s in read_tar(stream)]
    theirs = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    assert ours == [(s["__key__"], s["png"], s["cls"]) for s in theirs]
    assert len(ours) == 5


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_that_is_cut_gives_whole_samples_and_an_error(tmp_path: Path, mode: str) -> None:
    members = [(f"{n}.{suffix}", bytes([n]) * 700) for n in range(4) for suffix in ("png", "txt")]
    data = tar(tmp_path / "a.tar", members, mode).read_bytes()
    for cut in range(0, len(data), 256 if mode == "w" else 7):
        found, error = [], None
        try:
            for sample in read_tar(io.BytesIO(data[:cut])):
                found.append(sample)
        except ImageError as raised:
            error = raised
        assert all(sample.pictures == [members[2 * n][1]] for n, sample in enumerate(found))
        assert error or len(found) == 4  # what is cut off then is the end mark's padding
        if mode == "w":  # one more is there where a cut between its files hides that it has another
            whole = sum(3072 * n + 1536 + 512 + 700 <= cut for n in range(4))
            assert whole <= len(found) <= whole + 1
            assert error is None or "not a whole tar file" in str(error)


def test_a_broken_header_is_not_the_end_of_a_tar(tmp_path: Path) -> None:
    """TarFile alone would end there without an error."""
    data = bytearray(tar(tmp_path / "a.tar", [(f"{n}.png", b"x") for n in range(4)]).read_bytes())
    data[1024 * 2 + 148 : 1024 * 2 + 156] = b"0000000\0"  # the third header's checksum
    stream = read_tar(io.BytesIO(data))
    assert [next(stream).key, next(stream).key] == ["0", "1"]
    with pytest.raises(ImageError, match="not a whole tar file: bad checksum"):
        next(stream)


def test_too_large_files_in_a_tar_are_not_read(tmp_path: Path) -> None:
    members = [
        ("a.png", b"x" * 101),
        ("a.txt", b"a"),
        ("b.png", b"x" * 100),
        ("b.cls", b"1" * (SIDECARS["cls"] + 1)),
    ]
    first, second = read_tar(io.BytesIO(tar(tmp_path / "a.tar", members).read_bytes()), 100)
    assert str(first.pictures[0]) == "has more than 100 bytes"
    assert isinstance(first.pictures[0], ImageError)
    assert "`max_bytes`" in str(first.pictures[0].hint)
    assert first.sidecars == {"txt": b"a"}
    assert second.pictures == [b"x" * 100]
    assert "its .cls has more than 1,024 bytes" in str(second.sidecars["cls"])


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_long_name_has_its_bounds(kind: bytes) -> None:
    """Without a limit a small compressed tar would fill the memory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        header = tarfile.TarInfo("long")
        header.type, header.size = kind, 1 << 25
        archive.addfile(header, io.BytesIO(b"a" * header.size))
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(ImageError, match="a header of 33,554,432 bytes"):
        list(read_tar(io.BytesIO(buffer.getvalue())))


@given(st.binary(max_size=2000))
def test_junk_is_no_tar(data: bytes) -> None:
    with pytest.raises(ImageError):
        list(read_tar(io.BytesIO(data)))


def test_a_tars_sidecars_are_carried(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar",
        [
            ("a.png", b"a"),
            ("a.cls", b" 12\n"),
            ("a.txt", "né".encode()),
            ("a.json", b'{"k":1}'),
            ("b.png", b"b"),
            ("c.txt", b"alone"),
            ("d.png", b"d"),
            ("d.cls", b"dog"),
            ("e.png", b"e"),
            ("e.txt", b"\xff"),
            ("f\udcff.png", b"f"),
            ("g.png", b"g"),
            ("g.cls", b"-1"),
            ("h.png", b"h"),
            ("h.cls", b"9" * 20),
        ],
    )
    a, b, c, d, e, f, g, h = samples_of(path)
    assert (a.key, a.picture, a.label, a.caption, a.metadata) == ("a", b"a", 12, "né", '{"k":1}')
    assert (b.picture, b.label, b.caption, b.metadata) == (b"b", None, None, None)
    assert str(c.picture) == "the tar has no picture of this name"
    assert str(d.picture) == "its .cls must be a class index, a whole number, not 'dog'"
    assert str(e.picture) == "its .txt is not text in UTF-8"
    assert f.key == "f%FF"
    assert (g.picture, g.label) == (b"g", None)  # as tables say that there is none
    assert str(h.picture) == f"its label is larger than {(1 << 63) - 1:,}"
    reached = [sample.progress for sample in (a, b, c, d, e, f)]
    assert all(share is not None and 0 < share <= 1 for share in reached)
