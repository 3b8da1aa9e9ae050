"""Files appear whole or not at all; temporary files of killed processes are removed, live ones are not."""

import contextlib
import errno
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from vartok import files
from vartok.errors import OutputError
from vartok.files import (
    ABANDONED,
    atomic_write,
    open_output,
    os_error_reason,
    remove_stale_temp_files,
    write_bytes,
)


def test_a_file_appears_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with atomic_write(path) as file:
        file.write(b"first, ")
        file.flush()
        assert not path.exists()
        assert len(list(tmp_path.iterdir())) == 1  # the temporary file, in the same folder
        file.write(b"second")
    assert path.read_bytes() == b"first, second"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stays_until_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with atomic_write(path, overwrite=True) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_an_existing_path_is_not_overwritten_by_default(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "file":
        path.write_bytes(b"old")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(FileExistsError, match="a exists"), atomic_write(path):
        pytest.fail("the block ran")
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_appeared_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
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


def test_an_interrupt_right_after_the_temporary_file_appears_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object, **options: bool) -> bool:
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr("vartok.files._lock", interrupt)
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "a"
    code = (
        f"import os, pathlib; from vartok.files import atomic_write; os.umask({umask})\n"
        f"with atomic_write(pathlib.Path({str(path)!r})) as file: file.write(b'x')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # the umask is the whole process's
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_missing_folder_raises_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "none" / "a"):
        pytest.fail("the block ran")


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


def test_two_writers_of_one_path_do_not_overwrite_each_other(tmp_path: Path) -> None:
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


def test_writing_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", link)
    with atomic_write(tmp_path / "a") as file:
        file.write(b"new")
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "a") as file:
        file.write(b"newer")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"new")]


def test_a_named_pipe_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe.npz"
    os.mkfifo(path)
    with pytest.raises(FileExistsError, match="not a regular file"), atomic_write(path, overwrite=True):
        pass
    assert stat.S_ISFIFO(path.lstat().st_mode)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_durable_file_is_synced_before_and_its_folder_after_it_has_its_name(
    tmp_path: Path, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "a", []
    sync = os.fsync

    def record(descriptor: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with atomic_write(path, overwrite=overwrite, durable=True) as file:
        file.write(b"x")
    assert synced == [(False, False), (True, True)]
    assert path.read_bytes() == b"x"


def temporary_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{files.TEMPORARY}*"))


WRITE_AND_WAIT = """
import sys
from vartok.files import atomic_write
with atomic_write(sys.argv[1], overwrite=True) as file:
    file.write(b"whole")
    file.flush()
    print("open", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is in the middle of writing `a` until it is sent a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_AND_WAIT, tmp_path / "a"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "open\n"
    with process:
        yield process


def test_a_temporary_file_of_a_live_process_is_not_removed(
    tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    remove_stale_temp_files(tmp_path)
    assert len(temporary_files(tmp_path)) == 1
    writer.communicate("\n")
    assert writer.returncode == 0
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"whole")]


def test_a_temporary_file_of_a_killed_process_is_removed(
    tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    writer.kill()
    writer.wait()
    assert len(temporary_files(tmp_path)) == 1
    theirs = tmp_path / f"{files.TEMPORARY}of another program"
    theirs.touch()
    files._remove_stale_once.cache_clear()  # this is another process
    write_bytes(tmp_path / "b", b"other")
    assert sorted(tmp_path.iterdir()) == [theirs, tmp_path / "b"]


def test_a_folder_is_searched_once_for_stale_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[str] = []
    monkeypatch.setattr(files, "remove_stale_temp_files", searched.append)
    with contextlib.chdir(tmp_path):
        for name in ("1", "2", "sub/1", "sub/2"):
            write_bytes(name, b"")
    assert searched == [str(tmp_path), str(tmp_path / "sub")]


@pytest.mark.parametrize("held", ["no locks", "another machine"])
def test_files_that_may_be_live_are_removed_only_when_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    if held == "no locks":
        monkeypatch.setattr(files, "fcntl", None)
    with atomic_write(tmp_path / "a") as file:
        file.write(b"x")
        remove_stale_temp_files(tmp_path)
        (temporary,) = temporary_files(tmp_path)
    assert (tmp_path / "a").read_bytes() == b"x"
    if held == "another machine":
        temporary = tmp_path / temporary.name.replace(files.HOST, "0" * 8)
    temporary.write_bytes(b"left")
    remove_stale_temp_files(tmp_path)
    assert temporary.exists()
    os.utime(temporary, (time.time() - ABANDONED - 1,) * 2)
    remove_stale_temp_files(tmp_path)
    assert not temporary_files(tmp_path)


def test_overlapping_writers_that_clean_up_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a"

    def write(n: int) -> None:
        for _ in range(50):
            with atomic_write(path, overwrite=True) as file:
                file.write(b"%d" % n)
            remove_stale_temp_files(tmp_path)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_taken_for_a_stale_one_is_created_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may lock it before its writer does, and then removes it by its name."""
    if files.fcntl is None:
        pytest.skip("needs locks")
    lock, pools = files._lock, [ThreadPoolExecutor(1)]

    def meet_a_sweeper(file: BinaryIO, **options: bool) -> bool:
        if pools:
            other = open(file.name, "r+b")  # noqa: SIM115
            lock(other)

            def remove() -> None:
                time.sleep(0.02)
                os.unlink(file.name)
                other.close()

            pools.pop().submit(remove)
        return lock(file, **options)

    monkeypatch.setattr(files, "_lock", meet_a_sweeper)
    with atomic_write(tmp_path / "a") as file:
        time.sleep(0.03)
        file.write(b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["a"]


def test_write_bytes_makes_folders_and_names_the_final_path(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a"
    write_bytes(str(path), b"1")
    with pytest.raises(OutputError, match=r"/a exists") as caught:
        write_bytes(path, b"2")
    assert "`overwrite`" in str(caught.value.hint)
    assert path.read_bytes() == b"1"
    write_bytes(path, b"2", overwrite=True)
    assert path.read_bytes() == b"2"
    with pytest.raises(OutputError, match="folder is not a regular file") as caught:
        write_bytes(path.parent, b"3", overwrite=True)
    assert caught.value.hint is None
    for below in (path / "b", path / "b" / "c"):
        with pytest.raises(OutputError, match="not a folder"):
            write_bytes(below, b"3")
    with pytest.raises(OutputError, match="its name is too long"):
        write_bytes(tmp_path / ("x" * 300), b"3")


def test_a_full_disk_is_named_with_the_final_path(tmp_path: Path) -> None:
    def fill() -> None:
        with open_output(tmp_path / "a") as file:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), ".vartok-123.tmp")

    with pytest.raises(OutputError) as caught:
        fill()
    assert str(caught.value) == f"cannot write {tmp_path / 'a'}: no space left on the disk"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), "no such file or folder"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "no permission"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files"),
        (OSError("Bucket\ngone"), "Bucket gone"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_os_error_reason(error: Exception, reason: str) -> None:
    assert os_error_reason(error) == reason
