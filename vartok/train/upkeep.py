"""The codebook in training: a moving average of what its codes are picked for, and an eye on their use.

A code of the 1x1 scale sees one token a picture, one of the 16x16 scale may see hundreds. Counted alike, the
fine scales would own the codebook, and codes of the coarse ones would seem dead: the collapse that trainers
of multi-scale tokenizers report. So each scale has a weight here, by default the same.

Sources: van den Oord et al. 2017, arXiv:1711.00937, appendix A.1 (the moving average); Dhariwal et al. 2020,
arXiv:2005.00341, section 3 (the restart of dead codes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vartok.models.quantizer import MultiScaleQuantizer, ScaleStep
from vartok.train.settings import QuantizerSettings

TAKEN = 0.25  # of a step's residuals, by codes that start anew


class EMACodebook:
    """Keeps a quantizer's codebook close to what it codes, and all of it in use.

    Attributes:
        use: [K, V] float32: for each scale, the moving average of each code's share of its tokens.
        sums: [K, V, C] float32: likewise, the moving average of the residuals that a code was picked for,
            times its share.
        restart_every: steps from one restart to the next: a small part of what the average remembers.
    """

    def __init__(
        self,
        quantizer: MultiScaleQuantizer,
        tokens: Sequence[int],
        settings: QuantizerSettings,
        batch_size: int,
    ) -> None:
        """Begin with even use.

        Args:
            quantizer: whose codebook it is.
            tokens: of every scale, in a picture.
            settings: how the codebook follows.
            batch_size: pictures a step.
        """
        codes = quantizer.embedding.weight.detach()
        self.use = codes.new_full((len(tokens), len(codes)), 1 / len(codes))
        self.sums = (codes / len(codes)).repeat(len(tokens), 1, 1)
        weights = torch.tensor(tokens, dtype=torch.float64) ** settings.token_weight
        self._weights = (weights / weights.sum()).to(codes)
        self._quantizer = quantizer
        self._settings = settings
        memory = 1 / max(1 - settings.decay, 1e-6)  # steps
        self._possible = torch.tensor([min(len(codes), memory * batch_size * count) for count in tokens])
        self.restart_every = max(1, round(memory / 8))
        self._cells: list[Tensor] = []

    def observe(self, scales: Sequence[ScaleStep], mean: Callable[[Tensor], Tensor]) -> None:
        """Take in a step's scales, and move the codes if they are to follow as averages.

        Args:
            scales: of this process's part of the batch.
            mean: makes the mean over all processes of a tensor.
        """
        share, sums = torch.zeros_like(self.use), torch.zeros_like(self.sums)
        self._cells = []
        for k, scale in enumerate(scales):
            assert scale.cells is not None  # in training a latent is quantized
            indices = scale.indices.flatten()
            rows = scale.cells.detach().permute(0, 2, 3, 1).reshape(len(indices), -1)
            share[k] = torch.bincount(indices, minlength=share.shape[1]) / len(indices)
            sums[k].index_add_(0, indices, rows, alpha=1 / len(indices))
            self._cells.append(rows)
        decay = self._settings.decay
        self.use.lerp_(mean(share), 1 - decay)
        self.sums.lerp_(mean(sums), 1 - decay)
        if self._settings.codebook == "average":
            picked = self._weighted(self.use)[:, None]
            kept = picked > 1e-3 / len(picked)  # of what was hardly ever picked the average is noise
            codes = self._quantizer.embedding.weight
            means = self._weighted(self.sums) / picked.clamp(min=1e-12)
            codes.data.copy_(torch.where(kept, means, codes))

    def restart(self, seed: int, gather: Callable[[Tensor], Tensor]) -> Tensor:
        """Give dead codes new places: residuals of the last step, of scales that show too few codes.

        No two go to one residual, and only some of the residuals are taken, since more of them would be the
        finest scales' again. What is left is for the next time.

        Args:
            seed: of what is drawn at random.
            gather: joins the rows that all processes have, [n, C] -> [processes * n, C].

        Returns:
            [n] int64, the codes that were moved.
        """
        share = self._weighted(self.use)
        dead = (share < self._settings.restart / len(share)).nonzero().flatten()
        if not len(dead):
            return dead
        random = torch.Generator().manual_seed(seed)
        lack = (1 - self.perplexity() / self._possible).clamp(min=1e-3).square()
        weights = torch.cat(
            [gap.expand(len(rows)) / len(rows) for gap, rows in zip(lack, self._cells, strict=True)]
        )
        candidates = gather(torch.cat(self._cells))
        weights = weights.repeat(len(candidates) // len(weights))
        dead = dead[: max(1, int(TAKEN * len(candidates)))]
        chosen = torch.multinomial(weights, len(dead), generator=random)
        new = candidates[chosen.to(candidates.device)]
        self._quantizer.embedding.weight.data[dead] = new
        self.use[:, dead] = 1 / len(share)
        self.sums[:, dead] = new / len(share)
        return dead

    def perplexity(self) -> Tensor:
        """[K]: 2 ** entropy of every scale's use, codes that it uses evenly would be so many."""
        return _perplexity(self.use)

    def total_perplexity(self) -> float:
        """Of all scales together, weighted."""
        return float(_perplexity(self._weighted(self.use)))

    def _weighted(self, values: Tensor) -> Tensor:
        """[K, ...] -> [...]: the mean over scales, each with its weight."""
        mean: Tensor = torch.tensordot(self._weights, values, dims=1)
        return mean


def _perplexity(use: Tensor) -> Tensor:
    """[..., V] -> [...]."""
    use = use.cpu()  # a small table, and not every device has entr
    found: Tensor = torch.special.entr(use / use.sum(-1, keepdim=True)).sum(-1).exp()
    return found
