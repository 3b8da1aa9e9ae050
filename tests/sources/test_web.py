"""Files at http URLs: queries, redirects, failures and retries, by a server in a thread of this process."""

import io
import json
import re
import socket
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from commands import QUICK
from conftest import Vartok, names, photo

from vartok.errors import ArgumentError, SourceError
from vartok.sources import find_files, web
from vartok.sources.places import open_place, shorten_path
from vartok.sources.shards import InputShard, find_input_shards
from vartok.sources.web import WebFile, hide_secrets, lacks_slash

SECRET = "X-Amz-Algorithm=AWS4&X-Amz-Signature=0123456789abcdef"


class Server(ThreadingHTTPServer):
    """Serves `files`; `faults` are what it does wrong, by path, each as often as its number says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, tuple[str, int]] = {}
        self.requests: Counter[str] = Counter()
        self.ranges = True
        self.version: str | None = '"a"'
        self.target = f"/moved?{SECRET}"
        self.logins: list[str | None] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        fault, times = self.server.faults.get(path, ("", 0))
        self.server.requests[path] += 1
        self.server.logins.append(self.headers["Authorization"])
        self.server.faults[path] = (fault, times - 1)
        fault = fault if times > 0 else ""
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", self.server.target)
            self.end_headers()
            return
        data = self.server.files.get(path)
        if fault.isdecimal() or data is None:
            self.send_error(int(fault or 404))
            return
        start = 0
        if self.server.ranges and self.headers["Range"]:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        if fault == "silent":
            self.wfile.flush()
            threading.Event().wait(0.2)
            return
        if self.server.version:
            self.send_header("ETag", '"other"' if fault == "replaced" else self.server.version)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:] if fault != "cut" else data[start : start + (len(data) - start) // 2])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(web, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(web, "TIMEOUT", 0.05)
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def tar_of(*names: str) -> bytes:
    stream, picture = io.BytesIO(), io.BytesIO()
    photo(0, 64, 64).save(picture, "PNG")
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(picture.getvalue())
            archive.addfile(member, io.BytesIO(picture.getvalue()))
    return stream.getvalue()


def read(url: str) -> bytes:
    with open_place(url) as file:
        return file.read()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", [("cut", 1), ("cut", 2), ("503", 2), ("redirect", 1), ("silent", 1)])
def test_failures_that_pass_are_tried_again(server: Server, fault: tuple[str, int], ranges: bool) -> None:
    server.files["a"] = server.files["moved"] = data = bytes(range(256)) * 1000
    server.faults["a"], server.ranges = fault, ranges
    assert read(server.url(f"a?{SECRET}")) == data


@pytest.mark.parametrize(
    ("fault", "reason", "requests"),
    [
        ("404", "the server answers 404 Not Found", 1),
        ("403", "the server answers 403 Forbidden", 1),
        ("500", r"the server answers 500 Internal Server Error \(tried 3 times\)", 3),
        ("silent", r"the server does not answer within 0.05 seconds \(tried 3 times\)", 3),
        ("cut", r"the connection broke after \d of 4 bytes \(tried 3 times\)", 4),
    ],
)
def test_failures_that_stay_have_their_reason(server: Server, fault: str, reason: str, requests: int) -> None:
    server.files["a"], server.faults["a"] = b"1234", (fault, 99)
    with pytest.raises(OSError, match=f"^{reason}$"):
        read(server.url("a"))
    assert server.requests["a"] == requests


def test_servers_that_are_not_there(server: Server) -> None:
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match=r"^the connection is refused \(tried 3 times\)$"):
            read(f"http://127.0.0.1:{taken.getsockname()[1]}/a")
    for url in ("http://[::1/a", "http://127.0.0.1:port/a", "http://"):
        with pytest.raises((OSError, ValueError)):
            read(url)


def test_a_file_that_is_replaced_meanwhile_is_not_mixed(server: Server) -> None:
    server.files["a"] = bytes(1 << 20)
    server.faults["a"] = ("cut", 1)
    with WebFile(server.url("a")) as file:
        file.read(10)
        server.faults["a"] = ("replaced", 1)
        with pytest.raises(OSError, match="the file was replaced while it was read"):
            file.readall()


@pytest.mark.parametrize(("ranges", "version"), [(True, '"a"'), (False, '"a"'), (True, None), (False, None)])
def test_seeking(server: Server, ranges: bool, version: str | None) -> None:
    server.version = version
    server.files["a b\u00e9"] = data = bytes(range(256)) * 100
    server.files["a%20b%C3%A9"], server.ranges = data, ranges
    with open_place(server.url("a b\u00e9")) as file:
        assert file.read(3) == data[:3]
        assert file.seek(-5, io.SEEK_END) == len(data) - 5
        assert file.read() == data[-5:]
        assert file.seek(7) == 7
        assert file.read(300) == data[7:307]
    assert server.requests["a%20b%C3%A9"] == (3 if ranges else 2)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_login_is_sent_to_its_own_host_alone(server: Server, host: str) -> None:
    server.files["moved"], server.faults["a"] = b"1234", ("redirect", 1)
    server.target = server.url("moved").replace("127.0.0.1", host)
    assert read(server.url("a").replace("://", "://me:pass@")) == b"1234"
    login = "Basic bWU6cGFzcw=="
    assert server.logins == [login, login if host == "127.0.0.1" else None]


def test_secrets_are_not_shown() -> None:
    assert hide_secrets(f"https://me:pass@host/a.tar?{SECRET}#x") == "https://host/a.tar?..."
    assert hide_secrets("http://host/picture?id=5") == "http://host/picture?id=5"
    assert hide_secrets("s3://me@host/a?b" + "c" * 50) == "s3://me@host/a?b" + "c" * 50
    assert hide_secrets("zip://a::ftp://me:p@ss@host/b:c@d") == "zip://a::ftp://host/b:c@d"
    assert hide_secrets("https://me:p@ss@host/a@b") == "https://host/a@b"
    assert shorten_path(f"http://host/a.png?{SECRET}") == "http://host/a.png?..."
    shard = InputShard("tar", f"http://host/b/a.tar?{SECRET}")
    assert (
        shard.identity == InputShard("tar", "http://host/b/a.tar?X-Amz-Signature=new").identity == "b/a.tar"
    )
    assert shard.find("k") == "http://host/b/a.tar?...: k"


def test_secrets_are_not_in_keys_and_identities(tmp_path: Path) -> None:
    urls = [f"http://me:pass@host/{name}" for name in ("a.png?x=1", f"b?{SECRET}", f"b?{SECRET}0", "c?x=1")]
    (tmp_path / "list.txt").write_text("\n".join([*urls, "ftp://me:pass@host/d.png"]))
    (shard,) = find_input_shards([tmp_path / "list.txt"], 10)
    assert [file.place for file in shard.files[:4]] == urls
    first, *long, short, other = (file.key for file in shard.files)
    assert (first, short, other) == ("host/a", "host/c?x=1", "host/d")
    assert len(set(long)) == 2
    assert all(re.fullmatch(r"host/b\?[0-9a-f]{12}", key) for key in long)
    for scheme in ("http", "ftp"):
        assert InputShard("tar", f"{scheme}://me:pass@host/a.tar").identity == "host/a.tar"
    assert find_files(f"http://me:pass@host?{SECRET}")[0].name == "host"


def test_urls_with_queries_are_what_their_paths_say() -> None:
    found = [find_files(f"http://host/x/{name}?{SECRET}")[0] for name in ("a.tar", "b.parquet", "c.png", "d")]
    assert [(file.name, file.kind) for file in found] == [
        ("a.tar", "tar"),
        ("b.parquet", "table"),
        ("c.png", "picture"),
        ("d", "picture"),
    ]
    assert found[0].place == f"http://host/x/a.tar?{SECRET}"


@pytest.mark.parametrize("url", ["https:/host/a.png", "S3:/bucket/a.tar", "http:\\host"])
def test_urls_that_lost_a_slash(vartok: Vartok, here: Path, url: str) -> None:
    with pytest.raises((SourceError, ArgumentError), match="a URL has two slashes") as refused:
        find_input_shards([url], 1)
    assert "://" in str(refused.value.hint)
    assert "a URL has two slashes after its colon: write " in vartok("encode", url, code=1).stderr
    (here / url).parent.mkdir(parents=True, exist_ok=True)
    (here / url).touch()
    assert not lacks_slash(url)


def test_a_data_set_of_urls_is_resumed(server: Server, vartok: Vartok, here: Path) -> None:
    server.files = {"one.tar": tar_of("a.png", "b.png"), "two.tar": tar_of("c.png")}
    server.faults["one.tar"] = ("cut", 99)
    sources = [server.url(f"{name}.tar?{SECRET}") for name in ("one", "two")]
    args = ["-o", "out", "--format", "jsonl", *QUICK]
    broken = vartok("dataset", *sources, *args, code=3).stderr
    assert "one.tar?...: cannot be read to its end: the connection broke after " in broken
    assert "(tried 3 times): set --retry-failed to make its shard again" in broken
    assert "0123456789" not in broken
    for path in ("dataset.json", "failed.jsonl"):
        assert "0123456789" not in (here / "out" / path).read_text()
    server.faults.clear()
    before = server.requests["two.tar"]
    again = [source.replace("0123", "9876") for source in sources]
    vartok("dataset", *again, *args, "--retry-failed")
    assert server.requests["two.tar"] == before
    assert json.loads((here / "out/dataset.json").read_text())["pictures"] == 3


def test_encoding_from_urls(server: Server, vartok: Vartok, here: Path) -> None:
    picture = io.BytesIO()
    photo(0, 64, 64).save(picture, "PNG")
    server.files = {"a.png": picture.getvalue(), "one.tar": tar_of("k.png")}
    (here / "list.txt").write_text(f"{server.url('a.png')}?{SECRET}\n{server.url('none.png')}\n")
    result = vartok("encode", "list.txt", server.url("one.tar?x=1"), "-o", "out", *QUICK, code=3)
    assert "none.png: cannot be read: the server answers 404 Not Found\n" in result.stderr
    assert names(here / "out") == ["a.tokens.npz", "k.tokens.npz"]
