"""The four parts of a tokenizer as modules that torch can export: one tensor in, one tensor out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vartok.config import TokenizerConfig
from vartok.models.quantizer import Lookup, MultiScaleQuantizer, area_pool
from vartok.models.vqvae import VQVAE
from vartok.schedule import Grid, Schedule, token_count


class Encoder(nn.Module):
    """Encoder and quant_conv: `VQVAE.encode`."""

    def __init__(self, model: VQVAE) -> None:
        super().__init__()
        self.encoder, self.quant_conv = model.encoder, model.quant_conv

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] in [-1, 1] -> [B, C, h, w]."""
        latent: Tensor = self.quant_conv(self.encoder(images))
        return latent


class Quantizer(nn.Module):
    """`MultiScaleQuantizer.encode` for one schedule."""

    def __init__(self, quantizer: MatrixQuantizer) -> None:
        super().__init__()
        self.quantize = quantizer

    def forward(self, latent: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, L] int64: all scales coarse to fine, each row by row."""
        maps = self.quantize.encode(latent, self.quantize.schedule)
        return torch.cat([tokens.flatten(1) for tokens in maps], 1)


class Dequantizer(nn.Module):
    """`MultiScaleQuantizer.decode` for one schedule."""

    def __init__(self, quantizer: MatrixQuantizer) -> None:
        super().__init__()
        self.quantize = quantizer

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L] int64 -> f_hat, [B, C, h, w]."""
        schedule = self.quantize.schedule
        parts = tokens.split([h * w for h, w in schedule], 1)
        maps = [part.unflatten(1, grid) for part, grid in zip(parts, schedule, strict=True)]
        return self.quantize.decode(maps, schedule)


class Decoder(nn.Module):
    """post_quant_conv and decoder: `VQVAE.decode`."""

    def __init__(self, model: VQVAE) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = model.decoder, model.post_quant_conv

    def forward(self, f_hat: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, in_channels, H, W], clamped to [-1, 1]."""
        images: Tensor = self.decoder(self.post_quant_conv(f_hat))
        return images.clamp(-1, 1)


class RowLookup(Lookup):
    """`Lookup` of all cells at once, for a batch of any size: the number of parts would depend on it."""

    def __call__(self, z: Tensor) -> Tensor:
        """Find the nearest code of every cell: [B, C, h, w] -> [B, h, w] int64 in [0, V)."""
        B, C, h, w = z.shape
        return self.nearest(z.permute(0, 2, 3, 1).reshape(-1, C)).view(B, h, w)

    def nearest(self, cells: Tensor) -> Tensor:
        """Return the index of each cell's nearest code: [N, C] -> [N] int64, the lowest of equally near ones.

        A cell's distances are a row of the table [N, V], which runtimes search faster than a column.
        """
        if self.znorm:
            return (F.normalize(cells, dim=-1) @ self.codes.T).argmax(1)
        distances = cells.square().sum(1, keepdim=True) + self.norms.T
        return torch.addmm(distances, cells, self.codes.T, alpha=-2).argmin(1)


class MatrixQuantizer(MultiScaleQuantizer):
    """`MultiScaleQuantizer` for one schedule, whose pooling and upsampling are products with matrices.

    Runtimes differ in how they interpolate, and many cannot pool to a grid that does not divide the latent's.
    A product with a constant matrix is the same everywhere. Both operations treat rows and columns
    separately, so each takes two small matrices.

    Args:
        quantizer: the quantizer, whose tensors are shared.
        config: its configuration.
        schedule: (h, w) of every scale, the last one the latent's.
    """

    lookup_class = RowLookup

    def __init__(self, quantizer: MultiScaleQuantizer, config: TokenizerConfig, schedule: Schedule) -> None:
        with torch.device("meta"):
            super().__init__(config)
        self.load_state_dict(quantizer.state_dict(), assign=True)
        self.requires_grad_(False)
        del self.ema_vocab_hit_SV  # nothing uses it
        self.schedule = schedule
        for grid in schedule[:-1]:
            for side, last in zip(grid, schedule[-1], strict=True):
                pooled = area_pool(torch.eye(last)[None, None], (side, last))
                upsampled = F.interpolate(torch.eye(side)[None, None], (last, side), mode="bicubic")
                self.register_buffer(f"pool_{last}_to_{side}", pooled[0, 0])
                self.register_buffer(f"upsample_{side}_to_{last}", upsampled[0, 0])

    def pool(self, residual: Tensor, grid: Grid) -> Tensor:
        """Pool by averages over areas: [B, C, h, w] -> [B, C, *grid]."""
        return self._resize(residual, "pool", self.schedule[-1], grid)

    def upsample(self, h: Tensor, grid: Grid) -> Tensor:
        """Upsample by bicubic interpolation: [B, C, h_k, w_k] -> [B, C, *grid]."""
        return self._resize(h, "upsample", (h.shape[2], h.shape[3]), grid)

    def _resize(self, x: Tensor, kind: str, old: Grid, new: Grid) -> Tensor:
        """Multiply rows and columns by the matrices of a kind: [B, C, *old] -> [B, C, *new]."""
        rows, columns = (
            self.get_buffer(f"{kind}_{side}_to_{side_}") for side, side_ in zip(old, new, strict=True)
        )
        return rows @ x @ columns.T


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a tokenizer, and what an exporter needs to know of it.

    Attributes:
        name: "encoder", "quantizer", "dequantizer" or "decoder".
        module: its module.
        takes: name of its input.
        gives: name of its output.
        example: an input.
        dynamic: the dimensions of the input that may have any size, and the number that a size is a multiple
            of: {0: ("batch", 1), 2: ("h", 16), ...}.
    """

    name: str
    module: nn.Module
    takes: str
    gives: str
    example: Tensor
    dynamic: Mapping[int, tuple[str, int]]


def parts(model: VQVAE, config: TokenizerConfig, schedule: Schedule) -> Iterator[Part]:
    """Yield the parts of a model, from images to tokens and back.

    Encoder and decoder take any batch and any size, quantizer and dequantizer any batch.

    Args:
        model: the model, as `build_model` returns it; its tensors are shared.
        config: its configuration.
        schedule: (h, w) of every scale, the last one the latent's.
    """
    step, C = config.downsample, config.z_channels
    quantizer = MatrixQuantizer(model.quantize, config, schedule)
    batch = {0: ("batch", 1)}
    images = torch.zeros(
        2, config.in_channels, 2 * step, 3 * step
    )  # of sizes that differ, so that none is taken for another
    latent = torch.zeros(2, C, *schedule[-1])
    tokens = torch.zeros(2, token_count(schedule), dtype=torch.int64)
    cells = torch.zeros(2, C, 2, 3)
    area = {2: ("h", step), 3: ("w", step)}
    yield Part("encoder", Encoder(model), "images", "latent", images, batch | area)
    yield Part("quantizer", Quantizer(quantizer), "latent", "tokens", latent, batch)
    yield Part("dequantizer", Dequantizer(quantizer), "tokens", "f_hat", tokens, batch)
    area = {2: ("h", 1), 3: ("w", 1)}
    yield Part("decoder", Decoder(model), "f_hat", "images", cells, batch | area)
