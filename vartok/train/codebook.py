"""The codebook in training: exponential moving averages (EMA), and re-initialisation of dead codes.

The 1x1 scale has one token a picture, the 16x16 scale 256. If all tokens counted equally, the fine scales
would take over the codebook, and codes of the coarse scales would seem dead: the collapse that trainers of
multi-scale tokenizers report. So each scale has a weight, by default 1/K.

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
"""Largest share of a step's residuals that become new codes. Beyond it, most would be the finest scale's."""


class EMACodebook:
    """The EMA of a quantizer's codebook, and its usage.

    Attributes:
        usage: [K, V] float32, EMA of each code's share of a scale's tokens; a row sums to 1.
        sums: [K, V, C] float32, EMA of the sum of the residuals assigned to a code, divided by the number
            of the scale's tokens.
        replace_every: steps from one re-initialisation of dead codes to the next: an eighth of the EMA's
            memory, 1 / (1 - decay).
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
            quantizer: the quantizer, whose codebook is updated in place.
            tokens: tokens of every scale, per picture.
            settings: decay, threshold and weights.
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
        """Update the averages, and, if the setting `codebook` is "ema", set the codes to the mean residuals.

        Args:
            scales: K steps of the quantizer, for this process's part of the batch.
            mean: returns the mean of a tensor over all processes.
        """
        usage, sums = torch.zeros_like(self.usage), torch.zeros_like(self.sums)
        self._residuals = []
        for k, scale in enumerate(scales):
            assert scale.cells is not None  # in training a latent is quantized
            indices = scale.indices.flatten()
            rows = scale.cells.detach().permute(0, 2, 3, 1).reshape(len(indices), -1)
            usage[k] = torch.bincount(indices, minlength=usage.shape[1]) / len(indices)
            sums[k].index_add_(0, indices, rows, alpha=1 / len(indices))
            self._residuals.append(rows)
        decay = self._settings.codebook_ema_decay
        self.usage.lerp_(mean(usage), 1 - decay)
        self.sums.lerp_(mean(sums), 1 - decay)
        if self._settings.codebook == "ema":
            share = self._weighted_mean(self.usage)[:, None]
            reliable = share > 1e-3 / len(share)  # the mean of very few residuals is noise
            codes = self._quantizer.embedding.weight
            means = self._weighted_mean(self.sums) / share.clamp(min=1e-12)
            codes.data.copy_(torch.where(reliable, means, codes))

    def replace_dead_codes(self, seed: int, gather: Callable[[Tensor], Tensor]) -> Tensor:
        """Re-initialise dead codes from residuals of the last step.

        A code is dead if its usage is below `dead_code_threshold` / V. Residuals are drawn without
        replacement, more often from scales that use few codes. At most `MAX_RESIDUAL_SHARE` of them are used;
        the other dead codes wait for the next call.

        Args:
            seed: seed of the random draw.
            gather: joins the rows of all processes, [n, C] -> [processes * n, C].

        Returns:
            [n] int64, the codes that were replaced.
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
        """Return the perplexity of every scale's usage, [K]: exp(entropy), V if all codes are used evenly."""
        return _perplexity(self.usage)

    def total_perplexity(self) -> float:
        """Return the perplexity of the usage by all scales, weighted."""
        return float(_perplexity(self._weighted_mean(self.usage)))

    def _weighted_mean(self, values: Tensor) -> Tensor:
        """Return the weighted mean over scales: [K, ...] -> [...]."""
        mean: Tensor = torch.tensordot(self._weights, values, dims=1)
        return mean


def _perplexity(usage: Tensor) -> Tensor:
    """Return the perplexity over the last axis: [..., V] -> [...]."""
    usage = usage.cpu()  # a small table, and not every device has entr
    perplexity: Tensor = torch.special.entr(usage / usage.sum(-1, keepdim=True)).sum(-1).exp()
    return perplexity
