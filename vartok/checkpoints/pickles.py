"""Check the pickles of a PyTorch file before torch runs them: they must build about as much as they store.

torch runs no code of a file (`weights_only`), but a pickle names an object once and uses it many times. A key
of nested tuples of 200 bytes takes years to hash, and calls of 5 bytes copy whatever they are given.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path

from vartok.checkpoints.other_files import CUT, other_zip
from vartok.errors import CheckpointError, one_line

MAX_PICKLE = 1 << 26
"""Largest size in bytes of the pickles of a file, without its numbers."""

MAX_CALLS = 500_000
"""Largest number of calls in a pickle; a parameter takes three."""

_REBUILD = frozenset(
    f"torch._utils _rebuild_{name}"
    for name in ("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state", "sparse_tensor")
) | {"torch._utils _rebuild_meta_tensor_no_storage"}
_PLAIN = frozenset({"collections OrderedDict", "collections Counter", "__builtin__ set", "builtins set"}) | {
    "torch Size",
    "torch device",
    "torch.serialization _get_layout",
    "_codecs encode",
    "__builtin__ complex",
    "builtins complex",
}
_NAMESPACE = "argparse Namespace"  # a trainer's arguments: it keeps what it is given, and runs nothing
_FROM_TYPE = "torch._tensor _rebuild_from_type_v2"  # calls the function that is its first argument
_LEAVES = frozenset({"NONE", "NEWFALSE", "NEWTRUE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"})
_TEXTS = frozenset({"BINUNICODE", "SHORT_BINSTRING"})
_EMPTY = frozenset({"EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Node:
    """An object that a pickle builds.

    Attributes:
        kind: name of the global; "dict"; "container" for tuples, lists and sets; "tensor", also for what
            tensors are made of; "namespace" for an `argparse.Namespace`; "object" for the result of another
            call; "leaf" for numbers and texts.
        size: 1, and more for long texts.
        parts: the nodes in a container, or the attributes of an object.
    """

    __slots__ = ("kind", "parts", "size")

    def __init__(self, kind: str, size: int = 1, parts: list[_Node] | None = None) -> None:
        self.kind, self.size, self.parts = kind, size, [] if parts is None else parts


def check_pickles(path: Path, *, zipped: bool) -> None:
    """Refuse a PyTorch file whose pickles could take time or memory without bound, or that is compressed.

    torch tells what else is wrong with a file.

    Args:
        path: a PyTorch file.
        zipped: whether the file is a zip; otherwise pickles follow each other at its start.

    Raises:
        CheckpointError: the file is refused; the message does not name it.
        OSError: the file cannot be read.
    """
    if not zipped:
        with open(path, "rb") as file:
            stream = io.BytesIO(file.read(MAX_PICKLE))
        for _ in range(5):  # magic number, protocol, machine, objects, keys of storages
            _check_pickle(stream)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if other := other_zip([entry.filename for entry in entries]):
                raise other
            # torch maps compressed bytes as if they were numbers.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise CheckpointError("is compressed inside: torch.save writes files that can be read")
            pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
            if sum(entry.file_size for entry in pickles) > MAX_PICKLE:
                raise CheckpointError(f"has more than {MAX_PICKLE:,} bytes of names and other objects")
            for entry in pickles:
                with archive.open(entry) as file:
                    _check_pickle(io.BytesIO(file.read(MAX_PICKLE)))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
        raise CheckpointError("is not a whole PyTorch file", hint=CUT) from None


def _check_pickle(stream: io.BytesIO) -> None:
    """Check one pickle, from the stream's position on, by running it with nodes instead of objects."""
    try:
        _Machine().run(stream)
    except (ValueError, IndexError, KeyError, UnicodeError):
        raise CheckpointError("is not a whole PyTorch file", hint=CUT) from None


class _Machine:
    """The stack machine of torch's unpickler.

    Attributes:
        budget: number of nodes that calls, keys and attributes may still hold. It grows with the pickle.
    """

    def __init__(self) -> None:
        self.budget = 100_000
        self.calls = 0
        self.stack: list[_Node] = []
        self.marks: list[list[_Node]] = []
        self.memo: dict[int, _Node] = {}

    def run(self, stream: io.BytesIO) -> None:
        """Run a pickle; raise IndexError, KeyError or ValueError where torch too would fail."""
        for opcode, argument, _ in pickletools.genops(stream):
            self.budget += 10
            self._step(opcode.name, argument)

    def _step(self, name: str, argument: object) -> None:
        stack = self.stack
        if name in _LEAVES:
            stack.append(_Node("leaf"))
        elif name in _TEXTS:
            stack.append(_Node("leaf", 1 + len(str(argument)) // 8))
        elif name in _EMPTY:
            stack.append(_Node("dict" if name == "EMPTY_DICT" else "container"))
        elif name == "GLOBAL":
            stack.append(_Node(str(argument)))
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(stack) < count:
                raise IndexError
            stack[-count:] = [_Node("container", 1, stack[-count:])]
        elif name in ("BINGET", "LONG_BINGET"):
            assert isinstance(argument, int)
            stack.append(self.memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            assert isinstance(argument, int)
            self.memo[argument] = stack[-1]
        elif name == "MARK":
            self.marks.append(stack)
            self.stack = []
        elif name == "TUPLE":
            self.stack = self.marks.pop()
            self.stack.append(_Node("container", 1, stack))
        elif name == "APPENDS":
            self.stack = self.marks.pop()
            self.stack[-1].parts += stack
        elif name == "SETITEMS":
            self.stack = self.marks.pop()
            self._set_items(stack)
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].parts.append(item)
        elif name == "SETITEM":
            pair = [stack.pop(), stack.pop()][::-1]
            self._set_items(pair)
        elif name == "BUILD":
            state = stack.pop()
            self._spend(state)
            if state.kind == "tensor":  # torch would iterate over it
                raise other_objects()
            if stack[-1].kind == "namespace" and state.kind != "dict":
                raise other_objects()
            stack[-1].parts.append(state)
        elif name == "NEWOBJ":
            arguments = stack.pop()
            if stack[-1].kind != _NAMESPACE or arguments.kind != "container" or arguments.parts:
                raise other_objects(stack[-1].kind)
            self._count_call()
            stack[-1] = _Node("namespace")
        elif name == "BINPERSID":
            self._spend(stack.pop())
            stack.append(_Node("tensor"))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack[-1] = self._call(stack[-1], arguments)
        elif name not in ("PROTO", "STOP"):
            raise other_objects()

    def _set_items(self, pairs: list[_Node]) -> None:
        for key in pairs[::2]:
            self._spend(key)
        self.stack[-1].parts += pairs

    def _call(self, function: _Node, arguments: _Node) -> _Node:
        """Return the result of a call, after a look at what it would copy, or compute with."""
        self._count_call()
        if function.kind == _FROM_TYPE and arguments.parts:
            function = arguments.parts[0]
        if function.kind in _REBUILD and arguments.kind == "container":
            self._spend(arguments)
            return _Node("tensor")
        if function.kind in _PLAIN and arguments.kind == "container":
            self._spend(arguments, tensors=False)  # they may be views of more elements than a file has
            return _Node("object", 1, [arguments])
        raise other_objects(function.kind)

    def _count_call(self) -> None:
        self.calls += 1
        if self.calls > MAX_CALLS:
            raise CheckpointError(f"holds more than {MAX_CALLS:,} tensors and other objects")

    def _spend(self, node: _Node, *, tensors: bool = True) -> None:
        """Take a node and all that it holds, counted as often as it occurs, from the budget."""
        left = [node]
        while left:
            node = left.pop()
            self.budget -= node.size
            if self.budget < 0:
                raise CheckpointError("is a pickle that expands to far more than it stores: not a state dict")
            if node.kind == "tensor" and not tensors:
                raise other_objects()
            left += node.parts


def other_objects(kind: str = "") -> CheckpointError:
    """Return the error for a PyTorch file that torch's `weights_only` refuses.

    Args:
        kind: the kind of the node that the file would call; the class is named if it is a global.
    """
    module, _, name = kind.partition(" ")
    if name:
        found = f"holds Python objects other than tensors ({one_line(f'{module}.{name}', 60)})"
    else:
        found = "is not a whole PyTorch file, or holds Python objects other than tensors"
    return CheckpointError(f"{found}, which vartok never loads: save its state_dict() alone")
