"""Encode picture files: the functions behind `vartok encode`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple

from vartok.errors import VartokError
from vartok.files import open_output, write_bytes
from vartok.images import MAX_BYTES, MAX_PIXELS, Fit, Picture
from vartok.operations.inputs import Input, Source, check_path, find_inputs, name_file
from vartok.operations.outputs import (
    FileResult,
    FileResults,
    Output,
    OutputPlan,
    Target,
    choose_format,
    resolve_target,
    stem,
    write_stream,
)
from vartok.operations.settings import (
    default_batch_size,
    default_workers,
    make_fit,
    make_schedule,
    resolve_fit,
    resolve_tokenizer,
)
from vartok.operations.streams import PictureSource, encode_pictures
from vartok.token_files import dump_json, dump_npz

if TYPE_CHECKING:
    from vartok.schedule import ScheduleLike
    from vartok.tokenizer import Tokenizer
    from vartok.tokens import ImageTokens

TokenFormat = Literal["npz", "json", "jsonl"]

TOKEN_FORMATS: dict[str, TokenFormat] = {".npz": "npz", ".json": "json", ".jsonl": "jsonl"}
"""Formats of token files, by suffix."""


def encode_file(
    path: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    size: str | int | tuple[int, int] | None = None,
    fit: str = "crop",
    zoom: float = 1.0,
    background: str | tuple[int, int, int] = "white",
    schedule: ScheduleLike | None = None,
    max_pixels: int = MAX_PIXELS,
) -> ImageTokens:
    """Tokenize one picture file, as `encode_files` does, and return its tokens.

    Args:
        path: the picture.
        tokenizer: a loaded tokenizer, which saves loading one in every call. If None, `weights`, `device`
            and `dtype` are passed to `vartok.load`.
        weights: a checkpoint; the shipped one if None.
        device: torch device, or "auto".
        dtype: dtype of the encoder.
        size: side, or (height, width), of the encoded pixels; the checkpoint's own if None.
        fit: "crop", "pad", "stretch" or "native".
        zoom: with "crop": factor that the picture is scaled up by first, 1 to 100.
        background: colour under transparency and around a padded picture.
        schedule: (h, w) of every scale, or a text such as "1,2,4,8x12"; the checkpoint's own if None.
        max_pixels: a larger picture is refused before it is decoded.

    Raises:
        ArgumentError: arguments that contradict each other, or do not suit the checkpoint.
        ImageError: the picture cannot be read; the message names the file.
        CheckpointError, DeviceError: the tokenizer cannot be loaded.
    """
    check_path(path, hint="encode pictures in memory with `Tokenizer.encode`")
    fitted = make_fit(fit, size=size, zoom=zoom, background=background, max_pixels=max_pixels)
    grids = make_schedule(schedule)
    chosen = resolve_tokenizer(tokenizer, weights, device, dtype)
    fitted = resolve_fit([chosen], fitted, size=size, schedule=grids)
    pictures = [(None, Path(path).name, Path(path))]
    [(_, result)] = encode_pictures(chosen, pictures, fitted, schedule=grids)
    if isinstance(result, VartokError):
        raise name_file(path, result) from result
    return result


def encode_files(
    inputs: Source | Iterable[Source],
    output: Output = None,
    *,
    format: TokenFormat | None = None,
    recursive: bool = False,
    full_names: bool = False,
    overwrite: bool = False,
    skip_existing: bool = False,
    tokenizer: Tokenizer | Callable[[], Tokenizer] | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    compile: bool = False,
    size: str | int | tuple[int, int] | None = None,
    fit: str = "crop",
    zoom: float = 1.0,
    background: str | tuple[int, int, int] = "white",
    schedule: ScheduleLike | None = None,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    batch_size: int | None = None,
    workers: int | None = None,
) -> FileResults:
    """Tokenize picture files, and write a token file for each, or all into one.

    Names are planned and the tokenizer is loaded before this returns; pictures are encoded as the results
    are iterated over. `img.png` becomes `img.tokens.npz`; a picture of a tar or a table is named by its
    key. A picture that fails is a result with an error, whose `input` names the file, and the others go on.

    To encode pictures without writing files, see `vartok.encode_file` and
    `vartok.operations.encode_pictures`.

    Args:
        inputs: pictures, tars, Parquet files, lists of paths (.txt), URLs of these, folders, or a stream.
        output: a file (by its suffix), a folder, or a stream; None: beside each input.
        format: "npz", "json", or "jsonl", which puts all pictures into one file; if None the suffix of
            `output` tells, else npz.
        recursive: search folders; their tree is mirrored under `output`.
        full_names: keep the input's suffix in the output's name, so that names differ.
        overwrite: replace files that exist.
        skip_existing: skip pictures whose output exists.
        tokenizer: a loaded tokenizer, or a function that loads one, called only if there is work. If None,
            `weights`, `device`, `dtype` and `compile` are passed to `vartok.load`.
        weights: a checkpoint; the shipped one if None.
        device: torch device, or "auto".
        dtype: dtype of the encoder.
        compile: compile the networks, which takes a minute: for long runs on a GPU.
        size: side, or (height, width), of the encoded pixels; the checkpoint's own if None.
        fit: "crop": the centre; "pad": the whole picture, framed; "stretch"; "native": in its own size.
        zoom: with "crop": factor that a picture is scaled up by first, 1 to 100.
        background: colour under transparency and around a padded picture.
        schedule: (h, w) of every scale, or a text such as "1,2,4,8x12"; the checkpoint's own if None.
        max_pixels: larger pictures are refused before they are decoded.
        max_bytes: larger pictures in tars, tables, URLs and streams are not read.
        batch_size: pictures per batch; if None 32 on a GPU, and on a CPU 16 small ones or 1 large one.
        workers: threads that read pictures; one more than cores, up to 8, if None.

    Returns:
        The results, in the inputs' order; those of inputs whose output exists already come first.

    Raises:
        ArgumentError: arguments that contradict each other or do not suit the checkpoint, two inputs that
            would write one file, or a folder where `recursive` is false.
        CheckpointError, DeviceError: the tokenizer cannot be loaded.
        OutputError: the file of all results cannot be written; raised while iterating.
    """
    fitted = make_fit(
        fit,
        size=size,
        zoom=zoom,
        background=background,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
    )
    grids = make_schedule(schedule)
    chosen = choose_format(output, format, TOKEN_FORMATS, default="npz")
    found = find_inputs(inputs, recursive=recursive)

    def rename(name: PurePath) -> PurePath:
        base = stem(name, full=full_names)
        return base.with_name(f"{base.name}.tokens.{chosen}")

    def rename_member(key: PurePath) -> PurePath:
        return key.with_name(f"{key.name}.tokens.{chosen}")

    collections = any(item.is_collection for item in found)
    target = resolve_target(
        output,
        found,
        rename,
        rename_member,
        many=len(found) > 1 or collections,
        joined=chosen == "jsonl",
        suffixes=TOKEN_FORMATS,
    )
    plan = OutputPlan(target, found, overwrite=overwrite, skip_existing=skip_existing)
    total = None if collections else len(plan.refused) + len(plan.todo)
    if not plan.todo:
        return FileResults(iter(plan.refused), total)
    loaded = resolve_tokenizer(tokenizer, weights, device, dtype, compile=compile)
    fitted = resolve_fit([loaded], fitted, size=size, schedule=grids)
    pixels = None if fitted.mode == "native" else math.prod(fitted.size)
    run = _EncodeRun(plan, target, chosen, overwrite, max_bytes)
    threads = default_workers(workers)
    encoded = encode_pictures(
        loaded,
        run.pictures(),
        fitted,
        schedule=grids,
        batch_size=default_batch_size(batch_size, loaded, pixels),
        workers=threads if total is None else min(threads, len(plan.todo)),
    )
    return FileResults(run.results(encoded), total)


class _Job(NamedTuple):
    """A picture to encode: its name in messages, and its output path; None for a stream or a joined file."""

    label: str
    path: Path | None


class _NothingWrittenError(Exception):
    """Discards the joined file when no tokens were written to it."""


class _EncodeRun:
    """The pictures of a plan, and the writing of their tokens."""

    def __init__(
        self, plan: OutputPlan, target: Target, format: TokenFormat, overwrite: bool, max_bytes: int
    ) -> None:
        self._plan, self._target, self._format, self._overwrite = plan, target, format, overwrite
        self._max_bytes = max_bytes

    def pictures(self) -> Iterator[tuple[_Job | FileResult, str, PictureSource]]:
        """Yield the input of `encode_pictures`; the id is already the result if an output exists by now."""
        for item in self._plan.todo:
            for key, sample in item.samples(self._max_bytes):
                claimed: tuple[str, Path | None] | FileResult = (str(item), None)
                if not isinstance(sample.picture, VartokError):
                    claimed = self._plan.claim(item, key)
                if isinstance(claimed, FileResult):
                    yield claimed, "", _read_nothing
                else:
                    yield _Job(*claimed), _source(item, key), sample.read

    def results(
        self, encoded: Iterator[tuple[_Job | FileResult, ImageTokens | VartokError]]
    ) -> Iterator[FileResult]:
        """Write tokens as they come, and yield the results."""
        yield from self._plan.refused
        written = False
        with contextlib.suppress(_NothingWrittenError), self._open() as stream:
            for job, result in encoded:
                if isinstance(job, FileResult):
                    yield job
                elif isinstance(result, VartokError):
                    yield FileResult(job.label, error=result)
                else:
                    done = self._write(job, result, stream)
                    written = written or done.error is None
                    yield done
            if not written:
                raise _NothingWrittenError

    @contextlib.contextmanager
    def _open(self) -> Iterator[BinaryIO | None]:
        """Open the joined file, kept only if the block raises nothing; else yield the stream, if any."""
        if not self._target.joined or self._target.file is None:
            yield self._target.stream
            return
        with open_output(self._target.file, overwrite=self._overwrite) as file:
            yield file

    def _write(self, job: _Job, tokens: ImageTokens, stream: BinaryIO | None) -> FileResult:
        data = dump_npz(tokens) if self._format == "npz" else f"{dump_json(tokens)}\n".encode()
        place = job.path or self._target.file
        try:
            if job.path is not None:
                write_bytes(job.path, data, overwrite=self._overwrite)
            elif stream is not None:
                write_stream(stream, data)
        except VartokError as error:
            return self._plan.refuse_new(job.label, job.path, error)
        return FileResult(job.label, output=place, tokens=tokens, notes=tokens.notes)


def _source(item: Input, key: str | None) -> str:
    """Return the `image.source` of a picture's tokens."""
    return item.source if key is None else key.encode(errors="replace").decode()


def _read_nothing(fit: Fit) -> Picture:
    """The reader of a picture that needs no encoding: raises an error."""
    raise VartokError("not read")
