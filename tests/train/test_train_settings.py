"""Settings of training: TOML, ranges, presets."""

import dataclasses

import pytest
import torch
from tiny_run import tiny

from vartok.errors import ConfigError
from vartok.train import PRESETS, parse_settings, read_settings
from vartok.train.adversary import PatchDiscriminator
from vartok.train.perceptual import random_window
from vartok.train.settings import MIN_PATCH_SIDE
from vartok.train.settings_file import dump_settings
from vartok.train.unused import unused_settings


def test_settings_survive_toml() -> None:
    strange = dataclasses.replace(tiny(), name='"\U0001f600\n', license="\u00a9 \\")
    for settings in (tiny(), strange, *map(read_settings, PRESETS)):
        assert parse_settings(dump_settings(settings)) == settings


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nonsense", "is not TOML"),
        ("[modle]\n", "unknown key, 'modle'"),
        ("model = 3\n", r"\[model\] must be a table"),
        ("[model]\nch = 33\n", "multiple of 32"),
        ("[model]\nchan = 32\n", "unknown key, 'chan'"),
        ("[loss]\nmse = 1.0\nl3 = 1.0\n", r"\[loss\] has an unknown key, 'l3'"),
        ("[loss]\nmse = 'much'\n", "is not a number"),
        ("[loss]\nmse = nan\n", "is not a number"),
        ("[data]\nbatch_size = 1.5\n[loss]\nmse = 1.0\n", "is not a whole number"),
        ("[data]\nallow_damaged = 1\n[loss]\nmse = 1.0\n", "is not true or false"),
        ("[data]\nbatch_size = 0\n[loss]\nmse = 1.0\n", "batch_size must be from 1"),
        ("[loss]\n", "no reconstruction loss"),
        ("[quantizer]\ncodebook = 'average'\n[loss]\nmse = 1.0\n", '"ema" or "gradient"'),
        ("[run]\nprecision = 'int8'\n[loss]\nmse = 1.0\n", "precision"),
        ("name = 3\n[loss]\nmse = 1.0\n", "name must be a text"),
        ("[loss]\nmse = inf\n", "mse must be from 0"),
        ("[run]\nseed = -1\n[loss]\nmse = 1.0\n", "seed must be from 0"),
        ("[run]\nminutes = 0\n[loss]\nmse = 1.0\n", "minutes must be from"),
        ("[optimizer]\ngrad_clip = 0\n[loss]\nmse = 1.0\n", "grad_clip must be from"),
        (
            "[loss]\nmse = 1.0\nperceptual_net = 'vgg'\n",
            'efficientnet-lite1" or "efficientnet-lite2", not \'vgg\'',
        ),
        ("[loss]\nmse = 1.0\nadversarial_net = 'stylegan'\n", '"patch" or "projected"'),
        ("[loss]\nlog_mse = 1.0\ntarget_psnr_drop = 1.0\n", "target_psnr_drop needs"),
        ("[data]\nmin_zoom = 1.2\n[loss]\nmse = 1.0\n", "min_zoom must be at most zoom, 1.125"),
        (
            "[model]\nin_channels = 5\n[loss]\nmse = 1.0\nperceptual = 1.0\n",
            "perceptual needs a model of 1 or 3",
        ),
        (
            "[model]\npatch_nums = [[1, 1]]\n[loss]\nmse = 1.0\nadversarial = 0.1\n",
            'adversarial_net "patch" needs crops of 28 pixels',
        ),
        (
            "[model]\npatch_nums = [1, 7]\n[loss]\nmse = 1.0\nperiodicity = 0.5\n",
            "periodicity needs crops of 8 latent cells",
        ),
        (
            "[model]\nautoencoder = 'var'\nch_mult = [1]\nz_channels = 2\n"
            "[loss]\nmse = 1.0\nperiodicity = 0.5\n",
            "cells of several pixels",
        ),
        (
            "[model]\nautoencoder = 'var'\nch_mult = [1]\nz_channels = 2\npatch_nums = [1, 15]\n"
            "[loss]\nmse = 1.0\nlocal_contrast = 0.5\n",
            "local_contrast needs crops of 16 pixels",
        ),
        ("[optimizer]\nencoder_warmup_steps = 5\n[loss]\nmse = 1.0\n", "needs .* latent_anchor"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        parse_settings(text)
    assert "\n" not in str(error.value)


def test_an_unknown_key_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'rate'; known keys: lr, encoder_lr, weight_decay, .* ema_decay$"):
        parse_settings("[optimizer]\nrate = 1e-3\n")


def test_a_wrong_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="'lihgt' is no preset"):
        read_settings("lihgt")


def test_a_preset_that_fine_tunes_has_the_checkpoints_model() -> None:
    settings = read_settings("light-looks")
    assert (settings.start.weights, settings.start.keep_tokens) == ("shipped", True)
    assert settings.model == read_settings("light", weights="shipped").model
    assert settings.license == "MIT"
    with pytest.raises(ConfigError, match=r"\[model\] in_channels cannot be changed: shipped has its own"):
        read_settings("light-looks", {"model": {"in_channels": 1}})


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"z_channels": 769}, "z_channels must be at most 768"),
        ({"in_channels": 33}, "patches of 8,448 values"),
    ],
)
def test_only_training_from_scratch_limits_principal_components(model: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        tiny(model=model)
    assert tiny(model=model, start={"weights": "w"}).start.weights == "w"


def test_the_smallest_crop_of_a_patch_discriminator_has_a_logit() -> None:
    rows, columns = random_window((MIN_PATCH_SIDE, MIN_PATCH_SIDE), 0, 0)
    [logits] = PatchDiscriminator()(torch.zeros(2, 3, MIN_PATCH_SIDE, MIN_PATCH_SIDE)[:, :, rows, columns])
    assert logits.shape == (2, 1, 1, 1)


def test_settings_without_effect_are_named() -> None:
    assert [unused_settings(read_settings(preset)) for preset in PRESETS] == [[], [], [], []]
    changed = {"adversarial": 0.0, "perceptual": 0.0, "perceptual_net": "efficientnet-lite1"}
    assert unused_settings(read_settings("light-looks", {"loss": changed})) == [
        "[loss] adversarial_net, adversarial_adaptive, adversarial_ramp are not used: adversarial is 0",
        "[loss] perceptual_net is not used: neither perceptual nor a projected discriminator is used",
    ]
