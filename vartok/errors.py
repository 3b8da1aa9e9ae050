"""The exceptions and the warning of vartok, each with a one-line message for the user."""


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
    """A data set that cannot be built, or that is incomplete, broken or not the expected one."""


class VartokWarning(UserWarning):
    """Something that is no error but that the user should know, such as a value that had to be assumed."""


def one_line(text: object, limit: int = 120) -> str:
    """Return `text` as one line for a message: printable, and of at most `limit` characters."""
    line = " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def quoted(value: object) -> str:
    """Return an invalid value as a message quotes it."""
    return one_line(repr(value), 60)


def printable(text: object) -> str:
    """Return a path, or text from a file, on one line, unprintable characters replaced by question marks."""
    return "".join(char if char.isprintable() else "?" for char in str(text))
