"""`--dry-run` prints what would be read and written, loads no model and writes nothing."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import Vartok, names, save
from token_data import image_tokens

from vartok import loading


@pytest.fixture
def no_model(vartok: Vartok, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every load of a checkpoint fail."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a checkpoint was loaded")

    monkeypatch.setattr(loading, "load", load)


@pytest.mark.usefixtures("no_model")
def test_encode(vartok: Vartok, here: Path) -> None:
    save(here / "in" / "a.png", 0, 8, 8)
    save(here / "in" / "s" / "b.png", 0, 8, 8)
    with tarfile.open(here / "in" / "c.tar", "w") as tar:
        tar.add("in/a.png")
    before = names(here)
    run = vartok("encode", "-r", "in", "missing.png", "-o", "out", "--dry-run", code=3)
    assert run.stdout.splitlines() == [
        "in/a.png -> out/a.tokens.npz",
        "in/c.tar -> out (a file for each picture)",
        "in/s/b.png -> out/s/b.tokens.npz",
    ]
    assert "vartok: missing.png: no such file or folder" in run.stderr
    assert "dry run: planned 3, 1 failed" in run.stderr
    assert vartok("encode", "in/a.png", "-n", "-o", "all.jsonl").stdout == "in/a.png -> all.jsonl\n"
    assert vartok("encode", "-n", stdin=b"x").stdout == "standard input -> stdout\n"
    assert names(here) == before
    image_tokens().save(here / "in" / "a.tokens.npz")
    assert "a.tokens.npz exists: set --force" in vartok("encode", "in/a.png", "-n", code=1).stderr


@pytest.mark.usefixtures("no_model")
def test_decode(vartok: Vartok, here: Path) -> None:
    image_tokens().save(here / "a.tokens.npz")
    np.save(here / "b.npy", np.zeros((2, 680), np.uint16))
    run = vartok("decode", "a.tokens.npz", "b.npy", "-o", "out", "--maps", "-n")
    assert run.stdout.splitlines() == [
        "a.tokens.npz -> out/a.maps.png",
        "b.npy -> out (a file for each picture)",
    ]
    keyed = vartok("decode", "a.tokens.npz", "--keys", "x", "-n").stdout
    assert keyed == "a.tokens.npz -> a.decoded.png (if it has one of the keys)\n"
    assert names(here) == ["a.tokens.npz", "b.npy"]


@pytest.mark.usefixtures("no_model")
def test_files_of_the_other_kind(vartok: Vartok, here: Path) -> None:
    save(here / "a.png", 0, 8, 8)
    save(here / "b.png", 0, 8, 8).rename("b.npz")
    image_tokens().save(here / "t.npz")
    shutil.copy("t.npz", "t.png")
    assert "a.png: is a picture by its name" in vartok("decode", "a.png", "-n", code=1).stderr
    assert "t.npz: holds tokens" in vartok("encode", "t.npz", "-n", code=1).stderr
    assert vartok("decode", "t.png", "-n").stdout == "t.png -> t.decoded.png\n"
    assert vartok("encode", "b.npz", "-n").stdout == "b.npz -> b.tokens.npz\n"


def test_dataset(vartok: Vartok, here: Path, request: pytest.FixtureRequest) -> None:
    save(here / "in" / "a.png", 0, 8, 8)
    save(here / "in" / "b.png", 0, 8, 8)
    build = ["dataset", "in", "-o", "out", "--shard-size", 1, "--size", 16]
    vartok(*build, "-q")
    request.getfixturevalue("no_model")
    before = names(here)
    done = vartok(*build, "-n")
    assert (done.stdout, done.stderr) == (
        "",
        "vartok: dry run: 0 of 2 input shards to be read, 0 picture files among them, into out\n",
    )
    (here / "out" / "data" / "00001-0000.parquet").unlink()
    assert vartok(*build, "-n").stdout == "in/b.png -> out/data/00001-0000.parquet\n"
    assert names(here) == [name for name in before if not name.endswith("00001-0000.parquet")]
    shutil.rmtree(here / "out")
    found = json.loads(vartok(*build, "--fit", "bucket", "--shard", "1/2", "-n", "--json").stdout)
    assert (found["input_shards"], len(found["to_do"])) == (2, 1)
    assert found["to_do"][0]["output"] == "data/*/00001-0000.parquet"
    assert "holds no data set" in vartok("dataset", "in", "-o", "in", "-n", code=1).stderr
    assert "--zoom" in vartok(*build, "--fit", "pad", "--zoom", 2, "-n", code=2).stderr
    assert not (here / "out").exists()
