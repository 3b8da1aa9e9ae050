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
from PIL import Image
from torch import Tensor

import vartok
from vartok.images import to_pixels


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


def grid(rows: Tensor, path: str | Path) -> None:
    """Write pictures side by side: [rows, columns, 3, H, W] in [-1, 1]."""
    pixels = np.stack([to_pixels(row) for row in rows])  # [rows, columns, H, W, 3]
    R, N, H, W, _ = pixels.shape
    Image.fromarray(pixels.transpose(0, 2, 1, 3, 4).reshape(R * H, N * W, 3)).save(path)


def main() -> None:
    """Parse the command line, and write the pictures."""
    args = parse_arguments()
    tokenizer = vartok.load(args.weights, device=args.device)
    model, names = load(args.run, tokenizer)
    numbers = range(max(1, model.config.classes))
    wanted = [names.index(name) if name in names else int(name) for name in args.classes or numbers]
    count = args.count or (1 if args.strip else 8)
    labels = torch.tensor(wanted, device=tokenizer.device).repeat_interleave(count)
    tokens = generate(
        model,
        tokenizer,
        labels if model.config.classes else torch.full_like(labels, -1),
        guidance=args.guidance,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        generator=torch.Generator(tokenizer.device).manual_seed(args.seed),
    )
    if args.strip:
        rows = torch.stack(list(tokenizer.decode_prefixes(tokens)), dim=1)
    else:
        rows = tokenizer.decode(tokens).unflatten(0, (len(wanted), count))
    grid(rows.cpu(), args.output)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder that train.py wrote")
    add("-o", "--output", required=True, metavar="FILE", help="picture to write: .png, .jpg")
    add("--strip", action="store_true", help="draw how each picture builds up over the scales")
    add("--classes", nargs="+", metavar="CLASS", help="names or numbers of classes; default: all")
    add("--count", type=int, help="pictures of each class; default: 8, or 1 with --strip")
    add(
        "--guidance",
        type=float,
        default=2.0,
        help="of the class; 1 is none; default: %(default)s",
    )
    add("--temperature", type=float, default=1.0, help="default: %(default)s")
    add(
        "--top-k",
        type=int,
        default=900,
        help="sample from so many codes; 0 is all; default: %(default)s",
    )
    add("--top-p", type=float, default=0.9, help="sample from so much probability; default: %(default)s")
    add("--seed", type=int, default=0)
    add("--weights", metavar="FILE", help="tokenizer that made the tokens; default: the shipped one")
    add("--device", default="auto", help="cuda, mps or cpu; default: the best there is")
    return parser.parse_args()


if __name__ == "__main__":
    main()
