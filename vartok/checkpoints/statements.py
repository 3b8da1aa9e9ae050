"""The configuration that a file states beside its tensors: a trainer's arguments, or a config.json."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vartok import schedule as schedules
from vartok.checkpoints.folders import CONFIG_JSON, MAX_CONFIG_BYTES
from vartok.errors import CheckpointError, one_line
from vartok.files import check_regular, os_error_reason

MAX_STATEMENTS = 1000
"""Largest number of statements in a file."""

MAX_TEXT = 1000
"""Largest length of a text that may state a value, in characters."""

MAX_DEPTH = 8
"""Largest depth of nested dicts; deeper entries are ignored."""

ALIASES: dict[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size", "V", "num_vq_embeddings"),
    "z_channels": ("z_channels", "Cvae", "latent_channels"),
    "ch": ("ch", "vae_ch"),
    "ch_mult": ("ch_mult",),
    "num_res_blocks": ("num_res_blocks",),
    "using_znorm": ("using_znorm", "vqnorm"),
    "quant_resi": ("quant_resi",),
    "share_quant_resi": ("share_quant_resi",),
    "patch_nums": ("patch_nums", "v_patch_nums", "pn"),
    "last_phi": ("last_phi",),
}
"""Names under which programs store the values of a configuration, by the keys of `TokenizerConfig.to_json`.

VAR's arguments and those of its trainers, HART's v_patch_nums, and diffusers' names for a VQ model.
"""

QUANTIZER_TYPE, RESO = "quantizer_type", "reso"

NAMES = frozenset({QUANTIZER_TYPE, RESO, *(name for names in ALIASES.values() for name in names)})
"""All names that `Statement.values` are read from."""

SWITTI_KEYS = {RESO, "vocab_size", "z_channels", "ch"}
"""Keys of Switti's config.json; a `reso` without the others is not Switti's."""

SWITTI_SCHEDULES = {256: schedules.VAR_256, 512: schedules.VAR_512, 1024: schedules.VAR_1024}
"""Schedules by the `reso` of Switti's config.json, as in its RESOLUTION_PATCH_NUMS_MAPPING."""


class Statement(NamedTuple):
    """Values of a configuration that stand together.

    Attributes:
        source: where they stand, for messages.
        values: the values, by their keys in `TokenizerConfig.to_json`, not checked.
    """

    source: str
    values: dict[str, Any]


def nested_entries(content: object, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    """Yield (name, value) of `content` and of every entry of its nested dicts, a dict before its entries.

    An `argparse.Namespace` counts as a dict. Names are joined: {"model": {"a.b": t}} has "model.a.b".
    """
    yield prefix, content
    if isinstance(content, Namespace):
        content = vars(content)
    if isinstance(content, Mapping) and depth < MAX_DEPTH:
        for key, value in content.items():
            # State dicts have no other keys, and the text of a nested tuple could fill the memory.
            if isinstance(key, str) or (isinstance(key, int) and key.bit_length() <= 64):
                yield from nested_entries(value, f"{prefix}.{key}" if prefix else str(key), depth + 1)


def is_statement(name: str, value: object) -> bool:
    """Return whether an entry of `nested_entries` is a value for `find_statements`."""
    return name.rpartition(".")[2] in NAMES and _is_plain(value)


def find_statements(entries: Mapping[str, Any], source: str | None = None) -> list[Statement]:
    """Return the statements among entries that `is_statement` accepts, one for each dict that has any.

    Args:
        entries: values by their joined names.
        source: the source of all; if None, each is named by its dict, such as "trainer.config".

    Raises:
        CheckpointError: there are more than `MAX_STATEMENTS`.
    """
    dicts: dict[str, dict[str, Any]] = {}
    for name, value in entries.items():
        parent, _, key = name.rpartition(".")
        dicts.setdefault(parent, {})[key] = value
        if len(dicts) > MAX_STATEMENTS:
            raise CheckpointError(f"holds more than {MAX_STATEMENTS:,} configurations")
    found = [(parent, _values(own)) for parent, own in dicts.items()]
    return [
        Statement(source or one_line(parent or "its top level", 60), values)
        for parent, values in found
        if values
    ]


def read_config_json(weights: Path) -> list[Statement]:
    """Return the statements of the `CONFIG_JSON` beside a file of weights; none if there is no such file.

    Raises:
        CheckpointError: there is one that cannot be read; the message does not name the folder.
    """
    path = weights.with_name(CONFIG_JSON)
    try:
        check_regular(path)
        with open(path, "rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        content = json.loads(data) if len(data) <= MAX_CONFIG_BYTES else "too long"
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unusable(os_error_reason(error)) from None
    except (ValueError, RecursionError):
        raise _unusable("it is not JSON") from None
    if not isinstance(content, dict):
        raise _unusable(f"it is not a JSON object of up to {MAX_CONFIG_BYTES:,} bytes")
    entries = {name: value for name, value in nested_entries(content) if is_statement(name, value)}
    return find_statements(entries, f"{CONFIG_JSON} beside it")


def _unusable(reason: str) -> CheckpointError:
    return CheckpointError(
        f"{CONFIG_JSON} beside it cannot be read: {reason}",
        hint="repair or remove it: it may state the configuration of the weights",
    )


def _is_plain(value: object, *, depth: int = 2) -> bool:
    """Return whether a value is a number, a text, or a short list of such, as a configuration holds."""
    if isinstance(value, (list, tuple)) and depth:
        return len(value) <= schedules.MAX_SCALES and all(_is_plain(item, depth=depth - 1) for item in value)
    return isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= MAX_TEXT)


def _as_lists(value: Any) -> Any:
    """Return a value with lists in place of tuples, as JSON has it."""
    return [_as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _values(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a dict states, by the keys of `TokenizerConfig.to_json`."""
    values: dict[str, Any] = {}
    for key, names in ALIASES.items():
        stated = [own[name] for name in names if name in own]
        if stated:
            values[key] = _as_lists(stated[0])
    if isinstance(grids := values.get("patch_nums"), str):  # VAR's trainer: "1_2_3" or "1-2-3"
        if re.fullmatch(r"\d{1,9}([-_, ]+\d{1,9})+", grids):
            values["patch_nums"] = [int(side) for side in re.findall(r"\d+", grids)]
        else:  # "512" names another schedule in VARSR than in VAR
            del values["patch_nums"]
    if values.get("using_znorm") in (0, 1):
        values["using_znorm"] = bool(values["using_znorm"])
    # `VQVAEHF` of github.com/yandex-research/switti takes the schedule from `reso`, and fixes the others.
    is_switti = own.keys() >= SWITTI_KEYS and isinstance(own[RESO], int)
    schedule = SWITTI_SCHEDULES.get(own[RESO]) if is_switti else None
    if schedule and "patch_nums" not in values:
        grids = schedules.to_json(schedule)
        values = {"using_znorm": False, "quant_resi": 0.5, **values, "patch_nums": grids}
    # `HARTHybridQuantizer` of github.com/mit-han-lab/hart
    if own.get(QUANTIZER_TYPE) == "var_hybrid":
        values.setdefault("last_phi", False)
    return values
