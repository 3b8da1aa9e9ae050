"""Speed of the program as a user runs it: its start-up, and encoding a folder of pictures to token files.

    python benchmarks/program.py PICTURES [--count 1000] [--rounds 3]

Also the effect of bfloat16 on tokens and PSNR. Times are medians of rounds in which all calls take turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from timing import table, take_turns

import vartok
from vartok.images import Fit, picture_suffixes, read_picture, to_pixels, to_tensor
from vartok.metrics import psnr
from vartok.operations import encode_pictures
from vartok.token_files import dump_npz
from vartok.tokens import ImageTokens

VARTOK = [sys.executable, "-m", "vartok"]
BATCH = 16
COMPARED = 64  # number of pictures on which the dtypes are compared
WHOLE = "`vartok encode -r`, start-up included"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found = sorted(path for path in given.pictures.rglob("*") if path.suffix.lower() in picture_suffixes())
    start_up(found[0], given.rounds)
    end_to_end(found, given.count, given.rounds)
    dtypes(found[:COMPARED])


def start_up(picture: Path, rounds: int) -> None:
    tokenizer = vartok.load(device="cpu")
    images = to_tensor(read_picture(picture, _fit(tokenizer)).pixels[None])
    with tempfile.TemporaryDirectory() as folder:
        encode = ["encode", "-q", "--device", "cpu", str(picture), "-o", f"{folder}/a.tokens.npz", "--force"]
        calls: dict[str, Callable[[], object]] = {
            "`python -c 'import torch'`": _run([sys.executable, "-c", "import torch"]),
            "`vartok --help`": _run([*VARTOK, "--help"]),
            "`vartok encode` of one picture": _run([*VARTOK, *encode]),
            "the model's forward": lambda: tokenizer.encode(images),
        }
        times = take_turns(calls, rounds=3 * rounds, seconds=0)
    print(table(["start-up", "s"], [[name, f"{seconds:.3f}"] for name, seconds in times.items()]))
    least = times["`python -c 'import torch'`"] + times["the model's forward"]
    print(f"\nencode by import and forward: {times['`vartok encode` of one picture'] / least:.2f}\n")


def end_to_end(found: list[Path], count: int, rounds: int) -> None:
    tokenizer = vartok.load(device="cpu")
    fit = _fit(tokenizer)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for i in range(count):
            path = found[i % len(found)].resolve()
            (folder / "in" / f"{i:05d}{path.suffix}").symlink_to(path)
        files = sorted((folder / "in").iterdir())
        images = to_tensor(np.stack([read_picture(path, fit).pixels for path in files[:BATCH]]))

        def model() -> None:
            for _ in range(count // BATCH):
                tokenizer.encode(images)

        def loading() -> None:
            for path in files:
                with Image.open(path) as image:
                    image.load()

        def reading() -> None:
            for path in files:
                read_picture(path, fit)

        [(_, encoded)] = encode_pictures(tokenizer, [(None, "a", found[0])], fit)
        assert isinstance(encoded, ImageTokens)
        data = encoded

        def writing() -> None:
            for i in range(count):
                (folder / f"w{i}").write_bytes(dump_npz(data))

        command = [*VARTOK, "encode", "-q", "--device", "cpu", "-r", str(folder / "in"), "-o"]
        steps: dict[str, Callable[[], object]] = {
            "decoding the files, one thread": loading,
            "decoding, resizing and cropping, one thread": reading,
            f"the model, in batches of {BATCH}": model,
            "writing token files, one thread": writing,
            WHOLE: _run([*command, str(folder / "out"), "--force"]),
        }
        times = take_turns(steps, rounds=rounds, seconds=0)
        times[f"the model, in batches of {BATCH}"] *= count / (count // BATCH * BATCH)
    rate = {name: count / seconds for name, seconds in times.items()}
    print(table([f"{count:,} pictures", "pictures/s"], [[name, f"{r:.1f}"] for name, r in rate.items()]))
    share = rate[WHOLE] / rate[f"the model, in batches of {BATCH}"]
    print(f"\nend to end by the model alone: {share:.1%}\n")


def dtypes(found: list[Path]) -> None:
    rows: list[list[object]] = []
    exact = vartok.load(device="cpu")
    pictures = [read_picture(path, _fit(exact)).pixels for path in found]
    images = to_tensor(np.stack(pictures))
    tokens = exact.encode(images)
    for dtype in ("float32", "bfloat16"):  # not float16, which takes minutes on a CPU
        tokenizer = vartok.load(device="cpu", dtype=dtype)
        own = tokenizer.encode(images)
        kept = (own.flatten() == tokens.flatten()).float().mean()
        drawn = to_pixels(tokenizer.decode(own))
        quality = np.mean([psnr(picture, pixels) for picture, pixels in zip(pictures, drawn, strict=True)])
        rows.append([dtype, f"{kept:.1%}", f"{quality:.3f}"])
    print(table([f"{len(found)} pictures", "tokens as in float32", "PSNR, dB"], rows) + "\n")


def _fit(tokenizer: vartok.Tokenizer) -> Fit:
    return Fit(size=tokenizer.config.image_size)


def _run(command: list[str]) -> Callable[[], object]:
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
