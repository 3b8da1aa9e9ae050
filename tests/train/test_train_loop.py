"""Whole runs, small ones."""

import dataclasses
import itertools
import json
import math
import shutil
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from noise import DATA, shapes
from PIL import Image
from safetensors import safe_open
from tiny_run import go, pictures, tiny
from torch import Tensor

import vartok
from vartok.errors import OutputError, TrainError
from vartok.images import to_tensor
from vartok.train import Progress, Validation, read_settings
from vartok.train.distributed import Processes
from vartok.train.folder import SAMPLES, STATE, WEIGHTS
from vartok.train.history import MAX_POINTS, History


def test_a_run_learns_a_few_pictures_and_exports_a_checkpoint(tiles: Path, tmp_path: Path) -> None:
    few = [tiles / name for name in ("tile00.png", "tile11.png", "tile22.png", "tile33.png")]
    settings = tiny(
        data={"val_fraction": 0.0, "zoom": 1.0, "grayscale_prob": 0.0, "color_jitter": 0.0},
        run={"steps": 60},
        optimizer={"encoder_warmup_steps": 20},
    )
    events = go(settings, few, tmp_path / "run")
    steps = [event for event in events if isinstance(event, Progress)]
    assert steps[-1].psnr > steps[0].psnr + 1.5
    assert steps[-1].loss < steps[0].loss
    assert steps[-1].step == 60
    assert steps[-1].fraction == 1

    loaded = vartok.load(tmp_path / "run" / WEIGHTS, device="cpu")
    assert loaded.config == settings.model
    assert loaded.name == "tiny"
    images = to_tensor(np.stack([np.asarray(Image.open(path).resize((64, 64))) for path in few]))
    error = (loaded.decode(loaded.encode(images)) - images).square().mean()
    assert 10 * math.log10(4 / error) > steps[0].psnr + 0.5  # smoother pictures than crops, by other weights
    card = (tmp_path / "run" / "weights.md").read_text()
    assert "60 steps of 4 crops of 64x64 pixels" in card
    assert settings == read_settings(str(tmp_path / "run" / "settings.toml"))


@pytest.mark.slow
@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_a_resumed_run_equals_one_that_never_stopped(tiles: Path, tmp_path: Path, codebook: str) -> None:
    settings = tiny(
        quantizer={"codebook": codebook, "dead_code_threshold": 0.9, "codebook_ema_decay": 0.8},
        loss={"adversarial": 0.1, "adversarial_start": 3},
        optimizer={"decay_fraction": 0.0},
    )
    go(settings, tiles, tmp_path / "whole")
    asked = itertools.count(1)
    go(settings, tiles, tmp_path / "parts", should_stop=lambda: next(asked) == 5)
    half = torch.load(tmp_path / "parts" / STATE, weights_only=True)
    assert half["step"] == 5
    if codebook == "gradient":  # as earlier versions saved it
        half["position"] = half.pop("positions")[0]
        del half["log_mse_factor"]
        torch.save(half, tmp_path / "parts" / STATE)
    go(settings, tiles, tmp_path / "parts", resume=True)
    whole, parts = (torch.load(tmp_path / name / STATE, weights_only=True) for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 8
    assert whole["positions"] == parts["positions"]
    assert whole["replaced_codes"] == parts["replaced_codes"] > 0
    for part in ("model", "ema_model"):
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, parts[part][name]), name
    for part in ("usage", "sums"):
        assert torch.equal(whole[part], parts[part])
    for keys in (["optimizer"], ["adversary", "optimizer"]):
        one, two = whole, parts
        for key in keys:
            one, two = one[key], two[key]
        for number, moments in one["state"].items():
            assert all(torch.equal(value, two["state"][number][key]) for key, value in moments.items())


def test_validation_measures_the_pictures_held_out(tiles: Path, tmp_path: Path) -> None:
    threads = threading.enumerate()
    events = go(tiny(), tiles, tmp_path / "run")
    assert threading.enumerate() == threads  # TensorBoard's too has ended
    (validation,) = (event for event in events if isinstance(event, Validation))
    assert validation.pictures == len(pictures(tiles, val_fraction=0.2).held_out(1))
    loaded = vartok.load(tmp_path / "run" / WEIGHTS, device="cpu")
    errors = []
    for pixels in pictures(tiles, val_fraction=0.2).held_out(1):
        drawn = loaded.decode(loaded.encode(to_tensor(pixels[None])))
        levels = ((drawn[0].permute(1, 2, 0) + 1) * 127.5).round().numpy()
        errors.append(10 * math.log10(255**2 / np.square(levels - pixels).mean()))
    assert validation.psnr == pytest.approx(np.mean(errors), abs=1e-3)
    with Image.open(tmp_path / "run" / SAMPLES / "0000008.png") as sheet:
        assert sheet.size == (64 * min(8, validation.pictures), 128)
    assert list((tmp_path / "run" / "log").glob("events*"))
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count('class="picture"') == min(8, validation.pictures)
    assert "refresh" not in page
    assert "Perplexity by scale, validation" in page  # in training it is a moving average that begins uniform
    assert "Perplexity by scale, training" not in page
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert [one["step"] for one in history["validations"]] == [8]

    go(tiny(run={"steps": 10}), tiles, tmp_path / "run", resume=True)
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert [one["step"] for one in history["validations"]] == [8, 10]
    assert [point[0] for point in history["progress"]] == [8, 10]
    assert "Ended: 10 steps" in (tmp_path / "run" / "report.html").read_text()


def test_a_history_is_thinned_and_a_broken_one_begins_anew(tmp_path: Path) -> None:
    history = History()
    event = Progress(
        step=0,
        fraction=0.5,
        seconds=1.0,
        loss=0.5,
        psnr=20.0,
        perplexity=(1.0, 2.0),
        replaced_codes=0,
        images_per_second=1.0,
        unreadable=0,
    )
    for step in range(1, 2 * MAX_POINTS + 11):
        history.add(dataclasses.replace(event, step=step))
    assert len(history.progress) == MAX_POINTS + 10
    assert [point[0] for point in history.progress[-12:-9]] == [
        2 * MAX_POINTS - 2,
        2 * MAX_POINTS,
        2 * MAX_POINTS + 1,
    ]
    history.write(tmp_path)
    assert History.read(tmp_path, 10, scales=2).progress == history.progress[:5]
    saved = json.loads((tmp_path / "history.json").read_text())
    saved["progress"] = [[*point, 1.0, 2.0] for point in saved["progress"]]  # as once written
    (tmp_path / "history.json").write_text(json.dumps(saved))
    assert History.read(tmp_path, 10, scales=2).progress == history.progress[:5]
    for text in ("{", "[]", '{"progress": [["a"]], "validations": []}', '{"progress": 1}'):
        (tmp_path / "history.json").write_text(text)
        assert History.read(tmp_path, 10, scales=2).progress == []


def test_minutes_end_a_run(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()  # the loop's clock: every look at it is a second later
    monkeypatch.setattr("vartok.train.loop.time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    events = go(tiny(run={"steps": 1 << 30, "minutes": 0.5}), tiles, tmp_path / "run")
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert last.fraction == 1
    assert 5 < last.step < 30
    assert 30 <= last.seconds < 35


def test_a_run_without_a_step_fails_and_leaves_nothing(tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="nothing was trained") as error:
        go(tiny(run={"minutes": 0.001}), tiles, tmp_path / "run")
    assert error.value.hint == "set `minutes` higher"
    assert not (tmp_path / "run").exists()


class FirstOfTwo(Processes):
    """The first of two processes, of which the other does the same, and names an unreadable picture too."""

    calls: ClassVar[list[str]] = []

    def __init__(self, device: str, precision: str) -> None:
        super().__init__(device, precision)
        self.world_size = 2

    def mean(self, value: Tensor) -> Tensor:
        self.calls.append("mean")
        return value

    def gather(self, rows: Tensor) -> Tensor:
        return torch.cat([rows, rows])

    def gather_objects(self, value: Any) -> list[Any]:
        self.calls.append("gather_objects")
        return [value, ["there.png: is broken"] if isinstance(value, list) else value]

    def from_main(self, value: float) -> float:
        self.calls.append("from_main")
        return value


def test_several_processes_wait_for_each_other_once_a_step_and_at_reports(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vartok.train.loop.Processes", FirstOfTwo)
    monkeypatch.setattr(FirstOfTwo, "calls", [])
    shutil.copytree(tiles, tmp_path / "data")
    (tmp_path / "data" / "here.png").write_bytes(b"no picture")
    asked = itertools.count(1)
    settings = tiny(run={"steps": 30}, quantizer={"dead_code_threshold": 0.0}, data={"val_fraction": 0.0})
    events = go(settings, tmp_path / "data", tmp_path / "run", should_stop=lambda: next(asked) == 12)
    assert [event.step for event in events if isinstance(event, Progress)] == [10, 20]
    assert next(asked) == 21  # the signal was heard after step 12, and told to the others after step 20
    calls = Counter(FirstOfTwo.calls)
    assert calls["mean"] == 20 + 2 * 3  # a step's codebook; at a report its means, unreadable pictures, stop
    assert calls["from_main"] == 3  # before the first step, and at reports
    assert 1 < calls["gather_objects"] <= 3
    lines = [event for event in events if isinstance(event, str) and ".png" in event]
    assert len(lines) == 2
    assert lines[1] == "there.png: is broken"
    assert [event.unreadable for event in events if isinstance(event, Progress)] == [2, 2]


def test_another_number_of_processes_that_read_shards_begins_an_epoch(tiles: Path, tmp_path: Path) -> None:
    go(tiny(run={"steps": 1}), tiles, tmp_path / "run")
    state = torch.load(tmp_path / "run" / STATE, weights_only=True)
    assert state["positions"] == [(0, 4)]
    state["positions"] = [(4, 3), (5, 1)]  # as two processes save it that read shards of their own
    torch.save(state, tmp_path / "run" / STATE)
    events = go(tiny(run={"steps": 2}), tiles, tmp_path / "run", resume=True)
    assert any("a new epoch of the pictures begins" in str(event) for event in events)
    state = torch.load(tmp_path / "run" / STATE, weights_only=True)
    assert state["positions"] == [(6, 4)]


def test_a_checkpoint_is_named_after_its_folder(tiles: Path, tmp_path: Path) -> None:
    go(dataclasses.replace(tiny(run={"steps": 1}), name=""), tiles, tmp_path / "my-run")
    assert vartok.load(tmp_path / "my-run" / WEIGHTS, device="cpu").name == "my-run"


def test_divergence_ends_the_run_and_keeps_the_last_state(tiles: Path, tmp_path: Path) -> None:
    go(tiny(), tiles, tmp_path / "run")
    state = (tmp_path / "run" / STATE).read_bytes()
    broken = tiny(
        run={"steps": 40}, optimizer={"lr": 1e9, "encoder_lr": 1e9, "grad_clip": 1e9, "warmup_steps": 0}
    )
    with pytest.raises(TrainError, match=rf"diverged at step .*not finite; .*{STATE} holds the last"):
        go(broken, tiles, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / STATE).read_bytes() == state
    asked = itertools.count(1)
    with pytest.raises(TrainError, match="diverged at step"):  # stopped before anything is reported
        go(broken, tiles, tmp_path / "run", resume=True, should_stop=lambda: next(asked) == 4)
    assert (tmp_path / "run" / STATE).read_bytes() == state


def test_an_interruption_ends_the_report(tiles: Path, tmp_path: Path) -> None:
    asked = itertools.count(1)

    def interrupt() -> bool:
        if next(asked) == 3:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        go(tiny(run={"val_every": 2}), tiles, tmp_path / "run", should_stop=interrupt)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Ended: 3 steps" in page
    assert "refresh" not in page
    assert 'class="picture"' in page


def test_a_run_that_cannot_be_written_ends_in_one_line(tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / WEIGHTS).mkdir(parents=True)
    with pytest.raises(OutputError, match=r"weights\.safetensors is not a regular file"):
        go(tiny(), tiles, tmp_path / "run")


def test_a_run_inside_its_data_does_not_train_on_its_samples(tiles: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiles, data)
    go(tiny(), data, data / "run")
    assert list((data / "run" / SAMPLES).glob("*.png"))
    assert not any("pictures differ" in str(event) for event in go(tiny(), data, data / "run", resume=True))
    (data / "tile00.png").unlink()
    assert any("pictures differ" in str(event) for event in go(tiny(), data, data / "run", resume=True))


@pytest.mark.slow
def test_a_collapsing_codebook_ends_the_run(tiles: Path, tmp_path: Path) -> None:
    settings = tiny(
        quantizer={"dead_code_threshold": 0.0, "codebook_ema_decay": 0.5},
        data={"color_jitter": 0.0},
        run={"steps": 20},
    )
    go(settings, tiles, tmp_path / "run")
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "flat.png")
    longer = dataclasses.replace(settings, run=dataclasses.replace(settings.run, steps=100))
    with pytest.raises(TrainError, match="codebook has collapsed at step"):
        go(longer, tmp_path / "flat.png", tmp_path / "run", resume=True)


def test_a_folder_that_holds_a_run_is_not_overwritten(tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="no state of a run"):
        go(tiny(), tiles, tmp_path / "run", resume=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / STATE).write_bytes(b"junk")
    with pytest.raises(TrainError, match="holds a run already"):
        go(tiny(), tiles, tmp_path / "run")
    with pytest.raises(TrainError, match="is not a run's state"):
        go(tiny(), tiles, tmp_path / "run", resume=True)
    torch.save({"step": 3}, tmp_path / "run" / STATE)
    with pytest.raises(TrainError, match="does not fit this run's settings"):
        go(tiny(), tiles, tmp_path / "run", resume=True)
    (tmp_path / "run" / STATE).rename(tmp_path / "run" / WEIGHTS)  # weights are not overwritten either
    with pytest.raises(TrainError, match="holds a run already"):
        go(tiny(), tiles, tmp_path / "run")


@pytest.mark.slow
def test_a_resumed_run_has_the_settings_it_is_given(tiles: Path, tmp_path: Path) -> None:
    adversarial = {"adversarial": 0.1}
    events = go(tiny(loss=adversarial, run={"steps": 4, "val_every": 2}), tiles, tmp_path / "run")
    assert [event.step for event in events if isinstance(event, Validation)] == [2, 4]  # the end once
    changed = tiny(
        loss=adversarial, run={"steps": 5}, optimizer={"weight_decay": 0.5, "lr": 2e-3, "decay_fraction": 0.0}
    )
    go(changed, tiles, tmp_path / "run", resume=True)
    state = torch.load(tmp_path / "run" / STATE, weights_only=True)
    assert state["step"] == 5
    assert all(group["weight_decay"] == 0.5 for group in state["optimizer"]["param_groups"])
    assert state["adversary"]["optimizer"]["param_groups"][0]["lr"] == 2e-3
    assert any(
        "nothing to train: the run has 5 steps and 0." in str(event)
        for event in go(changed, tiles, tmp_path / "run", resume=True)
    )


def wanted_of_var() -> dict[str, tuple[int, ...]]:
    """The names and shapes that VAR's own class gives at ch = 32."""
    lines = (DATA / "var-small.txt").read_text().splitlines()
    return {
        name: tuple(map(int, shape.split("x"))) for name, _, shape in (line.partition(" ") for line in lines)
    }


def test_the_small_preset_has_vars_tensors() -> None:
    assert shapes(read_settings("var-small").model) == wanted_of_var()


@pytest.mark.slow
def test_the_small_preset_trains_and_exports_what_vars_class_loads(tiles: Path, tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {
        "data": {"batch_size": 4},
        "start": {"init_pictures": 64, "kmeans_rounds": 1},
        "optimizer": {"encoder_warmup_steps": 20, "warmup_steps": 5},
        "run": {"steps": 40, "precision": "float32"},
        "model": {"patch_nums": [1, 2, 3, 4, 4, 4, 4, 4, 4, 4]},  # as many scales as VAR's, in 64 pixels
    }
    events = go(read_settings("var-small", changes), tiles, tmp_path / "run")
    steps = [event for event in events if isinstance(event, Progress)]
    assert steps[1].loss < steps[0].loss  # in the encoder's warm-up
    assert steps[-1].loss < steps[2].loss  # and after
    assert steps[-1].psnr > steps[0].psnr
    assert min(steps[-1].perplexity) > 0.3 * max(steps[-1].perplexity)
    with safe_open(tmp_path / "run" / WEIGHTS, "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert found == wanted_of_var()
