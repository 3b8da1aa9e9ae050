"""Boxes in the header of JPEG 2000 files."""

import struct

import pytest
from picture_files import AS_IS, check_message, photo, saved

from vartok.errors import ImageError
from vartok.images import read_picture

DATA = saved(photo(16, 16), "JPEG2000")
START = DATA.index(b"jp2h") - 4
END = START + int.from_bytes(DATA[START : START + 4], "big")


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


@pytest.mark.parametrize("place", ["before", "header", "resolution"])
def test_many_boxes_are_refused_before_pillow_walks_them(place: str) -> None:
    def filled(number: int) -> bytes:
        many = box(b"free") * number
        inside = {"before": b"", "header": many, "resolution": box(b"res ", many)}[place]
        header = box(b"jp2h", DATA[START + 8 : END], inside)
        return DATA[:START] + many * (place == "before") + header + DATA[END:]

    assert (read_picture(filled(900), AS_IS).pixels == read_picture(DATA, AS_IS).pixels).all()
    with pytest.raises(ImageError, match="has more than 1,000 boxes") as caught:
        read_picture(filled(1000), AS_IS)
    check_message(caught.value)
