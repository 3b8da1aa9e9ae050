"""`vartok convert`: checkpoints to vartok's format."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from commands import tokens_of
from conftest import Vartok, names, save

import vartok as library
from vartok.checkpoints import read_checkpoint, shipped_checkpoint, write_checkpoint


def test_convert(vartok: Vartok, here: Path, tokenizer: library.Tokenizer) -> None:
    shipped = read_checkpoint(shipped_checkpoint())
    torch.save({"model": dict(shipped.tensors)}, here / "mine.pth")
    found = hashlib.sha256((here / "mine.pth").read_bytes()).hexdigest()
    text = vartok("convert", "mine.pth", "mine.safetensors", "--sha256", found.upper()).stdout
    for part in ("mine\n", "not known", found, "written to mine.safetensors", "note: the file does not say"):
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
    assert "told.safetensors exists: set --force" in vartok(*args, code=1).stderr
    [line] = vartok("convert", "mine.pth", "no.safetensors", "--sha256", "0" * 64, code=1).stderr.splitlines()
    assert line == f"vartok: mine.pth: has sha256 {found}, not {'0' * 64}"
    assert "no-file.pth" in vartok("convert", "no-file.pth", "no.safetensors", code=1).stderr
    assert "img.png: is neither" in vartok("convert", "img.png", "no.safetensors", code=1).stderr
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


def test_convert_keeps_its_input(vartok: Vartok, here: Path) -> None:
    write_checkpoint(here / "a.safetensors", read_checkpoint(shipped_checkpoint()))
    before = (here / "a.safetensors").read_bytes()
    assert "is the input" in vartok("convert", "a.safetensors", "a.safetensors", "-f", code=2).stderr
    assert (
        "the output's name must end in .safetensors" in vartok("convert", "a.safetensors", "-", code=2).stderr
    )
    vartok("convert", "a.safetensors", "new/b.safetensors")
    assert (here / "a.safetensors").read_bytes() == before
    assert names(here) == ["a.safetensors", "new/b.safetensors"]


def test_convert_takes_one_of_several_tokenizers(vartok: Vartok, here: Path) -> None:
    tensors = dict(read_checkpoint(shipped_checkpoint()).tensors)
    halved = {name: tensor / 2 for name, tensor in tensors.items()}
    averaged = {f"module.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"model": halved, "ema": averaged, "step": 5}, here / "both.pth")
    note = (
        "the file holds 2 tokenizers, under ['model', 'ema']: took ema, the EMA weights; "
        "vartok convert writes the other with {} model"
    )
    assert f"note: {note.format('--key')}\n" in vartok("convert", "both.pth", "ema.safetensors").stdout
    for option in ("--key", "--part"):
        result = vartok("convert", "both.pth", "m.safetensors", option, "model", "-f")
        assert "note: the file holds" not in result.stdout
    for name, scale in (("ema", 1), ("m", 2)):
        found = read_checkpoint(here / f"{name}.safetensors").tensors
        assert all(torch.equal(found[key] * scale, tensor) for key, tensor in tensors.items())
    save(here / "img.png")
    assert note.format("key") in vartok("encode", "img.png", "-w", "both.pth").stderr
    torch.save({"a": tensors, "b": halved}, here / "two.pth")
    [line] = vartok("encode", "img.png", "-w", "two.pth", "-f", code=1).stderr.splitlines()
    assert line.endswith(
        "under ['a', 'b']: which one to read is not clear: "
        "vartok convert writes the one whose key it is given"
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
@pytest.mark.parametrize("command", ["convert {} x.safetensors", "encode img.png -w {}"])
def test_a_checkpoint_that_is_no_file_is_refused(vartok: Vartok, here: Path, command: str) -> None:
    os.mkfifo(here / "pipe")
    (here / "folder").mkdir()
    save(here / "img.png")
    for name, reason in (
        ("pipe", "it is a pipe, not a file: save its data in a file first"),
        ("/dev/zero", "it is a device, not a file: save its data in a file first"),
        ("folder", "the folder has no checkpoint: name a checkpoint file, or the folder of a"),
    ):
        [line] = vartok(*command.format(name).split(), code=1).stderr.splitlines()
        assert line.startswith(f"vartok: {name}: {reason}")


def test_a_large_file_of_another_kind_is_refused_unhashed(vartok: Vartok, here: Path) -> None:
    with open(here / "disk.pth", "wb") as file:
        file.truncate(1 << 40)  # sparse; hashing it would take an hour
    assert (
        "disk.pth: begins with zeros alone" in vartok("convert", "disk.pth", "x.safetensors", code=1).stderr
    )


@pytest.mark.parametrize("option", ["--name", "--license"])
def test_a_name_that_is_not_unicode_is_refused(vartok: Vartok, here: Path, option: str) -> None:
    said = vartok("convert", shipped_checkpoint(), "x.safetensors", option, "caf\udce9", code=2).stderr
    assert f"{option} " in said
    assert "'caf\\udce9'" in said
    assert names(here) == []
    controls = vartok("convert", shipped_checkpoint(), "x.safetensors", "--name", "a\nb", code=2).stderr
    assert "--name must be printable text" in controls
