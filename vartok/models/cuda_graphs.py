"""CUDA graphs: a function's kernels launched as one, for batches so small that launching takes the time."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from vartok.errors import one_line, warn

GRAPHED_SHAPES = 4
"""Largest number of graphs of a function; each keeps the memory of the function's maps."""

GRAPHED_PIXELS = 1 << 20
"""Largest number of pixels of a batch that is worth a graph: 16 images of 256x256. A card works on larger
batches for longer than a processor launches kernels."""

GRAPHED_CELLS = GRAPHED_PIXELS >> 8
"""The same for a batch of latents, whose cells are of 16x16 pixels."""

Tensors: TypeAlias = Tensor | Sequence[Tensor]

_LOCK = threading.RLock()
"""Held while a graph is captured, or its buffers are written and read: all graphs share their memory."""


class GraphedFunction:
    """A function that is captured in a CUDA graph for each kind of arguments that occurs twice.

    Arguments are of one kind if their tensors have the same shapes and dtypes and their settings are equal. A
    graph that does not compute what the function computes for the batch that it is made of is not used. While
    the caller captures a graph of its own, which cannot hold another, the function runs.

    Args:
        function: takes one or more [B, ..., h, w] on a CUDA device, as a tensor or a sequence, and settings.
            It reads nothing back from the device, and needs no gradients.
        max_cells: largest number of cells, B h w of the largest tensor, for which a graph is made.
        keep: returns, given the first setting, what a graph must keep in memory, such as cached constants.

    Warns:
        VartokWarning: CUDA cannot capture the function; from then on no graphs are made.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        max_cells: int,
        keep: Callable[[Any], object] | None = None,
    ) -> None:
        self._function = function
        self._max_cells = max_cells
        self._keep = keep
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, _Graph] = {}
        self._works = True

    def __call__(self, argument: Tensors, *settings: Hashable) -> Any:
        """Run the function, or a graph of it; results are the caller's to keep."""
        tensors = _listed(argument)
        cells = max(len(tensor) * tensor.shape[-2] * tensor.shape[-1] for tensor in tensors)
        if not self._works or not 0 < cells <= self._max_cells or _capturing(tensors[0].device):
            return self._function(argument, *settings)
        kind = (*((tensor.shape, tensor.dtype) for tensor in tensors), *settings)
        with _LOCK:
            if kind in self._graphs:
                return self._graphs[kind].replay(argument)
            seen = kind in self._seen
            self._seen.add(kind)
        result = self._function(argument, *settings)
        if seen and len(self._graphs) < GRAPHED_SHAPES:
            self._capture(kind, argument, settings, result)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        # Graphs can be neither copied nor pickled.
        return GraphedFunction, (self._function, self._max_cells, self._keep)

    def _capture(self, kind: Hashable, argument: Tensors, settings: tuple[Any, ...], result: Tensors) -> None:
        """Add the graph of a kind of arguments, of which `result` is an example."""
        kept = self._keep(settings[0]) if self._keep else None
        try:
            with _LOCK:
                graph = _Graph(lambda given: self._function(given, *settings), argument, kept)
                if not _agree(graph.replay(argument), result):
                    raise RuntimeError("it computes other values")
                self._graphs[kind] = graph
        except RuntimeError as error:
            self._works = False
            reason = one_line(str(error).strip().partition("\n")[0])
            warn(f"CUDA cannot capture a graph here ({reason}): going on without graphs")


class _Graph:
    """A captured graph with the buffers that it reads and writes.

    Args:
        function: the function to capture.
        argument: an argument of it, which is copied.
        kept: what must live as long as the graph.
    """

    def __init__(self, function: Callable[[Tensors], Tensors], argument: Tensors, kept: object) -> None:
        self._kept = kept
        self._device = argument.device if isinstance(argument, Tensor) else argument[0].device
        shared = _shared(self._device)
        self._replayed = shared.replayed
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.device(self._device):
            self._input = _cloned(argument)
            # torch's own stream for captures is of one device: of another's work it captures nothing.
            with _running_on(shared.stream):  # torch leaves its stream current where a capture fails
                function(self._input)  # makes workspaces of libraries, which a capture cannot
                # Other threads may allocate memory meanwhile.
                with torch.cuda.graph(
                    self._graph, pool=shared.pool, stream=shared.stream, capture_error_mode="thread_local"
                ):
                    self._output = function(self._input)

    def replay(self, argument: Tensors) -> Tensors:
        """Compute the function of another argument of the same kind."""
        with torch.cuda.device(self._device):
            self._replayed.wait()  # another thread's stream may still read the shared memory
            with torch.inference_mode():
                for buffer, tensor in zip(_listed(self._input), _listed(argument), strict=True):
                    buffer.copy_(tensor)
                self._graph.replay()
            result = _cloned(self._output)
            self._replayed.record()
        return result


class _Shared(NamedTuple):
    """The parts that all graphs of a device share.

    Attributes:
        pool: memory pool of their maps.
        stream: stream on which they are captured.
        replayed: event of the last use of the memory.
    """

    pool: Any
    stream: torch.cuda.Stream
    replayed: torch.cuda.Event


@functools.cache
def _shared(device: torch.device) -> _Shared:
    return _Shared(torch.cuda.graph_pool_handle(), torch.cuda.Stream(device), torch.cuda.Event())


@contextlib.contextmanager
def _running_on(stream: torch.cuda.Stream) -> Iterator[None]:
    """Run on a stream inside the block, after the current stream's work and before what it does next."""
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _listed(tensors: Tensors) -> Sequence[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else tensors


def _cloned(tensors: Tensors) -> Tensors:
    return tensors.clone() if isinstance(tensors, Tensor) else [tensor.clone() for tensor in tensors]


def _agree(found: Tensors, wanted: Tensors) -> bool:
    """Return whether results are the same but for rounding: a twentieth of the range, or of the tokens."""
    for one, other in zip(_listed(found), _listed(wanted), strict=True):
        if not other.is_floating_point():
            off = (one != other).float().mean()
        else:
            one, other = one.float().nan_to_num(), other.float().nan_to_num()
            off = (one - other).abs().max() / other.abs().max().clamp(min=1e-6)
        if off > 0.05:
            return False
    return True
