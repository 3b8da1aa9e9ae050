"""Atomic writing, so that files appear whole or not at all; a file's hash; and the wording of an OSError."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from vartok.errors import OutputError, OutputExistsError, StorageError, one_line

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

TEMPORARY = ".vartok-"
"""Prefix of the names of temporary files."""

HOST = hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:8] if fcntl else "0"
"""Part of the names of temporary files that tells the machine that wrote them."""

_open_temp_files: set[Path] = set()
"""Temporary files that this process is writing."""

ABANDONED = 3600.0
"""Age in seconds from which a temporary file counts as abandoned, where locks cannot tell."""

REASONS = {
    errno.ENOENT: "no such file or folder",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EEXIST: "it exists already",
    errno.EISDIR: "it is a folder, not a file",
    errno.ENOTDIR: "a part of its path is a file, not a folder",
    errno.EROFS: "the file system is read-only",
    errno.ENAMETOOLONG: "its name is too long",
    errno.ELOOP: "its links lead in a circle",
    errno.EBADF: "it is closed, or not open for this",
    errno.EIO: "the disk reports an input/output error",
}
"""Wording of common system errors, by errno."""

STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""System errors after which no other file of the disk can be written either."""


def os_error_reason(error: Exception) -> str:
    """Return why a file operation failed, in words that can follow a colon: "no such file or folder".

    Args:
        error: an OSError; for any other exception, such as a remote file system's, its own text is returned.
    """
    if isinstance(error, OSError) and error.errno in REASONS:
        return REASONS[error.errno]
    text = one_line(getattr(error, "strerror", None) or error) or type(error).__name__
    return text[:1].lower() + text[1:] if isinstance(error, OSError) and error.strerror else text


def user_cache() -> Path:
    """Return vartok's folder in the user's folder of caches; it need not exist."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home, "vartok")


def check_regular(path: str | Path) -> None:
    """Check that a path is a regular file, before it is opened: a pipe may never open, a device never end.

    Raises:
        OSError: the path does not exist, cannot be accessed, or is a folder, a pipe, a socket or a device.
        ValueError: the path holds a NUL.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise OSError(errno.EINVAL, f"it is {kind}, not a file: save its data in a file first", str(path))


def file_sha256(path: str | Path) -> str:
    """Return the sha256 of a file, 64 hex digits.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    check_regular(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def named_errors(path: str | Path) -> Iterator[None]:
    """Give an OSError of the block the file's name, which an error while reading does not carry."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def atomic_write(path: str | Path, *, overwrite: bool = False, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file next to `path`, and rename it to `path` if the block ends without an error.

    If the block raises or the process dies, `path` stays as it was. The temporary file is locked until it
    is renamed, so that `remove_stale_temp_files` does not remove it. Before the first file that a process
    writes into a folder, the temporary files that killed processes have left there are removed.

    Args:
        path: the file to write.
        overwrite: whether an existing file is replaced.
        durable: flush the file and its folder to the disk at the end of the block, so that the file
            survives a power cut.

    Yields:
        The temporary file, open for writing.

    Raises:
        FileExistsError: `path` exists, and `overwrite` is false or `path` is not a regular file.
        OSError: the file cannot be written, for example as the folder is read-only or the disk is full.
    """
    path = Path(path)
    _refuse_existing(path, overwrite)
    _remove_stale_once(os.path.abspath(path.parent))
    temporary = path.parent / f"{TEMPORARY}{HOST}-{secrets.token_hex(8)}.tmp"
    lock = -1
    try:  # before the file exists: Ctrl-C may arrive at any moment
        _open_temp_files.add(temporary)
        with _create_locked(temporary) as file:
            # A duplicate descriptor keeps the lock after the file is closed, until it has its final name.
            lock = os.dup(file.fileno())
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if not fcntl:
            os.close(lock)  # Windows cannot rename an open file
            lock = -1
        if overwrite:
            os.replace(temporary, path)
        else:
            _place_new(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        if lock >= 0:
            os.close(lock)
        _open_temp_files.discard(temporary)
    if durable:
        _sync_folder(path.parent)


@contextlib.contextmanager
def open_output(path: str | Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Make the parent folders of `path`, then open it for writing as `atomic_write` does.

    Raises:
        OutputExistsError: the file exists, and `overwrite` is false.
        StorageError: the disk is full, read-only or over its quota.
        OutputError: it cannot be written; the message names `path`, not the temporary file.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, overwrite=overwrite) as file:
            yield file
    except FileExistsError as error:
        if not path.parent.is_dir():
            raise OutputError(f"cannot write {path}: {path.parent} is not a folder") from None
        hint = None if overwrite else "set `overwrite` to replace it"
        raise OutputExistsError(str(error) or f"{path} exists", hint=hint) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        kind = StorageError if getattr(error, "errno", None) in STORAGE else OutputError
        raise kind(f"cannot write {path}: {os_error_reason(error)}") from None


def write_bytes(path: str | Path, data: bytes, *, overwrite: bool = False) -> None:
    """Write a file, whole or not at all, and make its parent folders.

    Args:
        path: the file to write.
        data: its contents.
        overwrite: whether an existing file is replaced.

    Raises:
        OutputError: the file exists and `overwrite` is false, or it cannot be written; the message names
            `path`.
    """
    with open_output(path, overwrite=overwrite) as file:
        file.write(data)


def remove_stale_temp_files(folder: str | Path) -> None:
    """Remove temporary files that killed processes have left in a folder; `atomic_write` calls it itself.

    A file that is being written is locked, and is kept. Locks may hold on one machine only, or not at all:
    files that another machine wrote, and all files where the file system has no locks, are kept until
    they are `ABANDONED` seconds old.

    Args:
        folder: folder that is searched, without those below it. Files that cannot be removed stay.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY) and entry.name.endswith(".tmp"):
                _remove_if_stale(entry.path)


def remove_open_temp_files() -> None:
    """Remove the temporary files that this process is writing, since it will end without its own cleanup."""
    for temporary in [*_open_temp_files]:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _remove_if_stale(temporary: str) -> None:
    # Opened for writing: NFS locks a file exclusively only then.
    with contextlib.suppress(OSError), open(temporary, "r+b") as file:
        ours = os.path.basename(temporary).startswith(f"{TEMPORARY}{HOST}-")
        if not (_lock(file) and ours) and time.time() - os.fstat(file.fileno()).st_mtime < ABANDONED:
            return
        if os.fstat(file.fileno()).st_nlink:  # else it is gone, and the name may be that of a new file
            os.unlink(temporary)


@functools.lru_cache(4096)
def _remove_stale_once(folder: str) -> None:
    """Call `remove_stale_temp_files` for a folder, but not for each of the many files written there."""
    remove_stale_temp_files(folder)


def _create_locked(temporary: Path) -> BinaryIO:
    """Create and lock a temporary file."""
    while True:
        file = open(temporary, "xb")  # noqa: SIM115
        # Another process may take the new file for a stale one before it is locked, and remove it. Wait until
        # it has: it removes a file by its name, and would remove the next one too.
        if not _lock(file, wait=True) or os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def _lock(file: BinaryIO, *, wait: bool = False) -> bool:
    """Lock a file until all its descriptors are closed. Return True; False if the system has no locks.

    Raises:
        BlockingIOError: another process, or another open file of this one, has it locked, and `wait` is
            false.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _place_new(temporary: Path, path: Path) -> None:
    """Give the temporary file its final name, unless another process has taken that name meanwhile."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise FileExistsError(f"{path} exists") from None
    except OSError:  # a file system without hard links
        _refuse_existing(path, overwrite=False)
        os.replace(temporary, path)
    else:
        temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system supports it."""
    with contextlib.suppress(OSError):  # Windows cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path} exists")
    if os.path.lexists(path) and not path.is_file():
        raise FileExistsError(f"{path} is not a regular file, and is not replaced")  # such as a device
