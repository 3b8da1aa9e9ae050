"""The work that is left: interrupted runs, parts, repaired sources, and folders of something else."""

import contextlib
import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import names, save
from dataset_cases import (
    MODEL,
    SHARDS,
    contents,
    make_job,
    picture,
    plan,
    run,
    shard_id,
    some_rows,
    table,
    tar,
    write_dataset,
)

import vartok
from vartok.dataset import TokenDataset
from vartok.dataset.engines import run_here
from vartok.dataset.plan import prepare_folder
from vartok.dataset.schema import open_dataset
from vartok.dataset.stats import read_stats
from vartok.dataset.write import write_summary
from vartok.errors import DatasetError
from vartok.sources import NamedColumns, find_input_shards

pytest_plugins = ["dataset_cases"]


def test_a_run_that_stops_after_any_shard_can_be_completed(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer, whole: dict[str, bytes]
) -> None:
    for stop in (1, 4, len(SHARDS) - 1):
        out = tmp_path / str(stop)
        job = make_job(out, small_tokenizer)
        shards = find_input_shards([str(source)], 3)
        with contextlib.closing(
            run_here(job, plan(job, shards), small_tokenizer, batch_size=2, workers=2)
        ) as steps:
            for _ in itertools.islice((step for step in steps if step.finished), stop):
                pass
        assert write_summary(job, len(shards))["complete"] is False
        assert len([name for name in names(out) if name.startswith("stats/")]) == stop
        assert not [name for name in names(out) if ".tmp" in name]
        steps_left = [step.shard for step in run(job, source, small_tokenizer) if step.finished]
        assert steps_left == SHARDS[stop:]
        assert contents(out) == whole


def test_parts_from_several_machines_equal_one_run(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer, whole: dict[str, bytes]
) -> None:
    job = make_job(tmp_path / "out", small_tokenizer)
    shards = find_input_shards([str(source)], 3)
    for part in (2, 0, 1):
        tasks = [task for task in plan(job, shards) if task.index % 3 == part]
        for _ in run_here(job, tasks, small_tokenizer, batch_size=2, workers=2):
            pass
        assert write_summary(job, len(shards))["complete"] is (part == 1)
    assert contents(tmp_path / "out") == whole


def test_retry_failed_makes_shards_with_failures_again(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer
) -> None:
    mine = tmp_path / "source"
    shutil.copytree(source, mine)
    out = tmp_path / "out"
    job = make_job(out, small_tokenizer)
    run(job, mine, small_tokenizer)
    tar(mine / "1.tar", [(f"1{i}.png", picture(i)) for i in range(4)])
    tar(mine / "3.tar", [(f"3{i}.png", picture(30 + i)) for i in range(7)])
    assert run(job, mine, small_tokenizer) == []
    again = [step.shard for step in run(job, mine, small_tokenizer, retry_failed=True) if step.finished]
    assert again == ["00001-0000", "00003-0000", "00003-0001", "00003-0002"]
    assert not (out / "failed.jsonl").exists()
    fresh = make_job(tmp_path / "fresh", small_tokenizer)
    run(fresh, mine, small_tokenizer)
    assert contents(out) == contents(fresh.out)


@pytest.mark.parametrize("count", [2, 3, 5, 6])
def test_a_tar_that_has_another_length_than_before_is_completed(
    tmp_path: Path, small_tokenizer: vartok.Tokenizer, count: int
) -> None:
    """At first it breaks off after six samples, two shards; once mended it has as many as it has."""
    path = tar(tmp_path / "a.tar", [(f"{i}.png", picture(i)) for i in range(6)])
    path.write_bytes(path.read_bytes()[: 6 * 1024])  # no end mark
    job = make_job(tmp_path / "out", small_tokenizer)
    run(job, path, small_tokenizer)
    assert [len(stats.failed) for stats in read_stats(job.out).values()] == [0, 0, 1]
    tar(path, [(f"{i}.png", picture(i)) for i in range(count)])
    run(job, path, small_tokenizer, retry_failed=True)
    fresh = make_job(tmp_path / "fresh", small_tokenizer)
    run(fresh, path, small_tokenizer)
    assert contents(job.out) == contents(fresh.out)


def test_samples_after_an_error_are_reported_as_missing(
    tmp_path: Path, small_tokenizer: vartok.Tokenizer
) -> None:
    path = tar(tmp_path / "a.tar", [(f"{i}.png", picture(i)) for i in range(7)])
    job = make_job(tmp_path / "out", small_tokenizer)
    run(job, path, small_tokenizer)
    whole = contents(job.out)
    job.shard_path(shard_id("00000-0002")).unlink()
    data = path.read_bytes()
    path.write_bytes(data[:1024])
    (step,) = run(job, path, small_tokenizer)
    assert step.failures[0].key == str(path)
    assert open_dataset(job.out)[0]["complete"] is False
    path.write_bytes(data)
    run(job, path, small_tokenizer)
    assert contents(job.out) == whole


def test_several_machines_can_create_the_folder_at_once(
    tmp_path: Path, small_tokenizer: vartok.Tokenizer
) -> None:
    for n in range(10):
        job = make_job(tmp_path / str(n), small_tokenizer)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda _, job=job: plan(job, []), range(8))) == [[]] * 8
    (tmp_path / "killed" / "data").mkdir(parents=True)  # before there was anything else
    assert plan(make_job(tmp_path / "killed", small_tokenizer), []) == []


def test_tars_of_the_same_name_in_two_folders_differ(
    tmp_path: Path, small_tokenizer: vartok.Tokenizer
) -> None:
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(tar(tmp_path / folder / "x.tar", [(f"{folder}.png", picture(0))]))
    job = make_job(tmp_path / "out", small_tokenizer)
    plan(job, find_input_shards([str(path) for path in paths], 3))
    shards = find_input_shards([str(path) for path in paths], 3)
    list(run_here(job, plan(job, shards)[:1], small_tokenizer, batch_size=1, workers=1))
    with pytest.raises(DatasetError, match=r"is from a/x\.tar, but the sources now have b/x\.tar"):
        plan(job, find_input_shards([str(path) for path in reversed(paths)], 3))
    tables = [table(tmp_path / "t.parquet", one=[b"1"], two=[b"2"])]
    first, second = (
        find_input_shards([str(tables[0])], 3, columns=NamedColumns(name))[0] for name in ("one", "two")
    )
    assert first.identity != second.identity


def test_new_tars_are_added_and_renamed_ones_refused(
    tmp_path: Path, small_tokenizer: vartok.Tokenizer
) -> None:
    mine = tmp_path / "source"
    mine.mkdir()
    job = make_job(tmp_path / "out", small_tokenizer)
    for n in range(2):
        tar(mine / f"{n}.tar", [(f"{n}.png", picture(n))])
        assert [step.shard for step in run(job, mine, small_tokenizer)] == [f"0000{n}-0000"]
    (mine / "0.tar").rename(mine / "a.tar")
    with pytest.raises(DatasetError, match=r"other sources: its shard 00000-0000 is from source/0.tar, but"):
        run(job, mine, small_tokenizer)


@pytest.mark.parametrize(
    "change",
    [{"shard_size": 4}, {"format": "jsonl"}, {"format": "wds"}, {"model"}, {"schedule"}, {"resample"}],
    ids=str,
)
def test_a_data_set_of_other_settings_is_refused(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer, change: Any
) -> None:
    job = make_job(tmp_path / "out", small_tokenizer)
    run(job, source, small_tokenizer)
    if change == {"model"}:
        other = replace(job, encoding=replace(job.encoding, model=replace(MODEL, name="other")))
    elif change == {"schedule"}:
        other = replace(job, encoding=replace(job.encoding, schedule=((1, 1), (4, 4))))
    elif change == {"resample"}:
        other = replace(job, encoding=replace(job.encoding, resample="adm"))
    else:
        other = replace(job, **change)
    (key,) = change
    name = {"format": "files", "model": "model name", "resample": "image resample unset"}.get(key, key)
    with pytest.raises(DatasetError, match=rf"holds a data set with {name}.*, not "):
        plan(other, find_input_shards([str(source)], 3))


def test_a_data_set_that_was_opened_is_built_again_without_its_description(
    tmp_path: Path, small_tokenizer: vartok.Tokenizer
) -> None:
    out = write_dataset(tmp_path / "out", [some_rows(1)])
    TokenDataset(out)
    (out / "dataset.json").unlink()
    prepare_folder(make_job(out, small_tokenizer))
    assert (out / "dataset.json").exists()


def test_a_folder_without_a_data_set_is_refused(tmp_path: Path, small_tokenizer: vartok.Tokenizer) -> None:
    save(tmp_path / "photos" / "a.png", width=8, height=8)
    with pytest.raises(DatasetError, match="exists and holds no data set"):
        plan(make_job(tmp_path / "photos", small_tokenizer), [])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dataset.json").write_text('{"format": "else"}')
    with pytest.raises(DatasetError, match="does not describe a data set of vartok"):
        plan(make_job(tmp_path / "other", small_tokenizer), [])
    (tmp_path / "other" / "dataset.json").write_text('{"format": "vartok.dataset", "version": 9}')
    with pytest.raises(DatasetError, match="version 9"):
        plan(make_job(tmp_path / "other", small_tokenizer), [])


def test_other_files_among_the_stats_are_ignored(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer
) -> None:
    job = make_job(tmp_path / "out", small_tokenizer)
    run(job, source, small_tokenizer)
    for name in ("00000-0000 (copy).json", "x-y.json", "notes"):
        (job.out / "stats" / name).write_text("{}")
    assert run(job, source, small_tokenizer) == []
