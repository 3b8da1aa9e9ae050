"""Training that keeps tokens: encoder, quant_conv, codebook and phis are frozen."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from vartok.models.vqvae import VQVAE
from vartok.runner import ModelRunner
from vartok.schedule import Schedule
from vartok.train.settings import UNUSED_IF_TOKENS_ARE_KEPT

FROZEN_NOTE = "keeping its tokens: encoder, codebook and phis are frozen. Not used: " + ", ".join(
    UNUSED_IF_TOKENS_ARE_KEPT
)
"""The note of a run that keeps tokens."""


def freeze_tokens(model: VQVAE) -> None:
    """Freeze what computes tokens and f_hat; decoder and post_quant_conv stay trainable."""
    for part in (model.encoder, model.quant_conv, model.quantize):
        part.requires_grad_(False)


class FrozenTokens:
    """The f_hat of images, computed as `Tokenizer` does: float32, without gradients, with its fast modules.

    The decoder so learns from the same f_hat that the exported checkpoint computes from its tokens, also if
    training itself runs in bfloat16.

    Args:
        model: the model in training; its encoder and quantizer are copied, and must not change any more.
        schedule: (h, w) of every scale.
    """

    def __init__(self, model: VQVAE, schedule: Schedule) -> None:
        frozen = copy.deepcopy(model)
        frozen.decoder = nn.Identity()  # it is not needed, and takes half of the memory
        device = model.quantize.embedding.weight.device
        self._runner = ModelRunner(frozen, device, "float32", compile=False, differentiable=False)
        self._schedule = schedule

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode images to tokens, and these to f_hat.

        Args:
            images: [B, C, H, W] float32 in [-1, 1], on the model's device.

        Returns:
            f_hat, [B, C, h, w] float32 without gradient; and K token maps, map k [B, h_k, w_k] int64.
        """
        maps = self._runner.quantize(self._runner.encode(images), self._schedule, None)
        return self._runner.f_hat(maps, self._schedule), maps
