"""Convert and check the arguments of `Tokenizer`: images, tokens and schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vartok.errors import ImageError, ScheduleError, TokenFileError, TokensError, counted, quoted, warn
from vartok.images.channels import warn_of_grey
from vartok.images.color import GREY_MODES
from vartok.images.tensors import scale_levels
from vartok.metadata import ModelInfo
from vartok.runtime import to_device
from vartok.schedule import Grid, Schedule, ScheduleLike, adapt_schedule, as_schedule, describe, first_scales
from vartok.tokens import ImageTokens, TokenMaps

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    Images = Tensor | NDArray[Any] | Image.Image | Sequence[Image.Image] | Sequence[NDArray[Any]]
    Tokens = TokenMaps | ImageTokens | Sequence[ImageTokens] | Tensor | NDArray[Any]


def image_batch(
    images: Images, step: int, device: torch.device, channels: int = 3
) -> tuple[Tensor, Tensor | None]:
    """Convert images to a batch on the device, after checking their shape.

    Args:
        images: [B, C, H, W] floating point in [-1, 1]; or [H, W, C] or [B, H, W, C] uint8 or uint16; each a
            tensor or a numpy array; or a PIL image, or a list of images of one size.
        step: downsampling factor; H and W must be multiples of it.
        device: device of the batch.
        channels: C, the model's number of channels.

    Returns:
        The batch, [B, C, H, W] floating point, and its bounds. Bounds of floating point images that came on
        a GPU are [2], the smallest and the largest value: the caller must pass them to `check_bounds`, since
        a check here would wait for the GPU. Bounds of those from the CPU are checked here, and are None, as
        are those of uint8 and uint16, which cross to the device as they are and are scaled there.

    Raises:
        ImageError: a type or shape that the encoder cannot take, or a value outside [-1, 1] on the CPU.

    Warns:
        VartokWarning: float pixels that seem to lie in [0, 1]; or PIL images in colour, for one channel.
    """
    batch = _as_tensor(images, channels)
    is_levels = batch.dtype in (torch.uint8, torch.uint16)
    if channels == 1:
        given: Sequence[Any] = images if isinstance(images, (list, tuple)) else [images]
        warn_of_grey(sum(hasattr(image, "convert") and image.mode not in GREY_MODES for image in given))
    if not is_levels and (
        batch.ndim != 4 or batch.shape[1] != channels or not len(batch) or not batch.is_floating_point()
    ):
        hint: str | None = "convert pixels of 0 to 255 to uint8"
        if batch.is_floating_point():
            numpy = isinstance(images, np.ndarray)
            hint = _layout_hint(batch.shape, channels, channel_axis=-3, numpy=numpy)
        raise ImageError(
            f"images must be [B, {channels}, H, W] floating point, not {list(batch.shape)} {batch.dtype}",
            hint=hint,
        )
    height, width = batch.shape[1:3] if is_levels else batch.shape[2:]
    if not height or not width or height % step or width % step:
        raise ImageError(
            f"an image's height and width must be multiples of {step}, not {height} and {width}",
            hint="resize or crop it, as `vartok.images.read_picture` does",
        )
    if is_levels:
        return _scaled(batch, device), None
    bounds: Tensor | None = torch.stack(batch.detach().aminmax())
    if bounds is not None and batch.device.type == "cpu":
        check_bounds(*bounds.tolist())
        bounds = None
    return to_device(batch, device), bounds


def _as_tensor(images: Images, channels: int) -> Tensor:
    """Convert images to a tensor.

    uint8, uint16 and PIL images become [B, H, W, C] uint8 or uint16, not empty; a list of images becomes
    [B, C, H, W] float32 in [-1, 1]; other dtypes keep their shape and values.
    """
    if isinstance(images, (list, tuple)):
        tensors = [_as_tensor(image, channels) for image in images]
        batches = [_scaled(tensor, tensor.device) for tensor in tensors]
        stackable = batches and all(
            isinstance(image, Tensor) and image.shape[:-2] == (channels,) for image in images
        )
        if not batches or any(batch.ndim != 4 or len(batch) != 1 for batch in batches):
            stack = f"make a batch of [{channels}, H, W] tensors by `torch.stack(images)`"
            raise ImageError(
                f"a list of images must hold PIL images or [H, W, {channels}] uint8 arrays, at least one",
                hint=stack if stackable else None,
            )
        if len({batch.shape for batch in batches}) > 1:
            sizes = sorted({f"{batch.shape[3]}x{batch.shape[2]}" for batch in batches})
            raise ImageError(f"the images of a batch must have one size, not {', '.join(sizes[:5])}")
        return torch.cat(batches)
    is_numpy = isinstance(images, np.ndarray)
    if isinstance(images, np.ndarray):
        images = np.ascontiguousarray(images, images.dtype.newbyteorder("="))
        images = torch.from_numpy(images if images.flags.writeable else images.copy())  # else torch warns
    elif not isinstance(images, Tensor):
        if not hasattr(images, "convert"):  # PIL images have it; this needs no import of PIL
            hint = "read a file with `vartok.images.read_picture`, or encode it with `vartok.encode_file`"
            raise ImageError(
                f"images must be tensors, arrays or PIL images, not {quoted(type(images).__name__)}",
                hint=hint if isinstance(images, (str, Path, bytes)) else None,
            )
        images = torch.from_numpy(_pil_pixels(images, channels))
    if images.dtype not in (torch.uint8, torch.uint16):
        return images
    pixels = images[None] if images.ndim == 3 else images
    if pixels.ndim != 4 or pixels.shape[3] != channels:
        name = str(images.dtype).removeprefix("torch.")
        raise ImageError(
            f"{name} images must be [H, W, {channels}] or [B, H, W, {channels}], not {list(images.shape)}",
            hint=_layout_hint(images.shape, channels, channel_axis=-1, numpy=is_numpy),
        )
    if not pixels.numel():
        raise ImageError(f"images of shape {list(images.shape)} have no pixels")
    return pixels


def _scaled(images: Tensor, device: torch.device) -> Tensor:
    """Scale [B, H, W, C] uint8 or uint16 to [B, C, H, W] float32 in [-1, 1] on a device; return others."""
    if images.dtype == torch.uint16:
        images = images.view(torch.int16)  # before it crosses to the device: MPS has no uint16
    elif images.dtype != torch.uint8:
        return images
    return scale_levels(to_device(images, device))


def _pil_pixels(image: Any, channels: int) -> NDArray[Any]:
    """Return the pixels of a PIL image for a model of C channels: [H, W, C] uint8; or uint16, of mode I;16.

    Raises:
        ImageError: the model has one channel, and the image has levels that do not define white; or it has
            neither 1 nor 3, and the image has another number of channels.
    """
    if channels == 3:
        return np.array(image.convert("RGB"))
    if channels == 1 and image.mode.startswith("I;16"):
        return np.array(image)[..., None].astype(np.uint16)
    if channels == 1 and image.mode[0] not in "IF":
        return np.array(image.convert("L"))[..., None]
    pixels = np.array(image)
    if channels == 1 or pixels.shape[2:] != (channels,):
        raise ImageError(
            f"a PIL image of mode {image.mode} is no image of {counted(channels, 'channel')}",
            hint=f"give an array, [H, W, {channels}] uint8 or uint16",
        )
    return pixels


def _layout_hint(shape: Sequence[int], channels: int, *, channel_axis: int, numpy: bool) -> str | None:
    """Return a hint on how to convert images of the wrong layout; None for a batch of the right one.

    Args:
        shape: shape of the images.
        channels: C, the model's number of channels.
        channel_axis: axis where the channels belong: -1 for uint8, -3 for floating point.
        numpy: whether the images are a numpy array.
    """
    ndim = len(shape)
    if ndim in (3, 4):
        if shape[channel_axis] == channels:
            return "add a batch dimension: `images[None]`" if ndim == 3 else None
        if shape[-4 - channel_axis] == channels:
            order = {(-1, 3): "1, 2, 0", (-1, 4): "0, 2, 3, 1", (-3, 3): "2, 0, 1", (-3, 4): "0, 3, 1, 2"}
            permute = f"images.{'transpose' if numpy else 'permute'}({order[channel_axis, ndim]})"
            batch = "[None]" if channel_axis == -3 and ndim == 3 else ""
            return f"move the channels: `{permute}{batch}`"
    if ndim not in (2, 3, 4):
        return None
    if channels == 1 and ndim == 2:
        return f"add the axis of the channel: `images[{'..., None' if channel_axis == -1 else 'None, None'}]`"
    if channels != 3:
        return f"the model takes {counted(channels, 'channel')}"
    return "the model takes RGB: repeat a gray channel three times, leave out an alpha channel"


def check_bounds(low: float, high: float) -> None:
    """Check the smallest and the largest pixel of a batch.

    Raises:
        ImageError: a pixel is outside [-1.001, 1.001], or is NaN.

    Warns:
        VartokWarning: float pixels that seem to lie in [0, 1].
    """
    if not (low >= -1.001 and high <= 1.001):  # also a NaN; resampled pictures overshoot a little
        raise ImageError(f"pixels must be in [-1, 1] (RGB / 127.5 - 1), not {low:.4g} to {high:.4g}")
    if 0 <= low < 0.02 and high > 0.5:
        warn(
            f"pixels from {low:.4g} to {high:.4g} seem to lie in [0, 1], but the encoder takes [-1, 1]: "
            "multiply them by 2 and subtract 1"
        )


def token_maps(tokens: Tokens, schedule: ScheduleLike, check_model: Callable[[ModelInfo], None]) -> TokenMaps:
    """Convert any form of tokens to a batch of token maps.

    Args:
        tokens: token maps; one `ImageTokens`, or a list of them with one schedule; or [B, L] integers, a
            tensor or a numpy array, scales coarse to fine, each row by row.
        schedule: schedule of [B, L] tokens; unused for other forms.
        check_model: called with the `model` of every `ImageTokens`; it raises TokenFileError if that is not
            the loaded checkpoint.

    Raises:
        TokensError: `tokens` has another type, or does not fit the schedule.
        TokenFileError: an `ImageTokens` was made with another checkpoint.
        ScheduleError: `schedule` is not a schedule.
    """
    if isinstance(tokens, TokenMaps):
        return tokens
    if isinstance(tokens, (Tensor, np.ndarray)):
        return TokenMaps.unflatten(tokens, schedule)
    given = [tokens] if isinstance(tokens, ImageTokens) else tokens
    items = list(given) if isinstance(given, Iterable) else []
    if not items or not all(isinstance(item, ImageTokens) for item in items):
        hint = None
        if isinstance(tokens, (str, Path)):
            hint = "read a token file with `vartok.load_tokens`, or decode it with `vartok.decode_file`"
        elif items and all(isinstance(item, (Tensor, np.ndarray)) for item in items):
            hint = "make `TokenMaps(tokens)` of one [B, h, w] map per scale"
        raise TokensError(
            "tokens must be TokenMaps, ImageTokens, a list of ImageTokens, or [B, L] integers, "
            f"not {quoted(type(tokens).__name__)}",
            hint=hint,
        )
    for item in items:
        try:
            check_model(item.model)
        except TokenFileError as error:
            flat = "`tokens.flatten()[None]` with `schedule=tokens.schedule`"
            hint = f"load that checkpoint, or decode {flat}, which is not checked"
            raise TokenFileError(f"{item.image.source}: {error}", hint=hint) from None
    return TokenMaps.stack(items)


def latent_schedule(schedule: ScheduleLike | None, own: Schedule, grid: Grid, scales: int | None) -> Schedule:
    """Return the schedule for a latent of this grid, after checking it and the number of scales.

    Args:
        schedule: a schedule that ends in the grid; or None for `own`, adapted to the grid.
        own: the checkpoint's own schedule.
        grid: (h, w) of the latent.
        scales: number of scales to encode, or None.

    Raises:
        ScheduleError: `schedule` is not a schedule, or does not end in the grid.
        TokensError: `scales` is not from 1 to the number of scales.
    """
    schedule = adapt_schedule(own, grid) if schedule is None else as_schedule(schedule)
    if schedule[-1] != grid:
        raise ScheduleError(
            f"the schedule {describe(schedule)} does not end in the latent's grid, {describe((grid,))}"
        )
    first_scales(schedule, scales)
    return schedule
