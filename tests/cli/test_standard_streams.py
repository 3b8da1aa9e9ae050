"""Standard streams that are closed or have another encoding, and words that could harm a terminal."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
from commands import ENVIRONMENT, PROGRAM, QUICK
from conftest import Vartok, save
from typer.testing import CliRunner

HARMFUL = {"control": "a\x1b]0;x\x07\nb\u202ec", "long": "x" * 200_000}


@pytest.mark.parametrize("word", HARMFUL.values(), ids=HARMFUL)
@pytest.mark.parametrize(
    "args",
    [
        "{}",
        "encode a.png --{}",
        "encode a.png -{}",
        "encode a.png --zoom {}",
        "encode a.png --fit {}",
        "encode a.png --background {}",
        "encode a.png -o s3://{}",
        "convert a.pth b.safetensors {}",
        "convert a.pth {}",
        "inspect-codebook --atlas {}",
        "dataset a.png -o out --shard {}",
        "train a.png -o run -p {}",
    ],
)
def test_usage_errors_are_printable(vartok: Vartok, here: Path, args: str, word: str) -> None:
    """They repeat what the user gave: a terminal's commands in it do nothing, and its lines stay one."""
    result = vartok(*[part.format(word) for part in args.split()], code=2)
    *_, message = result.stderr.splitlines()
    assert message.startswith("Error: ")
    assert message.isprintable()
    assert len(message) < 1300
    assert "\x1b" not in result.output


@pytest.mark.parametrize(
    ("charset", "name"), [("ascii", "Kafer ?"), ("cp1252", "Käfer ?"), ("utf-8", "Käfer 日")]
)
def test_a_stream_gets_plain_characters_for_those_that_it_lacks(
    vartok: Vartok, app: typer.Typer, here: Path, charset: str, name: str
) -> None:
    save(here / "Käfer 日.png")
    vartok("encode", "Käfer 日.png", *QUICK, "-o", "Käfer 日.npz")
    runner = CliRunner(charset=charset)
    shown = runner.invoke(app, ["inspect", "Käfer 日.npz"])
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[0] == f"{name}.npz"
    assert f"not '{name}.x'" in runner.invoke(app, ["encode", "--size", "Käfer 日.x"]).stderr
    assert (
        runner.invoke(app, ["encode", "Käfer 日.x"]).stderr == f"vartok: {name}.x: no such file or folder\n"
    )


@pytest.mark.parametrize(("charset", "ruled"), [("ascii", "-" * 20), ("utf-8", "─" * 20)])
def test_tables_have_the_same_layout_in_plain_characters(
    vartok: Vartok, app: typer.Typer, here: Path, charset: str, ruled: str
) -> None:
    save(here / "a.png")
    vartok("encode", "a.png", *QUICK, "-o", "a.npz")
    table = CliRunner(charset=charset).invoke(app, ["inspect-codebook", "--usage", "a.npz"]).stdout
    assert ruled in table
    assert "|" not in table
    assert ("█" in table) == (charset == "utf-8")


@pytest.mark.slow
def test_closed_streams(vartok: Vartok, here: Path) -> None:
    save(here / "img.png")
    vartok("encode", "img.png", "-o", "img.json", *QUICK)
    closed = "it is closed, or not open for this"
    for args, code, message in (
        ("encode <&-", 1, f"standard input: {closed}"),
        ("encode --files-from - <&-", 1, f"standard input: {closed}"),
        ("inspect img.json >&-", 1, f"stdout: {closed}"),
        ("encode --format jsonl -o - img.png >&-", 1, f"stdout: {closed}"),
        ("--version >&-", 1, f"stdout: {closed}"),
        ("encode -h >&-", 1, f"stdout: {closed}"),
        ("inspect gone.json 2>&-", 1, ""),
        ("encode --nonsense 2>&-", 2, ""),
        ("inspect img.json 2>&-", 0, ""),
        ("encode img.png -o x.npz --size 64 --schedule 1,4 <&- >&- 2>&-", 0, ""),
    ):
        line = f"{shlex.join(PROGRAM)} {args}"
        done = subprocess.run(
            ["sh", "-c", line], env=ENVIRONMENT, cwd=here, capture_output=True, check=False, text=True
        )
        assert (done.returncode, done.stderr) == (code, f"vartok: {message}\n" * bool(message)), args
    assert os.path.getsize(here / "x.npz") > 0
