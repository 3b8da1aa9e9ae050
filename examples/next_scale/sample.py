"""Sample pictures from a transformer that train.py trained.

    python examples/next_scale/sample.py RUN -o samples.png

Each class has a row. With --strip each picture has a row: its first scale, its first two, and so on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from model import ModelConfig, NextScale, generate
from torch import Tensor

import vartok
from vartok.files import atomic_write
from vartok.images import SUFFIXES, encode_picture, to_pixels


def load(run: str | Path, tokenizer: vartok.Tokenizer) -> tuple[NextScale, list[str]]:
    """Load the averaged weights of a run.

    Returns:
        The model on the tokenizer's device, and the names of its classes, which may be missing.

    Raises:
        SystemExit: there is no checkpoint, or it was trained on tokens of another codebook.
    """
    path = Path(run) / "checkpoint.pt"
    if not path.exists():
        raise SystemExit(f"{path} does not exist: train.py makes it")
    state = torch.load(path, map_location=tokenizer.device, weights_only=True)
    if state["fingerprint"] != tokenizer.fingerprint:
        raise SystemExit(f"{path} was trained on tokens of another tokenizer than {tokenizer.name}")
    model = NextScale(ModelConfig(**state["config"]), tokenizer.codebook).to(tokenizer.device)
    model.load_state_dict(state["ema"])
    return model.eval(), state["classes"]


def class_numbers(wanted: list[str] | None, names: list[str], classes: int) -> list[int]:
    """Return the numbers of classes that are given by name or number; all if none are given.

    Raises:
        SystemExit: there is no such class.
    """
    if not classes:
        return [-1]
    known = {
        **{str(number): number for number in range(classes)},
        **{name: i for i, name in enumerate(names)},
    }
    missing = [text for text in wanted or [] if text not in known]
    if missing:
        raise SystemExit(
            f"there is no class {missing[0]}: {', '.join(names) or f'they are 0 to {classes - 1}'}"
        )
    return [known[text] for text in wanted] if wanted else [*range(classes)]


def grid(rows: Tensor, path: Path) -> None:
    """Write pictures side by side: [rows, columns, 3, H, W] in [-1, 1]."""
    pixels = np.stack([to_pixels(row) for row in rows])  # [rows, columns, H, W, 3]
    R, N, H, W, _ = pixels.shape
    picture = pixels.transpose(0, 2, 1, 3, 4).reshape(R * H, N * W, 3)
    with atomic_write(path, overwrite=True) as file:
        file.write(encode_picture(picture, SUFFIXES[path.suffix.lower()]))


def draw(args: argparse.Namespace) -> None:
    """Sample pictures, and write them."""
    if args.output.suffix.lower() not in SUFFIXES:
        raise SystemExit(f"{args.output}: a picture's name ends in {', '.join(SUFFIXES)}")
    tokenizer = vartok.load(args.weights, device=args.device)
    model, names = load(args.run, tokenizer)
    classes = class_numbers(args.classes, names, model.config.classes)
    count = args.count or (1 if args.strip else 8)
    tokens = generate(
        model,
        tokenizer,
        torch.tensor(classes, device=tokenizer.device).repeat_interleave(count),
        guidance=args.guidance,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        generator=torch.Generator(tokenizer.device).manual_seed(args.seed),
    )
    if args.strip:
        rows = torch.stack(list(tokenizer.decode_prefixes(tokens)), dim=1)
    else:
        rows = tokenizer.decode(tokens).unflatten(0, (len(classes), count))
    grid(rows, args.output)


def main() -> None:
    """Parse the command line, and write the pictures."""
    try:
        draw(parse_arguments())
    except (vartok.VartokError, OSError) as error:
        raise SystemExit(str(error)) from None


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder that train.py wrote")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="picture to write: .png, .jpg")
    add("--strip", action="store_true", help="draw how each picture builds up over the scales")
    add("--classes", nargs="+", metavar="CLASS", help="names or numbers of classes; default: all")
    add("--count", type=int, help="pictures of each class; default: 8, or 1 with --strip")
    add(
        "--guidance",
        type=float,
        default=4.0,
        help="of the class; 1 is none; default: %(default)s",
    )
    add("--temperature", type=float, default=1.0, help="default: %(default)s")
    add(
        "--top-k",
        type=int,
        default=100,
        help="sample from so many codes; 0 is all; default: %(default)s",
    )
    add("--top-p", type=float, default=0.8, help="sample from so much probability; default: %(default)s")
    add("--seed", type=int, default=0)
    add("--weights", metavar="FILE", help="tokenizer that made the tokens; default: the shipped one")
    add("--device", default="auto", help="cuda, mps or cpu; default: the best there is")
    return parser.parse_args()


if __name__ == "__main__":
    main()
