"""Headless Chromium over its DevTools pipe, for tests of HTML pages; needs no package."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""Path of an installed Chromium; None without one."""


TIMEOUT = 180.0
"""Time in seconds after which a browser is killed, so that a test fails rather than hangs."""


class Page:
    """A page in Chromium.

    Attributes:
        errors: texts of the console's errors and of exceptions in scripts.
        requests: addresses that the page loaded, other than data: and its own.
    """

    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._commands, self._answers = commands, answers
        self._count = 0
        self._session: str | None = None
        self._events: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, path: Path, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        """Open a file in a window of a size, and wait until it is loaded."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=scheme)
        self._events.clear()
        self._call("Page.navigate", url=path.as_uri())
        while "Page.loadEventFired" not in self._events:
            self._receive()

    def run(self, script: str) -> Any:
        """Evaluate a script as the console does, and return its value."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key, such as "ArrowRight"."""
        codes = {
            "ArrowLeft": 37,
            "ArrowRight": 39,
            "Home": 36,
            "End": 35,
            "Enter": 13,
            "Tab": 9,
            "ArrowDown": 40,
        }
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self._call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=codes[key],
                **(text if kind == "keyDown" else {}),
            )

    def screenshot(self, *, whole: bool = False) -> bytes:
        """Return a PNG file of the window, or of the whole page."""
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        data = bytearray()
        while not data.endswith(b"\0"):
            byte = self._answers.read(1)
            if not byte:
                raise RuntimeError("Chromium has ended")
            data += byte
        message: dict[str, Any] = json.loads(data[:-1])
        method, parameters = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.errors.append(parameters["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            self.errors.append(str(parameters["args"]))
        elif method == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not url.startswith("data:"):
                self.requests.append(url)
        return message


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """Start Chromium with a folder for its profile, yield a page, and end it."""
    assert CHROMIUM is not None
    ends = [*os.pipe(), *os.pipe()]
    their_input, our_output, our_input, their_output = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in ends)
    for end in ends:
        os.close(end)
    # Chromium reads commands from descriptor 3 and answers on 4. Root cannot use its sandbox.
    script = f'exec "$0" "$@" 3<&{their_input} 4>&{their_output}'
    arguments = [
        *("--headless", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run"),
        *("--disable-dev-shm-usage", "--disable-background-networking", f"--user-data-dir={profile}"),
        *["--no-sandbox"] * (os.geteuid() == 0),
    ]
    process = subprocess.Popen(
        ["bash", "-c", script, CHROMIUM, *arguments],
        pass_fds=(their_input, their_output),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_input)
    os.close(their_output)
    watchdog = threading.Timer(TIMEOUT, process.kill)
    watchdog.start()
    try:
        with open(our_output, "wb") as commands, open(our_input, "rb") as answers:
            yield Page(commands, answers)
    finally:
        watchdog.cancel()
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
