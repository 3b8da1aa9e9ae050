"""`vartok inspect-codebook`: its tables, its JSON, and the atlas."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Vartok, names, save
from noise import SMALL, tokenizer
from PIL import Image

import vartok as library
from vartok import drawing
from vartok.atlas import GAP, draw_numbered_atlas
from vartok.checkpoints import read_checkpoint, shipped_checkpoint, write_checkpoint
from vartok.errors import ImageError, TokensError
from vartok.images import to_pixels
from vartok.token_files import parse_json, parse_npz
from vartok.tokens import ImageTokens


@pytest.fixture
def tokens(vartok: Vartok, here: Path) -> list[ImageTokens]:
    """Three pictures' tokens in the folder `tokens`, two in npz files and one in a JSONL file."""
    for seed in range(2):
        save(here / f"{seed}.png", seed)
    save(here / "2.png", 2, 200, 300)
    vartok("encode", "0.png", "1.png", "-o", "tokens")
    vartok("encode", "2.png", "-o", "tokens/rest.jsonl")
    files = sorted((here / "tokens").glob("*.npz"))
    rest = (here / "tokens" / "rest.jsonl").read_text()
    return [*(parse_npz(file.read_bytes()) for file in files), parse_json(rest)]


def test_codebook_alone(vartok: Vartok) -> None:
    report = json.loads(vartok("inspect-codebook", "--json").stdout)
    tokenizer = library.load()
    norms = tokenizer.codebook.norm(dim=1)
    assert report["model"]["fingerprint"] == tokenizer.fingerprint
    assert report["phi"] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert report["schedule"][-1] == [16, 16]
    assert report["usage"] is None
    codebook = report["codebook"]
    assert (codebook["vocab_size"], codebook["channels"], codebook["size_bytes"]) == (4096, 32, 524_288)
    assert codebook["norm"]["maximum"] == pytest.approx(float(norms.max()))
    text = vartok("inspect-codebook").stdout
    for part in ("4,096 of 32 channels, 524,288 bytes", tokenizer.fingerprint, "0,0,1,1,1,2,2,3,3,3"):
        assert part in text


def test_usage_counts_every_token(vartok: Vartok, tokens: list[ImageTokens]) -> None:
    report = json.loads(vartok("inspect-codebook", "--usage", "tokens", "--json").stdout)
    usage = report["usage"]
    assert usage["schedule"] == [list(grid) for grid in tokens[0].schedule]
    for k, scale in enumerate(usage["scales"]):
        seen = np.concatenate([item.scales[k].ravel() for item in tokens])
        assert scale["tokens"] == len(seen)
        assert scale["used"] == len(set(seen.tolist()))
        assert scale["dead"] == 4096 - scale["used"]
        codes, counts = np.unique(seen, return_counts=True)
        assert scale["top"][0]["count"] == counts.max()
        assert scale["top"][0]["code"] == codes[counts.argmax()]
    assert usage["overall"]["tokens"] == 3 * 680


def test_usage_takes_files_and_folders(vartok: Vartok, here: Path, tokens: list[ImageTokens]) -> None:
    several = ["--usage", "tokens/0.tokens.npz", "tokens/1.tokens.npz", "tokens/rest.jsonl"]
    assert (
        vartok("inspect-codebook", *several).stdout == vartok("inspect-codebook", "--usage", "tokens").stdout
    )
    lines = vartok("inspect-codebook", *several).stdout.splitlines()
    assert json.loads(vartok("inspect-codebook", "--usage", "--json", *several[1:]).stdout)["usage"]
    assert "--usage needs TOKENS" in vartok("inspect-codebook", "--usage", "--json", code=2).stderr
    finest = next(line for line in lines if "16x16" in line)
    assert finest.split()[:3] == ["10", "16x16", "768"]


def test_tables_fit_a_terminal_of_80_columns(
    vartok: Vartok, tokens: list[ImageTokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = vartok("inspect-codebook", "--usage", "tokens").stdout
    monkeypatch.setenv("COLUMNS", "80")
    narrow = vartok("inspect-codebook", "--usage", "tokens").stdout
    for text, width in ((wide, 120), (narrow, 80)):
        assert max(map(len, text.splitlines())) <= width
        assert all(line == line.rstrip() for line in text.splitlines())
    figures = [re.findall(r"[\d,.]*\d%?", text) for text in (wide, narrow)]
    assert figures[0] == figures[1]
    assert "coverage" in narrow


def test_images_of_several_schedules(vartok: Vartok, here: Path) -> None:
    save(here / "a.png")
    vartok("encode", "a.png", "--size", "64", "-o", "a.npz")
    vartok("encode", "a.png", "--size", "64", "--schedule", "1,4", "-o", "b.npz")
    vartok("encode", "a.png", "--size", "128", "-o", "c.npz")
    result = vartok("inspect-codebook", "--usage", "a.npz", "b.npz", "c.npz", "--json", code=3)
    assert result.stderr == "vartok: b.npz: has 2 scales, but the first image has 10\n"
    usage = json.loads(result.stdout)["usage"]
    assert usage["schedule"] is None  # two sizes, the same number of scales
    assert usage["scales"][-1]["tokens"] == 16 + 64


def test_files_that_cannot_be_read_are_named(vartok: Vartok, here: Path, tokens: list[ImageTokens]) -> None:
    (here / "bad.npz").write_bytes(b"PK, but no zip")
    result = vartok(
        "inspect-codebook", "--usage", "tokens/0.tokens.npz", "bad.npz", "gone.npz", "--json", code=3
    )
    assert json.loads(result.stdout)["usage"]["overall"]["tokens"] == 680
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == ["bad.npz", "gone.npz"]
    result = vartok("inspect-codebook", "--usage", "bad.npz", code=1)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1


def test_tokens_of_another_codebook(vartok: Vartok, here: Path, tokens: list[ImageTokens]) -> None:
    shipped = read_checkpoint(shipped_checkpoint())
    changed = {name: tensor * 2 for name, tensor in shipped.tensors.items()}
    write_checkpoint(here / "other.safetensors", type(shipped)("other", None, shipped.config, changed))
    result = vartok("inspect-codebook", "-w", "other.safetensors", "--usage", "tokens/0.tokens.npz", code=1)
    assert "the tokens were made with vartok-light-v2" in result.stderr


@pytest.mark.slow
def test_atlas_shows_every_code_once(vartok: Vartok, here: Path) -> None:
    vartok("inspect-codebook", "--atlas", "atlas.png", "--json")
    with Image.open("atlas.png") as image:
        atlas = np.asarray(image)
    assert atlas.shape == (64 * 16, 64 * 16, 3)
    cells = atlas.reshape(64, 16, 64, 16, 3).swapaxes(1, 2).reshape(4096, -1)
    codes = to_pixels(library.load().draw_codes()).reshape(4096, -1)
    assert sorted(map(bytes, cells)) == sorted(map(bytes, codes))
    steps = np.abs(np.diff(atlas.reshape(64, 16, 64, 16, 3).mean((1, 3)), axis=1)).mean()
    shuffled = np.random.default_rng(0).permutation(cells).reshape(64, 64, 256, 3).mean(2)
    assert steps < 0.6 * np.abs(np.diff(shuffled, axis=1)).mean()  # neighbours look alike


def test_options_of_rows_need_rows(vartok: Vartok) -> None:
    assert "--schedule need TOKENS" in vartok("inspect-codebook", "--limit", "3", code=2).stderr


def test_atlas_overwrites_only_by_force(vartok: Vartok, here: Path) -> None:
    (here / "atlas.png").write_bytes(b"mine")
    result = vartok("inspect-codebook", "--atlas", "atlas.png", code=1)
    assert "atlas.png exists: set --force" in result.stderr
    assert (here / "atlas.png").read_bytes() == b"mine"
    tokenizer(here / "small.safetensors", SMALL)
    vartok("inspect-codebook", "-w", "small.safetensors", "--atlas", "atlas.png", "--force")
    assert names(here) == ["atlas.png", "small.safetensors"]
    done = vartok("inspect-codebook", "-w", "small.safetensors", "--html", "codes.html")
    assert done.stderr == "vartok: wrote codes.html; open it in a browser\n"
    assert "Codebook of small" in (here / "codes.html").read_text()
    assert "codes.html exists" in vartok("inspect-codebook", "--html", "codes.html", code=1).stderr
    assert (here / "atlas.png").read_bytes().startswith(b"\x89PNG")


def test_numbered_atlas(vartok: Vartok, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "set --atlas" in vartok("inspect-codebook", "--numbers", code=2).stderr
    small = tokenizer(here / "small.safetensors", SMALL)
    vartok("inspect-codebook", "-w", "small.safetensors", "--atlas", "a.png", "--numbers")
    with Image.open("a.png") as image:
        atlas = np.asarray(image)
    height, width = atlas.shape[0] // 8, atlas.shape[1] // 8
    side = width - GAP
    cells = atlas.reshape(8, height, 8, width, 3).swapaxes(1, 2).reshape(64, height, width, 3)
    shown = cells[:, : side : side // 2, : side : side // 2].reshape(64, -1)  # pictures of 2 pixels a side
    assert sorted(map(bytes, shown)) == sorted(bytes(code) for code in to_pixels(small.draw_codes()))
    assert (cells[:, side:] < 100).any((1, 2, 3)).all()  # a number below each
    monkeypatch.setattr(drawing, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="more than 1,000"):
        draw_numbered_atlas(small)


def test_one_code(vartok: Vartok, tokens: list[ImageTokens], here: Path) -> None:
    code = int(np.bincount(np.concatenate([item.flatten() for item in tokens])).argmax())
    found = json.loads(vartok("inspect-codebook", "tokens", "--code", code, "--json").stdout)
    codes = library.load(device="cpu").codebook
    distances = (codes - codes[code]).norm(dim=1)
    nearest = distances.argsort()[1:9]
    assert [index for index, _ in found["neighbours"]] == nearest.tolist()
    assert [d for _, d in found["neighbours"]] == pytest.approx(distances[nearest].tolist(), rel=1e-5)
    uses = found["uses"]
    for k, (count, used) in enumerate(uses["scales"]):
        cells = sum((item.scales[k] == code).astype(int) for item in tokens)
        assert (count, used) == (3 * cells.size, cells.sum())
        assert uses["maps"][k] == cells.tolist()
    each = [int((item.flatten() == code).sum()) for item in tokens]
    assert (uses["images"], uses["with_code"]) == (3, sum(n > 0 for n in each))
    assert [n for _, n in uses["top"]] == sorted((n for n in each if n), reverse=True)
    shown = vartok("inspect-codebook", "tokens", "--code", code).stdout
    assert f"in {uses['with_code']} of 3 pictures" in shown
    assert re.findall(r"distance (\S+)", shown) == [f"{d:#.3g}" for _, d in found["neighbours"]]


def test_picture_of_one_code(vartok: Vartok, here: Path) -> None:
    small = tokenizer(here / "small.safetensors", SMALL)
    maps = small.encode(np.zeros((1, 8, 8, 3), np.uint8))
    small.image_tokens(maps, ["a.png"])[0].save("a.npz")
    code = int(maps.maps[0].item())
    given = ["inspect-codebook", "-w", "small.safetensors"]
    told = vartok(*given, "a.npz", "--code", code, "--picture", "c.png").stderr
    assert f"drew code {code} in c.png" in told
    with Image.open("c.png") as image:
        assert image.width >= 9 * 96
        drawn = np.asarray(image).min(-1) < 255
    assert drawn[:16].any()  # the heading
    assert drawn[40:90, :64].all()  # its row is below
    assert f"Code {code} of small" in vartok(*given, "--code", code).stdout
    for options, exit_code, text in (
        (["--code", 64], 2, "index 64 is outside the vocabulary of 64"),
        (["--picture", "d.png"], 2, "set --code"),
        (["--code", 1, "--picture", "d.jpg"], 2, "must end in .png"),
        (["--code", 1, "--atlas", "d.png"], 2, "leave --atlas and --html out"),
        (["--code", 1, "--picture", "c.png"], 1, "c.png exists: set --force"),
        (["missing.npz", "--code", 1], 1, "missing.npz: no such file or folder"),
    ):
        assert text in " ".join(vartok(*given, *options, code=exit_code).stderr.split())


def test_a_code_of_the_first_scale_fills_the_picture(tmp_path: Path) -> None:
    small = tokenizer(tmp_path / "small.safetensors", SMALL)
    drawn = small.draw_code(3)
    assert drawn.shape == (3, 3, 8, 8)
    first = small.decode_latent(
        small._model.quantize.scale_latent(torch.tensor([[[3]]]), 0, SMALL.patch_nums)
    )
    assert torch.allclose(drawn[:1], first, atol=1e-6)
    with pytest.raises(TokensError, match="index 64 is outside"):
        small.draw_code(64)
