"""The sizes, networks and files that the parts of `gpu.py` share."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_report import Report
from models import plain_decode, plain_encode
from PIL import Image
from timing import take_turns, wait
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import vartok
from vartok.checkpoints import Checkpoint, build_model, read_checkpoint, shipped_checkpoint, write_checkpoint
from vartok.config import TokenizerConfig, VarConfig
from vartok.models.vqvae import VQVAE

PHOTOS = sorted((Path(__file__).parent.parent / "examples" / "photos").glob("*.jpg"))
Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Form:
    """Sizes of a run: large on a GPU, small on a CPU.

    Attributes:
        var: configuration of the network of VAR's architecture, whose weights are random.
        light_side: side of the shipped checkpoint's pictures, in pixels.
        batches: batch sizes above 1, the most important one first.
        product_side: rows of the multiplied matrices.
        rounds: number of rounds in which calls take turns.
        seconds: shortest time of a call in a round, in seconds.
        files: pictures of a data set, of the shipped checkpoint and of the other one.
        dtype: dtype of compiled networks and of data sets.
        train_batch: crops of a training step.
        train_steps: training steps of a measurement.
    """

    var: TokenizerConfig
    light_side: int
    batches: tuple[int, ...]
    product_side: int
    rounds: int
    seconds: float
    files: tuple[int, int]
    dtype: str
    train_batch: int
    train_steps: int


ON_GPU = Form(
    TokenizerConfig(autoencoder=VarConfig(ch=160)),
    256,
    (64, 128, 16),
    8192,
    5,
    0.2,
    (4096, 768),
    "bfloat16",
    64,
    30,
)
ON_CPU = Form(
    TokenizerConfig(autoencoder=VarConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1)),
    *(32, (2, 3), 256, 1, 0.0, (24, 8), "float32", 2, 10),
)


class Network:
    """A checkpoint: its plain networks on the device, and its tokenizers."""

    def __init__(self, name: str, weights: Path | None, side: int, device: torch.device) -> None:
        checkpoint = read_checkpoint(weights or shipped_checkpoint())
        self.name = name
        self.side = side
        self.device = device
        self.build = functools.partial(build_model, checkpoint)
        self.plain = self.build().to(device).requires_grad_(False)
        self.load = functools.partial(vartok.load, weights, device=device)
        self.tokenizer = functools.cache(lambda dtype: self.load(dtype=dtype))
        one = self.images(1)
        tokens = self.tokenizer("float32").encode(one)
        self.schedule = tokens.schedule
        self.work = {
            "encode": _operations(plain_encode, self.plain, one, self.schedule),
            "decode": _operations(plain_decode, self.plain, tokens.maps, self.schedule),
        }

    def images(self, count: int) -> Tensor:
        """Return images on the device, [count, 3, side, side] in [-1, 1]."""
        return torch.rand(count, 3, self.side, self.side, device=self.device) * 2 - 1


class Bench:
    """The device, the sizes, the networks and the report that all parts share."""

    def __init__(self, form: Form, device: torch.device, report: Report, scratch: Path) -> None:
        self.form, self.device, self.report, self.scratch = form, device, report, scratch
        self.rates: dict[str, float] = {}

    @functools.cached_property
    def var(self) -> Network:
        """The network of VAR's architecture, with random weights."""
        config = self.form.var
        torch.manual_seed(0)
        model = VQVAE(config)
        nn.init.normal_(model.quantize.embedding.weight, std=0.5)
        path = self.scratch / "var.safetensors"
        write_checkpoint(path, Checkpoint("var", None, config, model.state_dict()), overwrite=True)
        assert isinstance(config.autoencoder, VarConfig)
        return Network(f"ch = {config.autoencoder.ch}", path, config.image_size[0], self.device)

    @functools.cached_property
    def light(self) -> Network:
        """The shipped checkpoint."""
        return Network("light", None, self.form.light_side, self.device)

    @functools.cached_property
    def tars(self) -> list[Path]:
        """Tars of JPEG files of 500x375 pixels, made from the example photos."""
        files = []
        for n, path in enumerate(PHOTOS * 8):
            with Image.open(path) as photo:
                data = io.BytesIO()
                larger = photo.convert("RGB").resize((500, 375), box=(n, n, 256 - n, 192 - n))
                larger.save(data, "JPEG", quality=90)
                files.append(data.getvalue())
        return [_write_tar(self.scratch / f"{size}.tar", files, size) for size in self.form.files]

    def measure(self, calls: Calls, deadline: float) -> dict[str, float]:
        """Return the median time of one call, in seconds, by name; without those of calls that fail."""
        ready: Calls = {}
        for name, call in calls.items():
            try:
                for _ in range(2):  # a shape that comes twice is compiled, or recorded as a graph
                    call()
                wait()
                ready[name] = call
            except (RuntimeError, MemoryError) as error:
                self.report.note(f"{name} failed: {str(error).strip().splitlines()[0][:200]}")
        return take_turns(ready, rounds=self.form.rounds, seconds=self.form.seconds, deadline=deadline)


def _operations(function: Callable[..., object], *args: object) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return int(counter.get_total_flops())


def _write_tar(path: Path, files: list[bytes], count: int) -> Path:
    with tarfile.open(path, "w") as archive:
        for n, data in zip(range(count), itertools.cycle(files), strict=False):
            info = tarfile.TarInfo(f"{n:06}.jpg")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@contextlib.contextmanager
def like_var() -> Iterator[None]:
    """Compute float32 products in TF32 inside the block, and let cuDNN search for the fastest convolution."""
    backends: Any = torch.backends
    settings: list[tuple[Any, str, object]]
    if hasattr(backends, "fp32_precision"):
        settings = [(part, "fp32_precision", "tf32") for part in (backends.cuda.matmul, backends.cudnn.conv)]
    else:
        settings = [(part, "allow_tf32", True) for part in (backends.cuda.matmul, backends.cudnn)]
    settings.append((backends.cudnn, "benchmark", True))
    before = [getattr(part, name) for part, name, _ in settings]
    for part, name, value in settings:
        setattr(part, name, value)
    try:
        yield
    finally:
        for (part, name, _), value in zip(settings, before, strict=True):
            setattr(part, name, value)
