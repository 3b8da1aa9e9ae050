"""Work on another device than the CPU: copies to it, and waits for it."""

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

import vartok
from vartok.checkpoints import build_model, read_checkpoint, shipped_checkpoint
from vartok.errors import TokensError
from vartok.images import to_pixels
from vartok.tokens import TokenMaps, check_indices_without_waiting

META = torch.device("meta")
SCHEDULE = ((1, 1), (2, 2))
PIXELS = np.zeros((3, 32, 32, 3), np.uint8)


class Device(TorchFunctionMode):
    """Notes what waits for torch's device "meta", which has shapes and no values, and so cannot be read.

    What reads it in these two ways gets values that stand in for its own; every other way raises an error.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.copies = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.cpu) and args[0].device == META:
            self.waits.append(func.__name__)
            values = torch.zeros(args[0].shape, dtype=args[0].dtype, device="cpu")
            return values if func is Tensor.cpu else (values + 1).tolist()
        if func is Tensor.to and args[0].device.type == "cpu" and META in args:
            self.copies += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> vartok.Tokenizer:
    """Return the shipped tokenizer on "meta", for which torch has no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    checkpoint = read_checkpoint(shipped_checkpoint())
    model = build_model(checkpoint)
    return vartok.Tokenizer(model, checkpoint.config, name="", device=META, dtype="float32")


@pytest.mark.slow  # torch imports its compiler for "meta"
def test_a_batch_waits_for_its_device_once_each_way(
    elsewhere: vartok.Tokenizer, light: vartok.Tokenizer
) -> None:
    info = light.image_tokens(light.encode(PIXELS), ["a", "b", "c"])[0].image
    with Device() as device:
        maps = elsewhere.encode(PIXELS, SCHEDULE)
        assert (device.copies, device.waits) == (1, ["tolist"])
        found = maps.unstack(elsewhere.info, [info] * 3)
        assert device.waits == ["tolist", "cpu"]  # the second after all is computed
    with Device() as device:
        images = elsewhere.decode(TokenMaps.stack(found))
        assert (device.copies, device.waits) == (1, [])
        assert to_pixels(images).shape == PIXELS.shape
        assert device.waits == ["cpu"]
    with Device() as device:
        elsewhere.decode(maps)  # whose vocabulary was not checked on the CPU
        assert (device.copies, device.waits) == (0, ["tolist"])


@pytest.mark.slow
def test_var_inputs_wait_for_nothing(elsewhere: vartok.Tokenizer) -> None:
    flat = torch.zeros(2, 5, dtype=torch.int64)
    with Device() as device:
        elsewhere.var_inputs(TokenMaps.unflatten(flat, SCHEDULE))
    assert (device.copies, device.waits) == (1, [])


def test_indices_on_cuda_are_left_to_torchs_lookup() -> None:
    with FakeTensorMode():  # stands for CUDA: reading a value is an error
        tokens = torch.zeros(2, 2, 2, dtype=torch.int64, device="cuda")
        check_indices_without_waiting([tokens, tokens], 4096)
    with pytest.raises(TokensError, match="index 4096 is outside"):
        check_indices_without_waiting([torch.tensor([[[5, 4096]]])], 4096)
