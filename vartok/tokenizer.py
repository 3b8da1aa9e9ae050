"""The tokenizer: images to tokens and back, with one loaded checkpoint."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from vartok.checkpoints import build_model, find_checkpoint, read_checkpoint
from vartok.config import TokenizerConfig
from vartok.errors import (
    DeviceError,
    ImageError,
    ScheduleError,
    TokenFileError,
    TokensError,
    VartokWarning,
    quoted,
)
from vartok.images import to_pil, to_pixels
from vartok.inputs import check_bounds, image_batch, token_maps
from vartok.models.cpu import optimize_for_cpu
from vartok.models.cuda import optimize_for_cuda
from vartok.models.vqvae import VQVAE
from vartok.runtime import DTYPES, CompiledNetwork, choose_device, exact_float32
from vartok.schedule import Grid, Schedule, adapt_schedule, check_schedule, describe
from vartok.tokens import ModelInfo, TokenMaps

if TYPE_CHECKING:
    from PIL import Image

    from vartok.inputs import Images, Tokens

QUANTIZED_CELLS = 4096
"""Latent cells that the quantizer takes at once on a CPU: those of 16 pictures of 256x256."""


def load(
    weights: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    compile: bool = False,
    differentiable: bool = False,
) -> Tokenizer:
    """Load a tokenizer.

    Args:
        weights: a checkpoint: safetensors, or a VAR-style .pth; None or "shipped" is the one installed with
            vartok.
        device: "cpu", "cuda", "cuda:1", "mps", ...; "auto" takes CUDA, then MPS, then the CPU.
        dtype: precision of encoder and decoder, as a name or torch's own: "float32" gives VAR's own tokens;
            "bfloat16" and "float16" are faster where the hardware has them and change many tokens, since
            a coarse token that changes moves all finer ones. The quantizer always computes in float32.
        compile: have torch compile encoder and decoder for shapes of batch that come twice, which takes a
            minute or more: for long runs on a GPU. Compiled, they add up in another order, so that here
            and there a token may differ, also by what was encoded before.
        differentiable: let gradients flow through `latent` to the images, and through `decode_latent` to
            the latent. The networks then run as plain torch modules, slower on a CPU. The weights stay
            frozen, and tokens have no gradient: `encode`, `quantize`, `f_hat` and `decode` cut it.

    Raises:
        CheckpointError: not a checkpoint that vartok can run.
        DeviceError: no such device or dtype here.

    Warns:
        VartokWarning: something that the file does not say was assumed.
    """
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    if name not in DTYPES:
        raise DeviceError(f"dtype is one of {', '.join(DTYPES)}, not {quoted(str(dtype))}")
    chosen = choose_device(device)
    path = find_checkpoint(weights)
    checkpoint = read_checkpoint(path)
    for note in checkpoint.notes:
        warnings.warn(f"{path}: {note}", VartokWarning, stacklevel=2)
    return Tokenizer(
        build_model(checkpoint),
        checkpoint.config,
        name=checkpoint.name,
        device=chosen,
        dtype=name,
        compile=compile,
        differentiable=differentiable,
    )


class Tokenizer:
    """Images to tokens and back, immutable; made by `vartok.load`.

    Float images are [B, 3, H, W], RGB in [-1, 1], H and W multiples of `config.downsample`. All tensors
    returned are on `device`. On a CPU a batch goes through the networks image by image: that is as fast
    there, takes the memory of one, and no image's tokens depend on its batch. The quantizer, whose work on
    one image is many small steps, takes several.

    Attributes:
        config: the checkpoint's configuration.
        name: the checkpoint's name, which token files carry.
        device: where the model is.
        dtype: precision of encoder and decoder, a key of `vartok.runtime.DTYPES`.
        differentiable: whether gradients flow through `latent` and `decode_latent`.
        fingerprint: sha256 of all that stands between tokens and f_hat, 64 hex digits: the codebook, the
            phis, and which phi serves which scale. Token files name their checkpoint by it.
    """

    def __init__(
        self,
        model: VQVAE,
        config: TokenizerConfig,
        *,
        name: str,
        device: torch.device,
        dtype: str,
        compile: bool = False,
        differentiable: bool = False,
    ) -> None:
        self.config = config
        self.name = name
        self.device = device
        self.dtype = dtype
        self.differentiable = differentiable
        self.fingerprint = model.quantize.fingerprint()  # before the CPU's quantizer folds the phis
        self._model: VQVAE = model.to(device).requires_grad_(False)
        for part in (model.encoder, model.quant_conv, model.post_quant_conv, model.decoder):
            part.to(DTYPES[dtype])
        if device.type == "cuda":
            optimize_for_cuda(model)
        if device.type == "cpu":
            with exact_float32(device):
                optimize_for_cpu(model, networks=not compile and not differentiable)
        self._encode: Callable[[Tensor], Tensor] = CompiledNetwork(model.encode) if compile else model.encode
        self._decode: Callable[[Tensor], Tensor] = CompiledNetwork(model.decode) if compile else model.decode

    def __repr__(self) -> str:
        """Return a line: name, codes, schedule, device, dtype."""
        V, C = self.config.vocab_size, self.config.z_channels
        return (
            f"Tokenizer({self.name!r}, codes={V}x{C}, schedule={describe(self.config.patch_nums)}, "
            f"device={self.device}, dtype={self.dtype})"
        )

    @property
    def codebook(self) -> Tensor:
        """A copy of the codebook, [V, C] float32; writing to it changes no token."""
        return self._model.quantize.embedding.weight.detach().clone()

    @functools.cached_property
    def info(self) -> ModelInfo:
        """The checkpoint's description in token files."""
        return ModelInfo(name=self.name, fingerprint=self.fingerprint, vocab_size=self.config.vocab_size)

    def check_model(self, model: ModelInfo) -> None:
        """Check that tokens of the checkpoint `model` mean the same here.

        Raises:
            TokenFileError: that checkpoint has another codebook or other phis.
        """
        if model.fingerprint != self.fingerprint:
            raise TokenFileError(
                f"was encoded with {model.name} (fingerprint {model.fingerprint[:12]}), "
                f"not with {self.name} ({self.fingerprint[:12]})"
            )

    def encode(self, images: Images, schedule: Schedule | None = None) -> TokenMaps:
        """Tokenize images, coarse to fine.

        Args:
            images: [B, 3, H, W] floating point in [-1, 1]; or [H, W, 3] or [B, H, W, 3] uint8 RGB; each a
                tensor or a numpy array; or a PIL image, or a list of images of one size. H and W are
                multiples of `config.downsample`.
            schedule: (h, w) of every scale, the last one the latent's; if None the checkpoint's own,
                stretched to the latent where that has another size.

        Returns:
            K maps; map k is [B, h_k, w_k] int64 in [0, V).

        Raises:
            ImageError: a shape or range that the encoder cannot take.
            ScheduleError: a schedule whose last grid is not the latent's.

        Warns:
            VartokWarning: float pixels that seem to lie in [0, 1].

        Source: Tian et al. 2024, arXiv:2404.02905, Algorithm 1.
        """
        step = self.config.downsample
        batch, bounds = image_batch(images, step, self.device)
        schedule = self._schedule(schedule, (batch.shape[2] // step, batch.shape[3] // step))
        with exact_float32(self.device):
            latent = self._run_encoder(batch)
        return self._quantize(latent, schedule, bounds)

    def quantize(self, latent: Tensor, schedule: Schedule | None = None) -> TokenMaps:
        """Tokenize a latent: the half of `encode` that follows the networks.

        Args:
            latent: [B, C, h, w] floating point; the quantizer computes in float32.
            schedule: as for `encode`.

        Returns:
            K maps; map k is [B, h_k, w_k] int64 in [0, V).

        Raises:
            ImageError: another shape, or values that are not finite.
            ScheduleError: a schedule whose last grid is not the latent's.
        """
        channels = self.config.z_channels
        if latent.ndim != 4 or latent.shape[1] != channels or not latent.numel():
            raise ImageError(f"a latent is [B, {channels}, h, w], not {list(latent.shape)}")
        schedule = self._schedule(schedule, (latent.shape[2], latent.shape[3]))
        return self._quantize(latent.detach(), schedule, None)

    def _quantize(self, latent: Tensor, schedule: Schedule, bounds: Tensor | None) -> TokenMaps:
        """Quantize a latent, then check it and the images' `bounds`, which waits for a GPU once."""
        latent = latent.to(self.device, torch.float32)
        if self.device.type == "cpu":
            latent = latent.contiguous(memory_format=torch.channels_last)
        with exact_float32(self.device), torch.inference_mode():  # makes many small steps a little shorter
            parts = [
                self._model.quantize.encode(group, schedule) for group in self._groups(latent, schedule[-1])
            ]
            checks = latent.isfinite().all().float()[None]
            if bounds is not None:
                checks = torch.cat([checks, bounds.to(checks)])
            finite, *low_high = checks.tolist()
        if low_high:
            check_bounds(*low_high)
        if not finite:
            raise ImageError(f"the latent is not finite in {self.dtype}", hint="use another `dtype`")
        return TokenMaps(tuple(torch.cat(maps) for maps in zip(*parts, strict=True)))

    @overload
    def decode(
        self,
        tokens: Tokens,
        scales: int | None = None,
        *,
        schedule: Schedule | None = None,
        as_pil: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def decode(
        self,
        tokens: Tokens,
        scales: int | None = None,
        *,
        schedule: Schedule | None = None,
        as_pil: Literal[True],
    ) -> list[Image.Image]: ...

    def decode(
        self,
        tokens: Tokens,
        scales: int | None = None,
        *,
        schedule: Schedule | None = None,
        as_pil: bool = False,
    ) -> Tensor | list[Image.Image]:
        """Decode tokens to images.

        Args:
            tokens: token maps of any schedule; one `ImageTokens`, or a list of them with one schedule; or
                [B, L] integers, a tensor or a numpy array, scales coarse to fine, each row by row.
            scales: take only the first `scales` scales; all if None.
            schedule: of [B, L] tokens: the (h, w) grid of every scale; the checkpoint's own if None.
            as_pil: return PIL images.

        Returns:
            [B, 3, H, W] float32 in [-1, 1]; or B images of 8-bit RGB.

        Raises:
            TokensError: an index outside the vocabulary, more scales than there are, or tokens that do not
                fit the schedule.
            TokenFileError: an `ImageTokens` of another checkpoint.

        Source: Tian et al. 2024, arXiv:2404.02905, Algorithm 2.
        """
        with torch.no_grad():
            images = self.decode_latent(self.f_hat(self._token_maps(tokens, schedule), scales))
        if not as_pil:
            return images
        return to_pil(to_pixels(images))

    def decode_prefixes(self, tokens: TokenMaps, scales: int | None = None) -> Iterator[Tensor]:
        """Decode the first 1, 2, ... scales, in one pass over the scales.

        Args:
            tokens: maps of any schedule.
            scales: end after the first `scales` scales; after all if None.

        Yields:
            The images of the first scale, of the first two, ...: [B, 3, H, W] float32 in [-1, 1].

        Raises:
            TokensError: an index outside the vocabulary, or more scales than there are.
        """
        replays = [
            self._model.quantize.scale_steps(tokens.schedule, maps=[part.to(self.device) for part in maps])
            for maps in self._token_groups(tokens, scales)
        ]
        for _ in tokens.maps[:scales]:
            with exact_float32(self.device):  # not around the yield, where the caller's settings hold
                f_hat = torch.cat([next(replay).f_hat for replay in replays])
            yield self.decode_latent(f_hat)

    def decode_latent(self, latent: Tensor) -> Tensor:
        """Decode a latent or f_hat: [B, C, h, w] -> [B, 3, H, W] float32 in [-1, 1].

        The latent of `latent(images)` gives the images as they would be if quantization lost nothing.
        Differentiable if the tokenizer was loaded so.
        """
        with self._precision():
            return torch.cat([self._decode(part.to(self.device)) for part in self._pictures(latent)])

    def latent(self, images: Images) -> Tensor:
        """Encode images, without quantization.

        Differentiable if the tokenizer was loaded so.

        Args:
            images: as for `encode`.

        Returns:
            [B, C, h, w] float32.

        Raises:
            ImageError: a shape or range that the encoder cannot take.
        """
        batch, bounds = image_batch(images, self.config.downsample, self.device)
        if bounds is not None:
            check_bounds(*bounds.tolist())
        with self._precision():
            return self._run_encoder(batch)

    def f_hat(self, tokens: Tokens, scales: int | None = None) -> Tensor:
        """Add up the tokens of the first `scales` scales, all if None: [B, C, h, w] float32.

        Tokens come in any form that `decode` takes.

        Raises:
            TokensError: an index outside the vocabulary, or more scales than there are.
        """
        return self._map(self._token_maps(tokens, None), self._model.quantize.decode, scales)

    def var_inputs(self, tokens: Tokens) -> Tensor:
        """Return the inputs for teacher-forcing a next-scale transformer: [B, L - h_0 w_0, C] float32.

        For every scale but the first, the f_hat of the scales before it, area-pooled to its grid;
        coarse to fine, row-major. L - 1 vectors where the first scale is 1x1. Tokens come in any form that
        `decode` takes.

        Raises:
            TokensError: an index outside the vocabulary.

        Source: `idxBl_to_var_input` of VAR's code.
        """
        return self._map(self._token_maps(tokens, None), self._model.quantize.var_inputs)

    def draw_codes(self) -> Tensor:
        """Decode every code by itself: [V, 3, d, d] float32 in [-1, 1], d = `config.downsample`.

        Each is the middle of the image of 2x2 latent cells of that code, without phi. In a picture the codes
        of all scales add up before they are decoded, and the decoder sees neighbours too.
        """
        step = self.config.downsample
        middle = slice(step // 2, step // 2 + step)
        with exact_float32(self.device):
            pictures = [
                self._model.decode(codes[:, :, None, None].expand(-1, -1, 2, 2))[:, :, middle, middle]
                for codes in torch.split(self.codebook, 64)
            ]
        return torch.cat(pictures)

    def _map(
        self,
        tokens: TokenMaps,
        compute: Callable[[list[Tensor], Schedule], Tensor],
        scales: int | None = None,
    ) -> Tensor:
        """Compute a tensor from the first `scales` scales, in groups that suit the device."""
        parts = self._token_groups(tokens, scales)
        with exact_float32(self.device):
            return torch.cat(
                [compute([part.to(self.device) for part in maps], tokens.schedule) for maps in parts]
            )

    def _token_groups(self, tokens: TokenMaps, scales: int | None) -> list[tuple[Tensor, ...]]:
        """Return the maps of the first `scales` scales, checked, in groups that suit the device."""
        count = len(tokens.maps)
        if scales is not None and not 1 <= scales <= count:
            raise TokensError(f"the first {scales} scales of {count} do not exist: give 1 to {count}")
        tokens.check_vocab(self.config.vocab_size)
        groups = (self._groups(tokens_map, tokens.schedule[-1]) for tokens_map in tokens.maps[:scales])
        return [*zip(*groups, strict=True)]

    def _pictures(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Split a batch into the parts that go through the networks at once."""
        return batch.split(1) if self.device.type == "cpu" else (batch,)

    def _groups(self, batch: Tensor, latent: Grid) -> tuple[Tensor, ...]:
        """Split a batch into the parts that the quantizer takes at once; `latent` is the latent's grid."""
        if self.device.type != "cpu":
            return (batch,)
        cells = latent[0] * latent[1]
        parts: tuple[Tensor, ...] = batch.split(max(1, QUANTIZED_CELLS // cells))
        return parts

    def _precision(self) -> AbstractContextManager[None]:
        return exact_float32(self.device, grad=self.differentiable)

    def _run_encoder(self, batch: Tensor) -> Tensor:
        return torch.cat([self._encode(part) for part in self._pictures(batch)]).contiguous()

    def _token_maps(self, tokens: Tokens, schedule: Schedule | None) -> TokenMaps:
        return token_maps(tokens, schedule or self.config.patch_nums, self.check_model)

    def _schedule(self, schedule: Schedule | None, grid: Grid) -> Schedule:
        if schedule is None:
            return adapt_schedule(self.config.patch_nums, grid)
        schedule = check_schedule(schedule)
        if schedule[-1] != grid:
            raise ScheduleError(
                f"the schedule {describe(schedule)} does not end in the latent's grid, {describe((grid,))}"
            )
        return schedule
