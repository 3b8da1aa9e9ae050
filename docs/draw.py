"""Draw docs/photos.jpg: photos of examples/photos above what the shipped checkpoint makes of them."""

from pathlib import Path

import numpy as np

import vartok
from vartok.images import Fit, encode_picture, read_picture, to_pixels, to_tensor

HERE = Path(__file__).parent


def main() -> None:
    paths = sorted((HERE.parent / "examples" / "photos").glob("*.jpg"))
    photos = [read_picture(path, Fit()).pixels for path in paths]
    tokenizer = vartok.load(device="cpu")
    drawn = to_pixels(tokenizer.decode(tokenizer.encode(to_tensor(np.stack(photos)))))
    sheet = np.concatenate([np.concatenate(photos, axis=1), np.concatenate(list(drawn), axis=1)])
    (HERE / "photos.jpg").write_bytes(encode_picture(sheet, "jpg"))


if __name__ == "__main__":
    main()
