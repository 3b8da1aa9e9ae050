"""build(): the function behind `vartok dataset`, its progress, its errors and its interruption."""

import contextlib
import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import names, save
from dataset_cases import contents, picture, table, tar
from noise import SMALL

import vartok
from vartok.dataset import Progress, TokenDataset, build, verify
from vartok.dataset.formats import FORMATS
from vartok.dataset.lock import run_lock
from vartok.dataset.plan import CPU_SHARD_SIZE, SHARD_SIZE, default_shard_size
from vartok.dataset.write import REPEATED_KEYS
from vartok.errors import ArgumentError, DatasetError, OutputError, SourceError, VartokWarning
from vartok.files import TEMPORARY, fcntl
from vartok.sources import classes

pytest_plugins = ["dataset_cases"]


@pytest.fixture(scope="module")
def options(small_tokenizer: vartok.Tokenizer, small_weights: Path) -> dict[str, Any]:
    """Options of a fast build; `small_tokenizer` has written the weights."""
    return {"weights": small_weights, "device": "cpu", "shard_size": 3, "workers": 1}


def test_build_gives_what_its_parts_give(
    source: Path, whole: dict[str, bytes], options: dict[str, Any], tmp_path: Path
) -> None:
    summary = build(source, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == whole
    assert (summary.complete, summary.pictures, summary.failed, summary.shards) == (True, 16, 2, 9)
    assert summary.bytes == sum(len(data) for name, data in whole.items() if name.startswith("data/"))
    assert (summary.run.pictures, summary.run.failed, summary.run.shards) == (16, 2, 9)
    again = build(str(source), str(tmp_path / "out"), **options)
    assert (again.complete, again.pictures, again.run.shards) == (True, 16, 0)


def test_progress_adds_up(source: Path, options: dict[str, Any], tmp_path: Path) -> None:
    states: list[Progress] = []
    build(source, tmp_path / "out", **options, progress=states.append)
    assert [state.shards for state in states] == sorted(state.shards for state in states)
    assert states[-1].fraction == 1.0
    assert (states[-1].pictures, states[-1].failed, states[-1].shards) == (16, 2, 9)
    failures = [failure for state in states for failure in state.failures]
    assert [failure.place for failure in failures] == [f"{source}/1.tar: 12", f"{source}/3.tar"]
    assert failures[0].cause == "not a picture that vartok can read"


def test_a_loaded_tokenizer_builds_in_this_process(tmp_path: Path, small_tokenizer: vartok.Tokenizer) -> None:
    tar(tmp_path / "a.tar", [("a.png", picture())])
    assert build(tmp_path / "a.tar", tmp_path / "out", tokenizer=small_tokenizer, workers=1).pictures == 1
    assert TokenDataset(tmp_path / "out").model == small_tokenizer.info
    with pytest.raises(ArgumentError, match="cannot be sent to other processes"):
        build(tmp_path / "a.tar", tmp_path / "out", tokenizer=small_tokenizer, processes=2)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError])
def test_a_build_that_is_interrupted_can_be_completed(
    source: Path,
    whole: dict[str, bytes],
    options: dict[str, Any],
    tmp_path: Path,
    error: type[BaseException],
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.shards == 2:
            raise error

    with pytest.raises(error) as raised:
        build(source, tmp_path / "out", **options, progress=interrupt)
    assert raised.value.__notes__ == ["2 of 8 or more shards are done"]  # of five tars and a run of files
    left = names(tmp_path / "out")
    assert len([name for name in left if name.startswith("stats/")]) == 2
    assert not [name for name in left if ".tmp" in name]
    assert '"complete": false' in (tmp_path / "out" / "dataset.json").read_text()
    build(source, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == whole


def test_parts_of_several_machines_make_the_whole(
    source: Path, whole: dict[str, bytes], options: dict[str, Any], tmp_path: Path
) -> None:
    parts = [build(source, tmp_path / "out", **options, shard=(part, 3)) for part in (2, 0, 1)]
    assert [summary.complete for summary in parts] == [False, False, True]
    assert contents(tmp_path / "out") == whole


def test_max_failures_stops_a_build(source: Path, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match="1 sample failed, more than the 0 allowed; 3 of 8 or more shards are done"
    ):
        build(source, tmp_path / "out", **options, max_failures=0)
    assert build(source, tmp_path / "out", **options, max_failures=2).complete


def test_a_run_is_refused_while_another_is_at_work_in_its_part(
    source: Path, whole: dict[str, bytes], options: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    build(source, out, **options, shard=(2, 3))
    with run_lock(out, (1, 3)):
        build(source, out, **options, shard=(0, 3))
        for part in ((0, 1), (1, 3)):
            with pytest.raises(DatasetError, match="another run is at work in"):
                build(source, out, **options, shard=part)
        assert len([name for name in names(out) if name.endswith(".lock")]) == 2
    for name in ("run", "run-1-3"):
        (out / f"{TEMPORARY}{name}.lock").write_bytes(b"left by a killed run")
    with run_lock(out, (0, 1)), pytest.raises(DatasetError, match=f"process {os.getpid()} on"):
        build(source, out, **options, shard=(1, 3))
    build(source, out, **options)
    assert contents(out) == whole


def test_a_file_system_without_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    assert fcntl is not None
    monkeypatch.setattr(fcntl, "flock", refuse)
    with run_lock(tmp_path, (0, 2)), run_lock(tmp_path, (0, 2)):
        assert names(tmp_path) == []


def test_a_data_set_keeps_its_shard_size(options: dict[str, Any], tmp_path: Path) -> None:
    save(tmp_path / "in/0.png", width=12, height=9)
    defaults = {**options, "shard_size": None}
    for name, size in (("new", CPU_SHARD_SIZE), ("old", 7)):
        if name == "old":
            build(tmp_path / "in", tmp_path / name, **{**options, "shard_size": size})
        build(tmp_path / "in", tmp_path / name, **defaults)
        assert json.loads((tmp_path / name / "dataset.json").read_text())["shard_size"] == size
    assert default_shard_size(tmp_path / "none", "cuda") == SHARD_SIZE
    assert default_shard_size(tmp_path / "in", "cpu") == CPU_SHARD_SIZE


def test_ray_without_gpus_has_shards_of_a_cpu(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "in/0.png", width=12, height=9)
    monkeypatch.setattr("vartok.dataset.builder.check_packages", lambda *more: None)
    monkeypatch.setattr("vartok.dataset.ray.ray_cluster", lambda *arguments: contextlib.nullcontext("cpu"))
    monkeypatch.setattr("vartok.dataset.ray.run_ray", lambda *arguments: (_ for _ in ()))
    build(
        tmp_path / "in", tmp_path / "out", engine="ray", **{**options, "shard_size": None, "device": "auto"}
    )
    assert json.loads((tmp_path / "out/dataset.json").read_text())["shard_size"] == CPU_SHARD_SIZE


def test_settings_reach_the_tokens(tmp_path: Path, options: dict[str, Any]) -> None:
    path = save(tmp_path / "classes/a/0.png", width=30, height=20)
    build(
        tmp_path / "classes",
        tmp_path / "out",
        **options,
        size=(8, 16),
        fit="pad",
        background="black",
        schedule="1,2,4x8",
        folder_labels=True,
        full_names=True,
        format="wds",
        keep_pictures=True,
    )
    dataset = TokenDataset(tmp_path / "out", maps=True)
    assert dataset.schedule == ((1, 1), (2, 2), (4, 8))
    assert dataset.classes == ["a"]
    (item,) = dataset
    assert (item["key"], item["label"], item["width"]) == ("a/0.png", 0, 30)
    assert path.read_bytes() in (tmp_path / "out/data/00000-0000.tar").read_bytes()
    assert verify(tmp_path / "out").problems == []


def test_the_first_scales_only(tmp_path: Path, small_tokenizer: vartok.Tokenizer) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    full = vartok.encode_file(tmp_path / "a.png", tokenizer=small_tokenizer).flatten().tolist()
    options: dict[str, Any] = {"tokenizer": small_tokenizer, "workers": 1}
    build(tmp_path / "a.png", tmp_path / "out", **options, scales=2)
    assert verify(tmp_path / "out").problems == []
    dataset = TokenDataset(tmp_path / "out")
    assert (dataset.schedule, dataset.grids) == (SMALL.patch_nums, SMALL.patch_nums[:2])
    [row] = dataset
    assert row["tokens"].tolist() == full[:5]
    inputs = small_tokenizer.var_inputs(torch.tensor([full]))
    assert dataset.var_inputs(small_tokenizer, row["tokens"][None]).equal(inputs[:, :4])
    [drawn] = vartok.decode_files(tmp_path / "out", tmp_path / "drawn", tokenizer=small_tokenizer)
    assert drawn.error is None
    with pytest.raises(DatasetError, match="image scales 2, not unset"):
        build(tmp_path / "a.png", tmp_path / "out", **options, scales=3)  # all of them
    with pytest.raises(ArgumentError, match="`scales` must be from 1 to 3"):
        build(tmp_path / "a.png", tmp_path / "none", **options, scales=4)


def test_files_that_are_passed_over_are_counted_and_folders_without_pictures_are_classes(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    for name in ("ant/0.png", "cat/1.png"):
        save(tmp_path / "val" / name, width=30, height=20)
    (tmp_path / "val/bee").mkdir()
    (tmp_path / "val/bee/2.HEIC").write_bytes(b"")
    with pytest.warns(VartokWarning, match=r"passed over 1 file of kinds that are not read: 1 \.heic"):
        summary = build(tmp_path / "val", tmp_path / "out", **options, folder_labels=True)
    description = json.loads((tmp_path / "out/dataset.json").read_text())
    assert summary.passed_over == description["passed_over"] == {".heic": 1}
    assert description["classes"] == ["ant", "bee", "cat"]
    assert [item["label"] for item in TokenDataset(tmp_path / "out")] == [0, 2]


def test_what_is_passed_over_in_tars_is_counted_over_all_shards(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    (tmp_path / "in").mkdir()
    for n in range(2):
        pictures = [(f"{n}{i}.png", picture(i)) for i in range(4)]
        tar(tmp_path / f"in/{n}.tar", [*pictures, ("00.heic", b""), (".x.png", b""), ("y.txt", b"")])
    (tmp_path / "in/other.heic").write_bytes(b"")
    both = {".heic": 3, "hidden": 2, "without a picture": 2}
    for part in (0, None, None):  # a part, the rest, and nothing to do
        with pytest.warns(VartokWarning) as said:
            summary = build(tmp_path / "in", tmp_path / "out", **options, shard=(0, 2 if part == 0 else 1))
        folder, members = [str(warning.message) for warning in said]
        assert folder == "passed over 1 file of kinds that are not read: 1 .heic"
    assert members == "passed over 6 members of tars: 2 .heic, 2 hidden, 2 without a picture"
    assert (
        summary.passed_over == json.loads((tmp_path / "out/dataset.json").read_text())["passed_over"] == both
    )
    stats = json.loads((tmp_path / "out/stats/00001-0001.json").read_text())
    assert stats["passed_over"] == {".heic": 1, "hidden": 1, "without a picture": 1}
    assert verify(tmp_path / "out").problems == []


@pytest.mark.parametrize("format", FORMATS)
def test_equal_keys_lose_no_pictures_and_verify_agrees(
    tmp_path: Path, options: dict[str, Any], format: str
) -> None:
    """Many tars number their files alike; they may be joined, and a tar may have a second file of a name."""
    (tmp_path / "in").mkdir()
    one = tar(tmp_path / "in/0.tar", [("0.png", picture(0))])
    two = tar(tmp_path / "in/1.tar", [("0.png", picture(0)), ("1.png", picture(1)), ("0.png", picture(2))])
    table(tmp_path / "in/2.parquet", image=[picture(n) for n in range(3)], key=["0", "0#2", "0"])
    (tmp_path / "in/3.tar").write_bytes(one.read_bytes() + two.read_bytes())
    with pytest.warns(VartokWarning, match=rf"not carried: {re.escape(REPEATED_KEYS)} \(4 rows\)"):
        summary = build(tmp_path / "in", tmp_path / "out", **{**options, "shard_size": 4}, format=format)
    assert (summary.pictures, summary.failed, summary.complete) == (11, 0, True)
    assert verify(tmp_path / "out").problems == []
    found = [item["key"] for item in TokenDataset(tmp_path / "out")]
    assert found == ["0", *("0", "1", "0#2"), *("0", "0#2", "0#3"), *("0", "0#2", "1", "0#3")]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"format": "csv"}, "the format of shards is one of"),
        ({"keep_pictures": True}, "parquet shards cannot keep pictures"),
        ({"fit": "native"}, "one size"),
        ({"fit": "squeeze"}, "a fit is one of"),
        ({"fit": "pad", "zoom": 2.0}, "zoom"),
        ({"resample": "box"}, "resampling is one of lanczos, adm, not 'box'"),
        ({"size": 9}, "size. must be a multiple of 2"),
        ({"schedule": "1,2"}, "schedule. must end in the latent's grid, here 4"),
        ({"shard": (2, 2)}, r"i from 0 to n - 1, not \(2, 2\)"),
        ({"engine": "spark"}, "the engine is one of local, ray"),
        ({"engine": "ray", "processes": 2}, "Ray divides the work itself"),
        ({"address": "auto"}, "`address` is only for the engine ray"),
    ],
)
def test_wrong_arguments_are_refused(
    source: Path, options: dict[str, Any], tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        build(source, tmp_path / "out", **options | wrong)
    assert not (tmp_path / "out").exists()


def test_other_errors_have_their_own_classes(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceError, match="nope"):
        build("nope", tmp_path / "out", **options)
    for url in ("s3://bucket/out", "https://host/out"):
        with pytest.raises(ArgumentError, match=f"^{url}: a data set cannot be written to a URL"):
            build("nope", Path(url), **options)
    path = tar(tmp_path / "a.tar", [("a.png", picture())])
    (tmp_path / "file").write_text("no folder")
    with pytest.raises((OutputError, DatasetError)):
        build(path, tmp_path / "file" / "out", **options)
    with pytest.warns(VartokWarning, match="only 1 input shard for 4 parts: no work for parts 1 to 3"):
        build(path, tmp_path / "out", **options, shard=(0, 4))


def test_names_of_classes_in_tables_are_numbered_over_all_of_them(
    options: dict[str, Any], tmp_path: Path
) -> None:
    columns: list[list[str | None]] = [["cat", None, "7"], ["ant"]]
    for n, labels in enumerate(columns):
        pictures = [picture(seed) for seed in range(len(labels))]
        table(tmp_path / f"{n}.parquet", image=pictures, label=labels, text=["a"] * len(labels))
    for part in (1, 0):  # each run does half, and both agree on the numbers
        build(tmp_path, tmp_path / "out", **options, shard=(part, 2))
    dataset = TokenDataset(tmp_path / "out")
    assert dataset.classes == ["7", "ant", "cat"]
    assert [row["label"] for row in dataset] == [2, -1, 0, 1]
    description = json.loads((tmp_path / "out/dataset.json").read_text())
    assert description["carried"] == {"label": 3, "caption": 4, "metadata": 0}
    assert "not_carried" not in description
    assert build(tmp_path, tmp_path / "out", **options).run.shards == 0
    table(tmp_path / "2.parquet", image=[picture(9)], label=["bee"])
    with pytest.raises(DatasetError, match="holds a data set with classes"):
        build(tmp_path, tmp_path / "out", **options)
    save(tmp_path / "ant/0.png", width=12, height=9)
    with pytest.raises(ArgumentError, match="the labels of the tables are names"):
        build(tmp_path, tmp_path / "new", **options, folder_labels=True)
    table(tmp_path / "2.parquet", image=[picture(9)], label=[3])
    with pytest.raises(
        SourceError, match=r"labels of .*0\.parquet are names of classes, but those of .*2\.parq"
    ):
        build(tmp_path, tmp_path / "new", **options)


def test_what_is_not_carried_is_counted_over_all_tables(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classes, "MAX_CLASSES", 2)
    columns: list[list[str | None]] = [["cat", "dog", "1", None], ["cat"]]
    for n, labels in enumerate(columns):
        pictures = [picture(seed) for seed in range(len(labels))]
        table(tmp_path / f"{n}.parquet", image=pictures, label=labels, text=["a"] * len(labels))
    what = "column 'label': names of classes without a number"
    for _ in range(2):  # the second run has nothing to do
        with pytest.warns(VartokWarning) as said:
            summary = build(tmp_path, tmp_path / "out", **options)
        assert [str(warning.message) for warning in said] == [
            "the labels of the tables have more than 2 names, so they are not carried",
            f"not carried: {what} (4 rows)",
        ]
        assert summary.not_carried == {what: 4}
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert description["not_carried"] == {what: 4}
    assert description["carried"] == {"label": 0, "caption": 5, "metadata": 0}
    assert verify(tmp_path / "out").problems == []


def test_columns_without_a_table_are_said(options: dict[str, Any], source: Path, tmp_path: Path) -> None:
    with pytest.warns(VartokWarning, match="there is no table for the columns 'photo', 'breed'"):
        build(source / "0.png", tmp_path / "out", **options, image_column="photo", label_column="breed")
