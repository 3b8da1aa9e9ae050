"""Inputs of encoding and decoding: files, folders, lists, tars, tables and streams."""

from __future__ import annotations

import codecs
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, TypeAlias, cast

from vartok.dataset.schema import DATA, is_dataset
from vartok.errors import ArgumentError, SourceError, TokenFileError, VartokError, printable, quoted
from vartok.files import named_errors, os_error_reason
from vartok.images import MAX_BYTES
from vartok.npy import MAGIC, MAX_NPY_START, read_npy_header
from vartok.sources import Sample, find_input_shards
from vartok.sources.find import Kind, SearchReport, find_files
from vartok.sources.places import is_url, shorten_path
from vartok.sources.samples import as_unicode
from vartok.sources.web import lacks_slash, one_slash_error
from vartok.suffixes import LISTS, TABLES, TARS, TOKEN_COLLECTIONS, TOKEN_FILES
from vartok.token_sources import Row, read_path, read_stream

Source: TypeAlias = str | Path | BinaryIO
"""A path, a URL, or an open binary stream, which messages call standard input."""

PICTURE_KINDS: tuple[Kind, ...] = ("picture", "tar", "table")
TOKEN_KINDS: tuple[Kind, ...] = ("tokens",)
TOKENS = (b"PK", b"{", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")
"""First bytes of token files: npz, JSON, and JSONL that gzip, zstd, bzip2 or xz compressed."""

TITLES = {PICTURE_KINDS: "pictures", TOKEN_KINDS: "token files or data sets"}


@dataclass(frozen=True, eq=False)
class Input:
    """A file or stream to encode or decode.

    Attributes:
        name: path below the searched folder, or base name of a file that was named; outputs are named by it.
        kind: "picture", "tar", "table" (Parquet, Arrow) or "tokens"; "dataset" for the folder of a data set
            of tokens; "folder" for one that cannot be searched; "checkpoint" where one is drawn.
        place: path or URL of the file; None for a stream.
        stream: the stream; None for a file.
        error: the reason why a folder, list or URL gives no files, or why what a search found is no file to
            read; else None.
    """

    name: PurePath
    kind: Kind
    place: str | None = None
    stream: BinaryIO | None = None
    error: VartokError | None = None

    def __str__(self) -> str:
        """Return the path or URL for messages, or "standard input"."""
        return "standard input" if self.place is None else printable(shorten_path(self.place))

    @property
    def source(self) -> str:
        """The `image.source` of its tokens: `name` as Unicode; other bytes of a file's name become "%E9"."""
        return as_unicode(self.name.as_posix())

    @property
    def is_collection(self) -> bool:
        """True for a tar, a table, a data set, and a .jsonl, .npy or stream of tokens: several pictures."""
        if self.kind == "tokens":
            return self.place is None or self.place.lower().endswith(TOKEN_COLLECTIONS)
        return self.kind in ("tar", "table", "dataset")

    def samples(
        self, max_bytes: int = MAX_BYTES, passed_over: Counter[str] | None = None
    ) -> Iterator[tuple[str | None, Sample]]:
        """Yield the key and the sample, not decoded, of each picture; the key is None outside a collection.

        Labels, captions and metadata are not read, so that a broken one costs no picture.
        If the input has an error, or its tar or table cannot be read on, the last sample holds the error.

        Args:
            max_bytes: size limit in bytes of a picture in a tar, a table or a stream.
            passed_over: counter to which the members of a tar are added that are passed over, by kind.
        """
        label = str(self)
        if self.error is not None:
            yield None, Sample(label, self.error)
        elif self.stream is not None:
            with named_errors(label):
                data = self.stream.read(max_bytes + 1)
            yield None, Sample(label, data)
        elif self.is_collection:
            try:
                shards = find_input_shards([str(self.place)], 1)
            except SourceError as error:
                yield None, Sample(label, _without_name(error, str(self.place)))
                return
            for shard in shards:
                for sample in shard.samples(max_bytes, passed_over, pictures_only=True):
                    # A shard that cannot be read on ends in a sample of the shard's own name.
                    yield None if sample.final else sample.key, sample
        else:
            yield None, Sample(label, str(self.place) if is_url(str(self.place)) else Path(str(self.place)))

    def rows(self, *, texts: bool = False) -> Iterator[Row]:
        """Yield the tokens of each image of a token file, array, data set or shard, or an error.

        The last item is an error if the input has one, or cannot be read on.

        Args:
            texts: read the captions and metadata of data sets.
        """
        if self.error is not None:
            yield Row(self.error)
        elif self.stream is None:
            yield from read_path(Path(str(self.place)), texts=texts)
        else:
            try:
                yield from read_stream(self.stream)
            except OSError as error:
                yield Row(TokenFileError(os_error_reason(error)))


class Inputs(list[Input]):
    """Inputs in order.

    Attributes:
        passed_over: number of files that the search passed over, by suffix, see `SearchReport`.
    """

    def __init__(self, passed_over: Counter[str]) -> None:
        super().__init__()
        self.passed_over = passed_over


def find_inputs(
    sources: Source | Iterable[Source], kinds: tuple[Kind, ...] = PICTURE_KINDS, *, recursive: bool = False
) -> Inputs:
    """Return the files that sources name, in the sources' order; the files of a folder are sorted.

    A file that is named is taken whatever its suffix, and not opened: a missing file fails when it is read.
    A folder, list or URL that cannot be searched becomes an input with an error, so that the other sources
    are still processed.

    Args:
        sources: one or several of: path or URL of a file, a folder or a list of paths (.txt); binary stream.
        kinds: kinds of files that a folder is searched for; the first is the kind of an unknown suffix. With
            `TOKEN_KINDS` data sets are found too.
        recursive: take the files in folders; the folder of a data set of tokens does not need it.

    Raises:
        ArgumentError: a folder where `recursive` is false, an empty path, or a source of another type.

    Warns:
        VartokWarning: pictures were searched, and files were passed over because of their suffixes.
    """
    single = (
        isinstance(sources, (str, os.PathLike))
        or not isinstance(sources, Iterable)
        or hasattr(sources, "read")
    )
    given = [cast(Source, sources)] if single else cast(Iterable[Source], sources)
    report = SearchReport()
    inputs = Inputs(report.passed_over)
    for source in given:
        inputs += _find(source, kinds, recursive, report)
    if "picture" in kinds:  # token files lie beside pictures, which nobody expects to be decoded
        report.warn()
    return inputs


def kind_of_stream(stream: BinaryIO) -> Kind:
    """Return "tokens" for a stream that begins as token files or arrays of tokens do, else "picture"."""
    head = peek(stream)
    if not head.startswith(MAGIC):
        return "tokens" if head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(TOKENS) else "picture"
    try:
        header = read_npy_header(io.BytesIO(head))
    except ValueError:
        return "tokens"
    return "tokens" if header.dtype.kind in "iu" and len(header.shape) < 3 else "picture"


def peek(stream: BinaryIO) -> bytes:
    """Return the first bytes of a stream, which stay to be read."""
    if hasattr(stream, "peek"):
        return bytes(stream.peek(MAX_NPY_START)[:MAX_NPY_START])
    here = stream.tell()
    head = stream.read(MAX_NPY_START)
    stream.seek(here)
    return head


def check_path(path: object, *, hint: str) -> None:
    """Check that an argument is a path.

    Args:
        path: the argument.
        hint: the error's hint: the function to call instead for a picture or tokens in memory.

    Raises:
        ArgumentError: `path` is neither a str nor an os.PathLike.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentError(f"a path is a str or a Path, not {quoted(type(path).__name__)}", hint=hint)


def name_file(path: str | Path, error: VartokError) -> VartokError:
    """Return an error of the same class whose message begins with the file's path."""
    return type(error)(f"{printable(path)}: {error}", hint=error.hint)


def _find(source: Any, kinds: tuple[Kind, ...], recursive: bool, report: SearchReport) -> Iterator[Input]:
    file_kind = kinds[0]
    if not isinstance(source, (str, os.PathLike)):
        if not hasattr(source, "read"):
            raise ArgumentError(f"an input is a path or a binary stream, not {quoted(type(source).__name__)}")
        yield Input(PurePath("stdin"), file_kind, stream=source)
        return
    place = os.fsdecode(source)
    if not place:
        raise ArgumentError("the path of an input is empty")
    path = PurePath(place)
    if lacks_slash(place):
        yield Input(path, file_kind, place, error=_without_name(one_slash_error(place), place))
        return
    if "picture" not in kinds and is_url(place):
        hint = "download it, and name the file"
        yield Input(path, file_kind, place, error=SourceError("tokens are not read from a URL", hint=hint))
        return
    if "tokens" in kinds:
        folder = place if path.name != DATA or is_dataset(place) else str(path.parent)
        if is_dataset(folder):
            yield Input(PurePath(path.name), "dataset", folder)
            return
    if os.path.isdir(place) and not recursive:
        kind = "a folder" if "picture" in kinds else "a folder without a data set"
        raise ArgumentError(f"{printable(place)} is {kind}", hint="set `recursive` to take the files in it")
    searched = os.path.isdir(place) or is_url(place)
    if not searched and not ("picture" in kinds and place.lower().endswith(LISTS)):
        yield Input(PurePath(path.name), _kind(place, kinds), place)
        return
    try:
        found = find_files(
            place, kinds=kinds, is_dataset=is_dataset if "tokens" in kinds else None, report=report
        )
        if not found:
            cure: str | None = f"token files end in {', '.join(TOKEN_FILES)}"
            if "picture" in kinds:
                cure = report.hint if report else None
            raise SourceError(f"holds no {TITLES[kinds]}, by their names", hint=cure)
    except SourceError as error:
        yield Input(path, file_kind, place, error=_without_name(error, place))
        return
    for file in found:
        name = PurePath(file.name)
        reason = None if file.error is None else SourceError(file.error)
        yield Input(name if searched else PurePath(name.name), file.kind, file.place, error=reason)


def _without_name(error: SourceError, place: str) -> SourceError:
    """Return an error without the source's name at its beginning, which a report adds."""
    text = str(error).removeprefix(f"{printable(place)}: ").removeprefix(f"{shorten_path(place)}: ")
    return SourceError(text, hint=error.hint)


def _kind(place: str, kinds: tuple[Kind, ...]) -> Kind:
    """Return the kind of a named file by its suffix; the first of `kinds` if the suffix is unknown."""
    if place.lower().endswith(TARS):
        return "tar"
    if place.lower().endswith(TABLES):
        return "table"
    return kinds[0]
