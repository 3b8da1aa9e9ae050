"""Checkpoints that are read, recognized and written."""

import dataclasses
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import ASSUMED, LIGHT, TEN, refusal, same
from noise import SMALL, bare, draw, save
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from vartok.checkpoints import (
    HITS,
    Checkpoint,
    build_model,
    find_checkpoint,
    read_checkpoint,
    shipped_checkpoint,
    write_checkpoint,
)
from vartok.config import TokenizerConfig, VarConfig
from vartok.errors import CheckpointError, OutputError
from vartok.files import file_sha256
from vartok.schedule import VAR_256, square
from vartok.train import read_settings

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

# Our own format.


@pytest.mark.parametrize("config", [SMALL, TEN, LIGHT, dataclasses.replace(SMALL, using_znorm=True)])
@pytest.mark.parametrize("license", ["MIT", None])
def test_round_trip(tmp_path: Path, config: TokenizerConfig, license: str | None) -> None:
    path = tmp_path / "written.safetensors"
    write_checkpoint(path, Checkpoint("a name", license, config, draw(config)))
    found = read_checkpoint(path)
    assert (found.name, found.license, found.config, found.notes) == ("a name", license, config, ())
    assert same(found.tensors, draw(config))


def test_what_is_written_tells_all(tmp_path: Path) -> None:
    path = tmp_path / "written.safetensors"
    write_checkpoint(path, Checkpoint("a name", "CC0-1.0", SMALL, draw(SMALL)))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata.pop("config")) == json.loads(SMALL.to_json())
    assert metadata == {
        "format": "vartok.checkpoint",
        "version": "1",
        "name": "a name",
        "license": "CC0-1.0",
    }


def test_equal_checkpoints_are_equal_files(tmp_path: Path) -> None:
    checkpoint = Checkpoint("a \x7f\n é", "MIT", SMALL, draw(SMALL))
    for n in range(8):  # safetensors itself orders its metadata by chance
        write_checkpoint(tmp_path / f"{n}.safetensors", checkpoint)
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1


def test_a_checkpoint_is_overwritten_only_when_told(tmp_path: Path) -> None:
    path = save(tmp_path / "there.safetensors", SMALL)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="exists"):
        write_checkpoint(path, read_checkpoint(path))
    assert path.read_bytes() == before
    write_checkpoint(path, Checkpoint("b", None, LIGHT, draw(LIGHT)), overwrite=True)
    assert read_checkpoint(path).config == LIGHT  # and it may be what the tensors were mapped from


def test_a_checkpoint_can_replace_the_file_it_is_mapped_from(tmp_path: Path) -> None:
    path = save(tmp_path / "there.safetensors", SMALL)
    write_checkpoint(path, dataclasses.replace(read_checkpoint(path), name="renamed"), overwrite=True)
    found = read_checkpoint(path)
    assert found.name == "renamed"
    assert same(found.tensors, draw(SMALL))


def test_overrides_win_over_the_files_own_words(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", SMALL)
    assert read_checkpoint(path, {"using_znorm": True}).config == dataclasses.replace(SMALL, using_znorm=True)
    assert "unknown key, 'znorm'" in refusal(path, znorm=True)
    assert "quant_resi" in refusal(path, quant_resi="half")


def test_the_shipped_checkpoint() -> None:
    found = read_checkpoint("shipped")
    assert (found.name, found.license, found.notes) == ("vartok-light-v2", "MIT", ())
    assert found.config == read_settings("light").model


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"version": "2"}, "has version 2 of the checkpoint format, but this vartok reads only version 1"),
        ({"version": "9" * 999}, "has version"),
        ({"version": "2\x1b[31m\n"}, "has version 2 [31m of"),
        ({"version": None}, "has version ?"),
        ({"config": None}, "is not JSON"),
        ({"config": "{"}, "is not JSON"),
        ({"config": "[" * 100_000}, "is not JSON"),
        ({"config": '{"ch": 33}'}, "multiple of 32"),
        ({"config": '{"chan": 32}'}, "unknown key, 'chan'"),
        ({"config": '{"autoencoder": "light", "widths": [64], "depths": [1]}'}, "three numbers each"),
    ],
)
def test_metadata_that_cannot_be_is_refused(tmp_path: Path, metadata: dict[str, Any], reason: str) -> None:
    ours = {"format": "vartok.checkpoint", "version": "1", "config": SMALL.to_json(), **metadata}
    path = tmp_path / "a.safetensors"
    told = {key: value for key, value in ours.items() if value is not None}
    path.write_bytes(to_safetensors(draw(SMALL), told))
    assert reason in refusal(path)


# Files without our metadata.


@pytest.mark.parametrize(
    "kind",
    [
        TEN,
        LIGHT,
        dataclasses.replace(TEN, autoencoder=VarConfig(ch=32, ch_mult=(1, 1, 2, 4), num_res_blocks=2)),
    ],
)
@pytest.mark.parametrize("share", [0, 1, 2, 4, 7])
def test_shapes_tell_the_configuration(tmp_path: Path, kind: TokenizerConfig, share: int) -> None:
    config = dataclasses.replace(kind, share_quant_resi=share)
    found = read_checkpoint(bare(tmp_path / "some file.safetensors", draw(config)))
    assert found.config == config
    assert (found.name, found.license) == ("some file", None)
    assert found.notes == tuple(ASSUMED.values())
    assert same(found.tensors, draw(config))


@pytest.mark.parametrize("kind", [TEN, LIGHT])
def test_no_phis_tell_that_there_are_none(tmp_path: Path, kind: TokenizerConfig) -> None:
    config = dataclasses.replace(kind, quant_resi=0.0)
    found = read_checkpoint(bare(tmp_path / "a.safetensors", draw(config)))
    assert found.config == config
    assert found.notes == (ASSUMED["using_znorm"], ASSUMED["patch_nums"])


@pytest.mark.parametrize("share", [0, 4])
def test_other_than_ten_scales_must_be_told(tmp_path: Path, share: int) -> None:
    config = dataclasses.replace(SMALL, share_quant_resi=share)
    path = bare(tmp_path / "a.safetensors", draw(config))
    assert refusal(path) == "has 3 scales, but does not say their grids (patch_nums)"
    found = read_checkpoint(path, {"patch_nums": [1, 2, 4], "using_znorm": True})
    assert found.config == dataclasses.replace(config, using_znorm=True)
    assert found.notes == (ASSUMED["quant_resi"],)
    if share == 0:
        assert "quant_resi.3.weight" in refusal(path, patch_nums=[1, 2, 3, 4])
    else:
        assert read_checkpoint(path, {"patch_nums": [2, 3]}).config.patch_nums == square(2, 3)
    assert "unknown key, 'patchnums'" in refusal(path, patch_nums=[1, 2, 4], patchnums=[1])
    assert "patch_nums" in refusal(path, patch_nums=[4, 1])


@pytest.mark.parametrize("scales", [None, 3])
def test_use_counts_that_are_missing_or_of_other_scales_do_no_harm(
    tmp_path: Path, scales: int | None
) -> None:
    tensors = draw(TEN)
    del tensors[HITS]
    if scales:
        tensors[HITS] = torch.ones(scales, 64)
    found = read_checkpoint(bare(tmp_path / "a.safetensors", tensors), {"patch_nums": list(VAR_256)})
    assert torch.equal(found.tensors[HITS], torch.zeros(10, 64))


# PyTorch files.


def wrapped(tensors: dict[str, Any], how: str) -> Any:
    def prefixed(prefix: str) -> dict[str, Any]:
        return {prefix + name: tensor for name, tensor in tensors.items()}

    return {
        "plain": tensors,
        "ordered": OrderedDict(tensors),
        "parameters": {name: nn.Parameter(tensor) for name, tensor in tensors.items()},
        "model": {"model": tensors, "epoch": 3},
        "state_dict": {"state_dict": tensors, "optimizer": {"lr": 0.1, "steps": [torch.zeros(3)]}},
        "trainer": {
            "args": "x",
            "trainer": {"vae_local": tensors, "var_wo_ddp": {"head.weight": torch.ones(2)}},
        },
        "vae.": prefixed("vae."),
        "module.": prefixed("module."),
        "both": {"model": prefixed("module.vae.")},
        "beside": {**prefixed("vae."), "transformer.weight": torch.zeros(3)},
    }[how]


HOWS = (
    "plain",
    "ordered",
    "parameters",
    "model",
    "state_dict",
    "trainer",
    "vae.",
    "module.",
    "both",
    "beside",
)


@pytest.mark.filterwarnings("error:Converting a tensor")
@pytest.mark.parametrize("how", HOWS)
def test_state_dicts_are_found_wherever_they_lie(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.pth"
    torch.save(wrapped(draw(TEN), how), path)
    found = read_checkpoint(path)
    assert found.config == TEN
    assert found.name == "a"
    assert same(found.tensors, draw(TEN))
    out = tmp_path / "out.safetensors"
    write_checkpoint(out, found)
    assert same(read_checkpoint(out).tensors, draw(TEN))


def test_a_legacy_file_loads_too(tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    torch.save(draw(TEN), path, _use_new_zipfile_serialization=False)
    assert path.read_bytes()[:2] != b"PK"
    assert same(read_checkpoint(path).tensors, draw(TEN))


def test_a_name_tells_nothing(tmp_path: Path) -> None:
    torch.save(draw(TEN), tmp_path / "a.safetensors")
    bare(tmp_path / "a.pth", draw(TEN))
    for path in tmp_path.iterdir():
        assert read_checkpoint(path).config == TEN


@pytest.mark.parametrize("wrapper", ["_orig_mod", "module", "_fsdp_wrapped_module"])
@pytest.mark.parametrize("part", ["", "encoder.", "decoder.mid.block_1.", "quantize.", "quantize.embedding."])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_wrappers_of_modules_leave_their_names(tmp_path: Path, wrapper: str, part: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    tensors = {
        f"vae.{part}{wrapper}.{name.removeprefix(part)}" if name.startswith(part) else f"vae.{name}": tensor
        for name, tensor in draw(TEN).items()
    }
    torch.save(tensors, path) if suffix == "pth" else bare(path, tensors)
    assert same(read_checkpoint(path).tensors, draw(TEN))


def two(first: str, second: str) -> dict[str, Tensor]:
    """Names of two tokenizers of seeds 0 and 1 in a file, under prefixes."""
    both = ((first, draw(TEN)), (second, draw(TEN, 1)))
    return {prefix + name: tensor for prefix, tensors in both for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("vae.", "vae_ema."),
        ("model.", "ema.module."),
        ("", "ema."),
        ("online_model.", "ema_model."),
        ("state_dict.", "model-EMA."),
    ],
)
def test_the_ema_weights_of_two_tokenizers_are_read(tmp_path: Path, first: str, second: str) -> None:
    path = tmp_path / "a.pth"
    torch.save(two(first, second), path)
    found = read_checkpoint(path)
    assert same(found.tensors, draw(TEN, 1))
    assert found.notes[0].startswith("the file holds 2 tokenizers, under [")
    assert ", the EMA weights; vartok convert writes the other with `key` " in found.notes[0]
    for seed, key in enumerate((first, second)):
        found = read_checkpoint(path, key=key.removesuffix("."))
        assert same(found.tensors, draw(TEN, seed))
        assert found.notes == tuple(ASSUMED.values())


@pytest.mark.parametrize(
    ("first", "second"), [("vae.", "best."), ("", "module."), ("ema_1.", "ema_2."), ("", "schema.")]
)
def test_one_of_several_tokenizers_is_chosen_by_its_key(tmp_path: Path, first: str, second: str) -> None:
    path = tmp_path / "a.pth"
    torch.save(two(first, second), path)
    assert refusal(path).startswith("holds 2 tokenizers, under [")
    for seed, key in enumerate((first, second)):
        assert same(read_checkpoint(path, key=key.removesuffix(".")).tensors, draw(TEN, seed))
    with pytest.raises(CheckpointError, match="no single tokenizer under the key 'none'"):
        read_checkpoint(path, key="none")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_float8_is_read_and_kept(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    tensors = {name: tensor.to(dtype) for name, tensor in draw(TEN).items()}
    torch.save(tensors, path) if suffix == "pth" else bare(path, tensors)
    out = tmp_path / "out.safetensors"
    write_checkpoint(out, read_checkpoint(path))
    found = read_checkpoint(out)
    assert {tensor.dtype for tensor in found.tensors.values()} == {dtype}
    assert same(build_model(found).state_dict(), {name: t.float() for name, t in tensors.items()})


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    tensors = draw(TEN)
    phi = "quantize.quant_resi.qresi_ls.{}.weight"
    tensors[phi.format(1)] = tensors[phi.format(0)]
    rows = torch.cat([tensors["encoder.conv_in.bias"], tensors["encoder.norm_out.bias"]])
    tensors["encoder.conv_in.bias"], tensors["encoder.norm_out.bias"] = rows[:32], rows[32:]
    torch.save(tensors, tmp_path / "tied.pth")
    write_checkpoint(tmp_path / "out.safetensors", read_checkpoint(tmp_path / "tied.pth"))
    assert same(read_checkpoint(tmp_path / "out.safetensors").tensors, tensors)


def test_a_name_is_printable(tmp_path: Path) -> None:
    metadata = {"format": "vartok.checkpoint", "version": "1", "config": SMALL.to_json()}
    path = tmp_path / "a.safetensors"
    path.write_bytes(to_safetensors(draw(SMALL), {**metadata, "name": "a\x1b[31m\nb"}))
    assert read_checkpoint(path).name == "a?[31m?b"
    path.write_bytes(to_safetensors(draw(SMALL), {**metadata, "name": "n" * 5000}))
    assert refusal(path) == "its name has 5,000 characters, more than 4,096"
    path = tmp_path / "caf\udce9.pth"  # the bytes of a Latin-1 name
    torch.save(draw(TEN), path, _use_new_zipfile_serialization=False)
    assert read_checkpoint(path).name == "caf?"


class Harmful:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_file_does_not_run(tmp_path: Path, kind: str) -> None:
    path, harm = tmp_path / "a.pth", tmp_path / "harm"
    content = {**draw(TEN), "extra": Harmful(harm)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    known = "holds Python objects other than tensors ("
    assert refusal(path).startswith(known if kind != "pickle" else "is not a whole PyTorch file, or holds")
    assert "vartok never loads" in refusal(path)
    assert not harm.exists()
    pickle.loads(pickle.dumps(Harmful(harm)))
    assert harm.exists()  # it would have


# Finding.


def test_a_file_a_run_and_the_shipped_checkpoint_are_found(tmp_path: Path) -> None:
    assert find_checkpoint(None) == find_checkpoint("shipped") == shipped_checkpoint()
    with pytest.raises(CheckpointError, match="the folder has no checkpoint"):
        find_checkpoint(tmp_path)
    path = save(tmp_path / "weights.safetensors", SMALL)
    assert find_checkpoint(tmp_path) == find_checkpoint(str(path)) == path
    with pytest.raises(CheckpointError, match=r"none\.pth: no such file or folder"):
        find_checkpoint(tmp_path / "none.pth")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_pipes_and_devices_are_refused_unopened(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "weights.safetensors").mkdir(parents=True)
    pipe = tmp_path / "pipe.pth"
    os.mkfifo(pipe)
    for path, kind in ((pipe, "a pipe"), (Path("/dev/zero"), "a device"), (Path("/dev/null"), "a device")):
        for look in (find_checkpoint, read_checkpoint):
            with pytest.raises(CheckpointError, match=f"{path}: it is {kind}, not a file"):
                look(path)
        with pytest.raises(OSError, match=f"it is {kind}"):
            file_sha256(path)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: it is a folder, not a file"):
        find_checkpoint(run)


@pytest.mark.parametrize("leaf", [torch.zeros(1), 3])
def test_shared_dicts_are_refused_at_once(tmp_path: Path, leaf: object) -> None:
    inner: dict[str, object] = {f"k{i}": leaf for i in range(100)}
    for _ in range(7):
        inner = {f"k{i}": inner for i in range(100)}
    torch.save(inner, tmp_path / "a.pth")
    assert "holds more than 100,000 tensors" in refusal(tmp_path / "a.pth")
