"""Draw the pictures of README and docs with the shipped checkpoint.

docs/photos.jpg shows photos of examples/photos above what their tokens bring back, and docs/coffee.webp how
the scales build up one of them.
"""

from pathlib import Path

import numpy as np

import vartok
from vartok.drawing import label
from vartok.images import Fit, encode_animation, encode_picture, read_picture, to_pixels, to_tensor
from vartok.schedule import token_count

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"


def draw_photos(tokenizer: vartok.Tokenizer) -> None:
    """Draw docs/photos.jpg."""
    paths = sorted((EXAMPLES / "photos").glob("*.jpg"))
    photos = [read_picture(path, Fit()).pixels for path in paths]
    drawn = to_pixels(tokenizer.decode(tokenizer.encode(to_tensor(np.stack(photos)))))
    sheet = np.concatenate([np.concatenate(photos, axis=1), np.concatenate(list(drawn), axis=1)])
    (HERE / "photos.jpg").write_bytes(encode_picture(sheet, "jpg"))


def draw_coffee(tokenizer: vartok.Tokenizer) -> None:
    """Draw docs/coffee.webp."""
    photo = read_picture(EXAMPLES / "coffee.png", Fit()).pixels
    tokens = tokenizer.encode(to_tensor(photo[None]))
    K = len(tokens.schedule)
    frames = [
        np.asarray(
            label(to_pixels(image)[0], f"{k} of {K} scales, {token_count(tokens.schedule[:k])} tokens")
        )
        for k, image in enumerate(tokenizer.decode_prefixes(tokens), 1)
    ]
    (HERE / "coffee.webp").write_bytes(encode_animation(frames, "webp", frame_time=0.7))


def main() -> None:
    tokenizer = vartok.load(device="cpu")
    draw_photos(tokenizer)
    draw_coffee(tokenizer)


if __name__ == "__main__":
    main()
