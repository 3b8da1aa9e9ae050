"""Training of multi-scale tokenizers: `train` trains a tokenizer and exports a checkpoint of it.

    from vartok.train import read_settings, train

    train(read_settings("light", {"run": {"steps": 1000}}), ["photos"], "run")

Training needs the packages of the extra `train`: pip install '.[train]' from a clone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vartok.train.loop import train
    from vartok.train.progress import Event, Progress, StartProgress, Validation
    from vartok.train.settings import TrainSettings
    from vartok.train.settings_file import PRESETS, parse_settings, read_settings

__all__ = [
    "PRESETS",
    "Event",
    "Progress",
    "StartProgress",
    "TrainSettings",
    "Validation",
    "parse_settings",
    "read_settings",
    "train",
]

_MODULES = {
    "train": "loop",
    "Event": "progress",
    "Progress": "progress",
    "StartProgress": "progress",
    "Validation": "progress",
    "TrainSettings": "settings",
    "PRESETS": "settings_file",
    "parse_settings": "settings_file",
    "read_settings": "settings_file",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
