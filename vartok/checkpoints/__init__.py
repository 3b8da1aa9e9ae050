"""Find, read, check and write checkpoint files, and build the model of a checkpoint.

A file is never trusted: no code in it is run, and the tensors' shapes are checked against the configuration
before a model gets them.
"""

from vartok.checkpoints.checkpoint import (
    FORMAT,
    VERSION,
    Checkpoint,
    build_model,
    read_checkpoint,
    write_checkpoint,
)
from vartok.checkpoints.known import (
    PUBLISHED_NAME,
    PUBLISHED_SHA256,
    RUN_WEIGHTS,
    file_sha256,
    find_checkpoint,
    shipped_checkpoint,
)
from vartok.checkpoints.recognition import HITS
from vartok.checkpoints.tensor_files import CODEBOOK

__all__ = [
    "CODEBOOK",
    "FORMAT",
    "HITS",
    "PUBLISHED_NAME",
    "PUBLISHED_SHA256",
    "RUN_WEIGHTS",
    "VERSION",
    "Checkpoint",
    "build_model",
    "file_sha256",
    "find_checkpoint",
    "read_checkpoint",
    "shipped_checkpoint",
    "write_checkpoint",
]
