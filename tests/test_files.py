"""Files appear whole or not at all."""

import errno
import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vartok.files import atomic_write


def test_a_file_appears_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with atomic_write(path) as file:
        file.write(b"first, ")
        file.flush()
        assert not path.exists()
        assert len(list(tmp_path.iterdir())) == 1  # the scratch file, in the same folder
        file.write(b"second")
    assert path.read_bytes() == b"first, second"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_there_stays_until_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with atomic_write(path, overwrite=True) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_nothing_is_overwritten_untold(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "file":
        path.write_bytes(b"old")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(FileExistsError, match="a exists"), atomic_write(path):
        pytest.fail("not even tried")
    assert list(tmp_path.iterdir()) == [path]


def test_nor_is_what_came_up_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a"

    def slowly() -> None:
        with atomic_write(path) as file:
            file.write(b"ours")
            path.write_bytes(b"theirs")

    with pytest.raises(FileExistsError):
        slowly()
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("there", [False, True])
def test_a_block_that_fails_leaves_everything_as_it_was(
    tmp_path: Path, error: type[BaseException], there: bool
) -> None:
    path = tmp_path / "a"
    if there:
        path.write_bytes(b"old")

    def fail() -> None:
        with atomic_write(path, overwrite=True) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([b"old"] if there else [])


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "a"
    code = (
        f"import os, pathlib; from vartok.files import atomic_write; os.umask({umask})\n"
        f"with atomic_write(pathlib.Path({str(path)!r})) as file: file.write(b'x')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # the umask is the whole process's
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_folder_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "none" / "a"):
        pytest.fail("not even tried")


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()

    def write() -> None:
        with atomic_write(path, overwrite=True) as file:
            file.write(b"x")

    with pytest.raises(OSError, match=r"."):
        write()
    assert path.is_dir()
    assert os.listdir(tmp_path) == ["a"]


def test_two_at_once_do_not_overwrite_each_other(tmp_path: Path) -> None:
    """Both find the name free and are about to take it: one gets it, the other is told."""
    path, both = tmp_path / "a", threading.Barrier(2)

    def write(data: bytes) -> bool:
        try:
            with atomic_write(path) as file:
                file.write(data)
                both.wait(10)
        except FileExistsError:
            return False
        return True

    for _ in range(50):
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(write, (b"1", b"2")))
        assert sorted(done) == [False, True]
        assert path.read_bytes() == (b"1" if done[0] else b"2")
        path.unlink()
    assert not list(tmp_path.iterdir())


def test_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", link)
    with atomic_write(tmp_path / "a") as file:
        file.write(b"new")
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "a") as file:
        file.write(b"newer")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"new")]


def test_what_is_no_regular_file_stays_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "pipe.npz"
    os.mkfifo(path)
    with pytest.raises(FileExistsError, match="not a regular file"), atomic_write(path, overwrite=True):
        pass
    assert stat.S_ISFIFO(path.lstat().st_mode)
