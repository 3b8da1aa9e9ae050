"""Input shards: tars, tables and runs of picture files, each read by one process.

The shards and their order depend only on the sources and the arguments, so that machines agree on them
without communication.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from vartok.errors import ImageError, SourceError, VartokError
from vartok.files import os_error_reason
from vartok.images import MAX_BYTES
from vartok.sources.columns import ANY_COLUMNS, NamedColumns
from vartok.sources.find import SearchReport, find_files
from vartok.sources.places import absolute, is_url, shorten_path
from vartok.sources.samples import Sample, as_unicode
from vartok.sources.tables import read_table_samples
from vartok.sources.tars import read_tar_samples
from vartok.sources.web import hide_secrets, without_login, without_query
from vartok.suffixes import LISTS


class PictureFile(NamedTuple):
    """A picture in its own file, not in a tar or table.

    Attributes:
        key: key of the picture's sample.
        place: path or URL.
        label: class index, if folders are classes and the picture lies in one; else None.
        error: the reason why there is no picture to read, as for a folder that cannot be searched; else None.
    """

    key: str
    place: str
    label: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class InputShard:
    """A tar, a table, or a run of successive picture files, which one process reads.

    Attributes:
        kind: "tar", "table" or "files".
        name: path or URL of the tar or table, or of the first file of a run.
        size: size of the tar or table in bytes; None for a run of files, or if unknown.
        files: the files of a run; empty for a tar or table.
        columns: the columns of the table that the caller chose.
    """

    kind: Literal["tar", "table", "files"]
    name: str
    size: int | None = None
    files: tuple[PictureFile, ...] = ()
    columns: NamedColumns = ANY_COLUMNS

    @property
    def identity(self) -> str:
        """Text by which a resumed run detects that its sources changed.

        For a tar or table it has the folder, the name and the chosen columns; for a run of files, their
        number, and a hash of their keys and labels.
        """
        if self.kind == "files":
            names = "\0".join(f"{file.key} {file.label}" for file in self.files)
            return f"{len(self.files)} files ({hashlib.sha256(names.encode()).hexdigest()[:16]})"
        # With the folder, since shards of several data sets often have equal names. Without a URL's login and
        # query, whose signature differs in every run.
        name = "/".join(
            absolute(without_login(without_query(self.name))).replace(os.sep, "/").split("/")[-2:]
        )
        columns = self.columns.named()
        image = columns.pop("image", None)
        chosen = [f", column {image}"] * (image is not None)
        return as_unicode(name) + "".join(
            [*chosen, *(f", {role} {column}" for role, column in columns.items())]
        )

    def find(self, key: str) -> str:
        """Return the place of a sample for messages: its path or URL, or "shard.tar: key"."""
        for file in self.files:
            if file.key == key:
                return shorten_path(as_unicode(file.place))
        name = self.shown
        return name if key == name else f"{name}: {key}"

    def samples(
        self,
        max_bytes: int = MAX_BYTES,
        passed_over: Counter[str] | None = None,
        classes: Mapping[str, int] | None = None,
        *,
        pictures_only: bool = False,
    ) -> Iterator[Sample]:
        """Yield the samples in order; if reading fails, the last one has the error, and is `final`.

        Args:
            max_bytes: size limit of a picture in a tar or table, in bytes. A larger picture is replaced by an
                error.
            passed_over: counter to which the members of a tar are added that are passed over, by kind.
            classes: labels by the names of classes in a table; None if the labels in it are whole numbers.
            pictures_only: leave labels, captions and metadata out, so that a broken one costs no picture.
        """
        try:
            if self.kind == "tar":
                yield from read_tar_samples(
                    self.name, self.size, max_bytes, passed_over, pictures_only=pictures_only
                )
            elif self.kind == "table":
                yield from read_table_samples(
                    self.name, self.columns, max_bytes, classes, pictures_only=pictures_only
                )
            else:
                yield from self._file_samples()
        except VartokError as error:
            yield Sample(self.shown, error, final=True)
        except Exception as error:  # any error of a remote file system's library, or of Arrow
            hint = "set `retry_failed` to make its shard again" if is_url(self.name) else None
            reason = ImageError(f"cannot be read to its end: {os_error_reason(error)}", hint=hint)
            yield Sample(self.shown, reason, final=True)

    @property
    def shown(self) -> str:
        """The name without the secrets of a URL, which is also the key of an error that ends the shard."""
        return as_unicode(hide_secrets(self.name))

    def _file_samples(self) -> Iterator[Sample]:
        for number, (key, place, label, error) in enumerate(self.files, 1):
            picture = SourceError(error) if error else place if is_url(place) else Path(place)
            yield Sample(key, picture, label, progress=number / len(self.files))


def find_input_shards(
    sources: Sequence[str | Path],
    shard_size: int,
    *,
    full_names: bool = False,
    folder_labels: bool = False,
    columns: NamedColumns = ANY_COLUMNS,
    exclude: str | Path | None = None,
    report: SearchReport | None = None,
) -> list[InputShard]:
    """Group the files of sources into input shards: tars and tables first, then picture files in runs.

    Args:
        sources: paths and URLs, as `find_files` takes them.
        shard_size: number of files in a run; the last run may have fewer.
        full_names: keep the suffixes of files in their keys.
        folder_labels: label picture files with the index of their class in `folder_classes`.
        columns: the columns of the tables that the caller chose.
        exclude: a folder that is skipped if it lies in a searched folder.
        report: record to which the searches are added.

    Raises:
        ArgumentError: a source is empty.
        SourceError: a source does not exist or cannot be searched; a file is named twice; there are no
            pictures; two files have the same key; or `folder_labels` is set, and a source is a list, or no
            file lies in a class's folder.

    Warns:
        VartokWarning: files were passed over because of their suffixes.
    """
    shards = []
    files = []
    report = SearchReport() if report is None else report
    found = [file for source in sources for file in find_files(source, exclude=exclude, report=report)]
    report.warn()
    for file in found:
        if file.kind == "folder":  # the slash tells its key from those of files
            files.append(PictureFile(f"{_as_key(file.name, full=True)}/", file.place, error=file.error))
        elif file.kind == "tar":
            shards.append(InputShard("tar", file.place, file.size))
        elif file.kind == "table":
            shards.append(InputShard("table", file.place, file.size, columns=columns))
        else:
            files.append(PictureFile(_as_key(file.name, full=full_names), file.place, error=file.error))
    if not shards and not files:
        raise SourceError(
            "found no pictures: name folders of pictures, tars, tables (Parquet, Arrow), lists or pictures"
        )
    _refuse_repeated([shard.name for shard in shards])
    _refuse_equal_keys(files)
    if folder_labels:
        if any(str(source).lower().endswith(LISTS) for source in sources):
            raise SourceError(
                "files of a list cannot get labels by folder: name the folder that contains the class folders"
            )
        files = _label(files, folder_classes(files, report))
    for start in range(0, len(files), shard_size):
        run = tuple(files[start : start + shard_size])
        shards.append(InputShard("files", run[0].place, files=run))
    return shards


def folder_classes(files: Iterable[PictureFile], report: SearchReport) -> list[str]:
    """Return the sorted names of the classes: the folders that lie directly in the searched folders.

    A label is an index into this list. A folder without pictures is a class too, so that the parts of a data
    set, such as train and val, number their classes alike.

    Source: torchvision's ImageFolder, which numbers classes in the same way.
    """
    return sorted(({_class(file) for file in files} | set(map(as_unicode, report.folders))) - {""})


def _label(files: list[PictureFile], classes: Sequence[str]) -> list[PictureFile]:
    if not any(map(_class, files)):
        raise SourceError(
            "no folders to label files by: name the folder that contains the class folders (tars and tables "
            "bring their own labels)"
        )
    labels = {name: label for label, name in enumerate(classes)}
    return [file._replace(label=labels.get(_class(file))) for file in files]


def _class(file: PictureFile) -> str:
    folder, slash, _ = file.key.partition("/")
    return folder if slash else ""


def _as_key(name: str, *, full: bool) -> str:
    """Return the key of a file: a relative Unicode path with slashes, without "." and ".." parts.

    The suffix is removed unless `full` is true.
    """
    parts = name.replace(os.sep, "/").split("/")
    key = "/".join(part for part in parts if part not in ("", ".", ".."))
    if not full:
        key = posixpath.splitext(key)[0]
    return as_unicode(key)


def _refuse_repeated(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        place = absolute(name)
        if place in seen:
            raise SourceError(f"{shorten_path(name)} is named twice")
        seen.add(place)


def _refuse_equal_keys(files: list[PictureFile]) -> None:
    """Raise SourceError if two files have the same key, since a row of tokens could belong to either."""
    seen: dict[str, PictureFile] = {}
    for file in files:
        other = seen.setdefault(file.key, file)
        if other is not file:
            if absolute(other.place) == absolute(file.place):
                raise SourceError(f"{shorten_path(file.place)} is named twice")
            folders = {os.path.dirname(absolute(one.place)) for one in (other, file)}
            endings = {posixpath.splitext(one.place)[1] for one in (other, file)}
            hint = "name the folder above both instead of each"
            if len(folders) == 1:
                hint = (
                    "set `full_names` to keep their suffixes" if len(endings) == 2 else "rename one of them"
                )
            both = f"{shorten_path(other.place)} and {shorten_path(file.place)}"
            raise SourceError(f"{both} would have one key, {file.key}", hint=hint)
