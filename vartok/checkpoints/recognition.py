"""Recognize a tokenizer's configuration from the names and shapes of its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vartok import schedule as schedules
from vartok.checkpoints.statements import Statement
from vartok.checkpoints.summary import CODEBOOK
from vartok.config import TokenizerConfig
from vartok.errors import CheckpointError, ConfigError, counted, quoted

HITS = "quantize.ema_vocab_hit_SV"
"""Name of the tensor of usage counts in VAR's state dicts: [K, V], a count for each scale and code."""

MAX_UNUSED = 3
"""Largest number of statements that are not used and named."""


def recognize_config(
    tensors: Mapping[str, Tensor], overrides: Mapping[str, Any], statements: Sequence[Statement] = ()
) -> tuple[TokenizerConfig, tuple[str, ...]]:
    """Return the configuration of a state dict, and notes on the values that had to be assumed.

    Args:
        tensors: a state dict under VAR's names.
        overrides: values that replace all others, by their keys in `TokenizerConfig.to_json`.
        statements: values that stand in the file or beside it. One that contradicts the tensors or an earlier
            one, or is not valid, is of something else and not used.

    Returns:
        The configuration, one line for each statement that is not used, and one for each value that was
        assumed.

    Raises:
        CheckpointError: the tensors are not a tokenizer's; or they have another number of scales than VAR's
            schedule, and "patch_nums" is neither stated nor in `overrides`.
        ConfigError: the values are not a valid configuration.
    """
    values: dict[str, Any] = {"vocab_size": _size(tensors, CODEBOOK, 0)}
    values["z_channels"] = _size(tensors, CODEBOOK, 1)
    is_light = "encoder.linear.weight" in tensors
    values |= _light(tensors) if is_light else _var(tensors)
    first = "encoder.linear.weight" if is_light else "encoder.conv_in.weight"
    values["in_channels"] = _size(tensors, first, 1)
    phis, scales = _phis(tensors)
    values |= phis
    stated: dict[str, Any] = {}
    unused = []
    for source, own in statements:
        if reason := _contradiction(own, values, scales):
            unused.append(f"{source} is not used: {reason}")
        elif differing := [key for key in own if stated.get(key, own[key]) != own[key]]:
            unused.append(f"{source} is not used: it states another {differing[0]}")
        else:
            stated |= own
    if len(unused) > MAX_UNUSED:
        unused[MAX_UNUSED:] = [f"{len(unused) - MAX_UNUSED:,} more configurations in the file are not used"]
    notes = ["whether codes are looked up by cosine (using_znorm): assumed Euclidean distance"]
    if "quant_resi" not in values:
        notes.append("the ratio r of phi (quant_resi): assumed 0.5")
    known = stated.keys() | overrides.keys()
    if scales not in (None, len(schedules.VAR_256)) and "patch_nums" not in known:
        raise CheckpointError(
            "; ".join([f"has {scales} scales, but does not say their grids (patch_nums)", *unused]),
            hint='vartok convert adds the grids if its config gives them, such as {"patch_nums": [1, 2, 4]}',
        )
    notes.append(f"its schedule (patch_nums): assumed {schedules.describe(schedules.VAR_256)}")
    assumed = [note for note in notes if not any(f"({key})" in note for key in known)]
    config = TokenizerConfig.from_json(json.dumps(values | stated), overrides)
    return config, (*unused, *(f"the file does not say {note}" for note in assumed))


def _contradiction(stated: Mapping[str, Any], values: Mapping[str, Any], scales: int | None) -> str | None:
    """Return why stated values are not those of the tensors, None if they may be.

    Args:
        stated: values of a `Statement`.
        values: values that the tensors' shapes tell.
        scales: number of scales K that the tensors tell, None if unknown.
    """
    for key, value in stated.items():
        if key in values and value != values[key]:
            return f"it states {key} {quoted(value)}, but the tensors have {quoted(values[key])}"
    phis = 0 if "quant_resi" in values else values["share_quant_resi"] or scales
    grids = {} if not scales else {"patch_nums": [1] * min(scales, schedules.MAX_SCALES)}
    try:
        config = TokenizerConfig.from_json(json.dumps({**grids, **values, **stated}))
    except ConfigError as error:
        return str(error)
    if config.phi_count != phis:
        return f"it states {counted(config.phi_count, 'phi')}, but the tensors have {phis}"
    if scales and "patch_nums" in stated and len(config.patch_nums) != scales:
        return f"it states {counted(len(config.patch_nums), 'scale')}, but the tensors have {scales}"
    return None


def _var(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the configuration of VAR's autoencoder: "ch", "ch_mult" and "num_res_blocks"."""
    ch = _size(tensors, "encoder.conv_in.weight", 0)
    first = "encoder.down.{}.block.0.conv1.weight"
    channels = [_size(tensors, first.format(i), 0) for i in range(max(1, _count(tensors, first)))]
    return {
        "ch": ch,
        "ch_mult": [width // max(ch, 1) for width in channels],
        "num_res_blocks": _count(tensors, "encoder.down.0.block.{}.conv1.weight"),
    }


def _light(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the configuration of the `light` autoencoder.

    Its keys are "autoencoder", and, if the file has the residual network, "widths" and "depths".
    """
    values: dict[str, Any] = {"autoencoder": "light"}
    if "encoder.net.stem.weight" in tensors:
        layers, levels = ("stem", "down1", "down2"), ("quarter", "eighth", "sixteenth")
        values["widths"] = [_size(tensors, f"encoder.net.{layer}.weight", 0) for layer in layers]
        values["depths"] = [_count(tensors, f"encoder.net.{level}.{{}}.conv1.weight") for level in levels]
    return values


def _phis(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], int | None]:
    """Return the configuration of phi, and the number of scales K, None if unknown.

    The configuration has "share_quant_resi"; or "quant_resi", 0.0, if the file has no phi.
    """
    scales = _size(tensors, HITS, 0) if HITS in tensors else None
    if own := _count(tensors, "quantize.quant_resi.{}.weight"):  # a phi for each scale
        return {"share_quant_resi": 0}, own
    if "quantize.quant_resi.qresi.weight" in tensors:
        return {"share_quant_resi": 1}, scales
    if shared := _count(tensors, "quantize.quant_resi.qresi_ls.{}.weight"):
        return {"share_quant_resi": shared}, scales
    return {"quant_resi": 0.0}, scales


def _size(tensors: Mapping[str, Tensor], name: str, axis: int) -> int:
    """Return the size of a tensor along an axis."""
    if name not in tensors:
        raise CheckpointError(f"has no tensor {name}: not a VAR tokenizer")
    if tensors[name].ndim <= axis:
        raise CheckpointError(f"tensor {name} has {tensors[name].ndim} axes, too few for a VAR tokenizer")
    return tensors[name].shape[axis]


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Return the number of tensors named `pattern` with 0, 1, 2, ... in its braces, up to the first gap."""
    n = 0
    while pattern.format(n) in tensors:
        n += 1
    return n
