"""A small server on 127.0.0.1 that answers as the Hugging Face hub does."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"

ERRORS = {"repository": "RepoNotFound", "revision": "RevisionNotFound", "file": "EntryNotFound"}


class Hub:
    """The files of the server, and the requests that it got.

    Attributes:
        files: contents by "OWNER/REPO/FILE".
        requests: method and path of each request.
        token: if set, only requests with this token get an answer.
        gated: the repository's owners ask for consent.
        statuses: statuses of the next answers of resolve/, in place of the files.
        cuts: of how many bytes the next answers with a file are cut short to.
        damaged: files are sent with another first byte.
        stalls: files are sent but for the last byte, for which the client waits up to ten seconds.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Remove all files, and answer as usual."""
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.token: str | None = None
        self.gated = False
        self.statuses: list[int] = []
        self.cuts: list[int] = []
        self.damaged = False
        self.stalls = False

    def blob(self, sha256: str) -> bytes:
        """Return the content of a hash."""
        return next(data for data in self.files.values() if hashlib.sha256(data).hexdigest() == sha256)


class Handler(BaseHTTPRequestHandler):
    """Answers HEAD and GET of resolve/, of the files to which that redirects, and of the list of files."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        """Answer as GET does, without a body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer a request."""
        self.hub.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if found := re.fullmatch("/cdn/([0-9a-f]{64})", path):
            self._send_file(self.hub.blob(found[1]))
        elif found := re.fullmatch("/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._list(found[1], found[2])
        elif found := re.fullmatch("/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*found.groups())
        else:
            self._answer(404, {})

    def _resolve(self, repository: str, revision: str, name: str) -> None:
        if not self._is_open(repository, revision):
            return
        data = self.hub.files.get(f"{repository}/{name}")
        if self.hub.statuses:
            self._answer(self.hub.statuses.pop(0), {})
        elif data is None:
            self._refuse("file")
        elif name.endswith(".json"):
            self._answer(200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}, data)
        else:
            sha256 = hashlib.sha256(data).hexdigest()
            told = {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{sha256}"'}
            self._answer(
                302,
                {
                    **told,
                    "Location": f"http://localhost:{self.headers['Host'].rpartition(':')[2]}/cdn/{sha256}",
                },
            )

    def _list(self, repository: str, revision: str) -> None:
        if self._is_open(repository, revision):
            names = [name for name in self.hub.files if name.startswith(f"{repository}/")]
            files = [
                {"type": "file", "path": name.removeprefix(f"{repository}/"), "size": 1, "oid": "0"}
                for name in names
            ]
            self._answer(200, {"Content-Type": "application/json"}, json.dumps(files).encode())

    def _is_open(self, repository: str, revision: str) -> bool:
        """Return whether a repository may be read; else answer."""
        sent = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.hub.gated:
            self._answer(403 if sent else 401, {"X-Error-Code": "GatedRepo"})
        elif self.hub.token and sent != self.hub.token:
            wrong = {"X-Error-Message": "Invalid credentials in Authorization header"}
            self._answer(401, wrong if sent else {"X-Error-Code": "RepoNotFound"})
        elif not any(name.startswith(f"{repository}/") for name in self.hub.files):
            self._refuse("repository")
        elif revision not in ("main", COMMIT):
            self._refuse("revision")
        else:
            return True
        return False

    def _refuse(self, missing: str) -> None:
        self._answer(404, {"X-Error-Code": ERRORS[missing], "X-Repo-Commit": COMMIT})

    def _send_file(self, data: bytes) -> None:
        if self.hub.damaged:
            data = bytes([data[0] ^ 1]) + data[1:]
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"ETag": '"cdn"', "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._answer(206 if start else 200, headers, data[start:])

    def _answer(self, status: int, headers: dict[str, str], data: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            is_file = "/cdn/" in self.path
            cut = self.hub.cuts.pop(0) if self.hub.cuts and is_file else len(data)
            if self.hub.stalls and is_file:
                cut -= 1
            self.wfile.write(data[:cut])
            if self.hub.stalls and is_file:
                self.wfile.flush()
                self.connection.settimeout(10)
                with contextlib.suppress(OSError):
                    self.rfile.read(1)  # until the client closes the connection
            if cut < len(data):
                self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@contextlib.contextmanager
def serve() -> Iterator[tuple[Hub, str]]:
    """Run a server in a thread, and yield what it holds, and its address."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
