"""The tokenizer: images to tokens and back, with one loaded checkpoint."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from vartok.checkpoints import build_model, find_checkpoint, read_checkpoint
from vartok.config import TokenizerConfig
from vartok.errors import (
    CheckpointError,
    DeviceError,
    ImageError,
    ScheduleError,
    TokenFileError,
    TokensError,
    VartokWarning,
    quoted,
)
from vartok.models.cpu import optimize_for_cpu
from vartok.models.quantizer import area_pool
from vartok.models.vqvae import VQVAE
from vartok.runtime import DTYPES, CompiledNetwork, choose_device, exact_float32
from vartok.schedule import Grid, Schedule, adapt_schedule, check_schedule, describe
from vartok.tokens import ModelInfo, TokenMaps

QUANTIZED_CELLS = 4096
"""Cells of latents that the quantizer takes at once on a CPU: those of 16 pictures of 256x256."""


def load(
    weights: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: str = "float32",
    compile: bool = False,
) -> Tokenizer:
    """Load a tokenizer.

    Args:
        weights: a checkpoint: safetensors, or a VAR-style .pth; None or "shipped" is the one installed with
            vartok.
        device: "cpu", "cuda", "cuda:1", "mps", ...; "auto" takes CUDA, then MPS, then the CPU.
        dtype: of encoder and decoder: "float32" gives VAR's own tokens; "bfloat16" and "float16" are
            faster where the hardware has them and change many, since a coarse token that changes moves
            all finer ones. The quantizer computes in float32 always.
        compile: have torch compile encoder and decoder for shapes of batch that come twice, which takes a
            minute or more: for long runs on a GPU. Compiled, they add up in another order, so that here
            and there a token may differ, also by what was encoded before.

    Raises:
        CheckpointError: not a checkpoint that vartok can run.
        DeviceError: no such device or dtype here.

    Warns:
        VartokWarning: something that the file does not say was assumed.
    """
    if dtype not in DTYPES:
        raise DeviceError(f"dtype is one of {', '.join(DTYPES)}, not {quoted(dtype)}")
    chosen = choose_device(device)
    path = find_checkpoint(weights)
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    for note in checkpoint.notes:
        warnings.warn(f"{path}: {note}", VartokWarning, stacklevel=2)
    return Tokenizer(
        build_model(checkpoint),
        checkpoint.config,
        name=checkpoint.name,
        device=chosen,
        dtype=dtype,
        compile=compile,
    )


class Tokenizer:
    """Images to tokens and back. Immutable; made by `vartok.load`, of a model that it takes for its own.

    Images are [B, 3, H, W], RGB in [-1, 1], H and W multiples of `config.downsample`. Everything
    returned is on `device`. On the CPU a batch goes through the networks picture by picture: that is as
    fast there, takes the memory of one, and no picture's tokens depend on which others share its batch;
    the quantizer, whose work on one picture is many small steps, takes several.
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
    ) -> None:
        self.config = config
        self.name = name
        self.device = device
        self.dtype = dtype
        self._model: VQVAE = model.to(device)
        for part in (model.encoder, model.quant_conv, model.post_quant_conv, model.decoder):
            part.to(DTYPES[dtype])
            if device.type == "cuda" and dtype != "float32":
                part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimized = device.type == "cpu" and not compile and optimize_for_cpu(model)
        self._latent: Callable[[Tensor], Tensor] = CompiledNetwork(model.latent) if compile else model.latent
        self._picture: Callable[[Tensor], Tensor] = (
            CompiledNetwork(model.picture) if compile else model.picture
        )

    @property
    def codebook(self) -> Tensor:
        """The codebook, [V, C] float32; not a copy."""
        return self._model.quantize.embedding.weight.detach()

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256, in hex, of the codebook's float32 bytes: what a token file names its checkpoint by."""
        return hashlib.sha256(self.codebook.cpu().contiguous().numpy().tobytes()).hexdigest()

    @functools.cached_property
    def info(self) -> ModelInfo:
        """What token files say of this checkpoint."""
        return ModelInfo(name=self.name, fingerprint=self.fingerprint, vocab_size=self.config.vocab_size)

    def check_model(self, model: ModelInfo) -> None:
        """Check that tokens which name `model` as theirs are this tokenizer's.

        Raises:
            TokenFileError: they index another codebook.
        """
        if model.fingerprint != self.fingerprint:
            raise TokenFileError(
                f"was encoded with {model.name} (codebook {model.fingerprint[:12]}), "
                f"not with {self.name} ({self.fingerprint[:12]})"
            )

    def encode(self, images: Tensor, schedule: Schedule | None = None) -> TokenMaps:
        """Tokenize images, coarse to fine.

        Args:
            images: [B, 3, H, W] floating point in [-1, 1]; H and W multiples of `config.downsample`.
            schedule: (h, w) of every scale, the last one the latent's; if None the checkpoint's own,
                stretched to the latent where that has another size.

        Returns:
            K maps; map k is [B, h_k, w_k] int64 in [0, V).

        Raises:
            ImageError: a shape or range that the encoder cannot take.
            ScheduleError: a schedule whose last grid is not the latent's.

        Source: Tian et al. 2024, arXiv:2404.02905, Algorithm 1.
        """
        images = images.to(self.device, non_blocking=True)
        self._check_images(images)
        step = self.config.downsample
        schedule = self._schedule(schedule, (images.shape[2] // step, images.shape[3] // step))
        return self.quantize(self.latent(images), schedule)

    def quantize(self, latent: Tensor, schedule: Schedule | None = None) -> TokenMaps:
        """Tokenize what `latent` gives: the half of `encode` that comes after the networks.

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
        grid = (latent.shape[2], latent.shape[3])
        schedule = self._schedule(schedule, grid)
        latent = latent.to(self.device, torch.float32)
        if self._optimized:
            latent = latent.contiguous(memory_format=torch.channels_last)
        with exact_float32(self.device), torch.inference_mode():  # many small steps, each a little shorter so
            parts = [
                [scale.indices for scale in self._model.quantize.scale_steps(schedule, latent=group)]
                for group in self._groups(latent, grid)
            ]
            finite = bool(latent.isfinite().all())  # asked last: a GPU is waited for here
        if not finite:
            raise ImageError(f"the latent is not finite in {self.dtype}: use another dtype")
        return TokenMaps(tuple(torch.cat(maps) for maps in zip(*parts, strict=True)))

    def decode(self, tokens: TokenMaps, scales: int | None = None) -> Tensor:
        """Draw the images of tokens.

        Args:
            tokens: maps of any schedule.
            scales: take only the first `scales` scales; all if None.

        Returns:
            [B, 3, H, W] float32 in [-1, 1].

        Raises:
            TokensError: an index outside the vocabulary, or more scales than there are.

        Source: Tian et al. 2024, arXiv:2404.02905, Algorithm 2.
        """
        return self.decode_latent(self.f_hat(tokens, scales))

    def decode_prefixes(self, tokens: TokenMaps, scales: int | None = None) -> Iterator[Tensor]:
        """Draw the images after 1, 2, ... scales, in one pass over the scales.

        Args:
            tokens: maps of any schedule.
            scales: end after the first `scales` scales; after all if None.

        Yields:
            What `decode` gives of the first scale, of the first two, ...: [B, 3, H, W] float32 in [-1, 1].

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
        """What the decoder alone makes of a latent: [B, C, h, w] -> [B, 3, H, W] float32 in [-1, 1].

        Of `latent(images)` it draws the images as they would be if quantization lost nothing.
        """
        with exact_float32(self.device):
            return torch.cat([self._picture(part.to(self.device)) for part in self._pictures(latent)])

    def latent(self, images: Tensor) -> Tensor:
        """What the quantizer sees of images: [B, 3, H, W] in [-1, 1] -> [B, C, h, w] float32.

        Raises:
            ImageError: a shape or range that the encoder cannot take.
        """
        images = images.to(self.device, non_blocking=True)
        self._check_images(images)
        with exact_float32(self.device):
            return torch.cat([self._latent(part) for part in self._pictures(images)]).contiguous()

    def f_hat(self, tokens: TokenMaps, scales: int | None = None) -> Tensor:
        """The latent that tokens, or their first `scales` scales, add up to: [B, C, h, w] float32.

        Raises:
            TokensError: an index outside the vocabulary, or more scales than there are.
        """

        def add_up(maps: list[Tensor], schedule: Schedule) -> Tensor:
            *_, last = self._model.quantize.scale_steps(schedule, maps=maps)
            return last.f_hat

        return self._map(tokens, add_up, scales)

    def var_inputs(self, tokens: TokenMaps) -> Tensor:
        """What a next-scale transformer is teacher-forced with: [B, L - h_0 w_0, C] float32.

        For every scale but the first, the f_hat of the scales before it, area-pooled to its grid;
        coarse to fine, row-major. L - 1 vectors where the first scale is 1x1.

        Raises:
            TokensError: an index outside the vocabulary.

        Source: `idxBl_to_var_input` of VAR's code.
        """

        def inputs(maps: list[Tensor], schedule: Schedule) -> Tensor:
            steps = zip(self._model.quantize.scale_steps(schedule, maps=maps[:-1]), schedule[1:], strict=True)
            pooled = [area_pool(step.f_hat, grid) for step, grid in steps]
            if not pooled:
                return self.codebook.new_empty(len(maps[0]), 0, self.config.z_channels)
            return torch.cat([part.flatten(2).transpose(1, 2) for part in pooled], dim=1)

        return self._map(tokens, inputs)

    def draw_codes(self) -> Tensor:
        """What every code looks like by itself: [V, 3, d, d] float32 in [-1, 1], d = `config.downsample`.

        The middle of what a latent of 2x2 cells of that code decodes to, without phi. In a picture,
        the codes of all scales add up before they are decoded, and the decoder sees neighbours too.
        """
        step = self.config.downsample
        middle = slice(step // 2, step // 2 + step)
        with exact_float32(self.device):
            pictures = [
                self._model.picture(codes[:, :, None, None].expand(-1, -1, 2, 2))[:, :, middle, middle]
                for codes in torch.split(self.codebook, 64)
            ]
        return torch.cat(pictures)

    def _map(
        self,
        tokens: TokenMaps,
        compute: Callable[[list[Tensor], Schedule], Tensor],
        scales: int | None = None,
    ) -> Tensor:
        """Compute a tensor of tokens' first `scales` scales, in the groups that suit the device."""
        parts = self._token_groups(tokens, scales)
        with exact_float32(self.device):
            return torch.cat(
                [compute([part.to(self.device) for part in maps], tokens.schedule) for maps in parts]
            )

    def _token_groups(self, tokens: TokenMaps, scales: int | None) -> list[tuple[Tensor, ...]]:
        """The maps of the first `scales` scales, checked, in the groups that suit the device."""
        count = len(tokens.maps)
        if scales is not None and not 1 <= scales <= count:
            raise TokensError(f"the first {scales} scales of {count} do not exist: give 1 to {count}")
        tokens.check_vocab(self.config.vocab_size)
        groups = (self._groups(tokens_map, tokens.schedule[-1]) for tokens_map in tokens.maps[:scales])
        return [*zip(*groups, strict=True)]

    def _pictures(self, batch: Tensor) -> tuple[Tensor, ...]:
        """What goes through the networks at once."""
        return batch.split(1) if self.device.type == "cpu" else (batch,)

    def _groups(self, batch: Tensor, latent: Grid) -> tuple[Tensor, ...]:
        """What goes through the quantizer at once, of pictures whose latents have these cells."""
        if self.device.type != "cpu":
            return (batch,)
        cells = latent[0] * latent[1]
        parts: tuple[Tensor, ...] = batch.split(max(1, QUANTIZED_CELLS // cells) if self._optimized else 1)
        return parts

    def _check_images(self, images: Tensor) -> None:
        step = self.config.downsample
        if images.ndim != 4 or images.shape[1] != 3 or not len(images) or not images.is_floating_point():
            raise ImageError(
                f"images are [B, 3, H, W] floating point, not {list(images.shape)} {images.dtype}"
            )
        height, width = images.shape[2:]
        if not height or not width or height % step or width % step:
            raise ImageError(
                f"a picture's sides are multiples of {step} pixels here, not {height} and {width}"
            )
        low, high = (float(bound) for bound in images.detach().aminmax())
        if not (
            low >= -1.001 and high <= 1.001
        ):  # also where one is NaN; resampled pictures overshoot a little
            raise ImageError(f"pixels are in [-1, 1] (RGB / 127.5 - 1), not {low:.4g} to {high:.4g}")

    def _schedule(self, schedule: Schedule | None, grid: Grid) -> Schedule:
        if schedule is None:
            return adapt_schedule(self.config.patch_nums, grid)
        schedule = check_schedule(schedule)
        if schedule[-1] != grid:
            raise ScheduleError(
                f"the schedule {describe(schedule)} does not end in the latent's grid, {describe((grid,))}"
            )
        return schedule
