"""Run a model on its device: dtype, optimized modules, compilation, and the splitting of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from vartok.models.cpu import optimize_for_cpu
from vartok.models.cuda import graphed_networks, graphed_quantizer, optimize_for_cuda
from vartok.models.quantizer import scale_inputs
from vartok.models.vqvae import VQVAE
from vartok.runtime import (
    DTYPES,
    CompiledNetwork,
    computed_dtype,
    exact_float32,
    network_precision,
    pin_for,
    to_device,
)
from vartok.schedule import Grid, Schedule

QUANTIZED_CELLS = 4096
"""Number of latent cells that are quantized at once on a CPU: 16 images of 16x16 cells."""


class ModelRunner:
    """A model on its device, which computes batches of any size.

    On a CPU the networks process a batch image by image. This is as fast there as a batch, takes the memory
    of one image, and, unless the networks are compiled, makes an image's tokens independent of its batch.
    The quantizer processes several images at once, since its work on one image is many small steps.

    Args:
        model: the model; it is changed in place, and its weights are frozen.
        device: where to run it.
        dtype: precision of the networks, a key of `vartok.runtime.DTYPES`; the quantizer computes in float32.
        compile: let torch compile the networks.
        differentiable: let gradients flow through the networks, which are then not optimized.
    """

    def __init__(
        self, model: VQVAE, device: torch.device, dtype: str, *, compile: bool, differentiable: bool
    ) -> None:
        self._device = device
        self._dtype = dtype
        self._differentiable = differentiable
        model.to(device).requires_grad_(False)
        for part in (model.encoder, model.quant_conv, model.post_quant_conv, model.decoder):
            part.to(DTYPES[dtype]).to(computed_dtype(dtype, device))
        if device.type == "cuda":
            optimize_for_cuda(model, dtype, networks=not compile and not differentiable)
        if device.type == "cpu":
            with exact_float32(device):
                optimize_for_cpu(model, networks=not compile and not differentiable)
        self._quantizer = model.quantize
        self._encode: Callable[[Tensor], Tensor] = model.encode
        self._decode: Callable[[Tensor], Tensor] = model.decode
        self._quantize: Callable[..., list[Tensor]] = model.quantize.encode
        self._sum_scales: Callable[..., Tensor] = model.quantize.decode
        if compile:
            self._encode, self._decode = CompiledNetwork(model.encode), CompiledNetwork(model.decode)
        elif device.type == "cuda" and not differentiable:
            self._encode, self._decode = graphed_networks(model)
        if device.type == "cuda":
            self._quantize, self._sum_scales = graphed_quantizer(model)

    def encode(self, images: Tensor) -> Tensor:
        """Compute latents: [B, in_channels, H, W] -> [B, C, h, w] float32, contiguous."""
        with self._precision():
            parts = [self._encode(part.to(self._device)) for part in self._network_parts(images)]
            return torch.cat(parts).contiguous()

    def decode(self, latent: Tensor) -> Tensor:
        """Decode latents: [B, C, h, w] -> [B, in_channels, H, W] float32 in [-1, 1]."""
        with self._precision():
            return torch.cat([self._decode(part.to(self._device)) for part in self._network_parts(latent)])

    def quantize(self, latent: Tensor, schedule: Schedule, scales: int | None) -> list[Tensor]:
        """Quantize latents: [B, C, h, w] float32 on the device -> maps [B, h_k, w_k] int64.

        Args:
            latent: the latents.
            schedule: (h, w) of every scale.
            scales: end after the first `scales` scales; after the last scale if None.
        """
        if self._device.type == "cpu":
            latent = latent.contiguous(memory_format=torch.channels_last)
        with exact_float32(self._device), torch.inference_mode():  # less overhead for many small steps
            parts = [
                self._quantize(part, schedule, scales) for part in self._quantizer_parts(latent, schedule[-1])
            ]
        # Outside inference mode: inference tensors could not index an embedding that is being trained.
        return [torch.cat(maps) for maps in zip(*parts, strict=True)]

    def f_hat(self, maps: Sequence[Tensor], schedule: Schedule) -> Tensor:
        """Compute f_hat from the maps of the first scales of a schedule: [B, C, h, w] float32."""
        with exact_float32(self._device):
            return torch.cat([self._sum_scales(part, schedule) for part in self._split(maps, schedule)])

    def f_hat_prefixes(self, maps: Sequence[Tensor], schedule: Schedule) -> Iterator[Tensor]:
        """Yield f_hat of the first 1, 2, ... maps of a schedule, each [B, C, h, w] float32."""
        steps = [self._quantizer.scale_steps(schedule, maps=part) for part in self._split(maps, schedule)]
        for _ in maps:
            with exact_float32(self._device):  # not around the yield, where the caller's settings hold
                f_hat = torch.cat([next(step).f_hat for step in steps])
            yield f_hat

    def var_inputs(self, maps: Sequence[Tensor], schedule: Schedule) -> Tensor:
        """Compute the inputs for teacher forcing: [B, L - h_0 w_0, C] float32."""
        with exact_float32(self._device):
            return torch.cat(
                [self._quantizer.var_inputs(part, schedule) for part in self._split(maps, schedule)]
            )

    def add_scale(
        self, f_hat: Sequence[Tensor], tokens: Tensor, k: int, schedule: Schedule
    ) -> tuple[list[Tensor], Tensor | None]:
        """Add one scale to f_hat, and compute the inputs of the next one.

        Args:
            f_hat: the sum over the coarser scales, in the parts that this method returned for the scale
                before; empty for the first scale.
            tokens: [B, h_k, w_k] int64, the token map of scale `k`.
            k: the scale, from 0.
            schedule: (h, w) of all K scales.

        Returns:
            f_hat up to this scale: [B, C, h, w] float32, in parts of the batch; and the next scale's inputs,
            [B, h_{k+1} w_{k+1}, C] float32, or None after the last scale. `f_hat` and `var_inputs` compute
            the same to the bit, as they split batches alike.
        """
        with exact_float32(self._device):
            parts = self._quantizer_parts(tokens.to(self._device), schedule[-1])
            added = [self._quantizer.scale_latent(part, k, schedule) for part in parts]
            sums = [old + new for old, new in zip(f_hat, added, strict=True)] if k else added
            if k == len(schedule) - 1:
                return sums, None
            return sums, torch.cat([scale_inputs(part, schedule[k + 1]) for part in sums])

    def code_latents(self, code: int, schedule: Schedule) -> Tensor:
        """Compute what one cell of each scale adds to f_hat if it holds a code, and the others nothing.

        Args:
            code: index in [0, V); it is in the middle cell.
            schedule: (h, w) of all K scales.

        Returns:
            [K, C, h, w] float32.
        """
        vector = self._quantizer.embedding.weight.detach()[code]
        added = []
        with exact_float32(self._device):
            for k, (rows, columns) in enumerate(schedule):
                h = vector.new_zeros(1, len(vector), rows, columns)
                h[0, :, rows // 2, columns // 2] = vector
                if k < len(schedule) - 1:
                    h = self._quantizer.upsample(h, schedule[-1])
                added.append(self._quantizer.refine(h, k, len(schedule)))
        return torch.cat(added)

    def _precision(self) -> AbstractContextManager[None]:
        return network_precision(self._device, self._dtype, grad=self._differentiable)

    def _network_parts(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Split a batch into the parts that the networks process one after the other."""
        return batch.split(1) if self._device.type == "cpu" else (batch,)

    def _quantizer_parts(self, batch: Tensor, latent: Grid) -> tuple[Tensor, ...]:
        """Split a batch into the parts that the quantizer processes one after the other.

        Args:
            batch: latents, or one scale's token maps, of B images.
            latent: (h, w) of the latent.
        """
        if self._device.type != "cpu":
            return (batch,)
        cells = latent[0] * latent[1]
        parts: tuple[Tensor, ...] = batch.split(max(1, QUANTIZED_CELLS // cells))
        return parts

    def _split(self, maps: Sequence[Tensor], schedule: Schedule) -> list[list[Tensor]]:
        """Split the maps of all scales by `_quantizer_parts`, and move them to the device in one copy."""
        if maps[0].device.type != self._device.type:
            flat = torch.cat([tokens.flatten(1) for tokens in maps], dim=1)
            flat = to_device(pin_for(self._device, flat), self._device)
            scales = flat.split([h * w for h, w in schedule[: len(maps)]], dim=1)
            maps = [tokens.unflatten(1, grid) for tokens, grid in zip(scales, schedule, strict=False)]
        parts = (self._quantizer_parts(tokens, schedule[-1]) for tokens in maps)
        return [[tokens.to(self._device) for tokens in part] for part in zip(*parts, strict=True)]
