"""Read files at http and https URLs, with retries; a connection that breaks is taken up where it broke."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.client
import io
import os
import re
import socket
import ssl
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from vartok.errors import SourceError, printable

WEB = re.compile(r"https?://", re.IGNORECASE)

ONE_SLASH = re.compile(r"(?:https?|s3|gs|gcs|hf|az|abfs|ftp|memory):[/\\](?![/\\])", re.IGNORECASE)
"""Beginning of a URL that has lost one of its slashes, as in a Path."""

LOGIN = re.compile(r"((?:^|::)https?://)[^/?#]*@|((?:^|::)[^:/?#]+://)[^:/?#]*:[^/?#]*@", re.IGNORECASE)
"""User's name and password in a URL, or in one that another names after "::"; they may hold "@"."""

TIMEOUT = 30.0
"""Seconds without any data after which a connection counts as broken."""

WAITS = (0.5, 2.0)
"""Seconds to wait before the second and the third try."""

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers of a server that may differ a moment later."""

MAX_QUERY = 16
"""Longest query that messages and names show; longer ones often hold a signature."""

SKIPPED = 1 << 20
"""Bytes that are read and dropped at once."""

R = TypeVar("R")


class _TemporaryError(Exception):
    """A failure after which another try makes sense."""


def is_web(place: str) -> bool:
    """Return True for an http or https URL."""
    return bool(WEB.match(place))


def lacks_slash(place: str) -> bool:
    """Return True for a path that seems to be a URL with one slash, as "https:/host/a.png"."""
    return bool(ONE_SLASH.match(place)) and not os.path.lexists(place)


def one_slash_error(place: str) -> SourceError:
    """Return the error of a path that seems to be a URL with one slash."""
    scheme, _, rest = place.partition(":")
    cure = f"write {scheme}://{rest.lstrip('/')}"
    return SourceError(f"{printable(place)}: a URL has two slashes after its colon", hint=cure)


def without_query(place: str) -> str:
    """Return an http or https URL without its query and fragment, and any other place unchanged."""
    return re.split("[?#]", place, maxsplit=1)[0] if is_web(place) else place


def without_login(place: str) -> str:
    """Return a URL without a user's name and password, and any other place unchanged.

    Outside of http and https a name without a password stays, as it may be a part of the address: abfs://box@host.
    """
    return LOGIN.sub(r"\1\2", place)


def hide_secrets(place: str) -> str:
    """Return a URL for a message: without its login and, for http and https, without a long query."""
    path, query = _split(place)
    return path + (query if len(query) <= MAX_QUERY else "?...")


def url_name(url: str) -> str:
    """Return a URL as a name, without scheme and login; the long query of a web URL becomes a short hash."""
    path, query = _split(url)
    if len(query) > MAX_QUERY:
        query = f"?{hashlib.sha256(query.encode(errors='surrogatepass')).hexdigest()[:12]}"
    return (path + query).partition("://")[2]


def _split(place: str) -> tuple[str, str]:
    """Return a place without its login and, for http and https, without its query, and that query."""
    path = without_query(place)
    return without_login(path), place[len(path) :]


def open_web(url: str) -> BinaryIO:
    """Open the file at an http or https URL, for reading and seeking.

    Refused connections, timeouts and answers of an overloaded server are tried three times, here and while
    reading. A connection that breaks goes on at the byte where it broke. If the server cannot do that, the
    bytes before are read again, and for seeking, the whole file is copied to a temporary one.

    Raises:
        OSError: the file cannot be read; the text is the reason.
    """
    return io.BufferedReader(WebFile(url), 1 << 16)


class WebFile(io.RawIOBase):
    """The file at an http or https URL.

    Attributes:
        size: size in bytes; None if the server does not tell it.
    """

    def __init__(self, url: str) -> None:
        self._url, self._headers, self._login = _request(url)
        self.size: int | None = None
        self._version: str | None = None
        self._position = 0
        self._response: Any = None
        self._copy: BinaryIO | None = None
        self._try(self._connect)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True if the size is known."""
        return self.size is not None

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position; see `io.IOBase`."""
        if self.size is None:
            raise io.UnsupportedOperation("the server does not tell the size of the file")
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        position = max(0, start + offset)
        if position != self._position:
            self._disconnect()
            self._position = position
            if self._copy is None and position < self.size:
                self._try(self._connect_for_seeking)
        return position

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; return the number of bytes, 0 at the end."""
        if self._copy is not None:
            self._copy.seek(self._position)
            count = self._copy.readinto(buffer)  # type: ignore[attr-defined]
        elif self.size is not None and self._position >= self.size:
            count = 0
        else:
            count = self._try(lambda: self._receive(buffer))
        self._position += count
        return int(count)

    def close(self) -> None:
        """Close the connection."""
        self._disconnect()
        if self._copy is not None:
            self._copy.close()
        super().close()

    def _receive(self, buffer: Any) -> int:
        if self._response is None:
            self._connect()
        count = int(self._response.readinto(buffer))
        if not count and self.size is not None and self._position < self.size:
            raise _TemporaryError(f"the connection broke after {self._position:,} of {self.size:,} bytes")
        return count

    def _connect(self) -> None:
        """Connect at the position; a server that begins at the file's start sends the bytes before too."""
        if not self._request_range():
            self._skip(self._position)

    def _connect_for_seeking(self) -> None:
        """Connect at the position; if the server begins at the file's start, copy the whole file."""
        if self._request_range():
            return
        copy = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            while data := self._response.read(SKIPPED):
                copy.write(data)
            if self.size is not None and copy.tell() < self.size:
                raise _TemporaryError(f"the connection broke after {copy.tell():,} of {self.size:,} bytes")
        except BaseException:
            copy.close()
            raise
        self._copy = copy
        self._disconnect()

    def _request_range(self) -> bool:
        """Connect; return whether the response begins at the position."""
        self._disconnect()
        headers = dict(self._headers)
        if self._position:
            headers["Range"] = f"bytes={self._position}-"
        request = urllib.request.Request(self._url, headers=headers)
        if self._login:
            request.add_unredirected_header("Authorization", self._login)
        self._response = _opener().open(request, timeout=TIMEOUT)
        found = self._response.headers
        partial = self._response.status == 206
        length = found.get("Content-Length", "")
        size = int(length) if length.isdecimal() else None
        if partial:
            told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", found.get("Content-Range", "").strip())
            if not told or int(told[1]) != self._position:
                raise OSError("the server sends another part of the file than it was asked for")
            size = int(told[2]) if told[2].isdecimal() else self.size
        version = found.get("ETag") or found.get("Last-Modified") or ""
        if self._version is not None and (version, size) != (self._version, self.size):
            raise OSError("the file was replaced while it was read")
        self._version, self.size = version, size
        return partial or not self._position

    def _skip(self, count: int) -> None:
        left = count
        while left:
            data = self._response.read(min(left, SKIPPED))
            if not data:
                raise _TemporaryError(
                    f"the connection broke after {count - left:,} of {self.size or 0:,} bytes"
                )
            left -= len(data)

    def _disconnect(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response = None

    def _try(self, work: Callable[[], R]) -> R:
        """Return the result of `work`, which is tried again after failures that may pass.

        Raises:
            OSError: it failed at last; the text is the reason.
        """
        for wait in (*WAITS, None):
            try:
                return work()
            except Exception as error:
                self._disconnect()
                reason, temporary = _reason(error)
                if not temporary:
                    raise OSError(reason) from None
                if wait is None:
                    raise OSError(f"{reason} (tried {len(WAITS) + 1} times)") from None
                time.sleep(wait)
        raise AssertionError


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; a login goes on only to the same scheme, host and port."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Return the request of the new URL; see `urllib.request.HTTPRedirectHandler`."""
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        login = req.unredirected_hdrs.get("Authorization")
        # By the URLs, as a request through a proxy has the proxy's host.
        old, new = (urllib.parse.urlsplit(url)[:2] for url in (req.full_url, newurl))
        if request is not None and login and old == new:
            request.add_unredirected_header("Authorization", login)
        return request


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects)


def _request(url: str) -> tuple[str, dict[str, str], str | None]:
    """Return a URL as servers take it, the headers of its requests, and its login for one more header."""
    login = None
    headers = {"User-Agent": "vartok", "Accept-Encoding": "identity"}
    parts = urllib.parse.urlsplit(url.partition("#")[0])
    user, at, host = parts.netloc.rpartition("@")
    if at:
        token = base64.b64encode(urllib.parse.unquote(user).encode(errors="replace")).decode()
        login = f"Basic {token}"
    if not host.isascii():
        host = host.encode("idna").decode()
    # Blanks and letters outside of ASCII, as people write them; what is quoted already stays.
    path, query = (
        urllib.parse.quote(text, safe="%/:=&?~#+!$,;'@()*[]", errors="surrogateescape")
        for text in (parts.path, parts.query)
    )
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, "")), headers, login


def _reason(error: Exception) -> tuple[str, bool]:
    """Return why a request failed, and whether another try makes sense."""
    if isinstance(error, urllib.error.HTTPError):
        title = http.client.responses.get(error.code, "")
        return f"the server answers {error.code} {title}".rstrip(), error.code in RETRIED
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, _TemporaryError):
        return str(error), True
    if isinstance(error, ConnectionRefusedError):
        return "the connection is refused", True
    if isinstance(error, TimeoutError):
        return f"the server does not answer within {TIMEOUT:g} seconds", True
    if isinstance(error, socket.gaierror):
        return "the server's name is not known", error.errno == socket.EAI_AGAIN
    if isinstance(error, ssl.SSLError):
        return f"no secure connection: {error.reason or error}", False
    if isinstance(error, (http.client.InvalidURL, UnicodeError)):
        return "the URL is not valid", False
    if isinstance(error, (http.client.HTTPException, ConnectionError)):
        return "the connection broke", True
    return str(getattr(error, "strerror", None) or error) or type(error).__name__, False
