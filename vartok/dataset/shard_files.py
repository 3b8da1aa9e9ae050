"""The files of a shard: one, or with buckets one for each size that its pictures have.

A shard is the unit of work, whatever the sizes of its pictures: one part of an input shard, which is done
when its stats file is there. A picture's bucket is known only when the picture has been read, and its tokens
tell it: their encoded size. So planning, engines and Ray do not know about buckets, and the writer opens the
file of a bucket when its first row comes. All files of a shard appear at its end, before its stats file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from vartok.dataset.encoding import bucket_name
from vartok.dataset.formats import ShardWriter, open_writer
from vartok.dataset.stats import FileStats, ShardId
from vartok.files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vartok.dataset.plan import Job
    from vartok.tokens import ImageTokens


class HashedFile(io.RawIOBase):
    """A write-only stream without seeking that counts and hashes the bytes written to it.

    Attributes:
        size: bytes written.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self.size

    def write(self, data: Any) -> int:
        """Write all of `data`, a bytes-like object, and return its size in bytes.

        If the underlying file is closed, discard `data`.
        """
        count = memoryview(data).nbytes
        if self._file.closed:  # the run was stopped, and Arrow's writer then writes its footer
            return count
        self._file.write(data)
        self._hash.update(data)
        self.size += count
        return count

    @property
    def sha256(self) -> str:
        """The sha256 of all bytes written, in hex."""
        return self._hash.hexdigest()


@dataclass
class _File:
    """A file that is being written, and the number of its pictures."""

    stream: HashedFile
    writer: ShardWriter
    pictures: int = 0


class ShardFiles:
    """The files of a shard that are being written; `open_shard` opens and closes them."""

    def __init__(self, job: Job, shard: ShardId, stack: contextlib.ExitStack) -> None:
        self._job, self._shard, self._stack = job, shard, stack
        self._files: dict[str, _File] = {}
        if not job.encoding.buckets:
            self._open("")  # also if no sample has a row

    def add(self, views: Sequence[ImageTokens], picture: bytes | None = None) -> None:
        """Write the rows of a picture, all its views, into the file of its bucket.

        Args:
            views: the rows; they have one size.
            picture: content of the picture file, which is kept once, with the first view; or None.

        Raises:
            DatasetError: see `ShardWriter.add`.
        """
        name = bucket_name(views[0].image.size) if self._job.encoding.buckets else ""
        file = self._files.get(name) or self._open(name)
        for view in views:
            file.writer.add(view, picture)
            picture = None
        file.pictures += 1

    def close(self) -> None:
        """Write what the writers buffer, and the footers."""
        for file in self._files.values():
            file.writer.close()

    @property
    def size(self) -> int:
        """Number of bytes written so far."""
        return sum(file.stream.size for file in self._files.values())

    @property
    def stats(self) -> dict[str, FileStats]:
        """Facts about the closed files, by bucket; the only file without buckets has the name ""."""
        return {
            name: FileStats(file.pictures, file.stream.size, file.stream.sha256)
            for name, file in sorted(self._files.items())
        }

    def _open(self, bucket: str) -> _File:
        path = self._job.shard_path(self._shard, bucket)
        if bucket:
            path.parent.mkdir(exist_ok=True)
        # Durable: after a power cut, a stats file must not mark a torn shard as done.
        stream = HashedFile(self._stack.enter_context(atomic_write(path, overwrite=True, durable=True)))
        encoding = self._job.encoding.of_bucket(bucket)
        self._files[bucket] = _File(stream, open_writer(self._job.format, stream, encoding))
        return self._files[bucket]


@contextlib.contextmanager
def open_shard(job: Job, shard: ShardId) -> Iterator[ShardFiles]:
    """Open the files of a shard. They appear if the block ends without an error; else none is changed.

    Raises:
        OSError: a file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        files = ShardFiles(job, shard, stack)
        yield files
        files.close()
