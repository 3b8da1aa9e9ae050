"""`vartok show`: what it draws, in a file, in a pipe, and in a terminal."""

import fcntl
import importlib
import io
import os
import pty
import re
import struct
import subprocess
import termios
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from commands import ENVIRONMENT, NOT_A_PICTURE, PROGRAM, QUICK, decoded_pixels, pixels, tokens_of
from conftest import Vartok, save
from PIL import Image

import vartok as library
from vartok import atlas
from vartok.drawing import Tile, as_image
from vartok.operations import sheets
from vartok.operations.originals import read_original
from vartok.operations.show import draw_files


def captions(inputs: list[str], tokenizer: library.Tokenizer, **options: Any) -> list[list[str]]:
    """The captions of drawings that all succeed."""
    drawings = list(draw_files(inputs, load=lambda _: tokenizer, **options))
    assert [drawing.error for drawing in drawings] == [None] * len(drawings)
    return [[tile.caption for tile in drawing.tiles] for drawing in drawings]


@pytest.fixture
def pair(vartok: Vartok, here: Path) -> Path:
    """A folder with a picture and its tokens."""
    save(here / "img.png", width=90, height=60)
    vartok("encode", "img.png", *QUICK)
    return here


def test_a_picture_goes_to_a_pipe_or_a_file_as_it_is(vartok: Vartok, here: Path) -> None:
    save(here / "img.png", width=40, height=30)
    run = vartok("show", "img.png")
    assert np.array_equal(pixels(run.stdout_bytes), pixels(here / "img.png"))
    assert run.stderr == "vartok: img.png, 40 x 30 pixels\n"
    assert vartok("show", "img.png", "-q", "-o", "out/copy.webp").output == ""
    assert np.array_equal(pixels(here / "out/copy.webp"), pixels(here / "img.png"))
    assert (
        "out/copy.webp exists: set --force" in vartok("show", "img.png", "-o", "out/copy.webp", code=1).output
    )
    vartok("show", "img.png", "-o", "out/copy.webp", "--force")
    assert "must end in .png" in vartok("show", "img.png", "-o", "copy", code=2).output
    before = (here / "img.png").read_bytes()
    assert (
        "an input, which would be lost"
        in vartok("show", "img.png", "-o", "./img.png", "--force", code=2).output
    )
    assert (here / "img.png").read_bytes() == before
    assert np.array_equal(
        pixels(vartok("show", "-", stdin=(here / "img.png").read_bytes()).stdout_bytes),
        pixels(here / "img.png"),
    )


def test_tokens_are_decoded(vartok: Vartok, pair: Path, tokenizer: library.Tokenizer) -> None:
    data = (pair / "img.tokens.npz").read_bytes()
    run = vartok("show", "img.tokens.npz")
    assert np.array_equal(pixels(run.stdout_bytes), decoded_pixels(tokenizer, tokens_of(data)[0]))
    found = re.fullmatch(
        r"vartok: img.png, 64 x 64 pixels, 2 scales, 17 tokens, ([0-9.]+) dB, vartok-light-v2\n", run.stderr
    )
    assert found, run.stderr
    assert 10 < float(found[1]) < 40
    assert vartok("show", stdin=data).stdout_bytes == run.stdout_bytes
    sheet = pixels(vartok("show", "img.tokens.npz", "--scales").stdout_bytes)
    assert sheet.shape[1] > 2 * 64
    os.remove("img.png")
    assert " dB" not in vartok("show", "img.tokens.npz").stderr


def test_a_sheet_has_the_original_once(pair: Path, tokenizer: library.Tokenizer) -> None:
    [[original, decoded]] = captions(["img.tokens.npz"], tokenizer, originals=True)
    assert original == "original\n90 x 60 pixels, crop"
    assert " dB" in decoded
    assert captions(["img.png", "img.tokens.npz"], tokenizer, originals=True) == [
        ["img.png\n90 x 60 pixels"],
        [decoded],
    ]
    (pair / "img.tokens.npz").rename(pair / "img.npz")
    tokens = tokens_of((pair / "img.npz").read_bytes())[0]
    keyed = replace(tokens, image=replace(tokens.image, source="img"))  # as a data set has it
    keyed.save("row.npz")
    assert " dB" in captions(["img.png", "row.npz"], tokenizer)[1][0]
    [[_, first, second]] = captions(["img.npz"], tokenizer, originals=True, build_up=True)
    assert re.fullmatch(r"scale 1, 1x1\n1 token so far\n[0-9.]+ dB", first)
    assert re.fullmatch(r"scale 2, 4x4\n17 tokens so far\n[0-9.]+ dB", second)


def test_options_of_a_model_that_is_not_used(
    vartok: Vartok, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(here / "img.png", width=8, height=8)
    run = vartok("show", "img.png", "-w", "light", "--device", "cuda", "--dtype", "float16")
    for option in ("--weights", "--device", "--dtype"):
        assert f"{option} was not used" in run.stderr
    monkeypatch.setenv("VARTOK_WEIGHTS", "light")
    assert "not used" not in vartok("show", "img.png").stderr


def test_a_caption_has_three_lines(here: Path, tokenizer: library.Tokenizer) -> None:
    save(here / "img.png", width=64, height=64)
    tokens = library.encode_file("img.png", tokenizer=tokenizer, size=64, schedule="1,4")
    tokens = replace(tokens, image=replace(tokens.image, source="\n" * 4000))
    replace(tokens, model=replace(tokens.model, name="a\nb")).save("x.npz")
    [[caption]] = captions(["x.npz"], tokenizer)
    assert len(caption.split("\n")) == 3
    assert len(caption) < 1200


def test_the_original_of_two_of_one_name(here: Path, tokenizer: library.Tokenizer) -> None:
    for folder, color in (("a", "red"), ("b", "blue"), ("c", "red")):
        (here / folder).mkdir()
        Image.new("RGB", (64, 64), color).save(f"{folder}/x.png")
    os.remove("c/x.png")
    tokens = library.encode_file("b/x.png", tokenizer=tokenizer, size=64, schedule="1,4")
    tokens.save("b/x.npz")
    tokens.save("c/x.npz")
    [[alone]] = captions(["b/x.npz"], tokenizer)
    assert " dB" in alone
    assert captions(["a/x.png", "b/x.png", "b/x.npz"], tokenizer)[2] == [alone]
    assert captions(["a/x.png", "b/x.npz"], tokenizer)[1] == [alone]
    assert captions(["b/x.png", "./b/x.png", "c/x.npz"], tokenizer)[2] == [alone]
    *_, drawn = draw_files(["a/x.png", "b/x.png", "c/x.npz"], load=lambda _: tokenizer)
    assert " dB" not in drawn.tiles[0].caption
    assert drawn.notes == ("not compared with its original: 2 of the pictures may be it: name one only",)


def test_token_maps_and_animations(vartok: Vartok, pair: Path, tokenizer: library.Tokenizer) -> None:
    vartok("decode", "img.tokens.npz", "--maps")
    said = vartok("show", "img.tokens.npz", "--tokens", "-o", "maps.png").stderr
    assert said == "vartok: drew 2 pictures in maps.png\n"
    whole, sheet = pixels(pair / "img.maps.png"), pixels(pair / "maps.png")
    column = sheet[:, 104:168]  # of the width of a label
    below = [n for n in range(len(sheet)) if np.array_equal(column[n : n + 128], whole[:, 64:])]
    assert below
    assert (sheet[: below[0]] == 0).any()  # a heading
    [drawing] = draw_files(["img.tokens.npz"], load=lambda _: tokenizer, maps=True)
    assert drawing.heading.startswith(
        "img.png, 64 x 64 pixels, 2 scales, 17 tokens, vartok-light-v2\nabove: "
    )
    vartok("decode", "img.tokens.npz", "--animate")
    said = vartok("show", "img.tokens.npz", "--animate", "-o", "build.webp").stderr
    assert said == "vartok: drew 2 frames in build.webp\n"
    assert (pair / "build.webp").read_bytes() == (pair / "img.animated.webp").read_bytes()
    for said, *options in (
        ("OUT.png or OUT.apng",),
        (".webp, .gif", "-o", "x.jpg"),
        ("--sheet", "--sheet", "-o", "x.gif"),
        ("--scales, --tokens and --animate contradict", "--scales", "-o", "x.gif"),
    ):
        assert said in vartok("show", "img.tokens.npz", "--animate", *options, code=2).output
    assert "--animate is for tokens" in vartok("show", "img.png", "--animate", "-o", "x.gif", code=2).output
    run = vartok("show", *["img.tokens.npz"] * 2, "--animate", "-o", "x.gif", code=1)
    assert "an animation is of one image, but there are 2" in run.stderr


def test_several_channels_are_drawn_by_the_first_three(
    vartok: Vartok, pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    five = np.arange(8 * 8 * 5, dtype=np.uint8).reshape(8, 8, 5)
    monkeypatch.setattr("vartok.operations.show.decode_tokens", lambda *_, **__: [(None, [five])])
    assert np.array_equal(pixels(vartok("show", "img.tokens.npz").stdout_bytes), five[..., :3])


def test_a_checkpoint_that_is_missing_is_named_once(vartok: Vartok, pair: Path) -> None:
    run = vartok("show", *["img.tokens.npz"] * 2, "-w", "no.safetensors", code=1)
    assert run.stderr == "vartok: no.safetensors: no such file or folder\n"


def test_another_picture_is_not_compared(vartok: Vartok, pair: Path, tokenizer: library.Tokenizer) -> None:
    save(pair / "img.png", width=91, height=60)
    run = vartok("show", "img.tokens.npz", "-o", "out.png")
    assert "91 x 60 pixels, but the original had 90 x 60" in run.stderr
    assert " dB" not in run.stderr


@pytest.mark.parametrize(
    "options", [[], ["--fit", "pad"], ["--fit", "native"], ["--fit", "stretch"], ["--zoom", "1.5"]]
)
def test_the_original_is_read_as_it_was_encoded(
    here: Path, tokenizer: library.Tokenizer, options: list[str]
) -> None:
    from vartok.images import Fit, read_picture
    from vartok.operations import encode_file

    save(here / "img.png", width=90, height=60)
    chosen: dict[str, Any] = dict(zip([name[2:] for name in options[::2]], options[1::2], strict=True))
    zoom = float(chosen.pop("zoom", 1))
    size = None if chosen.get("fit") == "native" else 64
    tokens = encode_file("img.png", tokenizer=tokenizer, size=size, zoom=zoom, background="red", **chosen)
    fit = Fit(mode=chosen.get("fit", "crop"), size=(64, 64), zoom=zoom, background=(255, 0, 0))
    found = read_original(lambda fit: read_picture("img.png", fit), tokens, tokenizer)
    assert np.array_equal(found, read_picture("img.png", fit).pixels)


def test_rows_of_a_collection(vartok: Vartok, here: Path, tokenizer: library.Tokenizer) -> None:
    rows = np.arange(10 * 17, dtype=np.uint16).reshape(10, 17)
    np.save("s.npy", rows)
    run = vartok("show", "s.npy", "--schedule", "1,4", "-o", "all.png")
    assert "s.npy: only the first 8 rows are drawn" in run.stderr
    sources = captions(["s.npy"], tokenizer, schedule="1,4", rows=[9, 2])
    assert [caption.split("\n")[0] for [caption] in sources] == ["s/00000002", "s/00000009"]
    assert len(captions(["s.npy"], tokenizer, schedule="1,4", keys=["s/00000003"])) == 1
    run = vartok("show", "s.npy", "--schedule", "1,4", "--rows", "0,8-10", code=3)
    assert run.stderr == "vartok: s.npy: has 10 rows, from 0 on, and no row 10\n"
    assert Image.open(io.BytesIO(run.stdout_bytes)).width == 3 * 96 + 16
    assert "--rows is for data sets" in vartok("show", "t.tokens.npz", "--rows", "0", code=2).output


@pytest.mark.parametrize("text", ["x", "3-", "-3", "5-2", "1,,2", "0-99999999", "²"])
def test_rows_that_are_no_numbers(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="--rows"):
        importlib.import_module("vartok.cli.show").parse_rows(text)


def test_a_checkpoint_is_drawn_as_its_atlas(
    vartok: Vartok, here: Path, tokenizer: library.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atlas, "draw_atlas", lambda _: np.zeros((32, 32, 3), np.uint8))
    run = vartok("show", "light", "-o", "codes.png")
    assert "vartok-light-v2, 4,096 codes of 32 channels" in run.stderr
    assert pixels(here / "codes.png").shape == (32, 32, 3)
    (here / "run").mkdir()
    (here / "run" / "weights.safetensors").touch()
    assert captions(["run"], tokenizer) == captions(["light"], tokenizer)
    run = vartok("show", "lihgt", "-o", "x.png", code=1)
    assert run.stderr.startswith("vartok: lihgt: no such file or folder: did you mean light?")
    assert vartok("show", "no.pth", code=1).stderr == "vartok: no.pth: no such file or folder\n"


def test_bad_inputs_cost_one_line_each(vartok: Vartok, pair: Path) -> None:
    (pair / "bad.png").write_bytes(NOT_A_PICTURE)
    run = vartok("show", "no.png", "img.png", "bad.png", "bad.npz", "img.tokens.npz", code=3)
    assert [line.split(": ")[1] for line in run.stderr.splitlines()] == ["no.png", "bad.png", "bad.npz"]
    assert Image.open(io.BytesIO(run.stdout_bytes)).width == 384 + 8 + 256
    assert (
        vartok("show", "no.png", "-o", "x.png", code=1).stderr == "vartok: no.png: no such file or folder\n"
    )
    assert not (pair / "x.png").exists()
    tokens = tokens_of((pair / "img.tokens.npz").read_bytes())[0]
    replace(tokens, model=replace(tokens.model, fingerprint="0" * 64)).save("other.npz")
    assert "made with" in vartok("show", "other.npz", code=1).output
    vartok("show", "other.npz", "--any-weights")
    (pair / "empty").mkdir()
    assert "folder without a data set: name the files in it" in vartok("show", "empty", code=2).output
    assert "no X, and standard input is empty" in vartok("show", code=2).output
    for option in (
        ["--keys", "a"],
        ["--rows", "1"],
        ["--limit", "1"],
        ["--scales"],
        ["--tokens"],
        ["--any-weights"],
    ):
        assert f"{option[0]} is for tokens" in vartok("show", "img.png", *option, code=2).output


def test_rows_of_a_sheet_are_filled_with_nothing() -> None:
    tall, wide = Tile(Image.new("L", (30, 300))), Tile(Image.new("L", (40, 400)))
    tiles, columns = sheets.lay_out([[tall] * 3, [wide]])
    assert columns == 3
    assert [as_image(tile.picture).size for tile in tiles] == [(30, 300)] * 4 + [(1, 1)] * 2


def test_a_sheet_is_bounded(vartok: Vartok, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(here / "img.png", width=1300, height=13)
    monkeypatch.setattr(sheets, "MAX_TILES", 2)
    sheet = pixels(vartok("show", "img.png", "img.png").stdout_bytes)
    assert sheet.shape[1] == 2 * 1024 + 8
    assert "at most 2 others" in vartok("show", *["img.png"] * 3, "-o", "x.png", code=1).stderr
    assert not (here / "x.png").exists()


def screen(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Any:
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "60", "LINES": "20", **environment}.items():
        monkeypatch.setenv(name, value)
    return importlib.import_module("vartok.cli.terminal").Screen()


def shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiles: list[Tile], **environment: str
) -> str:
    screen(monkeypatch, **environment).show(tiles, columns=len(tiles))
    return capsys.readouterr().out


BLOCK = Tile(Image.new("RGB", (20, 10), (250, 0, 10)), "red.png\n20 x 10 pixels")


@pytest.mark.parametrize(
    ("environment", "cell"),
    [
        ({"COLORTERM": "truecolor"}, "\x1b[38;2;250;0;10;48;2;250;0;10m▀\x1b[0m"),
        ({}, "\x1b[38;5;196;48;5;196m▀\x1b[0m"),
    ],
)
def test_half_blocks(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    cell: str,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLORTERM", "")
    text = shown(monkeypatch, capsys, [BLOCK], **environment)
    assert text == (cell * 60 + "\n") * 15 + "red.png\n20 x 10 pixels\n"


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_letters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environment: dict[str, str]
) -> None:
    bright = Tile(Image.new("L", (10, 20), 255), "bright")
    text = shown(monkeypatch, capsys, [BLOCK, bright], **environment)
    lines = text.splitlines()
    assert lines[0] == ":" * 29 + " " + "@" * 18
    assert lines[7] == "red.png" + " " * 23 + "@" * 18
    assert "\x1b" not in text
    assert max(map(len, lines)) <= 60


def test_pictures_fill_the_window(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = [Tile(Image.new("L", (50, 50), 99), f"scale {k}\n3 tokens") for k in range(10)]
    text = shown(monkeypatch, capsys, tiles, TERM="dumb", COLUMNS="200", LINES="50")
    assert text.splitlines()[20].split() == [word for k in range(5) for word in ("scale", str(k))]
    assert len(text.splitlines()) == 2 * (20 + 2)
    text = shown(
        monkeypatch, capsys, tiles, TERM="dumb", COLUMNS="80", LINES="24"
    )  # too small for all at once
    assert len(text.splitlines()) == 3 * (10 + 2)
    wide = screen(monkeypatch, COLUMNS="16")
    rows = [row.size for row in wide._rows([Tile(Image.new("L", (50, 50)))] * 3, 3)]
    assert rows == [(108, 50), (108, 50)]  # pixels of two pictures, for a graphics protocol


# In a pseudo-terminal.


def in_terminal(
    folder: Path, columns: int, *args: str, answer: bytes = b"", **environment: str
) -> tuple[int, str]:
    """Run `vartok show` in a pseudo-terminal of 24 lines, which answers the query of its attributes."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    chosen = {
        name: value for name, value in ENVIRONMENT.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
    }
    process = subprocess.Popen(
        [*PROGRAM, "show", *args],
        cwd=folder,
        env=chosen | {"TERM": "xterm-256color"} | environment,
        stdin=side,
        stdout=side,
        stderr=side,
        close_fds=True,
        start_new_session=True,
    )
    os.close(side)
    found = b""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            data = os.read(main, 1 << 16)
        except OSError:  # the program has ended
            break
        found += data
        if answer and data.endswith(b"\x1b[c"):
            os.write(main, answer)
    os.close(main)
    return process.wait(60), found.decode().replace("\r\n", "\n")


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_without_graphics(pair: Path, columns: int) -> None:
    code, text = in_terminal(pair, columns, "img.png", COLORTERM="truecolor")
    assert code == 0
    lines = re.sub(r"\x1b\[[0-9;]*[mc]|\x1b_G.*?\x1b\\", "", text).splitlines()
    assert len({len(line) for line in lines[:-2]}) == 1
    assert len(lines[0]) == 63  # 21 lines of two pixels, in the proportions of the picture
    assert lines[-2:] == ["img.png", "90 x 60 pixels"]
    assert len(lines) <= 23


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_a_terminal_without_colors(pair: Path, environment: dict[str, Any]) -> None:
    code, text = in_terminal(pair, 80, "img.png", "no.png", **environment)
    assert code == 3
    assert "\x1b" not in text
    assert "vartok: no.png: no such file or folder" in text


@pytest.mark.slow
def test_a_terminal_with_sixel_graphics(pair: Path) -> None:
    code, text = in_terminal(pair, 80, "img.png", answer=b"\x1b[?62;4;22c")
    assert code == 0
    assert '\x1bP0;0;0q"1;1;' in text
    assert text.endswith("img.png\n90 x 60 pixels\n")


def test_no_png_goes_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module("vartok.cli.show")
    monkeypatch.setattr("sys.stdout", type("Terminal", (io.StringIO,), {"isatty": lambda _: True})())
    assert module._parse_target(None, [], False) is None
    with pytest.raises(typer.BadParameter, match="stdout is a terminal"):
        module._parse_target("-", [], False)
