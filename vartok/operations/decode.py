"""Decode token files, arrays of tokens and data sets: the functions behind `vartok decode`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal

from PIL import Image

from vartok.errors import ArgumentError, VartokError
from vartok.flat_tokens import FlatTokens
from vartok.images.tensors import as_pil
from vartok.operations.decode_run import DecodeRun
from vartok.operations.decode_streams import decode_tokens
from vartok.operations.existing import PictureComparison
from vartok.operations.inputs import TOKEN_KINDS, Source, check_path, find_inputs, name_file
from vartok.operations.layouts import make_layout
from vartok.operations.names import stem
from vartok.operations.outputs import FileResults, Output, choose_format, resolve_target
from vartok.operations.plan import OutputPlan
from vartok.operations.preview import preview
from vartok.operations.rows import FlatSchedules, Keys, RowSelection
from vartok.operations.settings import check_model, default_batch_size, default_workers, resolve_tokenizer
from vartok.suffixes import TOKEN_ENDINGS
from vartok.token_sources import load_row

if TYPE_CHECKING:
    from vartok.schedule import ScheduleLike
    from vartok.tokenizer import Tokenizer

PictureFormat = Literal["png", "jpg", "webp", "npy", "gif"]


def decode_file(
    path: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    scales: int | None = None,
    strip: bool = False,
    maps: bool = False,
    restore_size: bool = False,
    any_weights: bool = False,
    schedule: ScheduleLike | None = None,
) -> Image.Image:
    """Decode a token file of one image, and return a PIL image, of mode RGB, or L for one channel.

    Args:
        path: a token file: npz, JSON, or JSONL of one line; or an array of tokens: npy, [L].
        tokenizer: a loaded tokenizer, which saves loading one in every call. If None, `weights`, `device`
            and `dtype` are passed to `vartok.load`.
        weights: a checkpoint; the shipped one if None.
        device: torch device, or "auto".
        dtype: precision of the decoder: "float32", "tf32", "bfloat16" or "float16".
        scales: decode only the first `scales` scales; all if None.
        strip: return one wide picture: the images decoded from the first 1, 2, ... scales, side by side.
        maps: return the token maps above what each scale adds to the picture; see `vartok.maps.draw_maps`.
        restore_size: scale the picture to the original's width and height, which the fits "crop" and
            "bucket" do not allow.
        any_weights: also decode tokens that were made with another codebook or other phis.
        schedule: (h, w) of every scale of an array's tokens, or a text such as "1,2,4" or "var-512"; if None,
            the checkpoint's own for as many tokens.

    Raises:
        ArgumentError: `path` is neither a str nor a Path, or `schedule` is not a schedule.
        TokenFileError: the file cannot be read, holds no image or several, or was made with another codebook
            or other phis.
        TokensError: `scales` is not from 1 to K, an index is outside the codebook, or the picture would be
            too large.
        ImageError: the original's size cannot be restored, or the checkpoint has neither 1 nor 3 channels.
        CheckpointError, DeviceError: the tokenizer cannot be loaded.
    """
    check_path(path, hint="decode tokens in memory with `Tokenizer.decode`")
    layout = make_layout(strip=strip, maps=maps, restore_size=restore_size)
    schedules = FlatSchedules(schedule)
    tokens = load_row(path)
    chosen = resolve_tokenizer(tokenizer, weights, device, dtype)
    try:
        if isinstance(tokens, FlatTokens):
            tokens = schedules.complete(tokens, Path(path).name, chosen)
        if not any_weights:
            check_model(tokens, chosen)
        layout.start(chosen)
        [(_, result)] = decode_tokens(chosen, [(None, tokens)], scales=scales, strip=layout.prefixes)
        if isinstance(result, VartokError):
            raise result
        return as_pil(layout.draw(result, tokens, restore_size=restore_size))
    except VartokError as error:
        raise name_file(path, error) from None


def decode_files(
    inputs: Source | Iterable[Source],
    output: Output = None,
    *,
    format: PictureFormat | None = None,
    scales: int | None = None,
    strip: bool = False,
    animate: bool = False,
    maps: bool = False,
    beside: str | Path | None = None,
    frame_time: float | None = None,
    loops: int | None = None,
    restore_size: bool = False,
    any_weights: bool = False,
    schedule: ScheduleLike | None = None,
    keys: Keys = None,
    limit: int | None = None,
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
    batch_size: int | None = None,
    workers: int | None = None,
) -> FileResults:
    """Decode token files, arrays of tokens and data sets, and write a picture for each set of tokens.

    Names are planned and the tokenizer is loaded before this returns; tokens are decoded as the results
    are iterated over. `img.tokens.npz` becomes `img.decoded.png`. Pictures of a JSONL file, or of a stream,
    are named by the `image.source` of their tokens; those of a data set by their keys, and those of an array
    [B, L] by their row, as `samples/00000007`. An image that cannot be decoded gives a result with an error,
    and the run continues.

    An array (.npy), and a tar of a data set without its dataset.json, do not say which checkpoint made their
    tokens: that is not checked.

    Args:
        inputs: token files, arrays (.npy, [L] or [B, L] integers), data sets, shards of data sets, folders of
            these, or a stream.
        output: a file (by its suffix), a folder, or a stream. None: the folder of each input, and for a
            stream the working folder.
        format: "png", "jpg" or "webp"; or "npy", [H, W, C] uint16, which alone takes other numbers of
            channels than 1 and 3; if None, by the suffix of `output`, else "png". An animation is "webp", the
            default, "gif" or "png" (APNG).
        scales: decode only the first `scales` scales; all if None.
        strip: make one wide picture: the images decoded from the first 1, 2, ... scales, side by side.
        animate: make an animation of these images, `img.animated.webp`; the last is held for two seconds.
            Frames are scaled down to at most 1024 pixels a side, which a note of the result tells.
        maps: draw the token maps above what each scale adds to the picture, see `vartok.maps.MapPainter`.
        beside: path of the original picture, which is drawn beside the decoded one, or beside those of the
            strip, as it was encoded: labelled, with their PSNR. Tokens of another picture are errors.
        frame_time: time of each frame of an animation in seconds, from 0.02 to 10; 0.5 if None.
        loops: number of times that an animation plays; without end if None or 0.
        restore_size: scale pictures to the original's width and height, which "crop" and "bucket" forbid.
        any_weights: also decode tokens that were made with another codebook or other phis.
        schedule: (h, w) of every scale of an array's tokens, or a text such as "1,2,4" or "var-512"; if None,
            the checkpoint's own for as many tokens.
        keys: decode only the rows of these keys; a key that is not found is a failure.
        limit: decode only the first rows, this many of all inputs together.
        recursive: take the files in folders; `output` gets the same subfolders. The folder of a data set is
            taken in any case.
        full_names: keep the input's suffix in the output's name, so that names differ.
        overwrite: replace files that exist.
        skip_existing: skip tokens whose output exists and has the size that it would get; one of another size
            is kept, and is an error. The picture itself is not compared.
        dry_run: write nothing, and load no tokenizer: the results say what would be read and written, see
            `operations.preview`.
        tokenizer: a loaded tokenizer, or a function that loads one, called only if there is work. If None,
            `weights`, `device`, `dtype` and `compile` are passed to `vartok.load`.
        weights: a checkpoint; the shipped one if None.
        device: torch device, or "auto".
        dtype: precision of the decoder: "float32", "tf32", "bfloat16" or "float16".
        compile: compile the networks, which takes a minute: for long runs on a GPU.
        batch_size: pictures of the checkpoint's size per batch, of larger ones fewer; if None, 32 on a GPU
            and 1 on a CPU.
        workers: threads that write pictures; if None, the number of cores + 1, at most 8.

    Returns:
        The results, in the inputs' order; results of inputs whose output exists already come first. A result
        with a StorageError, as when the disk is full, is the last.

    Raises:
        ArgumentError: arguments that are invalid or contradict each other, two inputs that would write one
            file, a folder where `recursive` is false, or a data set without `output`.
        CheckpointError, DeviceError: the tokenizer cannot be loaded.
        OutputError: the folder that `output` names cannot be written.
        OSError: the picture `beside` is missing; or the output stream cannot be written, raised while
            iterating.

    Warns:
        VartokWarning: `schedule` was not used; raised while iterating.
    """
    layout = make_layout(
        strip=strip,
        animate=animate,
        maps=maps,
        beside=beside,
        frame_time=frame_time,
        loops=loops,
        scales=scales,
        restore_size=restore_size,
        skip_existing=skip_existing,
    )
    chosen = choose_format(output, format, layout.suffixes, default=layout.default)
    schedules, selection = FlatSchedules(schedule), RowSelection(keys, limit)
    found = selection.needed(find_inputs(inputs, TOKEN_KINDS, recursive=recursive))

    def rename(name: PurePath) -> PurePath:
        base = stem(name, TOKEN_ENDINGS, full=full_names)
        return rename_member(base)

    def rename_member(key: PurePath) -> PurePath:
        return key.with_name(f"{key.name}.{layout.word}.{chosen}")

    for item in found:
        if output is None and item.kind in ("dataset", "table", "tar"):
            raise ArgumentError(
                f"{item} is a data set, whose pictures need a folder", hint="name a folder with `output`"
            )
    collections = any(item.is_collection for item in found)
    is_file = isinstance(output, (str, Path)) and PurePath(output).suffix.lower() in layout.suffixes
    target = resolve_target(
        output,
        found,
        rename,
        rename_member,
        many=len(found) > 1 or (collections and not is_file),
        suffixes=layout.suffixes,
    )
    compare = PictureComparison(scales=scales, layout=layout, restore_size=restore_size)
    plan = OutputPlan(target, found, overwrite=overwrite, skip_existing=skip_existing, compare=compare)
    if keys is not None:  # which files hold them is known when they are read
        plan.todo, plan.refused = found, []
    if dry_run:
        return preview(plan, target, by_key=keys is not None)
    total = None if collections or keys is not None else len(plan.refused) + len(plan.todo)
    if not plan.todo:
        return FileResults(iter(plan.refused), total, separate=target.separate)
    loaded = resolve_tokenizer(tokenizer, weights, device, dtype, compile=compile)
    channels = loaded.config.in_channels
    if "npy" in layout.suffixes.values() and chosen != "npy" and channels not in (1, 3):
        raise ArgumentError(
            f"{chosen} cannot hold the {channels} channels of this checkpoint's pictures",
            hint="set `format` to npy",
        )
    schedules.default = loaded.config.patch_nums
    layout.start(loaded)
    run = DecodeRun(plan, target, chosen, layout, overwrite, restore_size, selection, schedules)
    decoded = decode_tokens(
        loaded,
        run.tokens(loaded, any_weights=any_weights),
        scales=scales,
        strip=layout.prefixes,
        batch_size=default_batch_size(batch_size, loaded),
        bits=16 if chosen == "npy" else 8,
    )
    return FileResults(run.results(decoded, default_workers(workers)), total, separate=target.separate)
