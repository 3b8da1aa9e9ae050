"""Tar shards in WebDataset's layout: files that share a name up to its first dot are one sample."""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from vartok.compression import DecompressionError
from vartok.errors import ImageError, counted, one_line, quoted
from vartok.images import MAX_BYTES, bytes_error, picture_suffixes
from vartok.sources.passed_over import ALONE, FURTHER, HIDDEN, count_suffix
from vartok.sources.places import open_place
from vartok.sources.samples import Sample, as_unicode, check_label
from vartok.sources.tar_links import LinkTargets
from vartok.sources.tar_members import Member, TarReader

SIDECARS = {"cls": 1 << 10, "txt": 1 << 20, "json": 1 << 20}
"""Size limit in bytes of the files that are read with a picture, by their extension."""

META = re.compile(r"__[^/]*__(/|$)")
"""Names of files that describe the tar itself, such as "__meta__"; WebDataset skips them."""

MAX_GROUP_FILES = 256
"""Number of files with one name up to the first dot, after which they may be divided into samples."""

MAX_SAMPLE_FILES = 100_000
"""Largest number of files of one sample."""

BROKEN = (tarfile.TarError, DecompressionError, ValueError)
"""Exceptions that a tar raises which is cut off or damaged."""


class TarSample(NamedTuple):
    """The files of a tar that share a key.

    Attributes:
        key: name of the files up to the first dot after the last slash, or to the last dot, see `read_tar`.
        pictures: bytes of each picture, or the error of a picture that is too large, in the tar's order; at
            least one.
        sidecars: bytes of each other file, or the error of a file that is too large or occurs twice, by its
            extension: "cls", "txt" or "json".
    """

    key: str
    pictures: list[bytes | ImageError]
    sidecars: dict[str, bytes | ImageError]


def read_tar(
    stream: BinaryIO, max_bytes: int = MAX_BYTES, passed_over: Counter[str] | None = None
) -> Iterator[TarSample]:
    """Yield the samples of a tar, plain or compressed, in its order. The stream need not be seekable.

    Files that share a name up to the first dot are one sample, as in WebDataset. But if there are several
    pictures among them, none with that name alone ("a.png"), and every file shares its name up to the last
    dot with a picture, then the dots are parts of the names ("trip 2024.01.01.png"), and the names up to the
    last dot are the keys.

    Hidden files (".name") are passed over, as in folders, and so are files of kinds that are not read and
    names without a picture. A link stands for the file that it points to, which must come before it. A file
    that is larger than its limit is not read, but replaced by an error.

    Args:
        stream: stream of the tar's bytes. Several tars in a row are read as one.
        max_bytes: size limit of a picture in bytes. A sample's files together may have four times as many.
        passed_over: counter to which members are added that are passed over, by kind: by suffix, or `HIDDEN`
            or `ALONE`. Once a sample is yielded, it has those up to the sample's last file.

    Raises:
        ImageError: the stream is not a tar, is broken, ends too early, or holds files but no pictures; the
            samples before the fault are yielded first.
        OSError: the stream cannot be read.

    Source: webdataset.tariterators, for keys and extensions.
    """
    suffixes = picture_suffixes()
    passed_over = Counter() if passed_over is None else passed_over
    group: _Group | None = None
    broken: ImageError | None = None
    members = pictures = 0
    try:
        reader = TarReader(stream)
        targets = LinkTargets(reader)
        for member in reader:
            members += 1
            file = _File.of(member, suffixes)
            if file is None or not file.extension:
                targets.remember(member)
            if file is None:
                _count_member(passed_over, member)
                continue
            if group is None or not group.admits(file):
                if group is not None:
                    yield from group.samples(passed_over)
                same = group is not None and (group.archive, group.key) == (file.archive, file.key)
                group = _Group(file.archive, file.key, by_stem=same)
            content: bytes | ImageError = b""
            if file.extension:
                pictures += file.is_picture
                limit = max_bytes if file.is_picture else SIDECARS[file.extension]
                too_large = ImageError(f"its .{file.extension} has more than {limit:,} bytes")
                if file.is_picture:
                    too_large = bytes_error(max_bytes)
                try:
                    content = targets.read(member, limit, too_large)
                except BROKEN:
                    group = group.without(file.stem)  # the sample of the file that is cut off is not yielded
                    raise
            else:
                count_suffix(passed_over, member.name)
            group.add(file, content, 4 * max_bytes)
            if not group.by_stem and group.is_full(2 * max_bytes) and group.is_divisible:
                yield from group.without(file.stem).samples(passed_over)
                group = group.only(file.stem)
    except BROKEN as error:
        broken = ImageError(f"is not a whole tar file: {one_line(error) or type(error).__name__}")
    if group is not None:
        yield from group.samples(passed_over)
    if broken is not None:
        raise broken
    if members and not pictures:
        raise ImageError(f"holds {counted(members, 'member')}, but no pictures")


def read_tar_samples(
    place: str,
    size: int | None = None,
    max_bytes: int = MAX_BYTES,
    passed_over: Counter[str] | None = None,
    *,
    pictures_only: bool = False,
) -> Iterator[Sample]:
    """Yield the samples of a tar with their labels (.cls), captions (.txt) and metadata (.json).

    Args:
        place: path or URL.
        size: size of the tar in bytes, for `Sample.progress`. If None, fsspec gives the size of a URL, and a
            path has no progress.
        max_bytes: size limit of a picture in bytes.
        passed_over: counter to which members are added that are passed over, as by `read_tar`; `FURTHER`
            counts the pictures of a sample after its first.
        pictures_only: leave labels, captions and metadata out, so that a broken one costs no picture.

    Raises:
        ImageError: the tar is broken, see `read_tar`.
        OSError: the tar cannot be opened or read, or is not a regular file. For a URL, its file
            system's library may raise other errors too.
    """
    passed_over = Counter() if passed_over is None else passed_over
    with open_place(place) as stream:
        size = size or getattr(getattr(stream, "raw", stream), "size", None)  # of files at URLs
        for found in read_tar(stream, max_bytes, passed_over):
            passed_over[FURTHER] += len(found.pictures) - 1
            progress = stream.tell() / size if size else None
            if pictures_only:
                yield Sample(as_unicode(found.key), found.pictures[0], progress=progress)
            else:
                yield _as_sample(found, progress)


def _as_sample(found: TarSample, progress: float | None) -> Sample:
    key = as_unicode(found.key)
    try:
        texts = {name: _as_text(f".{name}", content) for name, content in found.sidecars.items()}
        label = _as_label(texts["cls"]) if "cls" in texts else None
    except ImageError as error:
        return Sample(key, error, progress=progress)
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


class _File(NamedTuple):
    """The name of a member, in parts.

    Attributes:
        archive: number of the archive that holds it.
        key: the name up to the first dot after the last slash.
        stem: the name up to the last dot.
        extension: what follows the last dot, in lower case, if it is a picture's or a sidecar's; else "".
        is_picture: whether it is a picture's extension.
    """

    archive: int
    key: str
    stem: str
    extension: str
    is_picture: bool

    @classmethod
    def of(cls, member: Member, suffixes: tuple[str, ...]) -> _File | None:
        """Return the parts of a member's name; None if it belongs to no sample."""
        base = posixpath.basename(member.name)
        folder = member.name[: len(member.name) - len(base)]
        stem, dot, extension = base.rpartition(".")
        if not dot or member.kind == "folder" or META.match(member.name) or _is_hidden(member.name):
            return None
        extension = extension.lower()
        is_picture = f".{extension}".endswith(suffixes)
        if not is_picture and (extension not in SIDECARS or member.kind == "other"):
            if member.kind != "file":
                return None
            extension = ""
        return cls(member.archive, folder + base.partition(".")[0], folder + stem, extension, is_picture)


@dataclass
class _Group:
    """Successive files that share a name up to the first dot.

    Attributes:
        archive: number of the archive that holds them.
        key: the name up to the first dot.
        by_stem: True if the names up to the last dot are known to be the keys; the group then ends where that
            name changes.
        files: the files and their content.
        size: size in bytes of the files and their names.
    """

    archive: int
    key: str
    by_stem: bool = False
    files: list[tuple[_File, bytes | ImageError]] = field(default_factory=list)
    size: int = 0
    _name_size: int = 0
    _pictures: set[str] = field(default_factory=set)  # names up to the last dot
    _others: set[str] = field(default_factory=set)  # such names that no picture has

    def admits(self, file: _File) -> bool:
        """Return True if a file belongs to the group."""
        if (self.archive, self.key) != (file.archive, file.key):
            return False
        return not self.by_stem or not self.files or self.files[-1][0].stem == file.stem

    def add(self, file: _File, content: bytes | ImageError, max_size: int) -> None:
        """Add a file.

        Args:
            file: name of the file.
            content: content of the file; if the group would exceed `max_size`, an error replaces it.
            max_size: size limit of the files, and of their names, in bytes.

        Raises:
            tarfile.ReadError: the group has too many files, or too long names.
        """
        size = len(content) if isinstance(content, bytes) else 0
        if self.size + size > max_size:
            content, size = ImageError(f"the files of its name have more than {max_size:,} bytes"), 0
        self.files.append((file, content))
        self.size += size
        self._name_size += len(file.stem)
        if len(self.files) > MAX_SAMPLE_FILES or self._name_size > max_size:
            raise tarfile.ReadError(f"{counted(len(self.files), 'file')} of one sample")
        if file.is_picture:
            self._pictures.add(file.stem)
            self._others.discard(file.stem)
        elif file.stem not in self._pictures:
            self._others.add(file.stem)

    def is_full(self, size: int) -> bool:
        """Return True if the files are so many, or of such a size, that they should not be held longer."""
        return len(self.files) >= MAX_GROUP_FILES or self.size + self._name_size > size

    @property
    def is_divisible(self) -> bool:
        """True if the names up to the last dot are the keys, see `read_tar`."""
        several = len(self._pictures) > 1 and self.key not in self._pictures
        return self.by_stem or (several and not self._others)

    def only(self, stem: str) -> _Group:
        """Return a group of the files with a name up to the last dot."""
        group = _Group(self.archive, self.key, by_stem=True)
        for file, content in self.files:
            if file.stem == stem:
                group.add(file, content, self.size + self._name_size)
        return group

    def without(self, stem: str) -> _Group:
        """Return a group of the other files; an empty group if all files are one sample."""
        group = _Group(self.archive, self.key, by_stem=True)
        if self.is_divisible:
            group.files = [(file, content) for file, content in self.files if file.stem != stem]
        return group

    def samples(self, passed_over: Counter[str]) -> Iterator[TarSample]:
        """Yield the samples that the files are; count labels, captions and metadata that belong to none."""
        by_stem: dict[str, list[tuple[_File, bytes | ImageError]]] = {}
        for file, content in self.files:
            by_stem.setdefault(file.stem, []).append((file, content))
        if self.is_divisible:
            found = [TarSample(stem, _pictures(files), _sidecars(files)) for stem, files in by_stem.items()]
            alone = {sample.key for sample in found if not sample.pictures}
        else:
            first = next((file.stem for file, _ in self.files if file.is_picture), None)
            used = set() if first is None else {first, self.key}
            alone = by_stem.keys() - used
            sidecars = _sidecars(by_stem.get(first or "", [])) | _sidecars(by_stem.get(self.key, []))
            found = [TarSample(self.key, _pictures(self.files), sidecars)]
        passed_over[ALONE] += sum(file.extension in SIDECARS and file.stem in alone for file, _ in self.files)
        yield from (sample for sample in found if sample.pictures)


def _pictures(files: list[tuple[_File, bytes | ImageError]]) -> list[bytes | ImageError]:
    return [content for file, content in files if file.is_picture]


def _sidecars(files: list[tuple[_File, bytes | ImageError]]) -> dict[str, bytes | ImageError]:
    found: dict[str, bytes | ImageError] = {}
    for file, content in files:
        if file.extension in SIDECARS:
            twice = ImageError(f"it has two .{file.extension} files")
            found[file.extension] = twice if file.extension in found else content
    return found


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _count_member(passed_over: Counter[str], member: Member) -> None:
    """Count a member that belongs to no sample, unless it is a folder or describes the tar itself."""
    if member.kind == "folder" or META.match(member.name):
        return
    if _is_hidden(member.name):
        passed_over[HIDDEN] += 1
    else:
        count_suffix(passed_over, member.name)
