"""Kernels that a card is given for one batch, counted without one: the plain modules and those for CUDA.

    python benchmarks/launches.py [--ch 160]

Networks run in bfloat16 on torch's meta device, which computes nothing; the quantizer runs on the CPU. Each
operation that is no view and no allocation is a kernel. torch's group norm is three on CUDA, and a
convolution with a bias is two. Copies that cuDNN makes for itself are not seen.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from timing import table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vartok.config import AutoencoderConfig, LightConfig, TokenizerConfig, VarConfig
from vartok.models import cuda
from vartok.models.cuda import optimize_for_cuda
from vartok.models.cuda_quantizer import CudaQuantizer
from vartok.models.quantizer import MultiScaleQuantizer
from vartok.models.vqvae import VQVAE

SIDE = 256

FREE = ("empty", "new_empty", "detach", "alias", "as_strided", "split", "unbind", "_unsafe_view")
"""Beginnings of the names of operations that launch nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ch", type=int, default=160)
    given = parser.parse_args()
    autoencoders: dict[str, AutoencoderConfig] = {
        f"ch = {given.ch}": VarConfig(ch=given.ch),
        "light": LightConfig(widths=(64, 128, 192), depths=(1, 1, 1)),
    }
    rows: list[Sequence[object]] = []
    with torch.no_grad():
        for name, autoencoder in autoencoders.items():
            plain, optimized = networks(TokenizerConfig(autoencoder=autoencoder))
            images, latent = meta(1, 3, SIDE, SIDE), meta(1, 32, SIDE // 16, SIDE // 16)
            for call, argument in (("encode", images), ("decode", latent)):
                counts = [launches(getattr(model, call), argument) for model in (plain, optimized)]
                rows.append((f"{name} {call}", *counts))
        rows += quantizers()
    print(table(("a picture of 256x256", "plain", "for CUDA"), rows))


def networks(config: TokenizerConfig) -> tuple[VQVAE, VQVAE]:
    """Return the networks in bfloat16 on the meta device, plain and optimized; without quantizers."""
    with torch.device("meta"):
        plain = VQVAE(config).requires_grad_(False).bfloat16()
    plain.quantize = nn.Identity()  # type: ignore[assignment]
    optimized = copy.deepcopy(plain)
    with mock.patch.multiple(cuda, kernels_work=lambda *_: True, CudaQuantizer=nn.Identity):
        optimize_for_cuda(optimized, "bfloat16")
    return plain, optimized


def quantizers() -> Iterator[tuple[str, int, int]]:
    """Yield the kernels of the quantizer's encode and decode, plain and optimized."""
    config = TokenizerConfig()
    plain = MultiScaleQuantizer(config).requires_grad_(False)
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    optimized = CudaQuantizer(plain)
    latent, schedule = torch.randn(1, 32, SIDE // 16, SIDE // 16), config.patch_nums
    maps = optimized.encode(latent, schedule)  # makes the matrices, which are kept
    calls: list[tuple[str, Callable[[Any], object]]] = [
        ("encode", lambda quantizer: quantizer.encode(latent, schedule)),
        ("decode", lambda quantizer: quantizer.decode(maps, schedule)),
    ]
    for name, call in calls:
        yield f"quantizer {name}", launches(call, plain), launches(call, optimized)


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def launches(function: Callable[[Any], object], argument: object) -> int:
    """Return the number of kernels of a call."""
    counter = Counter()
    with counter, fused_counted(counter):
        function(argument)
    return counter.count


class Counter(TorchDispatchMode):
    """Counts kernels."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing inside the block."""
        count = self.count
        yield
        self.count = count

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count the kernels of one operation, and run it."""
        name = func.overloadpacket.__name__
        if name == "convolution" and args[2] is not None:
            self.count += 2
        elif name == "native_group_norm":
            self.count += 3
        elif not func.is_view and not name.startswith(FREE):
            self.count += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def fused_counted(counter: Counter) -> Iterator[None]:
    """Count Triton's kernels and attention, one kernel on CUDA, instead of running them."""

    def counted(kernels: int, x: Tensor, *_: object, **__: object) -> Tensor:
        with counter.paused():
            result = x.contiguous(memory_format=torch.channels_last)
        counter.count += kernels
        return result

    kernels = SimpleNamespace(group_norm=partial(counted, 3), add_=partial(counted, 1))
    with (
        mock.patch.object(cuda, "_kernels", return_value=kernels),
        mock.patch.object(F, "scaled_dot_product_attention", partial(counted, 1)),
    ):
        yield


if __name__ == "__main__":
    main()
