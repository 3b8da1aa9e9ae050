"""The Ray engine: tasks of Ray Data read pictures, its actors encode them, and this process writes shards.

Tokens are so small that one process can write those of many machines. Ray restarts tasks and actors that
die.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vartok.dataset.engines import WorkerConfig
from vartok.dataset.plan import InputTask, Job, SampleSlot, pending_samples
from vartok.dataset.write import SampleResult, ShardProgress, write_shards
from vartok.errors import DatasetError, VartokError, one_line
from vartok.images import Fit, Picture, configure_pillow
from vartok.operations import encode_views

BATCHES_PER_CHUNK = 4
"""Batches per chunk, the unit sent between Ray's processes: more take memory, fewer leave cores idle."""

BLOCK_BYTES = 1 << 24
"""Size in bytes that Ray Data aims at for a block of chunks; its default is 128 MiB."""

LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
"""Environment variable of Ray's log level. Unless it is set, `ray_cluster` suppresses Ray's messages."""


@contextlib.contextmanager
def ray_cluster(address: str | None = None) -> Iterator[int]:
    """Connect this process to a Ray cluster, for `run_ray`.

    Args:
        address: address of the cluster, such as "auto" or "ray://host:10001". If None, a cluster that Ray
            finds here (RAY_ADDRESS or a running one), or a new one on this machine.

    Yields:
        The number of GPUs in the cluster.

    Raises:
        DatasetError: the cluster cannot be reached or started.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    quiet = LOG_LEVEL not in os.environ
    if quiet:
        os.environ[LOG_LEVEL] = "fatal"
    try:
        with _keep_sigterm(), _silence_stderr() if quiet else contextlib.nullcontext():
            ray.init(
                address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
            )
        yield int(ray.cluster_resources().get("GPU", 0))
    except (ConnectionError, ValueError, RuntimeError) as error:
        if ray.is_initialized():  # the error comes from the caller's block
            raise
        where = f"at {address}" if address else "could be started here"
        hint = "check `address`" if address else None
        raise DatasetError(f"no Ray cluster {where}: {one_line(error)}", hint=hint) from None
    finally:
        ray.shutdown()
        if quiet:
            del os.environ[LOG_LEVEL]


@contextlib.contextmanager
def _keep_sigterm() -> Iterator[None]:
    """Restore the handler of SIGTERM after the block, since `ray.init` replaces it."""
    if threading.current_thread() is not threading.main_thread():  # in other threads Ray sets no handler
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _silence_stderr() -> Iterator[None]:
    """Discard stderr during the block, also that of C++, since `ray.init` writes messages from there."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def run_ray(
    job: Job, tasks: Sequence[InputTask], worker: WorkerConfig
) -> Generator[ShardProgress, None, None]:
    """Run tasks with Ray Data, inside `ray_cluster`.

    Args:
        job: the data set.
        tasks: input shards with work left, in order.
        worker: configuration of every actor. An actor gets one GPU, or without GPUs three quarters of
            the cores of the largest machine.

    Yields:
        Reports on the shards.

    Raises:
        DatasetError: Ray ended the run, for instance because an actor failed too often.
        OSError: a file cannot be written.
    """
    import ray.data

    if not tasks:
        return
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0)) if worker.device.startswith("cuda") else 0
    nodes = [node for node in ray.nodes() if node["Alive"]]
    cores = int(max(node["Resources"].get("CPU", 1) for node in nodes))
    config = replace(worker, threads=None if gpus else cores)
    chunk_size = max(1, BATCHES_PER_CHUNK * worker.batch_size // job.encoding.rows_per_picture)
    items = [{"task": pickle.dumps(task)} for task in tasks]
    chunks = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(
            functools.partial(_read_chunks, job=job, size=chunk_size),
            batch_size=1,
            batch_format="numpy",
            num_cpus=1 if gpus else min(0.5, 0.25 * cores),
        )
        .map_batches(
            _Encoder,
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=gpus or len(nodes)),
            num_gpus=1 if gpus else None,
            num_cpus=1 if gpus else 0.75 * cores,  # the other cores read pictures
            fn_constructor_kwargs={"job": job, "config": config},
        )
    )

    def results() -> Iterator[SampleResult]:
        for row in chunks.iter_rows():
            yield from pickle.loads(row["chunk"])

    try:
        yield from write_shards(job, results())
    except ray.exceptions.RayError as error:
        raise DatasetError(
            f"Ray ended the run: {str(error).strip().splitlines()[-1]}",
            hint="run the same build again",
        ) from error


def _read_chunks(batch: dict[str, Any], *, job: Job, size: int) -> Iterator[dict[str, list[bytes]]]:
    """Read the pictures of tasks; runs in a Ray task.

    Args:
        batch: "task": pickled `InputTask`s.
        job: the data set.
        size: largest number of samples in a chunk; a chunk holds samples of one shard.

    Yields:
        "chunk": one pickled list of (slot, key, picture or error).
    """
    configure_pillow()
    for item in batch["task"]:
        samples = pending_samples(job, [pickle.loads(item)])
        for _, run in itertools.groupby(samples, lambda entry: entry[0].shard):
            while chunk := list(itertools.islice(run, size)):
                yield {"chunk": [pickle.dumps([_read_picture(job.fit, *entry) for entry in chunk])]}


def _read_picture(
    fit: Fit, slot: SampleSlot, key: str, read: Callable[[Fit], Picture]
) -> tuple[SampleSlot, str, Picture | VartokError]:
    try:
        return slot, key, read(fit)
    except VartokError as error:
        return slot, key, error


class _Encoder:
    """Encodes the chunks of `_read_chunks` in a Ray actor, into chunks of pickled `SampleResult`s."""

    def __init__(self, job: Job, config: WorkerConfig) -> None:
        self._job = job
        self._config = config
        self._tokenizer = config.load_tokenizer()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        encoded = []
        for chunk in batch["chunk"]:
            entries = [(slot, key, _LoadedPicture(picture)) for slot, key, picture in pickle.loads(chunk)]
            results = encode_views(
                self._tokenizer,
                entries,
                self._job.fit,
                schedule=self._job.encoding.schedule,
                scales=self._job.encoding.scales,
                latents=self._job.encoding.latents,
                batch_size=self._config.batch_size,
                workers=self._config.workers,
                group_key=lambda slot: slot.shard,
            )
            encoded.append(pickle.dumps(list(results)))
        return {"chunk": encoded}


@dataclass(frozen=True)
class _LoadedPicture:
    """A read function of a sample: returns the picture that a Ray task has read, or raises its error."""

    result: Picture | VartokError

    def __call__(self, fit: Fit) -> Picture:
        if isinstance(self.result, VartokError):
            raise self.result
        return self.result
