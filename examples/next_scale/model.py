"""A class-conditional next-scale transformer, and sampling from it.

The transformer predicts all tokens of a scale at once, from the coarser scales: a cell's input is f_hat of
the coarser scales, area-pooled to the scale's grid. Adaptive layer norm conditions it on the class.

Sources: Tian et al. 2024, arXiv:2404.02905 (VAR); Peebles and Xie 2022, arXiv:2212.09748 (adaptive layer
norm); Ho and Salimans 2022, arXiv:2207.12598 (classifier-free guidance).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vartok import Tokenizer, TokenMaps
from vartok.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a `NextScale`.

    Attributes:
        schedule: (h, w) of every scale, coarse to fine; K scales with L cells in all.
        channels: C, number of channels of the codebook.
        vocab_size: V, number of codes.
        classes: number of classes; a label is 0 to `classes` - 1, or -1 for none.
        width: channels of the transformer, a multiple of `heads`.
        depth: number of blocks.
        heads: number of attention heads.
    """

    schedule: Schedule
    channels: int
    vocab_size: int
    classes: int
    width: int
    depth: int
    heads: int


# ---- The network ----


class Cache:
    """Keys and values of the scales sampled so far, in one block."""

    def __init__(self) -> None:
        self._kept: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append one scale's keys and values, each [B, heads, cells, channels], and return those of all."""
        if self._kept is not None:
            keys, values = torch.cat([self._kept[0], keys], 2), torch.cat([self._kept[1], values], 2)
        self._kept = keys, values
        return self._kept


class Attention(nn.Module):
    """Multi-head self-attention with normalized queries and keys, which keep a large learning rate stable."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """[B, n, width] -> [B, n, width]; `mask` is [n, n], True where a query attends to a key."""
        B, n, width = x.shape
        q, k, v = self.qkv(x).view(B, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        if cache is not None:
            k, v = cache.append(k, v)
        x = F.scaled_dot_product_attention(q, k, v.to(q.dtype), attn_mask=mask)
        result: Tensor = self.out(x.transpose(1, 2).reshape(B, n, width))
        return result


class Block(nn.Module):
    """Attention and MLP with adaptive layer norm: the class gives scale, shift and gate of both.

    The gates start at zero, so that a new block is the identity (adaLN-Zero).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = zero_linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """[B, n, width] -> [B, n, width]; `condition` is [B, width]."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=2)
        x = x + gate1 * self.attention(self.norm(x) * (1 + scale1) + shift1, mask, cache)
        x = x + gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2)
        return x


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer of zeros."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class NextScale(nn.Module):
    """A transformer that predicts the tokens of every scale from the coarser scales and a class.

    The logit of a code is the dot product of the cell's output with features that an MLP computes from the
    code: similar codes have similar logits, so that few pictures suffice. VAR has a linear layer there.

    Args:
        config: the model's shape.
        codebook: [V, C] float32, `Tokenizer.codebook`.
    """

    std: Tensor  # [C], the codebook's standard deviation, by which codes and inputs are divided
    codes: Tensor  # [V, C]
    scale: Tensor  # [L], the scale of every cell, from 0
    mask: Tensor  # [L, L], True where the query's scale is as fine as the key's, or finer

    def __init__(self, config: ModelConfig, codebook: Tensor) -> None:
        super().__init__()
        self.config = config
        self.sizes = [h * w for h, w in config.schedule]
        std = codebook.std(0) + 1e-6
        scale = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))
        self.register_buffer("std", std, persistent=False)
        self.register_buffer("codes", codebook / std, persistent=False)
        self.register_buffer("scale", scale.to(codebook.device), persistent=False)
        self.register_buffer("mask", self.scale[:, None] >= self.scale, persistent=False)
        width = config.width
        self.class_embedding = nn.Embedding(config.classes + 1, width)  # the last row: no class
        self.position_embedding = nn.Embedding(len(scale), width)
        self.scale_embedding = nn.Embedding(len(self.sizes), width)
        for embedding in (self.class_embedding, self.position_embedding, self.scale_embedding):
            nn.init.normal_(embedding.weight, std=0.02)
        self.lift = nn.Linear(config.channels, width)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zero_linear(width, 2 * width)
        self.code_features = nn.Sequential(
            nn.Linear(config.channels, width), nn.GELU("tanh"), nn.Linear(width, width)
        )
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the logits of all tokens at once, for training.

        Args:
            inputs: [B, L - h_0 w_0, C], from `Tokenizer.var_inputs`.
            labels: [B] int64; -1 for no class.

        Returns:
            [B, L, V].
        """
        condition = self._condition(labels)
        x = torch.cat([self._start(condition), self.lift(inputs / self.std)], dim=1)
        return self._run(x, condition, slice(None), self.mask, [None] * len(self.blocks))

    def step(self, k: int, inputs: Tensor | None, labels: Tensor, caches: Sequence[Cache]) -> Tensor:
        """Compute the logits of scale `k`, for sampling; call it for k = 0, 1, ... in turn.

        Args:
            k: the scale, from 0.
            inputs: [B, h_k w_k, C], from `Generation.add`; None for the first scale.
            labels: [B] int64; -1 for no class.
            caches: one for each block, empty at first; this scale's keys and values are appended.

        Returns:
            [B, h_k w_k, V].
        """
        condition = self._condition(labels)
        x = self._start(condition) if inputs is None else self.lift(inputs / self.std)
        first = sum(self.sizes[:k])
        return self._run(x, condition, slice(first, first + self.sizes[k]), None, caches)

    def _condition(self, labels: Tensor) -> Tensor:
        """[B] labels -> [B, width]."""
        return F.silu(self.class_embedding(torch.where(labels < 0, self.config.classes, labels)))

    def _start(self, condition: Tensor) -> Tensor:
        """Return the input of the first scale, which has no coarser one: [B, h_0 w_0, width]."""
        return condition[:, None].expand(-1, self.sizes[0], -1)

    def _run(
        self,
        x: Tensor,
        condition: Tensor,
        cells: slice,
        mask: Tensor | None,
        caches: Sequence[Cache | None],
    ) -> Tensor:
        x = x + self.position_embedding.weight[cells] + self.scale_embedding(self.scale[cells])
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, condition, mask, cache)
        scale, shift = self.modulation(condition)[:, None].chunk(2, dim=2)
        x = self.norm(x) * (1 + scale) + shift
        return F.linear(x * self.config.width**-0.5, self.code_features(self.codes), self.bias)


# ---- Sampling ----


@torch.no_grad()
def generate(
    model: NextScale,
    tokenizer: Tokenizer,
    labels: Tensor,
    *,
    guidance: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> TokenMaps:
    """Sample pictures' tokens, scale by scale.

    Args:
        model: a trained transformer.
        tokenizer: the tokenizer that made its tokens.
        labels: [B] int64; -1 for no class.
        guidance: strength of classifier-free guidance at the last scale; it grows linearly from 1 at the
            first scale, as VAR's does. 1 is none.
        temperature: divides the logits.
        top_k: sample from the `top_k` likeliest codes only; 0 for all.
        top_p: sample from the likeliest codes that have this probability together; 1 for all.
        generator: source of randomness, on the model's device.

    Returns:
        Token maps of B pictures.
    """
    steps = tokenizer.generation(model.config.schedule)
    caches = [Cache() for _ in model.blocks]
    both = labels if guidance == 1 else torch.cat([labels, torch.full_like(labels, -1)])
    maps: list[Tensor] = []
    inputs: Tensor | None = None
    for k, (h, w) in enumerate(model.config.schedule):
        if inputs is not None and guidance != 1:
            inputs = inputs.repeat(2, 1, 1)
        logits = model.step(k, inputs, both, caches).float()
        if guidance != 1:
            conditional, unconditional = logits.chunk(2)
            logits = guided(conditional, unconditional, 1 + (guidance - 1) * k / max(1, len(model.sizes) - 1))
        tokens = sample(logits / temperature, top_k, top_p, generator)
        maps.append(tokens.view(-1, h, w))
        inputs = steps.add(maps[-1])
    return TokenMaps(tuple(maps))


def guided(logits: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Apply classifier-free guidance: move `logits` away from those without a class; 1 leaves them."""
    return unconditional + guidance * (logits - unconditional) if guidance != 1 else logits


def sample(logits: Tensor, top_k: int, top_p: float, generator: torch.Generator | None) -> Tensor:
    """Draw a token for every cell: [B, n, V] -> [B, n] int64; the arguments are those of `generate`."""
    ordered, codes = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # of the likelier codes: 0 for the likeliest
    dropped = before >= top_p
    if top_k:
        dropped[..., top_k:] = True
    dropped[..., 0] = False
    probabilities = probabilities.masked_fill(dropped, 0)
    rank = torch.multinomial(probabilities.flatten(0, 1), 1, generator=generator).view(*logits.shape[:2], 1)
    return codes.gather(-1, rank).squeeze(-1)
