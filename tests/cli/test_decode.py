"""`vartok decode` and `vartok inspect`: pictures of tokens, and token files that are wrong."""

import contextlib
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import (
    NOT_A_PICTURE,
    QUICK,
    count_frames,
    decoded_pixels,
    pixels,
    tokens_of,
)
from conftest import Vartok, names, save
from PIL import Image

import vartok as library
from vartok.images import Fit, read_picture
from vartok.token_files import dump_npz


def test_inspect(vartok: Vartok, here: Path, tokenizer: library.Tokenizer) -> None:
    save(here / "img.png", width=300, height=200)
    vartok("encode", "img.png", "img.png", "-o", "all.jsonl", "--zoom", "1.125", "--resample", "adm")
    first, second = (
        json.loads(line) for line in vartok("inspect", "all.jsonl", "--json").stdout.splitlines()
    )
    assert first == second
    assert first["file"] == "all.jsonl"
    assert first["model"]["fingerprint"] == tokenizer.fingerprint
    assert (first["image"]["zoom"], first["image"]["resample"]) == (1.125, "adm")
    assert first["tokens"] == 680
    [item, _] = tokens_of((here / "all.jsonl").read_bytes())
    assert first["first"] == [scale.ravel()[:8].tolist() for scale in item.scales]
    text = vartok("inspect", stdin=(here / "all.jsonl").read_bytes()).stdout
    for part in (
        "standard input",
        "img.png, 300 x 200 pixels",
        "256 x 256 pixels, crop, zoom 1.125, adm, float32",
        "680 in 10",
        "\n     1      1x1  ",
    ):
        assert part in text
    for index in item.scales[3].ravel()[:8]:
        assert str(index) in text


def test_scales_and_strip(vartok: Vartok, here: Path, tokenizer: library.Tokenizer) -> None:
    save(here / "img.png")
    vartok("encode", "img.png", "-o", "img.npz", "--size", 64)
    [item] = tokens_of((here / "img.npz").read_bytes())
    vartok("decode", "img.npz", "--scales", 4, "-o", "four.png")
    assert (pixels(here / "four.png") == decoded_pixels(tokenizer, item, 4)).all()
    vartok("decode", "img.npz")
    vartok("decode", "img.npz", "--strip")
    strip = pixels(here / "img.strip.png")
    assert strip.shape == (64, 10 * 64, 3)
    assert (strip[:, 3 * 64 : 4 * 64] == pixels(here / "four.png")).all()
    assert (strip[:, 9 * 64 :] == pixels(here / "img.decoded.png")).all()
    assert (pixels(here / "img.decoded.png") == decoded_pixels(tokenizer, item)).all()
    short = pixels(vartok("decode", "img.npz", "--strip", "--scales", 2, "-o", "-").stdout_bytes)
    assert (short == strip[:, : 2 * 64]).all()
    assert "from 1 to 10" in vartok("decode", "img.npz", "--scales", 11, "-o", "x.png", code=1).stderr


def test_animations_and_maps(vartok: Vartok, here: Path, tokenizer: library.Tokenizer) -> None:
    save(here / "img.png", width=64, height=48)
    vartok("encode", "img.png", "-o", "img.npz", *QUICK, "--fit", "pad")
    vartok("decode", "img.npz", "--animate", "--frame-time", 0.1, "--loops", 3)
    with Image.open(here / "img.animated.webp") as picture:
        assert (picture.format, picture.size, count_frames(picture)) == ("WEBP", (64, 64), 2)
        picture.load()
        assert (picture.info["loop"], picture.info["duration"]) == (3, 2000)  # of the last frame
    vartok("decode", "img.npz", "--animate", "-o", "x.apng", "--restore-size")
    with Image.open(here / "x.apng") as picture:
        assert (picture.format, picture.size, count_frames(picture)) == ("PNG", (64, 48), 2)
    vartok("decode", "img.npz", "--animate", "--restore-size", "-o", "x.apng", "--skip-existing")

    vartok("decode", "img.npz", "--maps")
    [item] = tokens_of((here / "img.npz").read_bytes())
    assert (pixels(here / "img.maps.png") == library.maps.draw_maps(tokenizer, item)).all()
    vartok("decode", "img.npz", "--maps", "--skip-existing")

    for options, told in (
        (["--maps", "--strip"], "--strip, --animate and --maps contradict"),
        (["--loops", "2"], "--loops is only for animations: set --animate"),
        (["--frame-time", "2"], "--frame-time is only for animations: set --animate"),
        (["--animate", "--frame-time", "0"], "--frame-time must be from 0.02 to 10 seconds"),
        (["--animate", "-o", "x.jpg"], ".webp, .gif, .png, .apng"),
        (["--maps", "--restore-size"], "leave --restore-size out"),
        (["--maps", "-o", "x.npy"], "unknown suffix"),
        (["--format", "gif"], "not 'gif'"),
    ):
        assert told in " ".join(vartok("decode", "img.npz", *options, code=2).stderr.split())


def test_files_of_the_first_scales_only(vartok: Vartok, here: Path) -> None:
    save(here / "img.png", width=64, height=64)
    given = ["--size", 64, "--schedule", "1,2,3,4"]
    vartok("encode", "img.png", "-o", "full.npz", *given)
    assert "5 tokens in" in vartok("encode", "img.png", "-o", "coarse.npz", *given, "--scales", 2).stderr
    [item], [full] = (tokens_of((here / f"{name}.npz").read_bytes()) for name in ("coarse", "full"))
    assert item.schedule == full.schedule
    assert item.grids == full.schedule[:2]
    assert (item.flatten() == full.flatten()[:5]).all()

    for name in ("coarse", "full"):
        vartok("decode", f"{name}.npz", "--strip", "--scales", 2, "-o", f"{name}.png")
    assert (here / "coarse.png").read_bytes() == (here / "full.png").read_bytes()
    vartok("decode", "coarse.npz", "--strip", "-o", "coarse.png", "--skip-existing")  # of the same size
    assert (
        "must be from 1 to 2" in vartok("decode", "coarse.npz", "--scales", 3, "-o", "x.png", code=1).stderr
    )

    [shown] = (json.loads(line) for line in vartok("inspect", "coarse.npz", "--json").stdout.splitlines())
    assert (shown["schedule"], shown["scales"], shown["tokens"]) == ([[n, n] for n in (1, 2, 3, 4)], 2, 5)
    text = vartok("inspect", "coarse.npz").stdout
    assert "5 in the first 2 of 4 scales" in text
    assert "1,2,3,4" in text
    used = json.loads(vartok("inspect-codebook", "--usage", "coarse.npz", "--json").stdout)["usage"]
    assert [scale["tokens"] for scale in used["scales"]] == [1, 4]

    again = ["encode", "img.png", "-o", "coarse.npz", *given, "--skip-existing"]
    assert "scales 2, not 4" in vartok(*again, code=1).stderr
    vartok(*again, "--scales", 2)
    assert "--scales must be from 1 to 4" in vartok(*again[:-1], "--force", "--scales", 5, code=2).stderr


def test_tokens_of_another_checkpoint(vartok: Vartok, here: Path, other_weights: Path) -> None:
    save(here / "img.png", 1)
    save(here / "own.png", 2)
    vartok("encode", "img.png", "-w", other_weights, "-o", "img.npz")
    vartok("encode", "own.png", "-o", "own.npz")
    [line] = vartok("decode", "img.npz", code=1).stderr.splitlines()
    assert line.startswith("vartok: img.npz: ")
    for part in ("other", "vartok-light-v2", "--weights", "--any-weights"):
        assert part in line
    assert not (here / "img.decoded.png").exists()
    assert "decoded 1, 1 failed" in vartok("decode", "img.npz", "own.npz", "-o", "out", code=3).stderr
    right = pixels(vartok("decode", "img.npz", "-o", "-", "-w", other_weights).stdout_bytes)
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
def test_source_names_stay_below_the_folder(vartok: Vartok, here: Path, source: str, place: str) -> None:
    save(here / "img.png")
    given = json.loads(vartok("encode", "img.png", "-o", "-", "--format", "jsonl", *QUICK).stdout)
    given["image"]["source"] = source
    (here / "deep/in/it").mkdir(parents=True)
    (here / "deep/in/it/all.jsonl").write_text(json.dumps(given))
    with contextlib.chdir(here / "deep/in/it"):
        vartok("decode", "all.jsonl", "-o", "out")
    assert names(here) == sorted(["deep/in/it/all.jsonl", f"deep/in/it/out/{place}", "img.png"])


def test_a_token_file_cannot_ask_for_any_amount_of_memory(vartok: Vartok, here: Path) -> None:
    save(here / "img.png")
    vartok("encode", "img.png", "-o", "img.npz", "--fit", "stretch")
    [item] = tokens_of((here / "img.npz").read_bytes())
    for side, strip in ((10_001, []), (4000, ["--strip"])):
        image = dataclasses.replace(item.image, width=side, height=side)
        (here / "big.npz").write_bytes(dump_npz(dataclasses.replace(item, image=image)))
        result = vartok("decode", "big.npz", "--restore-size", *strip, code=1)
        assert "more than the limit of 10" in result.stderr
    assert names(here) == ["big.npz", "img.npz", "img.png"]


def test_a_json_file_of_several_images(vartok: Vartok, here: Path) -> None:
    for name in ("a.png", "b.png"):
        save(here / name)
    vartok("encode", "a.png", "b.png", "-o", "all.jsonl", *QUICK)
    (here / "all.jsonl").rename(here / "all.json")
    result = vartok("decode", "all.json", code=3)
    assert "a token file of several images needs the suffix .jsonl" in result.stderr
    assert names(here) == ["a.png", "all.decoded.png", "all.json", "b.png"]


def test_keys_select_among_token_files(vartok: Vartok, here: Path) -> None:
    for name in ("a.png", "b.png"):
        save(here / name)
        vartok("encode", name, *QUICK)
    (here / "b.decoded.png").touch()
    vartok("decode", "a.tokens.npz", "b.tokens.npz", "--keys", "a.png")
    assert (here / "a.decoded.png").exists()
    for wrong in ("a.png,", ""):
        assert "a key in --keys is empty" in vartok("decode", "a.tokens.npz", "--keys", wrong, code=2).stderr
    assert "keys.txt: no such file" in vartok("decode", "a.tokens.npz", "--keys", "keys.txt", code=1).stderr


def test_beside_the_original(vartok: Vartok, here: Path, tokenizer: library.Tokenizer) -> None:
    save(here / "img.png", width=200, height=128)
    save(here / "other.png", width=128, height=128)
    vartok("encode", "img.png", "--size", 128, "--schedule", "1,8")
    vartok("encode", "other.png", "--size", 128, "--schedule", "1,8")
    item = tokens_of((here / "img.tokens.npz").read_bytes())[0]
    vartok("decode", "img.tokens.npz", "--beside", "img.png")
    sheet = pixels(here / "img.beside.png")
    assert np.array_equal(sheet[:128, :128], read_picture(here / "img.png", Fit(size=(128, 128))).pixels)
    assert np.array_equal(sheet[:128, -128:], decoded_pixels(tokenizer, item))
    assert (sheet[128:] == 0).any()  # a caption
    vartok("decode", "img.tokens.npz", "--beside", "img.png", "--strip", "--scales", 1, "-o", "one.webp")
    (here / "copy.png").write_bytes((here / "img.png").read_bytes())
    for name, notes in (("img.png", 0), ("copy.png", 1)):
        told = vartok("decode", "img.tokens.npz", "--beside", name, "--strip", "-f").stderr
        assert told.count("its tokens are of img.png, by their source, and copy.png is beside it") == notes
    assert np.array_equal(pixels(here / "one.webp")[:128, -128:], decoded_pixels(tokenizer, item, 1))
    run = vartok("decode", "img.tokens.npz", "other.tokens.npz", "--beside", "img.png", "-o", "d/", code=3)
    assert "other.tokens.npz: the picture has 200 x 128 pixels, but the original had 128 x 128" in run.stderr
    assert names(here / "d") == ["img.beside.png"]
    run = vartok("decode", "img.tokens.npz", "--beside", "no.png", "-f", code=1)
    assert run.stderr == "vartok: no.png: no such file or folder\n"
    for option in ("--maps", "--restore-size", "--skip-existing"):
        run = vartok("decode", "img.tokens.npz", "--beside", "img.png", option, code=2)
        assert f"{option} is not for a picture --beside the decoded one" in run.stderr
    assert ".npy" in vartok("decode", "img.tokens.npz", "--beside", "img.png", "-o", "x.npy", code=2).stderr
