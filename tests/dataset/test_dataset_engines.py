"""Several processes: the same bytes, and what happens when some die."""

import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from dataset_cases import SHARDS, contents, make_job, plan, run

import vartok
from vartok.dataset import build, builder, engines
from vartok.dataset.engines import WorkerConfig, choose_processes, run_processes, share_machine
from vartok.dataset.write import write_summary
from vartok.errors import DatasetError, DeviceError, VartokError, VartokWarning
from vartok.operations.settings import MAX_WORKERS, default_workers
from vartok.sources import find_input_shards
from vartok.stopping import stop

pytest_plugins = ["dataset_cases"]


def worker(small_weights: Path) -> WorkerConfig:
    return WorkerConfig(
        weights=small_weights, device="cpu", dtype="float32", batch_size=2, workers=1, threads=1
    )


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Count GPUs by the returned function, 2 by default; initialising CUDA fails."""
    count = Mock(return_value=2)
    for name in ("is_available", "_lazy_init", "init", "current_device", "set_device"):
        refuse = Mock(side_effect=AssertionError(f"torch.cuda.{name} was called"))
        monkeypatch.setattr(torch.cuda, name, refuse)
    monkeypatch.setattr(torch.cuda, "device_count", count)
    return count


@pytest.mark.parametrize(
    ("device", "processes", "count", "devices"),
    [
        ("auto", None, 2, ["cuda:0", "cuda:1"]),
        ("cuda", 3, 2, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda", 2, 1, ["cuda:0", "cuda:0"]),  # two processes share a GPU
        ("cuda:1", 2, 2, ["cuda:1", "cuda:1"]),
    ],
)
def test_gpus_are_divided_among_processes_without_a_cuda_context(
    small_weights: Path, gpus: Mock, device: str, processes: int | None, count: int, devices: list[str]
) -> None:
    gpus.return_value = count
    chosen, number = choose_processes(device, processes)
    shared = share_machine(replace(worker(small_weights), device=chosen), number)
    assert [config.device for config in shared] == devices
    assert not torch.cuda.is_initialized()


def test_the_parent_opens_no_cuda_context_and_gives_each_process_its_readers(
    tmp_path: Path,
    source: Path,
    small_weights: Path,
    small_tokenizer: vartok.Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    gpus: Mock,
) -> None:
    run = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr(engines, "run_processes", run)
    monkeypatch.setattr(builder, "available_processors", lambda: 8)
    with pytest.raises(KeyboardInterrupt):
        build(source, tmp_path / "out", weights=small_weights, device="cuda", shard_size=3)
    assert [(config.device, config.workers) for config in run.call_args[0][2]] == [
        ("cuda:0", 5),
        ("cuda:1", 5),
    ]
    assert [default_workers(processors=cores) for cores in (0, 1, 96)] == [1, 2, MAX_WORKERS]


@pytest.mark.parametrize(("device", "count"), [("cuda:2", 2), ("cuda:x", 2), ("cuda", 0)])
def test_a_gpu_that_is_not_there_is_refused(gpus: Mock, device: str, count: int) -> None:
    gpus.return_value = count
    with pytest.raises(DeviceError, match=f"torch cannot use the device '{device}' here"):
        choose_processes(device, 2)


@pytest.mark.slow
def test_two_processes_give_the_same_bytes_as_one(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer, small_weights: Path
) -> None:
    settings: dict[str, Any] = {"views": "random:3", "zoom": 1.5, "latents": True}
    alone = make_job(tmp_path / "alone", small_tokenizer, **settings)
    run(alone, source, small_tokenizer)
    job = make_job(tmp_path / "out", small_tokenizer, **settings)
    shards = find_input_shards([str(source)], 3)
    steps = list(run_processes(job, plan(job, shards), [worker(small_weights)] * 2))
    write_summary(job, len(shards))
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert sorted(step.shard for step in steps if step.finished) == SHARDS
    assert {step.worker for step in steps} <= {0, 1}  # the second may come too late


@pytest.mark.slow
def test_another_process_takes_over_from_one_that_is_killed(
    tmp_path: Path,
    source: Path,
    small_tokenizer: vartok.Tokenizer,
    small_weights: Path,
    whole: dict[str, bytes],
) -> None:
    job = make_job(tmp_path / "out", small_tokenizer)
    shards = find_input_shards([str(source)], 3)
    steps = run_processes(job, plan(job, shards), [worker(small_weights)] * 2)
    first = next(steps)
    victim = multiprocessing.active_children()[0]
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.warns(VartokWarning, match=r"process \d has died"):
        left = list(steps)
    write_summary(job, len(shards))
    assert contents(tmp_path / "out") == whole
    assert {first.shard, *(step.shard for step in left)} == set(SHARDS)


def test_a_stop_at_once_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program ends without `finally`."""
    before, process = [*stop.cleanups], Mock()
    context = Mock(Pipe=lambda: (Mock(), Mock()), Process=lambda **options: process)
    monkeypatch.setattr("multiprocessing.get_context", lambda method: context)
    monkeypatch.setattr(engines, "_dispatch", lambda processes, tasks: iter([Mock()]))
    steps = run_processes(Mock(), [], [Mock()] * 2)
    next(steps)
    assert not process.kill.called
    stop.cleanups[-1]()
    assert process.kill.call_count == 2
    steps.close()
    assert stop.cleanups == before


@pytest.mark.slow
def test_the_run_ends_when_all_processes_are_dead(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer, small_weights: Path
) -> None:
    job = make_job(tmp_path / "out", small_tokenizer)
    steps = run_processes(job, plan(job, find_input_shards([str(source)], 3)), [worker(small_weights)] * 2)
    next(steps)
    for child in multiprocessing.active_children():
        child.kill()
    with pytest.warns(VartokWarning), pytest.raises(DatasetError, match="processes have died"):
        list(steps)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_the_error_of_a_process_is_raised(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer, small_weights: Path
) -> None:
    job = make_job(tmp_path / "out", small_tokenizer)
    tasks = plan(job, find_input_shards([str(source)], 3))
    with pytest.raises(VartokError, match=r"nope\.safetensors: no such file or folder"):
        list(run_processes(job, tasks, [worker(tmp_path / "nope.safetensors")]))
    shutil.rmtree(tmp_path / "out" / "data")
    with pytest.raises(OSError, match="No such file") as raised:
        list(run_processes(job, tasks, [worker(small_weights)]))
    assert raised.value.filename
    assert not multiprocessing.active_children()
