"""Runs that fine-tune a checkpoint."""

import dataclasses
import itertools
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import TINY, go, tiny

import vartok
from vartok.errors import TrainError
from vartok.train import TrainSettings, Validation, parse_settings, read_settings
from vartok.train.folder import STATE, WEIGHTS
from vartok.train.settings import QuantizerSettings
from vartok.train.settings_file import dump_settings


@pytest.fixture(scope="module")
def trained(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the weights of a run."""
    folder = tmp_path_factory.mktemp("trained")
    go(tiny(), tiles, folder)
    return folder / WEIGHTS


def fine_tuning(trained: Path, folder: Path) -> tuple[Path, TrainSettings]:
    """Return a copy of weights, and settings that fine-tune them; the preset has another [model]."""
    weights = folder / "first" / WEIGHTS
    weights.parent.mkdir()
    shutil.copyfile(trained, weights)
    (folder / "other.toml").write_text(TINY.replace("[1, 2, 4]", "[1, 4]"))
    return weights, read_settings(str(folder / "other.toml"), weights=weights)


def test_fine_tuning_begins_with_the_checkpoints_weights(tiles: Path, trained: Path, tmp_path: Path) -> None:
    weights, settings = fine_tuning(trained, tmp_path)
    assert settings.model == tiny().model
    assert settings.optimizer.encoder_warmup_steps == 0
    assert settings == parse_settings(dump_settings(settings))
    still = dataclasses.replace(
        settings,
        optimizer=dataclasses.replace(settings.optimizer, lr=0.0, encoder_lr=0.0),
        quantizer=QuantizerSettings(codebook="gradient", dead_code_threshold=0.0),
    )
    events = go(still, tiles, tmp_path / "second")
    assert "fine-tuning tiny" in events
    before, after = load_file(weights), load_file(tmp_path / "second" / WEIGHTS)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_latents_stay_near_the_checkpoints_in_a_resumed_run_too(
    tiles: Path, trained: Path, tmp_path: Path
) -> None:
    weights, settings = fine_tuning(trained, tmp_path)
    go(settings, tiles, tmp_path / "whole")
    asked = itertools.count(1)
    go(settings, tiles, tmp_path / "parts", should_stop=lambda: next(asked) == 5)
    first = load_file(weights)
    weights.unlink()  # a run that has begun does not need it
    go(settings, tiles, tmp_path / "parts", resume=True)
    whole, parts = (
        torch.load(tmp_path / name / STATE, weights_only=True)["model"] for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    held = {name: tensor for name, tensor in whole.items() if name.startswith("anchor.")}
    moved = [name for name, tensor in held.items() if not torch.equal(tensor, whole[_of_model(name)])]
    assert moved
    for name, tensor in held.items():
        assert torch.equal(tensor, first[_of_model(name).removeprefix("model.")]), name


def _of_model(name: str) -> str:
    """Return the model's name of a tensor of the frozen encoder."""
    return name.replace("anchor.0.", "model.encoder.").replace("anchor.1.", "model.quant_conv.")


def test_weights_of_another_configuration_are_refused(tiles: Path, trained: Path, tmp_path: Path) -> None:
    _, settings = fine_tuning(trained, tmp_path)
    other = dataclasses.replace(settings, model=dataclasses.replace(settings.model, vocab_size=32))
    with pytest.raises(TrainError, match=r"first.weights\.safetensors: its configuration is not the run's"):
        go(other, tiles, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_card_names_the_origin_by_name_and_fingerprint_and_no_path(
    tiles: Path, trained: Path, tmp_path: Path
) -> None:
    weights, settings = fine_tuning(trained, tmp_path)
    events = go(settings, tiles, tmp_path / "second")
    before, after = (event for event in events if isinstance(event, Validation))
    assert (before.step, after.step) == (0, 8)
    card = (tmp_path / "second" / "weights.md").read_text()
    assert f"Fine-tuned from tiny, fingerprint {vartok.load(weights, device='cpu').fingerprint}." in card
    assert f"Before fine-tuning, tiny on the same pictures: {before.psnr:.2f} dB" in card
    assert f"{after.psnr:.2f} dB" in card
    for name in ("weights.md", "settings.toml"):
        assert str(tmp_path) not in (tmp_path / "second" / name).read_text()
    go(settings, tiles, tmp_path / "second", resume=True)
    assert "Before fine-tuning, tiny" in (tmp_path / "second" / "weights.md").read_text()
