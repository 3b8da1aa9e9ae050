"""Tokens do not depend on batch, memory layout, settings or threads of the process."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import VAR_32
from noise import save
from torch import Tensor

import vartok
from vartok import runner
from vartok.errors import (
    ImageError,
)
from vartok.models.quantizer import MultiScaleQuantizer


@pytest.mark.parametrize(("size", "cells"), [(2, 4096), (5, 48)])  # 48: three pictures are quantized at once
def test_no_picture_depends_on_its_batch(
    either: vartok.Tokenizer, photos: Tensor, size: int, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "QUANTIZED_CELLS", cells)
    some = photos[:8]
    together = either.encode(some)
    parts = [either.encode(part) for part in some.split(size)]
    assert len(some) == 8
    assert torch.equal(torch.cat([part.flatten() for part in parts]), together.flatten())
    parted = torch.cat([either.decode(part) for part in parts])
    assert torch.equal(parted, either.decode(together))


def test_memory_layout_makes_no_difference(either: vartok.Tokenizer, photos: Tensor) -> None:
    some = photos[:4]
    want = either.encode(some).flatten()
    assert torch.equal(either.encode(some.to(memory_format=torch.channels_last)).flatten(), want)
    padded = torch.zeros(4, 4, 70, 70)
    padded[:, 1:, 3:67, 3:67] = some
    assert torch.equal(either.encode(padded[:, 1:, 3:67, 3:67]).flatten(), want)


def precisions() -> dict[str, Any]:
    backends: Any = torch.backends
    return {
        "matmul": backends.cuda.matmul.fp32_precision,
        "conv": backends.cudnn.conv.fp32_precision,
        "cpu matmul": backends.mkldnn.matmul.fp32_precision,
        "cpu conv": backends.mkldnn.conv.fp32_precision,
    }


new_precisions = pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9")


SETTINGS = (
    'torch.set_float32_matmul_precision("high")',
    'torch.set_float32_matmul_precision("medium")',
    "torch.backends.cudnn.allow_tf32 = True",
    'torch.backends.cuda.matmul.fp32_precision = "tf32"',  # now what the first three set cannot be read
    'torch.backends.cudnn.conv.fp32_precision = "ieee"',
    'torch.backends.mkldnn.matmul.fp32_precision = "bf16"',
    'torch.backends.mkldnn.conv.fp32_precision = "bf16"',
    'torch.backends.fp32_precision = "bf16"',
)


@new_precisions
@pytest.mark.slow
def test_precision_settings_change_no_tokens_and_are_put_back(tmp_path: Path) -> None:
    """In a process of its own, as some settings cannot be undone."""
    path = save(tmp_path / "var.safetensors", VAR_32)
    code = f"""
import torch, vartok
torch.set_num_threads(1)
backends = torch.backends
parts = backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv
images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
tokenizers = [vartok.load(weights, device="cpu") for weights in (None, {str(path)!r})]
tokens = [tokenizer.encode(images) for tokenizer in tokenizers]
pictures = [tokenizer.decode(maps) for tokenizer, maps in zip(tokenizers, tokens)]
for setting in {SETTINGS!r}:
    exec(setting)
    before = [part.fp32_precision for part in parts]
    for tokenizer, maps, picture in zip(tokenizers, tokens, pictures):
        assert torch.equal(tokenizer.encode(images).flatten(), maps.flatten()), (setting, "tokens changed")
        assert torch.equal(tokenizer.decode(maps), picture), (setting, "pictures changed")
    assert [part.fp32_precision for part in parts] == before, (setting, "was not put back")
    for word in ("high", "medium"):
        assert f'"{{word}}"' not in setting or torch.get_float32_matmul_precision() == word
print("done")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "done\n", run.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_callers_autocast_changes_no_tokens(
    either: vartok.Tokenizer, photos: Tensor, dtype: torch.dtype
) -> None:
    want = either.encode(photos[:4])
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(either.encode(photos[:4]).flatten(), want.flatten())
        inputs = either.var_inputs(want)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype  # still on for the caller
    assert torch.equal(inputs, either.var_inputs(want))


def test_threads_get_the_same_tokens(either: vartok.Tokenizer, photos: Tensor) -> None:
    some = photos[:8]
    want = [either.encode(photo[None]).flatten() for photo in some]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            found = list(pool.map(lambda photo: either.encode(photo[None]).flatten(), some))
            assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


@new_precisions
def test_threads_put_the_settings_back_when_the_last_is_done(
    light: vartok.Tokenizer, photos: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, inside = precisions(), []
    scales = MultiScaleQuantizer.scale_steps

    def watched(self: Any, *args: Any, **options: Any) -> Iterator[Any]:
        for scale in scales(self, *args, **options):
            inside.append(precisions())
            yield scale

    monkeypatch.setattr(MultiScaleQuantizer, "scale_steps", watched)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda photo: light.encode(photo[None]), [*photos] * 4))
    assert len(inside) == 16 * 4 * 10
    assert all(set(seen.values()) == {"ieee"} for seen in inside)
    assert precisions() == before


def test_gradients_stay_on_for_the_caller(light: vartok.Tokenizer, photos: Tensor) -> None:
    light.encode(photos[:1])
    assert torch.is_grad_enabled()
    with pytest.raises(ImageError):
        light.encode(photos[:1, :1])
    assert torch.is_grad_enabled()
