"""Ctrl-C and SIGTERM: one line, the exit code, and no temporary files."""

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vartok import stopping
from vartok.files import atomic_write
from vartok.stopping import Terminated, as_exceptions, end_at_once, install, stop


class _EndedError(Exception):
    """Raised in place of the end of the process."""


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Handle signals as the program does, but raise _EndedError where it would end."""

    def end(code: int) -> None:
        raise _EndedError(code)

    importlib.import_module("vartok.cli")
    before = {number: signal.getsignal(number) for number in stopping.WORDS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr("atexit.register", lambda run: None)
    monkeypatch.setattr(stop, "describe_progress", lambda: "encoded 3")
    install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_leaves_one_line_and_no_temporary_file(
    tmp_path: Path, installed: None, capfd: pytest.CaptureFixture[str], number: signal.Signals, word: str
) -> None:
    def stopped() -> None:
        with atomic_write(tmp_path / "a"):
            try:
                signal.raise_signal(number)
            finally:
                assert list(tmp_path.iterdir()) == []  # before any `finally` runs

    with pytest.raises(_EndedError, match=str(128 + number)):
        stopped()
    assert capfd.readouterr().err == f"vartok: {word}; encoded 3\n"
    assert signal.getsignal(number) == signal.SIG_DFL  # a second signal ends a cleanup that hangs


def test_cleanups_run_in_reverse_order_and_ignored_signals_stay_ignored(
    installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run: list[int] = []
    monkeypatch.setattr(stop, "cleanups", [lambda: run.append(0), lambda: run.append(1)])
    with pytest.raises(_EndedError), stop.cleaning_up(lambda: run.append(2)):
        signal.raise_signal(signal.SIGTERM)
    assert run == [2, 1, 0]
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert len(stop.cleanups) == 2


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_block_gets_an_exception_for_the_first_signal_only(
    installed: None, number: signal.Signals, error: type[BaseException]
) -> None:
    with pytest.raises(error), as_exceptions():
        signal.raise_signal(number)
    assert signal.getsignal(number) is end_at_once

    def twice() -> None:
        with as_exceptions():
            try:
                signal.raise_signal(number)
            finally:
                signal.raise_signal(number)

    with pytest.raises(_EndedError):
        twice()


def test_a_signal_that_the_parent_ignores_stays_ignored(installed: None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    install()
    with as_exceptions():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_ctrl_c_while_the_command_line_is_imported() -> None:
    code = (
        "import signal, sys\n"
        "from vartok.__main__ import main\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "vartok: interrupted; nothing was written\n")
