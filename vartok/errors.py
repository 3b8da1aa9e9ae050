"""The exceptions and the warning of vartok, and the functions that warn and that format text for messages."""

from __future__ import annotations

import sys
import warnings

PACKAGE = __name__.partition(".")[0]


class VartokError(Exception):
    """Base class of vartok's exceptions; ``str(error)`` is one line for the user.

    Attributes:
        hint: what the user can do about the error, or None. A traceback shows the hint below the message.
            Hints name parameters of the library in backticks, as in "set `max_pixels` higher". The command
            line shows the option instead, --max-pixels, and omits a hint if it has no such option.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if hint is not None:
            self.add_note(f"hint: {hint}")


class ArgumentError(VartokError, ValueError):
    """An invalid argument, or arguments that contradict each other."""


class ConfigError(VartokError):
    """An invalid tokenizer configuration, or invalid training settings."""


class ScheduleError(VartokError):
    """A malformed schedule, or one whose last grid is not the latent's."""


class CheckpointError(VartokError):
    """A file that is not a checkpoint, or one that vartok cannot run."""


class SourceError(VartokError):
    """A file, folder, tar or table that is missing, cannot be read, or holds no pictures or token files."""


class OutputError(VartokError):
    """A result that cannot be written."""


class OutputExistsError(OutputError):
    """A result whose file exists already.

    Attributes:
        difference: how the file differs from the result, if it was to be kept only if it does not; else None.
    """

    def __init__(self, message: str, *, hint: str | None = None, difference: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.difference = difference


class StorageError(OutputError):
    """A result that cannot be written, and neither can any other: the disk is full or read-only."""


class ImageError(VartokError):
    """A picture that cannot be read, or pixels whose shape or range the encoder cannot take."""


class DamagedImageError(ImageError):
    """A picture whose file is truncated or corrupt."""


class TokensError(VartokError):
    """Tokens of the wrong type or shape, an index outside the vocabulary, or invalid metadata of tokens."""


class TokenFileError(TokensError):
    """A token file that cannot be read or is malformed, or tokens that belong to another checkpoint."""


class DeviceError(VartokError):
    """A device or dtype that vartok cannot use on this machine, or a device without enough memory."""


class TrainError(VartokError):
    """Training that cannot start, cannot be resumed, or diverged."""


class DatasetError(VartokError):
    """A data set that cannot be built or read: incomplete, broken, or made with other settings."""


class VartokWarning(UserWarning):
    """A warning for the user, such as that a file does not state a value and vartok assumed one."""


def warn(message: str) -> None:
    """Warn with a VartokWarning, at the line outside of vartok that called it.

    Warns:
        VartokWarning: always.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, VartokWarning, stacklevel=level)


def one_line(text: object, limit: int = 120) -> str:
    """Return `text` as one line for a message: printable, and of at most `limit` characters."""
    whole = str(text)
    head = whole[: 10 * limit]  # a value in a file may have millions of characters
    line = " ".join("".join(char if char.isprintable() else " " for char in head).split())
    return line if len(line) <= limit and head == whole else f"{line[: limit - 3]}..."


def quoted(value: object) -> str:
    """Return the repr of an invalid value for a message, of at most 60 characters."""
    return one_line(repr(value), 60)


def counted(number: int, noun: str) -> str:
    """Return a number and a regular noun: "1 picture", "2,000 pictures"."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def printable(text: object, limit: int = 1000) -> str:
    """Return a path, or text from a file, for a message.

    A question mark replaces every unprintable character. Text of more than `limit` characters is shortened in
    the middle: a name in a tar may have a million.
    """
    whole = str(text)
    if len(whole) > limit:
        end = limit // 3
        whole = f"{whole[: limit - 3 - end]}...{whole[-end:]}"
    return "".join(char if char.isprintable() else "?" for char in whole)
