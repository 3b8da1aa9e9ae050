"""The machine that a model runs on: device, precision, compilation."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vartok.errors import DeviceError, one_line, quoted, warn

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Precisions of networks, and the dtypes of their weights; "tf32" computes products of float32 in TF32."""

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


def check_dtype(dtype: str, device: torch.device) -> None:
    """Check that networks can compute in a dtype on a device.

    Raises:
        DeviceError: the dtype is not a key of `DTYPES`, or is "tf32" and the device has no TF32.
    """
    if dtype not in DTYPES:
        raise DeviceError(f"dtype must be one of {', '.join(DTYPES)}, not {quoted(dtype)}")
    if dtype == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise DeviceError(
            f"{device} does not compute in tf32, which CUDA GPUs since Ampere do",
            hint="set `dtype` to float32 or bfloat16",
        )


def computed_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype in which networks of a dtype compute on a device.

    It is float32 where a CPU has no instructions for the dtype, which torch then imitates one number at a
    time: with the shipped checkpoint, one core without AVX-512 took 3 s to encode a picture in bfloat16 or
    float16, and 0.03 s in float32. The weights are rounded to the dtype all the same.
    """
    imitated = dtype == "float16" or (
        dtype == "bfloat16" and not getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)()
    )
    return torch.float32 if device.type == "cpu" and imitated else DTYPES[dtype]


def warn_of_dtype(dtype: str, device: torch.device) -> None:
    """Warn if networks of a dtype compute in another one on a device.

    Warns:
        VartokWarning: they do.
    """
    if computed_dtype(dtype, device) != DTYPES[dtype]:
        warn(
            f"this processor does not compute in {dtype}: "
            f"the networks compute in float32, with weights rounded to {dtype}"
        )


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
def network_precision(device: torch.device, dtype: str, *, grad: bool = False) -> Iterator[None]:
    """Compute as networks of a dtype do inside the block, without autocast.

    Args:
        device: device whose autocast is switched off.
        dtype: a key of `DTYPES`; float32 products are computed in TF32 for "tf32", else in float32.
        grad: keep the caller's gradient mode; if False, gradients are switched off.

    Raises:
        RuntimeError: the block is inside one of the other precision of products.
    """
    gradients = contextlib.nullcontext() if grad else torch.no_grad()
    products = _PRODUCTS.computed_in("tf32" if dtype == "tf32" else "ieee")
    with gradients, torch.autocast(device.type, enabled=False), products:
        yield


def exact_float32(device: torch.device, *, grad: bool = False) -> contextlib.AbstractContextManager[None]:
    """Return a context in which float32 products are computed in float32, see `network_precision`."""
    return network_precision(device, "float32", grad=grad)


class _ProductPrecision:
    """The precision in which torch computes products of float32 numbers: "ieee" is float32, "tf32" is TF32.

    torch's settings are per process, and a kernel is chosen when it is called: the first thread to enter
    changes them, the last one to leave restores the user's, and a thread with another precision waits until
    no thread is inside.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: list[int] = []  # a thread's id for each of its blocks
        self._precision = ""
        self._restore: Callable[[], None] = _do_nothing

    @contextlib.contextmanager
    def computed_in(self, precision: str) -> Iterator[None]:
        """Compute products in a precision, "ieee" or "tf32", inside the block.

        Raises:
            RuntimeError: the thread is inside a block of the other precision, and would wait for itself.
        """
        thread = threading.get_ident()
        with self._changed:
            if thread in self._inside and self._precision != precision:
                raise RuntimeError(f"a block of {precision} products is inside one of {self._precision}")
            self._changed.wait_for(lambda: not self._inside or self._precision == precision)
            if not self._inside:
                self._restore, self._precision = _set_product_precision(precision), precision
            self._inside.append(thread)
        try:
            yield
        finally:
            with self._changed:
                self._inside.remove(thread)
                if not self._inside:
                    self._restore()
                    self._changed.notify_all()


def _do_nothing() -> None:
    pass


def _set_product_precision(precision: str) -> Callable[[], None]:
    """Set the precision of float32 products, and return a function that restores the settings found.

    Since torch 2.9 a setting that was not made follows a general one. It must follow that afterwards too, so
    the general ones are changed first, and others only if they do not follow. torch keeps an older setting
    beside them, `set_float32_matmul_precision`, and raises errors in its compiler and profiler where the two
    disagree; so both are changed.
    """
    backends: Any = torch.backends
    older = {"ieee": "highest", "tf32": "high"}[precision]
    undo: list[Callable[[], None]] = []

    def put(part: Any, name: str, value: object) -> None:
        found = getattr(part, name)
        if found != value:
            undo.append(lambda: setattr(part, name, found))
            setattr(part, name, value)

    def put_older() -> None:
        found = torch.get_float32_matmul_precision()
        if found == older:
            return
        own = [] if general is None else [(part, _follows(part, general)) for part in matmul]

        def restore_older() -> None:
            torch.set_float32_matmul_precision(found)
            for part, follows in own:  # both of which the older setting changes
                part.fp32_precision = "none" if follows else "ieee"

        undo.append(restore_older)
        torch.set_float32_matmul_precision(older)

    def restore() -> None:
        while undo:
            undo.pop()()

    general = (backends, backends.cudnn) if hasattr(backends, "fp32_precision") else None
    if general is None:
        put(backends.cudnn, "allow_tf32", precision == "tf32")
        put_older()
        return restore
    matmul = (backends.cuda.matmul, backends.mkldnn.matmul)
    cuda = (*general, backends.cuda.matmul, backends.cudnn.conv)
    for part in (*cuda, backends.mkldnn.matmul, backends.mkldnn.conv):
        put(part, "fp32_precision", "ieee")  # where all are, the older setting can be read
    put_older()
    if precision == "tf32":
        for part in cuda:
            put(part, "fp32_precision", "tf32")
    return restore


def _follows(part: Any, general: Sequence[Any]) -> bool:
    """Return whether a setting of torch follows the general ones, which are "ieee"."""
    changed = []
    for one in general:
        if one.fp32_precision == "ieee":  # else it follows the one before
            one.fp32_precision = "tf32"
            changed.append(one)
    follows = bool(part.fp32_precision == "tf32")
    for one in changed:
        one.fp32_precision = "ieee"
    return follows


_PRODUCTS = _ProductPrecision()
