"""Several processes: the same bytes, and what happens when some die."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from dataset_cases import SHARDS, contents, make_job, plan, run

import vartok
from vartok.dataset import engines
from vartok.dataset.engines import WorkerConfig, run_processes
from vartok.dataset.write import write_summary
from vartok.errors import DatasetError, VartokError, VartokWarning
from vartok.sources import find_input_shards
from vartok.stopping import stop

pytest_plugins = ["dataset_cases"]


def worker(small_weights: Path) -> WorkerConfig:
    return WorkerConfig(
        weights=small_weights, device="cpu", dtype="float32", batch_size=2, workers=1, threads=1
    )


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
