"""Links in tars: which earlier file a link stands for."""

from __future__ import annotations

import posixpath
from collections import OrderedDict

from vartok.errors import ImageError, one_line
from vartok.sources.tar_members import Member, TarReader

MAX_LINK_TARGETS = 100_000
"""Number of earlier files to which a link may point."""

MAX_CACHED = 1 << 26
"""Total size in bytes of earlier files to which a link may point, if the tar's stream cannot seek."""


class LinkTargets:
    """Reads files and links. A link stands for an earlier file of the same archive.

    If the tar's stream can seek, the places of earlier files are kept, else the last files themselves.
    """

    def __init__(self, reader: TarReader) -> None:
        self._reader = reader
        self._places: OrderedDict[int, tuple[int, int] | bytes] = OrderedDict()  # by a hash of the name
        self._cached = 0

    def read(self, member: Member, limit: int, too_large: ImageError) -> bytes | ImageError:
        """Return the content of the member that was read last, or the error that it gives.

        Args:
            member: file or link.
            limit: size limit of the content in bytes.
            too_large: error to return if the content is larger.

        Raises:
            tarfile.ReadError: the tar ends before the end of the file.
        """
        if member.kind in ("link", "symlink"):
            return self._follow(member, limit, too_large)
        if member.kind != "file":
            return ImageError("is not a regular file")
        if member.size > limit:
            self.remember(member)
            return too_large
        try:
            content = self._reader.read(member)
        except ImageError as error:
            return error
        self.remember(member, content)
        return content

    def remember(self, member: Member, content: bytes | None = None) -> None:
        """Let later links point to a file, if its content is given or the stream can seek."""
        if member.kind != "file" or member.extents is not None:
            return
        if self._reader.seekable:
            self._keep(_hash(member.archive, member.name), (member.position, member.size))
        elif content is not None and len(content) <= MAX_CACHED:
            self._keep(_hash(member.archive, member.name), content)

    def _follow(self, member: Member, limit: int, too_large: ImageError) -> bytes | ImageError:
        target = member.target
        if member.kind == "symlink":
            target = posixpath.join(posixpath.dirname(member.name), target)
        place = self._places.get(_hash(member.archive, target))
        if place is None:
            return ImageError(f"is a link to {one_line(target)}, which is not in the tar before it")
        self._keep(_hash(member.archive, member.name), place)
        if isinstance(place, bytes):
            return place if len(place) <= limit else too_large
        if place[1] > limit:
            return too_large
        try:
            content = self._reader.read_at(*place)
        except (OSError, ValueError) as error:
            return ImageError(f"is a link to a file that cannot be read: {one_line(error)}")
        return content if len(content) == place[1] else ImageError("is a link to a file that is cut off")

    def _keep(self, name: int, place: tuple[int, int] | bytes) -> None:
        self._drop(self._places.pop(name, None))
        self._places[name] = place
        self._cached += len(place) if isinstance(place, bytes) else 0
        while len(self._places) > MAX_LINK_TARGETS or self._cached > MAX_CACHED:
            self._drop(self._places.popitem(last=False)[1])

    def _drop(self, place: tuple[int, int] | bytes | None) -> None:
        self._cached -= len(place) if isinstance(place, bytes) else 0


def _hash(archive: int, name: str) -> int:
    return hash((archive, posixpath.normpath(name)))
