"""Read tokens from any source: token files, arrays of tokens, data sets, and shards of data sets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

from vartok.dataset.encoding import Encoding
from vartok.dataset.formats import find_format, iter_rows, shard_errors
from vartok.dataset.formats.parquet import PARQUET, parquet_encoding
from vartok.dataset.formats.wds import WDS, read_flat_wds
from vartok.dataset.schema import find_shard, is_dataset, open_dataset
from vartok.errors import DatasetError, TokenFileError, VartokError, counted, printable
from vartok.files import check_regular, os_error_reason
from vartok.flat_tokens import FlatTokens, read_flat_tokens
from vartok.images import picture_suffixes
from vartok.npy import MAGIC
from vartok.sources.samples import as_unicode
from vartok.suffixes import TABLES, TARS
from vartok.token_streams import iter_tokens
from vartok.tokens import ImageTokens

Found: TypeAlias = ImageTokens | FlatTokens | VartokError
"""Tokens of an image, with or without metadata, or the reason why they cannot be read."""


class Row(NamedTuple):
    """An image of a source.

    Attributes:
        tokens: its tokens, or an error.
        key: its key in a data set or an array, with the number of the view if there are several, as "a#1";
            None in a token file, and for an error.
        class_name: name of its label, if its data set numbers the names of classes; else None.
    """

    tokens: Found
    key: str | None = None
    class_name: str | None = None


def load_tokens(path: str | Path) -> ImageTokens:
    """Read a token file of one image.

    Raises:
        TokenFileError: the file cannot be read, or holds no image or several; the message names the file.
    """
    tokens = load_row(path)
    if isinstance(tokens, FlatTokens):
        raise _no_metadata(f"{printable(path)}: ")
    return tokens


def load_row(path: str | Path) -> ImageTokens | FlatTokens:
    """Read a token file, or an array of tokens, of one image.

    Raises:
        TokenFileError: as `load_tokens` does.
    """
    name = f"{printable(path)}: "
    images = [_checked(row.tokens, name) for row in itertools.islice(read_path(Path(path)), 2)]
    if len(images) != 1:
        number = "several images" if images else "no image"
        raise TokenFileError(
            f"{name}holds {number}, not one", hint="`read_tokens` and `decode_files` take such a file"
        )
    return images[0]


def read_tokens(file: str | Path | BinaryIO) -> Iterator[ImageTokens]:
    """Read the images of a token file, a data set or a shard of one, one at a time.

    Captions and metadata of a data set's rows are left out; `vartok.dataset.TokenDataset` reads them.

    Args:
        file: a path of a token file in any format, of a data set's folder, or of a shard; or a buffered
            binary stream of a token file.

    Raises:
        TokenFileError: an image cannot be read; the message names the file if it was given by path.
    """
    name = f"{printable(file)}: " if isinstance(file, str | Path) else ""
    try:
        for row in read_path(Path(file)) if isinstance(file, str | Path) else read_stream(file):
            tokens = _checked(row.tokens, name)
            if isinstance(tokens, FlatTokens):
                raise _no_metadata(name)
            yield tokens
    except OSError as error:
        raise TokenFileError(f"{name}{os_error_reason(error)}") from None


def _checked(tokens: Found, name: str) -> ImageTokens | FlatTokens:
    """Return tokens that are no error; an error is raised, with the file's name before it."""
    if isinstance(tokens, VartokError):
        raise TokenFileError(f"{name}{tokens}", hint=tokens.hint)
    return tokens


def _no_metadata(name: str) -> TokenFileError:
    return TokenFileError(
        f"{name}is an array without metadata",
        hint="read it with `numpy.load`, and decode it with `Tokenizer.decode`",
    )


def read_path(path: Path, *, texts: bool = False) -> Iterator[Row]:
    """Yield the images of a token file, an array, a data set's folder, or a shard.

    A file in the folder data/ of a data set is a shard of it. Elsewhere, a Parquet file has an encoding of
    its own, and the rows of a tar are tokens without metadata. Other files are recognized by their content.
    If the source cannot be read, or not to its end, the last item says why.

    Args:
        path: the source.
        texts: read the captions and metadata of data sets.
    """
    try:
        yield from _read_path(path, texts)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        yield Row(TokenFileError(os_error_reason(error)))
    except VartokError as error:
        yield Row(error)
    except MemoryError:
        yield Row(TokenFileError("not enough memory to read it"))


def read_stream(stream: BinaryIO, stem: str = "stdin") -> Iterator[Row]:
    """Yield the images of a token file or an array.

    Args:
        stream: a buffered binary stream; it is read forward only, so a pipe will do.
        stem: name of the file without suffix, for the keys of an array's rows.

    Raises:
        OSError: the stream cannot be read.
    """
    if not _begins_with(stream, MAGIC):
        yield from map(Row, iter_tokens(stream))
        return
    for tokens in read_flat_tokens(stream, stem):
        yield Row(tokens, tokens.key if isinstance(tokens, FlatTokens) else None)


def _begins_with(stream: BinaryIO, start: bytes) -> bool:
    """Return whether a stream begins with some bytes, which stay to be read."""
    if hasattr(stream, "peek"):
        return bytes(stream.peek(len(start))[: len(start)]) == start
    if not stream.seekable():
        return False
    here = stream.tell()
    found = stream.read(len(start)) == start
    stream.seek(here)
    return found


def _read_path(path: Path, texts: bool) -> Iterator[Row]:
    name = path.name.lower()
    if path.is_dir() and is_dataset(path):
        yield from _read_dataset(path, texts)
    elif found := find_shard(path):
        description, encoding = open_dataset(found[0])
        counts = {item["name"]: encoding.count_rows(item) for item in description.get("shards", ())}
        encoding = encoding.of_shard(found[1])
        read = _ShardReader(description["files"], encoding, tuple(description.get("classes", ())), texts)
        yield from read(path, counts.get(found[1]))
    elif name.endswith(TABLES):
        find_format(PARQUET.name)
        with shard_errors(PARQUET.name):
            check_regular(path)
            encoding = parquet_encoding(path)
        yield from _ShardReader(PARQUET.name, encoding, (), texts)(path)
    elif name.endswith(TARS):
        with shard_errors(WDS.name):
            check_regular(path)
            yield from map(_row, read_flat_wds(path))
    else:
        with open(path, "rb") as stream:
            rows = read_stream(stream, as_unicode(path.stem))
            yield from map(_refuse_picture, rows) if name.endswith(picture_suffixes()) else rows


def _read_dataset(folder: Path, texts: bool) -> Iterator[Row]:
    """Yield the rows of all shards that dataset.json lists; a broken shard does not end the data set."""
    description, encoding = open_dataset(folder)
    read = _ShardReader(description["files"], encoding, tuple(description.get("classes", ())), texts)
    for shard in description.get("shards", ()):
        name: str = shard["name"]
        try:
            shard_read = read._replace(encoding=encoding.of_shard(name))
            for row in shard_read(folder / name, encoding.count_rows(shard)):
                error = row.tokens
                yield Row(_prefixed(name, error)) if isinstance(error, VartokError) else row
        except OSError as error:
            yield Row(DatasetError(f"{name}: {os_error_reason(error)}"))
        except VartokError as error:
            yield Row(_prefixed(name, error))
    if not description.get("complete"):
        raise DatasetError(
            f"is not complete: {counted(len(description.get('shards', ())), 'shard')} are finished",
            hint="run the same build again, for each part if it was made in parts",
        )


class _ShardReader(NamedTuple):
    """Reads the shards of a data set.

    Attributes:
        format: name of their format.
        encoding: encoding of their rows.
        classes: names of the labels; empty if labels have no names.
        texts: read captions and metadata.
    """

    format: str
    encoding: Encoding
    classes: tuple[str, ...]
    texts: bool

    def __call__(self, path: Path, stated: int | None = None) -> Iterator[Row]:
        """Yield the rows of a shard.

        Args:
            path: the shard.
            stated: number of rows that it should have; None if that is not known.

        Raises:
            DatasetError, OSError: the shard cannot be read, not to its end, or has another number of rows.
        """
        rows = 0
        for tokens in iter_rows(self.format, path, self.encoding, texts=self.texts):
            rows += 1
            if stated is not None and rows > stated:
                raise DatasetError(f"has more rows than the {stated:,} that dataset.json states")
            label = None if isinstance(tokens, VartokError) else tokens.label
            name = None if label is None or label >= len(self.classes) else self.classes[label]
            yield _row(tokens)._replace(class_name=name)
        if stated is not None and rows < stated:
            raise DatasetError(f"has {counted(rows, 'row')}, but dataset.json states {stated:,}")


def _row(tokens: Found) -> Row:
    if isinstance(tokens, VartokError):
        return Row(tokens)
    return Row(tokens, tokens.row_key if isinstance(tokens, ImageTokens) else tokens.key)


def _refuse_picture(row: Row) -> Row:
    """Return a row of a file that has the name of a picture; if it holds no tokens, say that it is one."""
    if not isinstance(row.tokens, VartokError):
        return row
    return Row(picture_error().with_traceback(row.tokens.__traceback__))


def picture_error() -> TokenFileError:
    """Return the error of a file that has the name of a picture, and holds no tokens."""
    reason = "is a picture by its name, and no token file, array of tokens or data set"
    return TokenFileError(reason, hint="encode it first")


def _prefixed(name: str, error: VartokError) -> VartokError:
    return type(error)(f"{name}: {error}", hint=error.hint)
