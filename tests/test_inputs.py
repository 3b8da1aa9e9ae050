"""Images, tokens and schedules in every form that a tokenizer takes, and the errors for all others."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vartok
from vartok import inputs
from vartok.errors import ImageError, TokenFileError, TokensError
from vartok.schedule import VAR_256
from vartok.tokens import TokenMaps

RGB = "the model takes RGB: repeat a gray channel three times, leave out an alpha channel"


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (torch.full((1, 3, 64, 64), 255.0), "pixels must be in [-1, 1] (RGB / 127.5 - 1), not 255 to 255"),
        (torch.full((1, 3, 64, 64), -1.5), "not -1.5 to -1.5"),
        (torch.full((1, 3, 64, 64), 1.1), "not 1.1 to 1.1"),
        (torch.zeros(1, 3, 64, 64).index_fill(3, torch.tensor(5), float("nan")), "nan"),
        (torch.full((1, 3, 64, 64), float("inf")), "inf"),
        (torch.zeros(1, 3, 65, 64), "an image's height and width must be multiples of 16, not 65 and 64"),
        (torch.zeros(1, 3, 64, 8), "multiples of 16"),
        (torch.zeros(1, 3, 0, 64), "multiples of 16"),
        (torch.zeros(0, 3, 64, 64), "images must be [B, 3, H, W]"),
        ([], "a list of images must hold PIL images"),
        (torch.zeros(1, 1, 3, 64, 64), "images must be [B, 3, H, W]"),
        ([np.zeros((3, 64, 64), np.float32)] * 2, "a list of images must hold PIL images"),
        (
            [Image.new("RGB", (64, 64)), Image.new("RGB", (32, 32))],
            "the images of a batch must have one size",
        ),
        (None, "images must be tensors, arrays or PIL images, not 'NoneType'"),
    ],
)
def test_images_that_no_model_takes_are_refused(light: vartok.Tokenizer, images: Any, reason: str) -> None:
    for take in (light.encode, light.latent):
        with pytest.raises(ImageError, match=re.escape(reason)) as error:
            take(images)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "hint"),
    [
        (torch.zeros(3, 64, 64), "add a batch dimension: `images[None]`"),
        (torch.zeros(64, 64, 3), "move the channels: `images.permute(2, 0, 1)[None]`"),
        (torch.zeros(1, 64, 64, 3), "move the channels: `images.permute(0, 3, 1, 2)`"),
        (np.zeros((64, 64, 3)), "move the channels: `images.transpose(2, 0, 1)[None]`"),
        (np.zeros((1, 64, 64, 3), np.float32), "move the channels: `images.transpose(0, 3, 1, 2)`"),
        (torch.zeros(3, 64, 64, dtype=torch.uint8), "move the channels: `images.permute(1, 2, 0)`"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "move the channels: `images.permute(0, 2, 3, 1)`"),
        (np.zeros((2, 3, 64, 64), np.uint8), "move the channels: `images.transpose(0, 2, 3, 1)`"),
        (torch.zeros(1, 1, 64, 64), RGB),
        (torch.zeros(1, 4, 64, 64), RGB),
        (torch.zeros(64, 64), RGB),
        (np.zeros((64, 64), np.uint8), RGB),
        (np.zeros((64, 64, 4), np.uint8), RGB),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int64), "convert pixels of 0 to 255 to uint8"),
        ([torch.zeros(3, 64, 64)] * 2, "make a batch of [3, H, W] tensors by `torch.stack(images)`"),
        ("img.png", "`vartok.images.read_picture`, or encode it with `vartok.encode_file`"),
        (Path("img.png"), "`vartok.images.read_picture`, or encode it with `vartok.encode_file`"),
        (["a.png"], "`vartok.images.read_picture`, or encode it with `vartok.encode_file`"),
    ],
)
def test_the_hint_for_images_in_another_form(light: vartok.Tokenizer, images: Any, hint: str) -> None:
    with pytest.raises(ImageError) as error:
        light.encode(images)
    assert hint in str(error.value.hint)
    code = re.search(r"`(images\S*\(.*\)\S*|images\[None\])`", hint)
    if code:  # the hint works
        light.encode(eval(code[1], {"images": images}))


@pytest.mark.parametrize(
    ("tokens", "reason", "hint"),
    [
        (torch.zeros(680).long(), "must be a 2-d tensor of integers, not [680] torch.int64", "`flat[None]`"),
        (np.zeros(680, np.uint16), "must be a 2-d tensor of integers, not [680] uint16", "`flat[None]`"),
        (torch.zeros(1, 680), "not [1, 680] torch.float32", None),
        (torch.zeros(1, 679).long(), "679 tokens, but the schedule has 680 cells", "`schedule`"),
        (
            "a.npz",
            "[B, L] integers, not 'str'",
            "`vartok.load_tokens`, or decode it with `vartok.decode_file`",
        ),
        (Path("a.npz"), "[B, L] integers, not 'PosixPath'", "`vartok.load_tokens`"),
        (
            [torch.zeros(1, 1, 1).long()],
            "not 'list'",
            "make `TokenMaps(tokens)` of one [B, h, w] map per scale",
        ),
        (None, "not 'NoneType'", None),
        ([], "not 'list'", None),
    ],
)
def test_tokens_in_another_form_are_refused(
    light: vartok.Tokenizer, tokens: Any, reason: str, hint: str | None
) -> None:
    for take in (light.decode, light.f_hat, light.var_inputs):
        with pytest.raises(TokensError, match=re.escape(reason)) as error:
            take(tokens)
        assert "\n" not in str(error.value)
        assert hint in str(error.value.hint) if hint else error.value.hint is None


def test_an_error_shows_its_hint_in_a_traceback(light: vartok.Tokenizer) -> None:
    with pytest.raises(TokensError) as error:
        light.decode(torch.zeros(680).long())
    assert error.value.__notes__ == [f"hint: {error.value.hint}"]


def test_image_tokens_of_another_checkpoint_are_refused_by_name(
    light: vartok.Tokenizer, var: vartok.Tokenizer, photos: Tensor
) -> None:
    [item] = light.image_tokens(light.encode(photos[:1]), ["a.png"])
    with pytest.raises(
        TokenFileError, match=r"a\.png: the tokens were made with vartok-light-v2 .*, not with var"
    ) as error:
        var.decode(item)
    assert "`tokens.flatten()[None]` with `schedule=tokens.schedule`" in str(error.value.hint)
    assert var.decode(item.flatten()[None], schedule=item.schedule).shape == photos[:1].shape


def test_tokens_on_the_own_schedule_and_on_another(light: vartok.Tokenizer) -> None:
    flat = torch.zeros(1, 21, dtype=torch.int64)
    images = light.decode(flat, schedule="1,2,4")
    assert torch.equal(images, light.decode(TokenMaps.unflatten(flat, [1, 2, 4])))
    assert light.decode(np.zeros((1, 680), np.uint16)).shape == (1, 3, 256, 256)
    assert light.config.patch_nums == VAR_256
    with pytest.raises(vartok.ScheduleError, match="a schedule must be a list"):
        light.decode(flat, schedule=())


def test_a_bright_picture_is_not_taken_for_one_in_0_to_1(light: vartok.Tokenizer) -> None:
    pixels = np.full((16, 16, 3), 128, np.uint8)
    pixels[0, 0] = 255
    with warnings.catch_warnings(action="error"):
        light.encode(pixels)
        pixels.flags.writeable = False  # as PIL's are
        light.encode(pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_levels_cross_to_a_device_in_a_dtype_that_mps_has(
    light: vartok.Tokenizer, monkeypatch: pytest.MonkeyPatch, dtype: type[np.unsignedinteger[Any]]
) -> None:
    crossed = []

    def to_device(tensor: Tensor, device: torch.device) -> Tensor:
        crossed.append(tensor.dtype)
        return tensor.to(device)

    monkeypatch.setattr(inputs, "to_device", to_device)
    light.latent(np.zeros((1, 16, 16, 3), dtype))
    assert crossed == [torch.uint8 if dtype == np.uint8 else torch.int16]
