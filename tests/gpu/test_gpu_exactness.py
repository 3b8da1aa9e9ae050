"""Tokens and pictures on an accelerator, compared with the CPU's in float32."""

from collections.abc import Callable

import pytest
import torch
from device_cases import (
    MOST_CHANGED,
    NEAR_TIE,
    Case,
    Sizes,
    State,
    in_batches,
    largest_error,
    share_equal,
)

from vartok.errors import DeviceError
from vartok.tokens import TokenMaps

pytestmark = pytest.mark.gpu
pytest_plugins = ["device_cases"]

Cases = Callable[[str], Case]
NAMES = ("light", "ch32", "ch160")
LEAST_EQUAL = {"bfloat16": 0.35, "float16": 0.7, "tf32": 0.7}
"""Shares of tokens equal to float32's below which something is wrong; about 0.65 and 0.9 are usual."""


@pytest.mark.parametrize("name", NAMES)
def test_float32_tokens_equal_the_cpus(
    cases: Cases, sizes: Sizes, device: str, state: State, name: str
) -> None:
    case = cases(name)
    tokenizer = case.load(device)
    tokens = in_batches(tokenizer, case.images, sizes.batch)
    changed, gap = 1 - share_equal(tokens, case.tokens), case.largest_gap(tokens)
    few = case.images[: sizes.few]
    alone = {size: 1 - share_equal(in_batches(tokenizer, few, size), case.tokens) for size in (1, 3)}
    some = TokenMaps(tuple(maps[: sizes.few] for maps in case.tokens.maps), case.tokens.schedule)
    error = largest_error(tokenizer.decode(some), case.exact.decode(some))
    state(
        network=name,
        pictures=len(case.images),
        changed=changed,
        largest_gap=gap,
        changed_alone=alone[1],
        changed_in_threes=alone[3],
        picture_error=error,
    )
    assert changed <= MOST_CHANGED
    assert gap < NEAR_TIE
    assert max(alone.values()) <= MOST_CHANGED
    assert error < 5e-4


def test_another_token_than_the_nearest_is_no_near_tie(cases: Cases) -> None:
    case = cases("light")
    wrong = [maps.clone() for maps in case.tokens.maps]
    wrong[1][0, 0, 0] = (wrong[1][0, 0, 0] + 1) % case.exact.config.vocab_size
    assert case.largest_gap(TokenMaps(tuple(wrong), case.tokens.schedule)) > NEAR_TIE
    assert case.largest_gap(case.tokens) == 0


@pytest.mark.parametrize("dtype", LEAST_EQUAL)
@pytest.mark.parametrize("name", NAMES)
def test_the_share_of_equal_tokens_in_a_smaller_dtype_is_stated(
    cases: Cases, sizes: Sizes, device: str, state: State, name: str, dtype: str
) -> None:
    case = cases(name)
    try:
        tokenizer = case.load(device, dtype)
    except DeviceError as error:
        if dtype != "tf32":  # which not every device has
            raise
        pytest.skip(str(error))
    images = case.images[: sizes.batch]
    tokens = in_batches(tokenizer, images, sizes.batch)
    share = share_equal(tokens, case.tokens)
    alone = {size: share_equal(in_batches(tokenizer, images[: sizes.few], size), tokens) for size in (1, 3)}
    state(
        network=name,
        dtype=dtype,
        pictures=len(images),
        as_float32=share,
        alone_as_in_the_batch=alone[1],
        in_threes_as_in_the_batch=alone[3],
    )
    assert share > LEAST_EQUAL[dtype]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_batch_that_comes_again_gives_the_same(cases: Cases, sizes: Sizes, device: str, dtype: str) -> None:
    """Graphs and caches of a shape serve other images of it too, and no result is reused."""
    case = cases("light")
    tokenizer = case.load(device, dtype)
    images = case.images[:3].to(tokenizer.device)
    others = images.flip(3)
    first, fresh = tokenizer.encode(images), case.load(device, dtype).encode(others)
    pictures, kept = tokenizer.decode(first), first.flatten().clone()
    kept_pictures = pictures.clone()
    for _ in range(2):
        assert torch.equal(tokenizer.encode(others).flatten(), fresh.flatten())
        tokenizer.decode(fresh)
        again = tokenizer.encode(images)
        assert torch.equal(again.flatten(), kept)
        assert torch.equal(tokenizer.decode(again), kept_pictures)
    assert torch.equal(first.flatten(), kept)
    assert torch.equal(pictures, kept_pictures)
