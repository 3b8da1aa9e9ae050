"""The command line: names, formats, exit codes, pipes, and what is left when it is stopped."""

import contextlib
import dataclasses
import errno
import hashlib
import importlib
import io
import json
import os
import pty
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import typer
from conftest import Vartok, names, photo, save
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save as to_safetensors

import vartok as library
from vartok.checkpoints import CODEBOOK, read_checkpoint, shipped_checkpoint, write_checkpoint
from vartok.images import Fit, read_picture, restore_size, to_pixels, to_tensor
from vartok.schedule import Schedule
from vartok.tokens import ImageTokens, read_tokens, stack

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("VARTOK_")} | {
    "VARTOK_DEVICE": "cpu",
    "COLUMNS": "80",
    "TERM": "xterm",
}
PROGRAM = [sys.executable, "-c", "import importlib; importlib.import_module('vartok.cli').app()"]
NOT_A_PICTURE = b"this is no picture"
QUICK = ["--size", "64", "--schedule", "1,4"]


@pytest.fixture(scope="module")
def tokenizer() -> library.Tokenizer:
    return library.load(device="cpu")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint like the shipped one, but of another codebook."""
    path = tmp_path_factory.mktemp("weights") / "stranger.safetensors"
    shipped = read_checkpoint(shipped_checkpoint())
    tensors = {**shipped.tensors, CODEBOOK: shipped.tensors[CODEBOOK].flip(0).contiguous()}
    write_checkpoint(path, type(shipped)("stranger", None, shipped.config, tensors))
    return path


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that takes a while to encode."""
    folder = tmp_path_factory.mktemp("many")
    data = save(folder / "00.png").read_bytes()
    for i in range(1, 60):
        (folder / f"{i:02}.png").write_bytes(data)
    return folder


def tokens_of(data: bytes) -> list[ImageTokens]:
    found = []
    for item in read_tokens(io.BytesIO(data)):
        assert isinstance(item, ImageTokens), item
        found.append(item)
    return found


def indices(data: bytes) -> list[list[int]]:
    return [scale.ravel().tolist() for item in tokens_of(data) for scale in item.scales]


def pixels(file: Path | bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        found: NDArray[np.uint8] = np.array(image.convert("RGB"))
        return found


def drawn(tokenizer: library.Tokenizer, item: ImageTokens, scales: int | None = None) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = to_pixels(tokenizer.decode(stack([item]), scales))[0]
    return found


# Names


def test_names_of_outputs(vartok: Vartok, here: Path) -> None:
    save(here / "in" / "img.png")
    encoded = vartok("encode", "in/img.png")
    assert encoded.stderr == "vartok: in/img.png: 680 tokens in in/img.tokens.npz\n"
    decoded = vartok("decode", "in/img.tokens.npz")
    assert decoded.stderr == "vartok: in/img.tokens.npz: drawn in in/img.decoded.png\n"
    vartok("decode", "in/img.tokens.npz", "--strip")
    assert names(here) == ["in/img.decoded.png", "in/img.png", "in/img.strip.png", "in/img.tokens.npz"]
    assert encoded.stdout == decoded.stdout == ""
    assert pixels(here / "in/img.decoded.png").shape == (256, 256, 3)


@pytest.mark.parametrize(
    ("output", "encoded", "decoded"),
    [
        ("new/{}", "new/img.tokens.npz", "new/img.decoded.png"),
        ("fresh", "fresh/img.tokens.npz", "fresh/img.decoded.png"),
        ("there", "there/img.tokens.npz", "there/img.decoded.png"),
        ("x/y.{}", "x/y.npz", "x/y.webp"),
    ],
)
def test_output_option(vartok: Vartok, here: Path, output: str, encoded: str, decoded: str) -> None:
    (here / "there").mkdir()
    picture = save(here / "img.png")
    kinds = ("npz", "webp") if "." in output else ("", "")
    vartok("encode", picture, "-o", output.format(kinds[0]))
    assert len(tokens_of((here / encoded).read_bytes())) == 1
    vartok("decode", encoded, "-o", output.format(kinds[1]))
    with Image.open(here / decoded) as image:
        assert image.format == ("WEBP" if decoded.endswith("webp") else "PNG")
    assert set(names(here)) == {"img.png", encoded, decoded}


def test_stdin_and_stdout(vartok: Vartok, here: Path, tokenizer: library.Tokenizer) -> None:
    picture = save(here / "img.png").read_bytes()
    piped = vartok("encode", stdin=picture).stdout_bytes
    vartok("encode", "img.png", "-o", "by-name.npz")
    assert indices(piped) == indices((here / "by-name.npz").read_bytes())
    assert [item.image.source for item in tokens_of(piped)] == ["stdin"]
    assert vartok("encode", "-", "-o", "-", stdin=picture).stdout_bytes == piped
    assert vartok("encode", "img.png", "-o", "-").stdout_bytes == (here / "by-name.npz").read_bytes()
    vartok("encode", "-", "-o", "piped.npz", stdin=picture)
    assert (here / "piped.npz").read_bytes() == piped

    [item] = tokens_of(piped)
    shown = vartok("decode", stdin=piped).stdout_bytes
    assert (pixels(shown) == drawn(tokenizer, item)).all()
    assert vartok("decode", "by-name.npz", "-o", "-").stdout_bytes == shown
    vartok("decode", "-", "-o", "pictures/", stdin=piped)
    assert (here / "pictures/stdin.decoded.png").read_bytes() == shown


def test_recursion_mirrors_the_tree(vartok: Vartok, here: Path) -> None:
    for name in ("a/one.png", "a/b/two.JPG", "three.webp"):
        save(here / "in" / name)
    save(here / "in/.hidden/no.png")
    save(here / "in/.no.png")
    (here / "in/notes.txt").write_text("no picture")
    result = vartok("encode", "-r", "in", "-o", "out", *QUICK)
    assert re.fullmatch(r"vartok: encoded 3 in [\d.]+ s\n", result.stderr)
    assert names(here / "out") == ["a/b/two.tokens.npz", "a/one.tokens.npz", "three.tokens.npz"]
    sources = [tokens_of((here / "out" / name).read_bytes())[0].image.source for name in names(here / "out")]
    assert sources == ["a/b/two.JPG", "a/one.png", "three.webp"]
    vartok("decode", "-r", "out", "-o", "drawn", "--format", "jpg")
    assert names(here / "drawn") == ["a/b/two.decoded.jpg", "a/one.decoded.jpg", "three.decoded.jpg"]
    assert len(vartok("inspect", "-r", "out", "--json").stdout.splitlines()) == 3


def test_a_folder_needs_recursion_and_pictures(vartok: Vartok, here: Path) -> None:
    (here / "in").mkdir()
    assert "in is a folder: use -r" in vartok("encode", "in", code=2).stderr
    assert "in holds no pictures" in vartok("encode", "in", "-r", code=2).stderr


def test_two_inputs_of_one_output(vartok: Vartok, here: Path) -> None:
    save(here / "img.png", 1)
    save(here / "img.jpg", 2)
    for places in ([], ["-o", "out"]):
        result = vartok("encode", "img.png", "img.jpg", *places, code=2)
        assert "img.png and img.jpg" in result.stderr
        assert "--full-names" in result.stderr
    save(here / "a/img.png", 3)
    assert (
        "use -r on the folder above" in vartok("encode", "img.png", "a/img.png", "-o", "out", code=2).stderr
    )
    assert names(here) == ["a/img.png", "img.jpg", "img.png"]
    vartok("encode", "img.png", "img.jpg", "--full-names", *QUICK)
    vartok("decode", "img.png.tokens.npz", "img.jpg.tokens.npz", "-o", "out")
    assert names(here / "out") == ["img.jpg.decoded.png", "img.png.decoded.png"]
    vartok("encode", "img.png", "img.jpg", "-o", "all.jsonl", *QUICK)
    assert "all.jsonl: img.jpg: " in vartok("decode", "all.jsonl", code=3).stderr
    vartok("decode", "all.jsonl", "-o", "full", "--full-names")
    assert names(here / "full") == ["img.jpg.decoded.png", "img.png.decoded.png"]


def test_several_results_for_one_place(vartok: Vartok, here: Path) -> None:
    for name in ("a.png", "b.png"):
        save(here / name)
    for output in ("all.npz", "all.json", "a.png", "/dev/null"):
        assert "-o" in vartok("encode", "a.png", "b.png", "-o", output, code=2).stderr
    assert "jsonl" in vartok("encode", "a.png", "b.png", "-o", "-", code=2).stderr
    assert "takes one" in vartok("decode", "a.npz", "b.npz", "-o", "-", code=2).stderr
    assert "jsonl" in vartok("encode", "a.png", "--format", "jsonl", "-o", f"{here}/", code=2).stderr
    assert names(here) == ["a.png", "b.png"]
    vartok("encode", "a.png", "b.png", "-o", "all.jsonl", *QUICK)
    for output in ("-", "one.png"):
        result = vartok("decode", "all.jsonl", "-o", output, code=3)
        assert "all.jsonl: b.png: " in result.stderr
    assert (
        pixels(here / "one.png") == pixels(vartok("decode", "all.jsonl", "-o", "-", code=3).stdout_bytes)
    ).all()


def test_inputs_are_never_overwritten(vartok: Vartok, here: Path) -> None:
    before = save(here / "img.png").read_bytes()
    result = vartok("encode", "img.png", "-o", "./img.png", "--format", "jsonl", "--force", code=2)
    assert "img.png is an input" in result.stderr
    assert "files end in" in vartok("encode", "img.png", "-o", "img.png", "--force", code=2).stderr
    assert (here / "img.png").read_bytes() == before


def test_nothing_is_overwritten_unasked(vartok: Vartok, here: Path) -> None:
    save(here / "a.png", 1)
    save(here / "b.png", 2)
    (here / "a.tokens.npz").write_bytes(b"precious")
    result = vartok("encode", "a.png", code=1)
    assert result.stderr.startswith("vartok: a.png: a.tokens.npz exists: use --force")
    result = vartok("encode", "a.png", "b.png", code=3)
    assert [line for line in result.stderr.splitlines() if "exists" in line] == [
        "vartok: a.png: a.tokens.npz exists: use --force to overwrite it, --skip-existing to pass over"
    ]
    b = (here / "b.tokens.npz").read_bytes()
    result = vartok("encode", "a.png", "b.png", "--skip-existing")
    assert "encoded 0, 2 skipped" in result.stderr
    assert (here / "a.tokens.npz").read_bytes() == b"precious"
    vartok("encode", "a.png", "b.png", "--force")
    assert len(tokens_of((here / "a.tokens.npz").read_bytes())) == 1
    assert (here / "b.tokens.npz").read_bytes() == b

    vartok("encode", "a.png", "b.png", "-o", "all.jsonl")
    (here / "a.decoded.png").write_bytes(b"precious")
    assert "exists" in vartok("decode", "a.tokens.npz", code=1).stderr
    assert "exists" in vartok("decode", "all.jsonl", code=3).stderr
    assert "exists" in vartok("encode", "b.png", "-o", "all.jsonl", code=1).stderr
    drawn_before = (here / "b.decoded.png").read_bytes()
    assert "decoded 0, 2 skipped" in vartok("decode", "all.jsonl", "--skip-existing").stderr
    passed = vartok("encode", "a.png", "b.png", "-o", "all.jsonl", "--skip-existing")
    assert "vartok: all.jsonl exists: passed over, whatever it may lack" in passed.stderr
    assert (here / "a.decoded.png").read_bytes() == b"precious"
    vartok("decode", "all.jsonl", "--force")
    assert pixels(here / "a.decoded.png").shape == (256, 256, 3)
    assert (here / "b.decoded.png").read_bytes() == drawn_before


@pytest.mark.parametrize(
    "name",
    [
        "with space.png",
        "new\nline.png",
        "-dash.png",
        "日本 émoji 😀.png",
        "two.dots.png",
        "\x1b[31mred.png",
        os.fsdecode(b"latin-\xe9.png"),
        "nosuffix",
        ".png",
        "x" * 240 + ".png",
    ],
)
def test_any_name_will_do(vartok: Vartok, here: Path, name: str) -> None:
    (here / "in").mkdir()
    save(here / "in.png").rename(here / "in" / name)
    (here / "list").write_bytes(os.fsencode(f"in/{name}\0"))
    result = vartok("encode", "--files-from", "list", "-0", "-o", "out", *QUICK)
    base = name.removesuffix(".png") or ".png"
    assert names(here / "out") == [f"{base}.tokens.npz"]
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.rstrip("\n").isprintable()
    with contextlib.chdir(here / "in"):
        vartok("encode", "-o", "../beside.npz", *QUICK, "--", name)
    assert (here / "beside.npz").read_bytes() == (here / "out" / f"{base}.tokens.npz").read_bytes()
    vartok("decode", here / "out" / f"{base}.tokens.npz")
    assert f"{base}.decoded.png" in names(here / "out")


# Formats


def test_formats_hold_the_same(vartok: Vartok, here: Path) -> None:
    save(here / "img.png", width=300, height=200)
    kinds = ("npz", "json", "jsonl")
    for kind in kinds:
        vartok("encode", "img.png", "-o", f"img.{kind}")
        by_option = vartok("encode", "img.png", "--format", kind, "-o", "-").stdout_bytes
        assert (here / f"img.{kind}").read_bytes() == by_option
    vartok("encode", "img.png", "--format", "json")
    assert (here / "img.tokens.json").read_bytes() == (here / "img.json").read_bytes()
    items = [tokens_of((here / f"img.{kind}").read_bytes())[0] for kind in kinds]
    assert len({item.to_json() for item in items}) == 1
    assert (items[0].image.width, items[0].image.height, items[0].image.size) == (300, 200, (256, 256))
    shown = [vartok("decode", f"img.{kind}", "-o", "-").stdout_bytes for kind in kinds]
    assert shown[0] == shown[1] == shown[2]


def test_jsonl_keeps_the_order(vartok: Vartok, here: Path) -> None:
    given = [save(here / f"{name}.png", i) for i, name in enumerate("dbca")]
    given.insert(2, here / "bad.png")
    given[2].write_bytes(NOT_A_PICTURE)
    good = [path.name for path in given if path.name != "bad.png"]
    for output, places in (
        (here / "all.jsonl", ["-o", "all.jsonl"]),
        (None, ["-o", "-", "--format", "jsonl"]),
    ):
        result = vartok("encode", *given, *places, "--batch-size", 3, *QUICK, code=3)
        data = output.read_bytes() if output else result.stdout_bytes
        assert [item.image.source for item in tokens_of(data)] == good
        assert data.count(b"\n") == 4
        assert "bad.png: not a picture" in result.stderr
        assert "encoded 4, 1 failed" in result.stderr
    result = vartok("encode", here / "bad.png", "-o", "none.jsonl", code=1)
    assert not (here / "none.jsonl").exists()


def test_inspect(vartok: Vartok, here: Path, tokenizer: library.Tokenizer) -> None:
    save(here / "img.png", width=300, height=200)
    vartok("encode", "img.png", "img.png", "-o", "all.jsonl", "--zoom", "1.125")
    first, second = (
        json.loads(line) for line in vartok("inspect", "all.jsonl", "--json").stdout.splitlines()
    )
    assert first == second
    assert first["file"] == "all.jsonl"
    assert first["model"]["fingerprint"] == tokenizer.fingerprint
    assert first["image"]["zoom"] == 1.125
    assert first["tokens"] == 680
    [item, _] = tokens_of((here / "all.jsonl").read_bytes())
    assert first["first"] == [scale.ravel()[:8].tolist() for scale in item.scales]
    text = vartok("inspect", stdin=(here / "all.jsonl").read_bytes()).stdout
    for part in (
        "standard input",
        "img.png, 300 x 200 pixels",
        "256 x 256 pixels, crop, zoom 1.125",
        "680 in 10",
    ):
        assert part in text
    for index in item.scales[3].ravel()[:8]:
        assert str(index) in text


# Exit codes and messages


def test_exit_codes(vartok: Vartok, here: Path) -> None:
    good, bad = save(here / "good.png"), here / "bad.png"
    bad.write_bytes(NOT_A_PICTURE)
    vartok("encode", good, "-o", "good.npz")
    shorter = [*QUICK, "-o", "out", "-f"]
    assert vartok("encode", bad, code=1).stderr == f"vartok: {bad}: not a picture that vartok can read\n"
    assert vartok("encode", "gone.png", code=1).stderr == "vartok: gone.png: no such file\n"
    both = vartok("encode", bad, good, *shorter, code=3).stderr.splitlines()
    assert both[0] == f"vartok: {bad}: not a picture that vartok can read"
    assert re.fullmatch(r"vartok: encoded 1, 1 failed in [\d.]+ s", both[1])
    assert vartok("encode", bad, good, *shorter, "-q", code=3).stderr.splitlines() == both[:1]
    assert vartok("encode", good, *shorter, "-q").output == ""
    assert "encoded 0, 2 failed" in vartok("encode", bad, "gone.png", code=1).stderr
    assert vartok("decode", "gone.npz", code=1).stderr == "vartok: gone.npz: no such file or directory\n"
    assert "decoded 1, 1 failed" in vartok("decode", "good.npz", "gone.npz", "-o", "out", code=3).stderr
    assert "gone.npz: no such file" in vartok("inspect", "good.npz", "gone.npz", code=3).stderr
    assert "standard input: is empty" in vartok("encode", code=1).stderr
    assert "standard input: " in vartok("decode", stdin=NOT_A_PICTURE, code=1).stderr


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
        "encode --files-from gone.txt",
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


def test_failures_that_are_not_usage(vartok: Vartok, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(here / "img.png")
    assert "no device 'abacus'" in vartok("encode", "img.png", "--device", "abacus", code=1).stderr
    monkeypatch.setenv("VARTOK_DEVICE", "abacus")
    assert "no device 'abacus'" in vartok("encode", "img.png", code=1).stderr
    vartok("encode", "img.png", "--device", "cpu", *QUICK)
    monkeypatch.delenv("VARTOK_DEVICE")
    for weights, cause in (
        ("gone.pth", "No such file"),
        ("img.png", "neither a safetensors nor a PyTorch file"),
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
    for args in (["encode", "bad.png"], ["decode", "bad.png"], ["inspect", "bad.png"]):
        assert "Traceback" not in vartok(*args, code=1).stderr
        shown = vartok(*args, "--debug", code=1).stderr
        assert ("Traceback" if args[0] == "encode" else "vartok.errors.TokenFileError") in shown
    with pytest.raises(library.CheckpointError):
        vartok("convert", "bad.png", "out.safetensors", "--debug", code=1)


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


# Where inputs come from


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("piped", [False, True])
def test_files_from(vartok: Vartok, here: Path, null: bool, piped: bool) -> None:
    given = ["a b.png", "-dash.png", "c.png", "d/e.png"]
    for name in given:
        save(here / name)
    listed = (b"\0" if null else b"\n").join(name.encode() for name in given[:-1])
    (here / "list").write_bytes(listed)
    args = ["--files-from", "-" if piped else "list", *(["-0"] if null else [])]
    vartok("encode", given[-1], *args, "-o", "out", *QUICK, stdin=listed if piped else b"")
    assert names(here / "out") == ["-dash.tokens.npz", "a b.tokens.npz", "c.tokens.npz", "e.tokens.npz"]
    assert "encoded 0" in vartok("encode", "--files-from", "-", stdin=b"\n").stderr
    if not null:
        crlf = listed.replace(b"\n", b"\r\n")
        vartok("encode", "--files-from", "-", "-o", "crlf", *QUICK, stdin=crlf)
        assert len(names(here / "crlf")) == 3
    else:
        assert "use -0" in vartok("encode", "--files-from", "-", stdin=listed, code=2).stderr


# How pictures are fitted


@pytest.mark.parametrize(
    ("options", "fit", "schedule"),
    [
        ([], Fit(), None),
        (["--fit", "pad", "--background", "#204060"], Fit(mode="pad", background=(0x20, 0x40, 0x60)), None),
        (["--fit", "stretch", "--size", "64"], Fit(mode="stretch", size=(64, 64)), None),
        (["--fit", "native"], Fit(mode="native"), None),
        (["--zoom", "1.125", "--size", "128"], Fit(zoom=1.125, size=(128, 128)), None),
        (["--fit", "native", "--schedule", "1,2x3,8x12"], Fit(mode="native"), ((1, 1), (2, 3), (8, 12))),
        (["--size", "64", "--schedule", "1,4"], Fit(size=(64, 64)), ((1, 1), (4, 4))),
    ],
)
def test_fits(
    vartok: Vartok,
    here: Path,
    tokenizer: library.Tokenizer,
    options: list[str],
    fit: Fit,
    schedule: Schedule | None,
) -> None:
    transparent = photo(3, 199, 130)
    transparent.putalpha(Image.linear_gradient("L").resize(transparent.size))
    transparent.save(here / "img.png")
    data = vartok("encode", "img.png", "-o", "-", *options).stdout_bytes
    picture = read_picture(here / "img.png", fit)
    expected = tokenizer.encode(to_tensor(picture.pixels[None]), schedule)
    [item] = tokens_of(data)
    assert item.schedule == expected.schedule
    assert (stack([item]).flatten() == expected.flatten()).all()
    assert (item.image.width, item.image.height) == (199, 130)
    assert item.image.size == picture.pixels.shape[:2]
    assert (item.image.fit, item.image.zoom) == (fit.mode, fit.zoom)

    if fit.mode == "crop":
        refused = vartok("decode", "-", "--restore-size", stdin=data, code=1)
        assert "standard input: img.png: a cropped picture has no original size" in refused.stderr
        assert refused.stdout_bytes == b""
    else:
        restored = pixels(vartok("decode", "-", "--restore-size", stdin=data).stdout_bytes)
        whole = drawn(tokenizer, item)
        assert (restored == restore_size(whole, width=199, height=130, mode=fit.mode)).all()
        assert restored.shape == (130, 199, 3)


def test_max_pixels(vartok: Vartok, here: Path) -> None:
    save(here / "img.png", width=300, height=300)
    assert (
        "has 300 x 300 pixels, more than 89,999"
        in vartok("encode", "img.png", "--max-pixels", 89_999, code=1).stderr
    )
    vartok("encode", "img.png", "--max-pixels", 90_000, *QUICK)
    Image.new("1", (12_000, 9_000)).save(here / "large.png")
    assert "more than 100,000,000" in vartok("encode", "large.png", code=1).stderr


# What is drawn


def test_scales_and_strip(vartok: Vartok, here: Path, tokenizer: library.Tokenizer) -> None:
    save(here / "img.png")
    vartok("encode", "img.png", "-o", "img.npz")
    [item] = tokens_of((here / "img.npz").read_bytes())
    vartok("decode", "img.npz", "--scales", 4, "-o", "four.png")
    assert (pixels(here / "four.png") == drawn(tokenizer, item, 4)).all()
    vartok("decode", "img.npz")
    vartok("decode", "img.npz", "--strip")
    strip = pixels(here / "img.strip.png")
    assert strip.shape == (256, 10 * 256, 3)
    assert (strip[:, 3 * 256 : 4 * 256] == pixels(here / "four.png")).all()
    assert (strip[:, 9 * 256 :] == pixels(here / "img.decoded.png")).all()
    assert (pixels(here / "img.decoded.png") == drawn(tokenizer, item)).all()
    short = pixels(vartok("decode", "img.npz", "--strip", "--scales", 2, "-o", "-").stdout_bytes)
    assert (short == strip[:, : 2 * 256]).all()
    assert "give 1 to 10" in vartok("decode", "img.npz", "--scales", 11, "-o", "x.png", code=1).stderr


def test_tokens_of_another_checkpoint(vartok: Vartok, here: Path, stranger: Path) -> None:
    save(here / "img.png", 1)
    save(here / "own.png", 2)
    vartok("encode", "img.png", "-w", stranger, "-o", "img.npz")
    vartok("encode", "own.png", "-o", "own.npz")
    [line] = vartok("decode", "img.npz", code=1).stderr.splitlines()
    assert line.startswith("vartok: img.npz: ")
    for part in ("stranger", "vartok-light-v1", "-w", "--any-weights"):
        assert part in line
    assert not (here / "img.decoded.png").exists()
    assert "decoded 1, 1 failed" in vartok("decode", "img.npz", "own.npz", "-o", "out", code=3).stderr
    right = pixels(vartok("decode", "img.npz", "-o", "-", "-w", stranger).stdout_bytes)
    wrong = pixels(vartok("decode", "img.npz", "-o", "-", "--any-weights").stdout_bytes)
    assert (right != wrong).any()


def test_wrong_token_files(vartok: Vartok, here: Path) -> None:
    save(here / "img.png")
    good = vartok("encode", "img.png", "-o", "-", "--format", "json").stdout_bytes
    npz = vartok("encode", "img.png", "-o", "-").stdout_bytes
    document = json.loads(good)
    changed: dict[str, dict[str, Any]] = {
        "version": {"version": 2},
        "format": {"format": "other"},
        "grid": {"schedule": [[2, 2], *document["schedule"][1:]]},
        "index": {"scales": [[[4096]], *document["scales"][1:]]},
    }
    wrong = {name: json.dumps({**document, **change}).encode() for name, change in changed.items()}
    wrong |= {"empty": b"", "text": NOT_A_PICTURE, "short": npz[:-100], "cut": good[:500], "null": b"null"}
    for name, data in wrong.items():
        (here / name).write_bytes(data)
        for command in ("decode", "inspect"):
            [line] = vartok(command, name, code=1).stderr.splitlines()
            assert re.match(f"vartok: {name}: .{{5,}}", line)
    assert names(here) == sorted([*wrong, "img.png"])
    (here / "all.jsonl").write_bytes(good + b"{}\n" + good.replace(b"img.png", b"two.png"))
    result = vartok("decode", "all.jsonl", "-o", "out", code=3)
    assert "all.jsonl: line 2: " in result.stderr
    assert names(here / "out") == ["img.decoded.png", "two.decoded.png"]


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("../../evil.png", "evil.decoded.png"),
        ("/etc/evil.png", "etc/evil.decoded.png"),
        ("a/../../../evil", "a/evil.decoded.png"),
        ("..\\..\\evil.png", "evil.decoded.png"),
        ("..", "image.decoded.png"),
        ("", "image.decoded.png"),
        ("/", "image.decoded.png"),
        ("a\nb\0c.png", "a_b_c.decoded.png"),
        ("~/evil.png", "~/evil.decoded.png"),
    ],
)
def test_sources_lead_nowhere_but_down(vartok: Vartok, here: Path, source: str, place: str) -> None:
    save(here / "img.png")
    given = json.loads(vartok("encode", "img.png", "-o", "-", "--format", "jsonl", *QUICK).stdout)
    given["image"]["source"] = source
    (here / "deep/in/it").mkdir(parents=True)
    (here / "deep/in/it/all.jsonl").write_text(json.dumps(given))
    with contextlib.chdir(here / "deep/in/it"):
        vartok("decode", "all.jsonl", "-o", "out")
    assert names(here) == sorted(["deep/in/it/all.jsonl", f"deep/in/it/out/{place}", "img.png"])


# The same tokens


@pytest.mark.parametrize("fit", ["crop", "native"])
def test_tokens_do_not_depend_on_batches_or_workers(vartok: Vartok, here: Path, fit: str) -> None:
    sizes = [(48, 32), (32, 48), (64, 32), (48, 32), (41, 57)]
    for i in range(16):
        save(here / "in" / f"{i:02}.png", i, *sizes[i % len(sizes)])
    found = {}
    for batch, workers in ((1, 1), (5, 4), (16, 1), (16, 4)):
        out = here / f"{batch}-{workers}"
        size = [] if fit == "native" else ["--size", "48"]
        vartok(
            "encode", "-r", "in", "-o", out, "--fit", fit, *size, "--batch-size", batch, "--workers", workers
        )
        found[batch, workers] = {name: (out / name).read_bytes() for name in names(out)}
    assert len(found[1, 1]) == 16
    assert all(files == found[1, 1] for files in found.values())
    shown = []
    for batch, workers in ((1, 1), (16, 4)):
        vartok("decode", "-r", "1-1", "-o", f"d{batch}", "--batch-size", batch, "--workers", workers)
        shown.append({name: (here / f"d{batch}" / name).read_bytes() for name in names(here / f"d{batch}")})
    assert len(shown[0]) == 16
    assert shown[0] == shown[1]


# Full disks


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
            "cannot write x.png": vartok("decode", "img.npz", "-o", "x.png", code=1),
            "x.safetensors": vartok("convert", shipped_checkpoint(), "x.safetensors", code=1),
        }
    for cause, result in results.items():
        [line] = result.stderr.splitlines()
        assert cause in line
        assert "File too large" in line
    assert names(here) == ["img.npz", "img.png"]


# Processes


def start(*args: object, program: list[str] = PROGRAM, **streams: Any) -> subprocess.Popen[bytes]:
    streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, **streams}
    process: subprocess.Popen[bytes] = subprocess.Popen(
        [*program, *map(str, args)],
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background jobs ignore it
        **streams,
    )
    return process


def wait_for(appeared: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 120
    while not appeared():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < limit
        time.sleep(0.01)


def whole(folder: Path) -> int:
    """Count the token files; every one can be read."""
    files = list(folder.rglob("*.npz"))
    return sum(len(tokens_of(path.read_bytes())) for path in files)


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


def test_closed_pipe(many: Path) -> None:
    process = start("encode", "-r", many, "--format", "jsonl", "-o", "-", stdout=subprocess.PIPE, bufsize=0)
    assert process.stdout
    assert process.stdout.read(1) == b"{"
    process.stdout.close()
    _, messages = process.communicate(timeout=120)
    assert (process.returncode, messages) == (141, b"")


def test_full_stdout(many: Path) -> None:
    with open("/dev/full", "wb") as full:
        process = start("encode", "-r", many, "--format", "jsonl", "-o", "-", stdout=full)
        _, messages = process.communicate(timeout=120)
    assert (process.returncode, messages) == (1, b"vartok: stdout: No space left on device\n")


def encode_without_end(many: Path, output: Path, program: list[str] = PROGRAM, **streams: Any) -> Any:
    """A run that has all but its last few pictures to encode, and then waits for one on standard input."""
    arguments = ("encode", "-r", many, "-", "-o", output, "--batch-size", 4)
    return start(*arguments, program=program, stdin=subprocess.PIPE, **streams)


def test_interrupted(many: Path, tmp_path: Path) -> None:
    process = encode_without_end(many, tmp_path, stdout=subprocess.PIPE)
    wait_for(lambda: len(names(tmp_path)) > 20, process)
    process.send_signal(signal.SIGINT)
    output, messages = process.communicate(timeout=120)
    assert (process.returncode, output, messages) == (130, b"", b"")
    assert 20 <= whole(tmp_path) == len(names(tmp_path)) < 60  # the last one seen may have been half-written


def test_interrupted_with_a_progress_bar(many: Path, tmp_path: Path) -> None:
    at_once = "import importlib as i; i.import_module('vartok.cli.report').BAR_AFTER = 0; "
    program = [sys.executable, "-c", at_once + "i.import_module('vartok.cli').app()"]
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
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l") > -1  # the cursor is visible again


@pytest.mark.parametrize(("place", "done"), [("out", 1), ("out", 40), ("all.jsonl", 1)])
def test_killed(many: Path, tmp_path: Path, place: str, done: int) -> None:
    before = {path.name: hashlib.sha256(path.read_bytes()).digest() for path in many.iterdir()}
    process = encode_without_end(many, tmp_path / place)
    wait_for(lambda: len(names(tmp_path)) >= done, process)
    process.kill()
    process.communicate()
    left = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith(".vartok-")]
    assert whole(tmp_path) == len(left) < 60
    assert len(left) >= done - 1 if place == "out" else not left
    assert {path.name: hashlib.sha256(path.read_bytes()).digest() for path in many.iterdir()} == before


def test_binary_is_never_written_to_a_terminal(vartok: Vartok, here: Path) -> None:
    save(here / "img.png")
    vartok("encode", "img.png", "-o", "img.npz", *QUICK)
    terminal, inside = pty.openpty()
    for args in (["encode", "img.png", "-o", "-"], ["decode", "img.npz", "-o", "-"]):
        process = start(*args, stdout=inside, cwd=here)
        _, messages = process.communicate(timeout=60)
        assert process.returncode == 2
        assert b"stdout a terminal" in messages
    for args in (["encode"], ["decode"], ["inspect"]):
        process = start(*args, stdin=inside, stdout=subprocess.PIPE, cwd=here)
        output, messages = process.communicate(timeout=60)
        assert (process.returncode, output) == (2, b"")
        assert b"no INPUT" in messages
    os.close(inside)
    os.close(terminal)


def test_closed_streams(here: Path) -> None:
    save(here / "img.png")
    for closed, args, code, cause in (
        ("<&-", "encode", 1, b"standard input: is empty"),
        (">&-", "inspect img.png", 1, b"not a token file"),
        (">&-", "--version", 0, b""),
    ):
        line = shlex.join(PROGRAM) + f" {args} {closed}"
        done = subprocess.run(
            ["sh", "-c", line], env=ENVIRONMENT, cwd=here, stderr=subprocess.PIPE, check=False
        )
        assert done.returncode == code, done.stderr
        assert cause in done.stderr
        assert b"Traceback" not in done.stderr


# Start-up and help


@pytest.mark.parametrize(
    "args",
    [["--help"], ["--version"], ["encode", "--help"], ["inspect", "img.json"], ["encode", "--zoom", "0"]],
)
def test_starts_without_torch(here: Path, args: list[str]) -> None:
    (here / "img.json").write_text("{")
    code = (
        "import importlib, sys\n"
        "try: importlib.import_module('vartok.cli').app(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'rich', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, *args], env=ENVIRONMENT, check=True, capture_output=True)


def test_library_imports_without_torch() -> None:
    code = "import sys, vartok; vartok.VartokError; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_python_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vartok", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"vartok {library.__version__}\n"
    assert done.stderr == ""


def commands(app: typer.Typer) -> dict[str, Any]:
    """All commands by what is typed for them; of `dataset` the one that is meant where none is named."""
    group: Any = typer.main.get_command(app)
    found = dict(group.commands)
    found["dataset verify"] = found["dataset"].commands["verify"]
    found["dataset"] = found["dataset"].commands["make"]
    return found


def test_help(app: typer.Typer, vartok: Vartok) -> None:
    text = vartok("--help").stdout
    assert set(commands(app)) == {
        "encode",
        "decode",
        "inspect",
        "inspect-codebook",
        "eval",
        "train",
        "convert",
        "dataset",
        "dataset verify",
    }
    for name, command in commands(app).items():
        assert name.partition(" ")[0] in text
        assert command.help.partition("\n")[0].endswith((".", ","))
        for param in command.params:
            assert param.help, f"{name} {param.name} has no help"
        known = {option for param in command.params for option in param.opts}
        examples = [line.strip() for line in command.help.splitlines() if line.startswith("  ")]
        assert examples, f"{name} has no example"
        shown = vartok(*name.split(), "-h").stdout
        for example in examples:
            assert f"vartok {name} " in f"{example} "
            if example.startswith("vartok dataset verify") and name == "dataset":
                continue
            assert f"    {example}\n" in shown
            first = example.partition(f"vartok {name}")[2].partition("|")[0]
            assert {word for word in shlex.split(first) if word.startswith("-")} <= known
    assert vartok("--version").stdout == f"vartok {library.__version__}\n"
    assert vartok(code=2).output.startswith("Usage: ")


# Checkpoints


def test_convert(vartok: Vartok, here: Path, tokenizer: library.Tokenizer) -> None:
    shipped = read_checkpoint(shipped_checkpoint())
    torch.save({"model": dict(shipped.tensors)}, here / "mine.pth")
    found = hashlib.sha256((here / "mine.pth").read_bytes()).hexdigest()
    text = vartok("convert", "mine.pth", "mine.safetensors", "--sha256", found.upper()).stdout
    for part in ("mine\n", "not told", found, "written to mine.safetensors", "note: the file does not say"):
        assert part in text
    assert library.load("mine.safetensors").fingerprint == tokenizer.fingerprint

    known = '{"quant_resi": 0.5, "using_znorm": false, "patch_nums": [1, 4, 16]}'
    args = ["convert", "mine.pth", "told.safetensors", "--config", known, "--name", "it", "--license", "MIT"]
    report = json.loads(vartok(*args, "--json").stdout)
    assert (report["name"], report["license"], report["published"], report["notes"]) == (
        "it",
        "MIT",
        False,
        [],
    )
    assert report["sha256"] == found
    assert report["config"]["patch_nums"] == [1, 4, 16]
    assert report["tensors"] == len(shipped.tensors)
    save(here / "img.png")
    vartok("encode", "img.png", "-w", "told.safetensors")
    [item] = tokens_of((here / "img.tokens.npz").read_bytes())
    assert item.schedule == ((1, 1), (4, 4), (16, 16))
    assert item.model.name == "it"

    before = (here / "told.safetensors").read_bytes()
    assert "told.safetensors exists: use --force" in vartok(*args, code=1).stderr
    [line] = vartok("convert", "mine.pth", "no.safetensors", "--sha256", "0" * 64, code=1).stderr.splitlines()
    assert line == f"vartok: mine.pth: has sha256 {found}, not {'0' * 64}"
    assert "no-file.pth" in vartok("convert", "no-file.pth", "no.safetensors", code=1).stderr
    assert "img.png: neither" in vartok("convert", "img.png", "no.safetensors", code=1).stderr
    assert (here / "told.safetensors").read_bytes() == before
    vartok(*args, "--force")
    assert not (here / "no.safetensors").exists()


def test_published_checkpoint_is_recognised(
    vartok: Vartok, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(dict(read_checkpoint(shipped_checkpoint()).tensors), here / "vae.pth")
    found = hashlib.sha256((here / "vae.pth").read_bytes()).hexdigest()
    monkeypatch.setattr("vartok.checkpoints.PUBLISHED_SHA256", found)
    text = vartok("convert", "vae.pth", "vae.safetensors").stdout
    assert text.startswith(
        "This is the tokenizer that VAR's authors published.\nname        vae_ch160v4096z32\n"
    )
    assert "note:" not in text


# What files may not bring about


def test_a_token_file_does_not_choose_how_much_memory_is_taken(vartok: Vartok, here: Path) -> None:
    save(here / "img.png")
    vartok("encode", "img.png", "-o", "img.npz", "--fit", "stretch")
    [item] = tokens_of((here / "img.npz").read_bytes())
    for side, strip in ((10_001, []), (4000, ["--strip"])):
        image = dataclasses.replace(item.image, width=side, height=side)
        (here / "big.npz").write_bytes(dataclasses.replace(item, image=image).to_npz())
        result = vartok("decode", "big.npz", "--restore-size", *strip, code=1)
        assert "more than 10" in result.stderr
    assert names(here) == ["big.npz", "img.npz", "img.png"]


def test_a_file_of_several_by_another_name(vartok: Vartok, here: Path) -> None:
    for name in ("a.png", "b.png"):
        save(here / name)
    vartok("encode", "a.png", "b.png", "-o", "all.jsonl", *QUICK)
    (here / "all.jsonl").rename(here / "all.json")
    result = vartok("decode", "all.json", code=3)
    assert "a file of several is named .jsonl" in result.stderr
    assert names(here) == ["a.png", "all.decoded.png", "all.json", "b.png"]


def test_what_files_say_is_printed_on_one_line(vartok: Vartok, here: Path) -> None:
    shipped = read_checkpoint(shipped_checkpoint())
    harmful = type(shipped)("\x1b[31mred\nfake line", None, shipped.config, shipped.tensors)
    write_checkpoint(here / "in.safetensors", harmful)
    result = vartok("convert", "in.safetensors", "out.safetensors")
    assert "\x1b" not in result.stdout
    assert "\nfake line" not in result.stdout
    save(here / "a.png")
    gone = vartok("encode", "a.png", "-w", "gone\nz.pth", code=1)
    assert gone.stderr.count("\n") == 1


def test_convert_keeps_its_input(vartok: Vartok, here: Path) -> None:
    write_checkpoint(here / "a.safetensors", read_checkpoint(shipped_checkpoint()))
    before = (here / "a.safetensors").read_bytes()
    assert "is the input" in vartok("convert", "a.safetensors", "a.safetensors", "-f", code=2).stderr
    assert "name the output .safetensors" in vartok("convert", "a.safetensors", "-", code=2).stderr
    vartok("convert", "a.safetensors", "new/b.safetensors")
    assert (here / "a.safetensors").read_bytes() == before
    assert names(here) == ["a.safetensors", "new/b.safetensors"]


def test_quiet_means_failures_alone(vartok: Vartok, here: Path) -> None:
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
    assert "cannot be searched" in vartok("encode", "-r", "in", code=2).stderr


def test_inspect_codebook_ends_quietly_where_the_pipe_does(here: Path) -> None:
    process = start("inspect-codebook", stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr
    assert process.stderr.read() == b""


def test_choices_are_those_of_the_library() -> None:
    from vartok import images, runtime

    options: Any = importlib.import_module("vartok.cli.options")
    assert get_args(options.FitMode) == images.FITS
    assert get_args(options.PictureFormat) == images.FORMATS
    assert get_args(options.Dtype) == tuple(runtime.DTYPES)


def test_another_run_into_the_same_folder(
    vartok: Vartok, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has done meanwhile is passed over or refused, as what was there before is."""
    for name in ("a.png", "b.png", "c.png"):
        save(here / name)
    files: Any = importlib.import_module("vartok.cli.encode")
    load = files.load_tokenizer

    def meanwhile(*args: Any, **options: Any) -> library.Tokenizer:
        (here / "b.tokens.npz").write_bytes(b"theirs")
        tokenizer: library.Tokenizer = load(*args, **options)
        return tokenizer

    monkeypatch.setattr(files, "load_tokenizer", meanwhile)
    skipping = vartok("encode", "a.png", "b.png", "--skip-existing")
    assert skipping.stderr.startswith("vartok: encoded 1, 1 skipped in ")
    refusing = vartok("encode", "b.png", "c.png", code=3)
    assert "b.tokens.npz exists: use --force" in refusing.stderr
    assert (here / "b.tokens.npz").read_bytes() == b"theirs"


def test_a_search_passes_over_what_decode_drew(vartok: Vartok, here: Path) -> None:
    save(here / "in" / "a.png")
    vartok("encode", "-r", "in")
    vartok("decode", "-r", "in")
    vartok("decode", "-r", "in", "--strip")
    vartok("encode", "-r", "in", "-o", "out")
    assert names(here / "out") == ["a.tokens.npz"]
    vartok("encode", "in/a.decoded.png", "-o", "named.npz")  # what is named is taken


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["--force", "--skip-existing"], "which one?"),
        (["-o", "x.json", "--format", "npz"], "is json by its suffix"),
    ],
)
def test_encode_options_that_contradict_each_other(
    vartok: Vartok, here: Path, options: list[str], cause: str
) -> None:
    save(here / "a.png")
    assert cause in vartok("encode", "a.png", *options, code=2).stderr
    assert names(here) == ["a.png"]


def test_decode_draws_no_format_under_the_name_of_another(vartok: Vartok, here: Path) -> None:
    save(here / "a.png")
    vartok("encode", "a.png")
    refused = vartok("decode", "a.tokens.npz", "-o", "b.jpeg", "--format", "png", code=2)
    assert "is jpg by its suffix" in refused.stderr
    vartok("decode", "a.tokens.npz", "-o", "b.jpeg", "--format", "jpg")
    assert names(here) == ["a.png", "a.tokens.npz", "b.jpeg"]
