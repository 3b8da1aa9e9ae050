"""Fixtures and helpers of several test files: pictures, a tokenizer, the command line in this process."""

import contextlib
import functools
import importlib
import itertools
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
import typer
from hypothesis import HealthCheck, settings
from noise import COFFEE
from noise import save as save_checkpoint
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import vartok as library
from vartok import loading
from vartok.checkpoints import CODEBOOK, read_checkpoint, shipped_checkpoint, write_checkpoint
from vartok.config import TokenizerConfig, VarConfig
from vartok.evaluation import perceptual
from vartok.images import to_tensor
from vartok.st_lpips import STLPIPS

EXAMPLES = 100 if os.environ.get("CI") else 25
settings.register_profile(  # other work on the machine is no failure
    "vartok", deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("vartok")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when anything imports triton, which torch does at times

ROOT = Path(__file__).parent.parent

VAR_32 = TokenizerConfig(autoencoder=VarConfig(ch=32))
"""VAR's architecture, with a fifth of the published channels."""


class Vartok(Protocol):
    """A function that runs a command in this process, and checks its exit code."""

    def __call__(self, *args: object, code: int = 0, stdin: bytes = b"") -> Result: ...


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """Compute in one thread: the tests' networks are small, and other processes share the machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _small_perceptual_networks() -> Iterator[None]:
    """Let evaluations measure with tiny networks, since ST-LPIPS takes a second or more for a picture."""

    def st_lpips(network: str) -> STLPIPS:
        torch.manual_seed(len(network))
        distance = STLPIPS([[nn.Conv2d(3, 2, 3)]], [2])
        return distance.requires_grad_(False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perceptual, "load_st_lpips", st_lpips)
        patch.setattr(perceptual, "load_features", lambda _: PixelFeatures())
        yield


class PixelFeatures(nn.Module):
    """Every pixel's levels as features, of two depths."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, images[:, :, ::2, ::2]]


@pytest.fixture(scope="session", autouse=True)
def _interrupts() -> None:
    """Let programs that tests start get Ctrl-C: a shell's background jobs, and what they start, ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tokenizer() -> library.Tokenizer:
    """Return the shipped tokenizer on the CPU."""
    return library.load(device="cpu")


@pytest.fixture(scope="session")
def light(tokenizer: library.Tokenizer) -> library.Tokenizer:
    """Return the shipped tokenizer, under the name of its autoencoder."""
    return tokenizer


@pytest.fixture(scope="session")
def var(tmp_path_factory: pytest.TempPathFactory) -> library.Tokenizer:
    """Return a tokenizer of VAR's architecture with random weights."""
    path = save_checkpoint(tmp_path_factory.mktemp("var") / "var.safetensors", VAR_32)
    return library.load(path, device="cpu")


@pytest.fixture(scope="session", params=["light", "var"])
def either(request: pytest.FixtureRequest) -> library.Tokenizer:
    """Return a tokenizer of each autoencoder in turn."""
    found: library.Tokenizer = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def coffee() -> Tensor:
    """Return a photo, [1, 3, 512, 512] in [-1, 1]."""
    with Image.open(COFFEE) as picture:
        return to_tensor(np.asarray(picture.convert("RGB"))[None])


@pytest.fixture(scope="session")
def photos(coffee: Tensor) -> Tensor:
    """Return sixteen pieces of a photo, [16, 3, 64, 64] in [-1, 1]."""
    pieces = coffee.unfold(2, 64, 128).unfold(3, 64, 128)
    return pieces.permute(0, 2, 3, 1, 4, 5).reshape(16, 3, 64, 64).contiguous()


@pytest.fixture(scope="session")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint like the shipped one, with another codebook."""
    path = tmp_path_factory.mktemp("weights") / "other.safetensors"
    shipped = read_checkpoint(shipped_checkpoint())
    tensors = {**shipped.tensors, CODEBOOK: shipped.tensors[CODEBOOK].flip(0).contiguous()}
    write_checkpoint(path, type(shipped)("other", None, shipped.config, tensors))
    return path


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 60 pictures, which takes a while to encode."""
    folder = tmp_path_factory.mktemp("many")
    data = save(folder / "00.png").read_bytes()
    for i in range(1, 60):
        (folder / f"{i:02}.png").write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def app() -> typer.Typer:
    """Return the command line; imported by name, since type checkers do not see where it is installed."""
    app: typer.Typer = importlib.import_module("vartok.cli").app
    return app


@pytest.fixture
def vartok(
    app: typer.Typer, tokenizer: library.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Vartok]:
    """Return a function that runs `vartok ARGS` in this process, without a terminal.

    Commands share what costs the most time: the parsed options and the shipped checkpoint, loaded once.
    """
    load = loading.load

    def load_once(weights: str | Path | None = None, **options: Any) -> library.Tokenizer:
        shared = weights is None and options == {"device": "cpu", "dtype": "float32", "compile": False}
        return tokenizer if shared else load(weights, **options)

    monkeypatch.setattr(loading, "load", load_once)
    monkeypatch.setattr(typer.testing, "_get_command", functools.cache(typer.main.get_command))
    monkeypatch.delenv("VARTOK_WEIGHTS", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest sets it in its worker processes
    monkeypatch.setenv("VARTOK_DEVICE", "cpu")  # the expected bytes are those of a CPU
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)

    def run(*args: object, code: int = 0, stdin: bytes = b"") -> Result:
        result = CliRunner().invoke(
            app, [os.fspath(a) if isinstance(a, Path) else str(a) for a in args], stdin
        )
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    with warnings.catch_warnings():
        yield run


def photo(seed: int, width: int = 256, height: int = 256) -> Image.Image:
    """Return a picture of soft shapes, an edge and some grain, as photos have them."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(soft).astype(np.int16) + rng.integers(-8, 9, (height, width, 3))
    pixels[:, width // 3 : width // 2] //= 2
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def save(path: Path, seed: int = 0, width: int = 256, height: int = 256) -> Path:
    """Save a photo, and make its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(seed, width, height).save(path)
    return path


def names(folder: Path) -> list[str]:
    """List all files below a folder, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """Return an empty folder that is the working directory."""
    with contextlib.chdir(tmp_path):
        yield tmp_path


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of sixteen pictures of 128 pixels, cut out of one."""
    folder = tmp_path_factory.mktemp("tiles")
    with Image.open(COFFEE) as photo:
        for row, column in itertools.product(range(4), range(4)):
            box = (128 * column, 128 * row, 128 * column + 128, 128 * row + 128)
            photo.crop(box).save(folder / f"tile{row}{column}.png")
    return folder


def count_worker_threads() -> int:
    """Count the threads of pools that are running."""
    return sum(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())
