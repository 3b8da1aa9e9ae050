"""The modules that are exported give what the tokenizer gives, for every kind of quantizer."""

import dataclasses
from typing import Any

import pytest
import torch
from noise import SMALL, draw

from vartok.checkpoints import CODEBOOK, Checkpoint, build_model
from vartok.config import LightConfig, TokenizerConfig
from vartok.export.agreement import soft_images
from vartok.export.parts import parts
from vartok.models.vqvae import VQVAE
from vartok.schedule import Schedule, check_schedule, token_count
from vartok.tokenizer import Tokenizer

LIGHT = TokenizerConfig(
    vocab_size=64,
    z_channels=8,
    patch_nums=((1, 1), (2, 2), (4, 4)),
    autoencoder=LightConfig(widths=(8, 8, 8), depths=(1, 1, 1)),
)
LINEAR = dataclasses.replace(LIGHT, autoencoder=LightConfig())
GREY = dataclasses.replace(LINEAR, in_channels=1)
WIDE = check_schedule([1, [2, 3], [3, 5], [4, 7], [4, 7]])
"""Grids of which few divide the last, and one is as large as it."""


def drawn(config: TokenizerConfig) -> tuple[VQVAE, Tokenizer]:
    """A model of random weights, and its tokenizer."""
    checkpoint = Checkpoint("drawn", None, config, draw(config))
    device = torch.device("cpu")
    ours = Tokenizer(build_model(checkpoint), config, name="drawn", device=device, dtype="float32")
    return build_model(checkpoint), ours


@pytest.mark.parametrize("config", [SMALL, LIGHT, GREY], ids=["var", "light", "grey"])
def test_encoder_and_decoder_give_what_the_tokenizer_gives(config: TokenizerConfig) -> None:
    model, ours = drawn(config)
    run = {part.name: part.module for part in parts(model, config, config.patch_nums)}
    images = soft_images(2, config.in_channels, 2 * config.downsample, 3 * config.downsample)
    latent = ours.latent(images)
    torch.testing.assert_close(run["encoder"](images), latent, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run["decoder"](latent), ours.decode_latent(latent), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("values", "schedule"),
    [
        pytest.param({}, None, id="phis"),
        pytest.param({"using_znorm": True}, WIDE, id="znorm"),
        pytest.param({"quant_resi": 0.0}, WIDE, id="no phi"),
        pytest.param({"share_quant_resi": 1, "quant_resi": -0.25}, WIDE, id="one phi"),
        pytest.param({"share_quant_resi": 0}, None, id="phi per scale"),
        pytest.param({"last_phi": False}, WIDE, id="no last phi"),
        pytest.param({"patch_nums": ((4, 4),)}, None, id="one scale"),
    ],
)
def test_quantizer_and_dequantizer_give_what_the_tokenizer_gives(
    values: dict[str, Any], schedule: Schedule | None
) -> None:
    config = dataclasses.replace(LINEAR, **values)
    schedule = schedule or config.patch_nums
    model, ours = drawn(config)
    run = {part.name: part.module for part in parts(model, config, schedule)}
    latent = torch.randn(64, config.z_channels, *schedule[-1], generator=torch.Generator().manual_seed(0))
    tokens = ours.quantize(latent, schedule)
    found = run["quantizer"](latent)
    assert (found.dtype, found.shape) == (torch.int64, (64, token_count(schedule)))
    assert (found == tokens.flatten()).float().mean() > 0.998  # a tie may fall to another code
    f_hat = ours.f_hat(tokens)
    torch.testing.assert_close(run["dequantizer"](tokens.flatten()), f_hat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("znorm", [False, True])
def test_the_lowest_of_equally_near_codes_is_taken(znorm: bool) -> None:
    config = dataclasses.replace(SMALL, using_znorm=znorm)
    tensors = draw(config)
    tensors[CODEBOOK][32:] = tensors[CODEBOOK][:32]
    model = build_model(Checkpoint("twins", None, config, tensors))
    quantizer = list(parts(model, config, config.patch_nums))[1]
    tokens = quantizer.module(torch.randn(64, 8, 4, 4))
    assert tokens.max() < 32
