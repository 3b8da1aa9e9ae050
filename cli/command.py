"""The decorator and the classes of all commands: an error becomes one line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import typer

from vartok.checkpoints import hub
from vartok.errors import ArgumentError, VartokError, VartokWarning
from vartok.files import remove_open_temp_files
from vartok.processors import configure_openmp
from vartok.stopping import Terminated, stop

from .fetching import FetchDisplay
from .messages import FAILED, INTERRUPTED, PIPE_CLOSED, TERMINATED, explain, option_names, say, with_options
from .streams import for_stderr, prepare_streams

PARAMETERS = {"force": "overwrite", "as_json": "json"}
"""The library's names of parameters, by the commands' names, where the two differ."""


UsageError: Any = typer.BadParameter.__base__
"""Click's base class of usage errors, which Typer does not export."""


class Frame:
    """Mixin of commands and groups: a help page or version that cannot be printed sets the exit code."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Parse arguments, and return Click's context; --help and --version print and exit here."""
        with _printable_usage_errors(), _exit_codes(debug=False):
            try:
                return super().make_context(*args, **options)  # type: ignore[misc]
            except OSError as error:
                error.filename = error.filename or "<stdout>"  # Click writes help without naming the stream
                raise


class Group(Frame, typer.core.TyperGroup):
    """A group of commands."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the program."""
        prepare_streams()
        return super().main(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
        with _printable_usage_errors():
            return super().invoke(ctx)


class Command(Frame, typer.core.TyperCommand):
    """A command without pydantic's prefix in its error messages, and without braces in its usage line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments; strip pydantic's prefix "Value error, " from the message of an invalid value."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line: "DATA...", where Typer would write "{DATA...}"."""
        pieces = super().collect_usage_pieces(ctx)
        return [re.sub(r"\{(.*?)(\.\.\.)?\}", r"\1", piece) for piece in pieces]


class DefaultContext(typer.Context):
    """The context of the default command, which users need not name."""

    @property
    def command_path(self) -> str:
        """The words before the arguments, for help and usage lines: "vartok dataset"."""
        return self.parent.command_path if self.parent else super().command_path


class Default(Command):
    """A command that runs where its group's arguments name none."""

    context_class = DefaultContext


class DefaultCommand(Group):
    """A group whose first command is the default."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the first command's name if the arguments do not begin with a command."""
        if not args or args[0] not in self.commands:
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


stop.cleanups.append(remove_open_temp_files)


def command(run: Callable[..., None], *, failed: int = FAILED) -> Callable[..., None]:
    """Decorate the function of a command: expand its dataclasses of options, and handle its errors.

    A VartokError, OSError or MemoryError becomes one line on stderr and an exit code; with --debug, a
    traceback.

    Args:
        run: the function.
        failed: the exit code of such an error.
    """
    run = _expand_options(run)
    options = _options(run)

    @functools.wraps(run)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        debug = bool(kwargs.get("debug"))
        configure_openmp()
        _quieten_libraries(debug, notes=not kwargs.get("quiet"))
        hub.listener = FetchDisplay(quiet=bool(kwargs.get("quiet")))
        token = option_names.set(options)
        try:
            with _exit_codes(debug=debug, failed=failed):
                run(*args, **kwargs)
        finally:
            option_names.reset(token)

    # \b keeps Click from rewrapping the lines below it.
    wrapped.__doc__ = (run.__doc__ or "").replace("    Examples:", "    \b\n    Examples:")
    return wrapped


@contextlib.contextmanager
def _exit_codes(*, debug: bool, failed: int = FAILED) -> Iterator[None]:
    """Turn errors, Ctrl-C and SIGTERM into the exit codes of `messages`, and errors into one line.

    Args:
        debug: raise a VartokError, OSError or MemoryError unchanged.
        failed: the code of such an error.

    Raises:
        typer.Exit: the code to exit with.
        typer.BadParameter: for an ArgumentError; Typer prints it and exits with 2.
    """
    try:
        yield
    except BrokenPipeError:
        _discard_stdout()
        raise typer.Exit(PIPE_CLOSED) from None
    except (KeyboardInterrupt, Terminated) as error:  # where `stopping` does not end the program at once
        interrupted = isinstance(error, KeyboardInterrupt)
        say(f"{'interrupted' if interrupted else 'terminated'}; {stop.describe_progress()}")
        raise typer.Exit(INTERRUPTED if interrupted else TERMINATED) from None
    except (VartokError, OSError, MemoryError) as error:
        if debug:
            raise
        if isinstance(error, ArgumentError):
            raise typer.BadParameter(explain(error)) from None
        if isinstance(error, OSError) and error.filename == "<stdout>":
            _discard_stdout()
        say(explain(error))
        raise typer.Exit(failed) from None


def _expand_options(run: Callable[..., None]) -> Callable[..., None]:
    """Return a function with a parameter for every option, as Typer needs it.

    Args:
        run: function of a command; a parameter whose type is a dataclass stands for that class's fields.

    Returns:
        A function with one keyword parameter per option, which makes the dataclasses and calls `run`.
    """
    signature = inspect.signature(run, eval_str=True)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if not dataclasses.is_dataclass(parameter.annotation):
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
            continue
        groups[name] = group = parameter.annotation
        hints = get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in dataclasses.fields(group)
        ]

    @functools.wraps(run)
    def expanded(**values: Any) -> None:
        given = {
            name: group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        run(**values, **given)

    expanded.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return expanded


def _discard_stdout() -> None:
    """Discard what stdout still holds: Python flushes it when it exits, which would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _printable_usage_errors() -> Iterator[None]:
    """Make the messages of usage errors printable: they repeat what the user gave."""
    try:
        yield
    except UsageError as error:
        if type(error).show is UsageError.show:  # else it shows a help page
            error.message = for_stderr(error.message)
        raise


def _options(run: Callable[..., None]) -> dict[str, str]:
    """Return the options of a command by the library's parameters: {"overwrite": "--force", ...}.

    An option with several names is shown by the first name that begins with two dashes.
    """
    found = {}
    for name, parameter in inspect.signature(run, eval_str=True).parameters.items():
        for value in getattr(parameter.annotation, "__metadata__", ()):
            if isinstance(value, typer.models.OptionInfo):
                names = (value.default, *(value.param_decls or ()))  # Typer takes the first for the default
                long = [text for text in names if isinstance(text, str) and text.startswith("--")]
                option = (long or [f"--{name.replace('_', '-')}"])[0].partition("/")[0]
                found[PARAMETERS.get(name, name)] = option
    return found


def _quieten_libraries(debug: bool, *, notes: bool) -> None:
    """Print warnings as notes on stderr; hide warnings and log messages of other libraries.

    Args:
        debug: show those of other libraries too.
        notes: if False, print no warnings at all.
    """
    if not debug:
        logging.lastResort = logging.NullHandler()
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", VartokWarning)

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if notes:
            say(f"note: {with_options(str(message))}")

    warnings.showwarning = show
