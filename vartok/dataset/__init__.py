"""Data sets of tokens: encode many pictures into shards, verify these, and load them for training.

    vartok.dataset.build("photos", "tokens")
    vartok.dataset.verify("tokens").problems               # [] if all is well
    dataset = vartok.dataset.TokenDataset("tokens", shuffle=True)
    for batch in DataLoader(dataset, batch_size=64):
        batch["tokens"]                                    # [64, L] int64
        dataset.var_inputs(tokenizer, batch["tokens"])     # [64, L - 1, C] float32

Names load when they are first used, so that `import vartok.dataset` imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vartok.dataset.builder import build
    from vartok.dataset.loader import TokenDataset
    from vartok.dataset.progress import Progress, Summary
    from vartok.dataset.verification import Report, verify

__all__ = ["Progress", "Report", "Summary", "TokenDataset", "build", "verify"]

_HOMES = {
    "Progress": "progress",
    "Report": "verification",
    "Summary": "progress",
    "TokenDataset": "loader",
    "build": "builder",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vartok.dataset' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vartok.dataset.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
