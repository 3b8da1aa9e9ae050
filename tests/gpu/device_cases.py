"""The device under test, and checkpoints whose tokens on it are compared with the CPU's in float32.

A pytest plugin without asserts: PYTEST_DONT_REWRITE.
"""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, VAR_32
from noise import SMALL
from noise import save as save_checkpoint
from PIL import Image
from torch import Tensor

import vartok
from vartok.config import TokenizerConfig, VarConfig
from vartok.images import to_tensor
from vartok.processors import available_processors
from vartok.tokens import TokenMaps

CONFIGS = {"tiny": SMALL, "ch32": VAR_32, "ch160": TokenizerConfig(autoencoder=VarConfig(ch=160))}
"""Configurations of the checkpoints with random weights; "light" is the shipped checkpoint."""

MOST_CHANGED = 1e-3
"""Largest share of float32 tokens that may differ from the CPU's."""

NEAR_TIE = 1e-4
"""Largest difference of two codes' squared distances from z, by |z|^2 + |e|^2, that rounding may decide."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the tests.

    Attributes:
        side: side of the pictures in pixels.
        pictures: number of pictures by checkpoint.
        batch: pictures in the largest batch.
        few: pictures that are also encoded one by one and in threes.
        files: pictures of a data set.
        compiled: checkpoint whose networks torch compiles.
    """

    side: int
    pictures: dict[str, int]
    batch: int
    few: int
    files: int
    compiled: str


ON_GPU = Sizes(256, {"light": 500, "ch32": 500, "ch160": 16}, 64, 12, 96, "light")
ON_CPU = Sizes(64, {"light": 8, "ch32": 4, "ch160": 1, "tiny": 4}, 4, 3, 48, "tiny")


def accelerators() -> list[str]:
    """Return the kinds of accelerators of this machine."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [name for name, available in found.items() if available]


@pytest.fixture(scope="session", params=accelerators() or ["cpu"])
def device(request: pytest.FixtureRequest) -> str:
    """Return each kind of accelerator in turn; without one the CPU, if the environment asks for it."""
    found: str = request.param
    if found == "cpu" and os.environ.get("VARTOK_TEST_DEVICE") != "cpu":
        pytest.skip("no accelerator here; VARTOK_TEST_DEVICE=cpu runs this test on the CPU")
    return found


@pytest.fixture(scope="session")
def sizes(device: str) -> Sizes:
    """Return the sizes of the tests for the device."""
    return ON_CPU if device == "cpu" else ON_GPU


class State(Protocol):
    """A function that states figures: it prints them, and appends them to a file of JSON lines."""

    def __call__(self, **figures: object) -> None: ...


@pytest.fixture
def state(request: pytest.FixtureRequest, device: str, capsys: pytest.CaptureFixture[str]) -> State:
    """Return a function that states figures; the environment's VARTOK_TEST_FIGURES names the file."""

    def write(**figures: object) -> None:
        test = request.node.originalname
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in figures.items()}
        with capsys.disabled():
            print(f"\n  {device}: {test}: " + ", ".join(f"{k} {v}" for k, v in rounded.items()), flush=True)
        if path := os.environ.get("VARTOK_TEST_FIGURES"):
            with open(path, "a") as file:
                file.write(json.dumps({"test": test, "device": device, **rounded}) + "\n")

    return write


def make_images(count: int, side: int) -> Tensor:
    """Return squares cut out of the example photos and scaled, [count, 3, side, side] in [-1, 1]."""
    rng = np.random.default_rng(0)
    photos = [Image.open(path).convert("RGB") for path in sorted((ROOT / "examples/photos").glob("*.jpg"))]
    squares = []
    for n in range(count):
        photo = photos[n % len(photos)]
        cut = int(rng.integers(64, min(photo.size)))
        left, top = (int(rng.integers(0, length - cut)) for length in photo.size)
        squares.append(np.asarray(photo.resize((side, side), box=(left, top, left + cut, top + cut))))
    return to_tensor(np.stack(squares))


def save_images(folder: Path, images: Tensor) -> Path:
    """Save images as PNG files, 000.png and so on."""
    folder.mkdir(parents=True)
    for n, levels in enumerate(((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()):
        Image.fromarray(levels).save(folder / f"{n:03}.png")
    return folder


@contextlib.contextmanager
def all_threads() -> Iterator[None]:
    """Compute with all processors in the block; tests have one thread else."""
    before = torch.get_num_threads()
    torch.set_num_threads(available_processors())
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Case:
    """A checkpoint, images, and what the CPU makes of them in float32.

    Attributes:
        weights: the checkpoint, as `vartok.load` takes it.
        images: [B, 3, H, W] in [-1, 1].
        exact: the tokenizer on the CPU.
        latent: [B, C, h, w], the images' latents.
        tokens: the images' tokens.
    """

    weights: Path | None
    images: Tensor
    exact: vartok.Tokenizer
    latent: Tensor
    tokens: TokenMaps

    def load(self, device: str, dtype: str = "float32", **options: Any) -> vartok.Tokenizer:
        """Load the checkpoint on the device under test.

        On the CPU the plain networks stand in for float32 on another device: they round differently.
        """
        if device == "cpu" and dtype == "float32" and not options:
            options["differentiable"] = True
        return vartok.load(self.weights, device=device, dtype=dtype, **options)

    def largest_gap(self, tokens: TokenMaps) -> float:
        """Return how far from a tie the tokens are that differ from the CPU's.

        Only a picture's first scale with other tokens counts, since the finer ones follow from it.

        Returns:
            The largest difference, in float64, of the squared distances of the two codes from z, by
            |z|^2 + |e|^2; 0 if all tokens are equal.
        """
        largest = 0.0
        same = torch.ones(len(self.images), dtype=torch.bool)
        for k, (found, wanted) in enumerate(zip(tokens.maps, self.tokens.maps, strict=True)):
            changed = found.cpu() != wanted
            first = changed & same[:, None, None]
            same &= ~changed.flatten(1).any(1)
            if not first.any():
                continue
            f_hat = self.exact.f_hat(self.tokens, scales=k).double() if k else 0.0
            pooled = F.interpolate(self.latent.double() - f_hat, wanted.shape[1:], mode="area")
            z = pooled.permute(0, 2, 3, 1)[first]
            one, two = (self.exact.codebook.double()[maps.cpu()[first]] for maps in (found, wanted))
            difference = (z - one).square().sum(1) - (z - two).square().sum(1)
            size = z.square().sum(1) + two.square().sum(1)
            largest = max(largest, float((difference.abs() / size).max()))
        return largest


@pytest.fixture(scope="session")
def cases(sizes: Sizes, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Return a function that makes the case of a checkpoint: "light", "ch32", "ch160" or "tiny"."""

    @functools.cache
    def make(name: str) -> Case:
        weights = None
        if name in CONFIGS:
            weights = save_checkpoint(tmp_path_factory.mktemp(name) / f"{name}.safetensors", CONFIGS[name])
        exact = vartok.load(weights, device="cpu")
        images = make_images(sizes.pictures[name], min(sizes.side, *exact.config.image_size))
        with all_threads():
            latent = exact.latent(images)
            return Case(weights, images, exact, latent, exact.quantize(latent))

    return make


def in_batches(tokenizer: vartok.Tokenizer, images: Tensor, size: int) -> TokenMaps:
    """Encode images in batches, and return the tokens on the CPU."""
    parts = [tokenizer.encode(part.to(tokenizer.device)) for part in images.split(size)]
    maps = zip(*(part.maps for part in parts), strict=True)
    return TokenMaps(tuple(torch.cat(scale).cpu() for scale in maps), parts[0].schedule)


def share_equal(one: TokenMaps, two: TokenMaps) -> float:
    """Return the share of equal tokens; of the first images, if one has more."""
    count = min(len(one.maps[0]), len(two.maps[0]))
    return float((one.flatten()[:count].cpu() == two.flatten()[:count].cpu()).double().mean())


def largest_error(images: Tensor, others: Tensor) -> float:
    """Return the largest difference of two values."""
    return float((images.cpu() - others.cpu()).abs().max())
