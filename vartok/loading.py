"""Load a tokenizer: find and read its checkpoint, choose its device and dtype."""

from __future__ import annotations

from pathlib import Path

import torch

from vartok.checkpoints import build_model, dropping_pages, locate_checkpoint, read_checkpoint
from vartok.errors import warn
from vartok.runtime import check_dtype, choose_device, warn_of_dtype
from vartok.tokenizer import Tokenizer


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
        weights: path of a checkpoint (safetensors, or a .pth of VAR), or of a folder that holds one, such as
            a training run's; the name of a known one, as "var"; or hf://OWNER/REPO[/FILE][@REVISION] on the
            Hugging Face hub. None, "light" or "shipped" for the one that is installed with vartok. A file of
            the hub is fetched when it is first used.
        device: "cpu", "cuda", "cuda:1", "mps", ...; "auto" takes CUDA, then MPS, then the CPU.
        dtype: precision of encoder and decoder, a name or a torch dtype. "float32" gives the tokens of VAR's
            own code, and only it gives the same tokens in every batch. "tf32" (on CUDA: float32 with products
            in TF32), "bfloat16" and "float16" are faster on hardware that has them, but change many tokens,
            since a coarse token that changes alters all finer ones. The quantizer computes in float32.
        compile: let torch compile encoder and decoder for each batch shape that occurs twice, up to four
            shapes. This takes a minute or more per shape, so it pays off in long runs on a GPU. Compiled
            networks round differently: a few tokens may differ, and may depend on the batch shapes before.
        differentiable: let gradients flow through `latent` to the images, and through `decode_latent` to
            the latent. The networks then run as plain torch modules, slower on a CPU. The weights stay
            frozen; `encode`, `quantize`, `f_hat` and `decode` give no gradient.

    Raises:
        CheckpointError: `weights` does not exist, or is not a checkpoint that vartok can run.
        DeviceError: torch cannot use the device here, or it cannot compute in `dtype`.

    Warns:
        VartokWarning: the file does not state a part of its configuration, which was assumed; or the CPU does
            not compute in `dtype`, and the networks compute in float32 with weights rounded to it.
    """
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    chosen = choose_device(device)
    check_dtype(str(name), chosen)
    file = locate_checkpoint(weights)
    checkpoint = read_checkpoint(file)
    for note in checkpoint.notes:
        warn(f"{file.label}: {note}")
    warn_of_dtype(str(name), chosen)
    model = build_model(checkpoint)
    with dropping_pages(dict(model.named_parameters()), checkpoint.tensors):
        return Tokenizer(
            model,
            checkpoint.config,
            name=checkpoint.name,
            device=chosen,
            dtype=name,
            compile=compile,
            differentiable=differentiable,
        )
