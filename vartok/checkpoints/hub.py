"""Fetch files of the Hugging Face hub by huggingface_hub, into its cache.

huggingface_hub decides where the cache and the hub are, and which token is sent: HF_HOME, HF_HUB_CACHE,
HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN. It is imported when a file must be fetched only, since that takes as
long as a tenth of a command; `hub_cache` looks up the folders of its cache.
"""

from __future__ import annotations

import contextlib
import http.client
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from vartok.checkpoints.folders import CONFIG_JSON, STANDARD_NAMES, choose_file
from vartok.checkpoints.hub_cache import HubPlace, blob_sha256, cached, check_sha256
from vartok.errors import CheckpointError, one_line, printable, quoted, warn
from vartok.files import os_error_reason
from vartok.stopping import as_exceptions

ELSEWHERE = "or fetch the file elsewhere, and give its path as the checkpoint"
"""End of the hints for a hub that cannot be reached."""


class FetchListener(Protocol):
    """Hears of a file that is fetched."""

    def start(self, message: str) -> None:
        """Hear what is fetched, from where, and how large it is, in one line."""

    def update(self, name: str, done: int, total: int | None) -> None:
        """Hear how many bytes of a file are there, of how many."""

    def end(self) -> None:
        """Hear that the file is there, or cannot be fetched."""


listener: FetchListener | None = None
"""Hears of every file that is fetched. If None, a warning says what is fetched, and tqdm shows a bar."""


def fetch(
    place: HubPlace, *, sha256: str | None = None, label: str | None = None, or_cached: bool = False
) -> Path:
    """Fetch a file into the hub's cache, with the config.json beside it, and check its hash.

    A file that is there already is not fetched again, but the hub is asked whether it has a newer one.

    Args:
        place: a file, or a folder, of which `choose_file` takes a file.
        sha256: the expected sha256; None for the one that the hub tells.
        label: how messages name it; None: `place` itself.
        or_cached: if the hub cannot be reached, take a file in the cache, with a warning.

    Returns:
        Path of the file in the cache.

    Raises:
        CheckpointError: it cannot be fetched, or has another hash; it is not kept then.
    """
    label = printable(label or place)
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(
            f"{label}: {place} is not in the hub's cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set",
            hint="unset HF_HUB_OFFLINE to fetch it",
        )
    # Ctrl-C as an exception: huggingface_hub then removes what is incomplete.
    with _hub_errors(label, place), as_exceptions():
        try:
            _check_connection()
        except Exception as error:
            found = cached(place, offline=True) if or_cached and _is_of_connection(error) else None
            if found is None:
                raise
            name = printable(found.name)
            warn(f"{label}: {constants.ENDPOINT} cannot be reached; took {name} in the cache")
            return found
        name, path = _download_one(place)
        if expected := sha256 or blob_sha256(path):
            check_sha256(path, expected, label)
        _download_config(place, name, path)
    return path


def _check_connection() -> None:
    """Raise the error of a hub that cannot be reached; huggingface_hub would try again for 23 seconds."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import logging

    if listener is not None and "HF_HUB_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # the listener tells enough
    get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def _download_one(place: HubPlace) -> tuple[str, Path]:
    """Fetch a file, or a folder's checkpoint, and return its paths in the repository and on this disk.

    The usual names are asked for one by one: huggingface_hub notes in its cache which are missing, so that
    `cached` takes the same file.
    """
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if place.is_file:
        return place.path, _download(place, place.path, told=True)
    for usual in STANDARD_NAMES:
        name = f"{place.path}/{usual}" if place.path else usual
        with contextlib.suppress(RemoteEntryNotFoundError):
            return name, _download(place, name, told=True)
    name = _choose(place)
    return name, _download(place, name, told=True)


def _choose(place: HubPlace) -> str:
    """Return the path in the repository of a folder's checkpoint."""
    from huggingface_hub import HfApi

    files = HfApi().list_repo_files(place.repository, revision=place.revision)
    prefix = f"{place.path}/" if place.path else ""
    own = [name.removeprefix(prefix) for name in files if name.startswith(prefix)]
    return prefix + choose_file([name for name in own if "/" not in name], str(place))


def _download(place: HubPlace, name: str, *, told: bool) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(
            place.repository,
            name,
            revision=place.revision,
            library_name="vartok",
            tqdm_class=_progress_bar(place, name, told=told),
        )
        return Path(path)
    finally:
        if listener is not None:
            listener.end()


def _download_config(place: HubPlace, name: str, path: Path) -> None:
    """Fetch the config.json beside a file, of the same commit, if there is one."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    commit = path.parents[name.count("/")].name
    folder = name.rpartition("/")[0]
    at = HubPlace(place.repository, place.path, commit)
    with contextlib.suppress(RemoteEntryNotFoundError):
        _download(at, f"{folder}/{CONFIG_JSON}" if folder else CONFIG_JSON, told=False)


def _progress_bar(place: HubPlace, name: str, *, told: bool) -> Any:
    """Return the class of tqdm that reports to `listener`, or shows itself if there is none.

    Args:
        place: what is fetched.
        name: path of the file in the repository.
        told: say what is fetched.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import tqdm

    heard = listener

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._done, self._size = options.get("initial") or 0, options.get("total")
            if heard is not None or not told:
                options["disable"] = True
            if told:
                size = f", {self._size / 1e6:,.1f} MB," if self._size else ""
                message = f"fetching {printable(name)}{size} from {constants.ENDPOINT}/{place.repository}"
                warn(message) if heard is None else heard.start(message)
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            self._done += int(n or 0)
            if heard is not None and told:
                heard.update(name, self._done, self._size)
            shown: bool | None = super().update(n)
            return shown

        def update_transfer(self, n: float) -> None:
            """Take the bytes of the network, which `update` counts too, so that there is one bar."""

    return Bar


@contextlib.contextmanager
def _hub_errors(label: str, place: HubPlace) -> Iterator[None]:
    """Turn the errors of huggingface_hub into a CheckpointError of one line."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # of huggingface_hub, httpx, hf_xet and the file system
        reason, hint = _explain(error, place)
        what = "it" if label == str(place) else place
        raise CheckpointError(f"{label}: cannot fetch {what}: {reason}", hint=hint) from None


def _is_of_connection(error: BaseException) -> bool:
    """Return whether an error is one of the HTTP client of huggingface_hub, of any of its versions."""
    return type(error).__module__.partition(".")[0].startswith(("httpx", "httpcore"))


def _explain(error: BaseException, place: HubPlace) -> tuple[str, str | None]:
    """Return why a file cannot be fetched, and what to do about it."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{place.repository}"
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, errors.GatedRepoError):
        return "its owners ask for consent", f"agree at {page}, and set HF_TOKEN to a token of your account"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "there is no such repository, or it is private",
            "check the name; set HF_TOKEN for a private one",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no revision {printable(place.revision)}", None
    if isinstance(error, errors.EntryNotFoundError):
        return "the repository has no such file", f"see {page}/tree/{place.revision}"
    if isinstance(error, errors.FileMetadataError):
        return (
            f"{constants.ENDPOINT} does not answer as a hub does",
            f"check HF_ENDPOINT, and a proxy's settings; {ELSEWHERE}",
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        token = "set HF_TOKEN to a token that may read it"
        hint = (
            token if status in (401, 403) else f"try again later; {ELSEWHERE}" if status >= 500 else ELSEWHERE
        )
        return f"the hub answers {status} {http.client.responses.get(status, '')}".rstrip(), hint
    if not constants.ENDPOINT.startswith(("http://", "https://")):
        return f"HF_ENDPOINT is {quoted(constants.ENDPOINT)}, without http:// or https://", "set it to a URL"
    if _is_of_connection(error):
        kind = type(error).__name__
        if kind.startswith(("Remote", "Read")):
            return "the connection broke", f"try again; {ELSEWHERE}"
        return (
            f"{constants.ENDPOINT} cannot be reached ({one_line(error) or kind})",
            f"check the network; {ELSEWHERE}",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return os_error_reason(error), "HF_HOME names the folder of the cache"
    if "Consistency check failed" in str(error):
        return "the connection broke", "try again"
    return one_line(error) or type(error).__name__, None
