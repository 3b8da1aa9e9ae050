"""The networks optimized for inference on a CUDA device."""

from __future__ import annotations

import torch

from vartok.models.vqvae import VQVAE


def optimize_for_cuda(model: VQVAE) -> None:
    """Keep the networks' weights channels last where they are in a reduced precision, in place.

    cuDNN's kernels for bfloat16 and float16 take maps that are channels last; in float32 they are not
    faster so, and the tokens stay those of the plain layout.
    """
    for part in (model.encoder, model.quant_conv, model.post_quant_conv, model.decoder):
        if model.quant_conv.weight.dtype != torch.float32:
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
