"""A sample: a picture that has not been read yet, with its label, caption and metadata."""

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
    """A picture that has not been read yet, and what belongs to it.

    Attributes:
        key: name of the sample: its path below its source without suffix, or the key in its tar or table.
        picture: path, bytes or URL of the picture; or an error in its place.
        label: class index, 0 or more; None where unknown.
        caption: text; None where there is none.
        metadata: JSON text as it was found, not parsed; None where there is none.
        progress: share of the input shard that has been read with this sample, 0 to 1; None where unknown.
        final: True for the error of an input shard that cannot be read any further.
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
        """Size in bytes of a picture that is held in memory; 0 for one that is still to be read."""
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
            max_bytes: size limit of a download. One byte more is read, so that the reader sees the excess.

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
        """Return the sample with its picture's bytes, or the error that reading them gave, as `picture`."""
        try:
            file = self.file(max_bytes)
            return replace(self, picture=read_file(file, max_bytes) if isinstance(file, Path) else file)
        except VartokError as error:
            return replace(self, picture=error)

    def without_bytes(self) -> Sample:
        """Return the sample without its picture, which takes far more memory than the rest."""
        return replace(self, picture=b"")


def check_label(label: int | None) -> int | None:
    """Return a label; None for a negative one, which is how data sets write that there is none.

    Raises:
        ImageError: a label of more than 63 bits.
    """
    if label is not None and label > MAX_LABEL:
        raise ImageError(f"its label is larger than {MAX_LABEL}")
    return label if label is not None and label >= 0 else None


def as_unicode(name: str) -> str:
    """Return a file's name as valid Unicode, which it may not be."""
    return name.encode(errors="replace").decode()
