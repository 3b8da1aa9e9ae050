"""Messages, usage errors and exit codes."""

import contextlib
import errno
import os
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import (
    NOT_A_PICTURE,
    QUICK,
    start,
)
from conftest import Vartok, names, photo, save
from safetensors.torch import save as to_safetensors

import vartok as library
from vartok.checkpoints import read_checkpoint, shipped_checkpoint, write_checkpoint


def test_exit_codes(vartok: Vartok, here: Path) -> None:
    good, bad = save(here / "good.png"), here / "bad.png"
    bad.write_bytes(NOT_A_PICTURE)
    vartok("encode", good, "-o", "good.npz")
    shorter = [*QUICK, "-o", "out", "-f"]
    assert vartok("encode", bad, code=1).stderr == f"vartok: {bad}: not a picture that vartok can read\n"
    assert vartok("encode", "gone.png", code=1).stderr == "vartok: gone.png: no such file or folder\n"
    both = vartok("encode", bad, good, *shorter, code=3).stderr.splitlines()
    assert both[0] == f"vartok: {bad}: not a picture that vartok can read"
    assert re.fullmatch(r"vartok: encoded 1, 1 failed in [\d.]+ s", both[1])
    assert vartok("encode", bad, good, *shorter, "-q", code=3).stderr.splitlines() == both[:1]
    assert vartok("encode", good, *shorter, "-q").output == ""
    assert "encoded 0, 2 failed" in vartok("encode", bad, "gone.png", code=1).stderr
    assert vartok("decode", "gone.npz", code=1).stderr == "vartok: gone.npz: no such file or folder\n"
    assert "decoded 1, 1 failed" in vartok("decode", "good.npz", "gone.npz", "-o", "out", code=3).stderr
    assert "gone.npz: no such file" in vartok("inspect", "good.npz", "gone.npz", code=3).stderr
    assert "standard input: is empty" in vartok("encode", code=1).stderr
    assert "standard input: " in vartok("decode", stdin=NOT_A_PICTURE, code=1).stderr


@pytest.mark.skipif(sys.platform != "linux", reason="a file that opens but cannot be read")
@pytest.mark.parametrize("args", ["convert {} out.safetensors", "encode --files-from {}"])
def test_a_file_that_cannot_be_read_is_named(vartok: Vartok, here: Path, args: str) -> None:
    message = vartok(*shlex.split(args.format("/proc/self/mem")), code=1).stderr
    assert message == "vartok: /proc/self/mem: the disk reports an input/output error\n"


@pytest.mark.parametrize(
    "args",
    [
        "encode {}",
        "encode {}.txt",
        "encode -r {}/",
        "encode --files-from {}.txt",
        "encode img.png -w {}",
        "encode img.png -w {}.pth",
        "decode {}.npz",
        "decode {}.jsonl",
        "decode img.png -w {}",
        "inspect {}",
        "inspect-codebook -w {}",
        "inspect-codebook --usage {}",
        "eval {}",
        "eval img.png --compare {}",
        "train {} -o run",
        "train img.png -o run -p {}.toml",
        "train img.png -o run --from {}",
        "convert {}.pth out.safetensors",
        "dataset {} -o out",
        "dataset img.png -o out -w {}",
        "dataset verify {}",
        "encode {}.tar",
        "encode {}.parquet",
        "eval {}.tar",
    ],
)
def test_a_missing_file_fails_alike_in_all_commands(vartok: Vartok, here: Path, args: str) -> None:
    save(here / "img.png")
    words = shlex.split(args.format("gone"))
    [name] = [word for word in words if "gone" in word]
    known = ": see vartok models for known names" * args.endswith(("-w {}", "--compare {}", "--from {}"))
    assert vartok(*words, code=1).stderr == f"vartok: {name}: no such file or folder{known}\n"
    assert names(here) == ["img.png"]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (
            "encode img.png -w https://host/a.safetensors",
            1,
            "https://host/a.safetensors: a checkpoint is not read",
        ),
        (
            "decode https://host/a.npz -o out",
            1,
            "https://host/a.npz: tokens are not read from a URL: download it",
        ),
        (
            "inspect img.png",
            1,
            "img.png: is a picture by its name, and no token file, array of tokens or data set",
        ),
        (
            "decode -r folder",
            1,
            "folder: holds no token files or data sets, by their names: token files end in .npz",
        ),
        ("decode folder", 2, "folder is a folder without a data set: set --recursive"),
        (
            "dataset build folder -o out",
            2,
            "no command build: vartok dataset SRC... -o OUT builds a data set",
        ),
    ],
)
def test_hints_for_inputs_of_another_kind(
    vartok: Vartok, here: Path, args: str, code: int, message: str
) -> None:
    (here / "folder").mkdir()
    (here / "img.png").write_bytes(NOT_A_PICTURE)
    assert message in vartok(*args.split(), code=code).stderr
    assert names(here) == ["img.png"]


def test_a_checkpoint_is_not_inspected(vartok: Vartok, here: Path) -> None:
    (here / "x.pth").write_bytes(b"PK\3\4\xff")
    message = vartok("inspect", "x.pth", code=1).stderr
    assert message.startswith("vartok: x.pth: is a checkpoint by its name, and no token file")
    assert message.endswith(": see vartok show x.pth, or vartok inspect-codebook -w x.pth\n")
    (here / "run").mkdir()
    (here / "run" / "weights.safetensors").touch()
    message = " ".join(vartok("inspect", "run", code=2).stderr.split())
    assert (
        "run holds a checkpoint, and no data set: see vartok show run, or vartok inspect-codebook -w run"
        in message
    )
    assert "y.pth: no such file or folder\n" in vartok("inspect", "y.pth", code=1).stderr


@pytest.mark.parametrize(
    "args",
    [
        "encode img.png --zoom 0.5",
        "encode img.png --zoom nan",
        "encode img.png --background octarine",
        "encode img.png --schedule 1,two",
        "encode img.png --schedule 2,1",
        "encode img.png --schedule 1,2,4",
        "encode img.png --schedule ''",
        "encode img.png --size 100",
        "encode img.png --size 0",
        "encode img.png --size 1000000000",
        "encode img.png --fit squeeze",
        "encode img.png --format xml",
        "encode img.png --max-pixels 0",
        "encode img.png --batch-size 0",
        "encode img.png --workers 0",
        "encode img.png --dtype int8",
        "encode img.png --nonsense",
        "encode ''",
        "encode - - -o x/",
        "encode img.png -o ''",
        "encode img.png -o https://example.org/tokens",
        "encode img.png -o s3://bucket/all.jsonl",
        "decode img.npz -o hf://pictures/",
        "convert img.png s3://bucket/x.safetensors",
        "inspect-codebook --atlas s3://bucket/x.png",
        "inspect-codebook --usage ''",
        "train img.png -o s3://bucket/run",
        "dataset img.png -o s3://bucket/tokens",
        "dataset '' -o tokens",
        "train img.png -o run -p lihgt",
        "decode img.npz -o img.txt",
        "encode img.png -o img.txt",
        "encode img.png --fit pad --zoom 2",
        "encode img.png --fit native --size 64",
        "encode img.png -0",
        "decode img.npz --scales 0",
        "inspect --files-from x",
        "convert img.png",
        "convert img.png out.safetensors --config nonsense",
        "convert img.png out.safetensors --config [1]",
        "nonsense",
    ],
)
def test_usage_errors(vartok: Vartok, here: Path, args: str) -> None:
    save(here / "img.png")
    result = vartok(*shlex.split(args), code=2)
    assert result.stderr.startswith("Usage: ")
    assert "Error: " in result.stderr.splitlines()[-1]
    assert result.stdout == ""
    assert names(here) == ["img.png"]


def test_other_failures_exit_with_1(vartok: Vartok, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(here / "img.png")
    assert (
        "cannot use the device 'abacus'" in vartok("encode", "img.png", "--device", "abacus", code=1).stderr
    )
    monkeypatch.setenv("VARTOK_DEVICE", "abacus")
    assert "cannot use the device 'abacus'" in vartok("encode", "img.png", code=1).stderr
    vartok("encode", "img.png", "--device", "cpu", *QUICK)
    monkeypatch.delenv("VARTOK_DEVICE")
    for weights, cause in (
        ("gone.pth", "no such file or folder"),
        ("img.png", "is neither a safetensors nor a PyTorch file"),
    ):
        [line] = vartok("encode", "img.png", "-f", "-w", weights, code=1).stderr.splitlines()
        assert line.startswith(f"vartok: {weights}: {cause}")
        monkeypatch.setenv("VARTOK_WEIGHTS", weights)
        assert cause in vartok("encode", "img.png", "-f", code=1).stderr
        monkeypatch.delenv("VARTOK_WEIGHTS")
    assert "cannot write img.png/x.npz" in vartok("encode", "img.png", "-o", "img.png/x.npz", code=1).stderr
    [line] = vartok("encode", "img.png", "-o", "img.png/all.jsonl", code=1).stderr.splitlines()
    assert line.startswith("vartok: cannot write img.png/all.jsonl: ")


def test_debug_shows_tracebacks(vartok: Vartok, here: Path) -> None:
    (here / "bad.png").write_bytes(NOT_A_PICTURE)
    (here / "bad.npz").write_bytes(b"PK, but no zip")
    (here / "bad.jsonl").write_bytes(b"{}\n{}\n")
    for args in (
        *(["encode", "bad.png"], ["decode", "bad.png"], ["inspect", "bad.png"], ["decode", "bad.npz"]),
        *(["inspect", "bad.npz"], ["inspect", "bad.jsonl"], ["inspect-codebook", "--usage", "bad.npz"]),
    ):
        assert "Traceback" not in vartok(*args, code=1).stderr
        shown = vartok(*args, "--debug", code=1).stderr
        assert "Traceback" in shown
        assert ", line " in shown
    with pytest.raises(library.CheckpointError):
        vartok("convert", "bad.png", "out.safetensors", "--debug", code=1)


@pytest.mark.slow
def test_libraries_are_quiet(here: Path) -> None:
    """Pillow warns and logs, and libtiff writes to the file descriptor."""
    photo(0).save(here / "stream.tif", compression="tiff_adobe_deflate")
    good = (here / "stream.tif").read_bytes()
    (here / "stream.tif").write_bytes(good[:5000] + b"broken" + good[5006:])
    samples = b"\x15\x01\x03\0\x01\0\0\0"  # the entry of a TIFF's directory, without its value
    assert samples + b"\x03" in good
    (here / "samples.tif").write_bytes(good.replace(samples + b"\x03", samples + b"\x99"))
    for name in ("stream.tif", "samples.tif"):
        code = f"from PIL import Image; Image.open('{name}').load()"
        loud = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
        assert re.search("^(ZIPDecode|More samples)", loud.stderr, re.MULTILINE), loud.stderr
    process = start("encode", "stream.tif", "samples.tif", "-q", cwd=here)
    _, messages = process.communicate(timeout=120)
    assert [line.partition(b" is ")[0] for line in messages.splitlines()] == [
        b"vartok: stream.tif:",
        b"vartok: samples.tif: not a picture that vartok can read",
    ]


def test_text_from_files_is_printed_on_one_line(vartok: Vartok, here: Path) -> None:
    shipped = read_checkpoint(shipped_checkpoint())
    harmful = type(shipped)("\x1b[31mred\nfake line", None, shipped.config, shipped.tensors)
    write_checkpoint(here / "in.safetensors", harmful)
    result = vartok("convert", "in.safetensors", "out.safetensors")
    assert "\x1b" not in result.stdout
    assert "\nfake line" not in result.stdout
    save(here / "a.png")
    gone = vartok("encode", "a.png", "-w", "gone\nz.pth", code=1)
    assert gone.stderr.count("\n") == 1


def test_quiet_prints_errors_only(vartok: Vartok, here: Path) -> None:
    save(here / "a.png")
    checkpoint = read_checkpoint(shipped_checkpoint())
    (here / "bare.safetensors").write_bytes(to_safetensors(dict(checkpoint.tensors)))
    assert "note: " in vartok("encode", "a.png", "-w", "bare.safetensors").stderr
    assert vartok("encode", "a.png", "-w", "bare.safetensors", "-q", "-f").stderr == ""


def test_a_folder_that_cannot_be_searched(
    vartok: Vartok, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(here / "in" / "closed" / "a.png")
    scandir = os.scandir

    def refuse(path: Any) -> Any:  # to root, who runs tests in containers, no folder is closed
        if os.fspath(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "cannot be searched" in vartok("encode", "-r", "in", code=1).stderr


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk(vartok: Vartok, here: Path) -> None:
    save(here / "img.png")
    vartok("encode", "img.png", "-o", "img.npz")
    with file_limit(1000):
        results = {
            "cannot write x.npz": vartok("encode", "img.png", "-o", "x.npz", code=1),
            "x.jsonl": vartok("encode", "img.png", "-o", "x.jsonl", code=1),
            "x.jsonl.gz": vartok("encode", "img.png", "-o", "x.jsonl.gz", code=1),
            "x.jsonl.zst": vartok("encode", "img.png", "-o", "x.jsonl.zst", code=1),
            "cannot write x.png": vartok("decode", "img.npz", "-o", "x.png", code=1),
            "x.safetensors": vartok("convert", shipped_checkpoint(), "x.safetensors", code=1),
        }
    for cause, result in results.items():
        [line] = result.stderr.splitlines()
        assert cause in line
        assert "file too large" in line
    assert names(here) == ["img.npz", "img.png"]
