"""The model optimized for CUDA computes what the plain one computes; here on a CPU.

Triton's kernels are replaced by torch's operations; `test_triton_kernels.py` has the kernels themselves.
"""

import copy
from types import SimpleNamespace
from typing import Any

import noise
import pytest
import torch
import torch.nn.functional as F
from noise import SMALL
from torch import Tensor, nn

from vartok.config import LightConfig, TokenizerConfig
from vartok.errors import VartokWarning
from vartok.models import cuda, cuda_quantizer, light
from vartok.models import quantizer as quantizer_module
from vartok.models.cuda import optimize_for_cuda
from vartok.models.cuda_quantizer import CudaQuantizer, RowLookup, _matrices, _pooling
from vartok.models.layers import AttnBlock, Downsample2x, ResnetBlock, Upsample2x
from vartok.models.quantizer import MultiScaleQuantizer
from vartok.runtime import DTYPES
from vartok.schedule import VAR_256, adapt_schedule, square

CHANNELS_LAST = torch.channels_last


def group_norm(
    x: Tensor, norm: nn.GroupNorm, *, silu: bool, offset: Tensor | None = None, inplace: bool = False
) -> Tensor:
    summed = x if offset is None else x + offset.view(-1, 1, 1)
    y = norm(summed.float().to(norm.weight.dtype))
    y = F.silu(y) if silu else y
    return (x if inplace else torch.empty_like(x, memory_format=CHANNELS_LAST)).copy_(y)


def add_(x: Tensor, bias: Tensor, residual: Tensor | None = None, *, relu: bool = False) -> Tensor:
    assert x.is_contiguous(memory_format=CHANNELS_LAST)
    total = x.float() + bias.float().view(-1, 1, 1) + (0 if residual is None else residual)
    return x.copy_(total.relu() if relu else total)


@pytest.fixture
def _torch_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch's operations stand in for Triton's kernels."""
    monkeypatch.setattr(cuda, "_kernels", lambda: SimpleNamespace(group_norm=group_norm, add_=add_))
    monkeypatch.setattr(cuda, "kernels_work", lambda device, dtype: True)


def off(found: Tensor, want: Tensor) -> float:
    """Return the largest difference relative to the largest value."""
    return float((found - want).abs().max() / want.abs().max())


@pytest.mark.usefixtures("_torch_kernels")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "block",
    [
        ResnetBlock(32, 64),
        ResnetBlock(32, 32),
        AttnBlock(32),
        Upsample2x(32),
        Downsample2x(32),
        light.Block(32),
        nn.Sequential(nn.GroupNorm(4, 32), nn.SiLU()),
    ],
    ids=lambda block: type(block).__name__,
)
@torch.no_grad()
def test_an_optimized_block_computes_the_same_in_channels_last(block: nn.Module, channels_last: bool) -> None:
    torch.manual_seed(0)
    plain = copy.deepcopy(block)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.2)
    optimized = cuda._optimized(copy.deepcopy(plain).to(memory_format=CHANNELS_LAST))  # type: ignore[call-overload]
    x = torch.randn(2, 32, 6, 10)
    x = x.contiguous(memory_format=CHANNELS_LAST) if channels_last else x
    given = x.clone()
    want = plain(x.clone())
    found = optimized(x)
    assert off(found, want) < 1e-5
    assert found.is_contiguous(memory_format=CHANNELS_LAST)
    assert torch.equal(x, given)


LIGHT = TokenizerConfig(
    vocab_size=64,
    z_channels=8,
    patch_nums=((1, 1), (2, 2), (4, 4)),
    autoencoder=LightConfig(widths=(16, 16, 16), depths=(1, 1, 1)),
)


@pytest.mark.usefixtures("_torch_kernels")
@pytest.mark.parametrize(("config", "dtype"), [(SMALL, "tf32"), (SMALL, "bfloat16"), (LIGHT, "bfloat16")])
@torch.no_grad()
def test_networks_stay_near(config: TokenizerConfig, dtype: str) -> None:
    plain = noise.model(config, gain=0.7)
    small = copy.deepcopy(plain)
    for part in (small.encoder, small.quant_conv, small.post_quant_conv, small.decoder):
        part.to(DTYPES[dtype])
    optimize_for_cuda(small, dtype)
    assert not {type(module) for module in small.modules()} & cuda._REPLACED.keys() - {
        nn.GroupNorm,
        AttnBlock,
    }
    side = config.downsample * 2
    images = torch.rand(1, 3, side, side) * 2 - 1
    want = plain.encode(images)
    bound = 0.05 if dtype == "bfloat16" else 1e-4
    assert off(small.encode(images), want) < bound
    assert off(small.decode(want), plain.decode(want)) < bound


@torch.no_grad()
def test_networks_in_float32_keep_every_bit() -> None:
    plain = noise.model(SMALL)
    optimized = copy.deepcopy(plain)
    optimize_for_cuda(optimized, "float32")
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    latent = plain.encode(images)
    assert torch.equal(optimized.encode(images), latent)
    assert torch.equal(optimized.decode(latent), plain.decode(latent))


def test_without_kernels_that_work_torchs_own_run_and_one_warning_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> None:
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(cuda, "_kernels", missing)
    cuda.kernels_work.cache_clear()
    model = noise.model(SMALL).bfloat16()
    with pytest.warns(VartokWarning, match="No module named 'triton'"):
        optimize_for_cuda(model, "bfloat16")
    assert isinstance(model.encoder.norm_out, nn.GroupNorm)
    assert model.decoder.conv_in.weight.is_contiguous(memory_format=CHANNELS_LAST)  # type: ignore[union-attr, operator]
    optimize_for_cuda(noise.model(SMALL).bfloat16(), "bfloat16")  # no second warning
    cuda.kernels_work.cache_clear()


# The quantizer.


SETTINGS: list[dict[str, Any]] = [{}, {"using_znorm": True}, {"quant_resi": 0.0}, {"last_phi": False}]


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def quantizer(request: pytest.FixtureRequest) -> MultiScaleQuantizer:
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(TokenizerConfig(vocab_size=512, **request.param)).requires_grad_(False)
    for parameter in quantizer.parameters():
        nn.init.normal_(parameter, std=0.2)
    return quantizer


@pytest.mark.parametrize("grid", [(16, 16), (3, 17), (1, 1)])
@torch.no_grad()
def test_the_quantizer_computes_the_same(quantizer: MultiScaleQuantizer, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    schedule = adapt_schedule(VAR_256, grid)
    latent = torch.randn(2, 32, *grid)
    optimized = CudaQuantizer(quantizer)
    want = [*quantizer.scale_steps(schedule, latent=latent)]
    maps = optimized.encode(latent, schedule)
    assert all(torch.equal(found, step.indices) for found, step in zip(maps, want, strict=True))
    decoded = optimized.scale_steps(schedule, maps=maps)
    assert all(off(one.f_hat, other.f_hat) < 1e-5 for one, other in zip(decoded, want, strict=True))
    first = optimized.encode(latent, schedule, 3)
    assert all(torch.equal(*pair) for pair in zip(first, maps[:3], strict=True))


@torch.no_grad()
def test_matrices_that_are_too_large_are_not_made(
    quantizer: MultiScaleQuantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    latent = torch.randn(1, 32, 6, 6)
    schedule = square(1, 3, 6)
    optimized = CudaQuantizer(quantizer)
    _matrices.cache_clear()
    monkeypatch.setattr(cuda_quantizer, "MAX_REFINING", 0)
    found = optimized.encode(latent, schedule)
    assert all(matrix is None for scale in optimized.matrices(schedule) for matrix in scale)
    _matrices.cache_clear()
    for one, other in zip(found, quantizer.encode(latent, schedule), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("grid", [(1, 1), (3, 10), (7, 16)])
def test_pooling_by_a_matrix(grid: tuple[int, int]) -> None:
    f = torch.randn(1, 5, 7, 33)
    cells = _pooling(grid, (7, 33), torch.device("cpu")) @ f[0].flatten(1).T
    assert torch.allclose(cells.T.view(1, 5, *grid), quantizer_module.area_pool(f, grid), atol=1e-6)


def test_the_pooling_of_a_large_latent_takes_no_memory_but_its_matrix() -> None:
    matrix = _pooling((1, 2), (256, 256), torch.device("cpu"))  # a one-hot map per cell would be 16 GiB
    assert matrix.shape == (2, 1 << 16)
    assert matrix.unique().tolist() == [0, 2**-15]


@pytest.mark.parametrize("znorm", [False, True])
def test_of_equal_codes_the_first_is_found(znorm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randn(20, 4)
    codes[[7, 13, 19]] = codes[[2, 2, 11]]
    lookup = RowLookup(codes, znorm=znorm)
    assert lookup.norms.isinf().nonzero().flatten().tolist() == [7, 13, 19]
    want = [*range(7), 2, *range(8, 13), 2, *range(14, 19), 11]
    assert lookup.nearest(codes).tolist() == want
    monkeypatch.setattr(quantizer_module, "MAX_DISTANCES", 3 * len(codes))
    assert lookup(codes.T[None, :, :, None]).flatten().tolist() == want
