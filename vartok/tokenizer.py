"""The tokenizer: images to tokens and back, with one loaded checkpoint.

This is the public surface of a model, and mostly its description: the work is in `runner` and `inputs`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from vartok.config import TokenizerConfig
from vartok.errors import ImageError, TokenFileError, TokensError
from vartok.generation import Generation
from vartok.images import to_pil, to_pixels
from vartok.inputs import check_bounds, image_batch, latent_schedule, token_maps
from vartok.metadata import ImageInfo, ModelInfo
from vartok.models.vqvae import VQVAE
from vartok.runner import ModelRunner
from vartok.runtime import exact_float32
from vartok.schedule import Schedule, ScheduleLike, as_schedule, describe, first_scales
from vartok.tokens import ImageTokens, TokenMaps, check_indices_without_waiting

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from vartok.inputs import Images, Tokens


class Tokenizer:
    """A loaded checkpoint, which encodes images to tokens and decodes tokens to images.

    `vartok.load` makes it. Its attributes must not be changed. Float images are [B, C, H, W] in [-1, 1]: C is
    `config.in_channels`, 3 for RGB; H and W are multiples of `config.downsample`. All tensors that it returns
    are on `device`. On a CPU, without `compile`, an image's tokens do not depend on the other images of its
    batch.

    Attributes:
        config: the checkpoint's configuration.
        name: the checkpoint's name, which is written to token files.
        device: device of the model.
        dtype: precision of encoder and decoder: "float32", "tf32", "bfloat16" or "float16".
        differentiable: whether gradients flow through `latent` and `decode_latent`.
        fingerprint: sha256 of everything that maps tokens to f_hat, 64 hex digits: the codebook, the phis,
            and which phi serves which scale. Token files identify their checkpoint by it.
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
        self.fingerprint = model.quantize.fingerprint()  # before the runner may replace the quantizer
        self._model = model
        self._runner = ModelRunner(model, device, dtype, compile=compile, differentiable=differentiable)

    def __repr__(self) -> str:
        """Return one line with name, codebook shape, schedule, device and dtype."""
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
        """Check that this tokenizer can decode tokens of the checkpoint `model`.

        Raises:
            TokenFileError: that checkpoint has another codebook or other phis.
        """
        if model.fingerprint != self.fingerprint:
            raise TokenFileError(
                f"the tokens were made with {model.name} (fingerprint {model.fingerprint[:12]}), "
                f"not with {self.name} ({self.fingerprint[:12]})"
            )

    def encode(
        self, images: Images, schedule: ScheduleLike | None = None, scales: int | None = None
    ) -> TokenMaps:
        """Tokenize images, coarse to fine.

        Args:
            images: [B, C, H, W] floating point in [-1, 1]; or [H, W, C] or [B, H, W, C] uint8 or uint16, each
                a tensor or a numpy array; or a PIL image, or a list of images of one size. H and W are
                multiples of `config.downsample`.
            schedule: (h, w) of every scale, or a text such as "1,2,4" or "var-512"; the last grid is the
                latent's, (H, W) / `config.downsample`. If None, the checkpoint's own schedule, adapted to the
                latent: see `vartok.schedule.adapt_schedule`.
            scales: encode only the first `scales` scales; all if None.

        Returns:
            K maps; map k is [B, h_k, w_k] int64 in [0, V).

        Raises:
            ImageError: images of a type, shape or range that the encoder cannot take, or a latent that is
                not finite.
            ScheduleError: `schedule` is not a schedule, or its last grid is not the latent's.
            TokensError: `scales` is not from 1 to the number of scales.

        Warns:
            VartokWarning: float pixels that seem to lie in [0, 1].

        Source: Tian et al. 2024, arXiv:2404.02905, Algorithm 1.
        """
        step = self.config.downsample
        batch, bounds = image_batch(images, step, self.device, self.config.in_channels)
        grid = (batch.shape[2] // step, batch.shape[3] // step)
        grids = latent_schedule(schedule, self.config.patch_nums, grid, scales)
        with torch.no_grad():
            latent = self._runner.encode(batch)
        return self._quantize(latent, grids, scales, bounds)

    def quantize(
        self, latent: Tensor, schedule: ScheduleLike | None = None, scales: int | None = None
    ) -> TokenMaps:
        """Quantize a latent: `encode(images)` is `quantize(latent(images))`.

        Args:
            latent: [B, C, h, w] floating point; the quantizer computes in float32.
            schedule: as for `encode`.
            scales: as for `encode`.

        Returns:
            K maps; map k is [B, h_k, w_k] int64 in [0, V).

        Raises:
            ImageError: the latent has another shape, is empty, or has values that are not finite.
            ScheduleError: `schedule` is not a schedule, or its last grid is not the latent's.
            TokensError: `scales` is not from 1 to the number of scales.
        """
        channels = self.config.z_channels
        if latent.ndim != 4 or latent.shape[1] != channels or not latent.numel():
            raise ImageError(f"a latent must be [B, {channels}, h, w], not {list(latent.shape)}")
        grid = (latent.shape[2], latent.shape[3])
        grids = latent_schedule(schedule, self.config.patch_nums, grid, scales)
        return self._quantize(latent.detach(), grids, scales, None)

    def _quantize(
        self, latent: Tensor, schedule: Schedule, scales: int | None, bounds: Tensor | None
    ) -> TokenMaps:
        """Quantize a latent; then check that it is finite, and the images' `bounds`, if they are not None.

        Both checks together synchronize with a GPU only once.
        """
        latent = latent.to(self.device, torch.float32)
        maps = self._runner.quantize(latent, schedule, scales)
        checks = latent.isfinite().all().float()[None]
        if bounds is not None:
            checks = torch.cat([checks, bounds.to(checks)])
        finite, *low_high = checks.tolist()
        if low_high:
            check_bounds(*low_high)
        if not finite:
            raise ImageError(
                f"the latent has NaN or infinite values in {self.dtype}", hint="use another `dtype`"
            )
        return TokenMaps(tuple(maps), schedule)

    @overload
    def decode(
        self,
        tokens: Tokens,
        scales: int | None = None,
        *,
        schedule: ScheduleLike | None = None,
        as_pil: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def decode(
        self,
        tokens: Tokens,
        scales: int | None = None,
        *,
        schedule: ScheduleLike | None = None,
        as_pil: Literal[True],
    ) -> list[Image.Image]: ...

    def decode(
        self,
        tokens: Tokens,
        scales: int | None = None,
        *,
        schedule: ScheduleLike | None = None,
        as_pil: bool = False,
    ) -> Tensor | list[Image.Image]:
        """Decode tokens to images.

        Args:
            tokens: token maps of any schedule; one `ImageTokens`, or a list of them with one schedule; or
                [B, L] integers, a tensor or a numpy array, scales coarse to fine, each row by row.
            scales: take only the first `scales` scales; all if None.
            schedule: schedule of [B, L] tokens: (h, w) of every scale, or a text such as "1,2,4" or
                "var-512"; the checkpoint's own if None.
            as_pil: return PIL images.

        Returns:
            [B, C, H, W] float32 in [-1, 1]; with `as_pil`, a list of B 8-bit images, of mode RGB, or of mode
            L for one channel.

        Raises:
            ImageError: `as_pil`, and images have neither 1 nor 3 channels.
            TokensError: `tokens` has another type, an index outside the vocabulary, or a number of tokens
                that does not fit the schedule; or `scales` is not from 1 to the number of scales.
            TokenFileError: an `ImageTokens` was made with another codebook or other phis.
            ScheduleError: `schedule` is not a schedule.

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
            scales: end after the first `scales` scales; after the last scale if None.

        Yields:
            The images of the first scale, of the first two, ...: [B, C, H, W] float32 in [-1, 1].

        Raises:
            TokensError: an index is outside the vocabulary, or `scales` is not from 1 to the number of
                scales.
        """
        for f_hat in self._runner.f_hat_prefixes(self._first(tokens, scales), tokens.schedule):
            yield self.decode_latent(f_hat)

    def decode_latent(self, latent: Tensor) -> Tensor:
        """Decode a latent or f_hat: [B, z, h, w] -> [B, C, H, W] float32 in [-1, 1].

        Given `latent(images)`, this is the reconstruction without quantization. Differentiable if the
        tokenizer was loaded with `differentiable`.
        """
        return self._runner.decode(latent)

    def latent(self, images: Images) -> Tensor:
        """Encode images to the latent, without quantization.

        Differentiable if the tokenizer was loaded with `differentiable`.

        Args:
            images: as for `encode`.

        Returns:
            [B, C, h, w] float32.

        Raises:
            ImageError: a shape or range that the encoder cannot take.
        """
        batch, bounds = image_batch(images, self.config.downsample, self.device, self.config.in_channels)
        if bounds is not None:
            check_bounds(*bounds.tolist())
        return self._runner.encode(batch)

    def f_hat(self, tokens: Tokens, scales: int | None = None) -> Tensor:
        """Compute f_hat: the sum of the looked-up, upsampled and refined codes of the first `scales` scales.

        Args:
            tokens: tokens in any form that `decode` takes.
            scales: take only the first `scales` scales; all if None.

        Returns:
            [B, C, h, w] float32.

        Raises:
            TokensError: as for `decode`.
            TokenFileError: as for `decode`.
        """
        maps = self._token_maps(tokens, None)
        return self._runner.f_hat(self._first(maps, scales), maps.schedule)

    def var_inputs(self, tokens: Tokens) -> Tensor:
        """Compute the inputs for teacher-forcing a next-scale transformer.

        The inputs of a scale are the f_hat of the scales before it, area-pooled to its grid. The first scale
        has none.

        Args:
            tokens: tokens in any form that `decode` takes.

        Returns:
            [B, L - h_0 w_0, C] float32, coarse to fine, each scale row by row; L - 1 vectors if the first
            scale is 1x1.

        Raises:
            TokensError: `tokens` has another type, an index outside the vocabulary, or a number of tokens
                that does not fit the schedule. Indices on a CUDA device are not looked at, which would wait
                for it in every training step: one outside the vocabulary is torch's own error there.
            TokenFileError: an `ImageTokens` was made with another codebook or other phis.

        Source: `idxBl_to_var_input` of VAR's code.
        """
        maps = self._token_maps(tokens, None)
        check_indices_without_waiting(maps.maps, self.config.vocab_size)
        return self._runner.var_inputs(maps.maps, maps.schedule)

    def next_inputs(
        self,
        maps_so_far: TokenMaps | Sequence[Tensor | NDArray[Any]],
        schedule: ScheduleLike | None = None,
    ) -> Tensor:
        """Compute a next-scale transformer's inputs of the scale after the first k.

        In a loop over the scales, `generation` computes the same without computing any scale twice.

        Args:
            maps_so_far: the token maps of the first k scales, 0 < k < K; map i is [B, h_i, w_i] integers.
            schedule: the whole schedule; if None, that of a `TokenMaps` that has its first scales only, else
                the checkpoint's own.

        Returns:
            [B, h_k w_k, C] float32, row by row: the rows of `var_inputs` for that scale, to the bit.

        Raises:
            TokensError: there are no maps or too many, a map is not its scale's, or an index is outside the
                vocabulary; see `var_inputs` for indices on a CUDA device.
            ScheduleError: `schedule` is not a schedule.

        Source: `get_next_autoregressive_input` of VAR's code.
        """
        if isinstance(maps_so_far, TokenMaps):
            if schedule is None and maps_so_far.grids != maps_so_far.schedule:
                schedule = maps_so_far.schedule
            maps_so_far = maps_so_far.maps
        steps = self.generation(schedule)
        if not 1 <= len(maps_so_far) < len(steps.schedule):
            K = len(steps.schedule)
            raise TokensError(
                f"maps of {len(maps_so_far)} scales, but the schedule has {K}: "
                f"a next scale needs those of 1 to {K - 1} before it"
            )
        *_, inputs = (steps.add(tokens) for tokens in maps_so_far)
        assert inputs is not None  # these are not all scales
        return inputs

    def generation(self, schedule: ScheduleLike | None = None) -> Generation:
        """Return a `Generation`, which computes `next_inputs` scale by scale as a transformer is sampled.

        Args:
            schedule: the whole schedule; the checkpoint's own if None.

        Raises:
            ScheduleError: `schedule` is not a schedule.
        """
        grids = self.config.patch_nums if schedule is None else as_schedule(schedule)
        return Generation(self._runner, grids, self.config.vocab_size)

    def image_tokens(self, tokens: TokenMaps, sources: Sequence[str]) -> list[ImageTokens]:
        """Return the `ImageTokens` of each image of a batch, which `ImageTokens.save` writes to a file.

        Their metadata says that this tokenizer encoded the images, in their native size.

        Args:
            tokens: maps of B images.
            sources: path or name of each image.

        Raises:
            TokensError: there are not B sources, or an index is outside the vocabulary.
        """
        height, width = (cells * self.config.downsample for cells in tokens.schedule[-1])
        images = [
            ImageInfo(
                source=source,
                width=width,
                height=height,
                size=(height, width),
                fit="native",
                zoom=1.0,
                device=self.device.type,
                dtype=self.dtype,
            )
            for source in sources
        ]
        return tokens.unstack(self.info, images)

    def draw_codes(self, codes: Sequence[int] | None = None) -> Tensor:
        """Decode codes, each by itself: [N, C, d, d] float32 in [-1, 1], d = `config.downsample`.

        A code's picture is the centre of the decoded image of 2x2 latent cells that all hold the code; phi is
        not applied. In a real picture the codes of all scales are summed before they are decoded, and the
        decoder blends neighbours.

        Args:
            codes: N indices in [0, V); every code if None.
        """
        step = self.config.downsample
        middle = slice(step // 2, step // 2 + step)
        chosen = self.codebook if codes is None else self.codebook[torch.as_tensor(codes)]
        with exact_float32(self.device):
            pictures = [
                self._model.decode(part[:, :, None, None].expand(-1, -1, 2, 2))[:, :, middle, middle]
                for part in torch.split(chosen, 64)
            ]
        return torch.cat(pictures)

    def draw_code(self, code: int) -> Tensor:
        """Decode one cell of each scale that holds a code, in the middle of a picture without any other.

        Args:
            code: index in [0, V).

        Returns:
            [K, C, H, W] float32 in [-1, 1], of the checkpoint's own schedule and size.

        Raises:
            TokensError: the index is outside the vocabulary.
        """
        if not 0 <= code < self.config.vocab_size:
            raise TokensError(f"index {code} is outside the vocabulary of {self.config.vocab_size}")
        return self.decode_latent(self._runner.code_latents(code, self.config.patch_nums))

    def _first(self, tokens: TokenMaps, scales: int | None) -> tuple[Tensor, ...]:
        """Return the maps of the first `scales` scales, after checking their number and all indices."""
        found = len(first_scales(tokens.grids, scales))
        tokens.check_vocab(self.config.vocab_size)
        return tokens.maps[:found]

    def _token_maps(self, tokens: Tokens, schedule: ScheduleLike | None) -> TokenMaps:
        grids = self.config.patch_nums if schedule is None else schedule
        return token_maps(tokens, grids, self.check_model)
