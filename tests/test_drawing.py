"""Labelled pictures and sheets."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vartok import drawing
from vartok.drawing import GAP, MIN_LABEL_WIDTH, Tile, fit_inside, label, sheet
from vartok.errors import ImageError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def plain(width: int, height: int, color: tuple[int, int, int] = RED) -> Image.Image:
    return Image.new("RGB", (width, height), color)


def dark(image: Image.Image) -> NDArray[np.bool_]:
    """The pixels of letters."""
    return np.asarray(image.convert("L")) < 60


def test_a_label_leaves_the_picture_as_it_is() -> None:
    picture = Image.effect_noise((120, 40), 50)
    labelled = label(picture, "scale 1\n24.3 dB")
    assert np.array_equal(np.asarray(labelled)[:40], np.asarray(picture.convert("RGB")))
    text = dark(labelled.crop((0, 40, 120, labelled.height)))
    assert text.any()
    assert not text[:, : drawing.INSET].any()
    assert labelled.height > 40 + 2 * 12
    assert np.array_equal(np.asarray(label(picture, "")), np.asarray(picture.convert("RGB")))
    assert label(picture, "", width=200).size == (200, 40)


@pytest.mark.parametrize(
    "text", ["a_name_without_spaces" * 20, "many words " * 9, "\x1b[31m\u202e", "写真", "<b>&amp;"]
)
def test_a_caption_stays_within_its_width(text: str) -> None:
    size = drawing.MIN_TEXT_SIZE
    font = drawing._font(size)
    lines = drawing.wrap(text, font, 100)
    assert lines
    assert all(font.getlength(line) <= 100 and line.isprintable() for line in lines)
    assert label(plain(100, 10), text).width == 100


def test_a_small_picture_has_room_for_its_caption() -> None:
    assert label(plain(4, 4), "scale 1").width == MIN_LABEL_WIDTH


def test_a_sheet_has_rows_and_columns() -> None:
    tiles = [Tile(plain(120, 30)), Tile(np.zeros((50, 100, 1), np.uint8)), Tile(plain(140, 20, BLUE))]
    drawn = sheet(tiles, columns=2)
    assert drawn.size == (140 + GAP + 100, 50 + GAP + 20)
    assert [drawn.getpixel(at) for at in ((0, 0), (140 + GAP, 49), (139, 50 + GAP))] == [RED, (0, 0, 0), BLUE]
    assert drawn.getpixel((125, 0)) == drawn.getpixel((200, 60)) == (255, 255, 255)
    assert sheet(tiles).size == (120 + 100 + 140 + 2 * GAP, 50)
    captioned = sheet([tile._replace(caption="scale 1") for tile in tiles], columns=2)
    assert captioned.width == drawn.width
    assert dark(captioned.crop((0, 30, 120, 46))).any()


def test_a_sheet_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="108 x 10 pixels, more than 1,000"):
        sheet([Tile(plain(50, 10))] * 2)
    with pytest.raises(ImageError, match="at least one"):
        sheet([])
    with pytest.raises(ImageError, match="96 x 72 pixels"):
        label(plain(10, 10), "a\n" * 3 + "b")


def test_pictures_are_scaled() -> None:
    assert fit_inside(plain(200, 100), 50, 50).size == (50, 25)
    assert fit_inside(plain(1000, 1), 50, 50).size == (50, 1)
