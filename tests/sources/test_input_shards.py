"""Sources are grouped into input shards, in one order."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import save
from source_cases import keys, picture, table, tar

from vartok.errors import ImageError, SourceError, VartokError
from vartok.images import Fit
from vartok.sources import Sample, SearchReport, find_input_shards, folder_classes
from vartok.sources.samples import as_unicode


def test_a_folder_is_searched_in_order(here: Path) -> None:
    for name in ("b/2.png", "b/10.jpg", "a.png", "B/x.webp", ".hidden/no.png", ".no.png", "out/no.png"):
        save(Path("photos", name), width=8, height=8)
    Path("photos/notes.md").write_text("no picture")
    tar(Path("photos/z.tar"), [])
    table(Path("photos/b/t.parquet"), image=[b""])
    found = find_input_shards(["photos"], 3, exclude=Path("photos/out"))
    assert [(shard.kind, shard.name) for shard in found] == [
        ("tar", "photos/z.tar"),
        ("table", "photos/b/t.parquet"),
        ("files", "photos/a.png"),
        ("files", "photos/b/2.png"),
    ]
    assert [key for shard in found[2:] for key in keys(shard)] == ["a", "B/x", "b/10", "b/2"]
    assert [len(shard.files) for shard in found[2:]] == [3, 1]
    assert found == find_input_shards(["photos"], 3, exclude=Path("photos/out"))


def test_links_to_folders_are_followed_once(here: Path) -> None:
    save(Path("elsewhere/a.png"), width=8, height=8)
    save(Path("photos/b.png"), width=8, height=8)
    Path("photos/link").symlink_to(Path("elsewhere").resolve())
    Path("photos/link/back").symlink_to(Path("photos").resolve())
    Path("photos/twice").symlink_to(Path("elsewhere").resolve())
    (found,) = find_input_shards(["photos"], 10)
    assert keys(found) == ["b", "link/a"]


def test_named_pipes_are_not_read(here: Path) -> None:
    for name in ("a.tar", "b.parquet", "c.png"):
        os.mkfifo(name)
    shards = find_input_shards(["a.tar", "b.parquet", "c.png"], 10)
    for shard in shards:
        (sample,) = shard.samples()
        failed = sample.with_bytes().picture
        assert isinstance(failed, VartokError)
        assert re.search("a pipe, not a file|not a regular file: a pipe", str(failed))
    Path("list.txt").write_bytes(b"a\0b.png\n")
    (sample,) = find_input_shards(["list.txt"], 10)[0].samples()
    assert isinstance(sample.with_bytes().picture, VartokError)


def test_a_list_names_files_and_urls(here: Path) -> None:
    Path("list.txt").write_text("sub/a.png\n\n/data/b.jpg\n../c.png\ns3://bucket/d.webp\ne.tar\n")
    tars, files = find_input_shards(["list.txt"], 10)
    assert tars.name == "e.tar"
    assert [(sample.key, sample.picture) for sample in files.samples()] == [
        ("sub/a", Path("sub/a.png")),
        ("data/b", Path("/data/b.jpg")),
        ("c", Path("../c.png")),
        ("bucket/d", "s3://bucket/d.webp"),
    ]
    (_, full) = find_input_shards(["list.txt"], 10, full_names=True)
    assert keys(full) == ["sub/a.png", "data/b.jpg", "c.png", "bucket/d.webp"]


def test_samples_are_found_where_they_lie(here: Path) -> None:
    save(here / "photos/a/0.png", width=12, height=9)
    tar(here / "photos/1.tar", [("b/1.png", picture(1))])
    archive, files = find_input_shards(["photos"], 10)
    assert files.find("a/0") == "photos/a/0.png"
    assert archive.find("b/1") == "photos/1.tar: b/1"
    assert archive.find("photos/1.tar") == "photos/1.tar"  # all that follows, where it cannot be read on


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["nope"], "nope: no such file or folder"),
        (["empty"], "no pictures"),
        (["a.tar", "a.tar"], "a.tar is named twice"),
        (["a.tar", "./a.tar"], "./a.tar is named twice"),
        (["a.png", "./a.png"], "is named twice"),
        (["a.png", "a.png"], "a.png is named twice"),
        (["a.png", "a.jpg"], "a.png and a.jpg would have one key, a"),
        (["./a.png", "a.jpg"], "a.jpg would have one key, a"),
        (["one", "two"], "would have one key"),
        (["memory://nothing/here"], "nothing"),
        (["what://nothing"], "what://nothing: cannot be searched"),
        ([], "no pictures"),
    ],
)
def test_sources_that_are_refused(here: Path, sources: list[str], message: str) -> None:
    Path("empty").mkdir()
    for name in ("a.png", "a.jpg", "one/x.png", "two/x.png"):
        save(Path(name), width=8, height=8)
    tar(Path("a.tar"), [])
    with pytest.raises(SourceError, match=message):
        find_input_shards(sources, 10)


@pytest.fixture
def memory() -> Iterator[Any]:
    """A file system that is reached by URL."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_urls_are_searched_and_read(memory: Any, tmp_path: Path) -> None:
    memory.pipe("/bucket/x/b.png", picture(1))
    memory.pipe("/bucket/x/a.png", picture(2))
    memory.pipe("/bucket/x/.no.png", b"")
    memory.pipe("/bucket/x/readme.md", b"")
    data = tar(tmp_path / "t.tar", [("s.png", picture(3)), ("s.cls", b"4")]).read_bytes()
    memory.pipe("/bucket/t-0.tar", data)
    memory.pipe("/bucket/t-1.tar", data[:600])
    memory.pipe("/bucket/list.txt", b"memory://bucket/x/a.png\n")

    first, second, files = find_input_shards(["memory://bucket"], 10)
    assert (first.name, first.size, files.kind) == ("memory:///bucket/t-0.tar", len(data), "files")
    assert keys(files) == ["x/a", "x/b"]
    assert [sample.read(Fit(size=(8, 8))).width for sample in files.samples()] == [12, 12]
    (sample,) = first.samples()
    assert (sample.key, sample.picture, sample.label) == ("s", picture(3), 4)
    (broken,) = second.samples()
    assert isinstance(broken.picture, VartokError)

    found = find_input_shards(["memory://bucket/t-*.tar"], 10)
    assert [shard.name for shard in found] == [first.name, second.name]
    assert find_input_shards(["memory://bucket/t-0.tar"], 10)[0].size is None
    assert keys(find_input_shards(["memory://bucket/list.txt"], 10)[0]) == ["bucket/x/a"]
    memory.rm("/bucket/x/a.png")
    with pytest.raises(ImageError, match="cannot be read"):
        next(files.samples()).read(Fit())


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_a_shard_that_cannot_be_read_is_one_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"junk" * 100)
    (shard,) = find_input_shards([str(path)], 10)
    (failed,) = shard.samples()
    assert failed.key == str(path)
    assert isinstance(failed.picture, ImageError)
    path.unlink()
    (failed,) = shard.samples()
    assert str(failed.picture) == "cannot be read to its end: no such file or folder"


@pytest.mark.parametrize("full_names", [False, True])
def test_names_that_are_not_utf_8_give_keys_that_differ(here: Path, full_names: bool) -> None:
    data = picture()
    for name in (b"caf\xe9.png", b"caf\xe8.png", "na\u00efve.png".encode(), b"\xff/a.png"):
        path = Path("photos", os.fsdecode(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (shard,) = find_input_shards(["photos"], 10, full_names=full_names, folder_labels=True)
    suffix = ".png" if full_names else ""
    assert keys(shard) == [f"{key}{suffix}" for key in ("caf%E8", "caf%E9", "na\u00efve", "%FF/a")]
    assert [sample.read(Fit(size=8)).width for sample in shard.samples()] == [12] * 4
    assert [sample.label for sample in shard.samples()] == [None, None, None, 0]
    assert shard.find(f"caf%E8{suffix}") == "photos/caf%E8.png"
    assert isinstance(shard.identity, str)


def test_a_key_that_is_taken_by_an_encoded_one_is_refused(here: Path) -> None:
    for name in (b"caf\xe9.png", b"caf%E9.png"):
        Path(os.fsdecode(name)).write_bytes(b"")
    with pytest.raises(SourceError, match="would have one key") as caught:
        find_input_shards(["."], 10)
    assert caught.value.hint == "rename one of them"


def test_surrogates_of_every_kind_become_unicode() -> None:
    assert as_unicode("a\udcff\ud800\U0001f600%") == "a%FF%ED%A0%80\U0001f600%"


def test_a_class_folder_keeps_its_number_without_pictures(here: Path) -> None:
    for folder in ("train", "val"):
        for n, name in enumerate(("ant", "bee", "cat")):
            save(Path(folder, name, f"{n}.png"), width=8, height=8)
    Path("val/bee/1.png").rename("val/bee/1.heic")
    Path("val/.hidden").mkdir()
    Path("train/out").mkdir()
    labels = {}
    for folder in ("train", "val"):
        report = SearchReport()
        (shard,) = find_input_shards([folder], 10, folder_labels=True, exclude="train/out", report=report)
        assert folder_classes(shard.files, report) == ["ant", "bee", "cat"]
        labels[folder] = {sample.key: sample.label for sample in shard.samples()}
    assert labels["train"] == {"ant/0": 0, "bee/1": 1, "cat/2": 2}
    assert labels["val"] == {"ant/0": 0, "cat/2": 2}


def test_a_source_may_be_a_path_and_has_a_hint(here: Path) -> None:
    for name in ("a.png", "a.jpg", "one/x.png", "two/x.png"):
        save(Path(name), width=8, height=8)
    with pytest.raises(SourceError) as caught:
        find_input_shards([Path("a.png"), Path("a.jpg")], 10)
    assert "`full_names`" in str(caught.value.hint)
    with pytest.raises(SourceError) as caught:
        find_input_shards(["one", "two"], 10)
    assert "folder above" in str(caught.value.hint)


def test_a_sample_tells_the_bytes_that_it_holds(here: Path) -> None:
    sample = Sample("a", picture())
    assert sample.nbytes == len(picture())
    assert sample.without_bytes().nbytes == Sample("a", Path("a.png")).nbytes == 0
    with pytest.raises(ImageError, match="more than 9 bytes"):
        sample.read(Fit(max_bytes=9))


def test_a_download_has_a_limit_of_bytes(memory: Any) -> None:
    memory.pipe("/a.png", picture())
    sample = Sample("a", "memory://a.png")
    assert sample.read(Fit(size=8, max_bytes=len(picture()))).width == 12
    assert len(sample.file(20)) == 21  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="more than 20 bytes") as caught:
        sample.read(Fit(max_bytes=20))
    assert "`max_bytes`" in str(caught.value.hint)
