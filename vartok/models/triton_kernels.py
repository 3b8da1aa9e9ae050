"""Triton kernels for channels-last maps in bfloat16 and float16: group norm with SiLU, and addition.

The maps of such networks are too large for a card's cache, so a layer costs what it moves. torch's group norm
returns another layout than channels last, and its SiLU, biases and residuals each read and write a whole map.

A map [B, C, H, W] in channels last is a matrix with H W rows, or cells, of C values for each picture. All
kernels read and write blocks of it, and compute in float32. `TRITON_INTERPRET=1` runs them on a CPU; it must
be set before triton is imported. Only a machine with CUDA needs triton, so nothing imports this module until
it is used there. A kernel is compiled for each dtype and number of channels, not for sizes of maps
(`do_not_specialize`); Triton keeps what it compiled on the disk.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

BLOCK = 4096
"""Values of a map that a program holds at once: 16 for each thread of 8 warps."""

MAX_BLOCK_CHANNELS = 128
"""Largest number of channels of a block."""

PROGRAMS = 1024
"""Programs that sum up one picture's map: enough to fill a card without a second picture."""


def group_norm(
    x: Tensor, norm: nn.GroupNorm, *, silu: bool, offset: Tensor | None = None, inplace: bool = False
) -> Tensor:
    """Compute group norm, and SiLU after it if `silu` is true.

    A channel of a picture has up to `PROGRAMS` partial sums, as many for a batch as for one picture, so that
    a picture's rounding does not depend on its batch.

    Args:
        x: [B, C, H, W], converted to channels last if it has another layout.
        norm: the module whose groups, eps, weight and bias are used.
        silu: apply SiLU to the result.
        offset: [C], added to `x` before; the bias of a convolution that was computed without it.
        inplace: overwrite `x` if it is channels last.

    Returns:
        [B, C, H, W] in the dtype of `x`, channels last.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    out = x if inplace else torch.empty_like(x)
    if not x.numel():
        return out
    B, C, H, W = x.shape
    cells = H * W
    block_channels, block_cells = _block(C)
    blocks = _ceil_div(cells, block_cells)
    columns = _ceil_div(C, block_channels)
    most_splits = _ceil_div(PROGRAMS, columns)
    split_cells = _ceil_div(blocks, most_splits) * block_cells
    splits = _ceil_div(cells, split_cells)
    means, squares = torch.empty(2, B, splits, C, dtype=torch.float32, device=x.device)
    scale, shift = torch.empty(2, B, C, dtype=torch.float32, device=x.device)
    group = C // norm.num_groups
    with torch.cuda.device_of(x):
        _channel_statistics[(B * splits, columns)](
            *(x, means, squares, cells, C, splits, split_cells),
            *(block_cells, block_channels),
            num_warps=8,
        )
        _affine[(B * norm.num_groups,)](
            *(means, squares, norm.weight, norm.bias),
            *(norm.bias if offset is None else offset.contiguous(), scale, shift),
            *(cells, C, splits, split_cells, norm.num_groups, float(cells * group), norm.eps),
            *(offset is not None, group, _power_of_two(group), _power_of_two(most_splits)),
            num_warps=8,
        )
        _normalize[(B * blocks, columns)](
            *(x, scale, shift, out, cells, C, blocks),
            *(silu, block_cells, block_channels),
            num_warps=8,
        )
    return out


def add_(x: Tensor, bias: Tensor, residual: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """Add a convolution's bias to its output, and a residual, in one pass.

    Args:
        x: [B, C, H, W]; overwritten if it is channels last.
        bias: [C].
        residual: [B, C, H, W] in the dtype of `x`, converted to channels last; or None.
        relu: apply a ReLU to the sum.

    Returns:
        The sum, [B, C, H, W] in the dtype of `x`, channels last.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    if not x.numel():
        return x
    other = x if residual is None else residual.contiguous(memory_format=torch.channels_last)
    B, C, H, W = x.shape
    cells = B * H * W
    block_channels, block_cells = _block(C)
    with torch.cuda.device_of(x):
        _add[(_ceil_div(cells, block_cells), _ceil_div(C, block_channels))](
            *(x, bias.contiguous(), other, cells, C),
            *(residual is not None, relu, block_cells, block_channels),
            num_warps=8,
        )
    return x


@triton.jit(do_not_specialize=["cells", "splits", "split_cells"])
def _channel_statistics(
    x,
    means,
    squares,
    cells,
    channels,
    splits,
    split_cells,
    BLOCK_CELLS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Store each channel's mean, and its sum of squared deviations from it, over one split of a picture.

    Sums are of differences to the split's first value: a mean that is large beside the deviations would
    otherwise cost their digits.
    """
    row = tl.program_id(0).to(tl.int64)
    picture = row // splits
    start = (row % splits).to(tl.int32) * split_cells
    end = tl.minimum(start + split_cells, cells)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = channel < channels
    base = x + picture * cells * channels
    first = tl.load(base + start.to(tl.int64) * channels + channel, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros([BLOCK_CELLS, BLOCK_CHANNELS], tl.float32)
    sums_of_squares = tl.zeros([BLOCK_CELLS, BLOCK_CHANNELS], tl.float32)
    for block in range(start, end, BLOCK_CELLS):
        cell = block + tl.arange(0, BLOCK_CELLS)
        mask = (cell < end)[:, None] & inside[None, :]
        offsets = cell.to(tl.int64)[:, None] * channels + channel[None, :]
        value = tl.load(base + offsets, mask=mask, other=0.0).to(tl.float32)
        difference = tl.where(mask, value - first[None, :], 0.0)
        sums += difference
        sums_of_squares += difference * difference
    count = (end - start).to(tl.float32)
    total = tl.sum(sums, axis=0)
    deviations = tl.sum(sums_of_squares, axis=0) - total * total / count
    offsets = row * channels + channel
    tl.store(means + offsets, first + total / count, mask=inside)
    tl.store(squares + offsets, tl.maximum(deviations, 0.0), mask=inside)


@triton.jit(do_not_specialize=["cells", "splits", "split_cells", "groups"])
def _affine(
    means,
    squares,
    weight,
    bias,
    offset,
    scale,
    shift,
    cells,
    channels,
    splits,
    split_cells,
    groups,
    total,
    eps,
    HAS_OFFSET: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """Store scale and shift of one group's channels in one picture: x * scale + shift is normalized.

    A group has `total` values, a float.

    Source of the combination of partial sums: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise
    algorithm for computing sample variances".
    """
    picture = tl.program_id(0).to(tl.int64) // groups
    group = tl.program_id(0) % groups
    inside = tl.arange(0, BLOCK_GROUP) < GROUP
    channel = group * GROUP + tl.arange(0, BLOCK_GROUP)
    split = tl.arange(0, BLOCK_SPLITS)
    mask = (split < splits)[:, None] & inside[None, :]
    offsets = (picture * splits + split[:, None]) * channels + channel[None, :]
    mean = tl.load(means + offsets, mask=mask, other=0.0)
    deviations = tl.load(squares + offsets, mask=mask, other=0.0)
    if HAS_OFFSET:
        added = tl.load(offset + channel, mask=inside, other=0.0).to(tl.float32)
        mean += added[None, :]
    count = tl.minimum(cells - split * split_cells, split_cells).to(tl.float32)[:, None]
    center = tl.sum(tl.sum(tl.where(mask, count * mean, 0.0), axis=1), axis=0) / total
    distance = mean - center
    deviations += count * distance * distance
    variance = tl.sum(tl.sum(tl.where(mask, deviations, 0.0), axis=1), axis=0) / total
    factor = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    constant = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32) - center * factor
    if HAS_OFFSET:
        constant += added * factor
    tl.store(scale + picture * channels + channel, factor, mask=inside)
    tl.store(shift + picture * channels + channel, constant, mask=inside)


@triton.jit(do_not_specialize=["cells", "blocks"])
def _normalize(
    x,
    scale,
    shift,
    out,
    cells,
    channels,
    blocks,
    SILU: tl.constexpr,
    BLOCK_CELLS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Store x * scale + shift of one block, after SiLU if SILU."""
    picture = tl.program_id(0).to(tl.int64) // blocks
    cell = (tl.program_id(0) % blocks) * BLOCK_CELLS + tl.arange(0, BLOCK_CELLS)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = channel < channels
    mask = (cell < cells)[:, None] & inside[None, :]
    offsets = (picture * cells + cell[:, None]) * channels + channel[None, :]
    factor = tl.load(scale + picture * channels + channel, mask=inside, other=0.0)
    constant = tl.load(shift + picture * channels + channel, mask=inside, other=0.0)
    value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    value = value * factor[None, :] + constant[None, :]
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(out + offsets, value.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["cells"])
def _add(
    x,
    bias,
    residual,
    cells,
    channels,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_CELLS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Add bias and residual to one block of x, in place, and apply a ReLU if RELU."""
    cell = tl.program_id(0).to(tl.int64) * BLOCK_CELLS + tl.arange(0, BLOCK_CELLS)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = channel < channels
    mask = (cell < cells)[:, None] & inside[None, :]
    offsets = cell[:, None] * channels + channel[None, :]
    value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        value += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        value = tl.maximum(value, 0.0)
    tl.store(x + offsets, value.to(x.dtype.element_ty), mask=mask)


def _block(channels: int) -> tuple[int, int]:
    """Return a block's channels and cells, powers of two; its channels divide the map's where they can."""
    columns = min(max(math.gcd(channels, MAX_BLOCK_CHANNELS), 32), MAX_BLOCK_CHANNELS)
    return columns, BLOCK // columns


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _power_of_two(n: int) -> int:
    """Return the smallest power of two that is not below n."""
    return 1 << (n - 1).bit_length()
