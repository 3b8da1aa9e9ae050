"""The schema of a data set: the names of its files, and dataset.json.

OUT/
  dataset.json             model, schedule and picture settings; sha256 of all shards; whether it is complete
  data/00003-0000.parquet  a shard, part 0 of input shard 3: a row for each view of every sample that did not
                           fail
  data/256x384/...         with buckets: the shards of the pictures that were cropped to 256x384 pixels
  stats/00003-0000.json    counts, sha256 and failed samples of the shard; written last, it marks it as done
  failed.jsonl             all failed samples: key, cause and shard of each
  damaged.jsonl            all samples whose picture is damaged and was taken: key, cause and shard of each
  cache/rows.bin           all rows by number, written by a loader; with buckets rows-256x384.bin and so on
  README.md                a card for Hugging Face's loader and for people
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vartok.dataset.encoding import Encoding
from vartok.errors import DatasetError, VartokError, one_line, quoted
from vartok.files import atomic_write, check_regular, os_error_reason

FORMAT = "vartok.dataset"
VERSION = 1

DATASET = "dataset.json"
DATA = "data"
STATS = "stats"
FAILED = "failed.jsonl"
DAMAGED = "damaged.jsonl"
CACHE = "cache"
README = "README.md"

MAX_DESCRIPTION = 1 << 26
"""Size limit in bytes of dataset.json; it has about 200 bytes for each shard."""

OPTIONAL_COLUMNS = ("label", "caption", "metadata")
"""Columns of a row that sources may provide; they are also attributes of `ImageTokens`."""

LATENT = "latent"
"""Column of the latents, in data sets that keep them; also an attribute of `ImageTokens`."""


def without_count(bucket: Any) -> Any:
    """Return an entry of "buckets" in dataset.json without the number of its pictures."""
    return {k: v for k, v in bucket.items() if k != "pictures"} if isinstance(bucket, dict) else bucket


def shard_name(index: int, part: int) -> str:
    """Return a shard's file name without suffix; for part 0 of input shard 3, "00003-0000"."""
    return f"{index:05d}-{part:04d}"


def shard_file(name: str, bucket: str, suffix: str) -> str:
    """Return the path of a shard's file in the data set, such as "data/256x384/00003-0000.parquet".

    Args:
        name: name of the shard, see `shard_name`.
        bucket: name of the bucket, see `bucket_name`; "" without buckets.
        suffix: suffix of the format.
    """
    return "/".join(filter(None, (DATA, bucket, name + suffix)))


def find_shard(path: Path) -> tuple[Path, str] | None:
    """Return the folder of the data set that a shard lies in, and the shard's name in dataset.json.

    None if the path lies neither in data/ of a data set nor in a bucket's folder there. No file need exist.
    """
    whole = path.absolute()
    for depth in (2, 3):
        folders = whole.parts[-depth:-1]
        root = whole.parents[depth - 1] if len(whole.parents) >= depth else None
        if root and folders[0] == DATA and is_dataset(root):
            return root, "/".join((*folders, whole.name))
    return None


def is_dataset(folder: str | Path) -> bool:
    """Return whether a folder holds a data set, even an incomplete or broken one."""
    path = Path(folder, DATASET)
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return f'"{FORMAT}"'.encode() in file.read(1000)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False


def read_description(out: Path) -> dict[str, Any]:
    """Return the parsed dataset.json; only its format and version are checked.

    Raises:
        DatasetError: the file is missing, cannot be read, is not vartok's, or has another version.
    """
    path = out / DATASET
    try:
        check_regular(path)
        if path.stat().st_size > MAX_DESCRIPTION:
            raise DatasetError(f"{path} is larger than {MAX_DESCRIPTION >> 20} MiB")
        description = json.loads(path.read_bytes())
    except DatasetError as error:
        raise DatasetError(f"{path} {error}") from None
    except FileNotFoundError:
        raise DatasetError(f"{out} holds no data set: there is no {DATASET}") from None
    except OSError as error:
        raise DatasetError(f"{path}: {os_error_reason(error)}") from None
    except (ValueError, RecursionError):
        description = None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise DatasetError(f"{path} does not describe a data set of vartok")
    if description.get("version") != VERSION:
        raise DatasetError(
            f"{path} has version {quoted(description.get('version'))}, and this vartok reads {VERSION}",
            hint="upgrade vartok",
        )
    return description


def open_dataset(out: Path) -> tuple[dict[str, Any], Encoding]:
    """Read and check dataset.json.

    Returns:
        The parsed dataset.json, and the `Encoding` in it.

    Raises:
        DatasetError: dataset.json is missing, cannot be read, has another version, or is broken.
    """
    description = read_description(out)
    hint = "remove it and build the data set again; finished shards are kept"
    try:
        encoding = Encoding.from_dict(description)
        if not isinstance(description["files"], str):
            raise DatasetError(f"'files' must be the name of a format, not {quoted(description['files'])}")
        columns = description.get("carried", {})
        if type(columns) is not dict or any(type(count) is not int for count in columns.values()):
            raise DatasetError("'carried' must give a count for every column")
        if not all(isinstance(name, str) for name in description.get("classes", ())):
            raise DatasetError("'classes' must be a list of texts")
        for shard in description["shards"] if description.get("complete") else description.get("shards", ()):
            if not re.fullmatch(rf"{DATA}/([0-9]+x[0-9]+/)?[0-9]+-[0-9]+\.[a-z]+", shard["name"]):
                raise DatasetError(f"{quoted(shard['name'])} is not a shard's name")
            encoding.of_shard(shard["name"])
            if type(shard["pictures"]) is not int or shard["pictures"] < 0:
                raise DatasetError(f"'pictures' of a shard must be a count, not {quoted(shard['pictures'])}")
    except KeyError as error:
        raise DatasetError(f"{out / DATASET} is broken: it has no {error}", hint=hint) from None
    except (VartokError, TypeError, ValueError) as error:
        raise DatasetError(f"{out / DATASET} is broken: {one_line(error)}", hint=hint) from None
    return description, encoding


def write_text(path: Path, text: str) -> None:
    """Write a text file, or replace it, atomically: not even a power cut leaves a part of the text.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_write(path, overwrite=True, durable=True) as file:
        file.write(text.encode())
