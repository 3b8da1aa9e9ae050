"""The processes of a run, by accelerate, and their collective operations.

If there is only one process, an operation returns its input.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch
from torch import Tensor

from vartok.errors import TrainError, one_line
from vartok.runtime import choose_device

T = TypeVar("T")


class Processes:
    """The processes of a run, as one of them sees them.

    Attributes:
        accelerator: accelerate.Accelerator.
        device: device of this process.
        precision: precision of the networks, "bf16" or "float32".
        rank: number of this process, from 0.
        world_size: number of processes.
        is_main: True for the one process that writes and reports.

    Args:
        device: as for `vartok.load`. With several processes "cuda" must have no number.
        precision: "bf16", "float32", or "auto", see `takes_bf16`.

    Raises:
        DeviceError: this machine has no such device.
        TrainError: the device does not support the precision, `device` is one GPU for several processes, or
            the processes do not find each other.
    """

    def __init__(self, device: str, precision: str) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        chosen = choose_device(device)
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if chosen.index is not None and chosen.type == "cuda":
            if started > 1:
                raise TrainError(
                    f"{started} processes cannot share {device}: each takes a GPU of its own",
                    hint="set `device` to cuda, without a number",
                )
            torch.cuda.set_device(chosen)
        self.precision = "bf16" if takes_bf16(precision, chosen) else "float32"
        # With a schedule of few scales, some phis are unused.
        parallel = DistributedDataParallelKwargs(find_unused_parameters=True)
        try:
            self.accelerator: Any = Accelerator(
                cpu=chosen.type == "cpu",
                mixed_precision=self.precision.replace("float32", "no"),
                kwargs_handlers=[parallel],
            )
        except ValueError as error:  # bf16 on a GPU without it
            raise TrainError(
                f"cannot train in {self.precision} on {chosen}: {one_line(error)}",
                hint="set [run] precision to float32",
            ) from None
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world_size: int = self.accelerator.num_processes
        self.is_main: bool = self.accelerator.is_main_process
        if started != self.world_size:  # accelerate would let each process train alone
            raise TrainError(
                f"WORLD_SIZE is {started}, but accelerate sees {self.world_size} of these processes",
                hint="start the processes with accelerate launch",
            )

    def describe_precision(self) -> str:
        """Return "bf16" or "float32"; on CUDA, float32 says which products torch computes in TF32."""
        if self.device.type != "cuda" or self.precision != "float32":
            return self.precision
        return f"float32 ({_describe_tf32()})"

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        if self.world_size == 1:
            return value
        mean: Tensor = self.accelerator.reduce(value, "mean")
        return mean

    def gather(self, rows: Tensor) -> Tensor:
        """Join the rows of all processes, [n, ...] -> [processes * n, ...]; every process gets the result."""
        return rows if self.world_size == 1 else self.accelerator.gather(rows)

    def from_main(self, value: float) -> float:
        """Return the value of the main process, in every process."""
        if self.world_size == 1:
            return value
        from accelerate.utils import broadcast

        return float(broadcast(torch.tensor([value], device=self.device)))

    def gather_objects(self, value: T) -> list[T]:
        """Return the values of all processes, in order of rank, in every process. They are pickled."""
        if self.world_size == 1:
            return [value]
        from accelerate.utils import gather_object

        values: list[T] = gather_object([value])
        return values

    def any(self, value: bool) -> bool:
        """Return True if the value is True in at least one process."""
        if self.world_size == 1:
            return value
        return float(self.mean(torch.tensor([float(value)], device=self.device))) > 0

    def wait(self) -> None:
        """Wait until all processes have called this."""
        self.accelerator.wait_for_everyone()


def destroy_process_group() -> None:
    """Destroy torch's process group, if there is one. No collective operation works after it.

    At the end of a program its threads would otherwise still run while the interpreter exits, and NCCL warns.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def takes_bf16(precision: str, device: torch.device) -> bool:
    """Return True for "bf16", and for "auto" on a CUDA GPU or a CPU that computes bfloat16 in hardware."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    names = ("avx512_bf16", "amx_tile")
    on_cpu = any(getattr(torch.cpu, f"_is_{name}_supported", lambda: False)() for name in names)
    return device.type == "cpu" and on_cpu


def _describe_tf32() -> str:
    """Return the parts of networks that torch's settings let CUDA compute in TF32, in words."""
    backends: Any = torch.backends
    if hasattr(backends, "fp32_precision"):  # since torch 2.9, where `allow_tf32` may raise
        parts = (backends.cuda.matmul, backends.cudnn.conv)
        products, convolutions = (part.fp32_precision == "tf32" for part in parts)
    else:
        products, convolutions = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    if products == convolutions:
        return "TF32 on" if products else "TF32 off"
    return "TF32 in matrix products alone" if products else "TF32 in convolutions alone"


def adam_kernels(device: torch.device) -> dict[str, bool]:
    """Return the options of torch's Adam for a device: few launches, and the results of torch's own loop.

    CUDA has a fused kernel. The CPU's is four times as fast as its loop, but rounds otherwise, and the loop
    takes 1% of a step there.
    """
    return {"fused": True} if device.type == "cuda" else {"foreach": True}


def load_adam_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load an optimizer's state dict, saved on any device, but keep the optimizer's own `adam_kernels`."""
    names = ("fused", "foreach")
    for kept, group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        group.update({name: kept[name] for name in names})
    optimizer.load_state_dict(saved)
