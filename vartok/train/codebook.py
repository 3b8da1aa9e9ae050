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
        self._weights = (weights / weights.sum()).to(codes)
        self._quantizer = quantizer
        self._settings = settings
        memory = 1 / max(1 - settings.codebook_ema_decay, 1e-6)  # steps
        self._most_codes = torch.tensor([min(len(codes), memory * batch_size * count) for count in tokens])
        self.replace_every = max(1, round(memory / 8))
        self._residuals: list[Tensor] = []

    def update(self, scales: Sequence[ScaleStep], mean: Callable[[Tensor], Tensor]) -> None:
        """Update `usage` and `sums`; if the setting `codebook` is "ema", also the codes.

        With "ema" a code becomes the mean of its residuals, weighted by scale. A code whose usage is below
        0.001 / V keeps its value.

        Args:
            scales: K steps of the quantizer, for this process's part of the batch.
            mean: maps a tensor to its mean over all processes.
        """
        self.update_usage([scale.indices for scale in scales], mean)
        sums = torch.zeros_like(self.sums)
        self._residuals = []
        for k, scale in enumerate(scales):
            assert scale.cells is not None  # in training a latent is quantized
            indices = scale.indices.flatten()
            rows = scale.cells.detach().permute(0, 2, 3, 1).reshape(len(indices), -1)
            sums[k].index_add_(0, indices, rows, alpha=1 / len(indices))
            self._residuals.append(rows)
        decay = self._settings.codebook_ema_decay
        self.sums.lerp_(mean(sums), 1 - decay)
        if self._settings.codebook == "ema":
            share = self._weighted_mean(self.usage)[:, None]
            reliable = share > 1e-3 / len(share)  # the mean of very few residuals is noise
            codes = self._quantizer.embedding.weight
            means = self._weighted_mean(self.sums) / share.clamp(min=1e-12)
            codes.data.copy_(torch.where(reliable, means, codes))

    def update_usage(self, maps: Sequence[Tensor], mean: Callable[[Tensor], Tensor]) -> None:
        """Update `usage` alone, as for a codebook that is kept.

        Args:
            maps: K token maps [B, h_k, w_k], for this process's part of the batch.
            mean: maps a tensor to its mean over all processes.
        """
        V = self.usage.shape[1]
        usage = [torch.bincount(tokens.flatten(), minlength=V) / tokens.numel() for tokens in maps]
        self.usage.lerp_(mean(torch.stack(usage)), 1 - self._settings.codebook_ema_decay)

    def replace_dead_codes(self, seed: int, gather: Callable[[Tensor], Tensor]) -> Tensor:
        """Re-initialise dead codes from the residuals of the last `update`.

        A code is dead if the weighted mean of its usage over scales is below `dead_code_threshold` / V. Each
        becomes a residual, drawn without replacement and more often from scales that use few codes. A call
        turns at most `MAX_RESIDUAL_SHARE` of the residuals into codes; the other dead codes wait for the
        next call.

        Args:
            seed: seed of the random draw.
            gather: joins the rows of all processes in order of rank, [n, C] -> [processes * n, C].

        Returns:
            [n] int64, indices of the codes that were replaced.
        """
        share = self._weighted_mean(self.usage)
        dead = (share < self._settings.dead_code_threshold / len(share)).nonzero().flatten()
        if not len(dead):
            return dead
        random = torch.Generator().manual_seed(seed)
        lack = (1 - self.perplexity() / self._most_codes).clamp(min=1e-3).square()
        weights = torch.cat(
            [gap.expand(len(rows)) / len(rows) for gap, rows in zip(lack, self._residuals, strict=True)]
        )
        candidates = gather(torch.cat(self._residuals))
        weights = weights.repeat(len(candidates) // len(weights))
        dead = dead[: max(1, int(MAX_RESIDUAL_SHARE * len(candidates)))]
        chosen = torch.multinomial(weights, len(dead), generator=random)
        new = candidates[chosen.to(candidates.device)]
        self._quantizer.embedding.weight.data[dead] = new
        self.usage[:, dead] = 1 / len(share)
        self.sums[:, dead] = new / len(share)
        return dead

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
    """Return the perplexity of the distributions along the last axis: [..., V] -> [...], on the CPU."""
    usage = usage.cpu()  # the table is small, and not every device supports entr
    perplexity: Tensor = torch.special.entr(usage / usage.sum(-1, keepdim=True)).sum(-1).exp()
    return perplexity
