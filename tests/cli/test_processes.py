"""Commands as processes: pipes, signals, terminals, full disks."""

import contextlib
import hashlib
import io
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import (
    PROGRAM,
    QUICK,
    start,
    tokens_of,
    wait_for,
)
from conftest import Vartok, names, save
from PIL import Image


def count_whole_files(folder: Path) -> int:
    """Count the token files; every one can be read."""
    files = list(folder.rglob("*.npz"))
    return sum(len(tokens_of(path.read_bytes())) for path in files)


@pytest.mark.slow
def test_pipe(vartok: Vartok, here: Path) -> None:
    data = save(here / "img.png").read_bytes()
    encode = start("encode", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    decode = start("decode", stdin=encode.stdout, stdout=subprocess.PIPE)
    assert encode.stdin
    assert encode.stdout
    encode.stdout.close()
    encode.stdin.write(data)
    encode.stdin.close()
    shown, messages = decode.communicate(timeout=120)
    assert (decode.returncode, encode.wait(60)) == (0, 0), messages
    assert encode.stderr
    encode.stderr.close()
    wanted = vartok("decode", stdin=vartok("encode", stdin=data).stdout_bytes).stdout_bytes
    # Other processes use as many threads as there are cores, which round otherwise.
    one, two = (np.asarray(Image.open(io.BytesIO(png))).astype(int) for png in (shown, wanted))
    assert np.abs(one - two).max() <= 1


@pytest.mark.slow
def test_closed_pipe(many: Path) -> None:
    process = start("encode", "-r", many, "--format", "jsonl", "-o", "-", stdout=subprocess.PIPE, bufsize=0)
    assert process.stdout
    assert process.stdout.read(1) == b"{"
    process.stdout.close()
    _, messages = process.communicate(timeout=120)
    assert (process.returncode, messages) == (141, b"")


@pytest.mark.slow
def test_full_stdout(many: Path) -> None:
    with open("/dev/full", "wb") as full:
        process = start("encode", "-r", many, "--format", "jsonl", "-o", "-", stdout=full)
        _, messages = process.communicate(timeout=120)
    assert (process.returncode, messages) == (1, b"vartok: stdout: no space left on the disk\n")


@pytest.mark.parametrize(
    "args",
    [
        *("--version", "inspect img.json"),
        *(
            pytest.param(args, marks=pytest.mark.slow)
            for args in ("--help", "encode --help", "inspect-codebook --json")
        ),
    ],
)
def test_full_stdout_of_text(vartok: Vartok, here: Path, args: str) -> None:
    save(here / "img.png")
    vartok("encode", "img.png", "-o", "img.json", *QUICK)
    with open("/dev/full", "wb") as full:
        process = start(*shlex.split(args), stdout=full, cwd=here)
        _, messages = process.communicate(timeout=120)
    assert (process.returncode, messages) == (1, b"vartok: stdout: no space left on the disk\n")


@pytest.mark.parametrize("args", [["--version"], ["encode", "--help"]])
def test_closed_pipe_of_text(here: Path, args: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    process = start(*args, stdout=write, cwd=here)
    os.close(write)
    _, messages = process.communicate(timeout=60)
    assert (process.returncode, messages) == (141, b"")


def encode_without_end(many: Path, output: Path, program: list[str] = PROGRAM, **streams: Any) -> Any:
    """A run that has all but its last few pictures to encode, and then waits for one on standard input."""
    arguments = ("encode", "-r", many, "-", "-o", output, "--batch-size", 4)
    return start(*arguments, program=program, stdin=subprocess.PIPE, **streams)


@pytest.mark.slow
def test_interrupted(many: Path, tmp_path: Path) -> None:
    process = encode_without_end(many, tmp_path, stdout=subprocess.PIPE)
    wait_for(lambda: len(names(tmp_path)) > 20, process)
    process.send_signal(signal.SIGINT)
    output, messages = process.communicate(timeout=120)
    assert (process.returncode, output) == (130, b"")
    assert re.fullmatch(
        rb"vartok: interrupted; encoded \d+; the same command with --skip-existing does the rest\n", messages
    )
    assert 20 <= count_whole_files(tmp_path) == len(names(tmp_path)) < 60


@pytest.mark.slow
def test_interrupted_with_a_progress_bar(many: Path, tmp_path: Path) -> None:
    at_once = "import importlib as i; i.import_module('vartok.cli.display').LIVE_AFTER = 0; "
    program = [sys.executable, "-c", at_once + "i.import_module('vartok.__main__').main()"]
    terminal, inside = pty.openpty()
    process = encode_without_end(many, tmp_path, program, stderr=inside)
    os.close(inside)
    shown = b""
    while b"encoded" not in shown:
        shown += os.read(terminal, 4096)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # of a terminal that nobody has open any more
        while more := os.read(terminal, 4096):
            shown += more
    os.close(terminal)
    assert process.wait(60) == 130
    assert b"Traceback" not in shown
    assert b"vartok: interrupted; encoded " in shown
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l") > -1  # the cursor is visible again


@pytest.mark.slow
@pytest.mark.parametrize(("place", "done"), [("out", 1), ("out", 40), ("all.jsonl", 1)])
def test_killed(many: Path, tmp_path: Path, place: str, done: int) -> None:
    before = {path.name: hashlib.sha256(path.read_bytes()).digest() for path in many.iterdir()}
    process = encode_without_end(many, tmp_path / place)
    wait_for(lambda: len(names(tmp_path)) >= done, process)
    process.kill()
    process.communicate()
    left = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith(".vartok-")]
    assert count_whole_files(tmp_path) == len(left) < 60
    assert len(left) >= done - 1 if place == "out" else not left
    assert {path.name: hashlib.sha256(path.read_bytes()).digest() for path in many.iterdir()} == before


@pytest.mark.slow
def test_binary_is_never_written_to_a_terminal(vartok: Vartok, here: Path) -> None:
    save(here / "img.png")
    vartok("encode", "img.png", "-o", "img.npz", *QUICK)
    terminal, inside = pty.openpty()
    for args in (["encode", "img.png", "-o", "-"], ["decode", "img.npz", "-o", "-"]):
        process = start(*args, stdout=inside, cwd=here)
        _, messages = process.communicate(timeout=60)
        assert process.returncode == 2
        assert b"stdout is a terminal" in messages
    for args in (["encode"], ["decode"], ["inspect"]):
        process = start(*args, stdin=inside, stdout=subprocess.PIPE, cwd=here)
        output, messages = process.communicate(timeout=60)
        assert (process.returncode, output) == (2, b"")
        assert b"no INPUT" in messages
    os.close(inside)
    os.close(terminal)


@pytest.mark.slow
def test_inspect_codebook_ends_quietly_where_the_pipe_does(here: Path) -> None:
    process = start("inspect-codebook", stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr
    assert process.stderr.read() == b""
