"""`vartok diff` and `vartok mix`."""

import json
from pathlib import Path

from commands import QUICK, decoded_pixels, pixels, tokens_of
from conftest import Vartok, save

import vartok as library


def test_diff_and_mix(vartok: Vartok, here: Path, tokenizer: library.Tokenizer, other_weights: Path) -> None:
    for n, name in enumerate("ab"):
        save(here / f"{name}.png", n, 64, 64)
        vartok("encode", f"{name}.png", *QUICK, "--zoom", 1.5)
    a, b = "a.tokens.npz", "b.tokens.npz"
    same = vartok("diff", a, "a.png")
    assert "0.0%" in same.stdout  # with the settings of the tokens
    assert not same.stderr
    other = vartok("diff", "b.png", a, "--json", code=1)
    assert json.loads(other.stdout)["differing"] == 1
    assert other.stderr == "vartok: note: the tokens are of two pictures, by their sources: b.png and a.png\n"
    unused = vartok("diff", a, a, "-w", "light", "--device", "cuda").stderr
    assert "--weights was not used" in unused
    assert "--device was not used" in unused

    assert "1 scale of a.tokens.npz" in vartok("mix", a, b, "--scales", 1, "-o", "mixed.npz").stderr
    mixed = vartok("mix", a, b, "--scales", 1, "-o", "-").stdout_bytes
    assert mixed == (here / "mixed.npz").read_bytes()
    [item] = tokens_of(mixed)
    vartok("decode", "mixed.npz", "-o", "mixed.png")
    assert (pixels(here / "mixed.png") == decoded_pixels(tokenizer, item)).all()
    assert "mixed.npz exists" in vartok("mix", a, b, "--scales", 1, "-o", "mixed.npz", code=1).stderr
    assert "--scales must be from 1 to 1" in vartok("mix", a, b, "--scales", 2, "-o", "x.npz", code=1).stderr
    assert "is an input" in vartok("mix", a, b, "--scales", 1, "-o", b, "-f", code=2).stderr
    assert ".npz, .json, .jsonl" in vartok("mix", a, b, "--scales", 1, "-o", "x.png", code=2).stderr

    shown = vartok("diff", "-", a, "-o", "d.png", stdin=mixed, code=1)
    assert "1 picture compared, 1 with other tokens" in shown.stdout
    assert [line.split()[0] for line in shown.stdout.splitlines() if "x" in line] == ["1", "2"]
    assert "drew 1 picture in d.png" in shown.stderr
    assert pixels(here / "d.png").shape[2] == 3
    found = json.loads(vartok("diff", a, "mixed.npz", "--json", code=1).stdout)
    assert found["scales"][0] == {"tokens": 1, "differing": 0}
    assert found["schedule"] == [[1, 1], [4, 4]]
    assert "d.png exists: set --force" in vartok("diff", a, a, "-o", "d.png", code=2).stderr
    (here / "folder.png").mkdir()
    for arguments, told in (
        (("missing.npz",), "missing.npz: no such file or folder"),
        (("",), "empty"),
        (("a.npz", "-o", "d.jpg"), "must end in .png"),
        (("a.png", "-o", "a.png", "--force"), "a.png is an input"),
        (("a.png", "-o", "d.png/x.png"), "d.png is not a folder"),
        (("a.png", "-o", "folder.png", "--force"), "folder.png is not a regular file"),
        (("a.png", "-w", other_weights), "give the checkpoint of the tokens as --weights"),
    ):
        assert told in " ".join(vartok("diff", a, *arguments, code=2).stderr.split())


def test_diff_of_files_with_several_pictures(vartok: Vartok, here: Path) -> None:
    for n in range(3):
        save(here / f"{n}.png", n, 64, 64)
    vartok("encode", "0.png", "1.png", "-o", "a.jsonl", *QUICK)
    vartok("encode", "1.png", "2.png", "-o", "b.jsonl", *QUICK)
    shown = vartok("diff", "a.jsonl", "b.jsonl", code=1).stdout
    assert "1 picture compared, 0 with other tokens; 1 only in A (the first: 0.png);" in shown
    assert "1 only in B (the first: 2.png)" in shown
    with open(here / "b.jsonl", "a") as file:
        file.write("{}\n")
    failed = vartok("diff", "a.jsonl", "b.jsonl", code=2)
    assert "vartok: b.jsonl: " in failed.stderr
    assert "1 picture compared" in failed.stdout
