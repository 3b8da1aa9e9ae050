"""Read, check and write checkpoints, and build the model of a checkpoint."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from vartok.checkpoints.finding import CheckpointFile, converted_copy, locate_checkpoint
from vartok.checkpoints.hub_cache import check_sha256
from vartok.checkpoints.recognition import HITS, recognize_config
from vartok.checkpoints.statements import Statement, read_config_json
from vartok.checkpoints.summary import FORMAT, VERSION
from vartok.checkpoints.tensor_files import read_tensors
from vartok.checkpoints.writing import safetensors_parts
from vartok.config import LightConfig, TokenizerConfig
from vartok.errors import CheckpointError, ConfigError, OutputError, one_line, printable
from vartok.files import open_output
from vartok.metadata import MAX_TEXT
from vartok.models.vqvae import VQVAE

FLOAT8 = frozenset({torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz})

DTYPES = FLOAT8 | {torch.float16, torch.bfloat16, torch.float32, torch.float64}
"""The dtypes of tensors that are read."""

MAX_FLOAT32 = torch.finfo(torch.float32).max

MAX_MISSING = 1000
"""Largest number of tensors that a file may lack for the first of them to be named."""

MAX_NOTES = 20
"""Largest number of notes that are read from a converted copy."""

SMALL_BYTES = 1 << 20
"""Bytes that tensors may have in sum beyond 1.5 times the file's."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The contents of a checkpoint file.

    Attributes:
        name: name of the model, which token files record; the stem of the file if the file states no name.
        license: licence of the weights; None if the file states none.
        config: the model's configuration.
        tensors: exactly the state dict of `VQVAE(config)`, in the file's dtypes; memory-mapped if the file's
            format allows it.
        notes: one line for each value of `config` that the file does not state and that was assumed, one for
            each statement of another configuration, and one if the file holds several tokenizers.
    """

    name: str
    license: str | None
    config: TokenizerConfig
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


def read_checkpoint(
    weights: str | Path | CheckpointFile | None,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    *,
    key: str | None = None,
) -> Checkpoint:
    """Read a checkpoint: a safetensors file, with or without vartok's metadata, or a PyTorch file.

    A file without vartok's metadata is recognized by its tensors' shapes, by the configuration that it
    states, and by a config.json in its folder.
    A converted copy of a .pth file of the hub is kept in vartok's folder of caches if that can be written,
    and read from then on.

    Args:
        weights: what `find_checkpoint` takes, or what `locate_checkpoint` found. A file's format is
            recognized by its content, not by its name.
        overrides: values of the configuration that replace the file's, by their keys in
            `TokenizerConfig.to_json`.
        key: key of the tokenizer in a file of several, such as "ema" or "trainer.vae_local". None for the
            only one, or for the only one whose key says EMA (exponential moving average).

    Raises:
        CheckpointError: there is no such file, it has another sha256 than the hub states, or it is not a
            checkpoint that vartok can run. The message begins with the path, or the name; for a wrong tensor
            it states the name, and the shape or dtype expected.
    """
    file = weights if isinstance(weights, CheckpointFile) else locate_checkpoint(weights)
    copy = converted_copy(file) if key is None and not overrides else None
    if copy is not None and copy.exists():
        with contextlib.suppress(CheckpointError, ConfigError):  # a broken copy is made again
            return _read(CheckpointFile(copy, file.label), {}, None)
    if file.sha256 is not None:
        check_sha256(file.path, file.sha256, printable(file.label))
    try:
        checkpoint = _read(file, {**file.config, **overrides}, file.key if key is None else key)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{printable(file.label)}: {error}", hint=error.hint) from None
    if copy is not None:
        with contextlib.suppress(OutputError):  # the folder of caches cannot be written
            _write(copy, checkpoint, overwrite=True, notes=True)
    return checkpoint


def write_checkpoint(path: str | Path, checkpoint: Checkpoint, *, overwrite: bool = False) -> None:
    """Write a checkpoint as safetensors with vartok's metadata, and make its parent folders.

    Equal checkpoints give equal bytes.

    Args:
        path: the file to write. It may be the file from which the tensors are memory-mapped.
        checkpoint: the checkpoint; its `notes` are not written.
        overwrite: whether an existing file is replaced.

    Raises:
        OutputError: the file exists and `overwrite` is false, or it cannot be written.
    """
    _write(path, checkpoint, overwrite=overwrite)


def _write(path: str | Path, checkpoint: Checkpoint, *, overwrite: bool, notes: bool = False) -> None:
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "name": checkpoint.name,
        "config": checkpoint.config.to_json(),
    }
    if checkpoint.license:
        metadata["license"] = checkpoint.license
    if notes:
        metadata["notes"] = json.dumps(checkpoint.notes)
    with open_output(path, overwrite=overwrite) as file:
        file.writelines(safetensors_parts(checkpoint.tensors, metadata))


def build_model(checkpoint: Checkpoint) -> VQVAE:
    """Return the model with the checkpoint's tensors in float32, for inference.

    The model is created on the meta device, which initializes no weights. float32 tensors stay memory-mapped.
    """
    with torch.device("meta"):
        model = VQVAE(checkpoint.config)
    tensors = {name: tensor.float() for name, tensor in checkpoint.tensors.items()}
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)


def _read(file: CheckpointFile, overrides: Mapping[str, Any], key: str | None) -> Checkpoint:
    metadata, tensors, statements, notes = read_tensors(file.path, key)
    if metadata.get("format") != FORMAT:
        statements += read_config_json(file.path)
        # One statement a value: a file that states one of them otherwise leaves the others.
        statements += [
            Statement(f"the {key} known of {file.label}", {key: value})
            for key, value in file.expected.items()
        ]
        config, assumed = recognize_config(tensors, overrides, statements)
        notes += assumed
    elif metadata.get("version") != VERSION:
        version = one_line(metadata.get("version", "?"), 20)
        raise CheckpointError(
            f"has version {version} of the checkpoint format, but this vartok reads only version {VERSION}",
            hint="a newer vartok may read it",
        )
    else:
        config = TokenizerConfig.from_json(metadata.get("config", ""), overrides)
        notes += _stated_notes(metadata.get("notes", "[]"))
    name = metadata.get("name") or file.name or file.path.stem
    if len(name) > MAX_TEXT:
        raise CheckpointError(f"its name has {len(name):,} characters, more than {MAX_TEXT:,}")
    checked = _check_tensors(tensors, config, file.path.stat().st_size)
    license = metadata.get("license") or file.license
    return Checkpoint(printable(name, MAX_TEXT), license, config, checked, notes)


def _stated_notes(text: str) -> tuple[str, ...]:
    """Return the notes in the metadata of a converted copy, a JSON list."""
    try:
        return tuple(one_line(note, MAX_TEXT) for note in json.loads(text)[:MAX_NOTES])
    except (ValueError, TypeError, RecursionError):
        raise CheckpointError("its notes are not a list") from None


def _check_tensors(
    tensors: Mapping[str, Tensor], config: TokenizerConfig, file_size: int
) -> dict[str, Tensor]:
    """Return the tensors of the model's state dict, after checking names, shapes, dtypes, sizes and values.

    The usage counts, `HITS`, may be missing, have another shape, or not be floating point: nothing uses
    them, and zeros replace them.
    """
    parts = config.autoencoder
    blocks = 2 * (
        sum(parts.depths) if isinstance(parts, LightConfig) else len(parts.ch_mult) * parts.num_res_blocks
    )
    if 4 * blocks > len(tensors) + MAX_MISSING:
        raise CheckpointError(
            f"has {len(tensors):,} tensors, too few for the {blocks:,} blocks of its config"
        )
    expected = dict(_state_dict(config))
    hits = expected.pop(HITS)
    for name, like in expected.items():
        if name not in tensors:
            raise CheckpointError(
                f"has no tensor {name} of shape {_shape(like)}",
                hint="save the whole state_dict() of a tokenizer of VAR's kind",
            )
        tensor = tensors[name]
        if tensor.shape != like.shape:
            raise CheckpointError(f"tensor {name} is {_shape(tensor)}, expected {_shape(like)}")
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"tensor {name} is {tensor.dtype}, expected floating point",
                hint="save the weights as they were before their quantization",
            )
        if not _is_dense(tensor):
            raise CheckpointError(
                f"tensor {name} is sparse or has no data, expected a dense tensor",
                hint="save it after .to_dense()",
            )
    extra = tensors.keys() - expected.keys() - {HITS}
    if extra:
        raise CheckpointError(f"has an unexpected tensor: {one_line(min(extra))}")
    counts = tensors.get(HITS)
    if counts is None or counts.shape != hits.shape or counts.dtype not in DTYPES or not _is_dense(counts):
        counts = None
    checked = {name: tensors[name] for name in expected} | ({} if counts is None else {HITS: counts})
    _check_size(checked, file_size)
    for name, tensor in checked.items():
        if not _is_finite(tensor):
            raise CheckpointError(
                f"tensor {name} holds NaN or infinite values",
                hint="its training diverged or the file is damaged: name another",
            )
    return {**checked, HITS: torch.zeros(hits.shape) if counts is None else counts}


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_meta


def _check_size(tensors: Mapping[str, Tensor], file_size: int) -> None:
    """Refuse tensors that have far more elements than the file stores, as views of stride 0 can."""
    if sum(tensor.nbytes for tensor in tensors.values()) > file_size * 1.5 + SMALL_BYTES:
        name = max(tensors, key=lambda key: tensors[key].nbytes - tensors[key].untyped_storage().nbytes())
        raise CheckpointError(f"tensor {name} is {_shape(tensors[name])}, more than the file stores")


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite in float32. Only float8 takes memory of the tensor's size."""
    if tensor.dtype in FLOAT8:
        tensor = tensor.float()  # torch has no aminmax of float8
    low, high = (float(bound) for bound in tensor.detach().aminmax())  # both NaN if any value is
    return low >= -MAX_FLOAT32 and high <= MAX_FLOAT32


@functools.lru_cache(maxsize=8)
def _state_dict(config: TokenizerConfig) -> dict[str, Tensor]:
    """Return the model's state dict on the meta device: names and shapes without data."""
    with torch.device("meta"):
        return VQVAE(config).state_dict()


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
