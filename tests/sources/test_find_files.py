"""One walker lists the files of a source."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
from commands import QUICK
from conftest import Vartok, names, save
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from source_cases import table

from vartok.errors import SourceError, VartokWarning
from vartok.sources import FoundFile, SearchReport, find_files, find_input_shards
from vartok.train.data import Pictures, StreamPosition
from vartok.train.settings import DataSettings


def test_kinds_are_told_by_suffixes_and_only_the_wanted_ones_returned(here: Path) -> None:
    files = [
        "a.png",
        "b.TAR",
        "c.tgz",
        "d.parquet",
        "d.pq",
        "d.arrow",
        "d.FEATHER",
        "e.tokens.json",
        "f.md",
        "g.tar.xz",
        "sub/h.JPG",
    ]
    for name in files:
        Path("all", name).parent.mkdir(parents=True, exist_ok=True)
        Path("all", name).write_bytes(b"12")
    assert find_files("all") == [
        FoundFile("a.png", "all/a.png", "picture"),
        FoundFile("b.TAR", "all/b.TAR", "tar", 2),
        FoundFile("c.tgz", "all/c.tgz", "tar", 2),
        FoundFile("d.FEATHER", "all/d.FEATHER", "table", 2),
        FoundFile("d.arrow", "all/d.arrow", "table", 2),
        FoundFile("d.parquet", "all/d.parquet", "table", 2),
        FoundFile("d.pq", "all/d.pq", "table", 2),
        FoundFile("g.tar.xz", "all/g.tar.xz", "tar", 2),
        FoundFile("sub/h.JPG", "all/sub/h.JPG", "picture"),
    ]
    assert [file.name for file in find_files(Path("all"), kinds=("picture",))] == ["a.png", "sub/h.JPG"]
    assert [file.name for file in find_files("all", kinds=("tokens",))] == ["e.tokens.json"]
    assert find_files("all/b.TAR", kinds=("picture",)) == []
    assert find_files("all/f.md") == [FoundFile("f.md", "all/f.md", "picture", 2)]


def test_hidden_and_decoded_pictures_are_passed_over_in_folders(here: Path) -> None:
    for name in (
        "a.png",
        "a.decoded.png",
        "a.strip.webp",
        "a.animated.gif",
        "a.maps.png",
        ".b.png",
        ".git/c.png",
        "out/d.png",
    ):
        Path("all", name).parent.mkdir(parents=True, exist_ok=True)
        Path("all", name).write_bytes(b"")
    assert [file.name for file in find_files("all", exclude="all/out")] == ["a.png"]
    assert [file.name for file in find_files("all/a.decoded.png")] == ["a.decoded.png"]
    Path("list.txt").write_text("all/a.strip.webp\n")
    assert [file.place for file in find_files("list.txt")] == ["all/a.strip.webp"]


def test_links_that_loop_end_and_broken_ones_are_kept(here: Path) -> None:
    Path("all/sub").mkdir(parents=True)
    Path("all/a.tar").symlink_to("nowhere")
    Path("all/sub/loop").symlink_to(Path("all").resolve())
    Path("all/sub/b.png").write_bytes(b"")
    assert [(file.name, file.size) for file in find_files("all")] == [("a.tar", None), ("sub/b.png", None)]


@pytest.fixture
def locked(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder all/ with b.png, and all/a.b/ that cannot be searched."""
    Path("all/a.b").mkdir(parents=True)
    save(Path("all/b.png"), width=8, height=8)
    scan = os.scandir

    def forbid(path: str) -> Any:
        if str(path).endswith("a.b"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbid)  # root may read everything
    return here


def test_a_subfolder_that_cannot_be_read_has_an_error_and_the_rest_is_found(locked: Path) -> None:
    assert find_files("all") == [
        FoundFile("b.png", "all/b.png", "picture"),
        FoundFile("a.b", "all/a.b", "folder", error="cannot be searched: no permission"),
    ]
    with pytest.raises(SourceError, match=r"all/a\.b: cannot be searched: no permission"):
        find_files("all/a.b")


def test_a_subfolder_that_cannot_be_read_is_a_failed_sample(locked: Path) -> None:
    save(Path("all/a.png"), width=8, height=8)  # its key is not the folder's
    (shard,) = find_input_shards(["all"], 10)
    assert [(sample.key, str(sample.picture)) for sample in shard.samples()] == [
        ("a", "all/a.png"),
        ("b", "all/b.png"),
        ("a.b/", "cannot be searched: no permission"),
    ]
    assert shard.find("a.b/") == "all/a.b"


def test_a_subfolder_that_cannot_be_read_fails_and_the_rest_is_encoded(vartok: Vartok, locked: Path) -> None:
    result = vartok("encode", "-r", "all", "-o", "out", *QUICK, code=3)
    first, last = result.stderr.splitlines()
    assert first == "vartok: all/a.b: cannot be searched: no permission"
    assert last.startswith("vartok: encoded 1, 1 failed")
    assert names(locked / "out") == ["b.tokens.npz"]


def test_a_subfolder_that_cannot_be_read_is_refused_by_training(locked: Path) -> None:
    with pytest.raises(SourceError, match=r"all/a\.b: cannot be searched: no permission"):
        Pictures(["all"], DataSettings(), (8, 8), 0)


def test_folders_may_be_nested_too_deep_to_be_opened(vartok: Vartok, here: Path) -> None:
    save(Path("all/a.png"), width=8, height=8)
    bottom = os.open("all", os.O_RDONLY)
    name = 200 * "n"
    for _ in range(30):  # paths of more than 4,096 characters cannot be opened
        os.mkdir(name, dir_fd=bottom)
        inner = os.open(name, os.O_RDONLY, dir_fd=bottom)
        os.close(bottom)
        bottom = inner
    os.close(bottom)
    try:
        picture, deep = find_files("all")
        assert (picture.name, deep.kind, deep.error) == (
            "a.png",
            "folder",
            "cannot be searched: its name is too long",
        )
        result = vartok("encode", "-r", "all", "-o", "out", *QUICK, code=3)
        assert names(here / "out") == ["a.tokens.npz"]
        assert len(result.stderr.splitlines()) == 2
        assert "cannot be searched: its name is too long" in result.stderr
        assert len(result.stderr) < 1000
    finally:
        subprocess.run(["rm", "-r", "all"], check=True)


def test_files_of_other_kinds_are_counted_by_suffix(here: Path) -> None:
    for name in (
        "a.png", "b.HEIC", "s/c.heic", "d.jxl", "s/noext", ".hidden", "a.tokens.npz", "e.npz", "a.strip.jpg"
    ):  # fmt: skip
        Path("all", name).parent.mkdir(parents=True, exist_ok=True)
        Path("all", name).write_bytes(b"")
    report = SearchReport()
    find_files("all", report=report)
    assert report.passed_over == {".heic": 2, ".jxl": 1, "": 1, ".npz": 1, ".strip.jpg": 1}
    with pytest.warns(VartokWarning) as caught:
        report.warn()
    assert [str(warning.message) for warning in caught] == [
        "passed over 6 files of kinds that are not read: "
        "2 .heic, 1 without suffix, 1 .jxl, 1 .npz, 1 .strip.jpg"
    ]
    Path("t.parquet").write_bytes(b"")
    named = SearchReport()
    assert find_files("t.parquet", kinds=("picture", "tar"), report=named) == []
    assert named.passed_over == {".parquet": 1}


def test_many_suffixes_are_summed_up(here: Path) -> None:
    report = SearchReport()
    for n in range(20):
        report.skip(f"a.{n:02}")
    with pytest.warns(VartokWarning, match=r"20 files .* 1 \.00, .*1 \.06, 13 others$"):
        report.warn()


def test_arrays_that_a_search_passes_over_have_a_hint(vartok: Vartok, here: Path) -> None:
    Path("all").mkdir()
    Path("all/a.npy").write_bytes(b"")
    said = vartok("encode", "-r", "all", "-o", "out", "-n", code=1).stderr
    hint = "name arrays (.npy), or put their paths into a list (.txt)"
    assert f"1 file of kinds that are not read: 1 .npy; {hint}" in said
    assert f"all: holds no pictures, by their names: {hint}" in said


def test_commands_say_once_that_files_were_passed_over(vartok: Vartok, here: Path) -> None:
    save(Path("all/a.png"))
    for name in ("b.HEIC", "c.heic", "noext"):
        Path("all", name).write_bytes(b"")
    for n in range(2):
        with tarfile.open(f"all/{n}.tar", "w") as archive:
            for name in (f"t{n}.png", ".t.png", "README"):
                archive.add("all/a.png", name)
    files = "passed over 3 files of kinds that are not read: 2 .heic, 1 without suffix"
    members = "passed over 4 members of tars: 2 without suffix, 2 hidden"
    for args in (["encode", "-r", "all", "-o", "out"], ["eval", "-r", "all", "--no-scales"]):
        notes = [line for line in vartok(*args, *QUICK).stderr.splitlines() if "note" in line]
        assert notes == [f"vartok: note: {files}", f"vartok: note: {members}"]
    with pytest.warns(VartokWarning, match="passed over 3 files"):
        find_input_shards(["all"], 10)
    with pytest.warns(VartokWarning, match="passed over 3 files"):
        pictures = Pictures(["all"], DataSettings(val_fraction=0.0), (8, 8), 0)
    next(pictures.batches(4, StreamPosition()))  # more than an epoch
    with pytest.warns(VartokWarning, match=members):
        pictures.findings.warn()


def test_linked_folders_are_followed_by_all_commands(vartok: Vartok, here: Path) -> None:
    save(Path("elsewhere/a.png"))
    save(Path("all/real/b.png"))
    Path("all/linked").symlink_to("../elsewhere")
    Path("elsewhere/back").symlink_to("../all")
    Path("all/self").symlink_to("self")
    for args in (["encode", "-r", "all", "-o", "out"], ["decode", "-r", "out", "-o", "pictures"]):
        vartok(*args, *(QUICK if args[0] == "encode" else []))
    assert names(here / "out") == ["linked/a.tokens.npz", "real/b.tokens.npz"]
    assert names(here / "pictures") == ["linked/a.decoded.png", "real/b.decoded.png"]
    pictures = Pictures(["all"], DataSettings(), (8, 8), 0)
    assert len(pictures._files) == 2


def test_pipes_in_folders_are_not_waited_for(vartok: Vartok, here: Path) -> None:
    save(Path("all/a.png"))
    vartok("encode", "-r", "all", *QUICK)
    for name in ("b.tokens.npz", "b.jsonl", "b.png", "b.tar"):
        os.mkfifo(Path("all", name))
    Path("all/linked.npz").symlink_to("b.jsonl")
    message = "vartok: all/b.tokens.npz: is not a regular file"
    for args in (
        ["decode", "-r", "all", "-o", "out", "--full-names"],
        ["inspect", "-r", "all"],
        ["inspect-codebook", "--usage", "all"],
    ):
        result = vartok(*args, code=3)
        assert message in result.stderr.splitlines()
        assert result.stderr.count("is not a regular file") == 3
    result = vartok("encode", "-r", "all", "-o", "tokens", *QUICK, code=3)
    assert result.stderr.count("is not a regular file") == 2


def test_urls_keep_both_slashes(here: Path) -> None:
    url = "https://example.org/a/b.png"
    assert find_files(url) == [FoundFile("b.png", url, "picture")]
    Path("list.txt").write_text(f"{url}\n")
    assert find_files("list.txt") == [FoundFile("example.org/a/b.png", url, "picture")]
    (shard,) = find_input_shards([url], 10)
    (sample,) = shard.samples()
    assert (sample.key, sample.picture) == ("b", url)


class Hub(MemoryFileSystem):  # type: ignore[misc]
    """Stands in for Hugging Face's file system."""

    protocol = "hf"
    store: ClassVar[dict[str, Any]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return f"/{path.removeprefix('hf://').strip('/')}"


def test_tables_on_the_hub_are_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_registry, "hf", Hub)
    url = "hf://datasets/owner/name@refs%2Fconvert%2Fparquet"
    table(here / "t.parquet", image=[b"1"], label=[3])
    Hub().pipe(f"{url}/train/0.parquet", Path("t.parquet").read_bytes())
    for source in (url, f"{url}/train/0.parquet", f"{url}/*/*.parquet"):
        (shard,) = find_input_shards([source], 10)
        (sample,) = shard.samples()
        assert (sample.key, sample.picture, sample.label) == ("0/00000000", b"1", 3)


def test_the_package_for_a_url_is_named(here: Path, vartok: Vartok, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(_registry, "hf", raising=False)
    url = "hf://datasets/owner/name/0.parquet"
    message = "not installed: huggingface_hub (needed for hf:// URLs): run pip install huggingface_hub"
    for command in ("dataset", "encode"):
        (line, *_) = vartok(command, url, "-o", "out", code=1).stderr.splitlines()
        assert line == f"vartok: {url}: {message}"
    Path("list.txt").write_text(f"{url}\n")
    assert message.partition(":")[0] in vartok("dataset", "list.txt", "-o", "out", code=1).stderr
