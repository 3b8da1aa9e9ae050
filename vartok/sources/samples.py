"""A sample: a picture, possibly still unread, with its label, caption and metadata."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from vartok.errors import ImageError, VartokError
from vartok.files import os_error_reason
from vartok.images import MAX_BYTES, Fit, Picture, read_file, read_picture
from vartok.sources.places import open_place

MAX_SAMPLE_TEXT = 1 << 20
"""Largest length of a caption, and of the text of metadata, in characters."""

MAX_LABEL = (1 << 63) - 1
"""Largest class index, that of int64."""

SURROGATE = re.compile("[\ud800-\udfff]")
"""Characters that Unicode text cannot have; in a file's name each stands for a byte that is not UTF-8."""


@dataclass(frozen=True)
class Sample:
    """A picture, unread or as bytes, with its label, caption and metadata.

    Attributes:
        key: path of the picture below its source, by default without suffix; or the sample's key in its tar
            or table.
        picture: path (Path), URL (str) or bytes of the picture's file; or the error that reading it raised.
        label: class index, 0 or more; None if unknown.
        caption: text that describes the picture; None if there is none.
        metadata: JSON text, unparsed; None if there is none.
        progress: share of the input shard read so far, this sample included, 0 to 1; None if unknown.
        final: True if `picture` is an error after which the input shard cannot be read any further.
        not_carried: what came with the picture and is left out: for each kind, the same text in every sample,
            such as "column 'label': labels that are not whole numbers".
    """

    key: str
    picture: Path | bytes | str | VartokError
    label: int | None = None
    caption: str | None = None
    metadata: str | None = None
    progress: float | None = None
    final: bool = False
    not_carried: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Size of `picture` in bytes; 0 if it is not bytes."""
        return len(self.picture) if isinstance(self.picture, bytes) else 0

    def read(self, fit: Fit) -> Picture:
        """Read the picture, and fit it; random views depend on `key`.

        Raises:
            VartokError: the picture cannot be read, or `picture` is an error, which is raised.
        """
        return read_picture(self.file(fit.max_bytes), fit, key=self.key)

    def file(self, max_bytes: int = MAX_BYTES) -> Path | bytes:
        """Return the path of the picture's file, or its bytes, which are downloaded if `picture` is a URL.

        Args:
            max_bytes: size limit of a download in bytes. A larger file gives its first `max_bytes` + 1 bytes,
                by which the caller detects the excess.

        Raises:
            VartokError: the download fails, or `picture` is an error, which is raised.
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
        """Return the sample with the bytes of its picture, or with the error that reading them raised.

        Args:
            max_bytes: size limit of the file in bytes. A larger file gives an error, but a larger download
                its first `max_bytes` + 1 bytes, see `file`.
        """
        try:
            file = self.file(max_bytes)
            return replace(self, picture=read_file(file, max_bytes) if isinstance(file, Path) else file)
        except VartokError as error:
            return replace(self, picture=error)
        except OSError as error:
            return replace(self, picture=ImageError(f"cannot be read: {os_error_reason(error)}"))

    def without_bytes(self) -> Sample:
        """Return the sample with b"" as its picture, to free memory."""
        return replace(self, picture=b"")


def check_label(label: int | None) -> int | None:
    """Return a valid label, or None if it is None or negative, as data sets mark unlabelled samples.

    Raises:
        ImageError: the label exceeds `MAX_LABEL`.
    """
    if label is not None and label > MAX_LABEL:
        raise ImageError(f"its label is larger than {MAX_LABEL:,}")
    return label if label is not None and label >= 0 else None


def as_unicode(name: str) -> str:
    """Return a file's name as valid Unicode; bytes that are not UTF-8 are percent-encoded: "caf%E9".

    So names that differ in such bytes alone still differ.
    """
    return SURROGATE.sub(_percent_encode, name)


def _percent_encode(surrogate: re.Match[str]) -> str:
    try:
        data = surrogate[0].encode(errors="surrogateescape")  # a byte of a name that is not UTF-8
    except UnicodeEncodeError:
        data = surrogate[0].encode(errors="surrogatepass")  # half a character, in a name on Windows
    return "".join(f"%{byte:02X}" for byte in data)
