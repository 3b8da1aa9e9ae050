"""Token maps of a batch, and tokens of one image."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from token_data import FINGERPRINT, image_info, image_tokens, model_info, schedules

from vartok.errors import ScheduleError, TokensError
from vartok.metadata import ModelInfo
from vartok.schedule import VAR_256, Schedule, square, token_count
from vartok.token_files import dump_json, dump_npz, parse_json
from vartok.tokens import ImageTokens, TokenMaps, token_dtype


def test_flatten_is_coarse_to_fine_and_row_by_row() -> None:
    maps = TokenMaps((torch.tensor([[[7]], [[8]]]), torch.arange(12).view(2, 2, 3)))
    assert len(maps) == 2
    assert maps.schedule == ((1, 1), (2, 3))
    assert maps.flatten().tolist() == [[7, 0, 1, 2, 3, 4, 5], [8, 6, 7, 8, 9, 10, 11]]


@given(
    schedules(), st.integers(1, 4), st.sampled_from([torch.int64, torch.int32, torch.uint8]), st.integers(1)
)
def test_unflatten_undoes_flatten(schedule: Schedule, batch: int, dtype: torch.dtype, scales: int) -> None:
    scales = 1 + scales % len(schedule)
    flat = torch.randint(0, 256, (batch, token_count(schedule[:scales]))).to(dtype)
    maps = TokenMaps.unflatten(flat, schedule, scales)
    assert (maps.schedule, maps.grids, len(maps.maps)) == (schedule, schedule[:scales], scales)
    assert all(tokens.dtype == torch.int64 for tokens in maps.maps)
    assert torch.equal(maps.flatten(), flat.long())
    items = maps.unstack(model_info(), [image_info()] * batch)
    for item, row in zip(items, flat.numpy(), strict=True):
        assert item == ImageTokens.unflatten(row, schedule, model_info(), image_info(), scales)
        assert (item.schedule, item.grids) == (schedule, schedule[:scales])
    again = TokenMaps.stack(items)
    assert again.schedule == schedule
    assert torch.equal(again.flatten(), maps.flatten())


@pytest.mark.parametrize(
    ("maps", "reason"),
    [
        ((), "1 to 64 grids"),
        ((torch.zeros(2, 3, dtype=torch.int64),), "token map 0 must be a 3-d tensor of integers"),
        ((torch.zeros(1, 1, 1),), "integers"),
        ((torch.zeros(1, 1, 1, dtype=torch.bool),), "integers"),
        ((torch.zeros(1, 1, 1, dtype=torch.complex64),), "integers"),
        ((torch.zeros(1, 1, 1).long(), torch.zeros(2, 2, 2).long()), "batch sizes differ: 1, 2"),
        ((torch.zeros(1, 2, 2).long(), torch.zeros(1, 1, 3).long()), "higher or wider than the last"),
        ((torch.zeros(1, 0, 2).long(),), "1 to 16384 cells"),
    ],
)
def test_token_maps_check_their_tensors(maps: Any, reason: str) -> None:
    with pytest.raises(TokensError, match=reason):
        TokenMaps(maps)


def test_unflatten_checks_its_arguments() -> None:
    with pytest.raises(TokensError, match="679 tokens, but the schedule has 680 cells"):
        TokenMaps.unflatten(torch.zeros(1, 679).long(), VAR_256)
    with pytest.raises(TokensError, match="2-d") as error:
        TokenMaps.unflatten(torch.zeros(680).long(), VAR_256)
    assert error.value.hint == "add a batch dimension: `flat[None]`"
    with pytest.raises(TokensError, match="integers"):
        TokenMaps.unflatten(torch.zeros(1, 680), VAR_256)
    with pytest.raises(ScheduleError):
        TokenMaps.unflatten(torch.zeros(1, 680).long(), ())


def test_scales_are_the_first_of_a_schedule() -> None:
    maps = (torch.zeros(1, 1, 1).long(), torch.zeros(1, 2, 2).long())
    assert repr(TokenMaps(maps, square(1, 2, 4))) == (
        "TokenMaps(batch=1, schedule='1,2,4', scales=2, device='cpu')"
    )
    grids: Any = [[1, 1], [2, 2], [4, 4]]  # of a parsed token file
    assert TokenMaps(maps, grids).schedule == square(1, 2, 4)
    for wrong in (square(1), square(2, 4), square(1, 3, 4)):
        with pytest.raises(TokensError, match="the scales are 1,2, but the schedule begins with "):
            TokenMaps(maps, wrong)
        with pytest.raises(TokensError, match="the scales are 1,2, but the schedule begins with "):
            ImageTokens(image_tokens(square(1, 2)).scales, model_info(), image_info(), schedule=wrong)
    with pytest.raises(TokensError, match="the scales are none"):
        TokenMaps((), square(1, 2))
    for scales in (0, 4):
        with pytest.raises(
            TokensError, match=f"`scales` must be from 1 to 3, the number of scales, not {scales}"
        ):
            TokenMaps.unflatten(torch.zeros(1, 5).long(), square(1, 2, 4), scales)
    images = [image_tokens(square(1, 2, 4)), image_tokens(square(1, 2, 4))]
    images[0] = replace(images[0], scales=images[0].scales[:2])
    assert images[0] != images[1]
    with pytest.raises(TokensError, match="of one schedule and number of scales"):
        TokenMaps.stack(images)


def test_check_vocab() -> None:
    maps = TokenMaps((torch.tensor([[[0, 4095]]]),))
    maps.check_vocab(4096)
    with pytest.raises(TokensError, match="index 4095 is outside the vocabulary of 4095"):
        maps.check_vocab(4095)
    with pytest.raises(TokensError, match="index -3 is outside"):
        TokenMaps((torch.tensor([[[5, -3]]]),)).check_vocab(4096)
    TokenMaps((torch.zeros(0, 1, 1).long(),)).check_vocab(1)


def test_unflatten_and_stack_undo_flatten() -> None:
    maps = TokenMaps.unflatten(torch.randint(0, 4096, (3, 680)), VAR_256)
    rows = maps.flatten().numpy()
    infos = [image_info(source=f"{n}.png") for n in range(3)]
    files = [
        ImageTokens.unflatten(row, VAR_256, model_info(), info) for row, info in zip(rows, infos, strict=True)
    ]
    assert [item.image.source for item in files] == ["0.png", "1.png", "2.png"]
    assert all(item.schedule == VAR_256 for item in files)
    assert np.array_equal(np.stack([item.flatten() for item in files]), rows)
    assert files[0].flatten().dtype == token_dtype(4096) == np.uint16
    assert torch.equal(TokenMaps.stack(files).flatten(), maps.flatten())
    assert maps.unstack(model_info(), infos) == files
    assert ImageTokens.unflatten(rows[0], "1,2,3,4,5,6,8,10,13,16", model_info(), infos[0]) == files[0]
    assert torch.equal(TokenMaps.stack(files[2:]).flatten(), maps.flatten()[2:])
    with pytest.raises(TokensError, match="680 cells"):
        ImageTokens.unflatten(rows[0][1:], VAR_256, model_info(), infos[0])
    with pytest.raises(TokensError, match="outside the vocabulary of 16"):
        ImageTokens.unflatten(rows[0], VAR_256, model_info(16), infos[0])
    with pytest.raises(TokensError, match="one schedule"):
        TokenMaps.stack([image_tokens(), image_tokens(square(1, 2))])
    with pytest.raises(TokensError, match="one or more"):
        TokenMaps.stack([])


def test_image_tokens_compare_by_value() -> None:
    one, same = image_tokens(), image_tokens()
    assert one == same
    assert hash(one) == hash(same)
    assert one == replace(one, notes=("animation: took the first of 12 frames",))  # not in files
    assert one == parse_json(dump_json(one))
    for other in (
        image_tokens(seed=1),
        image_tokens(square(1, 2)),
        replace(one, label=3),
        replace(one, caption="a cup"),
        replace(one, image=image_info(source="b.png")),
        replace(one, model=model_info(5000)),
        "tokens",
    ):
        assert one != other


# What files hold


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_dtype_follows_the_vocabulary(vocab_size: int, dtype: type) -> None:
    tokens = ImageTokens((np.array([[vocab_size - 1]]),), model_info(vocab_size), image_info())
    assert tokens.scales[0].dtype == dtype
    assert tokens.scales[0].item() == vocab_size - 1
    with np.load(io.BytesIO(dump_npz(tokens)), allow_pickle=False) as archive:
        assert archive["scale_00"].dtype == dtype


def test_tokens_are_a_frozen_copy() -> None:
    array = np.zeros((1, 1), np.uint16)
    tokens = ImageTokens((array,), model_info(), image_info())
    array[0, 0] = 9
    assert tokens.scales[0].item() == 0
    with pytest.raises(ValueError, match="read-only"):
        tokens.scales[0][0, 0] = 1


@pytest.mark.parametrize(
    ("scales", "reason"),
    [
        ((), "1 to 64 grids"),
        ((np.zeros((1, 1)),), "scale 1 is not a 2-d array of integers"),
        ((np.zeros((1, 1), bool),), "integers"),
        ((np.zeros(4, int),), "2-d"),
        (([[1]],), "array"),
        ((np.zeros((0, 1), int),), "cells"),
        (
            (np.zeros((1, 1), int), np.full((1, 1), 4096)),
            "scale 2: index 4096 is outside the vocabulary of 4096",
        ),
        ((np.full((1, 1), -1),), "scale 1: index -1 is outside"),
        ((np.full((1, 1), 1 << 63, np.uint64),), "index 9223372036854775808"),
        ((np.zeros((2049, 2048), np.uint8),), "4196352 tokens, but vartok takes up to 4194304"),
    ],
)
def test_tokens_check_their_scales(scales: Any, reason: str) -> None:
    with pytest.raises(TokensError, match=reason):
        ImageTokens(scales, model_info(), image_info())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"source": 7}, "source must be a text"),
        ({"source": "x" * 4097}, "source must be a text of up to 4096"),
        ({"source": "\ud800.png"}, "source is not valid Unicode"),
        ({"width": 0}, "width must be a whole number"),
        ({"height": True}, "height must be a whole number"),
        ({"height": 1 << 25}, "height must be a whole number"),
        ({"size": [1, 2, 3]}, r"size must be \[height, width\]"),
        ({"size": 16}, r"size must be \[height, width\]"),
        ({"size": (16, 1.5)}, "size must be a whole number"),
        ({"zoom": 0}, "zoom"),
        ({"zoom": float("nan")}, "zoom"),
        ({"zoom": float("inf")}, "zoom"),
        ({"zoom": True}, "zoom"),
        ({"zoom": "1"}, "zoom"),
        ({"resample": "x" * 65}, "resample must be a text of up to 64"),
        ({"background": "#ffffff"}, "background must be three levels from 0 to 255"),
        ({"background": [255, 255]}, "background must be three levels"),
        ({"background": [255, 255, 256]}, "background must be three levels"),
        ({"background": [255, 255, True]}, "background must be three levels"),
    ],
)
def test_image_info_checks_its_values(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(TokensError, match=reason):
        image_info(**changes)


@pytest.mark.parametrize("fingerprint", ["", FINGERPRINT.upper(), FINGERPRINT[1:], FINGERPRINT + "\n", None])
def test_fingerprint_is_64_hex_digits(fingerprint: Any) -> None:
    with pytest.raises(TokensError, match="fingerprint must be 64 lower-case hex digits"):
        ModelInfo(name="m", fingerprint=fingerprint, vocab_size=1)
