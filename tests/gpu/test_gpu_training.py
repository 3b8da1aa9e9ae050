"""Training on an accelerator: the loss of its steps, resumed runs, several processes."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from device_cases import State
from tiny_run import TINY, go, tiny

from vartok.train import Progress, TrainSettings, read_settings, train
from vartok.train.folder import STATE, WEIGHTS

for package in ("accelerate", "tensorboard", "torchmetrics", "webdataset"):
    pytest.importorskip(package)

pytestmark = pytest.mark.gpu
pytest_plugins = ["device_cases"]

FEW_STEPS = 4


def losses(settings: TrainSettings, tiles: Path, run: Path, device: str, **options: Any) -> list[float]:
    """Train, and return the losses that were reported."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # device and precision are a process's for good
    events: list[Any] = []
    train(settings, [tiles], run, device=device, report=events.append, **options)
    return [event.loss for event in events if isinstance(event, Progress)]


def states(*runs: Path) -> list[dict[str, Any]]:
    """Return the saved states of runs."""
    return [torch.load(run / STATE, weights_only=True, map_location="cpu") for run in runs]


def difference(one: dict[str, Any], two: dict[str, Any]) -> float:
    """Return the norm of the difference of two runs' weights, by the norm of the weights.

    Weights whose gradients are mere rounding differ by Adam's whole steps, and are few.
    """
    weights, others = (torch.cat([v.flatten() for v in run["model"].values()]) for run in (one, two))
    return float((weights - others).norm() / weights.norm())


@pytest.fixture(scope="module")
def trained(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the weights of a run on the CPU."""
    folder = tmp_path_factory.mktemp("trained")
    go(tiny(), tiles, folder / "run")
    return folder / "run" / WEIGHTS


@pytest.mark.parametrize(("precision", "bound"), [("float32", 0.01), ("bf16", 0.1)])
def test_the_loss_of_some_steps_equals_the_cpus(
    tiles: Path, trained: Path, tmp_path: Path, device: str, state: State, precision: str, bound: float
) -> None:
    """The runs start from one checkpoint, as random numbers for initial weights differ between devices."""
    if precision == "bf16" and device == "mps":
        pytest.skip("training in bf16 was never run on MPS")
    (tmp_path / "tiny.toml").write_text(TINY)

    def loss(number: int, on: str, precision: str) -> float:
        changes = {"run": {"steps": FEW_STEPS, "precision": precision}}
        settings = read_settings(str(tmp_path / "tiny.toml"), changes, weights=trained)
        return losses(settings, tiles, tmp_path / f"{number}", on)[-1]

    wanted, found = loss(0, "cpu", "float32"), loss(1, device, precision)
    state(precision=precision, steps=FEW_STEPS, cpu_loss=wanted, device_loss=found)
    assert found == pytest.approx(wanted, rel=bound)


def test_a_resumed_run_ends_as_one_that_never_stopped(tiles: Path, tmp_path: Path, device: str) -> None:
    settings = tiny(optimizer={"decay_fraction": 0.0})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    losses(settings, tiles, whole, device)
    asked = itertools.count(1)
    losses(settings, tiles, parts, device, should_stop=lambda: next(asked) == 5)
    assert states(parts)[0]["step"] < 8
    losses(settings, tiles, parts, device, resume=True)
    one, two = states(whole, parts)
    assert one["step"] == two["step"] == 8
    assert one["positions"] == two["positions"]
    assert difference(one, two) < 0.01


@pytest.mark.slow
def test_two_processes_train_what_one_does(tiles: Path, tmp_path: Path, device: str) -> None:
    """NCCL where there are two cards, which is one for each process; else gloo on the CPU."""
    on = "cuda" if torch.cuda.device_count() > 1 else "cpu"
    (tmp_path / "tiny.toml").write_text(TINY)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--multi_gpu"]
    command = [*launcher, "--num_processes", "2", "-m", "vartok", "train", str(tiles), "--device", on]
    done = subprocess.run(
        [*command, "-p", str(tmp_path / "tiny.toml"), "-o", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    losses(tiny(), tiles, tmp_path / "one", on)
    one, two = states(tmp_path / "one", tmp_path / "two")
    assert one["step"] == two["step"] == 8
    assert difference(one, two) < 0.01
