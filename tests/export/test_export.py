"""`export_checkpoint` and `vartok export`: files appear together, and only if they agree."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from conftest import Vartok, names
from noise import SMALL, draw, save

import vartok as library
from vartok.checkpoints import CODEBOOK
from vartok.config import LightConfig, TokenizerConfig
from vartok.errors import ArgumentError, OutputError, ScheduleError, VartokError, VartokWarning
from vartok.export import Agreement, export_checkpoint, exporter
from vartok.export.agreement import check, soft_images
from vartok.export.formats import FORMATS, Format, Run
from vartok.export.parts import Part
from vartok.schedule import as_schedule

FILES = ["decoder.onnx", "dequantizer.onnx", "encoder.onnx", "quantizer.onnx"]


LINEAR = dataclasses.replace(SMALL, autoencoder=LightConfig())
"""The fastest configuration."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("weights") / "linear.safetensors", LINEAR)


class Untraced:
    """Stands for torch's exporters, which take seconds: files hold metadata, and the modules run as they are.

    Attributes:
        broken: the part whose output is wrong.
        failing: the part that cannot be exported.
    """

    def __init__(self) -> None:
        self.broken = self.failing = ""
        self._modules: dict[str, Run] = {}

    def write(self, part: Part, to: Format, metadata: Mapping[str, str], file: BinaryIO) -> None:
        if part.name == self.failing:
            raise VartokError(f"torch cannot export the {part.name}")
        file.write(json.dumps(metadata).encode())
        wrong = part.name == self.broken
        self._modules[file.name] = (lambda x: part.module(x) * 2) if wrong else part.module

    def load(self, path: Path) -> Run:
        return self._modules[str(path)]


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> Untraced:
    stand_in = Untraced()
    monkeypatch.setattr(exporter, "write_part", stand_in.write)
    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["onnx"], load=stand_in.load))
    return stand_in


def test_the_command_writes_four_files_and_says_how_they_agree(
    checkpoint: Path, untraced: Untraced, vartok: Vartok, here: Path
) -> None:
    shown = vartok("export", "a/out", "--to", "onnx", "-w", checkpoint).stdout
    assert names(here) == [f"a/out/{name}" for name in FILES]
    assert re.search(r"bytes  a/out/encoder\.onnx\n.*tokens   100\.00% equal\n", shown, re.DOTALL)
    metadata = json.loads(Path("a/out/quantizer.onnx").read_text())
    assert (metadata["part"], metadata["name"]) == ("quantizer", "linear")
    assert metadata["fingerprint"] == library.load(checkpoint, device="cpu").fingerprint

    before = Path("a/out/encoder.onnx").read_bytes()
    again = ["export", "a/out", "--to", "onnx", "-w", checkpoint]
    assert "encoder.onnx exists: set --force to replace it" in vartok(*again, code=1).stderr
    assert vartok(*again, "--force", "-q").output == ""
    report = json.loads(vartok(*again, "--force", "--schedule", "1,4", "--json").stdout)
    assert report["metadata"]["schedule"] == "[1, 4]"
    assert report["agreement"].keys() == {"latent", "tokens", "f_hat", "images"}
    assert report["files"]["decoder"]["path"] == "a/out/decoder.onnx"
    assert Path("a/out/encoder.onnx").read_bytes() != before


@pytest.mark.parametrize("part", ["encoder", "quantizer", "dequantizer", "decoder"])
def test_files_that_disagree_do_not_appear(
    checkpoint: Path, untraced: Untraced, vartok: Vartok, here: Path, part: str
) -> None:
    untraced.broken = part
    said = vartok("export", "out", "--to", "onnx", "-w", checkpoint, code=1).stderr
    assert said.startswith("vartok: the exported files do not agree with the checkpoint: ")
    assert not (here / "out").exists()


def test_a_failed_export_leaves_earlier_files_as_they_were(
    checkpoint: Path, untraced: Untraced, vartok: Vartok, here: Path
) -> None:
    (here / "out").mkdir()
    (here / "out" / "decoder.onnx").write_text("earlier")
    untraced.failing = "decoder"
    command = ["export", "out", "--to", "onnx", "-w", checkpoint]
    assert "torch cannot export the decoder" in vartok(*command, "-f", code=1).stderr
    vartok(*command, code=1)
    (here / "empty").mkdir()
    for folder in ("empty", "other"):
        vartok("export", folder, "--to", "onnx", "-w", "missing.safetensors", code=1)
    assert {path.name for path in here.iterdir()} == {"empty", "out"}
    assert names(here) == ["out/decoder.onnx"]
    assert (here / "out" / "decoder.onnx").read_text() == "earlier"


def test_without_a_runtime_the_files_are_not_checked(
    checkpoint: Path, untraced: Untraced, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "is_installed", lambda package: False)
    with pytest.warns(VartokWarning, match="not checked: onnxruntime is not installed"):
        assert export_checkpoint(checkpoint, "out").agreement is None
    assert names(here) == [f"out/{name}" for name in FILES]


def test_arguments_are_checked_first(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match="exported to onnx or torch-export, not 'tflite'"):
        export_checkpoint("missing", "out", "tflite")
    Path("file").touch()
    with pytest.raises(OutputError, match="file is not a folder"):
        export_checkpoint("missing", "file")
    monkeypatch.setattr("vartok.optional.is_installed", lambda package: False)
    with pytest.raises(VartokError, match=r"not installed: onnx, onnxscript \(needed for export to onnx\)"):
        export_checkpoint("missing", "out")
    assert names(here) == ["file"]


@pytest.mark.parametrize(
    ("codes", "schedule", "reason"),
    [
        (64, "1,300", "the last grid, 300, has more than 65,536 cells"),
        (8192, "1,256", r"2 scales up to 256 and 8,192 codes need 8\.6 GB of memory .* more than 5\.4 GB"),
        (2, "1x16380,1x16381,1x16382,1x16384", r"4 scales up to 1x16384 and 2 codes need 6\.4 GB"),
    ],
)
@pytest.mark.parametrize("own", [False, True])
def test_a_schedule_that_needs_too_much_memory_is_refused(
    here: Path, untraced: Untraced, codes: int, schedule: str, reason: str, own: bool
) -> None:
    config = dataclasses.replace(LINEAR, vocab_size=codes)
    given = as_schedule(schedule)
    weights = save(here / "w.safetensors", dataclasses.replace(config, patch_nums=given) if own else config)
    with pytest.raises(ScheduleError, match=reason):
        export_checkpoint(weights, "out", schedule=None if own else given)
    assert names(here) == ["w.safetensors"]


def test_what_is_no_number_is_no_agreement() -> None:
    with pytest.raises(VartokError, match="images differ by nan"):
        check(Agreement(latent=0.0, tokens=1.0, f_hat=0.0, images=float("nan")))


@pytest.mark.slow
@pytest.mark.parametrize(("to", "config"), [("onnx", SMALL), ("torch-export", LINEAR)])
def test_exported_files_run_for_any_batch(tmp_path: Path, to: str, config: TokenizerConfig) -> None:
    tensors = draw(config)
    tensors[CODEBOOK][32:] = tensors[CODEBOOK][:32]
    checkpoint = save(tmp_path / "twins.safetensors", config, tensors)
    report = export_checkpoint(checkpoint, tmp_path, to)
    run = {name: FORMATS[to].load(path) for name, path in report.files.items()}
    ours = library.load(checkpoint, device="cpu")
    images = soft_images(40, 3, *config.image_size)
    tokens = ours.encode(images)
    found = run["quantizer"](run["encoder"](images))
    assert (found == tokens.flatten()).float().mean() > 0.99
    assert found.max() < 32  # the first of two equal codes
    decoded = run["decoder"](run["dequantizer"](tokens.flatten()))
    torch.testing.assert_close(decoded, ours.decode(tokens), rtol=1e-3, atol=1e-3)
    for name, path in report.files.items():
        assert metadata_of(path) == report.metadata | {"part": name}


def metadata_of(path: Path) -> dict[str, str]:
    """Metadata of an exported file, which names no file of this machine."""
    assert b"site-packages" not in path.read_bytes()
    found: dict[str, str]
    if path.suffix == ".pt2":
        extra = {"vartok.json": ""}
        torch.export.load(path, extra_files=extra)
        found = json.loads(extra["vartok.json"])
        return found
    import onnx

    model = onnx.load(path)
    assert [opset.version for opset in model.opset_import if not opset.domain] == [18]
    return {entry.key: entry.value for entry in model.metadata_props}
