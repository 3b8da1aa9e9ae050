"""Pictures for checkpoints of one channel, or of other numbers than three: grey levels, masks, arrays."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from picture_files import photo, png
from PIL import Image

from vartok.errors import DamagedImageError, ImageError
from vartok.images import Fit, Views, encode_picture, read_picture, restore_size, scaling
from vartok.images.bands import Bands
from vartok.images.channels import CONVERTED

RAMP = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def npy(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (saved(Image.fromarray(RAMP)), RAMP),
        (saved(Image.fromarray(RAMP), "TIFF"), RAMP),
        (npy(RAMP), RAMP),
        (npy(np.asfortranarray(RAMP)[..., None]), RAMP),
        (npy((RAMP / 65535).astype(np.float32)), RAMP),
        (saved(Image.fromarray((RAMP >> 8).astype(np.uint8))), (RAMP >> 8).astype(np.uint8)),
        (saved(Image.fromarray(RAMP >= 999)), np.where(RAMP >= 999, 255, 0).astype(np.uint8)),
        (npy(RAMP >= 999), np.where(RAMP >= 999, 255, 0).astype(np.uint8)),
    ],
    ids=["png", "tiff", "npy", "fortran", "float", "8 bits", "1 bit", "bool"],
)
def test_no_grey_level_is_lost(data: bytes, wanted: NDArray[Any]) -> None:
    picture = read_picture(data, Fit(channels=1))
    assert picture.pixels.dtype == wanted.dtype
    assert np.array_equal(picture.pixels[..., 0], wanted)
    assert not picture.notes


def test_floats_that_do_not_define_white_are_rescaled_and_said() -> None:
    depth = np.linspace(2, 12, 64, dtype=np.float32).reshape(8, 8)
    for data in (npy(depth), saved(Image.fromarray(depth), "TIFF")):
        picture = read_picture(data, Fit(channels=1, size=8))
        assert (np.diff(picture.pixels.ravel().astype(int)) > 0).all()
        assert picture.pixels[-1, -1, 0] == 65535
        assert "rescaled its range" in picture.notes[0]


def test_colours_become_grey_levels_as_pillow_weighs_them_and_that_is_said() -> None:
    image = photo(20, 16)
    for data in (saved(image), npy(np.asarray(image))):
        picture = read_picture(data, Fit(channels=1, size=(16, 20)))
        assert np.array_equal(picture.pixels[..., 0], np.asarray(image.convert("L")))
        assert picture.notes == (CONVERTED,)
    deep = read_picture(npy(np.asarray(image).astype(np.uint16) * 257), Fit(channels=1, size=(16, 20))).pixels
    assert np.abs(deep[..., 0] / 257 - np.asarray(image.convert("L"))).max() <= 0.5


def test_grey_levels_under_transparency_and_around_a_padded_picture() -> None:
    fit = Fit(channels=1, mode="pad", size=(2, 4), background=(255, 0, 0))
    for values, level in ((np.full((2, 2), 9, np.uint8), 76), (np.full((2, 2), 9, np.uint16), 76 * 257)):
        pixels = read_picture(npy(values), fit).pixels
        assert pixels[0, :, 0].tolist() == [level, 9, 9, level]
        shown = read_picture(saved(Image.fromarray(values), transparency=9), fit).pixels
        assert (shown == level).all()


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "fit",
    [
        Fit(size=(16, 24)),
        Fit(size=(16, 24), mode="stretch"),
        Fit(size=(24, 16), mode="pad"),
        Fit(size=16, resample="adm"),
        Fit(mode="native"),
        Fit(size=16, zoom=1.5, views=Views.parse("ten-crop")),
    ],
    ids=lambda fit: f"{fit.mode}-{fit.resample}-{fit.views}",
)
def test_every_channel_is_fitted_as_it_would_be_alone(channels: int, dtype: Any, fit: Fit) -> None:
    top = int(np.iinfo(dtype).max) + 1
    values = np.random.default_rng(0).integers(0, top, (40, 52, channels), dtype)
    found = read_picture(npy(values), _with(fit, channels)).pixels
    assert found.dtype == dtype
    assert found.shape[-1] == channels
    for i in range(channels):
        alone = read_picture(npy(values[..., i]), _with(fit, 1)).pixels
        assert np.array_equal(found[..., i], alone[..., 0])
    if dtype == np.uint8 and channels == 5:  # as those of RGB
        rgb = read_picture(saved(Image.fromarray(values[..., :3])), fit).pixels
        assert np.array_equal(found[..., :3], rgb)


def _with(fit: Fit, channels: int) -> Fit:
    return Fit(**{**vars(fit), "channels": channels})


def test_strips_of_large_pictures_have_all_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (40, 40, 5), np.uint16)
    whole = scaling.scale(Bands.from_pixels(values), 64, 48)
    monkeypatch.setattr(scaling, "LARGE", 100)
    monkeypatch.setattr(scaling, "STRIP", 500)
    parts = scaling.scale(Bands.from_pixels(values), 64, 48)
    assert parts.dtype == whole.dtype
    assert np.abs(parts.astype(int) - whole).max() <= 2


def test_alpha_is_a_channel_of_two_and_of_four() -> None:
    image = photo(16, 16).convert("RGBA")
    image.putalpha(photo(16, 16).convert("L"))
    for mode, channels in (("RGBA", 4), ("LA", 2)):
        pixels = read_picture(saved(image.convert(mode)), Fit(size=16, channels=channels)).pixels
        assert np.array_equal(pixels, np.asarray(image.convert(mode)))


def png16(values: NDArray[Any]) -> bytes:
    """Return a 16-bit PNG of [H, W, C] levels; two channels are grey and alpha."""
    rows = [row.astype(">u2").tobytes() for row in values]
    return png(values.shape[1], 16, {2: 4, 3: 2, 4: 6}[values.shape[2]], rows)


def test_the_lost_bits_of_16_are_said_and_grey_with_alpha_is_no_colour() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (8, 8, 4), np.uint16)
    lost = "kept the high 8 bits of its 16"
    for stored, channels in ((2, 2), (4, 4)):
        picture = read_picture(png16(values[..., :stored]), Fit(size=8, channels=channels))
        assert np.array_equal(picture.pixels, values[..., :stored] >> 8)
        assert picture.notes == (lost,)
    assert read_picture(png16(values[..., :2]), Fit(size=8, channels=1)).notes == (lost,)
    assert read_picture(png16(values[..., :3]), Fit(size=8, channels=1)).notes == (lost, CONVERTED)
    assert not read_picture(png16(values), Fit(size=8)).notes


def test_arrays_for_rgb_checkpoints() -> None:
    image = np.asarray(photo(20, 16))
    fit = Fit(size=(16, 20))
    for values in (image, image.astype(np.uint16) * 257, image / 255):
        assert np.array_equal(read_picture(npy(values), fit).pixels, image)
    grey = read_picture(npy(image[..., :1]), fit).pixels
    assert np.array_equal(grey, image[..., :1].repeat(3, 2))


@pytest.mark.parametrize(
    ("data", "channels", "reason", "hint"),
    [
        (
            npy(np.zeros((16, 16, 5), np.uint8)),
            3,
            "has 5 channels, but the checkpoint takes 3",
            "[height, wid",
        ),
        (
            npy(np.zeros((5, 16, 16), np.uint8)),
            5,
            "whose last axis is not its channels",
            "numpy.moveaxis(arra",
        ),
        (npy(np.zeros((16, 16), np.uint16)), 3, "without an axis of channels", "save `array[..., None]`"),
        (
            npy(np.zeros((16, 16), np.int64)),
            1,
            "dtype 'int64', which is no picture",
            "of bool, uint8, uint16",
        ),
        (npy(np.zeros((2, 16, 16, 1), np.uint8)), 1, "shape (2, 16, 16, 1)", "[height, width, chann"),
        (npy(np.zeros((0, 16, 1), np.uint8)), 1, "16 x 0 is not a size in pixels", ""),
        (npy(np.zeros((16, 17, 1), np.uint8)), 1, "more than the limit of 256", "`max_pixels` higher"),
        (npy(np.zeros((16, 16, 4), np.uint8)), 4, "1,024 values are more than three", "`max_pixels` higher"),
        (b"\x93NUMPY\x03\x00", 1, "is an array that cannot be read", ""),
        (saved(photo(8, 8)), 5, "has 3 channels (RGB), but the checkpoint takes 5", "as .npy"),
        (saved(photo(8, 8).convert("L")), 2, "has 1 channel (L), but the checkpoint takes 2 (LA)", "as .npy"),
        (
            saved(photo(8, 8).convert("CMYK"), "JPEG"),
            4,
            "has 4 channels (CMYK), but the checkpoint takes 4 (RGBA)",
            "",
        ),
    ],
)
def test_pictures_of_other_channels_are_refused(data: bytes, channels: int, reason: str, hint: str) -> None:
    with pytest.raises(ImageError) as error:
        read_picture(data, Fit(channels=channels, max_pixels=256))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert hint in str(error.value.hint)


def test_an_array_never_runs_code_and_its_size_is_checked_before_memory_is_taken() -> None:
    objects = npy(np.array([[print]], object))
    with pytest.raises(ImageError, match=r"dtype 'object'"):
        read_picture(objects, Fit(channels=1))
    header = npy(np.zeros((1, 1), np.float64)).replace(b"(1, 1), }    ", b"(9999, 9999)}")
    with pytest.raises(DamagedImageError, match="truncated"):
        read_picture(header, Fit(channels=1))


def test_what_there_is_of_a_truncated_array() -> None:
    data = npy(np.full((16, 16), 200, np.uint8))[:-100]
    with pytest.raises(DamagedImageError, match="is truncated") as error:
        read_picture(data, Fit(channels=1, size=16))
    assert "allow_damaged" in str(error.value.hint)
    picture = read_picture(data, Fit(channels=1, size=16, allow_damaged=True))
    assert picture.damage
    assert (picture.pixels.ravel()[:156] == 200).all()
    assert not picture.pixels.ravel()[156:].any()


def test_pixels_are_written_and_restored() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (8, 12, 5), np.uint16)
    assert np.array_equal(np.load(io.BytesIO(encode_picture(values, "npy"))), values)
    assert restore_size(values, width=24, height=16, mode="stretch").shape == (16, 24, 5)
    grey = (values[..., :1] >> 8).astype(np.uint8)
    with Image.open(io.BytesIO(encode_picture(grey, "png"))) as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), grey[..., 0])
    with pytest.raises(ImageError, match="png holds 1 or 3 channels of uint8, not 5 of uint16"):
        encode_picture(values, "png")
