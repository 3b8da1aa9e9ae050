"""Encode picture files: the functions behind `vartok encode`. Most of it describes their arguments."""

from __future__ import annotations

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from vartok.buckets import BucketsLike
from vartok.checkpoints.summary import read_summary
from vartok.compression import check_zstd, compressed
from vartok.errors import StorageError, VartokError
from vartok.files import open_output, write_bytes
from vartok.images import MAX_BYTES, MAX_PIXELS, Fit, Picture
from vartok.images.channels import CONVERTED, warn_of_grey
from vartok.operations.existing import Encoder, TokenComparison
from vartok.operations.inputs import Input, Source, check_path, find_inputs, name_file
from vartok.operations.names import stem
from vartok.operations.outputs import (
    FileResult,
    FileResults,
    Output,
    Target,
    choose_format,
    resolve_target,
    write_stream,
)
from vartok.operations.plan import OutputPlan
from vartok.operations.preview import preview
from vartok.operations.settings import (
    default_batch_size,
    default_workers,
    make_fit,
    make_schedule,
    resolve_fit,
    resolve_tokenizer,
)
from vartok.operations.streams import MAX_NATIVE_TOKENS, PictureSource, encode_pictures
from vartok.sources.passed_over import warn_of_members
from vartok.suffixes import TOKEN_FORMATS, TokenFormat
from vartok.token_files import dump_json, dump_npz

if TYPE_CHECKING:
    from vartok.schedule import ScheduleLike
    from vartok.tokenizer import Tokenizer
    from vartok.tokens import ImageTokens


def encode_file(
    path: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    size: str | int | tuple[int, int] | None = None,
    fit: str = "crop",
    buckets: BucketsLike | None = None,
    zoom: float = 1.0,
    resample: str = "lanczos",
    background: str | tuple[int, int, int] = "white",
    schedule: ScheduleLike | None = None,
    scales: int | None = None,
    max_pixels: int = MAX_PIXELS,
    max_tokens: int = MAX_NATIVE_TOKENS,
    allow_damaged: bool = False,
) -> ImageTokens:
    """Tokenize one picture file, as `encode_files` does, and return its tokens.

    Args:
        path: the picture.
        tokenizer: a loaded tokenizer, which saves loading one in every call. If None, `weights`, `device`
            and `dtype` are passed to `vartok.load`.
        weights: a checkpoint; the shipped one if None.
        device: torch device, or "auto".
        dtype: precision of the encoder: "float32", "tf32", "bfloat16" or "float16".
        size: side, or (height, width), of the encoded pixels; the checkpoint's own if None.
        fit: "crop", "pad", "stretch", "native" or "bucket"; see `encode_files`.
        buckets: table of the sizes with the fit "bucket"; see `encode_files`.
        zoom: with "crop" and "bucket": scale up by this factor first, 1 to 100.
        resample: "lanczos"; or "adm", for "crop" and "bucket": as guided-diffusion crops; see `Fit`.
        background: colour under transparency and around a padded picture: a CSS colour or RGB levels.
        schedule: (h, w) of every scale, or a text such as "1,2,4" or "var-512"; the checkpoint's own if None.
        scales: encode only the first `scales` scales; all if None.
        max_pixels: pixel limit of the file, checked before it is decoded.
        max_tokens: limit of tokens with the fit "native".
        allow_damaged: take what can be decoded of a truncated or corrupt picture, and say so in
            `image.damaged`; else it is refused.

    Raises:
        ArgumentError: arguments are invalid, contradict each other, or do not suit the checkpoint.
        ImageError: the picture cannot be read; the message names the file.
        CheckpointError, DeviceError: the tokenizer cannot be loaded.
    """
    check_path(path, hint="encode pictures in memory with `Tokenizer.encode`")
    fitted = make_fit(
        fit,
        size=size,
        buckets=buckets,
        zoom=zoom,
        resample=resample,
        background=background,
        max_pixels=max_pixels,
        allow_damaged=allow_damaged,
    )
    grids = make_schedule(schedule)
    chosen = resolve_tokenizer(tokenizer, weights, device, dtype)
    fitted = resolve_fit([chosen], fitted, size=size, schedule=grids, scales=scales)
    pictures = [(None, Path(path).name, Path(path))]
    [(_, result)] = encode_pictures(
        chosen, pictures, fitted, schedule=grids, scales=scales, max_tokens=max_tokens
    )
    if isinstance(result, VartokError):
        raise name_file(path, result) from None
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
    dry_run: bool = False,
    tokenizer: Tokenizer | Callable[[], Tokenizer] | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    compile: bool = False,
    size: str | int | tuple[int, int] | None = None,
    fit: str = "crop",
    buckets: BucketsLike | None = None,
    zoom: float = 1.0,
    resample: str = "lanczos",
    background: str | tuple[int, int, int] = "white",
    schedule: ScheduleLike | None = None,
    scales: int | None = None,
    max_pixels: int = MAX_PIXELS,
    max_tokens: int = MAX_NATIVE_TOKENS,
    max_bytes: int = MAX_BYTES,
    allow_damaged: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
) -> FileResults:
    """Tokenize picture files, and write a token file for each, or all into one.

    Names are planned and the tokenizer is loaded before this returns; pictures are encoded as the results
    are iterated over. `img.png` becomes `img.tokens.npz`; a picture of a tar or a table is named by its
    key. A picture that cannot be encoded gives a result with an error, and the run continues.

    To encode pictures without writing files, see `vartok.encode_file` and
    `vartok.operations.encode_pictures`.

    Args:
        inputs: pictures, tars, Parquet files, lists of paths (.txt), URLs of these, folders, or a stream.
        output: a file (by its suffix), a folder, or a stream. None: the folder of each input, and for a
            stream the working folder.
        format: "npz", "json", or "jsonl", which puts all pictures into one file; if None, by the suffix of
            `output`, else "npz". A jsonl file is compressed if its name ends in ".gz" or ".zst".
        recursive: take the files in folders; `output` gets the same subfolders.
        full_names: keep the input's suffix in the output's name, so that names differ.
        overwrite: replace files that exist.
        skip_existing: skip pictures whose output exists and was made with the same checkpoint and settings:
            size, fit, zoom, resampling, background, dtype and schedule. One that was made with others is
            kept, and is an error, and so is one of a damaged picture without `allow_damaged`. The picture
            itself is not compared.
        dry_run: write nothing, and load no tokenizer unless `skip_existing` has to compare with it: the
            results say what would be read and written, see `operations.preview`.
        tokenizer: a loaded tokenizer, or a function that loads one, called only if it is needed. If None,
            `weights`, `device`, `dtype` and `compile` are passed to `vartok.load`.
        weights: a checkpoint; the shipped one if None. Beside a function `tokenizer`: the checkpoint that it
            will load, "shipped" for the shipped one, with which `skip_existing` compares.
        device: torch device, or "auto".
        dtype: precision of the encoder: "float32", "tf32", "bfloat16" or "float16".
        compile: compile the networks, which takes a minute: for long runs on a GPU.
        size: side, or (height, width), of the encoded pixels; the checkpoint's own if None.
        fit: "crop": cut out the centre; "pad": scale the whole picture and fill up with background;
            "stretch": scale each side; "native": keep the size, each side to the nearest whole latent cell;
            "bucket": crop to the size of `buckets` whose aspect ratio is nearest.
        buckets: table of the sizes with the fit "bucket": "sdxl", as if None, "infinity", a file with a size
            HxW on each line, or (h, w) pairs; scaled to the number of pixels of `size`, see `vartok.buckets`.
        zoom: with "crop" and "bucket": scale up by this factor first, 1 to 100.
        resample: "lanczos"; or "adm", for "crop" and "bucket": as guided-diffusion crops; see `Fit`.
        background: colour under transparency and around a padded picture: a CSS colour or RGB levels.
        schedule: (h, w) of every scale, or a text such as "1,2,4" or "var-512"; the checkpoint's own if None.
        scales: encode only the first `scales` scales; all if None.
        max_pixels: pixel limit of a picture, checked before it is decoded.
        max_tokens: limit of tokens of a picture with the fit "native".
        max_bytes: size limit in bytes of a picture from a tar, a table, a URL or a stream.
        allow_damaged: take what can be decoded of a truncated or corrupt picture, and say so in
            `image.damaged` of its tokens; else it fails.
        batch_size: pictures of the checkpoint's size per batch, of larger ones fewer; if None, 32 on a GPU;
            on a CPU 16 if all have one encoded size of up to `MAX_BATCHED_PIXELS` pixels, else 1.
        workers: threads that read pictures; if None, the number of cores + 1, at most 8.

    Returns:
        The results, in the inputs' order; results of inputs whose output exists already come first. A result
        with a StorageError, as when the disk is full, is the last.

    Raises:
        ArgumentError: arguments that contradict each other or do not suit the checkpoint, two inputs that
            would write one file, or a folder where `recursive` is false.
        CheckpointError, DeviceError: the tokenizer cannot be loaded.
        VartokError: a file of zstd is to be written, and pyarrow is not installed.
        OutputError: the folder that `output` names cannot be written; or, while iterating, the jsonl file.
        OSError: the output stream cannot be written; raised while iterating.
    """
    fitted = make_fit(
        fit,
        size=size,
        buckets=buckets,
        zoom=zoom,
        resample=resample,
        background=background,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
        allow_damaged=allow_damaged,
    )
    grids = make_schedule(schedule)
    chosen = choose_format(output, format, TOKEN_FORMATS, default="npz")
    found = find_inputs(inputs, recursive=recursive)

    def rename(name: PurePath) -> PurePath:
        base = stem(name, full=full_names)
        return base.with_name(f"{base.name}.tokens.{chosen}")

    def rename_member(key: PurePath) -> PurePath:
        return key.with_name(f"{key.name}.tokens.{chosen}")

    if chosen == "jsonl" and isinstance(output, (str, Path)) and str(output).lower().endswith(".zst"):
        check_zstd()
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
    load = functools.cache(lambda: resolve_tokenizer(tokenizer, weights, device, dtype, compile=compile))

    def encoder() -> Encoder:
        told = read_summary(weights) if tokenizer is None or (callable(tokenizer) and weights) else None
        return Encoder(*told, dtype) if told else Encoder(load().config, load().info, load().dtype)

    compare = TokenComparison(encoder, fit=fitted, size=size, schedule=grids, scales=scales)
    plan = OutputPlan(target, found, overwrite=overwrite, skip_existing=skip_existing, compare=compare)
    if dry_run:
        return preview(plan, target)
    total = None if collections else len(plan.refused) + len(plan.todo)
    if not plan.todo:
        return FileResults(iter(plan.refused), total, separate=target.separate)
    loaded = load()
    fitted = resolve_fit([loaded], fitted, size=size, schedule=grids, scales=scales)
    pixels = None if fitted.mode == "native" else max(map(math.prod, fitted.sizes))
    run = _EncodeRun(plan, target, chosen, overwrite, max_bytes)
    threads = default_workers(workers)
    encoded = encode_pictures(
        loaded,
        run.pictures(),
        fitted,
        schedule=grids,
        scales=scales,
        max_tokens=max_tokens,
        batch_size=default_batch_size(batch_size, loaded, pixels),
        workers=threads if total is None else min(threads, len(plan.todo)),
    )
    return FileResults(run.results(encoded), total, separate=target.separate)


class _Job(NamedTuple):
    """A picture to encode.

    Attributes:
        label: name of the picture in messages.
        path: path of its token file; None for a stream or a joined file, or if it cannot be read.
    """

    label: str
    path: Path | None


class _NothingWrittenError(Exception):
    """Raised while the joined file is open, to discard it if no tokens were written."""


class _EncodeRun:
    """Reads the pictures of a plan's inputs, and writes their tokens."""

    def __init__(
        self, plan: OutputPlan, target: Target, format: TokenFormat, overwrite: bool, max_bytes: int
    ) -> None:
        self._plan, self._target, self._format, self._overwrite = plan, target, format, overwrite
        self._max_bytes = max_bytes
        self._passed_over = Counter[str]()  # members of tars
        self._grey = 0  # pictures whose colours were converted

    def pictures(self) -> Iterator[tuple[_Job | FileResult, str, PictureSource]]:
        """Yield the input of `encode_pictures`: an id, the `image.source` of the tokens, and the picture.

        The id is a `_Job`; or the picture's result, if `OutputPlan.claim` gives one instead of a path.
        """
        for item in self._plan.todo:
            for key, sample in item.samples(self._max_bytes, self._passed_over):
                claimed: tuple[str, Path | None] | FileResult = (str(item), None)
                broken = isinstance(sample.picture, VartokError)
                if key is not None or not broken:  # a broken picture keeps its name, for when it is mended
                    claimed = self._plan.claim(item, key)
                if broken and isinstance(claimed, FileResult) and not self._plan.is_full:
                    claimed = (claimed.input, None)
                if isinstance(claimed, FileResult):
                    yield claimed, "", _read_nothing
                    if self._plan.is_full:
                        return
                else:
                    yield _Job(*claimed), _source(item, key), sample.read

    def results(
        self, encoded: Iterator[tuple[_Job | FileResult, ImageTokens | VartokError]]
    ) -> Iterator[FileResult]:
        """Write the tokens of each picture when it is encoded, and yield the results.

        Warns:
            VartokWarning: members of tars were passed over, or colours were converted to grey levels.
        """
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
                    if isinstance(done.error, StorageError):
                        break
            if not written:
                raise _NothingWrittenError
        warn_of_members(self._passed_over)
        warn_of_grey(self._grey)
        self._plan.warn()

    @contextlib.contextmanager
    def _open(self) -> Iterator[BinaryIO | None]:
        """Yield the joined file, which appears only if the block raises nothing; or the stream; or None."""
        if not self._target.joined or self._target.file is None:
            yield self._target.stream
            return
        path = self._target.file
        with open_output(path, overwrite=self._overwrite) as file, compressed(file, path.name) as stream:
            yield stream

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
        self._grey += CONVERTED in tokens.notes
        notes = tuple(note for note in tokens.notes if note != CONVERTED)
        return FileResult(job.label, output=place, tokens=tokens, notes=notes)


def _source(item: Input, key: str | None) -> str:
    """Return the `image.source` of a picture's tokens: its key in a collection, else the input's name."""
    return item.source if key is None else key.encode(errors="replace").decode()


def _read_nothing(fit: Fit) -> Picture:
    """Raise an error: the `PictureSource` of a picture that is not to be encoded."""
    raise VartokError("not read")
