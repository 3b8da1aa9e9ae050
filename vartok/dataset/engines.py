"""What takes input shards to the machines: this process, several of them, or Ray. The bytes are the same."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vartok.dataset.job import Job, Progress, Slot, Task, samples, write_shards
from vartok.errors import DatasetError, VartokError, VartokWarning, one_line
from vartok.images import Fit, Picture, configure_pillow
from vartok.operations import encode_pictures
from vartok.tokens import ImageTokens

if TYPE_CHECKING:
    from vartok.tokenizer import Tokenizer

CHUNK = 4
"""Batches that travel together between Ray's processes: more would be more memory, fewer leave cores idle."""

BLOCK = 1 << 24
"""Bytes of pixels, and of tokens, that Ray hands on at once; by itself it would gather 128 MiB."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a process gets its tokenizer, and how much it does at a time.

    Attributes:
        weights: the checkpoint, the shipped one if None.
        device: what it runs on.
        dtype: what it computes in.
        batch_size: pictures that go through the model together.
        workers: threads that read pictures.
        threads: of torch's, on a CPU; all if None.
        compile: whether the networks are compiled.
    """

    weights: Path | None
    device: str
    dtype: str
    batch_size: int
    workers: int
    threads: int | None = None
    compile: bool = False

    def load(self) -> Tokenizer:
        """Load the tokenizer into a process that has nothing else to do."""
        import torch

        from vartok.tokenizer import load

        configure_pillow()
        if self.threads:
            torch.set_num_threads(self.threads)
        return load(self.weights, device=self.device, dtype=self.dtype, compile=self.compile)


def run_here(
    job: Job, tasks: Iterable[Task], tokenizer: Tokenizer, *, batch_size: int, workers: int
) -> Generator[Progress, None, None]:
    """Work on tasks in this process.

    Raises:
        OSError: a file cannot be written.
    """
    with contextlib.closing(
        encode_pictures(
            tokenizer,
            samples(job, tasks),
            job.fit,
            schedule=job.encoding.schedule,
            batch_size=batch_size,
            workers=workers,
            group_key=lambda slot: slot.place,
        )
    ) as results:
        yield from write_shards(job, results)


def run_processes(
    job: Job, tasks: Sequence[Task], loadings: Sequence[Loading]
) -> Generator[Progress, None, None]:
    """Work on tasks in processes, one for each loading; a task goes to whoever asks first.

    A process that dies loses the shard it is at; others take up its tasks, each once more.

    Raises:
        DatasetError: all processes have died, or a task killed two.
        VartokError, OSError: what ended one of them.

    Warns:
        VartokWarning: a process has died; or what one of them warned of.
    """
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, _Worker] = {}
    try:
        with _deaf():
            for number, loading in enumerate(loadings):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, job, loading), daemon=True)
                process.start()
                theirs.close()
                workers[ours] = _Worker(number, process)
        yield from _deal_out(workers, deque(tasks))
    finally:
        for connection in workers:
            connection.close()  # tells it to end
        for worker in workers.values():
            worker.process.join(10)
            worker.process.kill()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes that start meanwhile never hear Ctrl-C: their parent does, and ends them."""
    if threading.current_thread() is not threading.main_thread():  # signals are not its own
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(eq=False)
class _Worker:
    """A process, as the one that started it sees it."""

    number: int
    process: Any
    tasks: dict[int, Task] = field(default_factory=dict)  # that it has and has not finished, by index
    waits: bool = False  # for an answer, with nothing left to do


def _deal_out(workers: dict[Connection, _Worker], tasks: deque[Task]) -> Iterator[Progress]:
    """Answer processes that ask for tasks, until all tasks are finished."""
    tried: set[int] = set()  # those that a process has died of
    alive = dict(workers)
    while alive:
        for connection, worker in alive.items():
            if worker.waits and tasks:
                _give(connection, worker, tasks.popleft())
        if not tasks and not any(worker.tasks for worker in alive.values()):
            return
        for ready in wait(list(alive)):
            assert isinstance(ready, Connection)
            worker = alive[ready]
            try:
                kind, content = ready.recv()
            except (EOFError, OSError):
                del alive[ready]
                lost = list(worker.tasks.values())
                worker.tasks.clear()
                warnings.warn(f"process {worker.number} has died", VartokWarning, stacklevel=2)
                if again := [task for task in lost[:1] if task.index in tried]:
                    raise DatasetError(
                        f"two processes have died of {again[0].shard.name}: see whether memory suffices"
                    ) from None
                tried.update(task.index for task in lost[:1])  # which it was at; others it only had
                tasks.extendleft(reversed(lost))
                continue
            if kind == "progress":
                if content.finished and content.last:
                    worker.tasks.pop(content.index, None)
                yield replace(content, worker=worker.number)
            elif kind == "next":
                _give(ready, worker, tasks.popleft() if tasks else None)
            elif kind == "idle":
                worker.tasks.clear()  # also those whose last shard was done before
                worker.waits = True
            elif kind == "note":
                warnings.warn(content, VartokWarning, stacklevel=2)
            else:
                raise content
    raise DatasetError("all processes have died: see whether memory suffices, and run again")


def _give(connection: Connection, worker: _Worker, task: Task | None) -> None:
    worker.waits = False
    if task is not None:
        worker.tasks[task.index] = task
    with contextlib.suppress(OSError):  # it died meanwhile, which is noticed where it is waited for
        connection.send(task)


def _serve(connection: Connection, job: Job, loading: Loading) -> None:
    """What a process does: ask for tasks, and tell how it gets on, until nobody answers."""

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, VartokWarning):
            connection.send(("note", str(message)))

    warnings.showwarning = show
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", VartokWarning)
    logging.lastResort = logging.NullHandler()

    def more() -> Iterator[Task]:
        connection.send(("next", None))
        while (task := connection.recv()) is not None:
            yield task
            connection.send(("next", None))

    try:
        tokenizer = loading.load()
        while True:
            connection.send(("idle", None))
            first = connection.recv()
            progress = run_here(
                job,
                itertools.chain([first], more()),
                tokenizer,
                batch_size=loading.batch_size,
                workers=loading.workers,
            )
            with contextlib.closing(progress):
                for step in progress:
                    connection.send(("progress", step))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except (VartokError, OSError) as error:
        with contextlib.suppress(OSError):
            connection.send(("error", error))


@contextlib.contextmanager
def ray_cluster(address: str | None = None) -> Iterator[int]:
    """Connect this process with a Ray cluster, for `run_ray`.

    Args:
        address: of the cluster; one is started on this machine if None.

    Yields:
        How many GPUs it has.

    Raises:
        DatasetError: there is none.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"at {address}" if address else "could be started here"
        raise DatasetError(f"no Ray cluster {where}: {one_line(error)}") from None
    try:
        yield int(ray.cluster_resources().get("GPU", 0))
    finally:
        ray.shutdown()


def run_ray(job: Job, tasks: Sequence[Task], loading: Loading) -> Generator[Progress, None, None]:
    """Work on tasks with Ray Data: its tasks read pictures, its actors hold the model, this process writes.

    Tokens are so little that one process can write what many machines make. Ray starts again what dies
    of the rest. Within `ray_cluster`.

    Args:
        job: what is made.
        tasks: what is left to do.
        loading: of every actor, each of which has a GPU, or where there is none the cores of a machine.

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
    context.target_max_block_size = BLOCK
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0)) if loading.device.startswith("cuda") else 0
    nodes = [node for node in ray.nodes() if node["Alive"]]
    cores = int(max(node["Resources"].get("CPU", 1) for node in nodes))
    items = [{"task": pickle.dumps(task)} for task in tasks]
    chunks = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(
            functools.partial(_read_chunks, job=job, size=CHUNK * loading.batch_size),
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
            num_cpus=1 if gpus else 0.75 * cores,  # what is left reads
            fn_constructor_kwargs={"job": job, "loading": replace(loading, threads=None if gpus else cores)},
        )
    )

    def results() -> Iterator[tuple[Slot, ImageTokens | VartokError]]:
        for row in chunks.iter_rows():
            yield from pickle.loads(row["chunk"])

    try:
        yield from write_shards(job, results())
    except ray.exceptions.RayError as error:
        raise DatasetError(f"Ray gave up: {str(error).strip().splitlines()[-1]}") from error


def _read_chunks(batch: dict[str, Any], *, job: Job, size: int) -> Iterator[dict[str, list[bytes]]]:
    """Read the pictures of a task, some of one shard at a time: what Ray's tasks do."""
    configure_pillow()
    for item in batch["task"]:
        stream = samples(job, [pickle.loads(item)])
        for _, run in itertools.groupby(stream, lambda entry: entry[0].place):
            while chunk := list(itertools.islice(run, size)):
                yield {"chunk": [pickle.dumps([_read(job.fit, *entry) for entry in chunk])]}


def _read(
    fit: Fit, slot: Slot, name: str, read: Callable[[Fit], Picture]
) -> tuple[Slot, str, Picture | VartokError]:
    picture: Picture | VartokError
    try:
        picture = read(fit)
    except VartokError as error:
        picture = error
    return slot, name, picture


class _Encoder:
    """What Ray's actors do: encode pictures that were read."""

    def __init__(self, job: Job, loading: Loading) -> None:
        self._job = job
        self._loading = loading
        self._tokenizer = loading.load()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        found = []
        for chunk in batch["chunk"]:
            entries = [(slot, name, _Picture(picture)) for slot, name, picture in pickle.loads(chunk)]
            results = encode_pictures(
                self._tokenizer,
                entries,
                self._job.fit,
                schedule=self._job.encoding.schedule,
                batch_size=self._loading.batch_size,
                workers=self._loading.workers,
                group_key=lambda slot: slot.place,
            )
            found.append(pickle.dumps(list(results)))
        return {"chunk": found}


@dataclass(frozen=True)
class _Picture:
    """A picture that was read elsewhere, or why it could not be."""

    found: Picture | VartokError

    def __call__(self, fit: Fit) -> Picture:
        if isinstance(self.found, VartokError):
            raise self.found
        return self.found
