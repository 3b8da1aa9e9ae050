"""`vartok dataset` at the shell: its files, messages and exit codes; interrupted, killed, and on Ray."""

import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import only_ray_cluster
from conftest import Vartok, names, photo, save
from noise import SMALL, draw
from noise import save as save_checkpoint
from PIL import Image

from vartok.dataset import TokenDataset, builder, engines, verify
from vartok.errors import VartokError
from vartok.stopping import stop


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that takes microseconds: 8x8 pixels are 21 tokens."""
    return save_checkpoint(tmp_path_factory.mktemp("weights") / "noise.safetensors", SMALL, draw(SMALL))


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


def tar(path: Path, count: int, start: int = 0, beside: bytes = b"") -> Path:
    """A tar of pictures of three shapes, and labels; `beside` is added to every picture's bytes."""
    with tarfile.open(path, "w") as archive:
        for n in range(start, start + count):
            buffer = io.BytesIO()
            photo(n, 12, 9 + 4 * (n % 3)).save(buffer, "PNG")
            for name, data in (
                (f"{n:05}.png", buffer.getvalue() + beside),
                (f"{n:05}.cls", str(n % 10).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def buckets(folder: Path) -> tuple[object, ...]:
    """The options of a data set with a bucket for each shape of `tar`'s pictures."""
    (folder / "buckets.txt").write_text("6x8\n8x8\n10x6\n")
    return "--fit", "bucket", "--buckets", folder / "buckets.txt"


@pytest.fixture
def small(here: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, vartok: Vartok) -> Path:
    """A folder with photos/0.png to 4.png, and the small checkpoint as default."""
    monkeypatch.setenv("VARTOK_WEIGHTS", str(weights))
    for n in range(5):
        save(Path("photos", f"{n}.png"), n, 12, 9)
    return here


def test_a_folder_becomes_a_data_set(small: Path, vartok: Vartok) -> None:
    result = vartok("dataset", "photos", "-o", "out", "--shard-size", 2)
    assert "the data set is complete: 5 pictures in 3 shards" in result.stderr
    assert result.stdout == ""
    assert " kB, 0 failed" in result.stderr
    first = contents(Path("out"))
    assert names(Path("out/data")) == [f"0000{n}-0000.parquet" for n in range(3)]
    again = vartok("dataset", "photos", "-o", "out", "--shard-size", 2)
    assert "nothing to do; the data set is complete" in again.stderr
    assert contents(Path("out")) == first

    checked = vartok("dataset", "verify", "out")
    assert "5 pictures in 3 shards, 0 failed: no problems" in checked.stderr
    assert json.loads(vartok("dataset", "verify", "out", "--json").stdout) == {
        "shards": 3,
        "pictures": 5,
        "failed": 0,
        "damaged": 0,
        "problems": [],
    }


def test_each_picture_goes_to_the_folder_of_its_bucket(small: Path, vartok: Vartok) -> None:
    save(Path("photos", "tall.png"), 5, 9, 15)
    command = ["dataset", "photos", "-o", "out", *buckets(small)]
    assert "6 pictures in 2 shards" in vartok(*command).stderr
    assert names(small / "out/data") == ["10x6/00000-0000.parquet", "6x8/00000-0000.parquet"]
    vartok("dataset", "verify", "out")
    vartok("decode", "out", "-o", "drawn")
    with Image.open("drawn/tall.decoded.png") as picture:
        assert picture.size == (6, 10)
    refused = vartok("dataset", "photos", "-o", "out", "--fit", "pad", "--size", 8, code=1)
    assert 'out holds a data set with image fit "bucket", not "pad"' in refused.stderr


def test_json_reports_the_run_and_the_data_set(small: Path, vartok: Vartok) -> None:
    vartok("dataset", "photos", "-o", "out", "--shard-size", 2, "--shard", "0/2", "-q")
    told = json.loads(vartok("dataset", "photos", "-o", "out", "--shard-size", 2, "--json", "-q").stdout)
    assert told["run"]["pictures"] == 2
    assert told["run"]["shards"] == 1
    assert told["run"]["seconds"] > 0
    assert {name: told[name] for name in ("complete", "pictures", "failed", "shards")} == {
        "complete": True,
        "pictures": 5,
        "failed": 0,
        "shards": 3,
    }


@pytest.mark.parametrize("format", ["wds", "jsonl"])
def test_views_are_rows_that_other_commands_name(small: Path, vartok: Vartok, format: str) -> None:
    options = ("--views", "flip", "--latents", "--format", format)
    made = vartok("dataset", "photos/0.png", "photos/1.png", "-o", "out", *options)
    assert "2 pictures of 2 views in 1 shard" in made.stderr
    assert "2 pictures in 1 shard, 0 failed: no problems" in vartok("dataset", "verify", "out").stderr
    vartok("decode", "out", "-o", "drawn", "--keys", "0,1#1")
    assert names(Path("drawn")) == ["0#0.decoded.png", "0#1.decoded.png", "1#1.decoded.png"]
    assert "view        1: 1.2, 0 to 10.8, 9, mirrored" in vartok("inspect", "out", "--keys", "1#1").stdout
    assert (
        '"view": {"number": 0, "box": [1.2, 0.0, 10.8, 9.0], "flipped": false}'
        in vartok("inspect", "out", "--keys", "0", "--limit", 1, "--json").stdout
    )
    assert "no row has this key" in vartok("inspect", "out", "--keys", "0#2", code=1).stderr


def test_folders_can_be_labels(small: Path, vartok: Vartok) -> None:
    for name in ("b/0", "b/1", "b/deep/2", "a/3", "c.d/4"):
        save(Path("classes", f"{name}.png"), width=12, height=9)
    save(Path("more/a/5.png"), width=12, height=9)
    save(Path("more/6.png"), width=12, height=9)
    made = vartok("dataset", "classes", "more", "-o", "out", "--folder-labels")
    assert "note: no label for 1 picture outside of class folders" in made.stderr
    dataset = TokenDataset("out")
    assert dataset.classes == ["a", "b", "c.d"]
    found = {item["key"]: item["label"] for item in dataset}
    assert found == {"b/0": 1, "b/1": 1, "b/deep/2": 1, "a/3": 0, "c.d/4": 2, "a/5": 0, "6": -1}
    shown = vartok("inspect", "out", "--keys", "c.d/4,6").stdout
    assert "picture     c.d/4, 12 x 9 pixels\n  label       2, c.d\n" in shown
    assert shown.count("label") == 1
    assert '"label": 1, "class": "b"' in vartok("inspect", "out", "--json", "--keys", "b/1").stdout
    for named in (["classes/a", "classes/c.d"], ["more/6.png"]):
        refused = vartok("dataset", *named, "-o", "new", "--folder-labels", code=1)
        assert "no folders to label files by" in refused.stderr
    save(Path("classes/aa/7.png"), width=12, height=9)
    refused = vartok("dataset", "classes", "more", "-o", "out", "--folder-labels", code=1)
    assert "holds a data set with classes" in refused.stderr


def test_parts_together_equal_one_run(small: Path, vartok: Vartok) -> None:
    result = vartok("dataset", "photos", "-o", "out", "--shard-size", 2, "--shard", "1/2")
    assert "the data set is not complete yet: 2 pictures in 1 shard," in result.stderr
    assert "is not complete" in vartok("dataset", "verify", "out", code=1).stderr
    rest = vartok("dataset", "photos", "-o", "out", "--shard-size", 2, "--shard", "0/2")
    assert "note" not in rest.stderr
    few = vartok("dataset", "photos", "-o", "few", "--shard", "1/4")
    assert "note: only 1 input shard for 4 parts: no work for parts 1 to 3 (counted from 0)" in few.stderr
    vartok("dataset", "photos", "-o", "whole", "--shard-size", 2)
    assert contents(Path("out")) == contents(Path("whole"))


def test_damaged_pictures_are_taken_and_listed(small: Path, vartok: Vartok) -> None:
    Path("photos/1.png").write_bytes(Path("photos/1.png").read_bytes()[:250])
    assert "set --allow-damaged to take" in vartok("dataset", "photos", "-o", "out", code=3).stderr
    again = vartok("dataset", "photos", "-o", "out", "--allow-damaged", code=3)
    assert "1 failed (--retry-failed tries them again)" in again.stderr
    taken = vartok("dataset", "photos", "-o", "out", "--allow-damaged", "--retry-failed", "--json")
    assert "took what can be decoded of 1 damaged picture, which out/damaged.jsonl lists" in taken.stderr
    described = json.loads(Path("out/dataset.json").read_text())
    assert json.loads(taken.stdout)["damaged"] == described["damaged"] == 1
    [row] = [json.loads(line) for line in Path("out/damaged.jsonl").read_text().splitlines()]
    assert row["key"] == "1"
    assert row["cause"].startswith("is truncated")
    assert not Path("out/failed.jsonl").exists()
    assert "5 pictures in 1 shard (1 damaged)" in vartok("dataset", "photos", "-o", "out").stderr
    assert "5 pictures in 1 shard (1 damaged), 0 failed" in vartok("dataset", "verify", "out").stderr
    Path("out/damaged.jsonl").unlink()
    lost = vartok("dataset", "verify", "out", code=1).stderr
    assert "damaged.jsonl: has 0 lines, but the stats have 1 damaged picture: build" in lost


def test_failures_are_named_and_recorded_and_the_rest_is_done(small: Path, vartok: Vartok) -> None:
    Path("photos/1.png").write_bytes(Path("photos/1.png").read_bytes()[:100])
    Path("photos/z.tar").write_bytes(b"junk" * 300)
    result = vartok("dataset", "photos", "-o", "out", code=3)
    assert "vartok: photos/1.png: is truncated" in result.stderr
    assert "vartok: photos/z.tar: is not a whole tar file" in result.stderr
    rows = [json.loads(line) for line in Path("out/failed.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == ["photos/z.tar", "1"]
    assert verify(Path("out")).problems == []
    checked = vartok("dataset", "verify", "out")
    assert "4 pictures in 2 shards, 2 failed: the shards are intact; out/failed.jsonl lists" in checked.stderr

    save(Path("photos/1.png"), 1, 12, 9)
    vartok("dataset", "photos", "-o", "out", code=3)  # nothing to do, and still two are missing
    Path("photos/z.tar").unlink()
    tar(Path("photos/z.tar"), 2)
    vartok("dataset", "photos", "-o", "out", "--retry-failed")
    assert not Path("out/failed.jsonl").exists()
    vartok("dataset", "photos", "-o", "fresh")
    assert contents(Path("out")) == contents(Path("fresh"))


def test_a_second_signal_says_what_is_kept(
    here: Path, vartok: Vartok, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "describe_progress", lambda: "nothing was written")
    vartok("dataset", "nowhere", "-o", "out", "-w", weights, code=1)
    assert stop.describe_progress() == "finished shards are kept; the same command goes on"


def test_it_fails_when_all_pictures_fail(here: Path, weights: Path, vartok: Vartok) -> None:
    Path("a.png").write_bytes(b"junk")
    result = vartok("dataset", "a.png", "-o", "out", "-w", weights, code=1)
    assert "the data set is empty, as no picture could be encoded: 0 pictures in 1 shard" in result.stderr


def test_it_stops_after_max_failures(small: Path, vartok: Vartok) -> None:
    for n in (0, 3):
        Path(f"photos/{n}.png").write_bytes(b"junk")
    options = ("dataset", "photos", "--shard-size", 2)
    stopped = vartok(*options, "-o", "a", "--on-error", "stop", code=1)
    assert "stopped: 1 sample failed, more than the 0 allowed; 0 of 3 shards are done" in stopped.stderr
    vartok(*options, "-o", "b", "--max-failures", 1, code=1)
    assert len(names(Path("b/stats"))) == 1  # it stops in the shard of the second failure
    vartok(*options, "-o", "c", "--max-failures", 2, code=3)
    assert not [name for name in names(Path("a")) if ".tmp" in name]
    vartok(*options, "-o", "a", code=3)
    assert contents(Path("a")) == contents(Path("c"))


def test_a_forgotten_column_can_be_named_later(small: Path, vartok: Vartok) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures = [Path(f"photos/{n}.png").read_bytes() for n in range(2)]
    pq.write_table(pa.table({"image": pictures, "thumb": pictures}), "t.parquet")
    assert "--image-column" in vartok("dataset", "t.parquet", "-o", "out", code=1).stderr
    vartok("dataset", "t.parquet", "-o", "out", "--image-column", "image")
    assert verify(Path("out")).pictures == 2


def test_at_most_20_failures_are_named(small: Path, vartok: Vartok) -> None:
    for n in range(30):
        Path(f"photos/{n:02}.png").write_bytes(b"junk")
    result = vartok("dataset", "photos", "-o", "out", code=3)
    assert result.stderr.count("not a picture") == 20
    assert "further failures are listed in out/failed.jsonl only" in result.stderr
    assert len(Path("out/failed.jsonl").read_text().splitlines()) == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "2/2"], "--shard must be I/N"),
        (["--shard", "one"], "--shard must be I/N"),
        (["--keep-pictures"], "parquet shards cannot keep pictures"),
        (["--address", "auto"], "--address is only for the engine ray: set --engine to ray"),
        (["--engine", "ray", "--shard", "0/2"], "Ray divides the work itself"),
        (["--on-error", "stop", "--max-failures", "3"], "leave --max-failures out"),
        (["--fit", "native"], "native"),
        (["--views", "random"], "views are center, flip, ten-crop or random:N"),
        (["--seed", "1"], "--seed is only for random views"),
        (["--schedule", "1,2"], "--schedule must end in the latent's grid, here 4"),
        (["--scales", "9"], "--scales must be from 1 to 3, the number of scales, not 9"),
        (["--size", "9"], "--size must be a multiple of 2"),
        (["-o", "s3://bucket/out"], "s3://bucket/out is a URL: outputs are files and folders"),
    ],
)
def test_wrong_usage(small: Path, vartok: Vartok, options: list[str], message: str) -> None:
    result = vartok("dataset", "photos", "-o", "out", *options, code=2)
    assert re.search(message, " ".join(result.stderr.split()))
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [("nope", "vartok: nope: no such file or folder\n"), ("photos", "would have one key|is named twice")],
)
def test_sources_that_cannot_be_used_fail(small: Path, vartok: Vartok, source: str, message: str) -> None:
    assert re.search(message, vartok("dataset", "photos", source, "-o", "out", code=1).stderr)
    assert not Path("out").exists()


def test_other_folders_and_other_data_sets_are_refused(small: Path, vartok: Vartok) -> None:
    assert "photos exists and holds no data set" in vartok("dataset", "photos", "-o", "photos", code=1).stderr
    vartok("dataset", "photos", "-o", "out")
    assert (
        "shard_size 500, not 2" in vartok("dataset", "photos", "-o", "out", "--shard-size", 2, code=1).stderr
    )
    assert "holds no data set" in vartok("dataset", "verify", "photos", code=1).stderr


def test_verify_names_defects(small: Path, vartok: Vartok) -> None:
    vartok("dataset", "photos", "-o", "out")
    Path("out/data/00000-0000.parquet").unlink()
    result = vartok("dataset", "verify", "out", code=1)
    assert "out/data/00000-0000.parquet: is missing" in result.stderr
    assert ": 1 problem" in result.stderr
    told = json.loads(vartok("dataset", "verify", "out", "--json", code=1).stdout)
    assert told["problems"] == [
        {"file": "data/00000-0000.parquet", "what": "is missing: build the data set again"}
    ]


def test_inspect_codebook_counts_tokens_of_shards(small: Path, vartok: Vartok) -> None:
    vartok("encode", "-r", "photos", "-o", "tokens")
    expected = json.loads(vartok("inspect-codebook", "--usage", "tokens", "--json").stdout)["usage"]
    for format in ("parquet", "wds", "jsonl"):
        vartok("dataset", "photos", "-o", format, "--shard-size", 2, "--format", format)
        assert json.loads(vartok("inspect-codebook", "--usage", format, "--json").stdout)["usage"] == expected
    mixed = json.loads(vartok("inspect-codebook", "--usage", "tokens", "wds", "--json").stdout)["usage"]
    assert mixed["overall"]["tokens"] == 2 * expected["overall"]["tokens"]
    Path("parquet/data/00000-0000.parquet").write_bytes(b"junk")
    broken = vartok("inspect-codebook", "--usage", "parquet", code=3)
    assert "00000-0000.parquet: is not a parquet shard of tokens" in broken.stderr


def test_a_missing_pyarrow_is_said_once(small: Path, vartok: Vartok, monkeypatch: pytest.MonkeyPatch) -> None:
    vartok("dataset", "photos", "-o", "out", "--shard-size", 2)
    Path("t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    cure = r": run pip install '\.\[dataset\]' in a clone of vartok"
    with pytest.raises(VartokError, match=r"^not installed: pyarrow \(needed for parquet shards\)"):
        TokenDataset("out")
    for args in (["dataset", "verify", "out"], ["inspect-codebook", "--usage", "out"]):
        (line, *_) = vartok(*args, code=1).stderr.splitlines()
        assert re.fullmatch(rf".*not installed: pyarrow \(needed for parquet shards\){cure}", line)
    for args in (["dataset", "t.parquet"], ["encode", "t.parquet"]):
        (line, *rest) = vartok(*args, "-o", "x", code=1).stderr.splitlines()
        assert re.fullmatch(rf".*not installed: pyarrow \(needed for (data sets|tables)\){cure}", line)
        assert "pyarrow" not in "".join(rest)


@pytest.mark.slow
def test_processes_give_the_same_bytes(small: Path, vartok: Vartok) -> None:
    vartok("dataset", "photos", "-o", "one", "--shard-size", 2)
    vartok("dataset", "photos", "-o", "two", "--shard-size", 2, "--processes", 2)
    assert contents(Path("one")) == contents(Path("two"))


def test_one_input_shard_runs_on_the_chosen_device(
    small: Path, vartok: Vartok, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loaded = builder._load, []

    def on_cpu(weights: str | Path | None, device: str, dtype: str, *, compile: bool) -> Any:
        loaded.append((device, compile))
        return load(weights, "cpu", dtype, compile=False)

    monkeypatch.setattr(builder, "_load", on_cpu)
    monkeypatch.setattr(engines, "_count_gpus", lambda: 4)
    monkeypatch.setattr("vartok.runtime.choose_device", torch.device)
    vartok("dataset", "photos", "-o", "out", "--device", "cuda", "--compile")
    assert loaded[-1] == ("cuda", True)


# As processes of their own.


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "vartok", "dataset", *map(str, args)]


def start(*args: object, **options: Any) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "VARTOK_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command(*args), env=environment, stderr=subprocess.PIPE, **options)


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_can_be_completed(
    tmp_path: Path, weights: Path, number: signal.Signals, code: int
) -> None:
    source = [tar(tmp_path / f"{n}.tar", 400, 1000 * n) for n in range(4)]
    options = (*source, "-o", tmp_path / "out", "-w", weights, "--shard-size", 50)
    run = start(*options)
    wait_for(lambda: [*tmp_path.glob("out/stats/[0-9]*")])
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    assert run.returncode == code, said.decode()
    line = r"vartok: stopped: (\d+) of \d+( or more)? shards are done; the same command goes on\n"
    told = re.fullmatch(line, said.decode())
    assert told, said.decode()
    assert int(told[1]) == len(names(tmp_path / "out/stats"))
    assert not [name for name in names(tmp_path / "out") if ".vartok" in name]
    left = names(tmp_path / "out/stats")
    assert 0 < len(left) < 32
    assert start(*options, "-q").wait(60) == 0
    assert len(names(tmp_path / "out/stats")) == 32
    assert verify(tmp_path / "out").problems == []


@pytest.mark.slow
def test_a_second_run_in_a_folder_leaves_the_first_alone(tmp_path: Path, weights: Path) -> None:
    source = [tar(tmp_path / f"{n}.tar", 400, 1000 * n) for n in range(3)]
    options = (*source, "-w", weights, "--shard-size", 20, "-q")
    first = start(*options, "-o", tmp_path / "out")
    wait_for((tmp_path / "out/dataset.json").exists)
    wait_for(lambda: names(tmp_path / "out/stats"))
    second = start(*options, "-o", tmp_path / "out")
    said = second.communicate(timeout=60)[1].decode()
    assert (first.poll(), second.returncode) == (None, 1)
    busy = rf"another run is at work in {tmp_path}/out: process {first.pid} on \S+"
    assert re.fullmatch(rf"vartok: {busy}: wait until it has ended; .* --shard\n", said), said
    first.kill()  # its lock ends with it
    first.communicate()
    assert start(*options, "-o", tmp_path / "out").wait(120) == 0
    assert start(*options, "-o", tmp_path / "alone").wait(120) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def children(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found + [below for child in found for below in children(child)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_ten_times_it_ends_in_the_same_bytes(tmp_path: Path, weights: Path, processes: int) -> None:
    """The process itself is killed, or one that it started, at any moment from start to end.

    Two processes write files of three buckets at once, one process those of one size.
    """
    views = processes  # the second time, buckets with two views and latents of half as many pictures
    source = [tar(tmp_path / f"{n}.tar", 300 // views, 1000 * n) for n in range(4)]
    (tmp_path / "4.tar").write_bytes(source[0].read_bytes()[:50_000])
    source.append(tmp_path / "4.tar")
    options = (*source, "-w", weights, "--shard-size", 40 // views, "-q")
    if processes > 1:
        options += (*buckets(tmp_path), "--views", "flip", "--latents")
    whole = start(*options, "-o", tmp_path / "whole")
    begun = time.monotonic()
    assert whole.wait(120) == 3
    length = time.monotonic() - begun
    rng = random.Random(processes)
    killed = 0

    def finished() -> int:
        return len(list((tmp_path / "out" / "stats").glob("*.json")))

    def wait_for_a_shard(run: "subprocess.Popen[bytes]") -> None:
        before = finished()
        wait_for(lambda: finished() > before or run.poll() is not None)

    while killed < 10:
        for path in rng.sample(sorted((tmp_path / "out" / "stats").glob("*.json")), max(0, finished() - 10)):
            path.unlink()  # so that there is always something to do
        run = start(*options, "-o", tmp_path / "out", *(["--processes", "2"] if processes > 1 else []))
        if killed % 4:  # as it ends, starts and works on a shard
            wait_for_a_shard(run)
            time.sleep(rng.uniform(0, 0.02))
        else:
            time.sleep(rng.uniform(0, length))
        victims = children(run.pid)
        victim = rng.choice(victims) if victims and killed % 2 else run.pid
        if run.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                killed += 1
        run.communicate(timeout=120)
    assert start(*options, "-o", tmp_path / "out").wait(120) == 3
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_ray_gives_the_same_bytes_even_if_an_actor_is_killed(tmp_path: Path, weights: Path) -> None:
    source = [tar(tmp_path / f"{n}.tar", 150, 1000 * n) for n in range(3)]
    (tmp_path / "3.tar").write_bytes(source[0].read_bytes()[:50_000])
    options = (*source, tmp_path / "3.tar", "-w", weights, "--shard-size", 50, "-q", *buckets(tmp_path))
    options += ("--views", "random:2", "--zoom", 1.2, "--latents")
    assert start(*options, "-o", tmp_path / "whole").wait(120) == 3
    with only_ray_cluster():
        run = start(*options, "-o", tmp_path / "ray", "--engine", "ray", "--json", stdout=subprocess.PIPE)
        wait_for(lambda: (tmp_path / "ray/stats").exists() and names(tmp_path / "ray/stats"), 120)
        killed = 0
        for child in children(run.pid):
            with contextlib.suppress(OSError):
                if b"_Encoder" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(child, signal.SIGKILL)
                    killed += 1
        told, said = run.communicate(timeout=240)
    assert run.returncode == 3, said.decode()
    assert killed == 1
    assert json.loads(told)["failed"] == 1  # and nothing of Ray's is on stdout
    assert contents(tmp_path / "ray") == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits a file's size as Linux does")
def test_a_full_disk_stops_it_and_keeps_finished_shards(tmp_path: Path, weights: Path) -> None:
    """A limit on the size of files stands in for the disk's end: writing beyond it fails likewise."""
    import resource

    small, large = tar(tmp_path / "0.tar", 20), tar(tmp_path / "1.tar", 2000, 1000)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    options = (small, large, "-o", tmp_path / "out", "-w", weights, "--shard-size", 2000, "-q")
    run = start(*options, preexec_fn=limit)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 3
    assert said.decode().startswith(f"vartok: cannot write in {tmp_path}/out: ")
    assert said.count(b"\n") == 1
    assert names(tmp_path / "out/data") == ["00000-0000.parquet"]
    assert start(*options).wait(120) == 0
    assert verify(tmp_path / "out").pictures == 2020


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path, weights: Path) -> None:
    """The pictures are large beside their tokens, as they are in life."""

    def peak(count: int) -> int:
        source = tar(tmp_path / f"{count}.tar", count, beside=b"\0" * 100_000)
        run = start(source, "-o", tmp_path / f"out{count}", "-w", weights, "--shard-size", 100_000, "-q")
        most = 0
        while run.poll() is None:
            with contextlib.suppress(OSError, ValueError, IndexError):
                status = Path(f"/proc/{run.pid}/status").read_text()
                most = max(most, int(status.partition("VmHWM:")[2].split()[0]))
            time.sleep(0.02)
        assert run.returncode == 0
        return most

    few, many = peak(200), peak(3_000)
    assert many - few < 30_000  # kB, where the pictures are 300 MB
