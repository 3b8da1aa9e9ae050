"""Views: which parts of a picture they are, and that their boxes say so."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import photo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vartok.errors import ImageError
from vartok.images import Fit, Views
from vartok.images.fit import fitted
from vartok.metadata import MAX_VIEWS

WIDE = photo(0, 24, 8)
SQUARE = photo(1, 16, 16)


def test_views_are_parsed() -> None:
    for text, count in (("center", 1), ("flip", 2), ("ten-crop", 10), ("random:1", 1), ("random:100", 100)):
        views = Views.parse(text, seed=3)
        assert (str(views), views.count) == (text, count)
        assert views.seed == (3 if text.startswith("random") else 0)
    for wrong in ("random", "random:0", "random:01", f"random:{MAX_VIEWS + 1}", "Flip", ""):
        with pytest.raises(ImageError, match="views are center, flip, ten-crop or random:N"):
            Views.parse(wrong)


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
def test_flip_adds_the_mirror_image(mode: str) -> None:
    fit = Fit(mode=mode, size=8)
    alone, none = fitted(WIDE, fit)
    pixels, views = fitted(WIDE, replace(fit, views=Views.parse("flip")))
    assert none == ()
    np.testing.assert_array_equal(pixels, [alone, alone[:, ::-1]])
    # With pad, the picture has 3 of 8 rows, below 2 rows of background.
    boxes = {"crop": (8, 0, 16, 8), "pad": (0, -2 * 8 / 3, 24, 6 * 8 / 3), "stretch": (0, 0, 24, 8)}
    assert [view.box for view in views] == [boxes[mode]] * 2
    assert [(view.number, view.flipped) for view in views] == [(0, False), (1, True)]


def test_ten_crops_are_the_corners_and_the_centre_of_the_central_square() -> None:
    fit = Fit(size=8, zoom=2, views=Views.parse("ten-crop"))
    wide = WIDE.resize((48, 16))
    pixels, views = fitted(wide, fit)  # scaled by 1: its boxes are places of pixels
    corners = [(16, 0), (24, 0), (16, 8), (24, 8), (20, 4)]
    mirrored = [(24, 0), (16, 0), (24, 8), (16, 8), (20, 4)]
    assert [view.box for view in views] == [(x, y, x + 8, y + 8) for x, y in corners + mirrored]
    assert [view.flipped for view in views] == [False] * 5 + [True] * 5
    for cut, view in zip(pixels, views, strict=True):
        expected = np.asarray(wide.crop(view.box))
        np.testing.assert_array_equal(cut[:, ::-1] if view.flipped else cut, expected)
    alone, _ = fitted(wide, replace(fit, views=Views()))
    np.testing.assert_array_equal(pixels[4], alone)


def test_ten_crops_with_adm_are_those_of_llamagen() -> None:
    side = 13  # int(8 * 1.7), an odd number of pixels more than 8
    image = WIDE.resize((39, 13))
    square = image.crop((13, 0, 26, 13))
    expected = []
    for whole in (square, square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        centre = round((side - 8) / 2)
        for left, top in ((0, 0), (side - 8, 0), (0, side - 8), (side - 8, side - 8), (centre, centre)):
            expected.append(np.asarray(whole.crop((left, top, left + 8, top + 8))))
    fit = Fit(size=8, zoom=1.7, resample="adm", views=Views.parse("ten-crop"))
    pixels, _ = fitted(image, fit)
    np.testing.assert_array_equal(pixels, expected)


@given(st.integers(8, 60), st.integers(8, 60), st.sampled_from([1.0, 1.1, 2.0]), st.text(max_size=3))
def test_boxes_of_random_crops_lie_in_the_picture(width: int, height: int, zoom: float, key: str) -> None:
    fit = Fit(size=8, zoom=zoom, views=Views.parse("random:4"))
    pixels, views = fitted(Image.new("RGB", (width, height)), fit, key)
    assert pixels.shape == (4, 8, 8, 3)
    for view in views:
        left, top, right, bottom = view.box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert (right - left) == pytest.approx(min(width, height) / zoom, rel=0.2)


def test_random_crops_depend_on_the_seed_and_the_key_alone() -> None:
    def boxes(count: int = 8, seed: int = 0, key: str = "a") -> list[tuple[object, bool]]:
        _, views = fitted(SQUARE, Fit(size=8, zoom=2, views=Views.parse(f"random:{count}", seed)), key)
        return [(view.box, view.flipped) for view in views]

    assert boxes() == boxes()
    assert boxes(4) == boxes()[:4]
    assert boxes() != boxes(seed=1) != boxes(key="b") != boxes()
    many = boxes(100)
    assert {box[0] for box, _ in many} == set(range(9))  # type: ignore[index]
    assert 30 < sum(flipped for _, flipped in many) < 70
    assert boxes(2) == [((8.0, 3.0, 16.0, 11.0), True), ((7.0, 4.0, 15.0, 12.0), False)]
    boxes(key="\ud800")  # no text, but some name of a file


def test_large_pictures_have_the_same_views_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Fit(size=8, zoom=2, views=Views.parse("ten-crop"))
    whole, views = fitted(SQUARE, fit)
    monkeypatch.setattr("vartok.images.scaling.LARGE", 1)
    strips, same = fitted(SQUARE, fit)
    assert views == same
    np.testing.assert_allclose(strips, whole.astype(int), atol=2)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"views": "ten-crop"}, "same five times"),
        ({"views": "ten-crop", "mode": "pad"}, "ten-crop views need the fit crop or bucket, not pad"),
        ({"views": "random:2", "mode": "stretch"}, "random views need the fit crop or bucket, not stretch"),
        ({"views": "random:100", "size": 2048}, "are more than 100,000,000 pixels in all"),
    ],
)
def test_views_that_a_fit_cannot_give_are_refused(settings: dict[str, object], reason: str) -> None:
    views = Views.parse(str(settings["views"]))
    with pytest.raises(ImageError, match=reason):
        Fit(**{**settings, "views": views})  # type: ignore[arg-type]
