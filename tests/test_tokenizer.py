"""The tokenizer: images to tokens and back."""

import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import VAR_32
from noise import DATA, SMALL, bare, draw, save, tokenizer
from PIL import Image
from torch import Tensor, nn

import vartok
from vartok.checkpoints import shipped_checkpoint
from vartok.config import LightConfig, TokenizerConfig
from vartok.errors import (
    CheckpointError,
    DeviceError,
    ImageError,
    ScheduleError,
    TokenFileError,
    TokensError,
    VartokWarning,
)
from vartok.images import to_pixels
from vartok.metadata import ModelInfo
from vartok.schedule import (
    VAR_256,
    VAR_512,
    ScheduleLike,
    adapt_schedule,
    square,
    stretch_schedule,
    token_count,
)
from vartok.tokens import TokenMaps
from vartok.train.settings_file import read_settings

# What comes out.


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (16, 16)])
@pytest.mark.parametrize("batch", [1, 3])
def test_shapes_and_dtypes(either: vartok.Tokenizer, coffee: Tensor, size: Any, batch: int) -> None:
    height, width = size
    images = coffee[:, :, :height, :width].expand(batch, -1, -1, -1)
    h, w = height // 16, width // 16
    tokens = either.encode(images)
    schedule = adapt_schedule(VAR_256, (h, w))
    assert tokens.schedule == schedule
    assert [tuple(m.shape) for m in tokens.maps] == [(batch, *grid) for grid in schedule]
    assert {m.dtype for m in tokens.maps} == {torch.int64}
    assert 0 <= int(tokens.flatten().min()) <= int(tokens.flatten().max()) < 4096
    for result, shape in [
        (either.latent(images), (batch, 32, h, w)),
        (either.f_hat(tokens), (batch, 32, h, w)),
        (either.f_hat(tokens, scales=1), (batch, 32, h, w)),
        (either.decode(tokens), (batch, 3, height, width)),
        (either.decode(tokens, scales=2), (batch, 3, height, width)),
        (either.var_inputs(tokens), (batch, token_count(schedule) - 1, 32)),
    ]:
        assert tuple(result.shape) == shape
        assert result.dtype == torch.float32
        assert not result.requires_grad
        assert result.isfinite().all()
    assert either.decode(tokens).abs().max() <= 1


def test_the_default_schedule_is_the_own_one_for_the_size(light: vartok.Tokenizer, coffee: Tensor) -> None:
    assert light.encode(coffee[:, :, :256, :256]).schedule == VAR_256
    assert light.encode(coffee).schedule == VAR_512
    assert light.encode(coffee[:, :, :512, :480]).schedule == stretch_schedule(VAR_256, (32, 30))
    own = square(1, 2, 4)
    images = coffee[:, :, :64, :64]
    tokens = light.encode(images, own)
    assert tokens.schedule == own
    assert light.decode(tokens).shape == images.shape
    schedules: list[ScheduleLike] = [[1, 2, 4], [[1, 1], 2, (4, 4)], "1,2,4"]
    for same in schedules:
        assert light.encode(images, same).schedule == own
    latent = light.latent(images)
    assert light.quantize(latent, "1,2,4").schedule == own
    assert torch.equal(light.decode(tokens.flatten(), schedule="1,2,4"), light.decode(tokens))


@pytest.mark.parametrize("schedule", [None, "1,2x1,3,3,4x3,4"])
def test_a_prefix_is_what_encoding_the_first_scales_gives(
    light: vartok.Tokenizer, photos: Tensor, schedule: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    latent = light.latent(photos[:2])
    full = light.quantize(latent, schedule)
    inputs = light.var_inputs(full)
    refine, done = light._runner._quantizer.refine, []

    def counted(h: Tensor, k: int, scales: int) -> Tensor:
        done.append(k)
        return refine(h, k, scales)

    for scales in range(1, len(full.maps) + 1):
        with monkeypatch.context() as patch:
            patch.setattr(light._runner._quantizer, "refine", counted)
            prefix = light.quantize(latent, schedule, scales)
        assert done == list(range(scales))  # the other scales are not computed
        done.clear()
        assert prefix.schedule == full.schedule
        assert torch.equal(prefix.flatten(), full.flatten()[:, : token_count(full.schedule[:scales])])
        assert torch.equal(light.f_hat(prefix), light.f_hat(full, scales))
        assert torch.equal(light.var_inputs(prefix), inputs[:, : token_count(full.schedule[1:scales])])
    assert torch.equal(light.encode(photos[:2], schedule, 1).flatten(), full.maps[0].flatten(1))
    [item, _] = light.image_tokens(light.quantize(latent, schedule, 1), ["a.png", "b.png"])
    assert item.image.size == (64, 64)
    assert torch.equal(light.decode([item]), light.decode(full, scales=1)[:1])
    for wrong in (0, len(full.maps) + 1):
        with pytest.raises(TokensError, match=r"`scales` must be from 1 to"):
            light.encode(photos[:1], schedule, wrong)


def test_all_scales_are_the_default_of_decode(either: vartok.Tokenizer, photos: Tensor) -> None:
    tokens = either.encode(photos[:2])
    assert torch.equal(either.decode(tokens), either.decode(tokens, scales=10))
    assert not torch.equal(either.decode(tokens), either.decode(tokens, scales=9))


def test_the_picture_is_drawn_of_f_hat(either: vartok.Tokenizer, photos: Tensor) -> None:
    tokens = either.encode(photos[:2])
    for scales in (1, 4, 10):
        with torch.no_grad():
            want = either._model.decode(either.f_hat(tokens, scales))
        torch.testing.assert_close(either.decode(tokens, scales), want, rtol=0, atol=1e-4)


def test_var_inputs_are_f_hat_pooled_to_the_next_grid(either: vartok.Tokenizer, photos: Tensor) -> None:
    tokens = either.encode(photos[:2])
    inputs = either.var_inputs(tokens).split([h * w for h, w in tokens.schedule[1:]], dim=1)
    for k, grid in enumerate(tokens.schedule[1:]):
        pooled = nn.functional.adaptive_avg_pool2d(either.f_hat(tokens, scales=k + 1), grid)
        torch.testing.assert_close(inputs[k], pooled.flatten(2).mT, rtol=0, atol=1e-5)
    one = TokenMaps(either.encode(photos[:2], square(4)).maps)
    assert either.var_inputs(one).shape == (2, 0, 32)


def test_var_inputs_can_be_trained_on(light: vartok.Tokenizer, photos: Tensor) -> None:
    head = nn.Linear(32, 4)
    tokens = light.encode(photos[:2].clone().requires_grad_())
    head(light.var_inputs(tokens)).square().mean().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.abs().sum() > 0
    scale = torch.ones(1, requires_grad=True)
    (light.decode(tokens) * scale).mean().backward()
    assert scale.grad is not None
    embedding = nn.Embedding(4096, 4)
    embedding(tokens.maps[-1]).sum().backward()
    assert embedding.weight.grad is not None


def test_an_empty_batch_of_tokens_decodes_to_an_empty_batch(light: vartok.Tokenizer, photos: Tensor) -> None:
    none = TokenMaps(tuple(m[:0] for m in light.encode(photos[:1]).maps))
    assert light.decode(none).shape == (0, 3, 64, 64)
    assert light.f_hat(none).shape == (0, 32, 4, 4)


def test_codes_are_drawn_one_by_one(tmp_path: Path) -> None:
    small = tokenizer(tmp_path / "small.safetensors", SMALL)
    pictures = small.draw_codes()
    assert pictures.shape == (SMALL.vocab_size, 3, 2, 2)
    cells = torch.full((1, 2, 2), 7)
    with torch.no_grad():
        codes = small._model.quantize.embedding(cells).permute(0, 3, 1, 2)
        want = small._model.decode(codes)[0, :, 1:3, 1:3]
    torch.testing.assert_close(pictures[7], want, rtol=0, atol=1e-5)


def psnr(found: Tensor, wanted: Tensor) -> float:
    difference = to_pixels(found).astype(np.float64) - to_pixels(wanted)
    return float(10 * np.log10(255**2 / np.square(difference).mean()))


@pytest.mark.parametrize(
    ("weights", "prefixes", "unquantized"),
    [
        (shipped_checkpoint(), [11.95, 15.53, 25.81], 23.55),
        (DATA.parent / "vartok-light-v0.safetensors", [12.03, 15.56, 24.74], 29.04),  # linear alone
    ],
    ids=["shipped", "v0"],
)
def test_checkpoints_draw_as_well_as_ever(
    weights: Path, prefixes: list[float], unquantized: float, coffee: Tensor
) -> None:
    loaded = vartok.load(weights, device="cpu")
    tokens = loaded.encode(coffee)
    assert token_count(tokens.schedule) == 2_240
    found = [psnr(loaded.decode(tokens, scales), coffee) for scales in (1, 5, 10)]
    assert found == pytest.approx(prefixes, abs=0.02)
    assert psnr(loaded.decode_latent(loaded.latent(coffee)), coffee) == pytest.approx(unquantized, abs=0.02)


# What is refused.


@pytest.mark.parametrize("over", [-1.0005, 1.0005])
def test_resampled_pictures_may_overshoot_a_little(light: vartok.Tokenizer, over: float) -> None:
    light.encode(torch.full((1, 3, 16, 16), over))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_any_float_are_taken(light: vartok.Tokenizer, photos: Tensor, dtype: torch.dtype) -> None:
    images = photos[:2].to(dtype)
    assert torch.equal(light.encode(images).flatten(), light.encode(images.float()).flatten())


def test_encode_is_quantize_of_latent(either: vartok.Tokenizer, photos: Tensor) -> None:
    latent = either.latent(photos[:3])
    assert latent.is_contiguous()
    for same in (latent, latent.double(), latent.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(either.quantize(same).flatten(), either.encode(photos[:3]).flatten())


@pytest.mark.parametrize("shape", [(0, 32, 4, 4), (1, 16, 4, 4), (32, 4, 4), (1, 32, 0, 4)])
def test_what_is_no_latent_is_refused(light: vartok.Tokenizer, shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"a latent must be \[B, 32, h, w\], not"):
        light.quantize(torch.zeros(shape))


def test_a_schedule_is_checked_before_the_networks_run(
    light: vartok.Tokenizer, photos: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(light._runner, "encode", lambda images: pytest.fail("ran"))
    with pytest.raises(ScheduleError):
        light.encode(photos, square(1, 2))


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        (square(1, 2, 3), "the schedule 1,2,3 does not end in the latent's grid, 4"),
        (((1, 1), (2, 4)), "does not end in the latent's grid"),
        (square(1, 8, 4), "higher or wider than the last scale"),
        ((), "a schedule must be a list"),
        ("1,2,8", "does not end in the latent's grid"),
        ("1,2,x", "a schedule must look like"),
        (7, "a schedule must be a list"),
    ],
)
def test_schedules_that_are_not_the_latents_are_refused(
    light: vartok.Tokenizer, photos: Tensor, schedule: Any, reason: str
) -> None:
    with pytest.raises(ScheduleError, match=reason):
        light.encode(photos[:1], schedule)


@pytest.mark.parametrize("index", [-1, 4096, 1 << 40])
def test_tokens_outside_the_vocabulary_are_refused(light: vartok.Tokenizer, index: int) -> None:
    maps = TokenMaps((torch.tensor([[[3]]]), torch.tensor([[[5, index]]])))
    for take in (light.decode, light.f_hat, light.var_inputs):
        with pytest.raises(TokensError, match=f"index {index} is outside the vocabulary of 4096"):
            take(maps)


@pytest.mark.parametrize("scales", [0, -1, 11])
def test_scales_that_do_not_exist_are_refused(light: vartok.Tokenizer, photos: Tensor, scales: int) -> None:
    tokens = light.encode(photos[:1])
    for take in (light.decode, light.f_hat):
        with pytest.raises(
            TokensError, match=f"`scales` must be from 1 to 10, the number of scales, not {scales}"
        ):
            take(tokens, scales)


def test_a_latent_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    tensors = draw(SMALL)
    tensors["quant_conv.weight"].fill_(3e38)  # a finite weight whose products are not
    broken = vartok.load(save(tmp_path / "a.safetensors", SMALL, tensors), device="cpu")
    with pytest.raises(ImageError, match="NaN or infinite values in float32"):
        broken.encode(torch.zeros(1, 3, 8, 8))


# Loading.


def test_the_shipped_checkpoint_is_the_default(light: vartok.Tokenizer) -> None:
    assert light.name == "vartok-light-v2"
    assert light.config == read_settings("light").model
    assert light.device == torch.device("cpu")
    assert light.dtype == "float32"


def test_the_fingerprint_covers_codebook_and_phis_alone(tmp_path: Path) -> None:
    tensors = draw(SMALL)

    def load(dtype: str = "float32", **changes: float) -> vartok.Tokenizer:
        changed = {name: tensor + changes.get(name.replace(".", "_"), 0) for name, tensor in tensors.items()}
        return vartok.load(save(tmp_path / "a.safetensors", SMALL, changed), device="cpu", dtype=dtype)

    own = load()
    for same in (load("bfloat16"), load(encoder_conv_in_weight=1), load(decoder_conv_in_bias=1)):
        assert same.fingerprint == own.fingerprint
        own.check_model(same.info)
    for part in ("embedding_weight", "quant_resi_qresi_ls_0_weight", "quant_resi_qresi_ls_3_bias"):
        other = load("float32", **{f"quantize_{part}": 1.0})
        with pytest.raises(TokenFileError, match="were made with a"):
            own.check_model(other.info)


def test_writing_to_the_codebook_changes_nothing(light: vartok.Tokenizer, photos: Tensor) -> None:
    want = light.encode(photos[:1]).flatten()
    light.codebook.zero_()
    assert torch.equal(light.encode(photos[:1]).flatten(), want)


def test_forms_of_images_and_tokens(light: vartok.Tokenizer, coffee: Tensor) -> None:
    pixels = to_pixels(coffee[:, :, :256, :256])
    want = light.encode(coffee[:, :, :256, :256])
    picture = Image.fromarray(pixels[0])
    for images in (pixels, pixels[0], torch.from_numpy(pixels), picture, [picture], [pixels[0]]):
        assert torch.equal(light.encode(images).flatten(), want.flatten())
    drawn = light.decode(want)
    assert torch.equal(light.decode(want.flatten()), drawn)
    assert torch.equal(light.decode(want.flatten().numpy(), schedule=VAR_256), drawn)
    assert np.array_equal(np.asarray(light.decode(want, as_pil=True)[0]), to_pixels(drawn)[0])
    with pytest.warns(VartokWarning, match="seem to lie in"):
        light.encode(coffee[:, :, :256, :256] / 2 + 0.5)


def test_image_tokens_are_what_token_files_hold(
    light: vartok.Tokenizer, photos: Tensor, tmp_path: Path
) -> None:
    tokens = light.encode(photos[:2])
    first, second = light.image_tokens(tokens, ["a", "b"])
    second.save(tmp_path / "b.npz")
    assert vartok.load_tokens(tmp_path / "b.npz") == second != first
    assert (second.image.source, second.image.size, second.image.fit) == ("b", (64, 64), "native")
    assert torch.equal(light.decode([first, second]), light.decode(tokens))
    with pytest.raises(TokensError, match="1 images are described, but the batch has 2"):
        light.image_tokens(tokens, ["a"])


def test_gradients_flow_on_request(coffee: Tensor) -> None:
    tokenizer = vartok.load(device="cpu", dtype=torch.float32, differentiable=True)
    images = coffee[:, :, :64, :64].clone().requires_grad_()
    tokenizer.decode_latent(tokenizer.latent(images)).square().mean().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_a_checkpoint_that_does_not_tell_all_warns(tmp_path: Path) -> None:
    path = bare(tmp_path / "bare.safetensors", draw(TokenizerConfig(autoencoder=LightConfig(), vocab_size=8)))
    with pytest.warns(VartokWarning) as caught:
        vartok.load(path, device="cpu")
    assert [str(warning.message).partition(": ")[0] for warning in caught] == [str(path)] * 3
    assert {warning.filename for warning in caught} == {__file__}  # it is the caller who should know


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", str(tmp_path / "none.pth")):
        with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'none.pth'}: no such file")):
            vartok.load(path)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta", "", "cpu:x"])
def test_devices_that_are_not_here_are_refused(device: str) -> None:
    with pytest.raises(DeviceError, match=f"torch cannot use the device '{device}' here") as error:
        vartok.load(device=device)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["float64", "fp16", "", "torch.float32", torch.float64])
def test_dtypes_that_are_not_ours_are_refused(dtype: str | torch.dtype) -> None:
    with pytest.raises(DeviceError, match="dtype must be one of float32, tf32, bfloat16, float16, not"):
        vartok.load(dtype=dtype)


def test_tokens_of_another_codebook_are_told_from_ones_own(light: vartok.Tokenizer) -> None:
    light.check_model(light.info)
    light.check_model(ModelInfo(name="renamed", fingerprint=light.fingerprint, vocab_size=4096))
    other = ModelInfo(name=light.name, fingerprint="0123456789ab" + "c" * 52, vocab_size=4096)
    with pytest.raises(TokenFileError, match=f"not with vartok-light-v2 .{light.fingerprint[:12]}"):
        light.check_model(other)


def test_a_device_may_be_torchs_own() -> None:
    assert vartok.load(device=torch.device("cpu")).device == torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["light", "var"])
def test_smaller_dtypes_keep_most_tokens(
    light: vartok.Tokenizer, var: vartok.Tokenizer, photos: Tensor, tmp_path: Path, kind: str, dtype: str
) -> None:
    exact = light if kind == "light" else var
    small = (
        vartok.load(device="cpu", dtype=dtype)
        if kind == "light"
        else tokenizer(tmp_path / "var.safetensors", VAR_32, dtype=dtype)
    )
    assert small.dtype == dtype
    assert small.fingerprint == exact.fingerprint
    some = photos[:2] if kind == "var" else photos  # some processors take long over small dtypes
    tokens, want = small.encode(some), exact.encode(some)
    kept = (tokens.flatten() == want.flatten()).float().mean()
    assert kept > (0.8 if dtype == "float16" else 0.5)
    assert psnr(small.decode(want), exact.decode(want)) > 35
    assert small.decode(want).dtype == small.var_inputs(want).dtype == torch.float32
    assert torch.equal(small.var_inputs(want), exact.var_inputs(want))  # the quantizer is exact always


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="an x86 fact")
def test_on_this_processor_the_model_is_optimized(either: vartok.Tokenizer) -> None:
    assert not isinstance(either._model.quant_conv, nn.Conv2d)


def test_f_hat_and_var_inputs_take_flat_tokens(tmp_path: Path) -> None:
    own = tokenizer(tmp_path / "own.safetensors", SMALL)
    maps = own.encode(torch.zeros(2, 3, *SMALL.image_size))
    assert torch.equal(own.f_hat(maps.flatten()), own.f_hat(maps))
    assert torch.equal(own.var_inputs(maps.flatten().numpy()), own.var_inputs(maps))
