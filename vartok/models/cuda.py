"""The networks optimized for inference on a CUDA device."""

from __future__ import annotations

import torch

from vartok.models.vqvae import VQVAE


def optimize_for_cuda(model: VQVAE) -> None:
    """Convert the weights of networks in bfloat16 or float16 to channels last, in place.

    cuDNN's kernels for these dtypes work on channels-last maps. Its float32 kernels are no faster with them,
    so float32 networks keep the default layout, and with it their tokens.
    """
    for part in (model.encoder, model.quant_conv, model.post_quant_conv, model.decoder):
        if model.quant_conv.weight.dtype != torch.float32:
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
