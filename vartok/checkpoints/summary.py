"""Tell the configuration and the fingerprint of a checkpoint without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vartok.checkpoints.finding import converted_copy, locate_checkpoint
from vartok.config import TokenizerConfig
from vartok.errors import VartokError
from vartok.fingerprint import quantizer_fingerprint
from vartok.metadata import ModelInfo

FORMAT = "vartok.checkpoint"
VERSION = "1"

CODEBOOK = "quantize.embedding.weight"
"""Name of the codebook in VAR's state dicts."""

PHIS = ("quantize.quant_resi.{}.", "quantize.quant_resi.qresi.", "quantize.quant_resi.qresi_ls.{}.")
"""Prefixes of the tensors of phi in VAR's state dicts: of a phi for each scale, of one, of several shared."""


def read_summary(weights: str | Path | None) -> tuple[TokenizerConfig, ModelInfo] | None:
    """Return what token files tell of a checkpoint, and its configuration, in a fraction of a load's time.

    Args:
        weights: what `find_checkpoint` takes.

    Returns:
        Configuration and description. None if the file must be loaded to know them: it does not have vartok's
        metadata, or not the dtypes that numpy has, or is broken.

    Raises:
        CheckpointError: there is no such file, or it cannot be accessed.
    """
    file = locate_checkpoint(weights)
    copy = converted_copy(file)
    path = copy or file.path
    overrides = file.config if copy is None else {}  # a copy holds them
    try:
        with safe_open(path, "np") as opened:
            metadata = opened.metadata() or {}
            if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
                return None
            config = TokenizerConfig.from_json(metadata.get("config", ""), overrides)
            phis = [_phi(opened, config, k) for k in range(config.phi_count)]
            info = ModelInfo(
                name=metadata.get("name") or file.name or path.stem,
                fingerprint=quantizer_fingerprint(
                    opened.get_tensor(CODEBOOK), phis, last_phi=config.last_phi
                ),
                vocab_size=config.vocab_size,
            )
    except (SafetensorError, OSError, ValueError, TypeError, VartokError):
        return None  # loading it tells what is wrong
    return config, info


def _phi(file: Any, config: TokenizerConfig, k: int) -> tuple[float, Any, Any]:
    prefix = PHIS[min(config.share_quant_resi, 2)].format(k)
    return abs(config.quant_resi), file.get_tensor(f"{prefix}weight"), file.get_tensor(f"{prefix}bias")
