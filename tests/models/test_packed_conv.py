"""Packed convolutions compute what `nn.Conv2d` computes."""

import pytest
import torch
from torch import nn

from vartok.models.packed_conv import PackedConv2d, can_pack

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="no packed convolutions here")


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (1, 1, 0), (3, 2, 0), (16, 16, 0)])
@pytest.mark.parametrize("size", [16, 32, 34, 160])  # one of them the size that weights are packed for
@torch.no_grad()
def test_a_packed_convolution(kernel: int, stride: int, padding: int, size: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 12, kernel, stride=stride, padding=padding)
    packed, x = PackedConv2d(conv), torch.randn(2, 5, size, size)
    packed(torch.randn(2, 5, 32, 32))
    want = conv(x)
    other = torch.randn_like(want).contiguous(memory_format=torch.channels_last)
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(packed(x), want, **close)  # type: ignore[arg-type]
    torch.testing.assert_close(packed(x, relu=True), want.relu(), **close)  # type: ignore[arg-type]
    total = other + want
    torch.testing.assert_close(packed(x, into=other), total, **close)  # type: ignore[arg-type]
    torch.testing.assert_close(other, total, **close)  # type: ignore[arg-type]
