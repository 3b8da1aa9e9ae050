"""Checkpoints of images of one channel, or of other numbers than three, from end to end."""

import dataclasses
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Vartok, photo
from noise import SMALL, bare, draw, save
from numpy.typing import NDArray
from PIL import Image
from tiny_run import TINY, take, tiny

import vartok as library
from vartok.checkpoints import build_model, read_checkpoint
from vartok.config import LightConfig, TokenizerConfig
from vartok.errors import CheckpointError, ConfigError, ImageError, VartokWarning
from vartok.images import Fit, read_picture, to_pixels, to_tensor
from vartok.metrics import psnr
from vartok.models.vqvae import VQVAE
from vartok.train.data import Pictures
from vartok.train.folder import CARD
from vartok.train.settings import DataSettings
from vartok.train.start import init_light, principal_components

LIGHT = dataclasses.replace(SMALL, autoencoder=LightConfig(widths=(8, 8, 8), depths=(1, 1, 1)))
CONFIGS = {
    (name, channels): dataclasses.replace(config, in_channels=channels)
    for name, config in (("var", SMALL), ("light", LIGHT))
    for channels in (1, 5)
}


@pytest.fixture(scope="module", params=[("var", 1), ("light", 5)], ids=lambda key: f"{key[0]}-{key[1]}")
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of random weights, of each autoencoder in turn."""
    return save(tmp_path_factory.mktemp("channels") / "weights.safetensors", CONFIGS[request.param])


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of one channel, for pictures of 64 pixels a side."""
    return save(tmp_path_factory.mktemp("grey") / "grey.safetensors", CONFIGS["light", 1])


@pytest.fixture(scope="module")
def grey_tokenizer(grey: Path) -> library.Tokenizer:
    """Return its tokenizer."""
    return library.load(grey, device="cpu")


def images(config: TokenizerConfig, count: int = 2, seed: int = 0) -> torch.Tensor:
    """Return random images, [B, C, H, W] in [-1, 1]."""
    height, width = config.image_size
    shape = (count, config.in_channels, height, width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_tokens_and_images_are_those_of_the_plain_model(checkpoint: Path) -> None:
    read = read_checkpoint(checkpoint)
    tokenizer, model = library.load(checkpoint, device="cpu"), build_model(read)
    batch = images(read.config)
    tokens = tokenizer.encode(batch)
    latent = model.encode(batch)
    assert torch.allclose(tokenizer.latent(batch), latent, atol=1e-5)
    for found, wanted in zip(
        tokens.maps, model.quantize.encode(latent, read.config.patch_nums, None), strict=True
    ):
        assert torch.equal(found, wanted)
    decoded = tokenizer.decode(tokens)
    assert decoded.shape == batch.shape
    assert torch.allclose(decoded, model.decode(tokenizer.f_hat(tokens)), atol=1e-5)


@pytest.mark.parametrize("key", CONFIGS, ids=str)
def test_the_number_of_channels_is_recognized_by_shapes(tmp_path: Path, key: tuple[str, int]) -> None:
    config = CONFIGS[key]
    path = bare(tmp_path / "bare.safetensors", draw(config))
    found = read_checkpoint(path, {"patch_nums": [1, 2, 4]}).config
    assert found == config
    assert TokenizerConfig.from_json(found.to_json()) == config


def test_a_decoder_of_other_channels_than_the_encoder_is_refused(tmp_path: Path) -> None:
    tensors = {**draw(CONFIGS["var", 1])}
    tensors["decoder.conv_out.weight"] = draw(SMALL)["decoder.conv_out.weight"]
    path = bare(tmp_path / "mixed.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"decoder\.conv_out\.weight is 3x32x3x3, expected 1x32x3x3"):
        read_checkpoint(path, {"patch_nums": [1, 2, 4]})


def test_the_fingerprint_does_not_depend_on_the_channels(tmp_path: Path) -> None:
    quantizer = {name: tensor for name, tensor in draw(LIGHT).items() if name.startswith("quantize")}
    found = {
        library.load(
            save(tmp_path / f"{config.in_channels}.safetensors", config, draw(config) | quantizer),
            device="cpu",
        ).fingerprint
        for config in (CONFIGS["light", 1], CONFIGS["light", 5], LIGHT)
    }
    assert len(found) == 1


def test_images_of_every_form_become_one_channel(checkpoint: Path) -> None:
    tokenizer = library.load(checkpoint, device="cpu")
    channels = tokenizer.config.in_channels
    pixels = np.random.default_rng(0).integers(0, 256, (*tokenizer.config.image_size, channels), np.uint8)
    wanted = tokenizer.encode(to_tensor(pixels[None])).flatten()
    forms: list[Any] = [pixels, pixels.astype(np.uint16) * 257, torch.from_numpy(pixels), [pixels]]
    forms.append((pixels.astype(np.uint16) * 257).astype(">u2"))
    if channels == 1:
        deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        assert deep.mode == "I;16"
        forms += [Image.fromarray(pixels[..., 0]), deep]
        with pytest.warns(VartokWarning, match="converted the colours of 2 pictures to grey levels"):
            grey = tokenizer.encode([Image.fromarray(pixels.repeat(3, 2))] * 2)
        assert torch.equal(grey.flatten(), wanted.repeat(2, 1))
    for form in forms:
        assert torch.equal(tokenizer.encode(form).flatten(), wanted)
    tokens = tokenizer.encode(pixels)
    if channels == 1:
        [picture] = tokenizer.decode(tokens, as_pil=True)
        assert picture.mode == "L"
        assert np.array_equal(np.asarray(picture), to_pixels(tokenizer.decode(tokens))[0, ..., 0])
    else:
        with pytest.raises(ImageError, match="1 or 3 channels"):
            tokenizer.decode(tokens, as_pil=True)


@pytest.mark.parametrize(
    ("images", "reason", "hint"),
    [
        (torch.zeros(1, 3, 64, 64), "[B, 1, H, W] floating point, not [1, 3, 64, 64]", "takes 1 channel"),
        (np.zeros((64, 64), np.uint8), "uint8 images must be [H, W, 1]", "`images[..., None]`"),
        (torch.zeros(64, 64), "images must be [B, 1, H, W]", "`images[None, None]`"),
        (np.zeros((64, 64, 3), np.uint16), "uint16 images must be [H, W, 1]", "takes 1 channel"),
        (Image.new("F", (64, 64)), "mode F is no image of 1 channel", "[H, W, 1] uint8 or uint16"),
    ],
)
def test_images_of_other_channels_are_refused(
    grey_tokenizer: library.Tokenizer, images: Any, reason: str, hint: str
) -> None:
    with pytest.raises(ImageError, match=re.escape(reason)) as error:
        grey_tokenizer.encode(images)
    assert hint in str(error.value.hint)


# The command line.


def array(path: Path, channels: int, seed: int = 0) -> Path:
    """Save a picture of 16 bits as .npy."""
    random = np.random.default_rng(seed)
    np.save(path, random.integers(0, 1 << 16, (16, 32, channels), np.uint16))
    return path


def test_encode_and_decode_one_channel(
    vartok: Vartok, here: Path, grey: Path, grey_tokenizer: library.Tokenizer
) -> None:
    ramp = np.arange(1 << 12, dtype=np.uint16).reshape(64, 64) * 16
    Image.fromarray(ramp).save("ramp.png")
    photo(0, 32, 32).save("photo.jpg")
    photo(1, 32, 32).convert("L").save("grey.png")
    array(Path("array.npy"), 1)
    result = vartok("encode", "ramp.png", "photo.jpg", "grey.png", "array.npy", "-w", grey, "-o", "out")
    said = "converted the colours of 1 picture to grey levels: the checkpoint has one channel"
    assert result.stderr.count("grey levels") == 1
    assert said in result.stderr
    wanted = grey_tokenizer.encode(ramp[..., None]).flatten()[0]
    assert np.array_equal(library.load_tokens("out/ramp.tokens.npz").flatten(), wanted)
    vartok("decode", "out/ramp.tokens.npz", "out/photo.tokens.npz", "-w", grey, "-o", "decoded")
    with Image.open("decoded/ramp.decoded.png") as picture:
        assert (picture.mode, picture.size) == ("L", (64, 64))
    vartok("decode", "out/ramp.tokens.npz", "-w", grey, "--strip", "-o", "deep.npy")
    assert (np.load("deep.npy").shape, np.load("deep.npy").dtype) == ((64, 192, 1), np.uint16)
    assert library.decode_file("out/ramp.tokens.npz", tokenizer=grey_tokenizer).mode == "L"


def test_encode_and_decode_five_channels(vartok: Vartok, here: Path) -> None:
    weights = save(here / "five.safetensors", CONFIGS["light", 5])
    array(Path("array.npy"), 5)
    photo(0, 32, 32).save("photo.png")
    refused = vartok("encode", "array.npy", "photo.png", "-w", weights, "--fit", "native", code=3).stderr
    assert "photo.png: has 3 channels (RGB), but the checkpoint takes 5" in refused
    assert "set --format to npy" in vartok("decode", "array.tokens.npz", "-w", weights, code=2).stderr
    command = ("decode", "array.tokens.npz", "-w", weights, "--format", "npy")
    vartok(*command)
    found = np.load("array.decoded.npy")
    tokenizer = library.load(weights, device="cpu")
    decoded = tokenizer.decode(tokenizer.encode(np.load("array.npy")))
    assert np.array_equal(found, to_pixels(decoded, np.uint16)[0])
    vartok(*command, "--skip-existing")
    assert "exists" in vartok(*command, code=1).stderr


def test_eval_of_one_channel(
    vartok: Vartok, here: Path, grey: Path, grey_tokenizer: library.Tokenizer
) -> None:
    photo(0, 32, 32).save("photo.png")
    array(Path("array.npy"), 1)
    ran = vartok("eval", "photo.png", "array.npy", "-w", grey, "--size", "32", "--baselines", "--json")
    assert "converted the colours of 1 picture" in ran.stderr
    report = json.loads(ran.stdout)
    assert (report["pictures"], report["converted_to_grey"]) == (2, 1)
    assert report["methods"]["psnr"].startswith("over a picture's levels, peak 255, or 65535")
    assert [one["format"] for one in report["baselines"]] == ["jpeg", "webp"]
    fit = Fit(channels=1, size=32)
    found = []
    for name in ("photo.png", "array.npy"):
        pixels = read_picture(Path(name), fit).pixels
        copy = to_pixels(grey_tokenizer.decode(grey_tokenizer.encode(pixels)), pixels.dtype)[0]
        error = np.square((pixels.astype(float) - copy) / np.iinfo(pixels.dtype).max).mean()
        found.append(-10 * np.log10(error))
    assert report["models"][0]["psnr"] == pytest.approx(np.mean(found), abs=1e-6)


def test_eval_of_five_channels_has_no_baselines(vartok: Vartok, here: Path) -> None:
    weights = save(here / "five.safetensors", CONFIGS["light", 5])
    array(Path("array.npy"), 5)
    command = ("eval", "array.npy", "-w", weights, "--no-scales", "--size", "32", "--json")
    report = json.loads(vartok(*command, "--again", "1", "--agree", "float32").stdout)
    [model] = report["models"]
    assert (report["pictures"], model["psnr"] < 100, report["agreements"][0]["differences"]) == (1, True, 0)
    tokenizer = library.load(weights, device="cpu")
    pixels = read_picture(Path("array.npy"), Fit(channels=5, size=32)).pixels
    copies = [pixels[None]]
    for _ in range(2):
        copies.append(to_pixels(tokenizer.decode(tokenizer.encode(to_tensor(copies[-1]))), pixels.dtype))
    assert model["round_trips"][0]["previous_psnr"] == psnr(copies[1][0], copies[2][0])  # of 16 bits
    assert "8-bit or 16-bit pixels" in report["methods"]["round_trips"]
    assert "`baselines`" not in (said := vartok(*command, "--baselines", code=2).stderr)
    assert "--baselines needs pictures of 1 or 3 channels, not the checkpoint's 5" in said
    assert "they cannot get the same pixels" in vartok(*command, "--compare", "shipped", code=2).stderr


def test_a_data_set_of_one_channel(
    vartok: Vartok, here: Path, grey: Path, grey_tokenizer: library.Tokenizer
) -> None:
    (here / "in").mkdir()
    photo(0, 32, 32).save("in/photo.png")
    levels = np.arange(1 << 12, dtype=np.uint16).reshape(64, 64) * 16
    Image.fromarray(levels).save("in/ramp.png")
    options = ("-w", grey, "--views", "flip", "--latents", "--format", "wds", "--keep-pictures")
    ran = vartok("dataset", "in", array(here / "array.npy", 1), "-o", "set", *options)
    assert "colours of pictures: converted to grey levels" in ran.stderr
    summary = json.loads(Path("set/dataset.json").read_text())
    assert summary["pictures"] == 3
    assert list(summary["not_carried"].values()) == [1]
    vartok("dataset", "verify", "set")
    vartok("decode", "set", "-w", grey, "-o", "out")
    assert len(list(Path("out").rglob("*.png"))) == 6
    ramp = torch.from_numpy(levels.astype(np.float32))[None, None] / 32767.5 - 1
    with tarfile.open(next(Path("set/data").glob("*.tar"))) as tar:
        names = tar.getnames()
        tokens = {name: _load(tar, name) for name in names if "ramp" in name and name.endswith("tokens.npy")}
    assert any(re.fullmatch(r"array[^.]*\.npy", name) for name in names)
    wanted = [grey_tokenizer.encode(view).flatten()[0].numpy() for view in (ramp, ramp.flip(3))]
    assert all(np.array_equal(one, two) for one, two in zip(tokens.values(), wanted, strict=True))


def _load(tar: tarfile.TarFile, name: str) -> NDArray[Any]:
    member = tar.extractfile(name)
    assert member is not None
    found: NDArray[Any] = np.load(io.BytesIO(member.read()))
    return found


def test_what_is_drawn_of_16_bits_and_of_five_channels(
    vartok: Vartok, here: Path, grey: Path, grey_tokenizer: library.Tokenizer
) -> None:
    Image.fromarray(np.arange(1 << 12, dtype=np.uint16).reshape(64, 64) * 16).save("ramp.png")
    vartok("encode", "ramp.png", "-w", grey)
    shown = vartok("show", "ramp.tokens.npz", "-w", grey, "-o", "one.png").stderr
    vartok("show", "ramp.tokens.npz", "-w", grey, "--sheet", "-o", "sheet.png")  # with the original
    levels = read_picture(Path("ramp.png"), Fit(size=64)).pixels[..., :1]
    copy = to_pixels(grey_tokenizer.decode(library.load_tokens("ramp.tokens.npz")))[0]
    assert f"{psnr(levels, copy):.2f} dB" in shown
    five = save(here / "five.safetensors", CONFIGS["light", 5])
    vartok("inspect-codebook", "-w", five, "--atlas", "atlas.png")
    with Image.open("atlas.png") as atlas:
        assert atlas.mode == "RGB"
    array(Path("five.npy"), 5)
    vartok("encode", "five.npy", "-w", five, "--size", "32")
    for option in ("--maps", "--animate"):
        vartok("decode", "five.tokens.npz", "-w", five, option)
    assert {"five.maps.png", "five.animated.webp"} <= {path.name for path in here.iterdir()}


# Training.


@pytest.mark.slow
def test_training_of_one_channel(vartok: Vartok, here: Path) -> None:
    """Arrays of 16 bits and a photo become a checkpoint that encodes them; the run is resumed."""
    for i in range(12):
        np.save(f"{i}.npy", np.asarray(photo(i, 80, 72).convert("L")).astype(np.uint16) * 257)
    photo(99, 80, 72).save("color.png")
    (here / "list.txt").write_text("color.png\n" + "".join(f"{i}.npy\n" for i in range(12)))
    (here / "tiny.toml").write_text(TINY.replace("[loss]", "[loss]\nadversarial = 0.1"))
    command = ("train", "list.txt", "-o", "run", "--device", "cpu")
    assert "leave --channels out" in vartok(*command, "--channels", 1, "--from", "shipped", code=2).stderr
    said = vartok(*command, "--preset", "tiny.toml", "--channels", 1).stderr
    assert "grey levels" in said
    assert "[data] grayscale_prob is not used: the model has 1 channel, not 3" in said
    vartok(*command, "--resume", "--steps", "10")
    assert read_checkpoint(here / "run").config.in_channels == 1
    assert "| Channels | 1 |" in (here / "run" / CARD).read_text()
    with Image.open(max(Path("run/samples").glob("*.png"))) as sample:
        assert sample.mode == "L"
    report = json.loads(vartok("eval", "0.npy", "1.npy", "-w", "run", "--no-scales", "--json").stdout)
    assert report["models"][0]["psnr"] > 10


def test_light_starts_as_the_principal_components_of_one_channel() -> None:
    config = dataclasses.replace(LIGHT, in_channels=1, z_channels=256, vocab_size=16)
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (16, 64, 64, 1), np.uint16)
    model = VQVAE(config)
    init_light(model, principal_components(pixels, config, torch.device("cpu")))
    batch = to_tensor(pixels)
    assert (model.decode(model.encode(batch)) - batch).abs().max() < 1e-2  # all components: nothing is lost


def test_crops_of_16_bits_are_varied_and_stay_in_range(here: Path) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (80, 96, 2), np.uint16)
    np.save("a.npy", values)
    source = Pictures(["a.npy"], DataSettings(val_fraction=0, color_jitter=0.5), (64, 64), 0, channels=2)
    [batch] = take(source, 1, size=4)
    assert batch.pixels.shape == (4, 64, 64, 2)
    assert batch.pixels.dtype == np.uint16
    assert len({crop.tobytes() for crop in batch.pixels}) == 4
    plain = Pictures(["a.npy"], DataSettings(val_fraction=0, color_jitter=0, zoom=1), (80, 96), 0, channels=2)
    [batch] = take(plain, 1, size=4)
    for crop in batch.pixels:
        assert np.array_equal(crop, values) or np.array_equal(crop, values[:, ::-1])


def test_pictures_in_colour_are_counted_once_however_often_they_are_read(here: Path) -> None:
    for i in range(2):
        photo(i, 64, 64).save(f"{i}.png")
    source = Pictures(["0.png", "1.png"], DataSettings(val_fraction=0), (64, 64), 0, channels=1)
    take(source, 3, size=4)
    with pytest.warns(VartokWarning, match="the colours of 2 pictures to grey levels"):
        source.findings.warn()


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ({"model": {"in_channels": 33}}, "in_channels 33 makes patches of 8,448 values"),
        ({"model": {"in_channels": 0}}, "in_channels must be a whole number from 1 to 256"),
        ({"model": {"in_channels": 5}, "loss": {"lpips": 1.0}}, "lpips needs a model of 1 or 3 channels"),
    ],
)
def test_settings_that_do_not_suit_the_channels_are_refused(tables: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        tiny(**tables)
