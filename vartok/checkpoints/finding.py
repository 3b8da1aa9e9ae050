"""Find checkpoint files: by path, in a folder, by name, and on the Hugging Face hub."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vartok.checkpoints import hub, hub_cache
from vartok.checkpoints.folders import CONFIG_JSON, MAX_CONFIG_BYTES, STANDARD_NAMES, SUFFIXES, choose_file
from vartok.checkpoints.known import KNOWN, SHIPPED, KnownCheckpoint, shipped_checkpoint, suggest_name
from vartok.errors import CheckpointError, printable
from vartok.files import check_regular, os_error_reason, user_cache
from vartok.sources.places import is_url, shorten_path
from vartok.sources.web import lacks_slash

READER = 1
"""Version of how a .pth file is read; a higher one lets every converted copy be made again."""


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint file, and what is known of it beside its content.

    Attributes:
        path: the file.
        label: how messages name it.
        config: values that replace those of its configuration, as `KnownCheckpoint.config`.
        expected: values for what it does not state, as `KnownCheckpoint.expected`.
        key: key of the tokenizer in a file of several, or None.
        name: name of the checkpoint if the file states none, such as that of the folder of a
            model.safetensors; None: the stem of the file.
        license: its licence if the file states none.
        sha256: the sha256 of a file of the hub; None if not known.
    """

    path: Path
    label: str
    config: Mapping[str, Any] = field(default_factory=dict)
    expected: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    name: str | None = None
    license: str | None = None
    sha256: str | None = None


def converted_copy(file: CheckpointFile) -> Path | None:
    """Return the path of the safetensors copy of a file of the hub, which need not exist yet.

    The copy of a .pth file is made when it is first read, so that it is read as fast as any other from then
    on. Its name follows from the sha256 of the file, and from all else that the copy depends on.

    Returns:
        The path in vartok's folder of caches; None for a safetensors file, and a file that is not the hub's.
    """
    if file.sha256 is None or file.path.suffix == ".safetensors":
        return None
    configs = dict(file.config), dict(file.expected)
    told = repr((READER, file.sha256, file.key, file.name, file.path.stem, file.license, configs))
    digest = hashlib.sha256(told.encode(errors="replace"))
    with contextlib.suppress(OSError), open(file.path.with_name(CONFIG_JSON), "rb") as beside:
        digest.update(beside.read(MAX_CONFIG_BYTES))
    return user_cache() / "checkpoints" / f"{file.sha256[:16]}-{digest.hexdigest()[:16]}.safetensors"


def find_checkpoint(weights: str | Path | None) -> Path:
    """Return the path of a checkpoint file, which is fetched from the hub if it is not on this disk.

    Args:
        weights: path of a checkpoint file; path of a folder, see `choose_file`; a name of `KNOWN`, if nothing
            in the working folder has that name; or hf://OWNER/REPO[/FILE][@REVISION] on the Hugging Face hub.
            None, "light" or "shipped": the checkpoint that is installed with vartok.

    Raises:
        CheckpointError: the path does not exist, cannot be accessed, or is a pipe or a device; it is another
            URL; the folder has no checkpoint, or several; or the file cannot be fetched. The message begins
            with the path, name or URL.
    """
    return locate_checkpoint(weights).path


def locate_checkpoint(weights: str | Path | None) -> CheckpointFile:
    """Find a checkpoint file as `find_checkpoint` does, and return what is known of it."""
    text = SHIPPED if weights is None else str(weights)
    if text == SHIPPED:
        return CheckpointFile(shipped_checkpoint(), text)
    if not text:  # as of an unset variable of a shell: not the working folder
        raise CheckpointError("the name of the checkpoint is empty", hint=suggest_name(text))
    known = None if os.path.lexists(text) else _known_or_hub(text)
    if known is not None:
        return locate_known(text, known)
    if is_url(text) or lacks_slash(text):  # a Path of a URL has lost a slash
        raise CheckpointError(
            f"{printable(shorten_path(text))}: a checkpoint is not read from a URL",
            hint="download it, and name the file; or name it as hf://OWNER/REPO/FILE if it is on the hub",
        )
    try:
        path = _find_path(text)
    except CheckpointError as error:
        if text not in KNOWN:
            raise
        kind = "folder" if os.path.isdir(text) else "file"
        raise CheckpointError(
            f"{error}; a {kind} {text} is here, and hides the checkpoint of that name",
            hint=f"use another working folder, or name {KNOWN[text].source or SHIPPED}",
        ) from None
    return CheckpointFile(path, str(path), name=path.resolve().parent.name if _has_usual_name(path) else None)


def known_on_disk(text: str) -> Path | None:
    """Return the path of a known checkpoint, or of one at hf://...; None if it is not on this disk.

    Raises:
        CheckpointError: there is no such name.
    """
    known = _known(text)
    if known.source is None:
        return shipped_checkpoint()
    path = hub_cache.cached(hub_cache.parse(known.source))
    is_another = path is not None and known.sha256 not in (None, hub_cache.blob_sha256(path))
    return None if is_another else path


def fetch_known(text: str) -> Path:
    """Fetch a known checkpoint, or one at hf://..., if the hub has a newer one, and return its path.

    Raises:
        CheckpointError: there is no such name, or the file cannot be fetched.
    """
    known = _known(text)
    if known.source is None:
        return shipped_checkpoint()
    path = hub.fetch(hub_cache.parse(known.source), sha256=known.sha256, label=text)
    return describe_fetched(text, known, path).path


def _known(text: str) -> KnownCheckpoint:
    known = _known_or_hub(text)
    if known is None:
        raise CheckpointError(
            f"{printable(text)}: no known checkpoint has this name", hint=suggest_name(text)
        )
    return known


def _known_or_hub(text: str) -> KnownCheckpoint | None:
    """Return what is known of a name or of a place on the hub; None for any other text."""
    if hub_cache.is_hub(text):
        return KnownCheckpoint("", "", (), source=text)
    return KNOWN.get("light" if text == SHIPPED else text)


def locate_known(label: str, known: KnownCheckpoint) -> CheckpointFile:
    """Return the file of a known checkpoint, which is fetched if it is not on this disk.

    Args:
        label: how messages name it.
        known: what is known of it.

    Raises:
        CheckpointError: it cannot be fetched.
    """
    if known.source is None:
        return CheckpointFile(shipped_checkpoint(), label)
    source = hub_cache.parse(known.source)
    path = hub_cache.cached(source) or hub.fetch(source, sha256=known.sha256, label=label, or_cached=True)
    return describe_fetched(label, known, path)


def describe_fetched(label: str, known: KnownCheckpoint, path: Path) -> CheckpointFile:
    """Return what is known of a file in the hub's cache.

    Raises:
        CheckpointError: it has another sha256 than the known checkpoint.
    """
    assert known.source is not None
    sha256 = hub_cache.blob_sha256(path)
    if known.sha256 and sha256 and sha256 != known.sha256:
        raise CheckpointError(
            f"{printable(label)}: {known.source} has sha256 {sha256}, not {known.sha256}",
            hint=f"the hub has another file now; name {known.source} if you want that one",
        )
    repository = hub_cache.parse(known.source).repository.partition("/")[2]
    name = known.model or (repository if _has_usual_name(path) else None)
    return CheckpointFile(
        path,
        label,
        config=known.config,
        expected=known.expected,
        key=known.key,
        name=name,
        license=known.license,
        sha256=sha256 or known.sha256,
    )


def _has_usual_name(path: Path) -> bool:
    """Return whether many checkpoints have a file's name, so that it does not tell one from another."""
    return path.name in (*STANDARD_NAMES, "pytorch_model.bin")


def _find_path(text: str) -> Path:
    path = Path(text)
    try:
        if path.is_dir():
            with os.scandir(path) as entries:
                path /= choose_file((entry.name for entry in entries), printable(path))
        check_regular(path)
    except FileNotFoundError as error:
        hint = None
        if os.path.basename(text) == text and not text.endswith(SUFFIXES) and text:
            hint = suggest_name(text)
        raise CheckpointError(f"{printable(path)}: {os_error_reason(error)}", hint=hint) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise CheckpointError(f"{printable(path)}: {os_error_reason(error)}") from None
    return path
