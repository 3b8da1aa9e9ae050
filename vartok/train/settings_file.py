"""Settings as TOML: vartok's presets, the user's own files, and settings.toml in a run's folder."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vartok.checkpoints import Checkpoint, read_checkpoint
from vartok.config import TokenizerConfig
from vartok.errors import ConfigError, one_line, quoted
from vartok.files import os_error_reason
from vartok.train.settings import (
    DataSettings,
    LossSettings,
    OptimizerSettings,
    QuantizerSettings,
    RunSettings,
    StartSettings,
    TrainSettings,
)

PRESETS = ("light", "light-looks", "var-small", "var")

TABLES: dict[str, type[Any]] = {
    "data": DataSettings,
    "start": StartSettings,
    "quantizer": QuantizerSettings,
    "loss": LossSettings,
    "optimizer": OptimizerSettings,
    "run": RunSettings,
}

T = TypeVar("T")


def read_settings(
    preset: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    weights: str | Path | None = None,
) -> TrainSettings:
    """Return the settings of a preset or of a TOML file.

    Args:
        preset: one of `PRESETS`, or the path of a TOML file.
        overrides: values that replace those of the preset, see `parse_settings`.
        weights: checkpoint to fine-tune, as for `vartok.load`; None: the one that the file's [start] names,
            else none. Its configuration becomes [model], unless the file has both [start] weights and
            [model], as that of a run has. Its licence becomes the run's if the preset states none.
            `encoder_warmup_steps` becomes 0, as the encoder is trained already.

    Raises:
        ConfigError: there is no such preset or file, or `parse_settings` refuses its text; or `overrides`
            change the [model] of a checkpoint.
        CheckpointError: there is no such checkpoint, or vartok cannot run it.
    """
    changes = dict(overrides or {})
    if weights is not None:
        changes["start"] = {**changes.get("start", {}), "weights": str(weights)}
    text = _read_preset(str(preset))
    try:
        settings = parse_settings(text, changes)
    except ConfigError as error:
        if preset in PRESETS:
            raise
        raise ConfigError(f"{preset}: {error}", hint=error.hint) from None
    start = settings.start.weights
    if not start or (weights is None and "model" in tomllib.loads(text)):
        return settings
    if changes.get("model"):
        raise ConfigError(f"[model] {min(changes['model'])} cannot be changed: {start} has its own")
    checkpoint = read_start(start)
    return dataclasses.replace(
        settings,
        license=settings.license or checkpoint.license,
        model=checkpoint.config,
        optimizer=dataclasses.replace(settings.optimizer, encoder_warmup_steps=0),
    )


def read_start(weights: str | Path) -> Checkpoint:
    """Read the checkpoint that a run fine-tunes.

    Raises:
        CheckpointError: there is no such checkpoint, or vartok cannot run it. The message begins with its
            path.
    """
    return read_checkpoint(weights)


def parse_settings(text: str, overrides: Mapping[str, Any] | None = None) -> TrainSettings:
    """Parse settings in TOML; a setting that is left out has its default.

    Args:
        text: a TOML document, with a table for each dataclass of `vartok.train.settings`.
        overrides: values that replace those of the text, by key; for a table, a mapping of its keys.

    Raises:
        ConfigError: the text is not TOML, a table or key is unknown, a value has the wrong type or is out of
            its range, or settings contradict each other.
    """
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"the text is not TOML ({one_line(error)})") from None
    for key, change in (overrides or {}).items():
        values[key] = {**_table(values, key), **change} if isinstance(change, Mapping) else change
    _check_keys(values, ("name", "license", "model", *TABLES), "the text")
    for key in ("name", "license"):
        if not isinstance(values.get(key, ""), str):
            raise ConfigError(f"{key} must be a text, not {quoted(values[key])}")
    given: dict[str, Any] = {key: values[key] for key in ("name", "license") if key in values}
    try:
        model = TokenizerConfig.from_json(json.dumps(_table(values, "model"), default=str))
    except ConfigError as error:
        raise ConfigError(f"[model] {error}", hint=error.hint) from None
    for name, part in TABLES.items():
        given[name] = _parse_table(part, name, _table(values, name))
    return TrainSettings(model=model, **given)


def dump_settings(settings: TrainSettings) -> str:
    """Return the settings as a TOML document, from which `parse_settings` gives equal settings."""
    values = dataclasses.asdict(settings)
    values["model"] = json.loads(settings.model.to_json())
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [_toml_line(key, value) for key, value in values.items() if key not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(_toml_line(key, value) for key, value in table.items())]
    return "\n".join(line for line in lines if line is not None) + "\n"


def _read_preset(preset: str) -> str:
    """Return the text of a preset or of a file."""
    if preset in PRESETS:
        return (importlib.resources.files("vartok.train") / "presets" / f"{preset}.toml").read_text("utf-8")
    try:
        return Path(preset).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{quoted(preset)} is no preset ({', '.join(PRESETS)}) and no file that can be read "
            f"({os_error_reason(error)})"
        ) from None


def _table(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = values.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"[{name}] must be a table, not {quoted(table)}")
    return table


def _check_keys(values: Mapping[str, Any], known: Iterable[str], table: str) -> None:
    unknown = values.keys() - set(known)
    if unknown:
        raise ConfigError(
            f"{table} has an unknown key, {quoted(min(unknown))}; known keys: {', '.join(known)}"
        )


def _parse_table(part: type[T], name: str, values: Mapping[str, Any]) -> T:
    """Return the dataclass of a table.

    A value must have the type of its default. An integer may replace a float; a default of None is a float's.

    Raises:
        ConfigError: a key is unknown, or a value has another type.
    """
    defaults = {entry.name: entry.default for entry in dataclasses.fields(part)}  # type: ignore[arg-type]
    _check_keys(values, defaults, f"[{name}]")
    for key, value in values.items():
        kind = float if defaults[key] is None else type(defaults[key])
        allowed = (int, float) if kind is float else (kind,)
        if type(value) not in allowed or value != value:
            raise ConfigError(f"[{name}] {key}: {quoted(value)} is not {_TYPE_NAMES[kind]}")
    return part(**values)


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _toml_line(key: str, value: Any) -> str | None:
    """Return the line `key = value`; None if the value is None, which TOML lacks.

    TOML writes texts, numbers, truth values and lists as JSON does.
    """
    return None if value is None else f"{key} = {json.dumps(value, ensure_ascii=False)}"
