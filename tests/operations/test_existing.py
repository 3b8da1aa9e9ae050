"""Outputs that exist, and what `skip_existing` makes of them; disks that are full."""

import dataclasses
import errno
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
from commands import QUICK
from conftest import Vartok, names, save
from noise import SMALL
from noise import save as save_checkpoint

import vartok as library
from vartok import files
from vartok.checkpoints import read_summary
from vartok.errors import OutputError, OutputExistsError
from vartok.operations import encode
from vartok.stopping import stop
from vartok.token_files import dump_json
from vartok.token_sources import load_tokens


@pytest.fixture
def encoded(vartok: Vartok, here: Path) -> Path:
    """Return a folder of three pictures, of which two have tokens in the folder out."""
    for name in "abc":
        save(here / "in" / f"{name}.png", 64, 64)
    vartok("encode", "in/a.png", "in/b.png", "-o", "out/", *QUICK)
    return here


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--size", "128"], "size 64x64, not 128x128"),
        ([*QUICK, "--fit", "pad"], "fit crop, not pad"),
        ([*QUICK, "--zoom", "2"], "zoom 1, not 2"),
        ([*QUICK, "--resample", "adm"], "resample lanczos, not adm"),
        ([*QUICK, "--background", "#000"], "background #ffffff, not #000000"),
        (["--size", "64", "--schedule", "1,2,4"], "schedule 1,4, not 1,2,4"),
        (["--size", "64"], "schedule 1,4, not 1,1,1,1,1,2,2,2,3,4"),
        ([], "size 64x64, not 256x256"),
        (["--fit", "native", "--schedule", "1,4"], "fit crop, not native"),
        ([*QUICK, "--dtype", "bfloat16"], "dtype float32, not bfloat16"),
    ],
)
def test_tokens_of_other_settings_are_kept_and_said(
    vartok: Vartok, encoded: Path, options: list[str], difference: str
) -> None:
    before = (encoded / "out/a.tokens.npz").read_bytes()
    refused = vartok("encode", "in/a.png", "in/b.png", "-o", "out/", "--skip-existing", *options, code=1)
    first, more, total = refused.stderr.splitlines()
    cure = "set --force in place of --skip-existing to replace it, or name another folder with --output"
    told = f"in/a.png: out/a.tokens.npz was made with other settings ({difference}): {cure}"
    assert first == f"vartok: {told}"
    assert more == f"vartok: 1 more that exist are kept for the same reason: {difference}"
    assert total.startswith("vartok: encoded 0, 2 failed in ")
    assert (encoded / "out/a.tokens.npz").read_bytes() == before


def test_tokens_of_the_same_settings_are_skipped_without_torch(
    vartok: Vartok, encoded: Path, other_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = vartok("encode", "-r", "in", "-o", "out", "--skip-existing", *QUICK)
    assert done.stderr.startswith("vartok: encoded 1, 2 skipped in ")
    monkeypatch.setitem(sys.modules, "vartok.loading", None)  # a checkpoint cannot be loaded
    skipped = vartok("encode", "-r", "in", "-o", "out", "--skip-existing", *QUICK)
    assert skipped.stderr.startswith("vartok: encoded 0, 3 skipped in ")
    told = vartok("encode", "-r", "in", "-o", "out", "--skip-existing", *QUICK, "-w", other_weights, code=1)
    assert "checkpoint vartok-light-v2 (9dc453ccf34b), not other (" in told.stderr


def test_a_jsonl_is_compared_line_by_line(vartok: Vartok, encoded: Path) -> None:
    tokens = load_tokens("out/a.tokens.npz")
    small = replace(tokens, image=replace(tokens.image, size=(32, 32)))
    (encoded / "all.jsonl").write_text(f"{dump_json(tokens)}\n{dump_json(small)}\n")
    args = ["encode", "-r", "in", "-o", "all.jsonl", "--skip-existing", *QUICK]
    assert "(size 32x32, not 64x64 in 1 of 2 images)" in vartok(*args, code=1).stderr
    (encoded / "all.jsonl").write_text(f"{dump_json(tokens)}\n")
    assert "so all inputs are skipped" in vartok(*args).stderr
    (encoded / "all.jsonl").write_text("")
    assert "all.jsonl: exists, but is no whole token file: " in vartok(*args, code=1).stderr


def test_pictures_of_another_size_are_kept_and_said(vartok: Vartok, encoded: Path) -> None:
    vartok("decode", "-r", "out", "-o", "drawn")
    again = ["decode", "-r", "out", "-o", "drawn", "--skip-existing"]
    assert "decoded 0, 2 skipped" in vartok(*again).stderr
    vartok("encode", "-r", "in", "-o", "out", "--size", "32", "--schedule", "1,2", "--force")
    told = vartok(*again, code=3).stderr
    assert "drawn/a.decoded.png was made with other settings (64 x 64 pixels, not 32 x 32)" in told
    assert "1 more that exist are kept for the same reason" in told
    assert names(encoded / "drawn") == [f"{name}.decoded.png" for name in "abc"]
    strip = vartok(
        "decode", "out/c.tokens.npz", "-o", "drawn/c.decoded.png", "--strip", "--skip-existing", code=1
    )
    assert "(32 x 32 pixels, not 64 x 32)" in strip.stderr


def test_a_failure_is_not_mistaken_for_a_file_that_exists(
    encoded: Path, tokenizer: library.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, data: bytes, *, overwrite: bool) -> None:
        (path.parent / "c.tokens.npz").write_bytes((encoded / "out/a.tokens.npz").read_bytes())
        raise (OutputExistsError if exists else library.OutputError)(
            "by another process, or for another reason"
        )

    monkeypatch.setattr(encode, "write_bytes", fail)
    options = {"tokenizer": tokenizer, "size": 64, "schedule": "1,4", "skip_existing": True}
    for exists in (False, True):
        [result] = library.encode_files("in/c.png", "out/", **options)  # type: ignore[arg-type]
        assert result.skipped == exists
        assert (result.error is None) == exists
        (encoded / "out/c.tokens.npz").unlink()


def test_the_summary_of_a_checkpoint_is_that_of_the_loaded_one(
    tokenizer: library.Tokenizer, tmp_path: Path
) -> None:
    assert read_summary(None) == (tokenizer.config, tokenizer.info)
    whole = dataclasses.replace(SMALL, quant_resi=1)  # as JSON writes 1.0 at times
    path = save_checkpoint(tmp_path / "whole.safetensors", whole)
    assert read_summary(path) == (whole, library.load(path, device="cpu").info)
    (tmp_path / "x").write_bytes(b"no checkpoint")
    assert read_summary(tmp_path / "x") is None
    with pytest.raises(library.CheckpointError, match="no such file"):
        read_summary(tmp_path / "none")


@pytest.mark.parametrize(
    ("command", "options", "instead"),
    [("encode", QUICK, ""), ("decode", ["--force"], " in place of --force")],
)
def test_a_full_disk_ends_the_run_with_one_line(
    vartok: Vartok,
    encoded: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: list[str],
    instead: str,
) -> None:
    vartok("encode", "-r", "in", "-o", "all", *QUICK)
    atomic, written = files.atomic_write, []

    @contextmanager
    def full(path: Path, **options: bool) -> Iterator[BinaryIO]:
        written.append(path)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, "")
        with atomic(path, **options) as file:
            yield file

    monkeypatch.setattr(files, "atomic_write", full)
    source = "in" if command == "encode" else "all"
    ended = vartok(command, "-r", source, "-o", "new", *options, code=3)
    line, total = ended.stderr.splitlines()
    assert ": no space left on the disk; the run ends here: make room, then set" in line
    assert line.endswith(f" set --skip-existing{instead} to do the rest")
    assert f"{command}d 1, 1 failed, 1 not reached" in total
    assert len(names(encoded / "new")) == 1


def test_failures_of_one_reason_are_counted(vartok: Vartok, here: Path) -> None:
    for number in range(6):
        (here / f"in/{number}.png").parent.mkdir(exist_ok=True)
        (here / f"in/{number}.png").write_bytes(b"no picture")
    alike = vartok("encode", "-r", "in", code=1).stderr.splitlines()
    assert len(alike) == 3
    assert alike[0].startswith("vartok: in/0.png: ")
    assert alike[1] == "vartok: 5 others failed for the same reason"
    save(here / "in/9.png", 64, 64)
    assert len(vartok("encode", "-r", "in", *QUICK, code=3).stderr.splitlines()) == 7
    (here / "9.tokens.npz").write_bytes((here / "in/9.tokens.npz").read_bytes())
    for number in range(6):
        (here / f"{number}.tokens.npz").write_bytes(b"no tokens")
    named = vartok("inspect", *(f"{number}.tokens.npz" for number in (0, 1, 2, 3, 4, 5, 9)), code=3).stderr
    assert len(named.splitlines()) == 6


def test_failures_are_told_where_an_error_ends_the_run(
    vartok: Vartok, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        (here / f"{number}.tokens.npz").write_bytes(b"no tokens")
    save(here / "9.png", 0, 64, 64)
    vartok("encode", "9.png", *QUICK)

    def full(text: str) -> None:
        raise OutputError("no space left")

    monkeypatch.setattr(importlib.import_module("vartok.cli.inspect"), "print_result", full)
    told = vartok("inspect", *sorted(here.glob("*.npz")), code=1).stderr.splitlines()
    assert len(told) == 4
    assert told[-1] == "vartok: no space left"


def test_failures_that_are_held_back_are_bounded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("vartok.cli.report")
    monkeypatch.setattr(module, "MAX_HELD", 5)

    def stopped(last: str | None) -> None:
        with module.Report(None, verb="read", quiet=True) as report:
            for number in range(9):
                report.fail(f"{number}.png", "is no picture")
            if last:
                report.fail("9.png", last)
            raise KeyboardInterrupt

    for last, lines in (("another", 8), (None, 2)):
        with pytest.raises(KeyboardInterrupt):
            stopped(last)
        told = capsys.readouterr().err.splitlines()
        assert len(told) == lines
        assert f"vartok: {3 if last else 8} others failed for the same reason" in told
        assert stop.describe_progress() == f"read 0, {10 if last else 9} failed"


@pytest.mark.parametrize("force", [False, True])
def test_the_advice_after_a_stop_can_be_followed(vartok: Vartok, here: Path, force: bool) -> None:
    save(here / "a.png", 0, 64, 64)
    vartok("encode", "a.png", *["--force"] * force, *QUICK)
    instead = " in place of --force" * force
    assert (
        stop.describe_progress() == f"encoded 1; the same command with --skip-existing{instead} does the rest"
    )
    vartok("encode", "a.png", "-o", "all.jsonl", *["--force"] * force, *QUICK)
    assert stop.describe_progress() == (
        "encoded 1; all.jsonl was not written, and the same command begins anew; into a folder, "
        "--skip-existing would go on"
    )


def test_pictures_of_one_name_in_a_jsonl_are_all_decoded(vartok: Vartok, here: Path) -> None:
    for folder in ("a", "b", "B"):
        save(here / folder / ("IMG.png" if folder == "B" else "img.png"), 64, 64)
    vartok("encode", "a/img.png", "b/img.png", "B/IMG.png", "-o", "all.jsonl", *QUICK)
    told = vartok("decode", "all.jsonl", "-o", "out").stderr
    assert "2 outputs got another name" in told
    assert names(here / "out") == ["IMG-3.decoded.png", "img-2.decoded.png", "img.decoded.png"]
    assert "decoded 0, 3 skipped" in vartok("decode", "all.jsonl", "-o", "out", "--skip-existing").stderr
