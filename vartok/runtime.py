"""The machine that a model runs on: device, precision, compilation."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vartok.errors import DeviceError, one_line, quoted, warn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

KEPT_BYTES = 31 << 20
"""Size in bytes of the block that `keep_freed_memory` allocates and frees."""

COMPILED_SHAPES = 4
"""Largest number of batch shapes that a network is compiled for; torch itself gives up at 8."""


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Return a torch device, after checking that it works.

    Args:
        device: a device or its name; "auto" is CUDA, else MPS, else the CPU.

    Raises:
        DeviceError: torch does not know the device, or cannot use it on this machine.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = one_line(str(error).strip().partition("\n")[0])
        raise DeviceError(f"torch cannot use the device {quoted(str(device))} here ({reason})") from None
    return chosen


def pin_for(device: torch.device, tensor: Tensor) -> Tensor:
    """Return a tensor in pinned memory if it will be copied to CUDA, so that `to_device` does not wait."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, in the background if it lies in pinned memory and the device is CUDA.

    torch keeps pinned memory until such a copy is done. All other copies wait: a copy in the background from
    ordinary memory, or to MPS, may read memory that has been freed (pytorch issues 139550, 189690).
    """
    background = device.type == "cuda" and tensor.device.type == "cpu" and tensor.is_pinned()
    return tensor.to(device, non_blocking=background)


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors instead of returning it to the system.

    glibc reuses freed blocks up to the size of the largest block freed so far, 32 MiB at most. The pages of
    a larger block come from the system, which zeroes them; that takes as long as a convolution, and a third
    of the time in which a training process gets a batch of tokens from a worker. The setting is per process:
    programs make it at their start, and `TokenDataset` when it is opened; loading a tokenizer does not.
    """
    torch.empty(KEPT_BYTES, dtype=torch.uint8, device="cpu")  # freed at once, and never touched


class CompiledNetwork:
    """A network that torch compiles for each batch shape that occurs twice, up to `COMPILED_SHAPES` shapes.

    A shape that occurs once, such as a run's last batch, is not worth a minute of compilation.

    Args:
        network: function of a batch.

    Warns:
        VartokWarning: torch cannot compile here; the network runs uncompiled.
    """

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        self._network = network
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._seen: set[torch.Size] = set()
        self._chosen: set[torch.Size] = set()

    def __call__(self, batch: Tensor) -> Tensor:
        """Run the network on a batch."""
        shape = batch.shape
        if shape in self._seen and len(self._chosen) < COMPILED_SHAPES:
            self._chosen.add(shape)
        self._seen.add(shape)
        if shape not in self._chosen:
            return self._network(batch)
        try:
            if self._compiled is None:
                self._compiled = torch.compile(self._network, dynamic=False)
            return self._compiled(batch)
        except RuntimeError as error:
            # The network's own errors are raised. torch.compile itself raises on some versions of Python.
            if self._compiled is not None and not isinstance(error, torch._dynamo.exc.TorchDynamoException):
                raise
            reason = one_line(str(getattr(error, "inner_exception", error)).strip().partition("\n")[0])
            warn(f"torch cannot compile here ({reason}): going on without compilation")
            self._compiled = self._network
            return self._network(batch)

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledNetwork, (self._network,)  # compiled code can be neither copied nor pickled


@contextlib.contextmanager
def exact_float32(device: torch.device, *, grad: bool = False) -> Iterator[None]:
    """Compute float32 products in float32 inside the block, without autocast.

    Args:
        device: device whose autocast is switched off.
        grad: keep the caller's gradient mode; if False, gradients are switched off.
    """
    gradients = contextlib.nullcontext() if grad else torch.no_grad()
    with gradients, torch.autocast(device.type, enabled=False), _FLOAT32:
        yield


class _Float32Products:
    """A context in which float32 products are computed in float32, as TF32 or bfloat16 would change tokens.

    torch's settings are per process: the first thread to enter changes them, and the last one to leave
    restores the user's.
    """

    def __init__(self) -> None:
        backends: Any = torch.backends
        self._settings: list[tuple[Any, str, Any]]  # object, attribute, value for float32
        if hasattr(backends, "fp32_precision"):  # since torch 2.9, where `allow_tf32` may raise
            parts = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
            self._settings = [(part, "fp32_precision", "ieee") for part in parts]
        else:
            self._settings = [(part, "allow_tf32", False) for part in (backends.cuda.matmul, backends.cudnn)]
        self._lock = threading.Lock()
        self._inside = 0
        self._found: list[Any] = []

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._found = [getattr(part, name) for part, name, _ in self._settings]
                for part, name, exact in self._settings:
                    setattr(part, name, exact)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for (part, name, _), value in zip(self._settings, self._found, strict=True):
                    setattr(part, name, value)


_FLOAT32 = _Float32Products()
