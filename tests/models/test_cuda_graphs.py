"""Functions run as CUDA graphs: when a graph is made and used; here with a stand-in that captures nothing."""

import contextlib
import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import MagicMock

import noise
import pytest
import torch
from noise import SMALL
from torch import Tensor

from vartok.errors import VartokWarning
from vartok.models import cuda_graphs
from vartok.models.cuda import graphed_networks, graphed_quantizer, optimize_for_cuda
from vartok.models.cuda_graphs import GRAPHED_SHAPES, GraphedFunction, Tensors, _Graph


class Recorder:
    """Records the graphs made and their replays; a replay computes the function."""

    made: list["Recorder"]
    error: str | None
    shift: float

    def __init__(self, function: Callable[[Tensors], Tensors], argument: Tensors, kept: object) -> None:
        if Recorder.error:
            raise RuntimeError(Recorder.error)
        self.function, self.kept, self.replays = function, kept, 0
        Recorder.made.append(self)

    def replay(self, argument: Tensors) -> Tensors:
        self.replays += 1
        result = self.function(argument)
        return result + Recorder.shift if isinstance(result, Tensor) else result


@pytest.fixture(autouse=True)
def _recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    Recorder.made, Recorder.error, Recorder.shift = [], None, 0.0
    monkeypatch.setattr(cuda_graphs, "_Graph", Recorder)


def double(argument: Tensor, times: int = 2) -> Tensor:
    return argument * times


def latent(B: int = 1, side: int = 4) -> Tensor:  # noqa: N803
    return torch.randn(B, 2, side, side)


def test_a_graph_is_made_of_what_occurs_twice() -> None:
    function = GraphedFunction(double, 64)
    x = latent()
    assert torch.equal(function(x), x * 2)
    assert not Recorder.made
    function(latent(2))  # another shape
    assert not Recorder.made
    assert torch.equal(function(x), x * 2)
    assert [graph.replays for graph in Recorder.made] == [1]  # compared with the function's own result
    assert torch.equal(function(x + 1), (x + 1) * 2)
    assert [graph.replays for graph in Recorder.made] == [2]


def test_settings_and_dtypes_are_of_other_kinds() -> None:
    function = GraphedFunction(double, 64, keep=lambda times: ("constants", times))
    x = latent()
    for _ in range(3):
        assert torch.equal(function(x, 3), x * 3)
        assert torch.equal(function(x, 5), x * 5)
        assert torch.equal(function(x.half(), 3), x.half() * 3)
    assert [graph.kept for graph in Recorder.made] == [("constants", 3), ("constants", 5), ("constants", 3)]


def test_large_batches_and_more_shapes_get_no_graph() -> None:
    function = GraphedFunction(double, 16)
    for size in (
        latent(2),
        latent(0),
        *(latent(side=side) for side in (1, 2, 3, 4)),
        torch.randn(1, 2, 1, 5),
    ):
        for _ in range(3):
            assert torch.equal(function(size), size * 2)
    assert len(Recorder.made) == GRAPHED_SHAPES == 4


def test_in_a_capture_of_the_callers_own_the_function_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    function = GraphedFunction(double, 64)
    x = latent()
    for capturing, replays in ((False, []), (True, []), (False, [1]), (True, [1])):
        monkeypatch.setattr(cuda_graphs, "_capturing", lambda _, capturing=capturing: capturing)
        assert torch.equal(function(x), x * 2)
        assert [graph.replays for graph in Recorder.made] == replays


def test_maps_of_several_scales() -> None:
    def total(maps: list[Tensor], schedule: tuple[int, ...]) -> list[Tensor]:
        return [tokens + len(schedule) for tokens in maps]

    function = GraphedFunction(total, 64)
    maps = [torch.zeros(1, side, side, dtype=torch.int64) for side in (1, 2)]
    for _ in range(3):
        assert [tokens.flatten()[0].item() for tokens in function(maps, (1, 2))] == [2, 2]
    assert [graph.replays for graph in Recorder.made] == [2]


@pytest.mark.parametrize(
    ("error", "shift", "message"),
    [
        ("operation not permitted\nmore", 0.0, r"a graph here \(operation not permitted\): going on"),
        (None, 9.0, "computes other values"),
        (None, float("nan"), "computes other values"),
    ],
)
def test_where_graphs_fail_the_function_runs_and_one_warning_says_so(
    error: str | None, shift: float, message: str
) -> None:
    Recorder.error, Recorder.shift = error, shift
    function = GraphedFunction(double, 64)
    x = latent()
    function(x)
    with pytest.warns(VartokWarning, match=message):
        assert torch.equal(function(x), x * 2)
    Recorder.error, Recorder.shift = None, 0.0
    for y in (x, x, latent(2), latent(2)):
        assert torch.equal(function(y), y * 2)  # without a second warning
    assert sum(graph.replays for graph in Recorder.made) == (0 if error else 1)


def test_values_that_are_not_finite_do_not_tell_against_a_graph() -> None:
    function = GraphedFunction(double, 64)
    x = torch.full((1, 2, 4, 4), torch.nan)
    for _ in range(3):
        assert function(x).isnan().all()
    assert Recorder.made[0].replays == 2


def test_copies_make_graphs_of_their_own() -> None:
    function = GraphedFunction(double, 64)
    x = latent()
    for _ in range(2):
        function(x)
    for other in (copy.deepcopy(function), pickle.loads(pickle.dumps(function))):
        assert torch.equal(other(x), x * 2)
        assert not other._graphs


@torch.no_grad()
def test_a_models_functions_as_graphs() -> None:
    plain = noise.model(SMALL)
    model = copy.deepcopy(plain)
    optimize_for_cuda(model, "float32")
    encode, decode = graphed_networks(model)
    quantize, sum_scales = graphed_quantizer(model)
    images = torch.rand(1, 3, 8, 8) * 2 - 1
    schedule = SMALL.patch_nums
    for _ in range(3):
        maps = quantize(encode(images), schedule, None)
        found = decode(sum_scales(maps, schedule))
    assert [graph.replays for graph in Recorder.made] == [2, 2, 2, 2]
    assert [graph.kept is not None for graph in Recorder.made] == [False, True, True, False]
    want = plain.quantize.encode(plain.encode(images), schedule)
    assert all(torch.equal(*pair) for pair in zip(maps, want, strict=True))
    assert torch.allclose(found, plain.decode(plain.quantize.decode(want, schedule)), atol=1e-4)


@pytest.mark.parametrize("error", [None, RuntimeError("operation not permitted")])
def test_a_graph_is_captured_on_a_stream_of_its_device_which_is_left(
    error: RuntimeError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[Any] = ["the caller's"]
    captured = []

    @contextlib.contextmanager
    def stream(given: Any) -> Iterator[None]:
        streams.append(given)
        try:
            yield
        finally:
            del streams[streams.index(given) :]

    @contextlib.contextmanager
    def graph(graph: object, *, stream: Any, **options: object) -> Iterator[None]:
        """Leave the stream current after an error, as torch does."""
        streams.append(stream)
        captured.append(stream)
        yield
        if error:
            raise error
        streams.pop()

    shared = MagicMock()
    for name, stand_in in {"stream": stream, "graph": graph, "device": contextlib.nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    for name in ("CUDAGraph", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(cuda_graphs, "_shared", {torch.device("cpu"): shared}.__getitem__)
    with pytest.raises(RuntimeError, match="not permitted") if error else contextlib.nullcontext():
        _Graph(lambda given: given, latent(), None)
    assert captured == [shared.stream]
    assert streams == ["the caller's"]
