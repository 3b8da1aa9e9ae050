"""Bulk tokenization: many pictures to the shards of a data set, and from there to training.

dataset = TokenDataset("tokens", shuffle=True)
for batch in DataLoader(dataset, batch_size=64):
    batch["tokens"]                                        # [64, L] int64
    dataset.var_inputs(tokenizer, batch["tokens"])         # [64, L - 1, C] float32
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vartok.dataset.loader import TokenDataset

__all__ = ["TokenDataset"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'vartok.dataset' has no attribute {name!r}")
    return getattr(importlib.import_module("vartok.dataset.loader"), name)
