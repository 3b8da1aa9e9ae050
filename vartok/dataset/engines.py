"""The local engines: this process, or several worker processes. Shards have the same bytes either way."""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import signal
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vartok.dataset.plan import InputTask, Job, pending_samples
from vartok.dataset.write import ShardProgress, write_shards
from vartok.errors import DatasetError, VartokError, VartokWarning, warn
from vartok.images import configure_pillow
from vartok.operations import encode_views
from vartok.processors import available_processors
from vartok.stopping import stop

if TYPE_CHECKING:
    from vartok.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Settings of a worker process, or of an actor of Ray: its tokenizer, batch size and threads.

    Attributes:
        weights: the checkpoint; the shipped one if None.
        device: torch device that the encoder runs on.
        dtype: dtype of the encoder.
        batch_size: views per batch; a picture has one by default.
        workers: threads that read pictures; on a CPU they also encode.
        threads: torch's number of threads; torch's default if None.
        compile: compile the networks with torch.compile.
    """

    weights: str | Path | None
    device: str
    dtype: str
    batch_size: int
    workers: int
    threads: int | None = None
    compile: bool = False

    def load_tokenizer(self) -> Tokenizer:
        """Load the tokenizer. Configure Pillow and torch's number of threads for the whole process."""
        import torch

        from vartok.loading import load

        configure_pillow()
        if self.threads:
            torch.set_num_threads(self.threads)
        return load(self.weights, device=self.device, dtype=self.dtype, compile=self.compile)


def choose_processes(device: str, processes: int | None) -> tuple[str, int]:
    """Choose the device and the number of processes.

    With several processes, GPUs are counted without a CUDA context, which would take memory of the first GPU
    as long as the run lasts: the processes themselves check that torch can use them.

    Args:
        device: torch device, or "auto": CUDA, then MPS, then the CPU.
        processes: number of processes; if None, one for every GPU on "cuda", else 1.

    Returns:
        (device, number of processes).

    Raises:
        DeviceError: this machine does not have the device.
    """
    from vartok.runtime import choose_device

    gpus = _count_gpus() if device.startswith(("auto", "cuda")) else 0
    count = processes or (max(1, gpus) if device in ("auto", "cuda") else 1)
    if gpus and count > 1 and device in {"auto", "cuda", *(f"cuda:{number}" for number in range(gpus))}:
        return "cuda" if device == "auto" else device, count
    return str(choose_device(device)), count


def _count_gpus() -> int:
    """Count CUDA devices; torch asks NVIDIA's management library, which opens no context."""
    import torch

    return torch.cuda.device_count()


def share_machine(config: WorkerConfig, count: int) -> list[WorkerConfig]:
    """Divide the machine among `count` processes.

    Returns:
        One configuration per process. On "cuda" the processes get the GPUs in turn; on "cpu" each gets an
        equal share of torch's threads, or of `available_processors` if these are fewer; on another device all
        are `config`.
    """
    import torch

    if config.device == "cpu":
        threads = min(torch.get_num_threads(), available_processors())
        return [replace(config, threads=max(1, threads // count))] * count
    if config.device == "cuda":
        gpus = max(1, _count_gpus())
        return [replace(config, device=f"cuda:{number % gpus}") for number in range(count)]
    return [config] * count


def run_here(
    job: Job, tasks: Iterable[InputTask], tokenizer: Tokenizer, *, batch_size: int, workers: int
) -> Generator[ShardProgress, None, None]:
    """Run tasks in this process.

    Args:
        job: the data set.
        tasks: input shards with work left, in order.
        tokenizer: a tokenizer of the checkpoint that `job.encoding` names.
        batch_size: views per batch; a picture has one by default.
        workers: threads that read pictures; on a CPU they also encode.

    Yields:
        Reports on the shards.

    Raises:
        OSError: a file cannot be written.
    """
    with contextlib.closing(
        encode_views(
            tokenizer,
            pending_samples(job, tasks),
            job.fit,
            schedule=job.encoding.schedule,
            scales=job.encoding.scales,
            latents=job.encoding.latents,
            batch_size=batch_size,
            workers=workers,
            group_key=lambda slot: slot.shard,
        )
    ) as results:
        yield from write_shards(job, results)


def run_processes(
    job: Job, tasks: Sequence[InputTask], workers: Sequence[WorkerConfig]
) -> Generator[ShardProgress, None, None]:
    """Run tasks in several processes, which take the next task when they are free.

    If a process dies, the others make its unfinished shards again. If a second process dies during the same
    task, the run ends.

    Args:
        job: the data set.
        tasks: input shards with work left, in order.
        workers: one configuration per process.

    Yields:
        Reports on the shards, as the processes send them.

    Raises:
        DatasetError: all processes died, or two died during the same task.
        VartokError, OSError: raised in a process.

    Warns:
        VartokWarning: a process died, or itself warned with a VartokWarning.
    """
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, _Process] = {}

    def kill() -> None:
        for worker in processes.values():
            worker.process.kill()

    with stop.cleaning_up(kill):
        try:
            with _blocked_signals():
                for number, config in enumerate(workers):
                    ours, theirs = context.Pipe()
                    process = context.Process(target=_serve, args=(theirs, job, config), daemon=True)
                    process.start()
                    theirs.close()
                    processes[ours] = _Process(number, process)
            yield from _dispatch(processes, deque(tasks))
        finally:
            for connection in processes:
                connection.close()  # tells the process to end
            for worker in processes.values():
                worker.process.join(10 if worker.tasks else 0)  # without a task it has nothing to clean up
                worker.process.kill()
                worker.process.join()


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Start processes in the block that never get Ctrl-C or SIGTERM: `run_processes` ends them itself.

    This process gets a signal of that time when the block ends.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(eq=False)
class _Process:
    """A worker process, as its parent sees it.

    Attributes:
        number: number of the process, from 0.
        process: the `multiprocessing` process.
        tasks: unfinished tasks that were sent to the process, by index.
        idle: True if the process waits for a task.
    """

    number: int
    process: Any
    tasks: dict[int, InputTask] = field(default_factory=dict)
    idle: bool = False


def _dispatch(processes: dict[Connection, _Process], tasks: deque[InputTask]) -> Iterator[ShardProgress]:
    """Send tasks to the processes that ask for work, until all tasks are finished; yield their reports.

    Raises:
        DatasetError: all processes died, or two died during the same task.
        VartokError, OSError: raised in a process.
    """
    tried: set[int] = set()  # tasks during which a process died
    alive = dict(processes)
    while alive:
        for connection, worker in alive.items():
            if worker.idle and tasks:
                _send_task(connection, worker, tasks.popleft())
        if not tasks and not any(worker.tasks for worker in alive.values()):
            return
        for ready in wait(list(alive)):
            assert isinstance(ready, Connection)
            worker = alive[ready]
            try:
                kind, content = ready.recv()
            except (EOFError, OSError):
                del alive[ready]
                warn(f"process {worker.number} has died; processes that are left do its work")
                tasks.extendleft(reversed(_take_back(worker, tried)))
                continue
            if kind == "progress":
                if content.finished and content.last:
                    worker.tasks.pop(content.index, None)
                yield replace(content, worker=worker.number)
            elif kind == "next":
                _send_task(ready, worker, tasks.popleft() if tasks else None)
            elif kind == "idle":
                worker.tasks.clear()  # needed if the last shard was done before: no report then ends the task
                worker.idle = True
            elif kind == "warning":
                warn(content)
            else:
                raise content
    raise DatasetError(
        "all processes have died", hint="check that memory suffices, then run the same build again"
    )


def _send_task(connection: Connection, worker: _Process, task: InputTask | None) -> None:
    worker.idle = False
    if task is not None:
        worker.tasks[task.index] = task
    with contextlib.suppress(OSError):  # the process has died, which `wait` will report
        connection.send(task)


def _take_back(worker: _Process, tried: set[int]) -> list[InputTask]:
    """Return the unfinished tasks of a process that died.

    The process was working on the first one: its index is added to `tried`.

    Raises:
        DatasetError: the first task was in `tried` before.
    """
    tasks = list(worker.tasks.values())
    worker.tasks.clear()
    for task in tasks[:1]:
        if task.index in tried:
            raise DatasetError(
                f"two processes have died while they encoded {task.shard.name}",
                hint="check that memory suffices, then run the same build again",
            ) from None
        tried.add(task.index)
    return tasks


def _serve(connection: Connection, job: Job, config: WorkerConfig) -> None:
    """Run in a worker process: ask for tasks and report progress until the parent closes the connection."""

    def send_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, VartokWarning):
            connection.send(("warning", str(message)))

    warnings.showwarning = send_warning
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", VartokWarning)
    logging.lastResort = logging.NullHandler()

    def next_tasks() -> Iterator[InputTask]:
        connection.send(("next", None))
        while (task := connection.recv()) is not None:
            yield task
            connection.send(("next", None))

    try:
        with warnings.catch_warnings(action="ignore"):  # the parent loaded it too, and gave the same ones
            tokenizer = config.load_tokenizer()
        while True:
            connection.send(("idle", None))
            first = connection.recv()
            progress = run_here(
                job,
                itertools.chain([first], next_tasks()),
                tokenizer,
                batch_size=config.batch_size,
                workers=config.workers,
            )
            with contextlib.closing(progress):
                for report in progress:
                    connection.send(("progress", report))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except (VartokError, OSError) as error:
        with contextlib.suppress(OSError):
            connection.send(("error", error))
