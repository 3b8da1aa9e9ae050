"""Pixels that libtiff says are damaged."""

import ctypes
import io
from collections.abc import Iterator

import numpy as np
import PIL._imaging
import pytest
from picture_files import AS_IS, check_message, saved
from PIL import Image

from vartok.errors import ImageError
from vartok.images import configure_pillow, libtiff, read_picture


@pytest.fixture(autouse=True)
def _configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    configure_pillow()
    yield
    configure_pillow()


def damaged() -> bytes:
    """A TIFF file, whole, and with zeros in the second half of its last strip."""
    bits = np.random.default_rng(0).integers(0, 2, (64, 64), np.uint8) * 255
    whole = saved(Image.fromarray(bits).convert("1"), "TIFF", compression="group3")
    assert read_picture(whole, AS_IS).notes == ()
    with Image.open(io.BytesIO(whole)) as opened:
        tags = opened.tag_v2  # type: ignore[attr-defined]
        start, size = tags[273][-1], tags[279][-1]
    return whole[: start + size // 2] + bytes(size - size // 2) + whole[start + size :]


def test_damaged_pixels_are_refused_also_where_pillow_reads_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = damaged()
    with pytest.raises(ImageError, match="is damaged: Fax3Decode1D: Bad code word") as caught:
        read_picture(data, AS_IS)
    check_message(caught.value)
    assert capfd.readouterr().err == ""
    configure_pillow(quiet=False)
    with pytest.raises(ImageError):
        read_picture(data, AS_IS)
    assert "Decode" in capfd.readouterr().err


def test_damage_is_heard_without_configuration() -> None:
    data = damaged()
    before = [*libtiff._handlers]
    libtiff._handlers.clear()
    try:
        ctypes.CDLL(PIL._imaging.__file__).TIFFSetErrorHandler(None)
        with pytest.raises(ImageError, match="is damaged"):
            read_picture(data, AS_IS)
    finally:
        libtiff._handlers += before  # and the new ones stay: libtiff points to them
