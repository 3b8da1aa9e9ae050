"""Encode and decode files, with the parts that evaluation and data sets share: inputs, settings, streams."""

from vartok.operations.decode import decode_file, decode_files
from vartok.operations.decode_streams import decode_tokens
from vartok.operations.encode import encode_file, encode_files
from vartok.operations.inputs import Input, find_inputs
from vartok.operations.outputs import FileResult, FileResults
from vartok.operations.rows import FlatSchedules, RowSelection
from vartok.operations.settings import (
    check_model,
    default_batch_size,
    default_workers,
    make_fit,
    make_schedule,
    parse_size,
    resolve_fit,
)
from vartok.operations.streams import (
    MAX_BATCHED_PIXELS,
    MAX_NATIVE_TOKENS,
    PictureSource,
    encode_pictures,
    encode_views,
)

__all__ = [
    "MAX_BATCHED_PIXELS",
    "MAX_NATIVE_TOKENS",
    "FileResult",
    "FileResults",
    "FlatSchedules",
    "Input",
    "PictureSource",
    "RowSelection",
    "check_model",
    "decode_file",
    "decode_files",
    "decode_tokens",
    "default_batch_size",
    "default_workers",
    "encode_file",
    "encode_files",
    "encode_pictures",
    "encode_views",
    "find_inputs",
    "make_fit",
    "make_schedule",
    "parse_size",
    "resolve_fit",
]
