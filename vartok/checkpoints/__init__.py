"""Checkpoints: read, recognise, check, write.

A file is never trusted: no code in it is run, and every tensor's shape is checked against the
configuration before a model is built.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vartok import schedule as schedules
from vartok.config import TokenizerConfig
from vartok.errors import CheckpointError, ConfigError, one_line
from vartok.files import atomic_write
from vartok.models.vqvae import VQVAE

FORMAT = "vartok.checkpoint"
VERSION = "1"

CODEBOOK = "quantize.embedding.weight"
HITS = "quantize.ema_vocab_hit_SV"

PUBLISHED_NAME = "vae_ch160v4096z32"
PUBLISHED_SHA256 = "7c3ec27ae28a3f87055e83211ea8cc8558bd1985d7b51742d074fb4c2fcf186c"
"""The tokenizer that VAR's authors published: the name and hash of their .pth file."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        name: what token files call it.
        license: of the weights; None where the file does not say.
        config: the model's configuration.
        tensors: exactly the state dict of `VQVAE(config)`, in the file's dtypes; mapped from the file.
        notes: what the file does not tell and was assumed, a line each.
    """

    name: str
    license: str | None
    config: TokenizerConfig
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


def shipped_checkpoint() -> Path:
    """The checkpoint that is installed with vartok."""
    return Path(str(importlib.resources.files("vartok.weights") / "vartok-light-v1.safetensors"))


def find_checkpoint(weights: str | Path | None) -> Path:
    """The file of a checkpoint: that of the shipped one for None and for the word "shipped"."""
    return shipped_checkpoint() if weights is None or str(weights) == "shipped" else Path(weights)


def read_checkpoint(path: Path, overrides: Mapping[str, Any] = MappingProxyType({})) -> Checkpoint:
    """Read a safetensors file, with our metadata or bare, or a VAR-style .pth.

    Args:
        path: the file; recognised by its content, not its name.
        overrides: configuration values, by name, that replace what the file says or its shapes tell.

    Raises:
        CheckpointError: no such file, or not a checkpoint that vartok can run; says which tensor
            is wrong and what was expected.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError as error:
        raise CheckpointError(error.strerror or str(error)) from None
    if start[8:9] == b"{":
        metadata, tensors = _read_safetensors(path)
    elif start.startswith((b"PK", b"\x80")):
        metadata, tensors = {}, _read_pickle(path, zipped=start.startswith(b"PK"))
    else:
        raise CheckpointError("neither a safetensors nor a PyTorch file")
    tensors = _without_prefix(tensors)
    try:
        if metadata.get("format") == FORMAT:
            if metadata.get("version") != VERSION:
                raise CheckpointError(
                    f"is of version {metadata.get('version', '?')[:20]}, this vartok reads version {VERSION}"
                )
            config = TokenizerConfig.from_json(metadata.get("config", ""), overrides)
            notes: tuple[str, ...] = ()
        else:
            config, notes = _recognise(tensors, overrides)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    name = metadata.get("name") or path.stem
    return Checkpoint(name, metadata.get("license"), config, _checked(tensors, config), notes)


def write_checkpoint(path: Path, checkpoint: Checkpoint, *, overwrite: bool = False) -> None:
    """Write our format.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
        OSError: it cannot be written.
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
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(data)


def build_model(checkpoint: Checkpoint) -> VQVAE:
    """The model with the checkpoint's tensors in float32, for inference.

    Nothing is initialised first, and float32 tensors stay mapped from the file.
    """
    with torch.device("meta"):
        model = VQVAE(checkpoint.config)
    tensors = {name: tensor.float() for name, tensor in checkpoint.tensors.items()}
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"is not a whole safetensors file ({one_line(error)})") from None


def _read_pickle(path: Path, *, zipped: bool) -> dict[str, Tensor]:
    mapped = zipped and not path.name.endswith(".safetensors")  # by which torch.load goes, given a path
    try:
        with open(path, "rb") as file:
            # Tensors and plain containers only: weights_only refuses whatever would run code.
            source = path if mapped else file
            content = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise CheckpointError(
            "holds Python objects other than tensors, which vartok never loads: "
            "save its state_dict() alone, or is not a whole PyTorch file"
        ) from None
    except Exception as error:  # torch.load raises nearly every type on a damaged file
        raise CheckpointError(f"is not a whole PyTorch file ({one_line(error)})") from None
    return dict(_flatten(content))


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tokenizer's tensors, under VAR's names: what a trainer kept them under is taken off."""
    prefixes = [name.removesuffix(CODEBOOK) for name in tensors if name.endswith(CODEBOOK)]
    if len(prefixes) > 1:
        raise CheckpointError(f"holds {len(prefixes)} tokenizers, under {one_line(prefixes)}: keep one")
    if not prefixes:
        raise CheckpointError(f"has no tensor {CODEBOOK}: not a VAR tokenizer")
    prefix = prefixes[0]
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _flatten(content: object, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested dicts, named by the path of keys: {"model": {"a.b": t}} -> "model.a.b"."""
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, Mapping) and depth < 8:
        for key, value in content.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key), depth + 1)


def _recognise(
    tensors: Mapping[str, Tensor], overrides: Mapping[str, Any]
) -> tuple[TokenizerConfig, tuple[str, ...]]:
    """The configuration that the tensors' names and shapes tell, and what they do not."""

    def size(name: str, axis: int) -> int:
        if name not in tensors:
            raise CheckpointError(f"has no tensor {name}: not a VAR tokenizer")
        if tensors[name].ndim <= axis:
            raise CheckpointError(f"tensor {name} has {tensors[name].ndim} axes, too few for a VAR tokenizer")
        return tensors[name].shape[axis]

    def count(pattern: str) -> int:
        n = 0
        while pattern.format(n) in tensors:
            n += 1
        return n

    values: dict[str, Any] = {"vocab_size": size(CODEBOOK, 0), "z_channels": size(CODEBOOK, 1)}
    if "encoder.linear.weight" in tensors:
        values["autoencoder"] = "light"
        if "encoder.net.stem.weight" in tensors:
            layers = ("stem", "down1", "down2")
            values["widths"] = [size(f"encoder.net.{layer}.weight", 0) for layer in layers]
            maps = ("quarter", "eighth", "sixteenth")
            values["depths"] = [count(f"encoder.net.{level}.{{}}.conv1.weight") for level in maps]
    else:
        ch = size("encoder.conv_in.weight", 0)
        levels = count("encoder.down.{}.block.0.conv1.weight")
        values["ch"] = ch
        values["ch_mult"] = [
            size(f"encoder.down.{i}.block.0.conv1.weight", 0) // max(ch, 1) for i in range(levels)
        ]
        values["num_res_blocks"] = count("encoder.down.0.block.{}.conv1.weight")

    scales = size(HITS, 0) if HITS in tensors else None
    notes = ["whether it looks codes up by cosine (using_znorm): assumed Euclidean"]
    each, some = (count(f"quantize.quant_resi.{pattern}.weight") for pattern in ("{}", "qresi_ls.{}"))
    if each:
        values["share_quant_resi"], scales = 0, each
    elif "quantize.quant_resi.qresi.weight" in tensors:
        values["share_quant_resi"] = 1
    elif some:
        values["share_quant_resi"] = some
    else:
        values["quant_resi"] = 0.0
    if "quant_resi" not in values:
        notes.append("phi's share (quant_resi): assumed 0.5")
    if scales not in (None, len(schedules.VAR_256)) and "patch_nums" not in overrides:
        raise CheckpointError(
            f"has {scales} scales but not their sizes: convert it with --config '{{\"patch_nums\": [...]}}'"
        )
    notes.append(f"its schedule (patch_nums): assumed {schedules.describe(schedules.VAR_256)}")
    told = tuple(note for note in notes if not any(f"({key})" in note for key in overrides))
    config = TokenizerConfig.from_json(json.dumps(values), overrides)
    return config, tuple(f"the file does not say {note}" for note in told)


def _checked(tensors: Mapping[str, Tensor], config: TokenizerConfig) -> dict[str, Tensor]:
    """The tensors of the model's state dict, each of the expected shape, and no others."""
    with torch.device("meta"):
        expected = VQVAE(config).state_dict()
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
            raise CheckpointError(f"tensor {name} is sparse or without data, expected plain values")
    extra = tensors.keys() - expected.keys() - {HITS}
    if extra:
        raise CheckpointError(f"has a tensor that this kind of tokenizer does not, {one_line(min(extra))}")
    counts = tensors.get(HITS)
    if counts is None or counts.shape != hits.shape or not counts.is_floating_point():
        counts = torch.zeros(hits.shape)  # nothing reads them: their absence harms nothing
    if not bool(tensors[CODEBOOK].isfinite().all()):
        raise CheckpointError(f"tensor {CODEBOOK} holds values that are no numbers")
    return {**{name: tensors[name] for name in expected}, HITS: counts}


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
