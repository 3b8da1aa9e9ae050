"""`vartok encode`: formats, fits, and tokens that depend on neither batch nor workers."""

from pathlib import Path

import pytest
from commands import NOT_A_PICTURE, QUICK, decoded_pixels, pixels, tokens_of
from conftest import Vartok, names, photo, save
from PIL import Image

import vartok as library
from vartok.images import Fit, read_picture, restore_size, to_tensor
from vartok.schedule import Schedule
from vartok.token_files import dump_json
from vartok.tokens import TokenMaps


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
    assert len({dump_json(item) for item in items}) == 1
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


def test_damaged_pictures_are_refused_or_taken_and_said(vartok: Vartok, here: Path) -> None:
    data = save(here / "whole.png", width=64, height=64).read_bytes()
    (here / "cut.png").write_bytes(data[: len(data) // 2])
    refused = vartok("encode", "cut.png", *QUICK, code=1)
    cause = "is truncated: the file ends before its picture does"
    cure = "set --allow-damaged to take what can be decoded of it"
    assert refused.stderr == f"vartok: cut.png: {cause}: {cure}\n"

    vartok("encode", "whole.png", "-o", "alone.npz", *QUICK)
    args = ["encode", "whole.png", "cut.png", "-o", "out/", *QUICK]
    taken = vartok(*args, "--allow-damaged")
    assert f"cut.png: {cause}; took what can be decoded of it\n" in taken.stderr
    assert "vartok: encoded 2 (1 damaged) in " in taken.stderr
    assert (here / "out/whole.tokens.npz").read_bytes() == (here / "alone.npz").read_bytes()
    tokens = library.load_tokens(here / "out/cut.tokens.npz")
    assert tokens.image.damaged == cause
    assert library.load_tokens(here / "alone.npz").image.damaged is None
    assert library.encode_file("cut.png", size=64, schedule="1,4", allow_damaged=True) == tokens
    assert f'"damaged":"{cause}"' in dump_json(tokens)
    assert f"  damaged     {cause}\n" in vartok("inspect", "out/cut.tokens.npz").stdout

    assert "encoded 0, 2 skipped" in vartok(*args, "--allow-damaged", "--skip-existing").stderr
    kept = vartok(*args, "--skip-existing", code=3).stderr
    assert "cut.tokens.npz was made with other settings (picture damaged, not whole)" in kept


@pytest.mark.parametrize(
    ("options", "fit", "schedule"),
    [
        ([], Fit(), None),
        (["--fit", "pad", "--background", "#204060"], Fit(mode="pad", background=(0x20, 0x40, 0x60)), None),
        (["--fit", "stretch", "--size", "64"], Fit(mode="stretch", size=(64, 64)), None),
        (["--fit", "native"], Fit(mode="native"), None),
        (["--zoom", "1.125", "--size", "128"], Fit(zoom=1.125, size=(128, 128)), None),
        (["--resample", "adm", "--size", "64"], Fit(resample="adm", size=(64, 64)), None),
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
    assert (TokenMaps.stack([item]).flatten() == expected.flatten()).all()
    assert (item.image.width, item.image.height) == (199, 130)
    assert item.image.size == picture.pixels.shape[:2]
    assert (item.image.fit, item.image.zoom, item.image.resample) == (fit.mode, fit.zoom, fit.resample)

    if fit.mode == "crop":
        refused = vartok("decode", "-", "--restore-size", stdin=data, code=1)
        assert (
            "standard input: img.png: a cropped picture cannot get its original size back" in refused.stderr
        )
        assert refused.stdout_bytes == b""
    else:
        restored = pixels(vartok("decode", "-", "--restore-size", stdin=data).stdout_bytes)
        whole = decoded_pixels(tokenizer, item)
        assert (restored == restore_size(whole, width=199, height=130, mode=fit.mode)).all()
        assert restored.shape == (130, 199, 3)


def test_max_pixels(vartok: Vartok, here: Path) -> None:
    save(here / "img.png", width=300, height=300)
    assert (
        "300 x 300 pixels are more than the limit of 89,999"
        in vartok("encode", "img.png", "--max-pixels", 89_999, code=1).stderr
    )
    vartok("encode", "img.png", "--max-pixels", 90_000, *QUICK)
    Image.new("1", (12_000, 9_000)).save(here / "large.png")
    assert "more than the limit of 100,000,000" in vartok("encode", "large.png", code=1).stderr


@pytest.mark.parametrize("fit", ["crop", "native"])
def test_tokens_do_not_depend_on_batches_or_workers(vartok: Vartok, here: Path, fit: str) -> None:
    sizes = [(48, 32), (32, 48), (64, 32), (48, 32), (41, 57)]
    for i in range(16):
        save(here / "in" / f"{i:02}.png", i, *sizes[i % len(sizes)])
    found = {}
    for batch, workers in ((1, 1), (5, 1), (16, 4)):
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
