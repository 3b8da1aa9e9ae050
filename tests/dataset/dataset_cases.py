"""Sources, a small checkpoint and finished data sets that the tests of data sets share.

A pytest plugin without asserts: PYTEST_DONT_REWRITE.
"""

import io
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import names, photo, save
from noise import SMALL
from noise import tokenizer as noise_tokenizer
from numpy.typing import NDArray

import vartok
from vartok.buckets import Bucket
from vartok.dataset.encoding import Encoding
from vartok.dataset.engines import run_here
from vartok.dataset.formats import open_writer, read_shard
from vartok.dataset.plan import InputTask, Job, plan_tasks, prepare_folder
from vartok.dataset.schema import DATA, OPTIONAL_COLUMNS, STATS
from vartok.dataset.shard_files import HashedFile, open_shard
from vartok.dataset.stats import ShardStats, stats_path
from vartok.dataset.write import ShardProgress, write_summary
from vartok.images import Fit, Views
from vartok.metadata import ModelInfo, View
from vartok.schedule import token_count
from vartok.sources import InputShard, find_input_shards
from vartok.tokens import ImageTokens

MODEL = ModelInfo(name="noise", fingerprint="0" * 64, vocab_size=64)
ENCODING = Encoding(MODEL, ((1, 1), (2, 2), (4, 4)), (8, 8), "crop", 1.0, (255, 255, 255), "cpu", "float32")
L = token_count(ENCODING.schedule)

KEYS = ["00", "01", "02", "03", "04", "05", "06", "10", "11", "13", "30", "0", "1", "2", "3", "4"]
"""Keys of the rows that `source` gives, in order."""

SHARDS = ["00000-0000", "00000-0001", "00000-0002", "00001-0000", "00001-0001", "00002-0000", "00003-0000"]
SHARDS += ["00004-0000", "00005-0000"]
"""Names of the shards that `source` gives with three samples a shard."""


def picture(seed: int = 0, width: int = 12, height: int = 9, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    photo(seed, width, height).save(buffer, format)
    return buffer.getvalue()


def tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def table(path: Path, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def make_row(
    key: str,
    tokens: NDArray[Any],
    width: int = 12,
    height: int = 9,
    *,
    encoding: Encoding = ENCODING,
    label: int | None = None,
    caption: str | None = None,
    metadata: str | None = None,
) -> ImageTokens:
    image = encoding.image_info(key, width, height)
    made = ImageTokens.unflatten(tokens, encoding.schedule, encoding.model, image, encoding.scales)
    return replace(made, label=label, caption=caption, metadata=metadata)


def some_rows(count: int) -> list[ImageTokens]:
    rng = np.random.default_rng(0)
    return [
        make_row(f"k/{n}.x", rng.integers(0, 64, L).astype(np.uint16), 12 + n, label=n % 10, caption=f"c{n}")
        for n in range(count)
    ]


VIEWED = replace(ENCODING, views="random:3", seed=5, latent_channels=2)


def viewed_rows(count: int, encoding: Encoding = VIEWED) -> list[ImageTokens]:
    """Return rows of three views each, with latents."""
    latents = np.random.default_rng(1).normal(size=(count, 3, 2, 4, 4)).astype(np.float16)
    return [
        replace(
            row,
            view=View(v, (0.1 * v, 1 / 3, 8.5, 7), v == 1) if encoding.has_views else None,
            latent=latents[n, v] if encoding.latents else None,
        )
        for n, row in enumerate(some_rows(count))
        for v in range(encoding.rows_per_picture)
    ]


BUCKETED = replace(
    ENCODING,
    fit="bucket",
    buckets=(
        Bucket((8, 8), ENCODING.schedule),
        Bucket((4, 12), ((1, 1), (1, 3), (2, 6))),
        Bucket((12, 4), ((1, 1), (3, 1), (6, 2))),
        Bucket((16, 2), ((1, 1), (8, 1))),
    ),
)


def bucketed_rows() -> list[ImageTokens]:
    """Return 60 rows: 10 of 8x8, 30 of 4x12, 20 of 12x4 and none of 16x2, with the keys 0 to 59."""
    rng = np.random.default_rng(2)
    rows = []
    for n in range(60):
        encoding = BUCKETED.of_bucket(("4x12", "12x4", "8x8", "4x12", "12x4", "4x12")[n % 6])
        flat = rng.integers(0, 64, token_count(encoding.schedule)).astype(np.uint16)
        rows.append(make_row(str(n), flat, encoding=encoding, label=n % 7))
    return rows


def with_key(tokens: ImageTokens, key: str) -> ImageTokens:
    return replace(tokens, image=replace(tokens.image, source=key))


def as_dict(tokens: ImageTokens) -> dict[str, Any]:
    return {**vars(tokens), "scales": [scale.tolist() for scale in tokens.scales]}


def write_rows(
    path: Path, format: str, rows: Sequence[ImageTokens], encoding: Encoding = ENCODING
) -> HashedFile:
    with open(path, "wb") as file:
        stream = HashedFile(file)
        writer = open_writer(format, stream, encoding)
        for tokens in rows:
            writer.add(tokens)
        writer.close()
    return stream


def make_job(
    out: Path,
    small_tokenizer: vartok.Tokenizer,
    *,
    zoom: float = 1.0,
    views: str = "center",
    latents: bool = False,
    **changes: Any,
) -> Job:
    encoding = replace(
        Encoding(
            small_tokenizer.info, SMALL.patch_nums, (8, 8), "crop", zoom, (255, 255, 255), "cpu", "float32"
        ),
        views=views,
        latent_channels=SMALL.z_channels if latents else None,
    )
    values: dict[str, Any] = {"format": "parquet", "shard_size": 3, **changes}
    fit = Fit(size=(8, 8), zoom=zoom, views=Views.parse(views))
    return Job(out=out, encoding=encoding, fit=fit, **values)


def plan(job: Job, shards: Sequence[InputShard], **options: Any) -> list[InputTask]:
    prepare_folder(job)
    return plan_tasks(job, shards, **options)


def run(job: Job, source: Path, small_tokenizer: vartok.Tokenizer, **options: Any) -> list[ShardProgress]:
    shards = find_input_shards([str(source)], job.shard_size)
    tasks = plan(job, shards, **options)
    reports = list(run_here(job, tasks, small_tokenizer, batch_size=2, workers=2))
    write_summary(job, len(shards))
    return reports


def write_dataset(
    out: Path, shards: Sequence[Sequence[ImageTokens]], format: str = "parquet", encoding: Encoding = ENCODING
) -> Path:
    """Write a finished data set with these rows in its shards."""
    job = Job(out=out, format=format, shard_size=1000, encoding=encoding, fit=Fit(size=encoding.size))
    for path in (out / DATA, out / STATS):
        path.mkdir(parents=True)
    for n, rows in enumerate(shards):
        with open_shard(job, (n, 0)) as files:
            for start in range(0, len(rows), encoding.rows_per_picture):
                files.add(rows[start : start + encoding.rows_per_picture])
        counts = {name: sum(getattr(row, name) is not None for row in rows) for name in OPTIONAL_COLUMNS}
        stats = ShardStats(input=str(n), files=files.stats, failed=(), carried=counts, last=True)
        stats_path(out, (n, 0)).write_text(stats.to_json())
    write_summary(job, len(shards))
    return out


def class_sorted_shards() -> list[list[ImageTokens]]:
    """Rows of 100 classes, three of each, in order in five shards; a key is "class/number"."""
    row = some_rows(1)[0]
    rows = [with_key(row, f"{n // 3}/{n % 3}") for n in range(300)]
    return [rows[start : start + 60] for start in range(0, 300, 60)]


def shard_id(name: str) -> tuple[int, int]:
    index, part = name.split("-")
    return int(index), int(part)


def read_rows(job: Job, name: str) -> list[ImageTokens]:
    return list(read_shard(job.format, job.shard_path(shard_id(name)), job.encoding))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files but the row cache, which a loader adds."""
    return {name: (folder / name).read_bytes() for name in names(folder) if not name.startswith("cache/")}


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights") / "noise.safetensors"


@pytest.fixture(scope="session")
def small_tokenizer(small_weights: Path) -> vartok.Tokenizer:
    return noise_tokenizer(small_weights, SMALL)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of 7 and 4 samples, one of them broken; an empty tar; a tar that is cut; 5 files."""
    folder = tmp_path_factory.mktemp("source")
    tar(folder / "0.tar", [(f"0{i}.png", picture(i)) for i in range(7)])
    tar(folder / "1.tar", [(f"1{i}.png", picture(i) if i != 2 else b"junk") for i in range(4)])
    tar(folder / "2.tar", [])
    cut = tar(folder / "3.tar", [(f"3{i}.png", picture(30 + i)) for i in range(4)])
    cut.write_bytes(cut.read_bytes()[:1500])
    for n in range(5):
        save(folder / f"{n}.png", n, 12, 9)
    return folder


@pytest.fixture(scope="session")
def dataset(
    tmp_path_factory: pytest.TempPathFactory, source: Path, small_tokenizer: vartok.Tokenizer
) -> Path:
    """The data set of `source`, which an undisturbed run made; not to be changed."""
    out = tmp_path_factory.mktemp("dataset") / "out"
    run(make_job(out, small_tokenizer), source, small_tokenizer)
    return out


@pytest.fixture(scope="session")
def whole(dataset: Path) -> dict[str, bytes]:
    """The files of `dataset`."""
    return contents(dataset)
