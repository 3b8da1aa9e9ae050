"""Triton's kernels compute what torch computes in float64; on a CPU in Triton's interpreter."""

import copy
import importlib
import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vartok.models import cuda
from vartok.models.layers import ResnetBlock
from vartok.optional import is_installed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

CHANNELS_LAST = torch.channels_last
BOUND = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 6e-4}
"""Largest difference relative to the largest value; the interpreter cuts bfloat16 off instead of rounding."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),
    pytest.mark.skipif(not is_installed("triton"), reason="triton is not installed"),
]


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    return importlib.import_module("vartok.models.triton_kernels")  # imports triton, which takes a second


def draw(*shape: int, dtype: torch.dtype, mean: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) + mean).to(DEVICE, dtype)


def off(found: Tensor, want: Tensor) -> float:
    """Return the largest difference relative to the largest value."""
    return float((found.double() - want).abs().max() / want.abs().max())


def check_group_norm(
    kernels: ModuleType,
    shape: tuple[int, ...],
    groups: int,
    dtype: torch.dtype,
    mean: float,
    *,
    silu: bool,
    offset: bool,
) -> None:
    C = shape[1]
    norm = nn.GroupNorm(groups, C, eps=1e-6, device=DEVICE, dtype=dtype).requires_grad_(False)
    norm.weight.copy_(draw(C, dtype=dtype, mean=1))
    norm.bias.copy_(draw(C, dtype=dtype))
    x = draw(*shape, dtype=dtype, mean=mean)
    given = x.clone()
    added = draw(C, dtype=dtype) if offset else None
    summed = x.double() + (0 if added is None else added.double().view(-1, 1, 1))
    want = F.group_norm(summed, groups, norm.weight.double(), norm.bias.double(), norm.eps)
    want = F.silu(want) if silu else want
    found = kernels.group_norm(x, norm, silu=silu, offset=added)
    assert found.is_contiguous(memory_format=CHANNELS_LAST)
    assert found.dtype == dtype
    assert torch.equal(x, given)
    assert off(found, want) < BOUND[dtype] * max(1, abs(mean))


def test_group_norm_of_a_map_in_several_parts(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BLOCK", 256)  # 8 cells
    monkeypatch.setattr(kernels, "PROGRAMS", 2)  # one split of 24 cells, one of 9
    check_group_norm(kernels, (1, 20, 3, 11), 1, torch.float32, 100.0, silu=True, offset=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [  # shape, groups, dtype, mean, silu, offset
        ((1, 160, 40, 40), 32, torch.bfloat16, 1.0, True, True),
        ((1, 320, 33, 17), 32, torch.float16, -3.0, True, False),
        ((1, 640, 16, 16), 32, torch.float32, 0.5, False, False),
        ((2, 640, 3, 5), 32, torch.float32, 20.0, True, True),
        ((1, 160, 2, 1), 32, torch.bfloat16, 0.0, False, True),
        ((64, 8, 2, 2), 1, torch.bfloat16, 0.0, True, False),
        ((1, 96, 7, 9), 32, torch.float16, 0.0, True, False),
    ],
)
def test_group_norm(kernels: ModuleType, case: tuple[Any, ...]) -> None:
    *how, silu, offset = case
    check_group_norm(kernels, *how, silu=silu, offset=offset)


@pytest.mark.slow
@torch.no_grad()
def test_a_block_that_uses_them_stays_near() -> None:
    assert cuda.kernels_work(DEVICE, torch.bfloat16)
    torch.manual_seed(0)
    block = ResnetBlock(32, 64).to(DEVICE)
    x = draw(1, 32, 6, 10, dtype=torch.float32)
    optimized = cuda._optimized(copy.deepcopy(block).to(torch.bfloat16, memory_format=CHANNELS_LAST))  # type: ignore[call-overload]
    assert off(optimized(x.bfloat16()), block(x).double()) < 0.02


def test_group_norm_in_place(kernels: ModuleType) -> None:
    norm = nn.GroupNorm(1, 20, device=DEVICE, dtype=torch.bfloat16).requires_grad_(False)
    x = draw(1, 20, 5, 7, dtype=torch.bfloat16)
    want = norm(x).double()
    x = x.contiguous(memory_format=CHANNELS_LAST)
    assert kernels.group_norm(x, norm, silu=False, inplace=True).data_ptr() == x.data_ptr()
    assert off(x, want) < BOUND[torch.bfloat16]


@pytest.mark.parametrize(
    ("channels", "dtype", "residual", "relu"),
    [
        (20, torch.bfloat16, True, False),
        (160, torch.float16, True, True),
        (3, torch.float32, False, True),
    ],
)
def test_add(kernels: ModuleType, channels: int, dtype: torch.dtype, residual: bool, relu: bool) -> None:
    shape = (2, channels, 5, 7)
    x, other = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, mean=1)
    bias = draw(channels, dtype=torch.float32)
    want = x.double() + bias.double().view(-1, 1, 1) + (other.double() if residual else 0)
    want = want.relu() if relu else want
    x = x.contiguous(memory_format=CHANNELS_LAST)
    found = kernels.add_(x, bias, other if residual else None, relu=relu)
    assert found.data_ptr() == x.data_ptr()
    assert off(found, want) < BOUND[dtype]


def test_maps_without_pictures(kernels: ModuleType) -> None:
    norm = nn.GroupNorm(4, 20, device=DEVICE)
    x = torch.empty(0, 20, 5, 7, device=DEVICE)
    assert kernels.group_norm(x, norm, silu=True).shape == x.shape
    assert kernels.add_(x, norm.bias).shape == x.shape


COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from vartok.models import triton_kernels as kernels

POINTERS = dict.fromkeys(("means", "squares", "scale", "shift"), "*fp32")
POINTERS |= dict.fromkeys(("x", "out", "weight", "bias", "offset", "residual"), "*bf16")
FLOATS = {"total": "fp32", "eps": "fp32"}
FLAGS = dict(SILU=True, HAS_OFFSET=True, HAS_RESIDUAL=True, RELU=True)
GROUP = dict(GROUP=5, BLOCK_GROUP=8, BLOCK_SPLITS=256)

def check(kernel, card):
    names = kernel.arg_names
    constants = FLAGS | GROUP | dict(zip(("BLOCK_CHANNELS", "BLOCK_CELLS"), kernels._block(160)))
    constants = {name: value for name, value in constants.items() if name in names}
    types = {name: POINTERS.get(name) or FLOATS.get(name) or "i32" for name in names}
    types |= dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names)
               if name in POINTERS or name == "channels"}
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, types, places, aligned)
    return compile(source, target=GPUTarget("cuda", card, 32), options={"num_warps": 8}).asm["ptx"]

for card in (80, 90):
    for kernel in (kernels._channel_statistics, kernels._affine, kernels._normalize, kernels._add):
        assert "ld.global.v4" in check(kernel, card) or kernel is kernels._affine, kernel
"""


@pytest.mark.slow
def test_kernels_compile_for_cards_and_load_whole_vectors() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
