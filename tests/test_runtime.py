"""Device, kept memory, compilation by torch (here for the CPU), precision."""

import copy
import pickle
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import vartok
from vartok.errors import (
    VartokWarning,
)
from vartok.runtime import choose_device, to_device


@pytest.mark.parametrize(("cuda", "mps", "chosen"), [(1, 1, "cuda"), (0, 1, "mps"), (0, 0, "cpu")])
def test_auto_takes_the_fastest_device(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    assert choose_device() == torch.device(chosen)


@pytest.mark.parametrize(
    ("device", "pinned", "background"),
    [("cuda", True, True), ("cuda", False, False), ("mps", True, False), ("cpu", True, False)],
)
def test_only_pinned_memory_is_copied_in_the_background_and_only_to_cuda(
    device: str, pinned: bool, background: bool
) -> None:
    class Copies(TorchFunctionMode):
        """torch's calls on a machine with the device: copies are noted, not made."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is Tensor.is_pinned:
                return pinned
            if func is Tensor.to:
                found.append((str(args[1]), kwargs["non_blocking"]))
                return args[0]
            return func(*args, **(kwargs or {}))

    found: list[tuple[str, bool]] = []
    tensor, place = torch.zeros(2), torch.device(device)
    with Copies():
        to_device(tensor, place)
    assert found == [(device, background)]


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles by g++ on a CPU")
def test_a_shape_that_comes_twice_is_compiled(light: vartok.Tokenizer, coffee: Tensor) -> None:
    tokenizer = vartok.load(device="cpu", compile=True)
    before = graphs()
    with warnings.catch_warnings(action="error", category=VartokWarning):
        for side, more in ((256, 0), (256, 2), (128, 0), (256, 0)):
            images = F.interpolate(coffee, (side, side), mode="area")
            tokens = tokenizer.encode(images)
            same = tokens.flatten() == light.encode(images).flatten()
            assert same.float().mean() > 0.98  # at a draw between two codes the last bit decides
            torch.testing.assert_close(tokenizer.decode(tokens), light.decode(tokens), rtol=0, atol=1e-4)
            before += more
            assert graphs() == before


def test_only_so_many_shapes_are_compiled(coffee: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def compiled(network: Callable[[Tensor], Tensor], dynamic: bool) -> Callable[[Tensor], Tensor]:
        def call(batch: Tensor) -> Tensor:
            given.append(tuple(batch.shape))
            return network(batch)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    tokenizer = vartok.load(device="cpu", compile=True)
    sides = range(16, 112, 16)
    for side in [*sides, *sides, *sides]:
        tokenizer.encode(F.interpolate(coffee, (side, side), mode="area"))
    assert given == 2 * [(1, 3, side, side) for side in [*sides][:4]]


def test_where_torch_refuses_to_compile_it_goes_on_without(
    coffee: Tensor, light: vartok.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(network: object, dynamic: bool) -> None:
        raise RuntimeError("not on this Python")

    monkeypatch.setattr(torch, "compile", refuse)
    images = F.interpolate(coffee, (64, 64), mode="area")
    tokenizer = vartok.load(device="cpu", compile=True)
    tokenizer.encode(images)
    with pytest.warns(VartokWarning, match=r"torch cannot compile here \(not on this Python\): going on"):
        tokens = tokenizer.encode(images)
    assert torch.equal(tokens.flatten(), light.encode(images).flatten())


@pytest.mark.slow
def test_a_compiled_tokenizer_copied_computes_with_its_own_weights(coffee: Tensor) -> None:
    images = F.interpolate(coffee, (64, 64), mode="area")
    tokenizer = vartok.load(device="cpu", compile=True)
    latent = tokenizer.latent(images)
    torch.testing.assert_close(pickle.loads(pickle.dumps(tokenizer)).latent(images), latent)
    other = copy.deepcopy(tokenizer)
    other._model.quant_conv.weight.zero_()
    assert not torch.allclose(other.latent(images), latent)
    torch.testing.assert_close(tokenizer.latent(images), latent)


@pytest.mark.slow
def test_where_torch_cannot_compile_it_goes_on_without(light: vartok.Tokenizer, coffee: Tensor) -> None:
    images = F.interpolate(coffee, (64, 80), mode="area")
    tokenizer = vartok.load(device="cpu", compile=True)
    tokens = tokenizer.encode(images)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}):
        with pytest.warns(
            VartokWarning, match=r"torch cannot compile here \(.*compiler.*\): going on without compilation"
        ):
            assert torch.equal(tokenizer.encode(images).flatten(), tokens.flatten())
        with warnings.catch_warnings(action="error"):
            assert torch.equal(tokenizer.encode(images).flatten(), tokens.flatten())
    assert (tokens.flatten() == light.encode(images).flatten()).float().mean() > 0.98
