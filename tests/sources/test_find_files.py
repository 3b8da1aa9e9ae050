"""One walker lists the files of a source."""

import os
from pathlib import Path
from typing import Any

import pytest

from vartok.errors import SourceError
from vartok.sources import FoundFile, find_files, find_input_shards


def test_kinds_are_told_by_suffixes_and_only_the_wanted_ones_returned(here: Path) -> None:
    files = ["a.png", "b.TAR", "c.tgz", "d.parquet", "d.pq", "e.tokens.json", "f.md", "g.tar.xz", "sub/h.JPG"]
    for name in files:
        Path("all", name).parent.mkdir(parents=True, exist_ok=True)
        Path("all", name).write_bytes(b"12")
    assert find_files("all") == [
        FoundFile("a.png", "all/a.png", "picture"),
        FoundFile("b.TAR", "all/b.TAR", "tar", 2),
        FoundFile("c.tgz", "all/c.tgz", "tar", 2),
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
    for name in ("a.png", "a.decoded.png", "a.strip.webp", ".b.png", ".git/c.png", "out/d.png"):
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


def test_a_folder_that_cannot_be_read_is_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("all/sub").mkdir(parents=True)
    scan = os.scandir

    def forbid(path: str) -> Any:
        if path.endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbid)  # root may read everything
    with pytest.raises(SourceError, match="all/sub: cannot be searched: no permission"):
        find_files("all")


def test_urls_keep_both_slashes(here: Path) -> None:
    url = "https://example.org/a/b.png"
    assert find_files(url) == [FoundFile("b.png", url, "picture")]
    Path("list.txt").write_text(f"{url}\n")
    assert find_files("list.txt") == [FoundFile("example.org/a/b.png", url, "picture")]
    (shard,) = find_input_shards([url], 10)
    (sample,) = shard.samples()
    assert (sample.key, sample.picture) == ("b", url)
