"""Tars and tables of pictures, made for tests."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import photo

from vartok.operations import find_inputs
from vartok.sources import InputShard, Sample, find_input_shards

Members = Sequence[tuple[str, bytes]]


def picture(seed: int = 0, width: int = 12, height: int = 9, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    photo(seed, width, height).save(buffer, format)
    return buffer.getvalue()


def tar(path: Path, members: Members, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def table(path: Path, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def keys(shard: InputShard) -> list[str]:
    return [sample.key for sample in shard.samples()]


def pictures_alone(path: Path) -> list[Sample]:
    """Read the samples of a tar or table as `encode` and `eval` do."""
    return [sample for _, sample in find_inputs(path)[0].samples()]


def samples_of(path: Path | str, **options: Any) -> list[Sample]:
    (shard,) = find_input_shards([str(path)], 10, **options)
    return list(shard.samples())
