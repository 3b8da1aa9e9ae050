"""A sample: a picture, possibly still unread, with its label, caption and metadata."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from vartok.errors import ImageError, VartokError
from vartok.files import os_error_reason
from vartok.images import MAX_BYTES, Fit, Picture, read_file, read_picture
from vartok.sources.find import open_place

MAX_TEXT = 1 << 20
"""Length limit of a caption, and of metadata, in characters."""

MAX_LABEL = (1 << 63) - 1


@dataclass(frozen=True)
class Sample:
    """A picture, unread or as bytes, with its label, caption and metadata.

    Attributes:
        key: path below the source, without suffix; or the sample's key in its tar or table.
        picture: path, bytes or URL (str) of the picture; or the error that reading it gave.
        label: class index, 0 or more; None where unknown.
        caption: text; None where there is none.
        metadata: JSON text as it was found, not parsed; None where there is none.
        progress: share of the input shard read up to and including this sample, 0 to 1; None if unknown.
        final: True for an error that ends its input shard.
    """

    key: str
    picture: Path | bytes | str | VartokError
    label: int | None = None
    caption: str | None = None
    metadata: str | None = None
    progress: float | None = None
    final: bool = False

    @property
    def nbytes(self) -> int:
        """Size in bytes of the picture in memory; 0 for an unread one."""
        return len(self.picture) if isinstance(self.picture, bytes) else 0

    def read(self, fit: Fit) -> Picture:
        """Read the picture.

        Raises:
            VartokError: it cannot be read, or `picture` is an error.
        """
        return read_picture(self.file(fit.max_bytes), fit)

    def file(self, max_bytes: int = MAX_BYTES) -> Path | bytes:
        """Return the picture's path, or its bytes; download a URL.

        Args:
            max_bytes: size limit of a download. One more byte is read, so that the caller sees the excess.

        Raises:
            VartokError: it cannot be downloaded, or `picture` is an error.
        """
        if isinstance(self.picture, VartokError):
            raise self.picture
        if not isinstance(self.picture, str):
            return self.picture
        try:
            with open_place(self.picture) as file:
                return file.read(max_bytes + 1)
        except Exception as error:  # any error of the file system's library
            raise ImageError(f"cannot be read: {os_error_reason(error)}") from None

    def with_bytes(self, max_bytes: int = MAX_BYTES) -> Sample:
        """Return the sample with `picture` read: its bytes, or the error that reading gave."""
        try:
            file = self.file(max_bytes)
            return replace(self, picture=read_file(file, max_bytes) if isinstance(file, Path) else file)
        except VartokError as error:
            return replace(self, picture=error)

    def without_bytes(self) -> Sample:
        """Return the sample without its picture, to free memory."""
        return replace(self, picture=b"")


def check_label(label: int | None) -> int | None:
    """Return a label; None for a negative one, by which data sets mark unlabelled samples.

    Raises:
        ImageError: a label that needs more than 63 bits.
    """
    if label is not None and label > MAX_LABEL:
        raise ImageError(f"its label is larger than {MAX_LABEL}")
    return label if label is not None and label >= 0 else None


def as_unicode(name: str) -> str:
    """Return a file's name as valid Unicode; bytes that are no UTF-8 become question marks."""
    return name.encode(errors="replace").decode()
