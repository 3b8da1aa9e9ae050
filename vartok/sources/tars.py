"""Tar shards in WebDataset's layout: files that share a name up to its first dot are one sample."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from typing import BinaryIO, NamedTuple

from vartok.errors import ImageError, one_line
from vartok.images import MAX_PIPED, picture_suffixes

SIDECARS = {"cls": 1 << 10, "txt": 1 << 20, "json": 1 << 20}
"""What is read beside pictures, by its extension, and the bytes that it has at most."""

MAX_HEADER = 1 << 20
"""Bytes of the headers before a member that hold a long name and the like."""

META = re.compile(r"__[^/]*__(/|$)")
"""Names that WebDataset passes over: what they hold is about the shard."""


class TarSample(NamedTuple):
    """Files of one name.

    Attributes:
        key: the name, up to the first dot after its last slash.
        pictures: pictures, in the tar's order, each its bytes or why there are none.
        sidecars: what lies beside them, by extension: "cls", "txt", "json".
    """

    key: str
    pictures: list[bytes | ImageError]
    sidecars: dict[str, bytes | ImageError]


def read_tar(stream: BinaryIO) -> Iterator[TarSample]:
    """Read the samples of a tar, plain or compressed, in its order, going forward only.

    A file that is larger than anything here should be is passed over unread, and an error stands for it.

    Args:
        stream: the tar's bytes.

    Raises:
        ImageError: it is no tar, is broken or ends too early; all samples before that were yielded.
        OSError: the stream cannot be read.

    Source: webdataset.tariterators, whose rule for keys this takes.
    """
    from webdataset.tariterators import base_plus_ext

    suffixes = picture_suffixes()
    sample: TarSample | None = None
    broken: ImageError | None = None
    try:
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # or all headers so far would stay in memory
                key, extension = base_plus_ext(member.name)
                if not member.isreg() or key is None or META.match(member.name):
                    continue
                if sample is not None and key != sample.key:
                    yield sample
                    sample = None
                whole, sample = sample or TarSample(key, [], {}), None  # one that breaks off is not handed on
                extension = extension.lower()
                if f".{extension}".endswith(suffixes):
                    whole.pictures.append(_read(archive, member, MAX_PIPED))
                elif extension in SIDECARS:
                    content = _read(archive, member, SIDECARS[extension])
                    twice = extension in whole.sidecars
                    whole.sidecars[extension] = ImageError(f"has two .{extension}") if twice else content
                sample = whole
    except (tarfile.TarError, EOFError, LZMAError, zlib.error, ValueError) as error:
        broken = ImageError(f"is not a whole tar file: {one_line(error) or type(error).__name__}")
    if sample is not None:
        yield sample
    if broken is not None:
        raise broken


class _Header(tarfile.TarInfo):
    """A header, of which a bad one is an error wherever it stands, and one that is too large as well.

    TarFile takes any but the first one for the end of the archive, and what follows it would be lost unsaid.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.size > MAX_HEADER and not (header.isreg() or header.isdir()):  # tarfile reads those whole
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the blocks of zeros that end an archive
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(
                "it has no end mark" if str(error) == "empty header" else str(error)
            ) from error


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes | ImageError:
    if member.size > limit:
        return ImageError(f"{one_line(member.name)} is larger than {limit:,} bytes")
    file = archive.extractfile(member)
    data = file.read() if file else b""
    if len(data) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data
