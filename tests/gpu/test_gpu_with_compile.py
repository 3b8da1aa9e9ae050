"""Networks that torch compiles on an accelerator. These tests come last, as compilation takes minutes."""

import shutil
from collections.abc import Callable

import pytest
import torch
from device_cases import MOST_CHANGED, Case, Sizes, State, in_batches, largest_error, share_equal

from vartok.errors import VartokWarning

pytestmark = pytest.mark.gpu
pytest_plugins = ["device_cases"]

Cases = Callable[[str], Case]


@pytest.mark.slow
def test_compiled_networks_agree_with_eager_ones(
    cases: Cases, sizes: Sizes, device: str, state: State
) -> None:
    if device == "cpu" and shutil.which("g++") is None:
        pytest.skip("torch compiles by g++ on a CPU")
    case = cases(sizes.compiled)
    images = case.images[:3]
    eager, compiled = case.load(device), case.load(device, compile=True)
    wanted = in_batches(eager, images, 3)
    shares = [share_equal(in_batches(compiled, images, 3), wanted) for _ in range(3)]
    error = max(largest_error(compiled.decode(wanted), eager.decode(wanted)) for _ in range(3))
    state(network=sizes.compiled, as_eager=min(shares), picture_error=error)
    assert min(shares) > 0.98
    assert error < 5e-4


def test_where_torch_cannot_compile_the_networks_run_without(
    cases: Cases, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("not on this device")

    monkeypatch.setattr(torch, "compile", refuse)
    case = cases("light")
    tokenizer = case.load(device, compile=True)
    with pytest.warns(VartokWarning, match="torch cannot compile here"):
        first, again = (in_batches(tokenizer, case.images[:3], 3) for _ in range(2))
    assert share_equal(again, case.tokens) >= 1 - MOST_CHANGED
    assert torch.equal(again.flatten(), first.flatten())
