"""The interface of a shard format, and the checks of a row's columns."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vartok.dataset.encoding import Encoding
from vartok.dataset.schema import LATENT, OPTIONAL_COLUMNS
from vartok.errors import DatasetError, TokensError, VartokError, one_line, quoted
from vartok.metadata import View
from vartok.schedule import token_count
from vartok.tokens import ImageTokens, split_tokens

MAX_ROW_BYTES = 1 << 26
"""Size limit in bytes that readers set to each file of a row in a tar."""

COLUMN_TYPES: dict[str, type] = {
    "key": str,
    "width": int,
    "height": int,
    "label": int,
    "caption": str,
    "metadata": str,
}
"""Types of a row's columns other than its tokens; columns of `OPTIONAL_COLUMNS` may also be None."""

VIEW_COLUMNS = ("view", "box", "flipped")
"""Columns of a row's `View`, in data sets with views: its number, box and mirroring."""

ALL_COLUMNS = (*OPTIONAL_COLUMNS, LATENT)
"""Columns that a reader may leave out."""


class ShardWriter(Protocol):
    """Writer of the rows of one shard."""

    def add(self, tokens: ImageTokens, picture: bytes | None = None) -> None:
        """Write a row, or buffer it.

        Args:
            tokens: tokens of one view of a picture in the data set's schedule; `image.source` is the
                picture's key. `image.damaged` is not written: the shard's stats hold it.
            picture: content of the picture file, or None; ignored by formats without `keeps_pictures`.

        Raises:
            VartokError: the format cannot hold this row; nothing is written.
        """

    def close(self) -> None:
        """Write the buffered rows and the end of the shard; leave the stream open."""


@dataclass(frozen=True)
class Format:
    """A file format of shards. The same rows always give the same bytes.

    Attributes:
        name: the format's name: the argument `format` of `build`, and "files" in dataset.json.
        suffix: suffix of its files, with the dot.
        open_writer: function of (stream, encoding) that returns a writer; the stream need not be seekable.
        read: function of (path, encoding, columns) that yields the rows of a shard in order, and the error of
            a row that is broken. It leaves out those of `ALL_COLUMNS` that are not in `columns`. Any
            exception of it, except OSError, means that the shard is broken from there on.
        keeps_pictures: True if its writers store the picture files with the tokens.
        packages: optional packages that its writers and `read` import.
    """

    name: str
    suffix: str
    open_writer: Callable[[io.RawIOBase, Encoding], ShardWriter]
    read: Callable[[Path, Encoding, Collection[str]], Iterator[ImageTokens | VartokError]]
    keeps_pictures: bool = False
    packages: tuple[str, ...] = ()


def row_fields(tokens: ImageTokens) -> dict[str, Any]:
    """Return the columns of a row but its tokens and latent, by name; columns that are None are left out."""
    image = tokens.image
    fields: dict[str, Any] = {"key": image.source, "width": image.width, "height": image.height}
    optional = {name: getattr(tokens, name) for name in OPTIONAL_COLUMNS}
    fields |= {name: value for name, value in optional.items() if value is not None}
    if tokens.view is not None:
        fields |= {"view": tokens.view.number, "box": tokens.view.box, "flipped": tokens.view.flipped}
    return fields


def check_fields(fields: Any) -> dict[str, Any]:
    """Check the types of a row's columns other than its tokens.

    Args:
        fields: values by column, from a JSON object or a row of a table.

    Returns:
        The value of every column in `COLUMN_TYPES`, by name; None for a missing optional column.

    Raises:
        DatasetError: `fields` is not a dict, a required column is missing, or a value has another type.
    """
    if not isinstance(fields, dict):
        raise DatasetError("a row is not a JSON object")
    values = {name: fields.get(name) for name in COLUMN_TYPES}
    for name, kind in COLUMN_TYPES.items():
        if type(values[name]) is not kind and (name not in OPTIONAL_COLUMNS or values[name] is not None):
            raise DatasetError(f"{name} of a row must be of type {kind.__name__}, not {quoted(values[name])}")
    return values


def read_view(fields: dict[str, Any], encoding: Encoding) -> View | None:
    """Return the view that a row's columns state; None if the data set has no views.

    Raises:
        DatasetError: the row states no view, or one that the data set does not have.
    """
    if not encoding.has_views:
        return None
    try:
        view = View(*(fields.get(name) for name in VIEW_COLUMNS))  # type: ignore[arg-type]  # checks them
    except TokensError as error:
        raise DatasetError(str(error)) from None
    if view.number >= encoding.rows_per_picture:
        raise DatasetError(f"has view {view.number}, but the views are {encoding.views}")
    return view


def read_latent(values: NDArray[Any] | None, encoding: Encoding) -> NDArray[np.float16]:
    """Return the [C, h, w] latent of a row.

    Args:
        values: C h w float16, in any shape; None if the row has none.
        encoding: encoding of the data set.

    Raises:
        DatasetError: there are no values, or of another number or type.
    """
    shape = encoding.latent_shape or ()
    if values is None or values.dtype != np.float16 or values.size != math.prod(shape):
        raise DatasetError(f"its latent is not {list(shape)} float16")
    return values.reshape(shape)


def build_row(
    fields: Any,
    flat: NDArray[Any],
    encoding: Encoding,
    *,
    columns: Collection[str] = ALL_COLUMNS,
    latent: NDArray[np.float16] | None = None,
) -> ImageTokens:
    """Build a row from the columns that a shard holds.

    Args:
        fields: the columns other than the tokens and the latent, as `check_fields` takes them.
        flat: [L] integers, scales coarse to fine, each row by row.
        encoding: encoding of the data set.
        columns: the columns of `ALL_COLUMNS` to read.
        latent: [C, h, w], or None.

    Raises:
        DatasetError: a column has the wrong type or value, or the tokens do not fit the encoding.
    """
    values = check_fields(fields)
    length = token_count(encoding.grids)
    if flat.shape != (length,) or flat.dtype.kind not in "iu":
        raise DatasetError(f"{one_line(values['key'])}: its tokens are not {length} integers")
    try:
        return ImageTokens(
            split_tokens(flat, encoding.grids),
            encoding.model,
            encoding.image_info(values["key"], values["width"], values["height"]),
            **{name: values[name] for name in OPTIONAL_COLUMNS if name in columns},
            view=read_view(fields, encoding),
            latent=latent,
            schedule=encoding.schedule,
        )
    except (TokensError, DatasetError) as error:
        raise DatasetError(f"{one_line(values['key'])}: {error}") from None
