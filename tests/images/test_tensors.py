"""Pixels to tensors and PIL images, and back."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import photo
from torch.utils._python_dispatch import TorchDispatchMode

from vartok.errors import ImageError
from vartok.images import from_pil, scale_levels, to_levels, to_pil, to_pixels, to_tensor


def test_every_level_is_exact() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    tensor = to_tensor(levels)
    expected = levels.astype(np.float32) / np.float32(127.5) - np.float32(1)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), expected)
    for dtype in (torch.float32, torch.float64, torch.float16):
        assert np.array_equal(to_pixels(tensor.to(dtype)), levels)


def test_every_level_of_16_bits_is_another_value_and_comes_back() -> None:
    levels = np.arange(1 << 16, dtype=np.uint16).reshape(1, 256, 256, 1)
    tensor = to_tensor(levels)
    assert bool((tensor.flatten().diff() > 0).all())
    assert tensor.flatten()[[0, -1]].tolist() == [-1, 1]
    assert np.array_equal(to_pixels(tensor, np.uint16), levels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_levels_are_divided_on_their_device(dtype: type[np.uint8 | np.uint16]) -> None:
    """CUDA multiplies by the reciprocal of a number, which rounds otherwise for half of the levels."""

    class Divisors(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if str(func).startswith("aten.div"):
                found.append(args[1])
            return func(*args, **(kwargs or {}))

    found: list[Any] = []
    levels = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(1, 1, -1, 1)
    half = np.float32(np.iinfo(dtype).max) / np.float32(2)
    expected = levels.astype(np.float32).ravel() / half - np.float32(1)
    with Divisors():
        images = scale_levels(to_levels(levels))
    assert np.array_equal(images.numpy().ravel(), expected)
    assert [type(divisor) for divisor in found] == [torch.Tensor]


@settings(max_examples=40)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 2**32 - 1))
def test_tensor_round_trip(shape: tuple[int, int, int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    tensor = to_tensor(pixels)
    assert tensor.shape == (shape[0], 3, *shape[1:])
    assert torch.equal(tensor[:, 1], to_tensor(pixels[..., ::-1])[:, 1])
    back = to_pixels(tensor)
    assert np.array_equal(back, pixels)
    assert back.flags.c_contiguous


def test_pixels_are_clamped_and_rounded_to_nearest() -> None:
    values = torch.tensor([-3.0, -1, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 1, 7, float("inf")])
    images_ = values.reshape(1, 1, 1, -1).expand(1, 3, 1, -1)
    assert to_pixels(images_.requires_grad_())[0, 0, :, 0].tolist() == [0, 0, 0, 1, 255, 255, 255]
    with pytest.raises(ImageError, match="NaN"):
        to_pixels(torch.full((1, 3, 2, 2), float("nan")))


def test_tensors_and_pixels_of_the_wrong_shape() -> None:
    for pixels in (np.zeros((2, 2, 3), np.uint8), np.zeros((1, 2, 2, 0), np.uint8), np.zeros((1, 2, 2, 3))):
        with pytest.raises(ImageError, match="uint8"):
            to_tensor(pixels.astype(pixels.dtype))
    for tensor in (torch.zeros(3, 2, 2), torch.zeros(1, 0, 2, 2), torch.zeros(1, 3, 2, 2, dtype=torch.uint8)):
        with pytest.raises(ImageError, match="floats"):
            to_pixels(tensor)


def test_importing_images_imports_no_torch() -> None:
    code = "import sys, vartok.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pil_images_to_pixels_and_back() -> None:
    image = photo(5, 3)
    assert np.array_equal(from_pil(image), np.asarray(image)[None])
    both = from_pil([image, image.convert("L")])
    assert both.shape == (2, 3, 5, 3)
    back, grey = to_pil(both)
    assert back.tobytes() == image.tobytes()
    assert grey.mode == "RGB"
    for wrong in ([], [image, photo(4, 3)]):
        with pytest.raises(ImageError, match="batch"):
            from_pil(wrong)
    with pytest.raises(ImageError, match="uint8"):
        to_pil(np.asarray(image))
