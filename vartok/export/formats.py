"""The formats of exported parts: how a part is written, and how a file is run to check it."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import torch
from torch import Tensor

from vartok.errors import VartokError, one_line
from vartok.export.parts import Part

if TYPE_CHECKING:
    from torch.export import ExportedProgram

OPSET = 18
"""Version of ONNX's operators, which onnxruntime knows since its release 1.14."""

METADATA_FILE = "vartok.json"
"""Name of the metadata within a .pt2 file."""

Run: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """A format of exported parts.

    Attributes:
        suffix: suffix of its files.
        packages: packages that writing needs, besides torch.
        runtime: the package that runs its files.
        write: write a traced part with its metadata.
        load: open a file for running, on a CPU: a function of the part's input.
    """

    suffix: str
    packages: tuple[str, ...]
    runtime: str
    write: Callable[[ExportedProgram, Part, Mapping[str, str], BinaryIO], None]
    load: Callable[[Path], Run]


def write_part(part: Part, to: Format, metadata: Mapping[str, str], file: BinaryIO) -> None:
    """Trace a part and write it.

    Args:
        part: the part.
        to: format of the file.
        metadata: what the file tells about the part.
        file: a new file, open for writing.

    Raises:
        VartokError: this version of torch cannot export the part.
        OSError: the file cannot be written.
    """
    sizes = {
        dim: torch.export.Dim(name, min=1) * of if of > 1 else torch.export.Dim(name, min=1)
        for dim, (name, of) in part.dynamic.items()
    }
    try:
        with _quiet():
            program = torch.export.export(part.module, (part.example,), dynamic_shapes=(sizes,))
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # it names files of this machine
            to.write(program, part, metadata, file)
    except OSError:
        raise
    except Exception as error:  # whatever the exporters raise, of which there are many kinds
        reason = one_line(error)
        raise VartokError(f"torch {torch.__version__} cannot export the {part.name}: {reason}") from error


def _write_onnx(program: ExportedProgram, part: Part, metadata: Mapping[str, str], file: BinaryIO) -> None:
    onnx: Any = torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, output_names=[part.gives], verbose=False
    )
    model = onnx.model
    symbols = [str(model.graph.inputs[0].shape[dim].value) for dim in part.dynamic]
    names = (name for name, _ in part.dynamic.values())
    onnx.rename_axes({symbol.split("*")[-1]: name for symbol, name in zip(symbols, names, strict=True)})
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # torch's notes for debugging
    model.metadata_props.update(metadata)
    file.write(onnx.model_proto.SerializeToString(deterministic=True))


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def run(value: Tensor) -> Tensor:
        (output,) = session.run(None, {given.name: value.numpy()})
        return torch.from_numpy(output)

    return run


def _write_torch(program: ExportedProgram, _: Part, metadata: Mapping[str, str], file: BinaryIO) -> None:
    torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(metadata)})


def _load_torch(path: Path) -> Run:
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    def run(value: Tensor) -> Tensor:
        with torch.no_grad():
            output: Tensor = module(value)
        return output

    return run


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript"), "onnxruntime", _write_onnx, _load_onnx),
    "torch-export": Format(".pt2", (), "torch", _write_torch, _load_torch),
}
"""The formats by their names."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings and log messages of torch's exporters, which concern torch's own code."""
    logger = logging.getLogger("torch")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
