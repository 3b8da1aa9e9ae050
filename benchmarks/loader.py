"""Speed and memory of `TokenDataset`, `TokenStream` and exports, on made-up tokens.

    python benchmarks/loader.py [ROWS]

The data set has ROWS rows of 680 tokens, by default a million, in shards of 10,000, all of them links to
one file; its row cache takes 1.4 kB a row. Loaders take turns, and the figures are medians of `ROUNDS`
rounds. Processor time is that of this process and its workers together, which other work on the machine
disturbs less. Memory is what this process alone uses, without mapped files.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from timing import machine, table
from torch.utils.data import DataLoader

import vartok
from vartok.dataset import TokenDataset, TokenStream, export
from vartok.dataset.encoding import Encoding
from vartok.dataset.formats import open_writer
from vartok.dataset.shard_files import HashedFile
from vartok.tokens import ImageTokens

SHARD = 10_000
BATCH, WORKERS = 256, 2
ROUNDS = 3
ROWS_A_ROUND = 500_000
STREAMED = 30_000
EXPORTED = 20_000


def make_dataset(out: Path, rows: int) -> Path:
    """Write a finished data set whose shards are links to one file."""
    tokenizer = vartok.load(device="cpu")
    schedule, size = tokenizer.config.patch_nums, tokenizer.config.image_size
    encoding = Encoding(tokenizer.info, schedule, size, "crop", 1.0, (255, 255, 255), "cpu", "float32")
    rng = np.random.default_rng(0)
    (out / "data").mkdir(parents=True)
    first = out / "data/00000-0000.parquet"
    with open(first, "wb") as file:
        stream = HashedFile(file)
        writer = open_writer("parquet", stream, encoding)
        for n in range(SHARD):
            flat = rng.integers(0, tokenizer.config.vocab_size, 680).astype(np.uint16)
            row = ImageTokens.unflatten(
                flat, schedule, encoding.model, encoding.image_info(f"{n:08}", 500, 375)
            )
            writer.add(dataclasses.replace(row, label=n % 1000))
        writer.close()
    shards = []
    for n in range(rows // SHARD):
        name = f"data/{n:05}-0000.parquet"
        if n:
            os.link(first, out / name)
        shards.append({"name": name, "pictures": SHARD, "bytes": stream.size, "sha256": stream.sha256})
    about = {"format": "vartok.dataset", "version": 1, **encoding.to_dict(), "files": "parquet"}
    about |= {"complete": True, "carried": {"label": rows}, "shards": shards}
    (out / "dataset.json").write_text(json.dumps(about))
    return out


class Measure:
    """Time, processor time with that of ended workers, and growth of memory of a block."""

    def __enter__(self) -> Measure:
        self._memory, self._wall, self._busy = self._now()
        self.peak = self.seconds = self.busy = 0.0
        return self

    def __exit__(self, *_: object) -> None:
        self.sample()
        _used, wall, busy = self._now()
        self.seconds = wall - self._wall
        self.busy = busy - self._busy

    def sample(self, *_: int) -> None:
        """Take note of the memory that is used now."""
        self.peak = max(self.peak, self._now()[0] - self._memory)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        lines = Path("/proc/self/status").read_text().splitlines()
        (used,) = (int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon"))
        return used, time.perf_counter(), sum(os.times()[:4], 0.0)


def read(loader: DataLoader[dict[str, Any]], rows: int) -> None:
    """Read rows, in whole batches; the workers end with the iterator."""
    for _ in itertools.islice(loader, rows // BATCH):
        pass


def line(name: str, rows: int, measures: list[Measure]) -> tuple[str, str, str, str]:
    """Return a line of the table: the medians of measures of the same rows."""
    seconds, busy = (statistics.median(getattr(m, kind) for m in measures) for kind in ("seconds", "busy"))
    peak = max(measure.peak for measure in measures)
    return name, f"{rows / seconds:,.0f}", f"{1e6 * busy / rows:.1f}", f"{peak:+.0f}"


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    warnings.simplefilter("ignore")
    found: list[tuple[str, str, str, str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        out = make_dataset(Path(scratch, "set"), rows)
        with Measure() as first:
            dataset = TokenDataset(out)
        found.append(line(f"first open of {rows:,} rows", rows, [first]))
        again = []
        for _ in range(ROUNDS):
            with Measure() as measure:
                dataset = TokenDataset(out)
            again.append(measure)
        opened = statistics.median(measure.seconds for measure in again)

        loaders: dict[str, tuple[DataLoader[dict[str, Any]], int]] = {
            f"TokenDataset, {workers} workers": (
                DataLoader(dataset, BATCH, shuffle=True, num_workers=workers),
                min(rows, ROWS_A_ROUND),
            )
            for workers in (0, WORKERS)
        }
        stream = DataLoader(TokenStream(out, shuffle=True), BATCH, num_workers=WORKERS)
        loaders[f"TokenStream, {WORKERS} workers"] = (stream, min(rows, STREAMED))
        measures: dict[str, list[Measure]] = {name: [] for name in loaders}
        for _, (name, (loader, count)) in itertools.product(range(ROUNDS), loaders.items()):
            with Measure() as measure:
                read(loader, count)
            measures[name].append(measure)
        found += [line(name, count, measures[name]) for name, (_, count) in loaders.items()]

        few = make_dataset(Path(scratch, "few"), EXPORTED)
        for to in ("npy", "bin", "jsonl", "llamagen"):
            with Measure() as measure:
                export(few, Path(scratch, to), to, progress=measure.sample)
            found.append(line(f"export to {to}", EXPORTED, [measure]))
    print(f"{machine()}; load {os.getloadavg()[1]:.0f}\n")
    print(f"A data set of {rows:,} rows that was opened before opens in {1e3 * opened:.1f} ms.\n")
    print(table(["loading and export", "rows/s", "processor time, us a row", "memory, MB"], found))


if __name__ == "__main__":
    main()
