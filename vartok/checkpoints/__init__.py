"""Find, read, check and write checkpoint files, and build the model of a checkpoint.

A file is never trusted: no code in it is run, and the tensors' shapes are checked against the configuration
before a model gets them. Names load when they are first used, as most of them need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vartok.lazy import lazy_names

if TYPE_CHECKING:
    from vartok.checkpoints.checkpoint import Checkpoint, build_model, read_checkpoint, write_checkpoint
    from vartok.checkpoints.finding import (
        CheckpointFile,
        fetch_known,
        find_checkpoint,
        known_on_disk,
        locate_checkpoint,
    )
    from vartok.checkpoints.folders import RUN_STATE, RUN_WEIGHTS
    from vartok.checkpoints.known import KNOWN, PUBLISHED_NAME, PUBLISHED_SHA256, shipped_checkpoint
    from vartok.checkpoints.mapping import dropping_pages
    from vartok.checkpoints.recognition import HITS
    from vartok.checkpoints.summary import CODEBOOK, FORMAT, VERSION, read_summary

__all__ = [
    "CODEBOOK",
    "FORMAT",
    "HITS",
    "KNOWN",
    "PUBLISHED_NAME",
    "PUBLISHED_SHA256",
    "RUN_STATE",
    "RUN_WEIGHTS",
    "VERSION",
    "Checkpoint",
    "CheckpointFile",
    "build_model",
    "dropping_pages",
    "fetch_known",
    "find_checkpoint",
    "known_on_disk",
    "locate_checkpoint",
    "read_checkpoint",
    "read_summary",
    "shipped_checkpoint",
    "write_checkpoint",
]

MODULES = {
    "checkpoint": ("Checkpoint", "build_model", "read_checkpoint", "write_checkpoint"),
    "finding": (
        "CheckpointFile",
        "fetch_known",
        "find_checkpoint",
        "known_on_disk",
        "locate_checkpoint",
    ),
    "folders": ("RUN_STATE", "RUN_WEIGHTS"),
    "known": ("KNOWN", "PUBLISHED_NAME", "PUBLISHED_SHA256", "shipped_checkpoint"),
    "mapping": ("dropping_pages",),
    "recognition": ("HITS",),
    "summary": ("CODEBOOK", "FORMAT", "VERSION", "read_summary"),
}
"""The module of each public name."""

__getattr__ = lazy_names(__name__, {name: module for module, names in MODULES.items() for name in names})
