"""`vartok train`: options, messages, signals, several processes."""

import importlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Vartok
from tiny_run import TINY

from vartok.stopping import stop
from vartok.train.folder import STATE

NOTHING_SAVED = "the run had saved nothing yet; the same command begins it again"


def command(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vartok", "train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path / "tiny.toml"


def test_the_command_trains_and_says_so(vartok: Vartok, tiles: Path, tmp_path: Path, preset: Path) -> None:
    done = vartok("train", tiles, "-o", tmp_path / "run", "-p", preset, "--device", "cpu", "--steps", "10")
    assert done.stdout == ""
    assert "initialised from 16 crops" in done.stderr
    assert "validation pictures" in done.stderr
    assert f"vartok encode -w {tmp_path / 'run'} " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["{tiles}", "-o", "run", "-p", "lihgt"], 2, "no file that can be read (no such file or folder)"),
        (["{tiles}", "-o", "empty", "--resume"], 1, "no run in empty: leave --resume out"),
        (["{tiles}", "-o", "run", "--resume"], 1, "there is no run in run: leave --resume out"),
        (["{tiles}", "-o", "run", "--resume", "-p", "light"], 2, "leave --preset out"),
        (["{tiles}", "-o", "run", "--resume", "--from", "shipped"], 2, "leave --from out"),
        (["{tiles}", "-o", "run", "--resume", "--keep-tokens"], 2, "leave --keep-tokens out"),
        (["{tiles}", "-o", "run", "--keep-tokens"], 2, "--keep-tokens needs --from"),
        (
            ["{tiles}", "-o", "run", "--preset", "light-looks", "--keep-tokens", "--channels", "1"],
            2,
            "in_channels cannot be changed: shipped has its own",
        ),
        (["{tiles}", "-o", "run", "--from", "none.pth"], 1, "none.pth: no such file or folder"),
        (["{tiles}", "-o", "run", "--from", "{tiles}/tile00.png"], 1, "neither a safetensors nor a PyTorch"),
        (["nowhere", "-o", "run"], 1, "nowhere: no such file or folder"),
        (["empty", "-o", "run"], 1, "no pictures"),
        (["{tiles}", "-o", "run", "--batch-size", "0"], 2, "batch-size"),
        (["{tiles}", "-o", "run", "--from", "tokens.npz"], 1, "tokens.npz: "),
        (["{tiles}", "-o", "run", "--from", "empty"], 1, "empty: "),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    vartok: Any,
    tiles: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    np.savez("tokens.npz", scale_00=np.zeros((1, 1), np.uint16))
    result = vartok("train", *(text.format(tiles=tiles) for text in arguments), code=code)
    assert reason in result.stderr
    if code == 1:
        assert result.stderr.count("\n") == 1


def test_a_second_signal_says_what_is_kept(
    vartok: Vartok, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "describe_progress", lambda: "nothing was written")
    vartok("train", "nowhere", "-o", "run", "--device", "cpu", code=1)
    assert stop.describe_progress() == NOTHING_SAVED
    (here / "run").mkdir()
    (here / "run" / STATE).touch()
    assert stop.describe_progress() == (
        "what was saved is kept. Continue: vartok train nowhere -o run --device cpu --resume"
    )


@pytest.mark.parametrize(("channels", "picture"), [("1", "img.png"), ("3", "img.png"), ("5", "array.npy")])
def test_the_end_names_an_input_of_the_checkpoint(
    vartok: Vartok, here: Path, monkeypatch: pytest.MonkeyPatch, channels: str, picture: str
) -> None:
    def train(*_: object, report: Callable[[str], None], **__: object) -> bool:
        report("raise it in a settings file, given by `preset`")
        return True

    monkeypatch.setattr("vartok.train.train", train)
    said = vartok("train", "data", "-o", "run", "--channels", channels).stderr.splitlines()
    assert said == [
        "vartok: raise it in a settings file, given by --preset",
        f"vartok: trained; to use it: vartok encode -w run {picture}",
    ]


def test_an_interruption_before_the_first_step_has_one_wording(
    vartok: Vartok, tiles: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place in ("vartok.train.loop.check_packages", "vartok.train.train"):
        with monkeypatch.context() as patch:
            patch.setattr(stop, "describe_progress", lambda: "nothing was written")
            patch.setattr(place, interrupt)
            message = vartok("train", tiles, "-o", "run", code=130).stderr
        assert message == f"vartok: interrupted; {NOTHING_SAVED}\n"


def test_a_signal_while_stderr_is_written_stops_after_the_step() -> None:
    class Writing:
        def say(self, message: str) -> None:
            raise RuntimeError("reentrant call")

    stopper = importlib.import_module("vartok.cli.train")._Stopper(Writing())
    stopper._receive(signal.SIGINT, None)
    assert stopper.signal == signal.SIGINT


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read stderr up to a line that has the text."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return


@pytest.mark.slow
def test_a_command_interrupted_before_its_first_step_leaves_nothing(tiles: Path, tmp_path: Path) -> None:
    process = command(tiles, "-o", tmp_path / "run", "--device", "cpu")
    while not (tmp_path / "run").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == f"vartok: interrupted; {NOTHING_SAVED}"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_saves_and_says_how_to_continue(
    tiles: Path, tmp_path: Path, preset: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    preset.write_text(TINY.replace("[run]", "[run]\nval_every = 10"))
    process = command(tiles, "-o", run, "-p", preset, "--device", "cpu", "--steps", "1000000")
    wait_for(process, "step 10:")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"Continue: vartok train {tiles} -o {run} --device cpu --resume" in err
    step = torch.load(run / STATE, weights_only=True)["step"]
    process = command(tiles, "-o", run, "--device", "cpu", "--resume", "--steps", str(step + 3))
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert torch.load(run / STATE, weights_only=True)["step"] == step + 3


def launched(count: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `vartok train` in `count` processes of this machine."""
    # accelerate's option for several processes is named after GPUs; --device cpu makes them use gloo.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
    many = ["--multi_gpu"] * (count != "1") + ["--num_processes", count]
    return subprocess.run(
        [*launcher, *many, "-m", "vartok", "train", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_two_processes_train_what_one_does(tiles: Path, tmp_path: Path, preset: Path) -> None:
    for count in ("1", "2"):
        done = launched(
            count, tiles, "-p", preset, "--device", "cpu", "--steps", "12", "-o", tmp_path / count
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("vartok: trained") == 1
        assert f"on {count} process" in (tmp_path / count / "weights.md").read_text()
    one, two = (torch.load(tmp_path / count / STATE, weights_only=True) for count in ("1", "2"))
    assert one["step"] == two["step"] == 12
    assert one["positions"] == two["positions"]
    for name, tensor in one["model"].items():
        assert torch.allclose(tensor, two["model"][name], rtol=1e-2, atol=1e-3), name
    assert torch.allclose(one["usage"], two["usage"], atol=0.05)


@pytest.mark.slow
def test_two_processes_with_shards_of_their_own_replace_dead_codes_and_train_a_discriminator(
    tiles: Path, tmp_path: Path
) -> None:
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as shard:
            for path in sorted(tiles.glob("*.png"))[number::2]:
                shard.add(path, path.name)
            broken = tarfile.TarInfo(f"bad{number}.png")
            broken.size = 4
            shard.addfile(broken, io.BytesIO(b"none"))
            shard.addfile(tarfile.TarInfo(f"odd{number}.xyz"))
    extra = "[quantizer]\ndead_code_threshold = 0.9\ncodebook_ema_decay = 0.8\n"
    judged = TINY.replace("[loss]\n", "[loss]\nadversarial = 0.1\nadversarial_start = 3\n")
    (tmp_path / "lively.toml").write_text(judged + extra)
    run = tmp_path / "run"
    shards = [tmp_path / f"{number}.tar" for number in range(2)]
    options: list[str | Path] = ["--device", "cpu", "--minutes", "1", "-o", run]
    done = launched("2", *shards, "-p", tmp_path / "lively.toml", *options)
    assert done.returncode == 0, done.stderr
    for number in range(2):
        assert done.stderr.count(f"bad{number}") == 1, done.stderr
    assert "passed over 2 members of tars: 2 .xyz" in done.stderr
    state = torch.load(run / STATE, weights_only=True)
    assert state["step"] == 8
    assert state["replaced_codes"] > 0
    assert len(state["positions"]) == 2
    done = launched("2", *shards, "--resume", "--steps", "10", *options)
    assert done.returncode == 0, done.stderr
    assert "new epoch" not in done.stderr
    later = torch.load(run / STATE, weights_only=True)
    assert later["step"] == 10
    assert all(now > then for now, then in zip(later["positions"], state["positions"], strict=True))
