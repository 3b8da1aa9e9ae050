"""The exceptions and the warning of vartok, and the functions that format text for their messages."""


class VartokError(Exception):
    """Base class of vartok's exceptions; ``str(error)`` is one line for the user.

    Attributes:
        hint: what the user can do about it, or None. Parameters of the library are named in
            backticks, as in "set `max_pixels` higher"; the command line shows the option of that name.
            A traceback shows it below the message.
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
    """A file, folder, tar or table that is missing, cannot be searched, or holds no pictures."""


class OutputError(VartokError):
    """A result that cannot be written."""


class ImageError(VartokError):
    """A picture that cannot be read, or pixels whose shape or range the encoder cannot take."""


class TokensError(VartokError):
    """Tokens of the wrong shape or outside the vocabulary."""


class TokenFileError(TokensError):
    """A token file that is malformed, or that belongs to another checkpoint."""


class DeviceError(VartokError):
    """A device or dtype that this machine or the installed torch does not support."""


class TrainError(VartokError):
    """Training that cannot start, cannot be resumed, or diverged."""


class DatasetError(VartokError):
    """A data set that cannot be built or read: incomplete, broken, or made with other settings."""


class VartokWarning(UserWarning):
    """A warning for the user, such as a value that a file does not state and that was assumed."""


def one_line(text: object, limit: int = 120) -> str:
    """Return `text` as one line for a message: printable, and of at most `limit` characters."""
    line = " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def quoted(value: object) -> str:
    """Return the repr of an invalid value for a message, of at most 60 characters."""
    return one_line(repr(value), 60)


def counted(number: int, noun: str) -> str:
    """Return a number and a regular noun: "1 picture", "2,000 pictures"."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def printable(text: object) -> str:
    """Return a path, or text from a file, with every unprintable character replaced by a question mark."""
    return "".join(char if char.isprintable() else "?" for char in str(text))
