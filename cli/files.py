"""Which files a command works on, and where what it makes of them goes."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, NoReturn, TypeVar

import typer

from vartok.errors import VartokError
from vartok.files import atomic_write

from .report import Report, shown

if TYPE_CHECKING:
    from vartok.tokenizer import Tokenizer
    from vartok.tokens import ImageTokens

F = TypeVar("F", bound=str)

STDIN = "-"

TOKEN_SUFFIXES = (".npz", ".tokens.json", ".jsonl")
"""What a folder is searched for; a file that is named is taken whatever it is called."""
TOKEN_ENDINGS = (".tokens.npz", ".tokens.json", ".tokens.jsonl")
"""What decode takes off a name."""
DRAWN = re.compile(r"\.(decoded|strip)\.(png|jpg|webp)$")
"""What decode calls its pictures; beside their inputs, a search for pictures is not about them."""


@dataclass(frozen=True)
class Input:
    """A file to work on.

    Attributes:
        path: the file; None for standard input.
        name: its place below the folder that was named, or its own name: what its output is named by.
    """

    path: Path | None
    name: PurePath

    def __str__(self) -> str:
        """What messages call it."""
        return shown(self.path) if self.path else "standard input"

    @property
    def source(self) -> str:
        """What its tokens call it: the name, which may not be Unicode, in Unicode."""
        return self.name.as_posix().encode(errors="replace").decode()

    def read(self) -> Path | bytes:
        """The path, or what comes through the pipe, up to more than what is read of it."""
        from vartok.images import MAX_PIPED

        return self.path or sys.stdin.buffer.read(MAX_PIPED + 1)


def gather(
    names: list[str] | None,
    *,
    recursive: bool,
    files_from: str | None,
    null: bool,
    suffixes: tuple[str, ...],
    kind: str,
) -> list[Input]:
    """The files that a command line names, folders searched in sorted order.

    Raises:
        typer.BadParameter: a folder without -r, or with nothing in it; no input at all.
    """
    given = list(names or ())
    if "" in given:
        raise typer.BadParameter("an INPUT is empty")
    if null and files_from is None:
        raise typer.BadParameter("-0 is about --files-from")
    if files_from is not None:
        given += _read_list(files_from, null)
    elif not given:
        if sys.stdin.isatty():
            raise typer.BadParameter("no INPUT: name files, or pipe one in")
        given = [STDIN]
    inputs: list[Input] = []
    for name in given:
        if name == STDIN:
            inputs.append(Input(None, PurePath("stdin")))
        elif os.path.isdir(name):
            if not recursive:
                raise typer.BadParameter(f"{shown(name)} is a folder: use -r to take the files in it")
            found = sorted(_search(name, suffixes))
            if not found:
                raise typer.BadParameter(f"{shown(name)} holds no {kind}, by their names")
            inputs += [Input(path, path.relative_to(name)) for path in found]
        else:
            inputs.append(Input(Path(name), PurePath(Path(name).name)))
    if sum(item.path is None for item in inputs) > (files_from != STDIN):
        raise typer.BadParameter("standard input can be read only once")
    return inputs


def gather_pictures(
    names: list[str] | None, *, recursive: bool, files_from: str | None, null: bool, debug: bool
) -> list[Input]:
    """The picture files that a command line names; makes Pillow ready to read them.

    Raises:
        typer.BadParameter: as `gather`.
    """
    from vartok.images import configure_pillow, picture_suffixes

    configure_pillow(quiet=not debug)
    return gather(
        names,
        recursive=recursive,
        files_from=files_from,
        null=null,
        suffixes=picture_suffixes(),
        kind="pictures",
    )


def _read_list(source: str, null: bool) -> list[str]:
    try:
        data = sys.stdin.buffer.read() if source == STDIN else Path(source).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"--files-from {shown(source)}: {error.strerror}") from None
    if b"\0" in data and not null:
        raise typer.BadParameter(f"--files-from {shown(source)}: its names end with NUL, so use -0")
    names = data.split(b"\0") if null else data.splitlines()
    return [os.fsdecode(name) for name in names if name]


def _search(folder: str, suffixes: tuple[str, ...]) -> Iterator[Path]:
    for root, folders, files in os.walk(folder, onerror=_refuse_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(suffixes) and not name.startswith(".") and not DRAWN.search(name):
                yield Path(root, name)


def _refuse_unreadable(error: OSError) -> NoReturn:
    raise typer.BadParameter(f"{shown(error.filename)} cannot be searched: {error.strerror}")


@dataclass(frozen=True)
class Output:
    """Where results go: all into one stream, or each into a file, under a folder or beside its input.

    Attributes:
        rename: makes the output's name of an input's.
        stream: everything goes to stdout, or into `file` if there is one.
        file: the one file that the one result goes to.
        folder: what names are put under.
    """

    rename: Callable[[PurePath], PurePath]
    stream: bool = False
    file: Path | None = None
    folder: Path | None = None

    @classmethod
    def resolve(
        cls,
        output: str | None,
        inputs: list[Input],
        rename: Callable[[PurePath], PurePath],
        *,
        many: bool,
        suffixes: Collection[str],
    ) -> Output:
        """What -o means for these inputs, where each has a file of its own.

        Args:
            output: -o's value.
            inputs: the files to work on.
            rename: makes the output's name of an input's.
            many: whether there may be several results.
            suffixes: what files that are written end in; without a suffix -o is a folder.

        Raises:
            typer.BadParameter: several files for one place.
        """
        if output is None and [item.path for item in inputs] == [None]:
            output = STDIN
        if output is None:
            return cls(rename)
        if output == STDIN:
            if len(inputs) > 1:
                raise typer.BadParameter("stdout takes one result: name a folder with -o, or encode to jsonl")
            return cls(rename, stream=True)
        suffix = PurePath(output).suffix.lower()
        if output.endswith(("/", os.sep)) or os.path.isdir(output):
            return cls(rename, folder=Path(output))
        if suffix in suffixes and not many:
            return cls(rename, file=Path(output))
        if suffix and not many:
            raise typer.BadParameter(f"-o {shown(output)}: files end in {', '.join(suffixes)}, folders in /")
        if suffix in suffixes or os.path.lexists(output):
            raise typer.BadParameter(f"-o {shown(output)} is a file: name a folder")
        return cls(rename, folder=Path(output))

    def path(self, item: Input) -> Path:
        """The file that the result of `item` goes to."""
        if self.file is not None:
            return self.file
        name = self.rename(item.name)
        if self.folder is not None:
            return self.folder / name
        return item.path.with_name(name.name) if item.path else Path(name)

    def path_in(self, item: Input, source: str) -> Path | None:
        """The file for one of the results of `item`, named by what it calls its source; None: the stream."""
        if self.stream or self.file is not None:
            return self.file
        beside = item.path.parent if item.path else Path()
        return (self.folder or beside) / self.rename(safe_name(source))

    def plan(
        self, inputs: list[Input], report: Report, *, force: bool, skip: bool
    ) -> list[tuple[Input, Path | None]]:
        """The inputs that are to be worked on, and the file that each goes to, None for the stream.

        Raises:
            typer.BadParameter: two inputs would write one file, a result would replace an input, or
                `force` and `skip` are both wanted.
        """
        if force and skip:
            raise typer.BadParameter("--force and --skip-existing: which one?")
        sources = {os.path.realpath(item.path) for item in inputs if item.path}
        if self.stream:
            _keep(self.file, sources)
            free = self.file is None or is_free(self.file, self.file, report, force=force, skip=skip)
            if skip and not free:  # one file of many pictures cannot be gone on with
                report.note(f"{shown(self.file)} exists: passed over, whatever it may lack")
            return [(item, None) for item in inputs if free]
        planned: dict[str, tuple[Input, Path]] = {}
        for item in inputs:
            path = self.path(item)
            _keep(path, sources)
            other, _ = planned.setdefault(os.path.abspath(path), (item, path))
            if other is not item:
                if other.path == item.path:
                    raise typer.BadParameter(f"{item} is named twice")
                cure = "-r on the folder above" if item.name == other.name else "--full-names"
                raise typer.BadParameter(
                    f"{other} and {item} would both be written to {shown(path)}: use {cure}, or two runs"
                )
        return [
            (item, path)
            for item, path in planned.values()
            if is_free(item, path, report, force=force, skip=skip)
        ]

    @contextlib.contextmanager
    def open(self, *, overwrite: bool) -> Iterator[BinaryIO]:
        """The stream: stdout, or the file, which appears when the block ends well."""
        if self.stream and self.file is not None:
            with write_named(self.file, overwrite=overwrite) as file:
                yield file
        else:
            yield sys.stdout.buffer


def _keep(path: Path | None, sources: set[str]) -> None:
    if path and os.path.realpath(path) in sources:
        raise typer.BadParameter(f"-o: {shown(path)} is an input, which would be lost")


def choose_format(output: str | None, format: F | None, suffixes: Mapping[str, F], *, default: F) -> F:
    """What --format says, or -o's suffix, which must not say otherwise."""
    told = suffixes.get(PurePath(output or "").suffix.lower())
    if format and told and told != format:
        raise typer.BadParameter(f"-o {shown(output)} is {told} by its suffix, --format says {format}")
    return format or told or default


def is_free(item: object, path: Path, report: Report, *, force: bool, skip: bool) -> bool:
    """Whether `path` may be written; tells the report where not."""
    if force or not os.path.lexists(path):
        return True
    if skip:
        report.skip()
    else:
        report.fail(
            str(item), f"{shown(path)} exists: use --force to overwrite it, --skip-existing to pass over"
        )
    return False


def read_inputs(item: Input, report: Report) -> Iterator[ImageTokens]:
    """The images of a token file; what cannot be read is reported."""
    from vartok.tokens import read_tokens

    try:
        with contextlib.nullcontext(sys.stdin.buffer) if item.path is None else open(item.path, "rb") as file:
            for tokens in read_tokens(file):
                if isinstance(tokens, VartokError):
                    report.fail(str(item), tokens)
                else:
                    yield tokens
    except OSError as error:
        report.fail(str(item), (error.strerror or str(error)).lower())


def foreign(tokens: ImageTokens, tokenizer: Tokenizer) -> VartokError | None:
    """Why the loaded checkpoint cannot draw the tokens, and the cure; None where it can."""
    try:
        tokenizer.check_model(tokens.model)
    except VartokError as error:
        return VartokError(f"{shown(error)}: give its checkpoint with -w, or --any-weights")
    return None


def safe_name(source: str) -> PurePath:
    """What a token file calls its source, as a path that leads nowhere but down."""
    text = "".join(char if char.isprintable() else "_" for char in source.replace("\\", "/"))
    parts = [part for part in PurePosixPath(text).parts if part not in ("/", "//", "..")]
    return PurePath(*parts) if parts else PurePath("image")


@contextlib.contextmanager
def write_named(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Open a file that appears whole or not at all, and make the folders above it.

    Raises:
        VartokError: it cannot be written; names this file, and not the temporary one, as the system does.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, overwrite=overwrite) as file:
            yield file
    except OSError as error:
        raise VartokError(f"cannot write {shown(path)}: {error.strerror or error}") from None


def write_file(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Write a result, whole or not at all, and the folders above it.

    Raises:
        VartokError: it cannot be written; says where and why.
    """
    with write_named(path, overwrite=overwrite) as file:
        file.write(data)


def write_stream(stream: BinaryIO, data: bytes, name: object) -> None:
    """Write a result among others, now: who reads the pipe need not wait for the next one.

    Raises:
        OSError: it cannot be written; tells the stream's name.
    """
    try:
        stream.write(data)
        stream.flush()
    except OSError as error:
        error.filename = name
        raise


def stem(name: PurePath, endings: tuple[str, ...], *, full: bool) -> PurePath:
    """The name without its ending: the first of `endings` that fits, else its suffix; `full` keeps it."""
    if full:
        return name
    for ending in endings:
        if name.name.lower().endswith(ending) and len(name.name) > len(ending):
            return name.with_name(name.name[: -len(ending)])
    return name.with_suffix("")
