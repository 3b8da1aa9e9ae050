"""Checkpoints of random weights, drawn from a seed: those of the parity cases, and others for tests."""

import functools
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import vartok
from vartok.checkpoints import CODEBOOK, FORMAT, HITS, VERSION
from vartok.config import TokenizerConfig, VarConfig
from vartok.models.vqvae import VQVAE

DATA = Path(__file__).parent / "data" / "parity"
COFFEE = Path(__file__).parent.parent / "examples" / "coffee.png"

SMALL = TokenizerConfig(
    vocab_size=64,
    z_channels=8,
    patch_nums=((1, 1), (2, 2), (4, 4)),
    autoencoder=VarConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1),
)
"""The smallest configuration that has every kind of tensor."""


@functools.cache
def shapes(config: TokenizerConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the model, without allocating any."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in VQVAE(config).state_dict().items()}


def draw(
    config: TokenizerConfig, seed: int = 0, codebook_std: float = 0.4, gain: float = 1.4
) -> dict[str, Tensor]:
    """Return a state dict whose activations and residuals stay of order 1, so that many codes are used."""
    return {name: tensor.clone() for name, tensor in _draw(config, seed, codebook_std, gain).items()}


@functools.lru_cache(maxsize=8)
def _draw(config: TokenizerConfig, seed: int, codebook_std: float, gain: float) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in sorted(shapes(config).items()):
        if name == HITS:
            value = np.zeros(shape)
        elif name == CODEBOOK:
            value = rng.standard_normal(shape) * codebook_std
        elif len(shape) >= 2:
            value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])) * gain
        elif name.endswith(".weight"):
            value = 1 + 0.1 * rng.standard_normal(shape)
        else:
            value = 0.1 * rng.standard_normal(shape)
        tensors[name] = torch.from_numpy(value.astype(np.float32))
    return tensors


def model(config: TokenizerConfig, gain: float = 1.4) -> VQVAE:
    """Return a model of random weights, which are frozen."""
    with torch.device("meta"):  # where nothing is initialised
        model = VQVAE(config)
    model.load_state_dict(draw(config, gain=gain), assign=True)
    return model.requires_grad_(False)


def save(path: Path, config: TokenizerConfig, tensors: dict[str, Tensor] | None = None) -> Path:
    """Write a checkpoint in vartok's format, of random weights unless `tensors` are given."""
    metadata = {"format": FORMAT, "version": VERSION, "name": path.stem, "config": config.to_json()}
    save_file(draw(config) if tensors is None else tensors, path, metadata)
    return path


def bare(path: Path, tensors: dict[str, Tensor]) -> Path:
    """Write a safetensors file without vartok's metadata."""
    save_file(tensors, path)
    return path


def tokenizer(path: Path, config: TokenizerConfig, seed: int = 0, dtype: str = "float32") -> vartok.Tokenizer:
    """Write a checkpoint of random weights, and load it on the CPU."""
    return vartok.load(save(path, config, draw(config, seed)), device="cpu", dtype=dtype)
