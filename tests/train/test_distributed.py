"""The processes of a run: what they say of their precision, and how they part."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vartok.train.distributed import Processes, destroy_process_group

backends: Any = torch.backends


@pytest.fixture
def _settings() -> Iterator[None]:
    parts = (backends.cuda.matmul, backends.cudnn.conv)
    found = [part.fp32_precision for part in parts]
    yield
    for part, value in zip(parts, found, strict=True):
        part.fp32_precision = value


@pytest.mark.usefixtures("_settings")
@pytest.mark.parametrize(
    ("products", "convolutions", "told"),
    [
        ("ieee", "tf32", "float32 (TF32 in convolutions alone)"),
        ("tf32", "ieee", "float32 (TF32 in matrix products alone)"),
        ("tf32", "tf32", "float32 (TF32 on)"),
        ("ieee", "ieee", "float32 (TF32 off)"),
    ],
)
def test_float32_on_cuda_says_what_is_tf32(products: str, convolutions: str, told: str) -> None:
    def describe(device: str, precision: str) -> str:
        stand_in: Any = SimpleNamespace(device=torch.device(device), precision=precision)
        return Processes.describe_precision(stand_in)

    backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision = products, convolutions
    assert describe("cuda", "float32") == told
    assert describe("cpu", "float32") == "float32"
    assert describe("cuda", "bf16") == "bf16"


def test_the_process_group_is_destroyed_if_there_is_one(tmp_path: Path) -> None:
    place = (tmp_path / "store").as_uri()
    torch.distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    destroy_process_group()
    assert not torch.distributed.is_initialized()
    destroy_process_group()
