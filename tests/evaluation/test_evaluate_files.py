"""`evaluate_files`: sources, options and failures."""

import dataclasses
import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from conftest import save
from noise import SMALL, tokenizer

import vartok
from vartok.errors import ImageError, VartokError, VartokWarning
from vartok.evaluation import Evaluation, EvaluationReport, Failure, PictureScores, evaluate_files
from vartok.images import Fit
from vartok.schedule import square
from vartok.sources import Sample


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> vartok.Tokenizer:
    return tokenizer(tmp_path_factory.mktemp("weights") / "small.safetensors", SMALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, one below the others, and a hidden one."""
    for seed, name in enumerate(("a.png", "b.png", "deep/a.png", ".hidden/c.png")):
        save(tmp_path / "in" / name, seed, 40, 36)
    return tmp_path / "in"


def names(report: EvaluationReport, folder: Path) -> list[str]:
    return [Path(scores.name).relative_to(folder).as_posix() for scores in report.by_picture]


def evaluate(small: vartok.Tokenizer, *pictures: Any, **options: Any) -> EvaluationReport:
    return evaluate_files(pictures, tokenizer=small, size=16, recursive=True, **options)


def test_folders_lists_and_files_give_the_same(small: vartok.Tokenizer, folder: Path, tmp_path: Path) -> None:
    report = evaluate(small, folder)
    assert names(report, folder) == ["a.png", "b.png", "deep/a.png"]
    files = [folder / name for name in names(report, folder)]
    (tmp_path / "list.txt").write_text("\n".join(map(str, files)))
    assert evaluate(small, *files) == evaluate(small, str(tmp_path / "list.txt")) == report
    assert evaluate_files(str(folder), tokenizer=small, size=(16, 16), recursive=True) == report
    streams = [io.BytesIO(file.read_bytes()) for file in files]
    assert evaluate(small, *streams).models == report.models
    samples = [Sample(str(file), file) for file in files]
    by_loop = Evaluation([small], Fit(size=(16, 16), multiple=small.config.downsample))
    list(by_loop.measure(samples))
    assert by_loop.report() == report


def test_larger_pictures_than_max_bytes_fail(small: vartok.Tokenizer, folder: Path) -> None:
    seen: list[PictureScores | Failure] = []
    with pytest.raises(ImageError, match="standard input: has more than 10 bytes"):
        evaluate(small, io.BytesIO((folder / "a.png").read_bytes()), max_bytes=10, progress=seen.append)
    [failure] = seen
    assert isinstance(failure, Failure)
    assert "has more than 10 bytes" in str(failure.error)


def test_a_tar_is_a_source(small: vartok.Tokenizer, folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for name in ("b.png", "b.gif", "c.heic"):
            tar.add(folder / "b.png", name)
    with pytest.warns(VartokWarning, match="passed over 2 members of tars"):
        report = evaluate(small, tmp_path / "in.tar")
    assert [scores.name for scores in report.by_picture] == [f"{tmp_path / 'in.tar'}: b"]
    assert report.models == evaluate(small, folder / "b.png").models
    for item in (folder / "a.png", folder / "b.png", folder / "deep"):
        (shutil.rmtree if item.is_dir() else Path.unlink)(item)
    (tmp_path / "in.tar").rename(folder / "in.tar")
    (folder / "d.heic").touch()
    with pytest.warns(VartokWarning) as said:
        report = evaluate(small, folder)
    assert [warning.filename for warning in said] == [__file__] * 2
    assert report.passed_over == {".heic": 2, "further pictures of a sample": 1}


def test_failures_are_in_the_report_and_told_at_once(small: vartok.Tokenizer, folder: Path) -> None:
    (folder / "bad.png").write_bytes(b"no picture")
    told: list[PictureScores | Failure] = []
    report = evaluate(small, folder / "gone.png", folder, progress=told.append)
    assert [Path(failure.name).name for failure in report.failures] == ["gone.png", "bad.png"]
    assert report.pictures == len(report.by_picture) == 3
    assert [Path(one.name).name for one in told] == ["gone.png", "a.png", "b.png", "bad.png", "a.png"]
    assert {*report.failures} <= {one for one in told if isinstance(one, Failure)}
    nothing = evaluate(small)
    assert (nothing.pictures, nothing.models, nothing.baselines) == (0, (), ())


def test_a_report_without_pictures_is_an_error_if_pictures_failed(small: vartok.Tokenizer) -> None:
    with pytest.raises(ImageError, match=r"no picture could be measured: a\.png: no such file or folder$"):
        evaluate(small, "a.png")
    with pytest.raises(ImageError, match=r": a\.png: no such file or folder; 1 other failed too$"):
        evaluate(small, "a.png", "b.png")


def test_checkpoints_are_loaded_or_given(small: vartok.Tokenizer, folder: Path) -> None:
    report = evaluate_files(folder / "a.png", device="cpu", size=32, compare=small, scales=False)
    assert [scores.model.name for scores in report.models] == ["vartok-light-v2", "small"]
    assert report.fit.multiple == 16
    assert report.models[1].scale_psnr is None


def test_options(small: vartok.Tokenizer, folder: Path) -> None:
    report = evaluate(small, folder / "a.png", schedule="1,8", fit="pad", background="teal", baselines=True)
    assert report.models[0].schedule == square(1, 8)
    assert (report.fit.mode, report.fit.background) == ("pad", (0, 128, 128))
    assert [scores.format for scores in report.baselines] == ["jpeg", "webp"]
    report = evaluate_files(folder / "a.png", tokenizer=small, fit="native")
    assert (report.by_picture[0].width, report.by_picture[0].height) == (40, 36)
    with pytest.raises(ImageError, match="are more than the limit of 100; 2 others failed too"):
        evaluate(small, folder, max_pixels=100)
    assert dataclasses.replace(report, by_picture=()) != report


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"size": 15}, "`size` must be a multiple of 2"),
        ({"schedule": "1,2"}, "`schedule` must end in the latent's grid, here 8"),
        ({"zoom": 0.5}, "zoom must be from 1"),
    ],
)
def test_options_that_no_checkpoint_takes(
    small: vartok.Tokenizer, folder: Path, options: dict[str, Any], cause: str
) -> None:
    with pytest.raises(VartokError, match=cause):
        evaluate_files(folder / "a.png", **{"tokenizer": small, "size": 16, **options})
