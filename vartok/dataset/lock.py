"""The lock of a data set's folder: two runs that would make the same shards do not work at once."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from vartok.errors import DatasetError, one_line
from vartok.files import TEMPORARY, fcntl

ATTEMPTS, PAUSE = 3, 0.03
"""Number of attempts to get a lock, and seconds between them."""


@contextlib.contextmanager
def run_lock(out: Path, part: tuple[int, int]) -> Iterator[None]:
    """Lock a data set's folder for one run while the block runs.

    Runs of different parts i of one n may work at the same time. The lock of a killed run ends with its
    process. Where the file system has no locks, nothing keeps two runs apart.

    Args:
        out: folder of the data set; it exists.
        part: (i, n), the part of the work that the run does, as for `build`.

    Raises:
        DatasetError: another run is at work there.
        OSError: the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        whole = part == (0, 1)
        stack.enter_context(_locked(out / f"{TEMPORARY}run.lock", shared=not whole))
        if whole:
            for left in out.glob(f"{TEMPORARY}run-*.lock"):  # by killed runs of parts
                left.unlink(missing_ok=True)
        else:
            stack.enter_context(_locked(out / f"{TEMPORARY}run-{part[0]}-{part[1]}.lock"))
            for other in out.glob(f"{TEMPORARY}run-*.lock"):
                if not other.name.endswith(f"-{part[1]}.lock"):  # parts of another n share input shards
                    _refuse_locked(other)
        yield


@contextlib.contextmanager
def _locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock file, and remove it at the end unless another run shares it."""
    if fcntl is None:  # Windows
        yield
        return
    for attempt in itertools.count(1):
        with open(path, "a+b") as file:  # for writing: NFS locks a file exclusively only then
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                if attempt < ATTEMPTS:  # a run of another part may just be ending, see below
                    time.sleep(PAUSE)
                    continue
                file.seek(0)
                raise _busy(path, file.read(200)) from None
            except OSError:  # a file system without locks
                path.unlink(missing_ok=True)
                yield
                return
            if not os.fstat(file.fileno()).st_nlink:  # another run has ended, and removed it
                continue
            if not shared:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
                file.flush()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            return


def _refuse_locked(path: Path) -> None:
    """Raise a DatasetError if a run holds a lock file."""
    if fcntl is None:
        return
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(path, file.read(200)) from None
        except OSError:  # a file system without locks
            return


def _busy(path: Path, owner: bytes) -> DatasetError:
    who = one_line(owner.decode(errors="replace"))
    return DatasetError(
        f"another run is at work in {path.parent}" + f": {who}" * bool(who),
        hint="wait until it has ended; runs share a folder if each has its own i, and all one n, in `shard`",
    )


@contextlib.contextmanager
def folder_lock(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Lock a folder while the block runs.

    Where the file system has no locks for folders, nothing keeps two processes apart.

    Args:
        folder: the folder.
        wait: wait for another process that has it locked.

    Raises:
        BlockingIOError: another process has it locked, and `wait` is false.
        OSError: the folder cannot be opened.
    """
    if fcntl is None:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)
