"""Turn images into the tokens of VAR's multi-scale residual VQ tokenizer, and back.

    tokenizer = vartok.load()
    tokens = tokenizer.encode(images)      # [B, 3, H, W] in [-1, 1] -> TokenMaps
    images = tokenizer.decode(tokens)      # -> [B, 3, H, W] in [-1, 1]

    tokens = vartok.encode_file("img.png")                         # ImageTokens
    for result in vartok.encode_files("photos", recursive=True):   # what `vartok encode` runs
        result.input, result.output, result.tokens, result.error

Errors are imported at once, all other names when they are first used: `import vartok` imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vartok.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    DamagedImageError,
    DatasetError,
    DeviceError,
    ImageError,
    OutputError,
    OutputExistsError,
    ScheduleError,
    SourceError,
    StorageError,
    TokenFileError,
    TokensError,
    TrainError,
    VartokError,
    VartokWarning,
)
from vartok.lazy import lazy_names

if TYPE_CHECKING:
    from vartok import (  # noqa: F401 - see SUBMODULES
        atlas,
        checkpoints,
        codebook,
        dataset,
        evaluation,
        export,
        images,
        maps,
        reports,
        train,
        usage,
    )
    from vartok.config import TokenizerConfig
    from vartok.evaluation.files import evaluate_files
    from vartok.loading import load
    from vartok.operations.decode import decode_file, decode_files
    from vartok.operations.encode import encode_file, encode_files
    from vartok.operations.outputs import FileResult
    from vartok.token_sources import load_tokens, read_tokens
    from vartok.tokenizer import Tokenizer
    from vartok.tokens import ImageTokens, TokenMaps

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "ConfigError",
    "DamagedImageError",
    "DatasetError",
    "DeviceError",
    "FileResult",
    "ImageError",
    "ImageTokens",
    "OutputError",
    "OutputExistsError",
    "ScheduleError",
    "SourceError",
    "StorageError",
    "TokenFileError",
    "TokenMaps",
    "Tokenizer",
    "TokenizerConfig",
    "TokensError",
    "TrainError",
    "VartokError",
    "VartokWarning",
    "decode_file",
    "decode_files",
    "encode_file",
    "encode_files",
    "evaluate_files",
    "load",
    "load_tokens",
    "read_tokens",
]

SUBMODULES = (
    "atlas",
    "checkpoints",
    "codebook",
    "dataset",
    "evaluation",
    "export",
    "images",
    "maps",
    "reports",
    "train",
    "usage",
)
"""Modules that are attributes without an import of their own."""

__getattr__ = lazy_names(
    __name__,
    {
        "FileResult": "operations.outputs",
        "TokenizerConfig": "config",
        "Tokenizer": "tokenizer",
        "decode_file": "operations.decode",
        "decode_files": "operations.decode",
        "encode_file": "operations.encode",
        "encode_files": "operations.encode",
        "evaluate_files": "evaluation.files",
        "load": "loading",
        "ImageTokens": "tokens",
        "TokenMaps": "tokens",
        "load_tokens": "token_sources",
        "read_tokens": "token_sources",
        **{name: name for name in SUBMODULES},
    },
)


def __dir__() -> list[str]:
    return [*__all__, *SUBMODULES, "__version__"]
