"""Convert pixels to tensors and PIL images, and back. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vartok.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Convert pixels to the tensor that a model takes: RGB / 127.5 - 1.

    Args:
        pixels: [B, H, W, 3] uint8.

    Returns:
        [B, 3, H, W] float32 in [-1, 1], contiguous.

    Raises:
        ImageError: `pixels` has another shape or dtype.
    """
    import torch

    check_pixels(pixels, "BHW3")
    images = torch.tensor(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Convert a model's output to pixels, the inverse of `to_tensor`: clamp, and round to the nearest level.

    Args:
        images: [B, 3, H, W], RGB in [-1, 1], of any float dtype and on any device.

    Returns:
        [B, H, W, 3] uint8, C-contiguous.

    Raises:
        ImageError: `images` has another shape, is not floating point, or holds NaN.
    """
    import torch

    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ImageError(f"images are [B, 3, H, W] floats, not {list(images.shape)} of {images.dtype}")
    levels = images.detach().to(torch.float32)
    if levels.isnan().any():
        raise ImageError("the decoded pixels are NaN: the weights are broken, or the dtype is too narrow")
    levels = levels.clamp(-1, 1).add_(1).mul_(127.5).round_().permute(0, 2, 3, 1)
    pixels: NDArray[np.uint8] = levels.to(torch.uint8).contiguous().cpu().numpy()
    return pixels


def from_pil(images: Image.Image | Sequence[Image.Image]) -> NDArray[np.uint8]:
    """Convert PIL images to RGB pixels by `Image.convert`.

    EXIF orientation and ICC profiles are not applied; `read_picture` applies them to files.

    Args:
        images: an image, or a sequence of images of one size.

    Returns:
        [B, H, W, 3] uint8.

    Raises:
        ImageError: there is no image, or the images have different sizes.
    """
    images = [images] if isinstance(images, Image.Image) else list(images)
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ImageError(
            "the images of a batch must have one size" if sizes else "a batch must have at least one image"
        )
    return np.stack([np.asarray(image.convert("RGB")) for image in images])


def to_pil(pixels: NDArray[np.uint8]) -> list[Image.Image]:
    """Convert pixels, [B, H, W, 3] uint8, to B PIL images of mode RGB.

    Raises:
        ImageError: `pixels` has another shape or dtype.
    """
    check_pixels(pixels, "BHW3")
    return [Image.fromarray(np.ascontiguousarray(image)) for image in pixels]


def check_pixels(pixels: NDArray[np.uint8], axes: str) -> None:
    """Check that an array holds RGB pixels: uint8, not empty, with three channels in the last axis.

    Args:
        pixels: the array.
        axes: a letter or digit for each axis that the array must have, such as "HW3".

    Raises:
        ImageError: the array has another shape or dtype.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != len(axes) or pixels.shape[-1] != 3 or not pixels.size:
        shape = ", ".join(axes)
        raise ImageError(f"pixels must be [{shape}] uint8, not {list(pixels.shape)} of {pixels.dtype}")
