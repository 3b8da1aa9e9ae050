"""Stats files: what they hold, and what happens when a power cut tears one."""

from dataclasses import replace
from pathlib import Path

import pytest
from dataset_cases import contents, make_job, run

import vartok
from vartok.dataset.stats import (
    DamagedSample,
    FailedSample,
    FileStats,
    ShardStats,
    broken_stats,
    read_stats,
    stats_path,
)
from vartok.errors import DatasetError

pytest_plugins = ["dataset_cases"]

STATS = ShardStats(
    input="a/b.tar",
    files={"": FileStats(2, 10, "0" * 64)},
    failed=(FailedSample("k", "is truncated"),),
    carried={"label": 1},
    last=True,
)


def test_stats_survive_a_round_trip() -> None:
    assert ShardStats.from_json(STATS.to_json()) == STATS
    for length in range(len(STATS.to_json()) - 1):
        with pytest.raises(DatasetError, match="empty, torn, or not a stats file"):
            ShardStats.from_json(STATS.to_json()[:length])


def test_values_of_another_type_are_refused() -> None:
    with pytest.raises(DatasetError, match="last is not of type bool"):
        ShardStats.from_json(STATS.to_json().replace('"last": true', '"last": 1'))


def test_what_is_not_carried_is_counted_if_there_is_any() -> None:
    assert "not_carried" not in STATS.to_json()
    stats = replace(STATS, damaged=(DamagedSample("k", "is truncated"),))
    assert ShardStats.from_json(stats.to_json()) == stats
    stats = replace(STATS, not_carried={"column 'label': lists": 2})
    assert ShardStats.from_json(stats.to_json()) == stats
    for wrong in ('"not_carried": []', '"not_carried": {"a": "2"}'):
        with pytest.raises(DatasetError, match="not_carried does not hold counts"):
            ShardStats.from_json(STATS.to_json().replace("}\n", f", {wrong}}}\n"))


@pytest.mark.parametrize("torn", [b"", b"{}", b"[1]", b"\0" * 300, b'{"input": "sour', b"\xff"])
def test_a_torn_stats_file_means_not_done(
    tmp_path: Path, source: Path, small_tokenizer: vartok.Tokenizer, whole: dict[str, bytes], torn: bytes
) -> None:
    job = make_job(tmp_path / "out", small_tokenizer)
    run(job, source, small_tokenizer)
    path = stats_path(job.out, (0, 1))
    path.write_bytes(torn)
    assert (0, 1) not in read_stats(job.out)
    assert list(broken_stats(job.out)) == [(0, 1)]
    finished = [report.shard for report in run(job, source, small_tokenizer) if report.finished]
    assert finished == ["00000-0001"]
    assert contents(job.out) == whole
