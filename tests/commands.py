"""Helpers for tests of commands: their token files, their pictures, and their processes."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

import vartok
from vartok.images import to_pixels
from vartok.token_streams import iter_tokens
from vartok.tokens import ImageTokens, TokenMaps

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("VARTOK_", "PYTHONUNBUFFERED"))} | {
    "VARTOK_DEVICE": "cpu",
    "COLUMNS": "80",
    "TERM": "xterm",
}
PROGRAM = [sys.executable, "-m", "vartok"]
NOT_A_PICTURE = b"this is no picture"
QUICK = ["--size", "64", "--schedule", "1,4"]


def tokens_of(data: bytes) -> list[ImageTokens]:
    """Read a token file of which every image can be read."""
    found = []
    for item in iter_tokens(io.BytesIO(data)):
        assert isinstance(item, ImageTokens), item
        found.append(item)
    return found


def indices(data: bytes) -> list[list[int]]:
    """Return the indices of every scale of a token file's images."""
    return [scale.ravel().tolist() for item in tokens_of(data) for scale in item.scales]


def pixels(file: Path | bytes) -> NDArray[np.uint8]:
    """Return the [H, W, 3] pixels of a picture file."""
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        found: NDArray[np.uint8] = np.array(image.convert("RGB"))
        return found


def count_frames(picture: Image.Image) -> int:
    """Return the number of frames of an animation, 1 for a still picture."""
    return sum(1 for _ in ImageSequence.Iterator(picture))


def decoded_pixels(
    tokenizer: vartok.Tokenizer, item: ImageTokens, scales: int | None = None
) -> NDArray[np.uint8]:
    """Decode tokens without the command line."""
    found: NDArray[np.uint8] = to_pixels(tokenizer.decode(TokenMaps.stack([item]), scales))[0]
    return found


def start(*args: object, program: list[str] = PROGRAM, **streams: Any) -> subprocess.Popen[bytes]:
    """Start a command in a process of its own, without standard input unless `streams` gives one."""
    streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, **streams}
    process: subprocess.Popen[bytes] = subprocess.Popen(
        [*program, *map(str, args)],
        env=ENVIRONMENT,
        # Background jobs of a shell ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **streams,
    )
    return process


def wait_for(appeared: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    """Wait until a condition holds, while a process runs."""
    limit = time.monotonic() + 120
    while not appeared():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < limit
        time.sleep(0.01)


@contextlib.contextmanager
def only_ray_cluster() -> Iterator[None]:
    """Wait until no other test process has a cluster of Ray: a program joins one that runs on its machine."""
    import fcntl

    with (Path(tempfile.gettempdir()) / "vartok-tests-ray.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
