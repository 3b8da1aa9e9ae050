"""Read the tensors of safetensors and PyTorch files without trusting them: no code in a file is run."""

from __future__ import annotations

import pickle
import re
import threading
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vartok.checkpoints.other_files import CUT, START, other_file, other_model
from vartok.checkpoints.pickles import check_pickles, other_objects
from vartok.checkpoints.statements import Statement, find_statements, is_statement, nested_entries
from vartok.checkpoints.summary import CODEBOOK
from vartok.errors import CheckpointError, one_line, quoted
from vartok.files import check_regular, os_error_reason

MAX_TENSORS = 100_000
"""Largest number of tensors in a file."""

MAX_ENTRIES = 300_000
"""Largest number of entries in the dicts of a PyTorch file.

The entries of a dict that occurs several times count each time.
"""

MAX_NAME = 1000
"""Largest length of a tensor's name, in characters."""


WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts that torch's wrappers of modules, such as `torch.compile`, add to the names of tensors."""

SIDE_MODULES = re.compile(
    r"(loss|losses|criterion|disc|discriminator|lpips|perceptual_loss|model_ema|decoder2|post_quant_conv2)\."
)
"""Beginnings of the names of modules that programs keep in a tokenizer's module, and that no token passes.

Losses and discriminators of training, the averaged weights of CompVis's LitEma, whose names lack dots, and
the further decoder that HART's `double_decoder` adds.
"""

EMA = re.compile("(?<![A-Za-z])ema(?![A-Za-z])|EMA")
"""Part of the key of weights that are an exponential moving average: "ema", "model_ema", "ema_model"."""


_safe_globals = threading.Lock()
"""Held while torch's list of permitted globals, one for all threads, is extended."""


class TensorFile(NamedTuple):
    """The contents of a file.

    Attributes:
        metadata: the metadata of a safetensors file, empty for a PyTorch file.
        tensors: the tokenizer's tensors under VAR's names.
        statements: values of the configuration that a PyTorch file holds beside tensors, as a trainer's
            arguments; none for a safetensors file.
        notes: a line if the tokenizer is one of several, and one if its module has others that are not read.
    """

    metadata: dict[str, str]
    tensors: dict[str, Tensor]
    statements: list[Statement]
    notes: tuple[str, ...]


def read_tensors(path: Path, key: str | None = None) -> TensorFile:
    """Read a file, whose format is recognized by its content.

    Tensors are memory-mapped if the format allows it.

    Args:
        path: the file.
        key: key of the tokenizer in the file, such as "ema" or "trainer.vae_local". None for the only one;
            if there are several, the only one of weights that are an exponential moving average (EMA).

    Raises:
        CheckpointError: the file cannot be read, or does not hold the tokenizer; the message does not name
            the file.
    """
    try:
        check_regular(path)
        with open(path, "rb") as file:
            start = file.read(START)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise CheckpointError(os_error_reason(error)) from None
    statements: list[Statement] = []
    if start[8:9] == b"{" and b"\0" in start[:8]:  # the length of the header, less than 2 ** 56
        metadata, tensors = _read_safetensors(path)
    elif start.startswith((b"PK", b"\x80")):
        metadata = {}
        tensors, statements = _read_pickle(path, zipped=start.startswith(b"PK"))
    else:
        raise other_file(start)
    own, notes = _choose_tokenizer(_remove_wrappers(tensors), key)
    return TensorFile(metadata, own, statements, notes)


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if len(names) > MAX_TENSORS:
                raise _too_many()
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"is not a whole safetensors file ({one_line(error)})", hint=CUT) from None


def _read_pickle(path: Path, *, zipped: bool) -> tuple[dict[str, Tensor], list[Statement]]:
    mapped = zipped and not path.name.endswith(".safetensors")  # torch.load trusts the suffix of a path
    try:
        check_pickles(path, zipped=zipped)
        with open(path, "rb") as file, _safe_globals, torch.serialization.safe_globals([Namespace]):
            # With weights_only, torch refuses everything else but tensors and plain containers.
            source = path if mapped else file
            content = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise other_objects() from None
    except Exception as error:  # torch.load raises nearly every type on a damaged file
        raise CheckpointError(f"is not a whole PyTorch file ({one_line(error)})", hint=CUT) from None
    tensors, values = _flatten(content)
    return tensors, find_statements(values)


def _flatten(content: object) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors in nested dicts by their joined keys, and the values that `is_statement` accepts.

    {"model": {"a.b": t}} gives {"model.a.b": t}. Other values are left out. Entries are counted while they
    are visited: a pickle stores a shared dict once, so that a file of 3 kB can expand to more entries than
    fit into memory.

    Raises:
        CheckpointError: there are more than `MAX_TENSORS` tensors or `MAX_ENTRIES` entries, or a name is
            longer than `MAX_NAME`.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for visited, (name, value) in enumerate(nested_entries(content), 1):
        if len(name) > MAX_NAME:
            raise CheckpointError(f"has an entry whose name is longer than {MAX_NAME:,} characters")
        if isinstance(value, Tensor):
            tensors[name] = value
        elif is_statement(name, value):
            values[name] = value
        if visited > MAX_ENTRIES or len(tensors) > MAX_TENSORS:
            raise _too_many()
    return tensors, values


def _too_many() -> CheckpointError:
    return CheckpointError(f"holds more than {MAX_TENSORS:,} tensors or {MAX_ENTRIES:,} entries")


def _remove_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without the parts of their names that `WRAPPERS` matches.

    A name that would then occur twice, as in a file of both a module and its wrapper, stays as it is.
    """
    plain = {name: WRAPPERS.sub("", name) for name in tensors}
    number = Counter(plain.values())
    return {name if number[plain[name]] > 1 else plain[name]: tensor for name, tensor in tensors.items()}


def _choose_tokenizer(
    tensors: dict[str, Tensor], key: str | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of one tokenizer without their prefix, such as "vae.", and a note if it was chosen.

    Args:
        tensors: tensors by their names in the file, without wrappers.
        key: as in `read_tensors`.
    """
    prefixes = [name.removesuffix(CODEBOOK) for name in tensors if name.endswith(CODEBOOK)]
    if not prefixes:
        raise other_model(tensors)
    keys = one_line([prefix.removesuffix(".") for prefix in prefixes])
    averaged = [prefix for prefix in prefixes if EMA.search(prefix)]
    notes: tuple[str, ...] = ()
    if key is not None:
        prefix = _prefix_of(key, prefixes)
    elif len(prefixes) == 1:
        prefix = prefixes[0]
    elif len(averaged) == 1:
        prefix = averaged[0]
        taken = one_line(prefix.removesuffix("."), 60)
        rest = [other.removesuffix(".") or "''" for other in prefixes if other != prefix]
        which = (
            f"the other with `key` {rest[0]}" if len(rest) == 1 else f"another with `key` {' or '.join(rest)}"
        )
        notes = (
            f"the file holds {len(prefixes)} tokenizers, under {keys}: took {taken}, the EMA weights; "
            f"vartok convert writes {one_line(which)}",
        )
    else:
        raise CheckpointError(
            f"holds {len(prefixes)} tokenizers, under {keys}: which one to read is not clear",
            hint="vartok convert writes the one whose key it is given",
        )
    others = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not (others and name.startswith(others))
    }
    beside = {name: found[1] for name in own if (found := SIDE_MODULES.match(name))}
    if beside:
        notes += (f"modules beside the tokenizer are not read: {', '.join(sorted(set(beside.values())))}",)
    return {name: tensor for name, tensor in own.items() if name not in beside}, notes


def _prefix_of(key: str, prefixes: list[str]) -> str:
    """Return the prefix that a key names: in whole, or by its beginning if only one prefix begins so."""
    for wanted in (f"{key}.".lstrip("."), WRAPPERS.sub("", f"{key}.").lstrip(".")):
        if wanted in prefixes:
            return wanted
        found = [prefix for prefix in prefixes if wanted and prefix.startswith(wanted)]
        if len(found) == 1:
            return found[0]
    keys = one_line([prefix.removesuffix(".") for prefix in prefixes])
    raise CheckpointError(f"holds no single tokenizer under the key {quoted(key)}: there is {keys}")
