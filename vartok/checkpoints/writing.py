"""Write tensors as a safetensors file, without a second copy of them in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch
from safetensors.torch import save
from torch import Tensor


def safetensors_parts(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """Yield the parts of a safetensors file: its header, with the metadata in order, and each tensor.

    Equal tensors and metadata give equal bytes. Tensors may share memory: each is written in full.

    Args:
        tensors: dense tensors by name.
        metadata: the file's metadata.
    """
    # The order of the tensors is safetensors' own: by dtype, then by name.
    empty = save({name: tensor.new_empty(0) for name, tensor in tensors.items()}, dict(metadata))
    header = json.loads(empty[8:])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    names, end = [name for name in header if name != "__metadata__"], 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        header[name] |= {"shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors must be aligned
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        plain = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield plain.view(torch.uint8).numpy().data
