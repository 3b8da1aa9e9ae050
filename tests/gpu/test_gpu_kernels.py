"""Triton's kernels and CUDA graphs on a card; `test_triton_kernels.py` uses a card too where there is one."""

from collections.abc import Callable

import pytest
import torch
from device_cases import Case, share_equal

from vartok.models.cuda import kernels_work
from vartok.runtime import DTYPES

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("error::vartok.errors.VartokWarning")]
pytest_plugins = ["device_cases"]

PARTS = ("_encode", "_decode", "_quantize", "_sum_scales")
"""Functions of a runner that have graphs."""


@pytest.fixture(autouse=True)
def _only_cuda(device: str) -> None:
    if device != "cuda":
        pytest.skip("the kernels are for CUDA")


@pytest.mark.parametrize("dtype", ["tf32", "bfloat16", "float16"])
def test_kernels_work(dtype: str) -> None:
    assert kernels_work(torch.device("cuda", 0), DTYPES[dtype])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["light", "ch160"])
def test_graphs_give_the_same_tokens_and_pictures(
    cases: Callable[[str], Case], device: str, name: str, dtype: str
) -> None:
    case = cases(name)
    tokenizer, other = case.load(device, dtype), case.load(device, dtype)
    for part in PARTS:
        setattr(other._runner, part, getattr(other._runner, part)._function)
    for batch in case.images.to(device)[:8].split(2):  # the first two batches run without graphs
        tokens = tokenizer.encode(batch)
        assert share_equal(tokens, other.encode(batch)) > (0.999 if dtype == "float32" else 0.95)
        difference = tokenizer.decode(tokens) - other.decode(tokens)
        assert difference.abs().max() < (5e-4 if dtype == "float32" else 0.1)
    assert [len(getattr(tokenizer._runner, part)._graphs) for part in PARTS] == [1, 1, 1, 1]
