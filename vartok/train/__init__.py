"""Training of multi-scale tokenizers: `train` trains a tokenizer and exports a checkpoint of it.

    from vartok.train import read_settings, train

    train(read_settings("light", {"run": {"steps": 1000}}), ["photos"], "run")

Training needs the packages of the extra `train`: pip install '.[train]' from a clone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vartok.lazy import lazy_names

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

__getattr__ = lazy_names(
    __name__,
    {
        "train": "loop",
        "Event": "progress",
        "Progress": "progress",
        "StartProgress": "progress",
        "Validation": "progress",
        "TrainSettings": "settings",
        "PRESETS": "settings_file",
        "parse_settings": "settings_file",
        "read_settings": "settings_file",
    },
)


def __dir__() -> list[str]:
    return list(__all__)
