"""The Ray engine: tasks of Ray Data read pictures, its actors encode them, and this process writes shards.

Tokens are so small that one process can write those of many machines. Ray restarts tasks and actors that
die.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vartok.dataset.engines import WorkerConfig
from vartok.dataset.plan import InputTask, Job, SampleSlot, pending_samples
from vartok.dataset.write import SampleResult, ShardProgress, write_shards
from vartok.errors import DatasetError, VartokError, one_line
from vartok.images import Fit, Picture, configure_pillow
from vartok.operations import default_workers, encode_views

BATCHES_PER_CHUNK = 4
"""Batches per chunk, the unit sent between Ray's processes: more take memory, fewer leave cores idle."""

BLOCK_BYTES = 1 << 24
"""Size in bytes that Ray Data aims at for a block of chunks; its default is 128 MiB."""

READER_CPUS = 0.5
"""CPUs that a task that reads pictures asks of a cluster without GPUs, where it waits most of the time."""

MAX_ACTOR_CPUS = 6
"""Largest number of CPUs that an actor asks for: `MAX_WORKERS` threads, as its reserve is added to them."""

LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
"""Environment variable of Ray's log level. Unless it is set, `ray_cluster` suppresses Ray's messages."""


@contextlib.contextmanager
def ray_cluster(address: str | None = None, device: str = "auto") -> Iterator[str]:
    """Connect this process to a Ray cluster, for `run_ray`.

    Args:
        address: address of the cluster, such as "auto" or "ray://host:10001". If None, a cluster that Ray
            finds here (RAY_ADDRESS or a running one), or a new one on this machine.
        device: torch device of the actors; "auto" takes CUDA if the cluster has a GPU, else the CPU.

    Yields:
        The device.

    Raises:
        DatasetError: the cluster cannot be reached or started, or lacks what `request_resources` needs.
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
        nodes = _find_nodes()
        if device == "auto":
            device = "cuda" if any(node.get("GPU", 0) >= 1 for node in nodes) else "cpu"
        request_resources(nodes, device)
        yield device
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


@dataclass(frozen=True)
class ResourceRequests:
    """Resources that tasks and actors ask of a cluster.

    All actors ask for the same, so that one whose machine is lost can start on another.

    Attributes:
        actors: number of actors, which encode.
        actor_cpus: CPUs of an actor.
        actor_gpus: GPUs of an actor.
        threads: threads of an actor; None with GPUs.
        readers: largest number of tasks at once that read; None for as many as there are CPUs.
        reader_cpus: CPUs of a task that reads.
    """

    actors: int
    actor_cpus: float
    actor_gpus: int
    threads: int | None
    readers: int | None
    reader_cpus: float


def request_resources(nodes: Sequence[Mapping[str, float]], device: str) -> ResourceRequests:
    """Divide a cluster's machines, which may differ, among the tasks and actors of `run_ray`.

    On "cuda" an actor has a GPU and asks for no CPU, so that tasks can read on machines with as many GPUs as
    CPUs. Elsewhere actors get three quarters of each machine's CPUs, and leave half a CPU at least to tasks.
    An actor fits the smallest machine, unless this is much smaller than the largest: it then only reads.

    Args:
        nodes: "CPU" and "GPU" of each machine, as Ray counts them; a missing one is 0.
        device: device of the actors.

    Raises:
        DatasetError: the cluster has no GPU for "cuda", or no CPU.
    """
    cpus = [node.get("CPU", 0) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus:
        raise DatasetError("the Ray cluster has no CPU", hint="start a node with one, by `ray start`")
    if device.startswith("cuda"):
        gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        if not gpus:
            raise DatasetError("the Ray cluster has no GPU", hint="set `device` to cpu")
        return ResourceRequests(gpus, actor_cpus=0, actor_gpus=1, threads=None, readers=None, reader_cpus=1)
    shares = [count - max(READER_CPUS, count / 4) for count in cpus]
    size = min(MAX_ACTOR_CPUS, max(min(shares), min(MAX_ACTOR_CPUS, max(shares)) / 4))
    actors = sum(int(share / size) for share in shares)
    return ResourceRequests(
        actors,
        actor_cpus=size,
        actor_gpus=0,
        threads=math.ceil(size * 4 / 3),  # reading leaves most of its quarter unused
        readers=int((sum(cpus) - actors * size) / READER_CPUS),
        reader_cpus=READER_CPUS,
    )


def _find_nodes() -> list[Mapping[str, float]]:
    """Return the resources of the cluster's machines, as `request_resources` takes them."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def run_ray(
    job: Job, tasks: Sequence[InputTask], worker: WorkerConfig, workers: int | None = None
) -> Generator[ShardProgress, None, None]:
    """Run tasks with Ray Data, inside `ray_cluster`.

    Args:
        job: the data set.
        tasks: input shards with work left, in order.
        worker: configuration of every actor, without its threads; `request_resources` chooses these.
        workers: threads of an actor that prepare pictures and on a CPU encode; if None, one more than the
            CPUs that the actor may use, at most 8.

    Yields:
        Reports on the shards.

    Raises:
        DatasetError: the cluster lacks a GPU or a CPU, or Ray ended the run, for instance because an actor
            failed too often.
        OSError: a file cannot be written.
    """
    import ray.data

    if not tasks:
        return
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    found = request_resources(_find_nodes(), worker.device)
    threads = default_workers(workers, processors=found.threads or 1)
    config = replace(worker, threads=found.threads, workers=threads)
    chunk_size = max(1, BATCHES_PER_CHUNK * worker.batch_size // job.encoding.rows_per_picture)
    items = [{"task": pickle.dumps(task)} for task in tasks]
    chunks = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(
            functools.partial(_read_chunks, job=job, size=chunk_size),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.TaskPoolStrategy(size=found.readers),
            num_cpus=found.reader_cpus,
        )
        .map_batches(
            _Encoder,
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=found.actors),
            num_cpus=found.actor_cpus,
            num_gpus=found.actor_gpus or None,
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
