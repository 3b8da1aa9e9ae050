"""The exceptions that vartok raises, whose messages are one line for the user, and the words they share."""


class VartokError(Exception):
    """Base of every error that vartok raises on purpose; ``str(error)`` is one clear line.

    Attributes:
        hint: what the user can do about it, or None. A parameter of the library that helps stands in
            backticks, as in "set `max_pixels` higher"; the command line shows the option of that name.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ArgumentError(VartokError, ValueError):
    """An argument that no call can have, or arguments that contradict each other."""


class ConfigError(VartokError):
    """A tokenizer configuration that no model can have."""


class ScheduleError(VartokError):
    """A schedule that is malformed, or that is not the latent's."""


class CheckpointError(VartokError):
    """A missing file, or a file that is not a checkpoint that vartok can run."""


class SourceError(VartokError):
    """Files, folders, tars or tables that cannot be found or searched, or that hold no pictures."""


class OutputError(VartokError):
    """A result that cannot be written."""


class ImageError(VartokError):
    """A picture that cannot be read, or pixels that a model cannot take."""


class TokensError(VartokError):
    """Tokens of the wrong shape or outside the vocabulary."""


class TokenFileError(TokensError):
    """A token file that is malformed, or that belongs to another checkpoint."""


class DeviceError(VartokError):
    """A device or dtype that this machine or this torch does not have."""


class TrainError(VartokError):
    """Data that cannot be trained on, a run that cannot go on, or training that went wrong."""


class DatasetError(VartokError):
    """Pictures that cannot be made a data set of, or a data set that is unfinished, broken or another one."""


class VartokWarning(UserWarning):
    """A warning about a value that was assumed, or about data that was left out."""


def one_line(text: object, limit: int = 120) -> str:
    """Return `text` for a message: on one line, printable, of at most `limit` characters."""
    line = " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def quoted(value: object) -> str:
    """Return the repr of a wrong value for a message: one line of at most 60 characters."""
    return one_line(repr(value), 60)


def printable(text: object) -> str:
    """Return a path, or text from a file, on one line: a question mark stands for what is not printable."""
    return "".join(char if char.isprintable() else "?" for char in str(text))
