"""The model optimized for a CPU computes what the plain one computes."""

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from noise import COFFEE, draw
from PIL import Image
from torch import Tensor, nn

import vartok
from vartok.checkpoints import build_model, read_checkpoint, shipped_checkpoint
from vartok.config import TokenizerConfig, VarConfig
from vartok.images import to_tensor
from vartok.models import cpu
from vartok.models.cpu import optimize_for_cpu
from vartok.models.layers import AttnBlock, group_norm
from vartok.models.packed_conv import PublicConv2d, can_pack
from vartok.models.vqvae import VQVAE
from vartok.schedule import VAR_256, adapt_schedule
from vartok.tokenizer import Tokenizer

CHANNELS_LAST = torch.channels_last

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="no packed convolutions here")


@pytest.fixture(scope="module", params=["light", "var"])
def plain(request: pytest.FixtureRequest) -> tuple[VQVAE, TokenizerConfig]:
    if request.param == "light":
        checkpoint = read_checkpoint(shipped_checkpoint())
        return build_model(checkpoint).requires_grad_(False), checkpoint.config
    config = TokenizerConfig(autoencoder=VarConfig(ch=32))
    model = VQVAE(config).requires_grad_(False)
    model.load_state_dict(draw(config))
    return model, config


@pytest.fixture(scope="module")
def optimized(plain: tuple[VQVAE, TokenizerConfig]) -> VQVAE:
    model = copy.deepcopy(plain[0])
    optimize_for_cpu(model)
    return model


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """[1, 3, 512, 512]."""
    return to_tensor(np.asarray(Image.open(COFFEE).convert("RGB"))[None])


def off(found: Tensor, want: Tensor) -> float:
    """Return the largest difference relative to the largest value."""
    return float((found - want).abs().max() / want.abs().max())


@pytest.mark.parametrize(
    ("size", "layout"),
    [
        pytest.param((256, 256), torch.contiguous_format, marks=pytest.mark.slow),
        ((16, 16), CHANNELS_LAST),
        ((48, 272), CHANNELS_LAST),
        ((80, 16), torch.contiguous_format),
    ],
)
@torch.no_grad()
def test_networks_compute_the_same(
    plain: tuple[VQVAE, TokenizerConfig],
    optimized: VQVAE,
    photo: Tensor,
    size: tuple[int, int],
    layout: torch.memory_format,
) -> None:
    height, width = size
    images = torch.cat([photo[:, :, :height, :width], photo[:, :, -height:, -width:]])
    images = images.contiguous(memory_format=layout)
    given = images.clone()
    want = plain[0].encode(images)
    assert off(optimized.encode(images), want) < 1e-4  # noise for weights amplifies rounding
    assert torch.equal(images, given)  # though blocks overwrite their maps
    latent = want.contiguous(memory_format=layout)
    assert off(optimized.decode(latent), plain[0].decode(want)) < 1e-4
    assert torch.equal(latent, want)


@pytest.mark.parametrize("grid", [(16, 16), (3, 17), (1, 1), (40, 40)])
@torch.no_grad()
def test_the_quantizer_computes_the_same(
    plain: tuple[VQVAE, TokenizerConfig], optimized: VQVAE, grid: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    latent = torch.randn(2, 32, *grid)
    schedule = adapt_schedule(VAR_256, grid)
    want = [*plain[0].quantize.scale_steps(schedule, latent=latent)]
    found = [*optimized.quantize.scale_steps(schedule, latent=latent)]
    replayed = optimized.quantize.scale_steps(schedule, maps=[scale.indices for scale in want])
    for one, other, again in zip(want, found, replayed, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert off(other.f_hat, one.f_hat) < 1e-5
        assert torch.equal(other.f_hat, again.f_hat)


def test_every_module_with_an_optimized_form_is_replaced(optimized: VQVAE) -> None:
    kinds = {type(module) for module in optimized.modules()}
    kept = {nn.GroupNorm, AttnBlock}  # which the optimized ones ask for weights and for attention
    assert kinds & cpu._REPLACED.keys() <= kept


def test_tokens_are_those_of_the_plain_model(plain: tuple[VQVAE, TokenizerConfig], photo: Tensor) -> None:
    model, config = plain
    tokenizer = Tokenizer(copy.deepcopy(model), config, name="", device=torch.device("cpu"), dtype="float32")
    images = torch.cat([photo[:, :, :256, :256], photo[:, :, 256:, 256:]])
    with torch.no_grad():
        scales = [*model.quantize.scale_steps(VAR_256, latent=model.encode(images))]
    for found, want in zip(tokenizer.encode(images).maps, scales, strict=True):
        assert torch.equal(found, want.indices)


def test_without_packed_convolutions_public_ones_give_the_same_tokens(
    monkeypatch: pytest.MonkeyPatch, photo: Tensor
) -> None:
    images = F.interpolate(photo, (64, 64)).expand(3, -1, -1, -1)
    fast = vartok.load(device="cpu")
    monkeypatch.setattr(cpu, "can_pack", lambda dtype: False)
    slow = vartok.load(device="cpu")
    assert torch.equal(slow.encode(images).flatten(), fast.encode(images).flatten())
    assert isinstance(slow._model.quant_conv, PublicConv2d)


def test_a_dtype_that_cannot_be_packed_leaves_the_networks_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vartok.runner.computed_dtype", lambda dtype, device: torch.bfloat16)
    monkeypatch.setattr(cpu, "can_pack", lambda dtype: dtype == torch.float32)
    tokenizer = vartok.load(device="cpu")
    assert isinstance(tokenizer._model.quant_conv, nn.Conv2d)
    assert isinstance(tokenizer._model.quantize, cpu._Quantizer)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda tokenizer: pickle.loads(pickle.dumps(tokenizer))])
def test_a_tokenizer_can_be_copied(clone: Callable[[Tokenizer], Tokenizer], photo: Tensor) -> None:
    tokenizer = vartok.load(device="cpu")
    tokens = tokenizer.encode(photo)
    assert torch.equal(clone(tokenizer).encode(photo).flatten(), tokens.flatten())


def test_the_default_dtype_is_the_users(photo: Tensor) -> None:
    images = photo[:, :, :80, :80]  # a size that nothing else here has
    tokenizer = vartok.load(device="cpu")
    torch.set_default_dtype(torch.float64)
    try:
        tokens = tokenizer.encode(images)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(tokenizer.encode(images).flatten(), tokens.flatten())


@pytest.mark.parametrize(
    ("channels", "height", "width"),
    [pytest.param(32, 256, 256, marks=pytest.mark.slow), (64, 100, 98), (128, 4, 7), (32, 1, 1)],
)
@pytest.mark.parametrize("mean", [0.0, 5.0, -20.0])
@torch.no_grad()
def test_group_norm_is_as_exact_as_channels_first(
    channels: int, height: int, width: int, mean: float
) -> None:
    torch.manual_seed(0)
    norm = group_norm(channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, channels, height, width) + mean
    want = F.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), norm.eps)
    bound = 3e-6 + 3 * off(norm(x), want)  # of a single value, which has no deviation, every way is rough
    x = x.contiguous(memory_format=CHANNELS_LAST)
    optimized = cpu.GroupNorm(norm)
    assert off(optimized(x), want) < bound
    assert off(optimized(x, out=x), want) < bound  # torch's own is off by up to 1e-3 here
    assert off(x, want) < bound


@torch.no_grad()
def test_bfloat16_stays_near(plain: tuple[VQVAE, TokenizerConfig], photo: Tensor) -> None:
    if not can_pack(torch.bfloat16):
        pytest.skip("this processor computes no bfloat16")
    model, config = plain
    images = photo[:, :, :128, :128]
    fast = Tokenizer(copy.deepcopy(model), config, name="", device=torch.device("cpu"), dtype="bfloat16")
    assert off(fast.latent(images), model.encode(images)) < 0.05
