"""Places on the Hugging Face hub, and their files in the hub's cache, which are found without a request."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from vartok.checkpoints.folders import CONFIG_JSON, STANDARD_NAMES, SUFFIXES, choose_file
from vartok.errors import CheckpointError, printable
from vartok.files import check_regular, file_sha256, os_error_reason, user_cache

SCHEME = re.compile(r"hf:/{1,2}(?!/)", re.IGNORECASE)
"""Beginning of a place on the hub; a Path of it has lost a slash."""

PLACE = re.compile(r"hf:/{1,2}([\w.-]+/[\w.-]+)(?:/([^@]*[^@/]))?/?(?:@([^@]+))?", re.IGNORECASE)
"""A place on the hub: hf://OWNER/REPO[/FILE][@REVISION]."""

COMMIT = re.compile("[0-9a-f]{40}")
SHA256 = re.compile("[0-9a-f]{64}")


_checked: set[Path] = set()
"""Marks of the files whose hash this process has checked, for where none can be written."""


@dataclass(frozen=True)
class HubPlace:
    """A place on the hub.

    Attributes:
        repository: OWNER/REPO.
        path: a file or a folder in it; "" for the whole repository.
        revision: a branch, a tag or a commit.
    """

    repository: str
    path: str = ""
    revision: str = "main"

    @property
    def is_file(self) -> bool:
        """True if the path ends in a suffix of checkpoint files."""
        return self.path.endswith(SUFFIXES)

    def __str__(self) -> str:
        path = f"/{self.path}" if self.path else ""
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf://{self.repository}{path}{revision}"


def is_hub(text: str) -> bool:
    """Return True for a place on the hub."""
    return bool(SCHEME.match(text)) and not os.path.lexists(text)


def parse(text: str) -> HubPlace:
    """Return the place that hf://OWNER/REPO[/FILE][@REVISION] names.

    Raises:
        CheckpointError: the text has another form.
    """
    match = PLACE.fullmatch(text)
    parts = [] if match is None else "/".join(part for part in match.groups() if part).split("/")
    if match is None or {"", ".", ".."} & {*parts} or "\\" in text or not text.isprintable():
        raise CheckpointError(
            f"{printable(text)}: the place of a file on the hub is hf://OWNER/REPO[/FILE][@REVISION]",
            hint="as hf://FoundationVision/var/vae_ch160v4096z32.pth@main",
        )
    return HubPlace(match[1], match[2] or "", match[3] or "main")


def cached(place: HubPlace, *, offline: bool = False) -> Path | None:
    """Return the path of a file that the hub's cache holds, without asking the hub.

    Args:
        place: a file; or a folder, of which a checkpoint of the usual names is taken.
        offline: the hub cannot be asked, as where HF_HUB_OFFLINE is set: what is here is taken to be all.

    Returns:
        The path; None if the file, whether the folder has one of an earlier name, or whether a configuration
        lies beside it, is not known here.
    """
    from huggingface_hub import constants

    storage = Path(constants.HF_HUB_CACHE, f"models--{place.repository.replace('/', '--')}")
    with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL in a name, or no text
        commit = place.revision
        if not COMMIT.fullmatch(commit):
            commit = _read_ref(storage / "refs" / commit)
        folder = storage / "snapshots" / commit
        offline = offline or bool(constants.HF_HUB_OFFLINE)

        def is_missing(path: Path) -> bool:  # in the repository, as the hub said
            return (storage / ".no_exist" / commit / path.relative_to(folder)).exists()

        for path in _candidates(folder, place, offline=offline):
            if path.is_file():
                config = path.with_name(CONFIG_JSON)
                return path if offline or config.exists() or is_missing(config) else None
            if not is_missing(path):  # the hub may have it, and then takes it for the folder's checkpoint
                return None
    return None


def _read_ref(path: Path) -> str:
    """Return the commit that a branch or a tag of the cache names.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
        ValueError: it does not hold a commit.
    """
    check_regular(path)
    with open(path) as file:
        commit = file.read(41).strip()
    if not COMMIT.fullmatch(commit):
        raise ValueError(f"{path} holds no commit")
    return commit


def _candidates(snapshot: Path, place: HubPlace, *, offline: bool) -> list[Path]:
    """Return the paths at which a place's checkpoint may be in a snapshot folder of the cache."""
    path = snapshot / place.path
    if place.is_file:
        return [path]
    if offline:
        return [path / choose_file(os.listdir(path), str(place))]
    return [path / name for name in STANDARD_NAMES]


def blob_sha256(path: Path) -> str | None:
    """Return the sha256 of a file in the hub's cache, from its blob's name; None if that is another hash."""
    name = path.resolve().name
    return name if SHA256.fullmatch(name) else None


def check_sha256(path: Path, expected: str, label: str) -> None:
    """Check the hash of a file in the cache, unless it did not change since; remove one that has another.

    An empty file in vartok's folder of caches marks a file that was checked. A link to a file outside the
    repository's blobs is removed alone: that file is its owner's.

    Args:
        path: the file, in a snapshot folder of the cache.
        expected: 64 hex digits.
        label: how messages name it.

    Raises:
        CheckpointError: the hash differs, or the file cannot be read.
    """
    blob = path.resolve()
    try:
        status = blob.stat()
        told = repr((expected, str(blob), status.st_size, status.st_mtime_ns))
        mark = user_cache() / "checked" / hashlib.sha256(told.encode(errors="replace")).hexdigest()
        found = expected if mark in _checked or mark.exists() else file_sha256(blob)
    except OSError as error:
        raise CheckpointError(f"{label}: {os_error_reason(error)}") from None
    if found == expected:
        _checked.add(mark)
        with contextlib.suppress(OSError):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        return
    blobs = [(folder.parent / "blobs").resolve() for folder in path.parents if folder.name == "snapshots"]
    for file in (blob, path) if blob.parent in blobs else (path,):
        with contextlib.suppress(OSError):
            file.unlink()
    raise CheckpointError(
        f"{label}: the file has sha256 {found}, not {expected}; it was not kept",
        hint="try again, as it may have been damaged on its way",
    )
