"""Convert pixels to tensors and PIL images, and back. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from PIL import Image

from vartok.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


Pixels: TypeAlias = "NDArray[np.unsignedinteger[Any]]"
"""Levels: uint8, or uint16; the channels are the last axis."""


def to_tensor(pixels: Pixels) -> Tensor:
    """Convert pixels to the tensor that a model takes: RGB / 127.5 - 1.

    Args:
        pixels: [B, H, W, C] uint8; or uint16, of which the level 65535 is 1.

    Returns:
        [B, C, H, W] float32 in [-1, 1], contiguous.

    Raises:
        ImageError: `pixels` has another shape or dtype.
    """
    return scale_levels(to_levels(pixels))


def to_levels(pixels: Pixels) -> Tensor:
    """Copy pixels to a tensor for `scale_levels`, which takes a quarter of the bytes to a device.

    Args:
        pixels: [B, H, W, C] uint8 or uint16.

    Returns:
        [B, H, W, C] uint8; or int16 with the bits of uint16, which few devices know.

    Raises:
        ImageError: `pixels` has another shape or dtype.
    """
    import torch

    check_pixels(pixels, "BHWC")
    return torch.tensor(
        np.ascontiguousarray(pixels).view(np.int16 if pixels.dtype == np.uint16 else np.uint8)
    )


def scale_levels(levels: Tensor) -> Tensor:
    """Scale levels, as `to_levels` returns them, to [-1, 1] on their device; the same bits on every device.

    Args:
        levels: [B, H, W, C] uint8, or int16 with the bits of uint16.

    Returns:
        [B, C, H, W] float32 in [-1, 1], contiguous.
    """
    import torch

    half = 127.5 if levels.dtype == torch.uint8 else 32767.5
    if levels.dtype == torch.int16:
        levels = levels.int().bitwise_and_(0xFFFF)
    images = levels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    # By a tensor: instead of dividing by a number, CUDA multiplies by its reciprocal, which rounds otherwise.
    return images.div_(torch.full((), half, dtype=torch.float32, device=images.device)).sub_(1)


@overload
def to_pixels(images: Tensor) -> NDArray[np.uint8]: ...


@overload
def to_pixels(images: Tensor, dtype: type[np.uint8 | np.uint16] | np.dtype[Any]) -> Pixels: ...


def to_pixels(images: Tensor, dtype: type[np.uint8 | np.uint16] | np.dtype[Any] = np.uint8) -> Pixels:
    """Convert a model's output to pixels, the inverse of `to_tensor`: clamp, and round to the nearest level.

    Args:
        images: [B, C, H, W] in [-1, 1], of any float dtype and on any device.
        dtype: uint8 or uint16.

    Returns:
        [B, H, W, C] of that dtype, C-contiguous.

    Raises:
        ImageError: `images` has another shape, is not floating point, or holds NaN.
    """
    import torch

    if images.ndim != 4 or not images.shape[1] or not images.is_floating_point():
        raise ImageError(f"images are [B, C, H, W] floats, not {list(images.shape)} of {images.dtype}")
    B, C, H, W = images.shape
    levels = images.detach().to(torch.float32)
    # The last element says whether there is a NaN: one copy from the device, and one wait, for both.
    packed = levels.new_empty(levels.numel() + 1, dtype=torch.uint8 if dtype == np.uint8 else torch.int32)
    packed[-1] = levels.isnan().any()
    levels = levels.clamp(-1, 1).add_(1).mul_(peak(dtype) / 2).round_()
    packed[:-1].view(B, H, W, C).copy_(levels.to(packed.dtype).permute(0, 2, 3, 1))
    found: NDArray[Any] = packed.cpu().numpy()
    if found[-1]:
        raise ImageError("the decoded pixels are NaN: the weights are broken, or the dtype is too narrow")
    pixels: Pixels = found[:-1].reshape(B, H, W, C).astype(dtype, copy=False)
    return pixels


def peak(dtype: type[np.uint8 | np.uint16] | np.dtype[Any]) -> int:
    """Return the largest level of pixels: 255 of uint8, 65535 of uint16."""
    return int(np.iinfo(dtype).max)


def to_bytes(pixels: Pixels) -> NDArray[np.uint8]:
    """Return pixels of 8 bits: uint8 unchanged, uint16 rounded to the nearest of 256 levels."""
    if pixels.dtype == np.uint8:
        return pixels
    return np.rint(pixels / np.float32(257)).astype(np.uint8)


def to_rgb_bytes(pixels: Pixels) -> NDArray[np.uint8]:
    """Return [..., 1 or 3] pixels as RGB of 8 bits, [..., 3] uint8: a grey level three times."""
    levels = to_bytes(pixels)
    return levels if levels.shape[-1] == 3 else levels.repeat(3, axis=-1)


def drawable(pixels: Pixels) -> NDArray[np.uint8]:
    """Return [..., C] pixels as what a picture can show: 8 bits, and of several channels the first three.

    Returns:
        [..., 3] uint8, or [..., 1] uint8 for one or two channels.
    """
    return to_bytes(pixels[..., : 3 if pixels.shape[-1] >= 3 else 1])


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
    """Convert pixels, [B, H, W, 3] or [B, H, W, 1] uint8, to B PIL images of mode RGB or L.

    Raises:
        ImageError: `pixels` has another shape or dtype.
    """
    check_pixels(pixels, "BHWC")
    return [as_pil(image) for image in pixels]


def as_pil(pixels: Pixels) -> Image.Image:
    """Return [H, W, 3] or [H, W, 1] uint8 pixels as a PIL image of mode RGB or L.

    Raises:
        ImageError: `pixels` has another shape or dtype.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise ImageError(
            f"a PIL image has 1 or 3 channels of 8 bits here, not {list(pixels.shape)} of {pixels.dtype}",
            hint="`Tokenizer.decode` gives tensors of any number of channels",
        )
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


def check_pixels(pixels: NDArray[Any], axes: str) -> None:
    """Check that an array holds pixels: uint8 or uint16, not empty, with the channels in the last axis.

    Args:
        pixels: the array.
        axes: a letter for each axis that the array must have, such as "HWC".

    Raises:
        ImageError: the array has another shape or dtype.
    """
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim != len(axes) or not pixels.size:
        shape = ", ".join(axes)
        raise ImageError(
            f"pixels must be [{shape}] uint8 or uint16, not {list(pixels.shape)} of {pixels.dtype}"
        )
