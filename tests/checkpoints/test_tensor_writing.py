"""Safetensors files are written tensor by tensor, as safetensors itself writes them."""

import json

import torch
from checkpoint_cases import same
from safetensors.torch import load, save

from vartok.checkpoints.writing import safetensors_parts


def test_the_parts_are_the_file_that_safetensors_writes() -> None:
    values = torch.arange(24.0)
    tensors = {
        "b.weight": values.view(2, 3, 4).transpose(0, 2),
        "a": values.half(),
        "ä": values[:5].bfloat16(),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 3),
        "eight": values.to(torch.float8_e4m3fn),
        "tied": values,
        "with it": values,
    }
    data = b"".join(safetensors_parts(tensors, {"z": "1", "format": "a"}))
    found = load(data)
    assert same(
        {name: t.float() for name, t in found.items()}, {name: t.float() for name, t in tensors.items()}
    )
    header, end = (
        json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]),
        int.from_bytes(data[:8], "little"),
    )
    assert list(header.pop("__metadata__")) == ["format", "z"]
    theirs = save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, {"z": "1"})
    their_end = int.from_bytes(theirs[:8], "little")
    assert header == {k: v for k, v in json.loads(theirs[8 : 8 + their_end]).items() if k != "__metadata__"}
    assert data[8 + end :] == theirs[8 + their_end :]
    assert (8 + end) % 8 == 0
