"""Generation adds scales one by one, and computes what `var_inputs` and `f_hat` compute of the whole."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import SMALL, bare
from noise import draw as draw_tensors
from noise import tokenizer as noise_tokenizer
from torch import Tensor

import vartok
from vartok import Tokenizer, TokenMaps, TokensError
from vartok.checkpoints import CODEBOOK, read_checkpoint, read_summary, write_checkpoint
from vartok.schedule import Schedule, phi_index, square, token_count

SCHEDULE = square(1, 2, 4)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer of 64 codes with 8 channels."""
    return noise_tokenizer(tmp_path_factory.mktemp("small") / "a.safetensors", SMALL)


def draw(schedule: Schedule, batch: int = 2, seed: int = 0) -> TokenMaps:
    rng = torch.Generator().manual_seed(seed)
    return TokenMaps(tuple(torch.randint(64, (batch, h, w), generator=rng) for h, w in schedule))


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    grids = st.tuples(st.integers(1, height), st.integers(1, width))
    return (*draw(st.lists(grids, max_size=6)), (height, width))


@settings(max_examples=12)
@given(schedules(), st.integers(1, 5), st.integers(0, 99))
def test_every_prefix_gives_the_rows_of_var_inputs_to_the_bit(
    small: Tokenizer, schedule: Schedule, batch: int, seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vartok.runner.QUANTIZED_CELLS", 2 * token_count(schedule[-1:]))  # parts of two images
        tokens = draw(schedule, batch, seed)
        want = small.var_inputs(tokens).split([h * w for h, w in schedule[1:]], dim=1)
        steps = small.generation(schedule)
        for k, tokens_k in enumerate(tokens.maps):
            inputs = steps.add(tokens_k)
            assert steps.added == k + 1
            assert torch.equal(steps.f_hat, small.f_hat(tokens, scales=k + 1))
            if k + 1 < len(schedule):
                assert inputs is not None
                assert torch.equal(inputs, want[k])
                assert torch.equal(small.next_inputs(tokens.maps[: k + 1], schedule), want[k])
        assert inputs is None


def test_the_schedule_is_the_checkpoints_own_unless_given(small: Tokenizer) -> None:
    first = draw(SCHEDULE).maps[:1]
    assert small.config.patch_nums == SCHEDULE
    assert torch.equal(small.next_inputs(first), small.next_inputs(first, "1,2,4"))
    assert torch.equal(small.next_inputs(TokenMaps(first)), small.next_inputs(first))
    prefix = TokenMaps(first, square(1, 3))
    assert torch.equal(small.next_inputs(prefix), small.next_inputs(first, "1,3"))
    assert repr(small.generation()) == "Generation(schedule='1,2,4', added=0)"


def test_integers_of_any_kind_are_taken(small: Tokenizer) -> None:
    maps = draw(SCHEDULE).maps[:2]
    arrays = [tokens.numpy().astype(np.uint16) for tokens in maps]
    assert torch.equal(small.next_inputs(arrays), small.next_inputs(maps))


def test_a_sampled_picture_is_decoded_from_f_hat(small: Tokenizer) -> None:
    tokens = draw(SCHEDULE)
    steps = small.generation()
    for tokens_k in tokens.maps:
        steps.add(tokens_k)
    steps.f_hat.zero_()  # a copy
    assert torch.equal(small.decode_latent(steps.f_hat), small.decode(tokens))


ONE = torch.zeros(2, 1, 1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        (torch.zeros(2, 1, 2, dtype=torch.int64), r"token map 1 must be \[2, 2, 2\], not \[2, 1, 2\]"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), r"token map 1 must be \[2, 2, 2\], not \[3, 2, 2\]"),
        (torch.zeros(2, 4, dtype=torch.int64), r"token map 1 must be a 3-d tensor of integers, not \[2, 4\]"),
        (torch.zeros(2, 2, 2), "token map 1 must be a 3-d tensor of integers"),
        (torch.full((2, 2, 2), 64), "index 64 is outside the vocabulary of 64"),
        (torch.full((2, 2, 2), -1), "index -1 is outside the vocabulary of 64"),
    ],
)
def test_maps_that_do_not_fit_are_refused_and_change_nothing(
    small: Tokenizer, tokens: Tensor, reason: str
) -> None:
    steps = small.generation()
    steps.add(ONE)
    before = steps.f_hat
    with pytest.raises(TokensError, match=reason):
        steps.add(tokens)
    assert steps.added == 1
    assert torch.equal(steps.f_hat, before)
    with pytest.raises(TokensError, match=reason):
        small.next_inputs([ONE, tokens])


def test_there_is_no_f_hat_before_the_first_scale_and_no_scale_after_the_last(small: Tokenizer) -> None:
    steps = small.generation("1")
    with pytest.raises(TokensError, match="no f_hat before the first scale"):
        _ = steps.f_hat
    steps.add(ONE)
    with pytest.raises(TokensError, match="token map 1 is too many: the schedule has 1 scale"):
        steps.add(ONE)


@pytest.mark.parametrize("count", [0, 3, 4])
def test_next_inputs_needs_a_scale_before_and_a_scale_after(small: Tokenizer, count: int) -> None:
    maps: list[Any] = [*draw(SCHEDULE).maps, ONE][:count]
    with pytest.raises(TokensError, match=f"maps of {count} scales, but the schedule has 3: .* 1 to 2"):
        small.next_inputs(maps)


def plain(latent: Tensor) -> tuple[list[Tensor], Tensor]:
    """Tokens and f_hat of SMALL, as HART's and VARSR's loops compute them: no phi at the last scale."""
    tensors = draw_tensors(SMALL)
    codes, rest, f_hat, maps = tensors[CODEBOOK], latent, torch.zeros_like(latent), []
    for k, (h, w) in enumerate(SCHEDULE):
        cells = F.interpolate(rest, (h, w), mode="area").permute(0, 2, 3, 1).reshape(-1, codes.shape[1])
        maps.append(torch.cdist(cells, codes).argmin(1).view(-1, h, w))
        added = F.interpolate(codes[maps[k]].permute(0, 3, 1, 2), SCHEDULE[-1], mode="bicubic")
        if k < len(SCHEDULE) - 1:
            phi = f"quantize.quant_resi.qresi_ls.{phi_index(k, len(SCHEDULE), 4)}"
            convolved = F.conv2d(added, tensors[f"{phi}.weight"], tensors[f"{phi}.bias"], padding=1)
            added = added / 2 + convolved / 2
        f_hat, rest = f_hat + added, rest - added
    return maps, f_hat


def test_without_last_phi_only_f_hat_of_the_last_scale_differs(small: Tokenizer, tmp_path: Path) -> None:
    path = bare(tmp_path / "hart.safetensors", draw_tensors(SMALL))
    found = read_checkpoint(path, {"last_phi": False, "patch_nums": [1, 2, 4]})
    assert found.config == dataclasses.replace(SMALL, last_phi=False)
    write_checkpoint(path, found, overwrite=True)
    hart = vartok.load(path, device="cpu")

    latent = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    maps, f_hat = plain(latent)
    tokens = hart.quantize(latent)
    assert all(map(torch.equal, tokens.maps, maps))
    assert all(map(torch.equal, tokens.maps, small.quantize(latent).maps))
    assert torch.allclose(hart.f_hat(tokens), f_hat, atol=1e-5)
    assert not torch.allclose(small.f_hat(tokens), f_hat, atol=1e-2)
    assert torch.equal(hart.f_hat(tokens, scales=2), small.f_hat(tokens, scales=2))
    assert torch.equal(hart.var_inputs(tokens), small.var_inputs(tokens))
    steps = hart.generation()
    for tokens_k in tokens.maps:
        steps.add(tokens_k)
    assert torch.equal(steps.f_hat, hart.f_hat(tokens))

    summary = read_summary(path)
    assert summary is not None
    assert summary[1].fingerprint == hart.fingerprint != small.fingerprint
