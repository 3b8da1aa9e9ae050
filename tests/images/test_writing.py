"""Pictures are encoded as files."""

import numpy as np
import pytest
from picture_files import AS_IS, check_message, photo

from vartok import images
from vartok.errors import ImageError
from vartok.images import encode_picture, parse_color, read_picture


@pytest.mark.parametrize("format", images.FORMATS)
def test_encoded_pictures(format: str) -> None:
    pixels = np.asarray(photo(33, 20))
    data = encode_picture(pixels, format)
    assert data == encode_picture(pixels.copy(), format)
    back = read_picture(data, AS_IS).pixels
    error = np.abs(back.astype(int) - pixels)
    assert error.max() == 0 if format != "jpg" else error.mean() < 6
    assert back.shape == pixels.shape


def test_pictures_that_are_not_encoded() -> None:
    with pytest.raises(ImageError, match="png, jpg, webp"):
        encode_picture(np.zeros((2, 2, 3), np.uint8), "bmp")
    with pytest.raises(ImageError, match=r"webp cannot hold 20,000 x 1 pixels: write png"):
        encode_picture(np.zeros((1, 20_000, 3), np.uint8), "webp")
    with pytest.raises(ImageError, match="uint8"):
        encode_picture(np.zeros((2, 2), np.uint8), "png")
    assert set(images.SUFFIXES.values()) == set(images.FORMATS)


def test_colors() -> None:
    assert parse_color("white") == (255, 255, 255)
    assert parse_color("#aabbcc") == (170, 187, 204)
    for text in ("", "whitish", "#12", "#aabbccdd", "rgb(300,0,0)", "a\nb", "x" * 1000):
        with pytest.raises(ImageError) as caught:
            parse_color(text)
        check_message(caught.value)
