"""Draw the pictures of README and docs with the shipped checkpoint.

docs/photos.jpg shows photos of examples/photos, what their tokens bring back, and WebP files of that size.
docs/coffee.webp shows how the scales build up one of them. `python docs/draw.py OTHER.safetensors` adds a row
of another checkpoint to photos.jpg; the repository's has vartok-light-v1, from the git history.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import vartok
from vartok.drawing import label
from vartok.evaluation.baselines import compress, decompress
from vartok.images import Fit, encode_animation, encode_picture, read_picture, to_pixels, to_tensor
from vartok.schedule import token_count

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"


def draw_photos(tokenizers: Sequence[vartok.Tokenizer]) -> None:
    """Draw docs/photos.jpg."""
    paths = sorted((EXAMPLES / "photos").glob("*.jpg"))
    photos = [read_picture(path, Fit()).pixels for path in paths]
    rows = {"photos": photos}
    for tokenizer in tokenizers:
        tokens = tokenizer.encode(to_tensor(np.stack(photos)))
        rows[f"{tokenizer.name}, 680 tokens: 1,020 bytes"] = list(to_pixels(tokenizer.decode(tokens)))
    files = [compress(photo, "webp", 1020) for photo in photos]
    sizes = ", ".join(f"{len(file):,}" for file in files)
    rows[f"WebP of at most 1,020 bytes, or else its smallest: {sizes}"] = list(map(decompress, files))
    sheet = [np.asarray(label(np.concatenate(row, axis=1), name, text_size=24)) for name, row in rows.items()]
    (HERE / "photos.jpg").write_bytes(encode_picture(np.concatenate(sheet), "jpg"))


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
    draw_photos([*(vartok.load(weights, device="cpu") for weights in sys.argv[1:]), tokenizer])
    draw_coffee(tokenizer)


if __name__ == "__main__":
    main()
