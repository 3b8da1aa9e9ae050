"""The codebook in training: exponential moving averages (EMA), and re-initialisation of dead codes.

The 1x1 scale has one token a picture, the 16x16 scale 256. If all tokens counted equally, the fine scales
would take over the codebook, and codes of the coarse scales would seem dead: the collapse that trainers of
multi-scale tokenizers report. So each of the K scales has a weight, by default 1/K.

Sources: van den Oord et al. 2017, arXiv:1711.00937, appendix A.1 (EMA); Dhariwal et al. 2020,
arXiv:2005.00341, section 3 (random restarts).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vartok.models.quantizer import MultiScaleQuantizer, ScaleStep
from vartok.train.settings import QuantizerSettings

MAX_RESIDUAL_SHARE = 0.25
"""Largest share of a step's residuals that become new codes. With a larger share, most new codes would come
from the finest scale, which has most of the residuals."""


class EMACodebook:
    """The EMA of the codebook of a quantizer, and of the usage of its codes.

    Attributes:
        usage: [K, V] float32, EMA of the share of a scale's tokens that each code has. A row sums to 1 until
            dead codes are replaced: their shares are set to 1 / V.
        sums: [K, V, C] float32, EMA of the sum of the residuals assigned to a code, divided by the scale's
            number of tokens. So sums / usage is the mean residual of a code.
        replace_every: number of steps from one re-initialisation of dead codes to the next: an eighth of
            1 / (1 - decay), the number of steps that the EMA remembers; at least 1.
    """

    def __init__(
        self,
        quantizer: MultiScaleQuantizer,
        tokens: Sequence[int],
        settings: QuantizerSettings,
        batch_size: int,
    ) -> None:
        """Start from uniform usage.

        Args:
            quantizer: the quantizer; its codebook is changed in place.
            tokens: number of tokens of a picture at every scale.
            settings: decay of the EMA, threshold of dead codes, and weights of scales.
            batch_size: pictures per step.
        """
        codes = quantizer.embedding.weight.detach()
        self.usage = codes.new_full((len(tokens), len(codes)), 1 / len(codes))
        self.sums = (codes / len(codes)).repeat(len(tokens), 1, 1)
        weights = torch.tensor(tokens, dtype=torch.float64) ** settings.token_weight
        self._tokens = torch.tensor(tokens, device=codes.device, dtype=codes.dtype)[:, None, None]
        self._weights = (weights / weights.sum()).to(codes)
        self._quantizer = quantizer
        self._settings = settings
        memory = 1 / max(1 - settings.codebook_ema_decay, 1e-6)  # steps
        most = [min(len(codes), memory * batch_size * count) for count in tokens]
        self._most_codes = torch.tensor(most, device=codes.device)
        first_rows = torch.arange(len(tokens)) * len(codes)
        self._first_rows = first_rows.repeat_interleave(torch.tensor(tokens)).to(codes.device)
        self.replace_every = max(1, round(memory / 8))
        self._cells: list[Tensor] = []

    def update(self, scales: Sequence[ScaleStep], mean: Callable[[Tensor], Tensor]) -> None:
        """Update `usage` and `sums`; if the setting `codebook` is "ema", also the codes.

        With "ema" a code becomes the mean of its residuals, weighted by scale. A code whose usage is below
        0.001 / V keeps its value.

        Args:
            scales: K steps of the quantizer, for this process's part of the batch.
            mean: maps a tensor to its mean over all processes; called once.
        """
        self._cells = [scale.cells.detach() for scale in scales if scale.cells is not None]
        K, V, C = self.sums.shape
        assert len(self._cells) == K  # in training a latent is quantized
        cells = torch.cat([part.flatten(2) for part in self._cells], dim=2).transpose(1, 2)  # [B, L, C]
        totals = mean(self._totals([scale.indices for scale in scales], cells))
        decay = self._settings.codebook_ema_decay
        self.usage.lerp_(totals[..., C], 1 - decay)
        self.sums.lerp_(totals[..., :C], 1 - decay)
        if self._settings.codebook == "ema":
            share = self._weighted_mean(self.usage)[:, None]
            reliable = share > 1e-3 / V  # the mean of very few residuals is noise
            codes = self._quantizer.embedding.weight
            means = self._weighted_mean(self.sums) / share.clamp(min=1e-12)
            codes.data.copy_(torch.where(reliable, means, codes))

    def update_usage(self, maps: Sequence[Tensor], mean: Callable[[Tensor], Tensor]) -> None:
        """Update `usage` alone, as for a codebook that is kept.

        Args:
            maps: K token maps [B, h_k, w_k], for this process's part of the batch.
            mean: maps a tensor to its mean over all processes; called once.
        """
        none = self.usage.new_empty(len(maps[0]), len(self._first_rows), 0)
        self.usage.lerp_(mean(self._totals(maps, none))[..., 0], 1 - self._settings.codebook_ema_decay)

    def _totals(self, maps: Sequence[Tensor], cells: Tensor) -> Tensor:
        """Return the sum of the cells of each code, and the share of each code, at every scale.

        All scales are summed by one `index_add_`: a row of its result is a scale and a code. `bincount` would
        make a CUDA device's queue run empty, once for each scale.

        Args:
            maps: K token maps [B, h_k, w_k].
            cells: [B, L, C], the cells of a picture, scale by scale.

        Returns:
            [K, V, C + 1]: sums [K, V, C], divided by the scale's number of tokens, then shares.
        """
        K, V = self.usage.shape
        rows = torch.cat([tokens.flatten(1) for tokens in maps], dim=1) + self._first_rows
        values = torch.cat([cells, cells.new_ones(()).expand(*cells.shape[:2], 1)], dim=2)
        totals = cells.new_zeros(K * V, values.shape[2])
        totals.index_add_(0, rows.flatten(), values.flatten(0, 1))
        return totals.view(K, V, -1).div_(self._tokens * len(cells))

    def replace_dead_codes(self, seed: int, gather: Callable[[Tensor], Tensor]) -> Tensor:
        """Re-initialise dead codes from the residuals of the last `update`.

        A code is dead if the weighted mean of its usage over scales is below `dead_code_threshold` / V. Each
        becomes a residual, drawn without replacement and more often from scales that use few codes. A call
        turns at most `MAX_RESIDUAL_SHARE` of the residuals into codes; the other dead codes wait for the
        next call. All shapes are known beforehand, so that nothing waits for the device.

        Args:
            seed: seed of the random draw.
            gather: joins the rows of all processes in order of rank, [n, C] -> [processes * n, C].

        Returns:
            [V] bool, True for the codes that were replaced.
        """
        share = self._weighted_mean(self.usage)
        V = len(share)
        residuals = [part.permute(0, 2, 3, 1).flatten(0, 2) for part in self._cells]
        candidates = gather(torch.cat(residuals))
        lack = (1 - self.perplexity() / self._most_codes).clamp(min=1e-3).square()
        lack /= self._tokens.flatten() * len(self._cells[0])
        weights = torch.cat([gap.expand(len(rows)) for gap, rows in zip(lack, residuals, strict=True)])
        weights = weights.repeat(len(candidates) // len(weights))
        most = min(V, max(1, int(MAX_RESIDUAL_SHARE * len(candidates))))
        new = candidates[_draw(weights, most, seed)]
        dead = share < self._settings.dead_code_threshold / V
        number = dead.cumsum(0)  # from 1 in the order of dead codes
        replaced = dead & (number <= most)
        new = new[(number - 1).clamp(0, most - 1)]
        chosen = replaced[:, None]
        codes = self._quantizer.embedding.weight.data
        codes.copy_(torch.where(chosen, new, codes))
        self.usage.masked_fill_(replaced, 1 / V)
        self.sums.copy_(torch.where(chosen, new / V, self.sums))
        return replaced

    def perplexity(self) -> Tensor:
        """Return the perplexity of each scale's usage, [K]: exp(entropy), V if all codes are used evenly."""
        return _perplexity(self.usage)

    def total_perplexity(self) -> float:
        """Return the perplexity of the weighted mean of the usage over scales."""
        return float(_perplexity(self._weighted_mean(self.usage)))

    def _weighted_mean(self, values: Tensor) -> Tensor:
        """Return the weighted mean over scales: [K, ...] -> [...]."""
        mean: Tensor = torch.tensordot(self._weights, values, dims=1)
        return mean


def _perplexity(usage: Tensor) -> Tensor:
    """Return the perplexity of the distributions along the last axis: [..., V] -> [...]."""
    share = usage / usage.sum(-1, keepdim=True)
    entropy = -(share * share.clamp(min=1e-30).log()).sum(-1)  # not every device has `torch.special.entr`
    return entropy.exp()


def _draw(weights: Tensor, count: int, seed: int) -> Tensor:
    """Draw indices without replacement, with probabilities proportional to weights.

    It draws what `torch.multinomial` draws on a CPU, but reads nothing back from the weights' device. The
    random numbers are the CPU's, so that processes on unlike devices draw the same.

    Args:
        weights: [n], above 0.
        count: number of indices, at most n.
        seed: seed of the draw.

    Returns:
        [count] int64; the first m of them are those that a smaller `count` m gives.

    Source: Efraimidis and Spirakis 2006, weighted random sampling with a reservoir.
    """
    times = torch.empty(len(weights)).exponential_(1, generator=torch.Generator().manual_seed(seed))
    if weights.device.type == "cuda":
        times = times.pin_memory()  # else the copy waits for the device
    keys = weights / times.to(weights.device, non_blocking=weights.device.type == "cuda")
    return keys.topk(count).indices
