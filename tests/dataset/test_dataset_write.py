"""Shards, stats and summaries of a run: contents, atomicity, and the formats side by side."""

import contextlib
import json
import random
import tarfile
from pathlib import Path

import pytest
from conftest import names
from dataset_cases import KEYS, SHARDS, as_dict, contents, make_job, picture, plan, run, shard_id

import vartok
from vartok.dataset import verify
from vartok.dataset.engines import run_here
from vartok.dataset.formats import read_shard
from vartok.dataset.schema import open_dataset
from vartok.dataset.write import write_summary
from vartok.errors import VartokError
from vartok.files import HOST, TEMPORARY, atomic_write
from vartok.operations import encode_pictures
from vartok.sources import find_input_shards

pytest_plugins = ["dataset_cases"]


def test_a_run_writes_shards_stats_failures_and_a_description(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer
) -> None:
    out = tmp_path / "out"
    steps = run(make_job(out, small_tokenizer), source, small_tokenizer)
    files = [f"{folder}/{name}" for folder in ("data", "stats") for name in SHARDS]
    assert {name.partition(".")[0] for name in names(out)} == {"README", "dataset", "failed", *files}
    finished = [step for step in steps if step.finished]
    assert [step.shard for step in finished] == SHARDS
    assert [step.pictures for step in finished] == [3, 3, 1, 2, 1, 0, 1, 3, 2]
    assert [step.last for step in finished] == [False, False, True, False, True, True, True, True, True]

    description, encoding = open_dataset(out)
    found = [
        row.image.source
        for shard in description["shards"]
        for row in read_shard("parquet", out / shard["name"], encoding)
    ]
    assert found == KEYS
    assert description["complete"] is True
    assert (description["pictures"], description["failed"]) == (16, 2)
    assert [shard["pictures"] for shard in description["shards"]] == [3, 3, 1, 2, 1, 0, 1, 3, 2]
    failures = [json.loads(line) for line in (out / "failed.jsonl").read_text().splitlines()]
    assert failures[0] == {"key": "12", "cause": "not a picture that vartok can read", "shard": "00001-0000"}
    assert failures[1]["key"] == str(source / "3.tar")
    assert failures[1]["cause"].startswith("is not a whole tar file")
    assert verify(out).problems == []
    assert run(make_job(out, small_tokenizer), source, small_tokenizer) == []


def test_tokens_equal_those_of_encode_pictures(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer
) -> None:
    job = make_job(tmp_path / "out", small_tokenizer)
    run(job, source, small_tokenizer)
    found = [
        row
        for name in SHARDS[-2:]
        for row in read_shard("parquet", job.shard_path(shard_id(name)), job.encoding)
    ]
    files = [(n, f"{n}.png", source / f"{n}.png") for n in range(5)]
    for row, (_, item) in zip(found, encode_pictures(small_tokenizer, files, job.fit), strict=True):
        assert not isinstance(item, VartokError)
        assert row.flatten().tolist() == item.flatten().tolist()
        assert (row.image.width, row.image.height) == (12, 9)


def leave_temporary_file(path: Path) -> None:
    """Leave what a process leaves that is killed while it writes a file."""
    with contextlib.suppress(KeyError), atomic_write(path, overwrite=True) as file:
        left = Path(file.name)
        left.with_stem(f"{left.stem}0").write_bytes(b"half of it")
        raise KeyError


def test_missing_files_are_made_again_with_the_same_bytes(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    run(make_job(out, small_tokenizer), source, small_tokenizer)
    assert contents(out) == whole
    rng = random.Random(0)
    for _ in range(4):
        files = [path for folder in ("data", "stats") for path in sorted((out / folder).iterdir())]
        for path in rng.sample(files, 4):
            leave_temporary_file(path)
            path.unlink()
        run(make_job(out, small_tokenizer), source, small_tokenizer)
        assert contents(out) == whole


def test_stats_are_absent_while_a_shard_is_made_again(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a kill after the shard and before its stats would leave the old ones beside it."""
    monkeypatch.setattr("vartok.dataset.write.REPORT_INTERVAL", 0)
    job = make_job(tmp_path / "out", small_tokenizer)
    run(job, source, small_tokenizer)
    shards = find_input_shards([str(source)], job.shard_size)
    for step in run_here(job, plan(job, shards, retry_failed=True), small_tokenizer, batch_size=1, workers=1):
        assert (job.out / "stats" / f"{step.shard}.json").exists() is step.finished


def test_the_summary_can_be_written_during_a_run(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer, whole: dict[str, bytes]
) -> None:
    job = make_job(tmp_path / "out", small_tokenizer)
    shards = find_input_shards([str(source)], 3)
    for step in run_here(job, plan(job, shards), small_tokenizer, batch_size=2, workers=2):
        assert write_summary(job, len(shards))["complete"] is (step.finished and step.shard == SHARDS[-1])
    assert contents(job.out) == whole


def test_the_summary_removes_what_a_process_killed_during_the_run_has_left(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer
) -> None:
    job = make_job(tmp_path / "out", small_tokenizer)
    run(job, source, small_tokenizer)
    left = [job.out / folder / f"{TEMPORARY}{HOST}-0.tmp" for folder in ("data", "stats", "")]
    for file in left:
        file.write_bytes(b"left")
    with atomic_write(job.out / "data" / "of another part") as writing:
        write_summary(job, 4)
        assert not any(file.exists() for file in left)
        writing.write(b"whole")
    assert (job.out / "data" / "of another part").read_bytes() == b"whole"


@pytest.mark.parametrize("format", ["wds", "jsonl"])
def test_all_formats_hold_the_same_rows(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer, format: str
) -> None:
    one, two = (
        make_job(tmp_path / "one", small_tokenizer),
        make_job(tmp_path / "two", small_tokenizer, format=format),
    )
    run(one, source, small_tokenizer)
    run(two, source, small_tokenizer)
    for name in SHARDS:
        expected = [
            as_dict(row) for row in read_shard("parquet", one.shard_path(shard_id(name)), one.encoding)
        ]
        assert [
            as_dict(row) for row in read_shard(format, two.shard_path(shard_id(name)), two.encoding)
        ] == expected
    assert verify(two.out).problems == []


def test_tars_keep_no_pictures_by_default(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer
) -> None:
    job = make_job(tmp_path / "out", small_tokenizer, format="wds")
    run(job, source, small_tokenizer)
    for name in SHARDS:
        with tarfile.open(job.shard_path(shard_id(name))) as archive:
            assert not [member for member in archive.getnames() if not member.endswith((".npy", ".json"))]


def test_tars_can_keep_the_pictures(tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer) -> None:
    job = make_job(tmp_path / "out", small_tokenizer, format="wds", keep_pictures=True)
    run(job, source, small_tokenizer)
    with tarfile.open(job.shard_path(shard_id(SHARDS[0]))) as archive:
        assert archive.getnames()[:3] == ["00.tokens.npy", "00.json", "00.png"]
        file = archive.extractfile("00.png")
        assert file is not None
        assert file.read() == picture(0)
    with tarfile.open(job.shard_path(shard_id(SHARDS[-1]))) as archive:
        file = archive.extractfile("4.png")
        assert file is not None
        assert file.read() == (source / "4.png").read_bytes()
