"""Files as people have them: each is read with the right configuration, or refused in a line that helps."""

import argparse
import dataclasses
import gzip
import io
import json
import math
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_cases import ASSUMED, same
from noise import bare, draw
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from vartok.checkpoints import CODEBOOK, HITS, CheckpointFile, read_checkpoint
from vartok.checkpoints.known import KNOWN
from vartok.config import TokenizerConfig, VarConfig
from vartok.errors import CheckpointError
from vartok.schedule import VAR_512, VAR_1024, Schedule, square

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

TINY = TokenizerConfig(
    vocab_size=16, z_channels=4, autoencoder=VarConfig(ch=32, ch_mult=(1,), num_res_blocks=1)
)
"""VAR's architecture and schedule, as small as it gets."""

THREE = dataclasses.replace(TINY, patch_nums=square(1, 2, 4), share_quant_resi=0, using_znorm=True)
CONV = "encoder.mid.attn_1.proj_out.weight"
State = dict[str, Any]


def under(prefix: str, tensors: State) -> State:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def compiled(tensors: State, part: str) -> State:
    """Names after torch.compile of one part."""
    return {name.replace(f"{part}.", f"{part}._orig_mod.", 1): t for name, t in tensors.items()}


def sides(schedule: Schedule) -> tuple[int, ...]:
    return tuple(side for side, _ in schedule)


def trainer_file(schedule: Schedule) -> State:
    """The keys that VAR's train.py saves."""
    config = {"patch_nums": sides(schedule), "resos": (16, 32), "label_smooth": 0.0, "prog_it": 0}
    parts = {"vae_local": draw(TINY), "var_wo_ddp": {"word_embed.weight": torch.zeros(2)}, "var_opt": {}}
    args = OrderedDict(pn="512", patch_nums=sides(schedule), depth=16, resos=None)
    return {"epoch": 3, "iter": 0, "trainer": {"config": config, **parts}, "args": args}


def vae_trainer_file(**args: Any) -> State:
    """The keys that trainers of VAR's VQVAE save."""
    parts = {"vae_wo_ddp": draw(THREE, 1), "vae_ema": draw(THREE), "disc_wo_ddp": {"a": torch.zeros(1)}}
    return {"epoch": 3, "trainer": parts, "args": args}


def lightning() -> State:
    model = {**under("vae.", draw(THREE)), "loss.discriminator.weight": torch.zeros(2)}
    hyper = {"lr": 1e-4, "model": {"v_patch_nums": [1, 2, 4], "using_znorm": True, "quant_resi": 0.5}}
    return {"pytorch-lightning_version": "2.1", "state_dict": model, "hyper_parameters": hyper, "loops": {}}


SWITTI = {"vocab_size": 16, "z_channels": 4, "ch": 32, "test_mode": True, "share_quant_resi": 4}
HART = {
    "architectures": ["HARTAutoEncoderWithDisc"],
    "model_type": "hart_autoencoder_with_disc",
    "quantizer_type": "var_hybrid",
    "v_patch_nums": sides(VAR_1024),
    "using_znorm": False,
    "quant_resi": 0.5,
    "ch_mult": [1],
    "levels": [8, 8, 8, 6, 5],
    **SWITTI,
}
DIFFUSERS = {
    "_class_name": "VQVAE",
    "_diffusers_version": "0.31.0",
    "num_vq_embeddings": 16,
    "latent_channels": 4,
    "patch_nums": [1, 2, 4],
    "share_quant_resi": 0,
    "using_znorm": True,
    "quant_resi": 0.5,
}


def of(schedule: Schedule, **values: Any) -> TokenizerConfig:
    return dataclasses.replace(TINY, patch_nums=schedule, **values)


def hart_tensors() -> State:
    tensors = draw(of(VAR_1024))
    decoder = {name: t for name, t in tensors.items() if name.startswith(("decoder.", "post_quant_conv."))}
    second = {name.replace(".", "2.", 1): tensor.clone() for name, tensor in decoder.items()}
    return {**under("vae.", {**tensors, **second}), "disc.conv.weight": torch.zeros(3)}


def tied(tensors: State) -> State:
    phi = "quantize.quant_resi.qresi_ls.{}.weight"
    return {**tensors, **{phi.format(i): tensors[phi.format(0)] for i in range(4)}}


PLAIN = tuple(ASSUMED)
Z = ("using_znorm", "quant_resi")

# By name: the saved content, a config.json or None, the configuration, the assumed values, other notes.
READ: dict[str, tuple[Callable[[], State], State | None, TokenizerConfig, tuple[str, ...], tuple[str, ...]]]
READ = {
    "the published file's kind": (lambda: draw(TINY), None, TINY, PLAIN, ()),
    "parameters": (lambda: {n: nn.Parameter(t) for n, t in draw(TINY).items()}, None, TINY, PLAIN, ()),
    "DDP": (lambda: {"model": under("module.", draw(TINY))}, None, TINY, PLAIN, ()),
    "FSDP": (lambda: under("_fsdp_wrapped_module.", draw(TINY)), None, TINY, PLAIN, ()),
    "compiled": (lambda: under("_orig_mod.", draw(TINY)), None, TINY, PLAIN, ()),
    "compiled DDP": (lambda: under("module._orig_mod.", draw(TINY)), None, TINY, PLAIN, ()),
    "compiled encoder": (lambda: compiled(draw(TINY), "encoder"), None, TINY, PLAIN, ()),
    "compiled halves": (
        lambda: compiled(compiled(draw(TINY), "encoder"), "decoder"),
        None,
        TINY,
        PLAIN,
        (),
    ),
    "model and ema": (
        lambda: {"model": draw(TINY, 1), "ema": draw(TINY), "step": 7},
        None,
        TINY,
        PLAIN,
        ("the file holds 2 tokenizers, under ['model', 'ema']: took ema, the EMA weights; ",),
    ),
    "Lightning": (lightning, None, THREE, (), ()),
    "Lightning, VQGAN's way": (
        lambda: {
            "state_dict": {
                **draw(TINY),
                "loss.discriminator.main.0.weight": torch.zeros(2),
                "loss.logvar": torch.zeros(()),
                "model_ema.encoderconv_inweight": torch.zeros(2),
            },
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "a.ckpt"}},
        },
        None,
        TINY,
        PLAIN,
        ("modules beside the tokenizer are not read: loss, model_ema",),
    ),
    "VAR's trainer": (lambda: trainer_file(VAR_512), None, of(VAR_512), Z, ()),
    "a VQVAE trainer": (
        lambda: vae_trainer_file(patch_nums=[1, 2, 4], vqnorm=1, vocab_size=16),
        None,
        THREE,
        ("quant_resi",),
        ("the file holds 2 tokenizers",),
    ),
    "Namespace": (
        lambda: {
            "model": draw(THREE),
            "args": argparse.Namespace(pn="1_2_4", using_znorm=True, quant_resi=0.5, lr=[1e-4], ema=None),
        },
        None,
        THREE,
        (),
        (),
    ),
    "a pipeline": (
        lambda: {
            "vqvae": draw(TINY),
            "text": {"emb.weight": torch.zeros(2)},
            "config": {"vocab_size": 30522},
        },
        None,
        TINY,
        PLAIN,
        ("config is not used: it states vocab_size 30522, but the tensors have 16",),
    ),
    "no counts": (lambda: {n: t for n, t in draw(TINY).items() if n != HITS}, None, TINY, PLAIN, ()),
    "tied": (lambda: tied(draw(TINY)), None, TINY, PLAIN, ()),
    "Switti 512": (lambda: draw(of(VAR_512)), {**SWITTI, "reso": 512}, of(VAR_512), (), ()),
    "Switti 1024": (lambda: draw(of(VAR_1024)), {**SWITTI, "reso": 1024}, of(VAR_1024), (), ()),
    "another's reso": (lambda: draw(TINY), {"reso": 512, "depth": 24}, TINY, PLAIN, ()),
    "HART": (
        hart_tensors,
        HART,
        of(VAR_1024, last_phi=False),
        (),
        ("modules beside the tokenizer are not read: decoder2, post_quant_conv2",),
    ),
    "diffusers": (lambda: draw(THREE), DIFFUSERS, THREE, (), ()),
    "another's config.json": (
        lambda: draw(TINY),
        {"model_type": "clip", "vocab_size": 49408, "patch_nums": [1]},
        TINY,
        PLAIN,
        ("config.json beside it is not used: it states vocab_size 49408, but the tensors have 16",),
    ),
    "a schedule of other phis": (
        lambda: draw(of(square(*range(1, 11)), share_quant_resi=0)),
        {"patch_nums": [1, 2]},
        of(TINY.patch_nums, share_quant_resi=0),
        PLAIN,
        ("config.json beside it is not used: it states 2 phis, but the tensors have 10",),
    ),
    "a schedule of another length": (
        lambda: draw(TINY),
        {"patch_nums": [1, 2, 4]},
        TINY,
        PLAIN,
        ("config.json beside it is not used: it states 3 scales, but the tensors have 10",),
    ),
    "many configurations": (
        lambda: {
            "model": draw(TINY),
            "config": {"patch_nums": sides(VAR_512)},
            "args": {"patch_nums": "1_2_3_4_5_6_7_8_9_10", "using_znorm": True},
            **{f"args{i}": {"ch": 64} for i in range(5)},
        },
        None,
        of(VAR_512),
        Z,
        (
            "args is not used: it states another patch_nums",
            "args0 is not used: it states ch 64, but the tensors have 32",
            "args1 is not used: it states ch 64",
            "3 more configurations in the file are not used",
        ),
    ),
    "a schedule that cannot be": (
        lambda: {"model": draw(TINY), "args": {"patch_nums": [4, 2]}},
        None,
        TINY,
        PLAIN,
        ("args is not used: patch_nums: scale 1, 4x4, is higher or wider than the last scale, 2x2",),
    ),
}


def beside(folder: Path, config: State | None) -> None:
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("case", READ)
def test_a_file_is_read_with_the_right_configuration(tmp_path: Path, case: str) -> None:
    make, stated, config, assumed, others = READ[case]
    content = make()
    beside(tmp_path, stated)
    flat = all(type(tensor) is Tensor for tensor in content.values())
    path = tmp_path / ("model.safetensors" if stated and flat else "model.pth")
    bare(path, content) if path.suffix == ".safetensors" else torch.save(content, path)
    found = read_checkpoint(path)
    assert found.config == config
    assert found.notes[len(others) :] == tuple(ASSUMED[key] for key in assumed)
    assert all(note.startswith(other) for note, other in zip(found.notes, others, strict=False))
    if case != "tied":
        assert same(found.tensors, draw(config))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_other_precisions_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    half = {name: tensor.to(dtype) for name, tensor in draw(TINY).items()}
    torch.save(half, tmp_path / "half.pth")
    assert same(read_checkpoint(tmp_path / "half.pth").tensors, half)


def saved(content: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x")
    return buffer.getvalue()


def changed(name: str, change: Callable[[Tensor], Tensor]) -> State:
    tensors = draw(TINY)
    return {**tensors, name: change(tensors[name])}


def with_value(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.index_fill(0, torch.tensor([0]), value)


def without(*parts: str) -> State:
    return {name: t for name, t in draw(TINY).items() if not name.startswith(parts)}


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:7c3e\nsize 436075834\n"
PAGE = "download the file itself; a page comes instead where a login or a licence is asked for"
CUT = "it may be cut short: copy or download it again"
SAVE = "save the model's state_dict() by torch.save, or as safetensors"
ALONE = "which vartok never loads: save its state_dict() alone"
FINITE = "holds NaN or infinite values: its training diverged or the file is damaged: name another"
OTHERS = "tokenizers without VAR's codebook are not read, as Infinity's bitwise ones and VQGANs"

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "Git LFS": (lambda: POINTER, "is a Git LFS pointer, not the file: git lfs pull gets the file"),
    "git-annex": (
        lambda: b"/annex/objects/SHA256E-s4--7c.pth\n",
        "is a git-annex pointer, not the file: git annex get gets the file",
    ),
    "HTML": (lambda: b"\n<!DOCTYPE html><html>", f"is an HTML page, not the file: {PAGE}"),
    "XML": (
        lambda: b'<?xml version="1.0"?><Error/>',
        f"is XML, such as a server's error, not the file: {PAGE}",
    ),
    "JSON": (
        lambda: b'{"args":{"weight_map": {}}}',
        "is JSON, not weights: name the .safetensors or .pth file beside it",
    ),
    "empty": (lambda: b"", f"is empty: {CUT}"),
    "zeros": (lambda: bytes(999), f"begins with zeros alone, as a download that was interrupted: {CUT}"),
    "cut .pth": (lambda: saved(draw(TINY))[:-999], f"is not a whole PyTorch file: {CUT}"),
    "cut safetensors": (lambda: to_safetensors(draw(TINY))[:-9], f"): {CUT}"),
    "gzip": (lambda: gzip.compress(b"x"), "is compressed: unpack it, and name the file inside"),
    "npz": (npz, f"is an .npz of arrays, not weights: {SAVE}"),
    "npy": (lambda: b"\x93NUMPY\x01", f"is a .npy array, not weights: {SAVE}"),
    "HDF5": (lambda: b"\x89HDF\r\n", f"is an HDF5 file: {SAVE}"),
    "zip": (
        lambda: zipped("a/model.pth"),
        "is a zip that torch.save did not write: unpack it, and name the file inside",
    ),
    "TorchScript": (
        lambda: zipped("a/constants.pkl"),
        f"is a TorchScript archive, which vartok never runs: {SAVE}",
    ),
    "a whole module": (lambda: saved(nn.ReLU()), f" (torch.nn.modules.activation.ReLU), {ALONE}"),
    "a Path": (
        lambda: saved({"model": draw(TINY), "out": Path("a")}),
        f" ({type(Path()).__module__}.{type(Path()).__name__}), ",
    ),
    "NaN": (lambda: saved(changed(CONV, with_value(math.nan))), f"tensor {CONV} {FINITE}"),
    "inf": (lambda: saved(changed(CONV, with_value(math.inf))), f"tensor {CONV} {FINITE}"),
    "sparse": (lambda: saved(changed(CONV, Tensor.to_sparse)), "a dense tensor: save it after .to_dense()"),
    "int8": (lambda: saved(changed(CONV, Tensor.char)), "save the weights as they were before their quant"),
    "a transformer": (
        lambda: saved({"word_embed.weight": torch.zeros(2), "blocks.0.attn.mat_qkv.weight": torch.zeros(2)}),
        f"has no tensor {CODEBOOK}: not a VAR tokenizer: it holds a next-scale transformer; name the file of",
    ),
    "no codebook": (lambda: saved(without("quantize.")), f"not a VAR tokenizer: {OTHERS}"),
    "one part of two": (
        lambda: saved(without("decoder.")),
        "has no tensor decoder.conv_in.weight of shape 32",
    ),
    "an encoder of another kind": (
        lambda: saved(without("encoder.down.")),
        "has no tensor encoder.down.0.block.0.conv1.weight: not a VAR tokenizer",
    ),
    "two of equal rank": (
        lambda: saved({"vae": draw(TINY), "best": draw(TINY, 1)}),
        "which one to read is not clear: vartok convert writes the one whose key it is given",
    ),
    "no grids": (
        lambda: saved(draw(THREE)),
        "has 3 scales, but does not say their grids (patch_nums): vartok convert adds the grids",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_is_refused_in_a_line_that_helps(tmp_path: Path, case: str) -> None:
    make, line = REFUSED[case]
    path = tmp_path / "vae_ch160v4096z32.pth"
    path.write_bytes(make())
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    shown = f"{error.value}: {error.value.hint}" if error.value.hint else str(error.value)
    assert shown.startswith(f"{path}: ")
    assert line in shown
    assert len(shown.removeprefix(str(path))) < 300
    assert "\n" not in shown


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is not JSON"),
        (b'{"reso": 512', "it is not JSON"),
        (b"[" * 99_999, "it is not JSON"),
        (b"\xff\xfe{}", "it is not JSON"),
        (b"[1]", "it is not a JSON object of up to 1,048,576 bytes"),
        (b" " * (1 << 20) + b"{}", "it is not a JSON object of up to 1,048,576 bytes"),
        (None, "it is a folder"),
    ],
)
def test_a_broken_config_json_is_refused_unless_the_file_tells_all(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = bare(tmp_path / "model.safetensors", draw(TINY))
    config = tmp_path / "config.json"
    config.mkdir() if content is None else config.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"safetensors: config.json beside it cannot be read: {reason}"):
        read_checkpoint(path)
    metadata = {"format": "vartok.checkpoint", "version": "1", "config": TINY.to_json()}
    path.write_bytes(to_safetensors(draw(TINY), metadata))
    assert read_checkpoint(path).notes == ()


def named(path: Path, name: str) -> CheckpointFile:
    known = KNOWN[name]
    return CheckpointFile(path, name, config=known.config, expected=known.expected, key=known.key)


def test_a_name_tells_what_the_file_of_varsr_does_not(tmp_path: Path) -> None:
    torch.save(trainer_file(VAR_512), tmp_path / "VQVAE.pth")
    found = read_checkpoint(named(tmp_path / "VQVAE.pth", "varsr"))
    assert (found.config, found.notes) == (of(VAR_512, last_phi=False), ())


def test_what_a_file_states_wins_over_what_is_known_of_its_name(tmp_path: Path) -> None:
    beside(tmp_path, {"v_patch_nums": [1, 2, 4], "share_quant_resi": 0, "using_znorm": True})
    found = read_checkpoint(named(bare(tmp_path / "model.safetensors", draw(THREE)), "hart"))
    assert found.config == dataclasses.replace(THREE, last_phi=False)
    assert found.notes == (
        "the using_znorm known of hart is not used: it states another using_znorm",
        "the patch_nums known of hart is not used: it states 14 phis, but the tensors have 3",
    )
