"""Tars are read in samples, whatever breaks in them."""

import bz2
import gzip
import io
import lzma
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_cases import picture, pictures_alone, samples_of, tar

from vartok.errors import ImageError
from vartok.sources import read_tar
from vartok.sources.passed_over import ALONE, FURTHER, HIDDEN
from vartok.sources.tars import SIDECARS, read_tar_samples


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
    a, b, d, e, f, g, h = samples_of(path)
    assert (a.key, a.picture, a.label, a.caption, a.metadata) == ("a", b"a", 12, "né", '{"k":1}')
    assert (b.picture, b.label, b.caption, b.metadata) == (b"b", None, None, None)
    assert str(d.picture) == "its .cls must be a class index, a whole number, not 'dog'"
    assert str(e.picture) == "its .txt is not text in UTF-8"
    assert f.key == "f%FF"
    assert (g.picture, g.label) == (b"g", None)  # as tables say that there is none
    assert str(h.picture) == f"its label is larger than {(1 << 63) - 1:,}"
    assert [sample.picture for sample in pictures_alone(path)] == [b"a", b"b", b"d", b"e", b"f", b"g", b"h"]
    reached = [sample.progress for sample in (a, b, d, e, f)]
    assert all(share is not None and 0 < share <= 1 for share in reached)


def pictures_of(data: bytes) -> dict[str, list[bytes | ImageError]]:
    return {sample.key: sample.pictures for sample in read_tar(io.BytesIO(data))}


def as_it_is(data: bytes) -> bytes:
    return data


@pytest.mark.parametrize("compress", [as_it_is, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("padding", [0, 512, 100_352])
def test_joined_tars_are_all_read(tmp_path: Path, compress: Callable[[bytes], bytes], padding: int) -> None:
    first = tar(tmp_path / "a.tar", [("1.png", b"one"), ("2.png", b"two")]).read_bytes()
    second = tar(tmp_path / "b.tar", [("2.png", b"too"), ("3.png", b"three")]).read_bytes()
    for data in (
        compress(first + bytes(padding) + second),
        compress(first + bytes(padding)) + compress(second),
    ):
        found = [(sample.key, sample.pictures) for sample in read_tar(io.BytesIO(data))]
        assert found == [("1", [b"one"]), ("2", [b"two"]), ("2", [b"too"]), ("3", [b"three"])]


@pytest.mark.parametrize("compress", [as_it_is, gzip.compress, bz2.compress, lzma.compress])
def test_other_data_after_the_end_of_a_tar_is_an_error(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    data = tar(tmp_path / "a.tar", [("1.png", b"one")]).read_bytes()
    for bad in (compress(data) + b"x" * 700, compress(data + b"x" * 700)):
        stream = read_tar(io.BytesIO(bad))
        assert next(stream).key == "1"
        with pytest.raises(ImageError, match="not a whole tar file: data after its end"):
            next(stream)
    assert list(pictures_of(compress(data) + bytes(40))) == ["1"]  # zeros are padding


def add_link(archive: tarfile.TarFile, name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> None:
    link = tarfile.TarInfo(name)
    link.type, link.linkname = kind, target
    archive.addfile(link)


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_link_is_read_as_its_target(mode: str) -> None:
    """GNU tar writes a link for the second name of a file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        add(archive, "./x/1.png", b"one")
        add(archive, "./x/1.txt", b"text")
        add_link(archive, "./y/2.png", "./x/1.png")
        add_link(archive, "./y/2.txt", "x/1.txt")
        add_link(archive, "y/3.png", "../x/1.png", tarfile.SYMTYPE)
        add_link(archive, "y/4.png", "y/2.png")
        add_link(archive, "y/5.png", "z/nowhere.png")
        add(archive, "y/6.png", b"six")
    found = list(read_tar(io.BytesIO(buffer.getvalue())))
    assert [sample.key for sample in found] == ["./x/1", "./y/2", "y/3", "y/4", "y/5", "y/6"]
    assert [sample.pictures[0] for sample in found[:4]] == [b"one"] * 4
    assert found[1].sidecars == {"txt": b"text"}
    assert str(found[4].pictures[0]) == "is a link to z/nowhere.png, which is not in the tar before it"
    assert found[5].pictures == [b"six"]


def test_a_link_to_a_too_large_file_is_not_read() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        add(archive, "1.png", b"x" * 101)
        add_link(archive, "2.png", "1.png")
    found = list(read_tar(io.BytesIO(buffer.getvalue()), 100))
    assert [str(sample.pictures[0]) for sample in found] == ["has more than 100 bytes"] * 2


def test_hidden_files_in_a_tar_are_passed_over_as_in_folders(tmp_path: Path) -> None:
    names = ("a/._1.png", "a/1.png", "a/.DS_Store", ".cache/2.png", "./3.png", "__MACOSX/._3.png", ".4.png")
    path = tar(tmp_path / "a.tar", [(name, b"x") for name in names])
    passed_over = Counter[str]()
    assert [sample.key for sample in read_tar_samples(str(path), passed_over=passed_over)] == ["a/1", "./3"]
    assert +passed_over == {HIDDEN: 5}


def keys_of(path: Path) -> list[tuple[str, object, str | None]]:
    return [(sample.key, sample.picture, sample.caption) for sample in samples_of(path)]


def test_names_with_dots_are_samples_of_their_own(tmp_path: Path) -> None:
    members = [
        ("trip 2024.01.01.png", b"1"),
        ("trip 2024.01.01.txt", b"one"),
        ("trip 2024.01.02.png", b"2"),
        ("trip 2024.01.02.txt", b"two"),
        ("v1.5.png", b"3"),
        ("v1.5.txt", b"three"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert keys_of(tar(tmp_path / "a.tar", members)) == [
            ("trip 2024.01.01", b"1", "one"),
            ("trip 2024.01.02", b"2", "two"),
            ("v1", b"3", "three"),  # WebDataset's key
        ]


def test_many_names_with_dots_are_not_held_in_memory(tmp_path: Path) -> None:
    members = [(f"a.{n:04}.{suffix}", b"%d" % n) for n in range(700) for suffix in ("txt", "png")]
    whole = tar(tmp_path / "a.tar", members)
    assert keys_of(whole) == [(f"a.{n:04}", b"%d" % n, str(n)) for n in range(700)]
    stream = open(whole, "rb")  # noqa: SIM115
    samples = read_tar(stream)
    assert next(samples).key == "a.0000"
    assert stream.tell() < 500_000
    stream.close()


@pytest.mark.parametrize(
    ("names", "others"),
    [
        (("a.png", "a.left.png", "a.right.png"), {}),
        (("a.left.png", "a.mid.png", "a.right.png", "a.json"), {}),
        (("a.left.png", "a.mid.png", "a.mid.txt", "a.right.png", "a.meta.npy"), {".npy": 1, ALONE: 1}),
        (("a.png", "a.jpg", "a.png", "b.heic", "b.txt", "c.cls", "__meta__/c.json"), {".heic": 1, ALONE: 2}),
        (("LICENSE", "b.JXL", "c.jxl", "a.png", "a.jpg", "a.gif", "d.mp4/e"), {"": 2, ".jxl": 2}),
        (("d.01.txt", "a.1.png", "a.png", "a.2.png", "d.2.txt"), {ALONE: 2}),
    ],
)
def test_what_is_passed_over_in_a_tar_is_counted(
    tmp_path: Path, names: tuple[str, ...], others: dict[str, int]
) -> None:
    path = tar(tmp_path / "a.tar", [(name, name.encode()) for name in names])
    passed_over = Counter[str]()
    (sample,) = read_tar_samples(str(path), passed_over=passed_over)
    assert (sample.key, sample.picture) == ("a", next(name.encode() for name in names if name[:2] == "a."))
    assert +passed_over == {FURTHER: 2, **others}


def test_names_with_dots_and_no_picture_are_counted_too(tmp_path: Path) -> None:
    members = [(f"a.{n:04}.{suffix}", b"1") for n in range(300) for suffix in ("txt", "png")]
    path = tar(tmp_path / "a.tar", [*members, ("a.x.txt", b"alone")])
    passed_over = Counter[str]()
    assert len(list(read_tar_samples(str(path), passed_over=passed_over))) == 300
    assert +passed_over == {ALONE: 1}


def test_a_tar_of_files_without_pictures_is_an_error(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("README", b"none"), ("dir/LICENSE", b"none")])
    (only,) = samples_of(path)
    assert str(only.picture) == "holds 2 members, but no pictures"
    assert only.final
    assert samples_of(tar(tmp_path / "empty.tar", [])) == []


def test_the_files_of_a_sample_are_bounded_together(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [(f"a.{n}.png", b"x" * 100) for n in range(6)] + [("a.txt", b"tied")])
    with open(path, "rb") as stream:
        found = list(read_tar(stream, 100))
    held = [content for sample in found for content in sample.pictures]
    assert held.count(b"x" * 100) == 6  # divided after twice the limit
    path = tar(tmp_path / "b.tar", [("a.txt", b"tied")] + [(f"a.{n}.png", b"x" * 100) for n in range(6)])
    with open(path, "rb") as stream:
        (sample,) = read_tar(stream, 100)
    assert [isinstance(content, bytes) for content in sample.pictures] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *((".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz"), (".tar.bz2", "w:bz2"), (".tbz2", "w:bz2")),
        *((".tbz", "w:bz2"), (".tar.xz", "w:xz"), (".txz", "w:xz")),
    ],
)
def test_a_compressed_tar_is_found_by_its_suffix(tmp_path: Path, suffix: str, mode: str) -> None:
    tar(tmp_path / f"a{suffix}", [("1.png", b"one")], mode)
    assert [(sample.key, sample.picture) for sample in samples_of(tmp_path)] == [("1", b"one")]
