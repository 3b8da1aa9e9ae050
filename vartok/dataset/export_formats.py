"""The formats of exports: the files that other repositories' training loops read."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from vartok.dataset.rows import DatasetBucket
from vartok.schedule import token_count
from vartok.tokens import ImageTokens, token_dtype


class OutputFolder:
    """A folder that an export is written into.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path, files: contextlib.ExitStack) -> None:
        self.path, self._files = path, files

    def create(self, name: str) -> BinaryIO:
        """Open a new file in the folder, which stays open until the end of the export."""
        return self._files.enter_context(open(self.path / name, "wb"))  # the stack closes it


class ExportWriter(Protocol):
    """Writes the pictures of a bucket into a folder."""

    def add(self, views: Sequence[ImageTokens]) -> None:
        """Write the rows of a picture: all its views, in order.

        Raises:
            OSError: a file cannot be written.
        """


@dataclass(frozen=True)
class ExportFormat:
    """A format of exports.

    Attributes:
        open: function of (folder, bucket) that returns a writer.
        needs_label: whether its readers take no row without a label.
    """

    open: Callable[[OutputFolder, DatasetBucket], ExportWriter]
    needs_label: bool


class NpyWriter:
    """Writes tokens.npy, [N, L] uint16 or uint32, and labels.npy, [N] int64, -1 for rows without a label."""

    def __init__(self, folder: OutputFolder, bucket: DatasetBucket) -> None:
        self._dtype = token_dtype(bucket.encoding.model.vocab_size)
        self._tokens = folder.create("tokens.npy")
        self._labels = folder.create("labels.npy")
        _write_header(self._tokens, self._dtype, (bucket.rows, token_count(bucket.encoding.grids)))
        _write_header(self._labels, np.dtype("<i8"), (bucket.rows,))

    def add(self, views: Sequence[ImageTokens]) -> None:
        """Write a row of both arrays for each view."""
        for row in views:
            self._tokens.write(row.flatten().astype(self._dtype).tobytes())
            self._labels.write(np.array(-1 if row.label is None else row.label, "<i8").tobytes())


class BinWriter:
    """Writes train.bin, the tokens of all rows one after another: uint16, or uint32 above 65,536 codes.

    Source: github.com/karpathy/nanoGPT, train.py, which maps such a file into memory.
    """

    def __init__(self, folder: OutputFolder, bucket: DatasetBucket) -> None:
        self._dtype = token_dtype(bucket.encoding.model.vocab_size)
        self._tokens = folder.create("train.bin")

    def add(self, views: Sequence[ImageTokens]) -> None:
        """Write the tokens of each view."""
        for row in views:
            self._tokens.write(row.flatten().astype(self._dtype).tobytes())


class JsonlWriter:
    """Writes pretokenized.jsonl: {"class_id": label, "tokens": [...]} for each view.

    Source: github.com/bytedance/1d-tokenizer, scripts/pretokenization.py and data/webdataset_reader.py.
    """

    def __init__(self, folder: OutputFolder, bucket: DatasetBucket) -> None:
        self._file = folder.create("pretokenized.jsonl")

    def add(self, views: Sequence[ImageTokens]) -> None:
        """Write a line for each view."""
        for row in views:
            line = json.dumps({"class_id": row.label, "tokens": row.flatten().tolist()})
            self._file.write(f"{line}\n".encode())


class LlamaGenWriter:
    """Writes two files for each picture: its codes, [1, views, L] int64, and its label, [1] int64.

    They are imagenet256_codes/0.npy and imagenet256_labels/0.npy, numbered in order; 256 is the pictures'
    side.

    Source: github.com/FoundationVision/LlamaGen, autoregressive/train/extract_codes_c2i.py and
    dataset/imagenet.py.
    """

    def __init__(self, folder: OutputFolder, bucket: DatasetBucket) -> None:
        height, width = bucket.encoding.size
        side = f"{height}" if height == width else f"{height}x{width}"
        self._codes, self._labels = (folder.path / f"imagenet{side}_{kind}" for kind in ("codes", "labels"))
        self._codes.mkdir()
        self._labels.mkdir()
        self._count = 0

    def add(self, views: Sequence[ImageTokens]) -> None:
        """Write the picture's two files."""
        codes = np.stack([row.flatten().astype(np.int64) for row in views])
        np.save(self._codes / f"{self._count}.npy", codes[None])
        np.save(self._labels / f"{self._count}.npy", np.array([views[0].label], np.int64))
        self._count += 1


EXPORTS = {
    "npy": ExportFormat(NpyWriter, needs_label=False),
    "jsonl": ExportFormat(JsonlWriter, needs_label=True),
    "bin": ExportFormat(BinWriter, needs_label=False),
    "llamagen": ExportFormat(LlamaGenWriter, needs_label=True),
}
"""All formats of exports by name."""

METADATA = "metadata.json"
"""File of an export that tells what it holds."""

ROWS = "rows.jsonl"
"""File of an export with the other columns of every row: key, size, label, view, caption, metadata."""

_BUCKET = r"\d+x\d+"
_FILES = r"metadata\.json|rows\.jsonl|tokens\.npy|labels\.npy|train\.bin|pretokenized\.jsonl"
_FOLDERS = r"imagenet\d+(x\d+)?_(codes|labels)(/\d+\.npy)?"
_PATH = re.compile(rf"{_BUCKET}|({_BUCKET}/)?({_FILES}|{_FOLDERS})")


def is_export_path(path: str) -> bool:
    """Return whether an export of any format may write a file or folder at `path`, relative to its folder."""
    return _PATH.fullmatch(path) is not None


def _write_header(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
