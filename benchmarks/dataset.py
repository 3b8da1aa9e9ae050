"""Speed of `vartok dataset`, compared with the model alone and with its own steps.

    python benchmarks/dataset.py TARS... [--ray]

Figures are medians of `ROUNDS` runs on the first tar, in alternating order. With --ray, also the time of one
run on all tars by each of: one process, two processes, and Ray.
"""

from __future__ import annotations

import io
import itertools
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import vartok
from vartok.dataset.encoding import Encoding
from vartok.dataset.engines import run_here
from vartok.dataset.formats import open_writer
from vartok.dataset.plan import Job, plan_tasks
from vartok.dataset.shard_files import HashedFile
from vartok.images import Fit, Picture
from vartok.operations import encode_pictures
from vartok.parallel import map_ordered
from vartok.sources import Sample, find_input_shards
from vartok.tokens import ImageTokens

BATCH, WORKERS = 16, 3
PICTURES = 320
ROUNDS = 10


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cut_tar(source: Path, target: Path, count: int) -> None:
    """Copy the first `count` files of a tar into a new tar."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        files = (member for member in old if member.isfile())
        for member in itertools.islice(files, count):
            new.addfile(member, old.extractfile(member))


def main() -> None:
    tars = [arg for arg in sys.argv[1:] if not arg.startswith("-")]
    tokenizer = vartok.load(device="cpu")
    fit = Fit(size=tokenizer.config.image_size)
    encoding = Encoding(
        tokenizer.info, tokenizer.config.patch_nums, fit.size, fit.mode, 1.0, fit.background, "cpu", "float32"
    )
    scratch = tempfile.TemporaryDirectory()
    first = Path(scratch.name, "first.tar")  # a cut tar: reading ahead of more pictures would count
    cut_tar(Path(tars[0]), first, PICTURES)
    (shard,) = find_input_shards([str(first)], PICTURES)
    samples = list(shard.samples())
    pictures = [sample.read(fit) for sample in samples]
    tokens = np.random.default_rng(0).integers(0, 4096, (len(samples), 680)).astype(np.uint16)
    rows = [
        ImageTokens.unflatten(
            flat, encoding.schedule, encoding.model, encoding.image_info(sample.key, 256, 256)
        )
        for sample, flat in zip(samples, tokens, strict=True)
    ]

    def model() -> None:
        """Encode pixels in memory, with as many threads as `vartok dataset`."""

        def at_hand(picture: Picture) -> Callable[[Fit], Picture]:
            return lambda _: picture

        entries = [(n, "", at_hand(picture)) for n, picture in enumerate(pictures)]
        assert len(list(encode_pictures(tokenizer, entries, fit, batch_size=BATCH, workers=WORKERS))) == len(
            samples
        )

    def whole() -> None:
        """Make a shard from the tar, with a tokenizer that is loaded already."""
        with tempfile.TemporaryDirectory() as folder:
            job = Job(out=Path(folder), format="parquet", shard_size=PICTURES, encoding=encoding, fit=fit)
            tasks = plan_tasks(job, [shard])
            for _ in run_here(job, tasks, tokenizer, batch_size=BATCH, workers=WORKERS):
                pass

    def list_samples() -> None:
        """Read the tar without decoding its pictures."""
        list(shard.samples())

    def read() -> None:
        """Decode and fit the pictures, in `WORKERS` threads."""

        def one(sample: Sample) -> Picture:
            return sample.read(fit)

        list(map_ordered(one, samples, workers=WORKERS, limit=BATCH + WORKERS))

    def write() -> None:
        """Write the rows to a Parquet shard in memory."""
        stream = HashedFile(io.BytesIO())
        writer = open_writer("parquet", stream, encoding)
        for row in rows:
            writer.add(row)
        writer.close()

    parts = {"model": model, "whole": whole, "tar": list_samples, "read": read, "write": write}
    for work in parts.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(ROUNDS):  # in alternating order, since the speed of machines drifts
        for name in list(parts)[:: 1 if number % 2 else -1]:
            found[name].append(seconds(parts[name]))
    source, threads = Path(tars[0]).name, torch.get_num_threads()
    print(f"{len(samples)} pictures of {source}, {threads} threads, medians of {ROUNDS}")
    for name, times in found.items():
        median = statistics.median(times)
        each = median / len(samples)
        print(f"  {name:6} {1 / each:10,.1f} pictures/s   {each * 1e3:7.3f} ms a picture")
    ratio = statistics.median(m / w for m, w in zip(found["model"], found["whole"], strict=True))
    print(f"  whole / model: {ratio:.1%}")

    if "--ray" in sys.argv:
        for name, options in {"one": [], "two": ["--processes", "2"], "ray": ["--engine", "ray"]}.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [
                    sys.executable,
                    "-m",
                    "vartok",
                    "dataset",
                    *tars,
                    "-o",
                    f"{folder}/out",
                    "-q",
                    "--json",
                ]
                taken = seconds(lambda: subprocess.run([*command, *options], check=True))  # noqa: B023
                print(f"  {name}: {taken:.1f} s with its start")


if __name__ == "__main__":
    main()
