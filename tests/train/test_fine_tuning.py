"""Runs that fine-tune a checkpoint."""

import dataclasses
import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_run import TINY, crops, go, tiny
from torch import nn

import vartok
from vartok.errors import ConfigError, TrainError
from vartok.images import to_tensor
from vartok.models.vqvae import VQVAE
from vartok.train import Progress, TrainSettings, Validation, parse_settings, psnr_target, read_settings
from vartok.train.folder import STATE, WEIGHTS
from vartok.train.frozen import FROZEN_NOTE, FrozenTokens
from vartok.train.objective import TrainingModel, latent_loss
from vartok.train.settings import UNUSED_IF_TOKENS_ARE_KEPT, QuantizerSettings
from vartok.train.settings_file import dump_settings

FROZEN = ("encoder.", "quant_conv.", "quantize.")


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
@pytest.mark.parametrize("keep_tokens", [False, True])
def test_latents_stay_near_the_checkpoints_in_a_resumed_run_too(
    tiles: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_tokens: bool
) -> None:
    weights, settings = fine_tuning(trained, tmp_path)
    looks: dict[str, Any] = {}
    if keep_tokens:
        looks = {
            "adversarial_net": "projected",
            "adversarial_ramp": 3,
            "perceptual": 1.0,
            "target_psnr_drop": 1.0,
        }
        monkeypatch.setattr(psnr_target, "EVERY", 2)
    settings = dataclasses.replace(
        settings,
        start=dataclasses.replace(settings.start, keep_tokens=keep_tokens),
        loss=dataclasses.replace(settings.loss, adversarial=0.1, adversarial_start=2, **looks),
    )
    go(settings, tiles, tmp_path / "whole")
    asked = itertools.count(1)
    go(settings, tiles, tmp_path / "parts", should_stop=lambda: next(asked) == 5)
    first = load_file(weights)
    weights.unlink()  # a run that has begun does not need it
    go(settings, tiles, tmp_path / "parts", resume=True)
    states = [torch.load(tmp_path / name / STATE, weights_only=True) for name in ("whole", "parts")]
    whole, parts = (state["model"] for state in states)
    assert (states[0]["log_mse_factor"] == 1) != keep_tokens
    assert states[0]["log_mse_factor"] == states[1]["log_mse_factor"]
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    if keep_tokens:
        assert all(
            torch.equal(whole[f"model.{name}"], first[name]) for name in first if name.startswith(FROZEN)
        )
        return
    held = {name: tensor for name, tensor in whole.items() if name.startswith("anchor.")}
    moved = [name for name, tensor in held.items() if not torch.equal(tensor, whole[_of_model(name)])]
    assert moved
    for name, tensor in held.items():
        assert torch.equal(tensor, first[_of_model(name).removeprefix("model.")]), name


@pytest.mark.parametrize(("measured", "held_out"), [(False, 1), (True, 0)])
def test_a_target_of_psnr_needs_pictures_when_a_run_begins_and_when_it_goes_on(
    measured: bool, held_out: int
) -> None:
    before = Validation(step=0, pictures=1, psnr=20.0, used=(), perplexity=(), total_used=0)
    origin = SimpleNamespace(validation=before if measured else None)
    state: Any = SimpleNamespace(origin=origin)
    settings = tiny(start={"weights": "w"}, loss={"log_mse": 1.0, "target_psnr_drop": 1.5})
    pictures = [np.zeros((64, 64, 3), np.uint8)]
    with pytest.raises(TrainError, match="no picture is held out to measure them"):
        psnr_target.target_psnr(state, settings, pictures[:held_out])
    origin.validation = before
    assert psnr_target.target_psnr(state, settings, pictures) == 18.5


def _of_model(name: str) -> str:
    """Return the model's name of a tensor of the frozen encoder."""
    return name.replace("anchor.0.", "model.encoder.").replace("anchor.1.", "model.quant_conv.")


def keeping(trained: Path, folder: Path, **tables: dict[str, Any]) -> TrainSettings:
    """Return settings that keep a checkpoint's tokens, with everything on that would change them."""
    tables = {"quantizer": {"dead_code_threshold": 0.9, "codebook_ema_decay": 0.5}, **tables}
    start = {"keep_tokens": True}
    (folder / "tiny.toml").write_text(TINY)
    return read_settings(folder / "tiny.toml", {"start": start, **tables}, weights=trained)


def test_tokens_are_kept(tiles: Path, trained: Path, tmp_path: Path) -> None:
    settings = keeping(trained, tmp_path, run={"steps": 8})
    assert settings == parse_settings(dump_settings(settings))
    events = go(settings, tiles, tmp_path / "run")
    assert FROZEN_NOTE in events
    for name in UNUSED_IF_TOKENS_ARE_KEPT:
        table, _, key = name.partition("] ")
        assert hasattr(getattr(settings, table.removeprefix("[")), key)
    assert "encoder_warmup_steps" in FROZEN_NOTE
    before, after = (event for event in events if isinstance(event, Validation))
    assert (before.used, before.perplexity) == (after.used, after.perplexity)
    assert after.psnr > before.psnr + 0.1
    progress = next(event for event in events if isinstance(event, Progress))
    assert progress.replaced_codes == 0
    assert 1 < progress.perplexity[-1] < 64  # of the tokens in training
    first, second = (vartok.load(path, device="cpu") for path in (trained, tmp_path / "run"))
    assert first.fingerprint == second.fingerprint
    images = to_tensor(crops(tiles))
    tokens = first.encode(images)
    assert torch.equal(tokens.flatten(), second.encode(images).flatten())
    old, new = load_file(trained), load_file(tmp_path / "run" / WEIGHTS)
    moved = {name.partition(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert moved == {"decoder", "post_quant_conv"}
    state = torch.load(tmp_path / "run" / STATE, weights_only=True)["model"]
    assert all(torch.equal(state[f"model.{name}"], old[name]) for name in old if name.startswith(FROZEN))
    assert "pictures keep their tokens" in (tmp_path / "run" / "weights.md").read_text()


def test_the_decoder_learns_from_the_f_hat_of_the_exported_tokens(trained: Path, tiles: Path) -> None:
    settings, tokenizer = tiny(), vartok.load(trained, device="cpu")
    model = VQVAE(settings.model)
    model.load_state_dict(load_file(trained))
    subject = TrainingModel(model, nn.Identity(), settings.model.patch_nums)
    subject.frozen = FrozenTokens(model, settings.model.patch_nums)
    images = to_tensor(crops(tiles))
    with torch.autocast("cpu", torch.bfloat16):
        f_hat, maps = subject.frozen(images)
    tokens = tokenizer.encode(images)
    assert all(torch.equal(one, other) for one, other in zip(maps, tokens.maps, strict=True))
    assert torch.equal(f_hat, tokenizer.f_hat(tokens))
    out = subject(images, True)
    assert torch.equal(out.reconstruction, model.decoder(model.post_quant_conv(f_hat)))
    assert latent_loss(out, settings.loss) == 0


def test_keeping_tokens_needs_a_checkpoint() -> None:
    with pytest.raises(ConfigError, match=r"\[start\] keep_tokens needs \[start\] weights"):
        tiny(start={"keep_tokens": True})


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
