"""Tar shards in WebDataset's layout: files that share a name up to its first dot are one sample."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from typing import BinaryIO, NamedTuple

from vartok.errors import ImageError, one_line, quoted
from vartok.images import MAX_BYTES, bytes_error, picture_suffixes
from vartok.sources.find import open_place
from vartok.sources.samples import Sample, as_unicode, check_label

SIDECARS = {"cls": 1 << 10, "txt": 1 << 20, "json": 1 << 20}
"""Size limit in bytes of the files that are read with a picture, by their extension."""

MAX_HEADER = 1 << 20
"""Size limit in bytes of an extended header, which holds the long name of a file."""

META = re.compile(r"__[^/]*__(/|$)")
"""Names of files that describe the tar itself, such as "__meta__"; WebDataset skips them."""


class TarSample(NamedTuple):
    """The files of a tar that share a key.

    Attributes:
        key: name of the files up to the first dot after the last slash.
        pictures: bytes of each picture, or the error of a picture that is too large, in the tar's order.
        sidecars: bytes of each other file, or the error of a file that is too large or occurs twice, by its
            extension: "cls", "txt" or "json".
    """

    key: str
    pictures: list[bytes | ImageError]
    sidecars: dict[str, bytes | ImageError]


def read_tar(stream: BinaryIO, max_bytes: int = MAX_BYTES) -> Iterator[TarSample]:
    """Yield the samples of a tar, plain or compressed, in its order. The stream need not be seekable.

    A file that is larger than its limit is not read, but replaced by an error.

    Args:
        stream: stream of the tar's bytes.
        max_bytes: size limit of a picture in bytes.

    Raises:
        ImageError: the stream is not a tar, is broken, or ends too early; the samples before the fault
            are yielded first.
        OSError: the stream cannot be read.

    Source: webdataset.tariterators, for keys and extensions.
    """
    from webdataset.tariterators import base_plus_ext

    suffixes = picture_suffixes()
    sample: TarSample | None = None
    broken: ImageError | None = None
    try:
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # otherwise all headers stay in memory
                key, extension = base_plus_ext(member.name)
                if not member.isreg() or key is None or META.match(member.name):
                    continue
                if sample is not None and key != sample.key:
                    yield sample
                    sample = None
                whole, sample = sample or TarSample(key, [], {}), None  # an error below drops the sample
                extension = extension.lower()
                if f".{extension}".endswith(suffixes):
                    too_large = bytes_error(max_bytes)
                    whole.pictures.append(_read(archive, member, max_bytes, too_large))
                elif extension in SIDECARS:
                    limit = SIDECARS[extension]
                    too_large = ImageError(f"its .{extension} has more than {limit:,} bytes")
                    content = _read(archive, member, limit, too_large)
                    if extension in whole.sidecars:
                        content = ImageError(f"it has two .{extension} files")
                    whole.sidecars[extension] = content
                sample = whole
    except (tarfile.TarError, EOFError, LZMAError, zlib.error, ValueError) as error:
        broken = ImageError(f"is not a whole tar file: {one_line(error) or type(error).__name__}")
    if sample is not None:
        yield sample
    if broken is not None:
        raise broken


def read_tar_samples(place: str, size: int | None = None, max_bytes: int = MAX_BYTES) -> Iterator[Sample]:
    """Yield the samples of a tar with their labels (.cls), captions (.txt) and metadata (.json).

    Further pictures of a sample are ignored.

    Args:
        place: path or URL.
        size: size of the tar in bytes, for `Sample.progress`. If None, fsspec gives the size of a URL, and a
            path has no progress.
        max_bytes: size limit of a picture in bytes.

    Raises:
        ImageError: the tar is broken, see `read_tar`, or `place` is not a regular file.
        OSError: the tar cannot be opened or read. For a URL, its file system's library may raise other errors
            too.
    """
    with open_place(place) as stream:
        size = size or getattr(stream, "size", None)  # an attribute of fsspec's files
        for found in read_tar(stream, max_bytes):
            yield _as_sample(found, stream.tell() / size if size else None)


def _as_sample(found: TarSample, progress: float | None) -> Sample:
    key = as_unicode(found.key)
    try:
        texts = {name: _as_text(f".{name}", content) for name, content in found.sidecars.items()}
        label = _as_label(texts["cls"]) if "cls" in texts else None
    except ImageError as error:
        return Sample(key, error, progress=progress)
    if not found.pictures:
        return Sample(key, ImageError("the tar has no picture of this name"), progress=progress)
    return Sample(key, found.pictures[0], label, texts.get("txt"), texts.get("json"), progress)


def _as_text(name: str, content: bytes | ImageError) -> str:
    if isinstance(content, ImageError):
        raise content
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ImageError(f"its {name} is not text in UTF-8") from None


def _as_label(text: str) -> int | None:
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,30}\s*", text):
        raise ImageError(f"its .cls must be a class index, a whole number, not {quoted(text)}")
    return check_label(int(text))


class _Header(tarfile.TarInfo):
    """A tar header; reading it raises ReadError if it is broken or too large.

    By default TarFile treats a broken header, unless it is the first, as the end of the archive, and silently
    skips all files after it.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        # tarfile reads an extended header whole into memory.
        if header.size > MAX_HEADER and not (header.isreg() or header.isdir()):
            raise tarfile.ReadError(f"a header of {header.size:,} bytes, more than {MAX_HEADER:,}")
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


def _read(
    archive: tarfile.TarFile, member: tarfile.TarInfo, limit: int, too_large: ImageError
) -> bytes | ImageError:
    if member.size > limit:
        return too_large
    file = archive.extractfile(member)
    data = file.read() if file else b""
    if len(data) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data
