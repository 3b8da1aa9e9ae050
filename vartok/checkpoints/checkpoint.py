"""Read, check and write checkpoints, and build the model of a checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from vartok.checkpoints.recognition import HITS, recognize_config
from vartok.checkpoints.tensor_files import CODEBOOK, read_tensors
from vartok.config import TokenizerConfig
from vartok.errors import CheckpointError, ConfigError, one_line, printable
from vartok.files import write_bytes
from vartok.models.vqvae import VQVAE

FORMAT = "vartok.checkpoint"
VERSION = "1"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The contents of a checkpoint file.

    Attributes:
        name: name of the model, which token files record; the stem of the file if the file states no name.
        license: licence of the weights; None if the file states none.
        config: the model's configuration.
        tensors: exactly the state dict of `VQVAE(config)`, in the file's dtypes; memory-mapped if the file's
            format allows it.
        notes: one line for each value of `config` that the file does not state and that was assumed.
    """

    name: str
    license: str | None
    config: TokenizerConfig
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


def read_checkpoint(path: str | Path, overrides: Mapping[str, Any] = MappingProxyType({})) -> Checkpoint:
    """Read a checkpoint: a safetensors file, with or without vartok's metadata, or a PyTorch file.

    Args:
        path: the file; its format is recognized by its content, not by its name.
        overrides: values of the configuration that replace the file's, by their keys in
            `TokenizerConfig.to_json`.

    Raises:
        CheckpointError: there is no such file, or it is not a checkpoint that vartok can run. The message
            begins with the path; for a wrong tensor it states the name, and the shape or dtype expected.
    """
    path = Path(path)
    try:
        return _read(path, overrides)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{printable(path)}: {error}", hint=error.hint) from None


def write_checkpoint(path: str | Path, checkpoint: Checkpoint, *, overwrite: bool = False) -> None:
    """Write a checkpoint as safetensors with vartok's metadata, and make its parent folders.

    Args:
        path: the file to write. It may be the file from which the tensors are memory-mapped.
        checkpoint: the checkpoint; its `notes` are not written.
        overwrite: whether an existing file is replaced.

    Raises:
        OutputError: the file exists and `overwrite` is false, or it cannot be written.
    """
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "name": checkpoint.name,
        "config": checkpoint.config.to_json(),
    }
    if checkpoint.license:
        metadata["license"] = checkpoint.license
    data = save({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, metadata)
    write_bytes(path, data, overwrite=overwrite)


def build_model(checkpoint: Checkpoint) -> VQVAE:
    """Return the model with the checkpoint's tensors in float32, for inference.

    The model is created on the meta device, which initializes no weights. float32 tensors stay memory-mapped.
    """
    with torch.device("meta"):
        model = VQVAE(checkpoint.config)
    tensors = {name: tensor.float() for name, tensor in checkpoint.tensors.items()}
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)


def _read(path: Path, overrides: Mapping[str, Any]) -> Checkpoint:
    metadata, tensors = read_tensors(path)
    notes: tuple[str, ...] = ()
    if metadata.get("format") != FORMAT:
        config, notes = recognize_config(tensors, overrides)
    elif metadata.get("version") != VERSION:
        version = metadata.get("version", "?")[:20]
        raise CheckpointError(
            f"has version {version} of the checkpoint format, but this vartok reads only version {VERSION}",
            hint="a newer vartok may read it",
        )
    else:
        config = TokenizerConfig.from_json(metadata.get("config", ""), overrides)
    name = metadata.get("name") or path.stem
    return Checkpoint(name, metadata.get("license"), config, _check_tensors(tensors, config), notes)


def _check_tensors(tensors: Mapping[str, Tensor], config: TokenizerConfig) -> dict[str, Tensor]:
    """Return the tensors of the model's state dict, after checking names, shapes and dtypes.

    The usage counts, `HITS`, may be missing, have another shape, or not be floating point: nothing uses
    them, and zeros replace them.
    """
    expected = dict(_state_dict(config))
    hits = expected.pop(HITS)
    for name, like in expected.items():
        if name not in tensors:
            raise CheckpointError(f"has no tensor {name}, expected {_shape(like)}")
        tensor = tensors[name]
        if tensor.shape != like.shape:
            raise CheckpointError(f"tensor {name} is {_shape(tensor)}, expected {_shape(like)}")
        if not tensor.is_floating_point():
            raise CheckpointError(f"tensor {name} is {tensor.dtype}, expected floating point")
        if tensor.layout is not torch.strided or tensor.is_meta:
            raise CheckpointError(f"tensor {name} is sparse or has no data, expected a dense tensor")
    extra = tensors.keys() - expected.keys() - {HITS}
    if extra:
        raise CheckpointError(f"has an unexpected tensor: {one_line(min(extra))}")
    counts = tensors.get(HITS)
    if counts is None or counts.shape != hits.shape or not counts.is_floating_point():
        counts = torch.zeros(hits.shape)
    if not bool(tensors[CODEBOOK].isfinite().all()):
        raise CheckpointError(f"tensor {CODEBOOK} holds NaN or infinite values")
    return {**{name: tensors[name] for name in expected}, HITS: counts}


@functools.lru_cache(maxsize=8)
def _state_dict(config: TokenizerConfig) -> dict[str, Tensor]:
    """Return the model's state dict on the meta device: names and shapes without data."""
    with torch.device("meta"):
        return VQVAE(config).state_dict()


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
