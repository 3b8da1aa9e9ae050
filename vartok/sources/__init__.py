"""Where pictures come from: folders, tars, tables, lists and URLs, taken apart into input shards.

An input shard is a tar, a Parquet file, or a run of picture files; it is what a process takes at a time.
Which there are, and in what order, depends on the sources alone, so that machines that do not talk to
each other agree on it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, NoReturn

from vartok.errors import ImageError, SourceError, VartokError, one_line, quoted
from vartok.images import MAX_PIPED, Fit, Picture, picture_suffixes, read_file, read_picture
from vartok.sources.tars import TarSample, read_tar

TARS = (".tar", ".tar.gz", ".tgz")
TABLES = (".parquet",)
LISTS = (".txt",)

ROWS = 16
"""Rows of a table that are read at once; each has a picture."""

BUFFER = 1 << 20
"""Bytes of a table's column that are read at once; by itself Arrow would read those of a whole row group."""

MAX_TEXT = 1 << 20
"""Characters of a caption, or of metadata."""

MAX_LABEL = (1 << 63) - 1

# What columns of tables are taken for, the first that there is; the last of each are WebDataset's names.
KEYS = ("key", "__key__")
LABELS = ("label", "cls")
CAPTIONS = ("caption", "text", "txt")
METADATA = ("metadata", "json")


@dataclass(frozen=True)
class Sample:
    """A picture that has not been read, and what is carried along with it.

    Attributes:
        key: what it is called: its path below its source without suffix, or as its shard calls it.
        picture: its file, its bytes, or its URL; or why there is none.
        label: a class, 0 or more.
        caption: any text.
        metadata: JSON, as it was found.
        progress: the share of its input shard that has been read with it, 0 to 1; None if that is not known.
        final: whether it stands for all that follows, since the input shard cannot be read on.
    """

    key: str
    picture: Path | bytes | str | VartokError
    label: int | None = None
    caption: str | None = None
    metadata: str | None = None
    progress: float | None = None
    final: bool = False

    def read(self, fit: Fit) -> Picture:
        """Read the picture.

        Raises:
            VartokError: it cannot be read, or never could.
        """
        return read_picture(self.file(), fit)

    def file(self) -> Path | bytes:
        """The picture's file, or its bytes.

        Raises:
            VartokError: it cannot be progress, or never could.
        """
        if isinstance(self.picture, VartokError):
            raise self.picture
        if not isinstance(self.picture, str):
            return self.picture
        try:
            with open_place(self.picture) as file:
                return file.read(MAX_PIPED + 1)
        except Exception as error:  # whatever the file system's library raises
            raise ImageError(f"cannot be read: {_reason(error)}") from None

    def with_bytes(self) -> Sample:
        """The sample with its picture's bytes, or why there are none, in the place of where they are."""
        try:
            file = self.file()
            return replace(self, picture=read_file(file) if isinstance(file, Path) else file)
        except VartokError as error:
            return replace(self, picture=error)

    def without_bytes(self) -> Sample:
        """The sample without its picture, which takes far more memory than the rest."""
        return replace(self, picture=b"")


class File(NamedTuple):
    """A picture's own file.

    Attributes:
        key: what its picture is called.
        place: its path or URL.
        label: its class, if folders are classes.
    """

    key: str
    place: str
    label: int | None = None


@dataclass(frozen=True)
class InputShard:
    """Pictures that are worked on together.

    Attributes:
        kind: what it is.
        name: what a user finds it by: the path or URL of a tar or a table, or of the first file of a run.
        size: its bytes; None for a run of files, or where that was not asked.
        files: those of a run.
        image_column: of a table, the column that holds pictures, if it was named.
    """

    kind: Literal["tar", "parquet", "files"]
    name: str
    size: int | None = None
    files: tuple[File, ...] = ()
    image_column: str | None = None

    @property
    def identity(self) -> str:
        """What it is told apart by from other pictures in the same place of the order."""
        if self.kind == "files":
            names = "\0".join(f"{file.key} {file.label}" for file in self.files)
            return f"{len(self.files)} files ({hashlib.sha256(names.encode()).hexdigest()[:16]})"
        # With its folder: shards of several sets often have the same names.
        name = "/".join(_absolute(self.name).replace(os.sep, "/").split("/")[-2:])
        return _as_unicode(name) + (f", column {self.image_column}" if self.image_column else "")

    def find(self, key: str) -> str:
        """Where a user finds the sample of a key."""
        for file in self.files:
            if file.key == key:
                return file.place
        name = _as_unicode(self.name)
        return name if key == name else f"{name}: {key}"

    def samples(self) -> Iterator[Sample]:
        """Its pictures, in order; where it cannot be read on, a last one that is an error."""
        read = {"tar": _tar_samples, "parquet": _table_samples, "files": _file_samples}[self.kind]
        try:
            yield from read(self)
        except VartokError as error:
            yield Sample(_as_unicode(self.name), error, final=True)
        except Exception as error:  # whatever the library of a remote file system, or Arrow, raises
            yield Sample(
                _as_unicode(self.name), ImageError(f"cannot be read on: {_reason(error)}"), final=True
            )


def find_input_shards(
    sources: Sequence[str],
    shard_size: int,
    *,
    full_names: bool = False,
    folder_labels: bool = False,
    image_column: str | None = None,
    exclude: Path | None = None,
) -> list[InputShard]:
    """Take sources apart into input shards: tars and tables first, then all other files in runs.

    Args:
        sources: paths or URLs (of fsspec's file systems; * is a pattern there) of folders, tars, Parquet
            files, lists of paths (.txt) and pictures. Folders are searched, in sorted order.
        shard_size: files of a run.
        full_names: keep the suffixes of files in their keys.
        folder_labels: label files by `folder_classes`.
        image_column: the column of tables that holds pictures; if None the one that can.
        exclude: a folder that is left out, if it lies in one that is searched.

    Raises:
        SourceError: a source that does not exist or cannot be searched, one that is named twice, nothing
            at all, or two files of one key.
    """
    places = [place for source in sources for place in _find(source, exclude)]
    shards = []
    files = []
    for key, place, size in places:
        lower = place.lower()
        if lower.endswith(TARS):
            shards.append(InputShard("tar", place, size))
        elif lower.endswith(TABLES):
            shards.append(InputShard("parquet", place, size, image_column=image_column))
        else:
            files.append(File(_as_key(key, full=full_names), place))
    if not places:
        raise SourceError("no pictures: name folders that hold some, tars, Parquet files, lists, or files")
    _refuse_twice([shard.name for shard in shards])
    if folder_labels and any(source.lower().endswith(LISTS) for source in sources):
        raise SourceError("labels are told by folders that are searched, not by lists")
    _refuse_equal(files)
    if folder_labels:
        numbers = {name: label for label, name in enumerate(_classes(files))}
        if not numbers:
            raise SourceError(
                "no folders to label files by: name the one that holds those of the classes (tars and tables "
                "bring their own labels)"
            )
        files = [file._replace(label=numbers.get(_class(file))) for file in files]
    for start in range(0, len(files), shard_size):
        run = tuple(files[start : start + shard_size])
        shards.append(InputShard("files", run[0].place, files=run))
    return shards


def folder_classes(shards: Iterable[InputShard]) -> list[str]:
    """The classes that folders are: the first ones in the keys of files, sorted; a label is a place in it.

    Source: torchvision's ImageFolder, which numbers them likewise.
    """
    return _classes(file for shard in shards for file in shard.files)


def _classes(files: Iterable[File]) -> list[str]:
    return sorted({_class(file) for file in files} - {""})


def _class(file: File) -> str:
    folder, slash, _ = file.key.partition("/")
    return folder if slash else ""


def open_place(place: str) -> BinaryIO:
    """Open a path or URL for reading, forward.

    Raises:
        ImageError: a path that is no regular file: it might never end.
        OSError: it cannot be opened; of URLs also whatever their file system's library raises.
    """
    if not _is_url(place):
        if not stat.S_ISREG(os.stat(place).st_mode):
            raise ImageError("is not a regular file")
        return open(place, "rb")
    import fsspec

    stream: BinaryIO = fsspec.open(place, "rb").open()
    return stream


def _find(source: str, exclude: Path | None) -> Iterable[tuple[str, str, int | None]]:
    """The files of a source: the name below it, the place, and the size where that costs nothing."""
    if _is_url(source):
        return _find_remote(source)
    path = Path(source)
    if path.is_dir():
        return _search(path, exclude)
    if not path.exists():
        raise SourceError(f"{source}: no such file or folder")
    if path.suffix.lower() in LISTS:
        return _read_list(source)
    return [(path.name, source, path.stat().st_size)]


def _search(folder: Path, exclude: Path | None) -> Iterator[tuple[str, str, int | None]]:
    suffixes = (*picture_suffixes(), *TARS, *TABLES)
    seen = {os.path.realpath(folder)}  # links to folders are followed, once
    if exclude:
        seen.add(os.path.realpath(exclude))
    for root, folders, files in os.walk(folder, onerror=_refuse_unreadable, followlinks=True):
        places = {name: os.path.realpath(os.path.join(root, name)) for name in sorted(folders)}
        folders[:] = []
        for name, place in places.items():
            if place not in seen and not name.startswith("."):
                seen.add(place)
                folders.append(name)
        for name in sorted(files):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                path = os.path.join(root, name)
                size = os.path.getsize(path) if name.lower().endswith((*TARS, *TABLES)) else None
                yield os.path.relpath(path, folder), path, size


def _find_remote(source: str) -> Iterator[tuple[str, str, int | None]]:
    import fsspec

    if source.lower().endswith(LISTS):
        yield from _read_list(source)
        return
    if source.lower().endswith((*TARS, *TABLES, *picture_suffixes())) and "*" not in source:
        yield posixpath.basename(source), source, None  # not asked: a request each
        return
    suffixes = (*picture_suffixes(), *TARS, *TABLES)
    try:
        system, root = fsspec.url_to_fs(source)
        found = system.glob(root, detail=True) if "*" in source else system.find(root, detail=True)
    except Exception as error:  # whatever the file system's library raises
        raise SourceError(f"{source}: cannot be searched: {_reason(error)}") from None
    if not found:
        raise SourceError(f"{source}: nothing there")
    base = root.partition("*")[0].rpartition("/")[0] if "*" in source else root.rstrip("/")
    for path in sorted(found):
        name = path[len(base) :].lstrip("/")
        hidden = any(part.startswith(".") for part in name.split("/"))
        if found[path]["type"] == "file" and path.lower().endswith(suffixes) and not hidden:
            yield name, system.unstrip_protocol(path), found[path].get("size")


def _read_list(source: str) -> Iterator[tuple[str, str, int | None]]:
    try:
        with open_place(source) as file:
            lines = file.read().splitlines()
    except Exception as error:  # a remote file system's too
        raise SourceError(f"{source}: cannot be read: {_reason(error)}") from None
    for line in lines:
        if line:
            place = os.fsdecode(line)
            yield place.partition("://")[2] if _is_url(place) else place, place, None


def _file_samples(shard: InputShard) -> Iterator[Sample]:
    for number, (key, place, label) in enumerate(shard.files, 1):
        picture = place if _is_url(place) else Path(place)
        yield Sample(key, picture, label, progress=number / len(shard.files))


def _tar_samples(shard: InputShard) -> Iterator[Sample]:
    with open_place(shard.name) as stream:
        size = shard.size or getattr(stream, "size", None)  # fsspec's files tell it
        for found in read_tar(stream):
            yield _tar_sample(found, stream.tell() / size if size else None)


def _tar_sample(found: TarSample, progress: float | None) -> Sample:
    key = _as_unicode(found.key)
    try:
        texts = {name: _as_text(f".{name}", content) for name, content in found.sidecars.items()}
        label = _as_label(texts["cls"]) if "cls" in texts else None
    except ImageError as error:
        return Sample(key, error, progress=progress)
    if not found.pictures:
        return Sample(key, ImageError("no picture under this name"), progress=progress)
    return Sample(key, found.pictures[0], label, texts.get("txt"), texts.get("json"), progress)


def _table_samples(shard: InputShard) -> Iterator[Sample]:
    import pyarrow.parquet

    with (
        open_place(shard.name) as stream,
        pyarrow.parquet.ParquetFile(stream, buffer_size=BUFFER, pre_buffer=False) as table,
    ):
        columns = _columns(table.schema_arrow, shard.image_column)
        names = list(dict.fromkeys(columns.values()))
        total = table.metadata.num_rows
        number = itertools.count()
        stem = _as_unicode(posixpath.basename(shard.name.replace(os.sep, "/"))).rpartition(".")[0]
        for rows in table.iter_batches(ROWS, columns=names, use_threads=False):
            for row in rows.to_pylist():
                n = next(number)
                yield _table_sample(row, columns, f"{stem}/{n:08d}", (n + 1) / total)


def _table_sample(row: dict[str, Any], columns: dict[str, str], key: str, progress: float) -> Sample:
    """A row's sample; `columns` are those that it has, by what they are."""
    values = {what: row[name] for what, name in columns.items()}
    image = values["image"]
    if isinstance(image, dict):
        image = image.get("bytes")
    key = values.get("key") or key
    if image is None:
        return Sample(key, ImageError("no picture in its row"), progress=progress)
    try:
        label = _check_label(values.get("label"))
        for what in ("caption", "metadata"):
            if len(values.get(what) or "") > MAX_TEXT:
                raise ImageError(f"its {what} has more than {MAX_TEXT:,} characters")
    except ImageError as error:
        return Sample(key, error, progress=progress)
    return Sample(key, image, label, values.get("caption"), values.get("metadata"), progress)


def _columns(schema: Any, image_column: str | None) -> dict[str, str]:
    """Which columns of a table are taken for what."""
    from pyarrow import types

    def holds_pictures(kind: Any) -> bool:
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_pictures(kind.field("bytes").type)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    fields = {field.name: field.type for field in schema}
    images = [name for name, kind in fields.items() if holds_pictures(kind)]
    if image_column is not None:
        if image_column not in images:
            raise ImageError(f"no column {quoted(image_column)} that holds pictures")
        images = [image_column]
    if len(images) != 1:
        found = ", ".join(map(one_line, images))
        raise ImageError(
            f"several columns may hold pictures ({found}): use --image-column"
            if images
            else "no column holds pictures"
        )
    wanted: dict[str, tuple[tuple[str, ...], Callable[[Any], bool]]] = {
        "key": (KEYS, _is_text),
        "label": (LABELS, types.is_integer),
        "caption": (CAPTIONS, _is_text),
        "metadata": (METADATA, _is_text),
    }
    columns = {"image": images[0]}
    for what, (names, fits) in wanted.items():
        for name in names:
            if name in fields and fits(fields[name]):
                columns.setdefault(what, name)
    return columns


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _as_text(what: str, content: bytes | ImageError) -> str:
    if isinstance(content, ImageError):
        raise content
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ImageError(f"its {what} is not text in UTF-8") from None


def _as_label(text: str) -> int | None:
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,30}\s*", text):
        raise ImageError(f"its .cls is a class, a whole number, not {quoted(text)}")
    return _check_label(int(text))


def _check_label(label: int | None) -> int | None:
    """A label; None where it is negative, as data sets have it where none is known."""
    if label is not None and label > MAX_LABEL:
        raise ImageError(f"its label is larger than {MAX_LABEL}")
    return label if label is not None and label >= 0 else None


def _as_key(name: str, *, full: bool) -> str:
    """The key of a file: its name in Unicode, with slashes, that leads nowhere but down."""
    parts = name.replace(os.sep, "/").split("/")
    key = "/".join(part for part in parts if part not in ("", ".", ".."))
    if not full:
        key = posixpath.splitext(key)[0]
    return _as_unicode(key)


def _as_unicode(name: str) -> str:
    """A name, which need not be Unicode, in Unicode."""
    return name.encode(errors="replace").decode()


def _reason(error: Exception) -> str:
    return one_line(getattr(error, "strerror", None) or error) or type(error).__name__


def _absolute(place: str) -> str:
    return place if _is_url(place) else os.path.abspath(place)


def _is_url(place: str) -> bool:
    return "://" in place


def _refuse_unreadable(error: OSError) -> NoReturn:
    raise SourceError(f"{error.filename}: cannot be searched: {error.strerror}")


def _refuse_twice(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        place = _absolute(name)
        if place in seen:
            raise SourceError(f"{name} is named twice")
        seen.add(place)


def _refuse_equal(files: list[File]) -> None:
    """Refuse two files of one key: which of them a row is of, nobody could tell."""
    seen: dict[str, File] = {}
    for file in files:
        other = seen.setdefault(file.key, file)
        if other is not file:
            if _absolute(other.place) == _absolute(file.place):
                raise SourceError(f"{file.place} is named twice")
            folders = {os.path.dirname(_absolute(one.place)) for one in (other, file)}
            way = "use --full-names" if len(folders) == 1 else "name the folder above both instead of each"
            raise SourceError(f"{other.place} and {file.place} would have one key, {file.key}: {way}")
