"""Checkpoints that are refused with a reason, and the loading of models."""

import dataclasses
import hashlib
import io
import json
import math
import struct
import tempfile
import time
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import LIGHT, TEN, has_proc, in_a_process, refusal, same
from hypothesis import example, given, settings
from hypothesis import strategies as st
from noise import SMALL, bare, draw, save, shapes
from safetensors.torch import save as to_safetensors
from torch import Tensor

from vartok.checkpoints import (
    CODEBOOK,
    HITS,
    build_model,
    read_checkpoint,
    shipped_checkpoint,
)
from vartok.errors import CheckpointError
from vartok.files import file_sha256
from vartok.schedule import square

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

# What is refused.


def vqgan() -> dict[str, Tensor]:
    """Names as CompVis's VQGAN has them, for a tokenizer of one scale."""
    tensors = draw(TEN)
    for name in [name for name in tensors if "quant_resi" in name or "qkv" in name or name == HITS]:
        del tensors[name]
    for part in ("encoder", "decoder"):
        for letter in "qkv":
            tensors[f"{part}.mid.attn_1.{letter}.weight"] = torch.zeros(64, 64, 1, 1)
            tensors[f"{part}.mid.attn_1.{letter}.bias"] = torch.zeros(64)
    return tensors


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    return {name: t for name, t in {**draw(TEN), **changes}.items() if t is not None}


CONV_OUT = "decoder.conv_out.weight"
REFUSED: list[tuple[dict[str, Tensor], str]] = [
    (changed(**{CONV_OUT: None}), f"has no tensor {CONV_OUT} of shape 3x32x3x3"),
    (changed(**{CODEBOOK: None}), f"has no tensor {CODEBOOK}: not a VAR tokenizer"),
    (
        changed(**{"encoder.conv_in.weight": None}),
        "has no tensor encoder.conv_in.weight: not a VAR tokenizer",
    ),
    (
        changed(**{"encoder.extra": torch.ones(1)}),
        "has an unexpected tensor: encoder.extra",
    ),
    (changed(**{"x" * 999: torch.ones(1)}), "has an unexpected tensor: xxx"),
    (changed(**{CONV_OUT: torch.ones(3, 32, 3)}), f"tensor {CONV_OUT} is 3x32x3, expected 3x32x3x3"),
    (changed(**{CONV_OUT: torch.ones(())}), f"tensor {CONV_OUT} is a scalar, expected 3x32x3x3"),
    (
        changed(**{CONV_OUT: torch.ones(3, 32, 3, 3, dtype=torch.int8)}),
        f"tensor {CONV_OUT} is torch.int8, expected floating point",
    ),
    (
        changed(**{CONV_OUT: torch.ones(3, 32, 3, 3, dtype=torch.complex64)}),
        f"tensor {CONV_OUT} is torch.complex64, expected floating point",
    ),
    (changed(**{CODEBOOK: torch.ones(64)}), f"tensor {CODEBOOK} has 1 axes, too few for a VAR tokenizer"),
    (changed(**{CODEBOOK: torch.ones(0, 8)}), "vocab_size must be a whole number from 1"),
    (changed(**{"encoder.conv_in.weight": torch.ones(0, 3, 3, 3)}), "ch must be a whole number from 1"),
    (
        {name: t for name, t in draw(TEN).items() if not name.startswith("encoder.down.0")},
        "has no tensor encoder.down.0.block.0.conv1.weight: not a VAR tokenizer",
    ),
    (
        {**{name: t for name, t in draw(TEN).items() if name != CODEBOOK}, "quantize.basis": torch.ones(8)},
        f"has no tensor {CODEBOOK}: not a VAR tokenizer",  # binary spherical quantization has no codebook
    ),
    (vqgan(), "has no tensor encoder.down.1.attn.0.qkv.weight of shape 192x64x1x1"),
    ({"a": torch.ones(1)}, f"has no tensor {CODEBOOK}: not a VAR tokenizer"),
]


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize(("tensors", "reason"), REFUSED, ids=[reason[:50] for _, reason in REFUSED])
def test_wrong_tensors_are_named(
    tmp_path: Path, tensors: dict[str, Tensor], reason: str, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "pth":
        torch.save(tensors, path)
    else:
        bare(path, tensors)
    assert reason in refusal(path)


@pytest.mark.parametrize("odd", [torch.ones(3, 32, 3, 3).to_sparse(), torch.ones(3, 32, 3, 3, device="meta")])
def test_tensors_without_plain_values_are_refused(tmp_path: Path, odd: Tensor) -> None:
    path = tmp_path / "a.pth"
    torch.save(changed(**{CONV_OUT: odd}), path)
    reason = refusal(path)
    assert CONV_OUT in reason or "is not a whole PyTorch file" in reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK", "is not a whole PyTorch file"),
        (b"\x80", "is not a whole PyTorch file"),
        (b"A text.\n" * 99, "neither a safetensors nor a PyTorch file"),
        (struct.pack("<Q", 2) + b"{}", f"has no tensor {CODEBOOK}"),
        (struct.pack("<Q", 1 << 62) + b"{}", "is not a whole safetensors file"),
        (struct.pack("<Q", 9) + b"{nonsense", "is not a whole safetensors file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert reason in refusal(path)


def test_no_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "the folder has no checkpoint"
    assert refusal(tmp_path / "none") == "no such file or folder"


def test_a_header_that_claims_terabytes_takes_no_memory(tmp_path: Path) -> None:
    shape = [1 << 24, 1 << 14]
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 << 38]}
    header = json.dumps({CODEBOOK: entry}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(100))
    assert "is not a whole safetensors file" in refusal(path)


@pytest.mark.slow
@has_proc
def test_a_configuration_that_claims_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    config = dataclasses.replace(LIGHT, vocab_size=1 << 24, patch_nums=square(*[1] * 64))  # counts of 4 GiB
    tensors = draw(LIGHT)
    del tensors[HITS]
    path = save(tmp_path / "a.safetensors", config, tensors)
    code = """
from vartok.errors import CheckpointError, OutputError
before = peak()
try:
    checkpoints.read_checkpoint(path)
except CheckpointError as error:
    print(error)
print(peak() - before)
"""
    reason, grown = in_a_process(code, path)
    assert reason == f"{path}: tensor {CODEBOOK} is 64x8, expected 16777216x8"
    assert float(grown) < 100  # MiB


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "ckpt"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "safetensors":
        save(path, TEN)
    else:
        torch.save(draw(TEN), path, _use_new_zipfile_serialization=suffix == "pth")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    reason = refusal(path)
    assert "not a whole" in reason


TINY = dataclasses.replace(LIGHT, vocab_size=2, z_channels=1, share_quant_resi=1)


def as_bytes(kind: str) -> bytes:
    if kind == "ours":
        metadata = {"format": "vartok.checkpoint", "version": "1", "name": "x", "config": TINY.to_json()}
        return to_safetensors(draw(TINY), metadata)
    if kind == "bare":
        return to_safetensors(draw(TINY))
    buffer = io.BytesIO()
    content = {"model": draw(TINY), "args": Namespace(patch_nums=[*range(1, 11)], znorm=False)}
    torch.save(content, buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


WHOLE = {kind: as_bytes(kind) for kind in ("ours", "bare", "zip", "legacy")}


@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=60)
@given(data=st.data())
def test_damaged_bytes_are_a_checkpoint_or_refused(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(WHOLE[kind])
    # near the start, where headers and pickles are, twice as often as elsewhere
    places = st.one_of(st.integers(0, 1500), st.integers(0, len(damaged) - 1))
    for _ in range(data.draw(st.integers(1, 4), "edits")):
        at = data.draw(places, "at")
        edit = data.draw(st.sampled_from(["set", "cut", "insert", "drop"]), "edit")
        piece = data.draw(st.binary(min_size=1, max_size=4), "piece")
        if edit == "set":
            damaged[at : at + len(piece)] = piece
        elif edit == "cut":
            del damaged[at:]
        elif edit == "insert":
            damaged[at:at] = piece
        else:
            del damaged[at : at + len(piece)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged"
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(path)
        except CheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017 (both are right)
        else:
            assert {name: tuple(t.shape) for name, t in found.tensors.items()} == shapes(found.config)
            build_model(found)


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.sampled_from([*json.loads(SMALL.to_json()), "widths", "junk"]),
        st.recursive(
            st.none() | st.booleans() | st.integers(-2, 1 << 40) | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
            ),
            max_leaves=5,
        ),
    )
)
@example({"ch": 1 << 14, "ch_mult": [1 << 14] * 8, "num_res_blocks": 64})
@example({"z_channels": 1 << 14, "vocab_size": 1 << 24})
def test_any_configuration_is_a_checkpoint_or_refused(values: dict[str, Any]) -> None:
    metadata = {"format": "vartok.checkpoint", "version": "1", "config": json.dumps(values)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(to_safetensors(draw(TINY), metadata))
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(path)  # an empty configuration is the published one: not of these tensors
        assert "\n" not in str(error.value)


# Loading.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_kept_in_the_file_and_computed_in_float32(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in draw(SMALL).items()}
    found = read_checkpoint(save(tmp_path / "a.safetensors", SMALL, tensors))
    assert {tensor.dtype for name, tensor in found.tensors.items()} == {dtype}
    state = build_model(found).state_dict()
    assert same(state, {name: tensor.float() for name, tensor in tensors.items()})


def test_a_model_is_built_for_inference_and_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    model = build_model(read_checkpoint(shipped_checkpoint()))
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}


@has_proc
@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_is_mapped_not_read(tmp_path: Path, suffix: str) -> None:
    """Convolutions of 200 MB take next to no memory of the process's own: all of it is the file's."""
    config = dataclasses.replace(LIGHT, vocab_size=16, z_channels=1700, quant_resi=0.0)
    tensors = {name: torch.zeros(shape) for name, shape in shapes(config).items()}
    path = tmp_path / f"a.{suffix}"
    if suffix == "pth":
        torch.save(tensors, path)
    else:
        save(path, config, tensors)
    code = """
def own():  # MiB
    return int(re.search("RssAnon:\\s*([0-9]+)", Path("/proc/self/status").read_text())[1]) / 1024
before = own()
found = checkpoints.read_checkpoint(path)
model = checkpoints.build_model(found)
print(own() - before)
print(peak())
"""
    mapped, most = map(float, in_a_process(code, path))
    assert path.stat().st_size > 200e6
    assert mapped < 30
    assert most < 200 + 1.5 * 200  # 200 are torch's own


def test_file_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"vartok" * 99_999)
    assert file_sha256(path) == hashlib.sha256(b"vartok" * 99_999).hexdigest()


FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_tensor_that_is_not_finite_is_refused(
    tmp_path: Path, dtype: torch.dtype, value: float, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    for name in (CODEBOOK, HITS, "quantize.quant_resi.qresi_ls.0.weight", "decoder.linear.bias"):
        tensors = draw(LIGHT)
        tensors[name].view(-1)[-1] = value
        tensors = {key: tensor.to(dtype) for key, tensor in tensors.items()}
        torch.save(tensors, path) if suffix == "pth" else save(path, LIGHT, tensors)
        assert refusal(path) == f"tensor {name} holds NaN or infinite values"


def test_a_value_that_is_infinite_in_float32_is_refused(tmp_path: Path) -> None:
    tensors = draw(LIGHT)
    tensors["quant_conv.bias"] = tensors["quant_conv.bias"].double()
    tensors["quant_conv.bias"][0] = 1e300
    assert "tensor quant_conv.bias" in refusal(save(tmp_path / "a.safetensors", LIGHT, tensors))


@pytest.mark.parametrize("rows", [1 << 20, 1 << 24, 1 << 30])
@pytest.mark.parametrize("width", [8, 1 << 14])
def test_views_that_claim_more_than_the_file_stores_are_refused(
    tmp_path: Path, rows: int, width: int
) -> None:
    config = dataclasses.replace(LIGHT, vocab_size=min(rows, 1 << 24), z_channels=width)
    tensors = {
        name: torch.zeros(1).expand(shape)
        for name, shape in shapes(config).items()
        if name != HITS  # counts of another number of codes would be passed over
    }
    tensors[CODEBOOK] = torch.zeros(1, width).expand(rows, width)
    torch.save(tensors, tmp_path / "a.pth")
    started = time.perf_counter()
    reason = refusal(tmp_path / "a.pth")
    assert time.perf_counter() - started < 2
    assert reason.endswith(", more than the file stores") or "vocab_size must be" in reason


def test_more_blocks_than_tensors_are_refused_before_a_model_is_built(tmp_path: Path) -> None:
    config = json.dumps({"ch": 1 << 14, "ch_mult": [1] * 8, "num_res_blocks": 64})
    metadata = {"format": "vartok.checkpoint", "version": "1", "config": config}
    (tmp_path / "a").write_bytes(to_safetensors(draw(LIGHT), metadata))
    started = time.perf_counter()
    assert "too few for the 1,024 blocks" in refusal(tmp_path / "a")
    assert time.perf_counter() - started < 0.5


def test_a_compressed_file_is_refused(tmp_path: Path) -> None:
    torch.save(draw(LIGHT), tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as file,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in file.namelist():
            packed.writestr(name, file.read(name))
    assert refusal(tmp_path / "b.pth").startswith("is compressed inside")


@pytest.mark.parametrize("key", ["text", "cls", "self", "overrides"])
def test_an_override_of_any_name_is_an_unknown_key(tmp_path: Path, key: str) -> None:
    save(tmp_path / "a.safetensors", LIGHT, draw(LIGHT))
    with pytest.raises(CheckpointError, match="unknown key"):
        read_checkpoint(tmp_path / "a.safetensors", {key: 1})


def test_what_a_file_says_is_quoted_in_a_short_line(tmp_path: Path) -> None:
    config = json.dumps({"widths": [1] * 100_000})
    metadata = {"format": "vartok.checkpoint", "version": "1", "config": config}
    (tmp_path / "a.safetensors").write_bytes(to_safetensors(draw(LIGHT), metadata))
    assert len(refusal(tmp_path / "a.safetensors")) < 200
    tensors = {**draw(LIGHT), "\x1b[31mevil\nline": torch.zeros(1)}
    save(tmp_path / "b.safetensors", LIGHT, tensors)
    assert "\x1b" not in refusal(tmp_path / "b.safetensors")


SHARED = b")" + b"q\x01h\x01\x86" * 200  # a tuple of two equal tuples of two ..., named once each
VIEW = (  # of 2 ** 31 - 1 equal elements, all stored in one
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
    b"K\x01tQK\0J\xff\xff\xff\x7f\x85K\0\x85\x89ccollections\nOrderedDict\n)RtR"
)


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (b"}" + SHARED + b"K\x01s", "expands to far more than it stores"),  # hashed as a key
        (SHARED + b")R", "other than tensors"),  # shown as what cannot be called
        (b"cbuiltins\nset\n" + SHARED + b"\x85R", "expands to far more than it stores"),
        (
            b"]q\0(" + b"K\x01" * 3000 + b"e(" + b"cbuiltins\nset\nh\0\x85R" * 3000 + b"t",
            "expands to far more",
        ),
        (b"cargparse\nNamespace\n)\x81]b", "other than tensors"),  # a state that is no dict
        (b"cargparse\nNamespace\n(K\x01t\x81", "other than tensors"),
        (b"cargparse\nNamespace\n}R", "(argparse.Namespace)"),
        (b"ccollections\nOrderedDict\n)\x81", "(collections.OrderedDict)"),
        (b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R", "other than tensors"),
        (b"cbuiltins\nset\n" + VIEW + b"\x85R", "other than tensors"),
        (b"ctorch\nSize\n" + VIEW + b"R", "other than tensors"),
        (b"}q\0X\x01\0\0\0ah\0s", "not a VAR tokenizer"),  # holds itself
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_builds_far_more_than_it_stores_is_refused(
    tmp_path: Path, pickled: bytes, reason: str, zipped: bool
) -> None:
    path, data = tmp_path / "file.pth", b"\x80\x02" + pickled + b"."
    torch.save({}, path, _use_new_zipfile_serialization=zipped)
    saved = path.read_bytes()
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in {"data.pkl": data, "version": b"3", "data/0": bytes(64)}.items():
                archive.writestr(f"archive/{name}", content)
    else:
        path.write_bytes(saved.replace(b"\x80\x02}q\x00.", data, 1))
    begin = time.process_time()
    assert reason in refusal(path)
    assert time.process_time() - begin < 1
