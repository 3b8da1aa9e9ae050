"""The Ray engine: Ray Data's tasks read pictures, its actors hold the model, and this process writes.

Tokens are so small that one process can write the output of many machines. Ray restarts tasks and actors
that die.
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
from vartok.operations import encode_pictures

BATCHES_PER_CHUNK = 4
"""Batches that are sent together between Ray's processes: more take memory, fewer leave cores idle."""

BLOCK_BYTES = 1 << 24
"""Bytes of pixels, or of tokens, in a block of Ray Data, whose default is 128 MiB."""

LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
"""The environment variable for the messages of Ray's processes. If the user has set it, stderr is kept."""


@contextlib.contextmanager
def ray_cluster(address: str | None = None) -> Iterator[int]:
    """Connect this process to a Ray cluster, for `run_ray`.

    Args:
        address: address of the cluster; one is started on this machine if None.

    Yields:
        The number of GPUs in the cluster.

    Raises:
        DatasetError: there is no such cluster.
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
        if ray.is_initialized():  # the error is the caller's
            raise
        where = f"at {address}" if address else "could be started here"
        raise DatasetError(f"no Ray cluster {where}: {one_line(error)}") from None
    finally:
        ray.shutdown()
        if quiet:
            del os.environ[LOG_LEVEL]


@contextlib.contextmanager
def _keep_sigterm() -> Iterator[None]:
    """Restore the handler of SIGTERM after the block, as Ray's start replaces it."""
    if threading.current_thread() is not threading.main_thread():  # Ray sets none there either
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _silence_stderr() -> Iterator[None]:
    """Discard what is written to the file descriptor of stderr, as Ray's start writes to it from C++ too."""
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
        worker: configuration of every actor. An actor has a GPU; without GPUs, most cores of a machine.

    Raises:
        DatasetError: Ray gave up.
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
    items = [{"task": pickle.dumps(task)} for task in tasks]
    chunks = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(
            functools.partial(_read_chunks, job=job, size=BATCHES_PER_CHUNK * worker.batch_size),
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
            num_cpus=1 if gpus else 0.75 * cores,  # the rest reads pictures
            fn_constructor_kwargs={"job": job, "config": config},
        )
    )

    def results() -> Iterator[SampleResult]:
        for row in chunks.iter_rows():
            yield from pickle.loads(row["chunk"])

    try:
        yield from write_shards(job, results())
    except ray.exceptions.RayError as error:
        raise DatasetError(f"Ray gave up: {str(error).strip().splitlines()[-1]}") from error


def _read_chunks(batch: dict[str, Any], *, job: Job, size: int) -> Iterator[dict[str, list[bytes]]]:
    """Read the pictures of a batch of tasks, in a Ray task; a chunk holds up to `size` samples of a shard."""
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
    """Encodes chunks of pictures, in a Ray actor."""

    def __init__(self, job: Job, config: WorkerConfig) -> None:
        self._job = job
        self._config = config
        self._tokenizer = config.load_tokenizer()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        encoded = []
        for chunk in batch["chunk"]:
            entries = [(slot, key, _LoadedPicture(picture)) for slot, key, picture in pickle.loads(chunk)]
            results = encode_pictures(
                self._tokenizer,
                entries,
                self._job.fit,
                schedule=self._job.encoding.schedule,
                batch_size=self._config.batch_size,
                workers=self._config.workers,
                group_key=lambda slot: slot.shard,
            )
            encoded.append(pickle.dumps(list(results)))
        return {"chunk": encoded}


@dataclass(frozen=True)
class _LoadedPicture:
    """A reader that returns the picture that a Ray task has read, or raises the error of that task."""

    result: Picture | VartokError

    def __call__(self, fit: Fit) -> Picture:
        if isinstance(self.result, VartokError):
            raise self.result
        return self.result
