"""Names of outputs: defaults, -o, folders, conflicts, and files that exist."""

import contextlib
import importlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
from commands import (
    QUICK,
    decoded_pixels,
    indices,
    pixels,
    tokens_of,
)
from conftest import Vartok, names, save
from PIL import Image

import vartok as library


def test_names_of_outputs(vartok: Vartok, here: Path) -> None:
    save(here / "in" / "img.png")
    encoded = vartok("encode", "in/img.png")
    assert encoded.stderr == "vartok: in/img.png: 680 tokens in in/img.tokens.npz\n"
    decoded = vartok("decode", "in/img.tokens.npz")
    assert decoded.stderr == "vartok: in/img.tokens.npz: decoded to in/img.decoded.png\n"
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
    assert (pixels(shown) == decoded_pixels(tokenizer, item)).all()
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
    note = "vartok: note: passed over 1 file of kinds that are not read: 1 .txt"
    assert re.fullmatch(rf"{note}\nvartok: encoded 3 in [\d.]+ s\n", result.stderr)
    assert names(here / "out") == ["a/b/two.tokens.npz", "a/one.tokens.npz", "three.tokens.npz"]
    sources = [tokens_of((here / "out" / name).read_bytes())[0].image.source for name in names(here / "out")]
    assert sources == ["a/b/two.JPG", "a/one.png", "three.webp"]
    vartok("decode", "-r", "out", "-o", "drawn", "--format", "jpg")
    assert names(here / "drawn") == ["a/b/two.decoded.jpg", "a/one.decoded.jpg", "three.decoded.jpg"]
    assert len(vartok("inspect", "-r", "out", "--json").stdout.splitlines()) == 3


def test_a_folder_needs_recursion_and_pictures(vartok: Vartok, here: Path) -> None:
    (here / "in").mkdir()
    assert "in is a folder: set --recursive" in vartok("encode", "in", code=2).stderr
    assert "in: holds no pictures" in vartok("encode", "in", "-r", code=1).stderr


def test_two_inputs_of_one_output(vartok: Vartok, here: Path) -> None:
    save(here / "img.png", 1)
    save(here / "img.jpg", 2)
    for places in ([], ["-o", "out"]):
        result = vartok("encode", "img.png", "img.jpg", *places, code=2)
        assert "img.png and img.jpg" in result.stderr
        assert "--full-names" in result.stderr
    save(here / "a/img.png", 3)
    assert (
        "name the folder above them and set --recursive"
        in vartok("encode", "img.png", "a/img.png", "-o", "out", code=2).stderr
    )
    assert names(here) == ["a/img.png", "img.jpg", "img.png"]
    vartok("encode", "img.png", "img.jpg", "--full-names", *QUICK)
    vartok("decode", "img.png.tokens.npz", "img.jpg.tokens.npz", "-o", "out")
    assert names(here / "out") == ["img.jpg.decoded.png", "img.png.decoded.png"]
    vartok("encode", "img.png", "img.jpg", "-o", "all.jsonl", *QUICK)
    note = "note: 1 output got another name, since another picture of the run has the name: img-2."
    assert note in vartok("decode", "all.jsonl", "-o", "both").stderr
    assert names(here / "both") == ["img-2.decoded.png", "img.decoded.png"]
    vartok("decode", "all.jsonl", "-o", "full", "--full-names")
    assert names(here / "full") == ["img.jpg.decoded.png", "img.png.decoded.png"]


def test_several_results_for_one_output(vartok: Vartok, here: Path) -> None:
    for name in ("a.png", "b.png"):
        save(here / name)
    for output in ("all.npz", "all.json", "a.png", "/dev/null"):
        assert "-o" in vartok("encode", "a.png", "b.png", "-o", output, code=2).stderr
    assert "jsonl" in vartok("encode", "a.png", "b.png", "-o", "-", code=2).stderr
    assert "takes one" in vartok("decode", "a.npz", "b.npz", "-o", "-", code=2).stderr
    assert "jsonl" in vartok("encode", "a.png", "--format", "jsonl", "-o", f"{here}/", code=2).stderr
    assert names(here) == ["a.png", "b.png"]
    vartok("encode", "a.png", "b.png", "-o", "all.jsonl", *QUICK)
    vartok("encode", "a.png", "b.png", "a.png", "-o", "all.jsonl", "--force", *QUICK)
    for output, name in (("-", "the stream"), ("one.png", "one.png")):
        result = vartok("decode", "all.jsonl", "-o", output, code=3)
        more = f"vartok: all.jsonl: has more than one picture, but {name} takes one: the others are left out"
        assert result.stderr.splitlines()[0] == f"{more}: name a folder with --output"
        assert result.stderr.count("all.jsonl") == 1
    assert (
        pixels(here / "one.png") == pixels(vartok("decode", "all.jsonl", "-o", "-", code=3).stdout_bytes)
    ).all()


def test_inputs_are_never_overwritten(vartok: Vartok, here: Path) -> None:
    before = save(here / "img.png").read_bytes()
    result = vartok("encode", "img.png", "-o", "./img.png", "--format", "jsonl", "--force", code=2)
    assert "img.png is an input" in result.stderr
    assert "files end in" in vartok("encode", "img.png", "-o", "img.png", "--force", code=2).stderr
    assert (here / "img.png").read_bytes() == before


def test_existing_outputs_are_kept_without_force(vartok: Vartok, here: Path) -> None:
    save(here / "a.png", 1)
    save(here / "b.png", 2)
    (here / "a.tokens.npz").write_bytes(b"precious")
    result = vartok("encode", "a.png", code=1)
    assert result.stderr.startswith("vartok: a.png: a.tokens.npz exists: set --force")
    result = vartok("encode", "a.png", "b.png", code=3)
    assert [line for line in result.stderr.splitlines() if "exists" in line] == [
        "vartok: a.png: a.tokens.npz exists: set --force to replace it, or --skip-existing to skip it"
    ]
    b = (here / "b.tokens.npz").read_bytes()
    result = vartok("encode", "a.png", "b.png", "--skip-existing", code=3)
    assert "a.tokens.npz exists, but is no whole token file: not a token file: " in result.stderr
    assert "encoded 0, 1 skipped, 1 failed" in result.stderr
    assert (here / "a.tokens.npz").read_bytes() == b"precious"
    vartok("encode", "a.png", "b.png", "--force")
    assert len(tokens_of((here / "a.tokens.npz").read_bytes())) == 1
    assert (here / "b.tokens.npz").read_bytes() == b

    vartok("encode", "a.png", "b.png", "-o", "all.jsonl")
    (here / "a.decoded.png").write_bytes(b"precious")
    assert "exists" in vartok("decode", "a.tokens.npz", code=1).stderr
    assert "exists" in vartok("decode", "all.jsonl", code=3).stderr
    refused = vartok("encode", "b.png", "-o", "all.jsonl", code=1).stderr
    assert refused.startswith("vartok: all.jsonl: exists: set --force to replace it, or --skip-existing")
    refused = vartok("encode", "b.png", "-o", "all.jsonl", "--size", "64", "--skip-existing", code=1).stderr
    assert "all.jsonl: was made with other settings (size 256x256, not 64x64): " in refused
    assert "set --force in place of --skip-existing to replace it, or name another file" in refused
    drawn_before = (here / "b.decoded.png").read_bytes()
    kept = vartok("decode", "all.jsonl", "--skip-existing", code=3).stderr
    assert "a.decoded.png exists, but is no picture: set --force in place of --skip-existing to" in kept
    assert "decoded 0, 1 skipped, 1 failed" in kept
    passed = vartok("encode", "a.png", "b.png", "-o", "all.jsonl", "--skip-existing")
    assert (
        "vartok: note: all.jsonl exists, so all inputs are skipped, even those that it lacks" in passed.stderr
    )
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
def test_file_names_of_any_characters(vartok: Vartok, here: Path, name: str) -> None:
    (here / "in").mkdir()
    save(here / "in.png").rename(here / "in" / name)
    (here / "list").write_bytes(os.fsencode(f"in/{name}\0"))
    result = vartok("encode", "--files-from", "list", "-0", "-o", "out", *QUICK)
    portable = re.sub("[\x1b\n]", "_", name)  # Windows holds no such characters
    base = portable.removesuffix(".png") or ".png"
    assert names(here / "out") == [f"{base}.tokens.npz"]
    assert len(result.stderr.splitlines()) == 1 + (portable != name)  # and the note of another name
    assert result.stderr.replace("\n", "").isprintable()
    with contextlib.chdir(here / "in"):
        vartok("encode", "-o", "../beside.npz", *QUICK, "--", name)
    assert (here / "beside.npz").read_bytes() == (here / "out" / f"{base}.tokens.npz").read_bytes()
    vartok("decode", here / "out" / f"{base}.tokens.npz")
    assert f"{base}.decoded.png" in names(here / "out")


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


def test_another_run_into_the_same_folder(
    vartok: Vartok, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs that another run writes meanwhile are skipped or refused, as earlier ones are."""
    for name in ("a.png", "b.png", "c.png"):
        save(here / name)
    vartok("encode", "b.png", "-o", "theirs.npz")
    theirs = (here / "theirs.npz").read_bytes()
    files: Any = importlib.import_module("vartok.cli.options")
    load = files.load_tokenizer

    def meanwhile(*args: Any, **options: Any) -> library.Tokenizer:
        (here / "b.tokens.npz").write_bytes(theirs)
        tokenizer: library.Tokenizer = load(*args, **options)
        return tokenizer

    monkeypatch.setattr(files, "load_tokenizer", meanwhile)
    skipping = vartok("encode", "a.png", "b.png", "--skip-existing")
    assert skipping.stderr.startswith("vartok: encoded 1, 1 skipped in ")
    refusing = vartok("encode", "b.png", "c.png", code=3)
    assert "b.tokens.npz exists: set --force" in refusing.stderr
    assert (here / "b.tokens.npz").read_bytes() == theirs


def test_a_search_skips_decoded_pictures(vartok: Vartok, here: Path) -> None:
    save(here / "in" / "a.png")
    vartok("encode", "-r", "in")
    vartok("decode", "-r", "in")
    vartok("decode", "-r", "in", "--strip")
    vartok("encode", "-r", "in", "-o", "out")
    assert names(here / "out") == ["a.tokens.npz"]
    vartok("encode", "in/a.decoded.png", "-o", "named.npz")  # a named file is taken


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["--force", "--skip-existing"], "contradict each other"),
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


@pytest.mark.parametrize("name", ["all.jsonl.bz2", "all.json.gz", "all.zip"])
def test_a_compressed_name_is_no_folder(vartok: Vartok, here: Path, name: str) -> None:
    for folder in ("a", "b"):
        save(here / folder / "img.png")
    result = vartok("encode", "-r", "a", "b", "-o", name, code=2)
    assert f"{name} is no name for a folder: end it in / or in .npz" in result.stderr
    assert not (here / name).exists()
