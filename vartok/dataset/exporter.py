"""Export a data set to the files that other repositories' training loops read."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vartok.dataset.export_formats import EXPORTS, METADATA, ROWS, OutputFolder, is_export_path
from vartok.dataset.formats.base import row_fields
from vartok.dataset.lock import folder_lock
from vartok.dataset.rows import DatasetBucket, FinishedDataset
from vartok.dataset.schema import OPTIONAL_COLUMNS
from vartok.errors import (
    ArgumentError,
    DatasetError,
    OutputError,
    OutputExistsError,
    StorageError,
    counted,
    printable,
    quoted,
    warn,
)
from vartok.files import STORAGE, TEMPORARY, os_error_reason
from vartok.schedule import token_count
from vartok.tokens import ImageTokens, token_dtype

FORMAT = "vartok.export"
VERSION = 1

REPORT_ROWS = 1000
"""Number of rows between two reports of progress."""


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """The result of `export`.

    Attributes:
        pictures: number of pictures that were exported.
        rows: number of their rows, one for each view.
        without_label: number of pictures without a label: the formats "jsonl" and "llamagen" leave them out.
        left_out: number of pictures that were left out.
        not_carried: what rows have and no format holds, "latent", and the number of rows.
    """

    pictures: int
    rows: int
    without_label: int
    left_out: int
    not_carried: dict[str, int]


def export(
    folder: str | Path,
    dest: str | Path,
    to: str = "npy",
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ExportSummary:
    """Write the rows of a data set in the format of another repository.

    The new folder appears when it is complete. It also has metadata.json, with the checkpoint, the schedule
    and the numbers of rows, and rows.jsonl, with the key and all other columns of each row but its latent. A
    data set with buckets gives a folder in it for each bucket.

    Args:
        folder: folder of the data set.
        dest: the new folder; folders above it are made.
        to: "npy": tokens.npy, [N, L], and labels.npy; "jsonl": a line {"class_id", "tokens"} for each row,
            for TiTok and RAR; "bin": train.bin, the tokens of all rows one after another, for nanoGPT;
            "llamagen": two small files for each picture, for LlamaGen.
        overwrite: replace an earlier export.
        progress: called with the number of rows that were read, and of all rows.

    Raises:
        ArgumentError: there is no format `to`.
        DatasetError: the folder holds no data set, or an incomplete or broken one; or the format needs
            labels, and no row has one; or another process writes the same export.
        OutputError: `dest` exists and `overwrite` is false, or it is not an export, or holds anything else;
            or it holds the data set; or it cannot be written.
        VartokError: a package that the format of the shards needs is not installed.

    Warns:
        VartokWarning: pictures have no label, or rows have latents, which no format holds.
    """
    dest = Path(dest)
    if to not in EXPORTS:
        raise ArgumentError(f"a data set is exported to {', '.join(EXPORTS)}, not {quoted(to)}")
    dataset = FinishedDataset.open(folder)
    if EXPORTS[to].needs_label and "label" not in dataset.buckets[0].columns:
        raise DatasetError(
            f"{folder} has no labels, and {to} needs them", hint="set `to` to npy or bin, which need none"
        )
    if Path(folder).resolve().is_relative_to(dest.resolve()):
        raise OutputError(f"{dest} holds the data set {folder}", hint="name another folder")
    _refuse_existing(dest, overwrite)
    totals = _Totals(dataset.rows, progress)
    try:
        with _new_folder(dest, overwrite) as part:
            for bucket in dataset.buckets:
                target = part / bucket.name
                target.mkdir(exist_ok=True)
                _write_bucket(target, bucket, to, totals)
            summary = totals.summary(dataset)
            if dataset.buckets[0].name:
                _write_metadata(part, {"to": to, "buckets": [bucket.name for bucket in dataset.buckets]})
    except OSError as error:
        kind = StorageError if error.errno in STORAGE else OutputError
        raise kind(f"cannot write {dest}: {os_error_reason(error)}") from None
    _warn(summary, to)
    return summary


class _Totals:
    """Counts the rows of an export, and reports them."""

    def __init__(self, rows: int, progress: Callable[[int, int], None] | None) -> None:
        self._all, self._progress = rows, progress
        self._read = self._reported = 0
        self.pictures = self.rows = self.without_label = self.left_out = 0

    def add(self, views: list[ImageTokens], *, exported: bool) -> None:
        """Count a picture."""
        self._read += len(views)
        self.without_label += views[0].label is None
        if exported:
            self.pictures += 1
            self.rows += len(views)
        else:
            self.left_out += 1
        done = self._read >= self._all
        if self._progress is not None and (done or self._read - self._reported >= REPORT_ROWS):
            self._reported = self._read
            self._progress(self._read, self._all)

    def summary(self, dataset: FinishedDataset) -> ExportSummary:
        """Return the sums."""
        latents = dataset.buckets[0].encoding.latents
        return ExportSummary(
            pictures=self.pictures,
            rows=self.rows,
            without_label=self.without_label if "label" in dataset.buckets[0].columns else 0,
            left_out=self.left_out,
            not_carried={"latent": self.rows} if latents and self.rows else {},
        )


def _write_bucket(folder: Path, bucket: DatasetBucket, to: str, totals: _Totals) -> None:
    """Write the rows of a bucket into a folder."""
    pictures = rows = 0
    with contextlib.ExitStack() as files:
        target = OutputFolder(folder, files)
        writer = EXPORTS[to].open(target, bucket)
        others = target.create(ROWS)
        for views in _pictures(bucket):
            exported = views[0].label is not None or not EXPORTS[to].needs_label
            if exported:
                writer.add(views)
                others.writelines(f"{json.dumps(row_fields(row))}\n".encode() for row in views)
                pictures, rows = pictures + 1, rows + len(views)
            totals.add(views, exported=exported)
    encoding = bucket.encoding
    about = {
        "to": to,
        "pictures": pictures,
        "rows": rows,
        "views": encoding.rows_per_picture,
        "tokens_per_row": token_count(encoding.grids),
        "vocab_size": encoding.model.vocab_size,
        "dtype": token_dtype(encoding.model.vocab_size).name,
        **encoding.to_dict(),
    }
    _write_metadata(folder, about)


def _pictures(bucket: DatasetBucket) -> Iterator[list[ImageTokens]]:
    """Yield the rows of each picture."""
    for shard in bucket.shards:
        shard.check_content()
        views = list[ImageTokens]()
        for row in bucket.read(shard, columns=OPTIONAL_COLUMNS):
            views.append(row)
            if len(views) == bucket.encoding.rows_per_picture:
                yield views
                views = []


def _write_metadata(folder: Path, about: dict[str, Any]) -> None:
    text = json.dumps({"format": FORMAT, "version": VERSION, **about}, indent=1)
    (folder / METADATA).write_text(text + "\n", encoding="ascii")


def _warn(summary: ExportSummary, to: str) -> None:
    if summary.left_out:
        warn(f"left out {counted(summary.left_out, 'picture')} without a label, which {to} needs")
    elif summary.without_label and to == "npy":
        told = counted(summary.without_label, "picture")
        warn(f"{told} without a label: -1 in labels.npy")
    for name, rows in summary.not_carried.items():
        warn(f"not exported: {name} ({counted(rows, 'row')})")


@contextlib.contextmanager
def _new_folder(dest: Path, overwrite: bool) -> Iterator[Path]:
    """Make a temporary folder beside `dest`, and rename it to `dest` if the block ends without an error.

    What a killed process has left of the same export is removed first.
    """
    part, old = (dest.parent / f"{TEMPORARY}{dest.name}.{kind}" for kind in ("export", "old"))
    part.mkdir(parents=True, exist_ok=True)
    try:
        with folder_lock(part, wait=False):
            try:
                for left in part.iterdir():
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                yield part
                _refuse_existing(dest, overwrite)
                _replace(dest, part, old)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
    except BlockingIOError:
        raise DatasetError(
            f"another process exports to {dest}", hint="wait until it has ended, or take another folder"
        ) from None


def _replace(dest: Path, part: Path, old: Path) -> None:
    """Rename the folder `part` to `dest`; an existing `dest` to `old` before, and back if an error occurs."""
    shutil.rmtree(old, ignore_errors=True)
    try:
        if dest.exists():
            dest.rename(old)
        part.rename(dest)
    except BaseException:
        if old.exists() and not dest.exists():
            old.rename(dest)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _refuse_existing(dest: Path, overwrite: bool) -> None:
    """Raise OutputExistsError if `dest` exists and must not be replaced."""
    if not os.path.lexists(dest):
        return
    if not overwrite:
        raise OutputExistsError(f"{dest} exists", hint="set `overwrite` to replace it")
    try:
        ours = f'"{FORMAT}"' in (dest / METADATA).read_text(errors="replace")[:100]
    except OSError:
        ours = False
    if not ours or dest.is_symlink():
        raise OutputExistsError(f"{dest} is no export of a data set, and is not replaced")
    paths = (path.relative_to(dest).as_posix() for path in dest.rglob("*"))
    other = min((path for path in paths if not is_export_path(path)), default=None)
    if other is not None:
        raise OutputExistsError(
            f"{dest} is not replaced: no export wrote its {printable(other)}",
            hint="move that, or name another folder",
        )
