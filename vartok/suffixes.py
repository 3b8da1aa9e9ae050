"""Suffixes of files: they tell tars, tables, lists and token files from pictures."""

from __future__ import annotations

from typing import Literal, TypeAlias

TokenFormat: TypeAlias = Literal["npz", "json", "jsonl"]

TARS = (
    ".tar",
    ".tar.gz",
    ".tgz",
    ".tar.bz2",
    ".tbz2",
    ".tbz",
    ".tar.xz",
    ".txz",
    ".tar.zst",
    ".tzst",
)
TABLES = (".parquet", ".pq", ".arrow", ".feather")
LISTS = (".txt",)

TOKEN_FORMATS: dict[str, TokenFormat] = {
    ".npz": "npz",
    ".json": "json",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
}
"""Formats of token files that are written, by suffix."""

TOKEN_COLLECTIONS = (".jsonl", ".jsonl.gz", ".jsonl.bz2", ".jsonl.xz", ".jsonl.zst", ".npy")
"""Suffixes of files with the tokens of several images."""

TOKEN_FILES = (".npz", ".tokens.json", *TOKEN_COLLECTIONS)
"""Suffixes by which a search finds token files."""

TOKEN_ENDINGS = (".tokens.npz", ".tokens.json", *(f".tokens{suffix}" for suffix in TOKEN_COLLECTIONS))
"""Ends of the names of token files that are named by their pictures, and often lie beside them."""
