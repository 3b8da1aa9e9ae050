"""Conversion of what callers pass: images to a batch on the device, tokens of any form to token maps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vartok.errors import ImageError, TokensError, VartokWarning, quoted
from vartok.images import to_tensor
from vartok.schedule import Schedule
from vartok.tokens import ImageTokens, ModelInfo, TokenMaps

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    Images = Tensor | NDArray[Any] | Image.Image | Sequence[Image.Image] | Sequence[NDArray[Any]]
    Tokens = TokenMaps | ImageTokens | Sequence[ImageTokens] | Tensor | NDArray[Any]


def image_batch(images: Images, step: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Convert images to a batch on the device.

    Args:
        images: [B, 3, H, W] floating point in [-1, 1]; or [H, W, 3] or [B, H, W, 3] uint8 RGB; each a
            tensor or a numpy array; or a PIL image, or a list of images of one size.
        step: H and W must be multiples of it.
        device: the batch is copied there.

    Returns:
        [B, 3, H, W] floating point; and its smallest and largest value, [2], where these are on a GPU
        and still to be given to `check_bounds`; else None.

    Raises:
        ImageError: a shape, or a value on a CPU, that the encoder cannot take.

    Warns:
        VartokWarning: float pixels that seem to lie in [0, 1].
    """
    batch = _as_tensor(images)
    if batch.ndim != 4 or batch.shape[1] != 3 or not len(batch) or not batch.is_floating_point():
        raise ImageError(
            f"images are [B, 3, H, W] floating point, not {list(batch.shape)} {batch.dtype}",
            hint="pixels of 0 to 255 are [H, W, 3] or [B, H, W, 3] uint8",
        )
    height, width = batch.shape[2:]
    if not height or not width or height % step or width % step:
        raise ImageError(
            f"a picture's sides are multiples of {step} pixels here, not {height} and {width}",
            hint="resize or crop it, as `vartok.images.read_picture` does",
        )
    bounds: Tensor | None = torch.stack(batch.detach().aminmax())
    if bounds is not None and batch.device.type == "cpu":
        check_bounds(*bounds.tolist())
        bounds = None
    return batch.to(device, non_blocking=True), bounds


def _as_tensor(images: Images) -> Tensor:
    """Turn any form of images into [B, 3, H, W] floating point in [-1, 1]; tensors may have other shapes."""
    if isinstance(images, (list, tuple)):
        batches = [_as_tensor(image) for image in images]
        if not batches or any(batch.ndim != 4 or len(batch) != 1 for batch in batches):
            raise ImageError("a list of images holds PIL images or [H, W, 3] uint8 arrays, at least one")
        if len({batch.shape for batch in batches}) > 1:
            sizes = sorted({f"{batch.shape[3]}x{batch.shape[2]}" for batch in batches})
            raise ImageError(f"the images of a batch have one size, not {', '.join(sizes[:5])}")
        return torch.cat(batches)
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images))
    elif not isinstance(images, Tensor):
        if not hasattr(images, "convert"):  # asked so that nothing here imports PIL
            raise ImageError(
                f"images are tensors, arrays or PIL images, not {quoted(type(images).__name__)}",
                hint="read files with `vartok.images.read_picture`, or use `vartok.encode_file`",
            )
        picture: Any = images
        images = torch.from_numpy(np.array(picture.convert("RGB")))
    if images.dtype != torch.uint8:
        return images
    pixels = images[None] if images.ndim == 3 else images
    if pixels.ndim != 4 or pixels.shape[3] != 3:
        raise ImageError(f"uint8 images are [H, W, 3] or [B, H, W, 3], not {list(images.shape)}")
    if not pixels.numel():
        raise ImageError(f"images of shape {list(images.shape)} have no pixels")
    if pixels.device.type == "cpu":
        return to_tensor(pixels.numpy())
    return pixels.permute(0, 3, 1, 2).float().contiguous().div_(127.5).sub_(1)


def check_bounds(low: float, high: float) -> None:
    """Check the smallest and the largest pixel of a batch.

    Raises:
        ImageError: a pixel outside [-1, 1], or NaN.

    Warns:
        VartokWarning: float pixels that seem to lie in [0, 1].
    """
    if not (low >= -1.001 and high <= 1.001):  # also a NaN; resampled pictures overshoot a little
        raise ImageError(f"pixels are in [-1, 1] (RGB / 127.5 - 1), not {low:.4g} to {high:.4g}")
    if 0 <= low < 0.02 and high > 0.5:
        warnings.warn(
            f"pixels from {low:.4g} to {high:.4g} seem to lie in [0, 1]; they are taken as [-1, 1]: "
            "scale them by 2 and subtract 1",
            VartokWarning,
            stacklevel=4,
        )


def token_maps(tokens: Tokens, schedule: Schedule, check_model: Callable[[ModelInfo], None]) -> TokenMaps:
    """Convert any form of tokens to a batch of token maps.

    Args:
        tokens: token maps; one `ImageTokens`, or a list of them with one schedule; or [B, L] integers, a
            tensor or a numpy array, scales coarse to fine, each row by row.
        schedule: (h, w) of every scale, for [B, L] tokens.
        check_model: is given the checkpoint of every `ImageTokens`, and raises for another one.

    Raises:
        TokensError: another type, or tokens that do not fit the schedule.
    """
    if isinstance(tokens, TokenMaps):
        return tokens
    if isinstance(tokens, (Tensor, np.ndarray)):
        return TokenMaps.unflatten(tokens, schedule)
    items = [tokens] if isinstance(tokens, ImageTokens) else list(tokens)
    if not items or not all(isinstance(item, ImageTokens) for item in items):
        raise TokensError(
            "tokens are TokenMaps, ImageTokens, a list of ImageTokens, or [B, L] integers, "
            f"not {quoted(type(tokens).__name__)}"
        )
    for item in items:
        check_model(item.model)
    return TokenMaps.stack(items)
