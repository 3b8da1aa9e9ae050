"""Name what is given instead of a tokenizer's checkpoint, and say how to get it."""

from __future__ import annotations

from collections.abc import Collection

from vartok.checkpoints.summary import CODEBOOK
from vartok.errors import CheckpointError

START = 512
"""Number of bytes at a file's start that `other_file` needs."""

CUT = "it may be cut short: copy or download it again"
"""Hint for a file that is not whole."""

_UNPACK = "unpack it, and name the file inside"
_CONVERT = "save the model's state_dict() by torch.save, or as safetensors"
_DOWNLOAD = "download the file itself; a page comes instead where a login or a licence is asked for"
_KINDS: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    ((b"version https://git-lfs",), "is a Git LFS pointer, not the file", "git lfs pull gets the file"),
    ((b"/annex/", b"../.git/annex/"), "is a git-annex pointer, not the file", "git annex get gets the file"),
    ((b"<!doctype html", b"<html", b"<head"), "is an HTML page, not the file", _DOWNLOAD),
    ((b"<?xml", b"<error"), "is XML, such as a server's error, not the file", _DOWNLOAD),
    ((b"{", b"["), "is JSON, not weights", "name the .safetensors or .pth file beside it"),
    (
        (b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"\x28\xb5\x2f\xfd", b"rar!", b"7z\xbc\xaf"),
        "is compressed",
        _UNPACK,
    ),
    ((b"\x93numpy",), "is a .npy array, not weights", _CONVERT),
    ((b"\x89hdf",), "is an HDF5 file", _CONVERT),
    ((b"gguf",), "is a GGUF file", _CONVERT),
)
"""First bytes in lower case, the kind of file, and the cure."""


def other_file(start: bytes) -> CheckpointError:
    """Return the error for a file that is neither safetensors nor PyTorch.

    Args:
        start: its first `START` bytes, or all of it.
    """
    if not start:
        return CheckpointError("is empty", hint=CUT)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginnings, kind, cure in _KINDS:
        if text.startswith(beginnings):
            return CheckpointError(kind, hint=cure)
    if not start.strip(b"\0"):
        return CheckpointError("begins with zeros alone, as a download that was interrupted", hint=CUT)
    if start[257:262] == b"ustar":
        return CheckpointError("is a tar", hint=_UNPACK)
    return CheckpointError("is neither a safetensors nor a PyTorch file")


def other_model(names: Collection[str]) -> CheckpointError:
    """Return the error for tensors without a codebook under VAR's name.

    Args:
        names: the tensors' names.
    """
    cure = "name the file of a tokenizer of VAR's kind"
    if any(name.endswith("word_embed.weight") for name in names):
        cure = "it holds a next-scale transformer; name the file of its tokenizer, as vae_ch160v4096z32.pth"
    elif any(name.endswith("encoder.conv_in.weight") for name in names):
        cure = "tokenizers without VAR's codebook are not read, as Infinity's bitwise ones and VQGANs"
    return CheckpointError(f"has no tensor {CODEBOOK}: not a VAR tokenizer", hint=cure)


def other_zip(names: Collection[str]) -> CheckpointError | None:
    """Return the error for a zip file that torch.save did not write; None if it may have.

    Args:
        names: the names of its members.
    """
    if any(name.endswith("/constants.pkl") for name in names):
        return CheckpointError("is a TorchScript archive, which vartok never runs", hint=_CONVERT)
    if any(name.endswith("data.pkl") for name in names):
        return None
    if any(name.endswith(".npy") for name in names):
        return CheckpointError("is an .npz of arrays, not weights", hint=_CONVERT)
    return CheckpointError("is a zip that torch.save did not write", hint=_UNPACK)
