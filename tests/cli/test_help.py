"""Help, the version, and what the start of a command imports."""

import importlib
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from commands import ENVIRONMENT
from conftest import Vartok, save

import vartok as library


@pytest.mark.parametrize(
    "args",
    [
        *(
            ["--help"],
            ["--version"],
            ["encode", "--help"],
            ["inspect", "img.json"],
            ["encode", "--zoom", "0"],
        ),
        ["show", "img.png"],
    ],
)
def test_starts_without_torch(here: Path, args: list[str]) -> None:
    (here / "img.json").write_text("{")
    save(here / "img.png", width=16, height=16)
    code = (
        "import importlib, sys\n"
        "try: importlib.import_module('vartok.cli').app(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'rich', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, *args], env=ENVIRONMENT, check=True, capture_output=True)


def test_library_imports_without_torch() -> None:
    code = "import sys, vartok; vartok.VartokError; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_python_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vartok", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"vartok {library.__version__}\n"
    assert done.stderr == ""


def commands(app: typer.Typer) -> dict[str, Any]:
    """All commands by what is typed for them; of `dataset` the one that is meant where none is named."""
    group: Any = typer.main.get_command(app)
    found = dict(group.commands)
    found["dataset verify"] = found["dataset"].commands["verify"]
    found["dataset"] = found["dataset"].commands["make"]
    for name in ("fetch", "path"):
        found[f"models {name}"] = found["models"].commands[name]
    found["models"] = found["models"].commands["list"]
    return found


def test_help(app: typer.Typer, vartok: Vartok) -> None:
    text = vartok("--help").stdout
    assert set(commands(app)) == {
        "encode",
        "decode",
        "show",
        "inspect",
        "diff",
        "mix",
        "inspect-codebook",
        "schedules",
        "eval",
        "train",
        "convert",
        "export",
        "env",
        "dataset",
        "dataset verify",
        "models",
        "models fetch",
        "models path",
    }
    for name, command in commands(app).items():
        assert name.partition(" ")[0] in text
        assert command.help.partition("\n")[0].endswith((".", ","))
        for param in command.params:
            assert param.help, f"{name} {param.name} has no help"
        known = {option for param in command.params for option in param.opts}
        examples = [line.strip() for line in command.help.splitlines() if line.startswith("  ")]
        assert examples, f"{name} has no example"
        shown = vartok(*name.split(), "-h").stdout
        assert shown.startswith(f"Usage: vartok {name} [OPTIONS]")
        for example in examples:
            assert f"vartok {name} " in f"{example} "
            of_others = ("vartok dataset verify", "vartok models fetch", "vartok models path")
            if example.startswith(of_others) and " " not in name:
                continue
            assert f"    {example}\n" in shown
            first = example.partition(f"vartok {name}")[2].partition("|")[0]
            assert {word for word in shlex.split(first) if word.startswith("-")} <= known
    assert "`vartok models path NAME`" in " ".join(vartok("models", "-h").stdout.split())
    assert vartok("--version").stdout == f"vartok {library.__version__}\n"
    assert vartok(code=2).output.startswith("Usage: ")


def test_choices_are_those_of_the_library() -> None:
    from vartok import images, runtime

    options: Any = importlib.import_module("vartok.cli.options")
    assert get_args(options.FitMode) == images.FITS
    assert get_args(options.PictureFormat) == (*images.FORMATS, "gif")
    assert get_args(options.Dtype) == tuple(runtime.DTYPES)


def test_completion(vartok: Vartok, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_VARTOK_COMPLETE", "complete_bash")
    for words, expected in (
        ("vartok dec", "decode"),
        ("vartok decode --format ", "png\njpg\nwebp\nnpy\ngif"),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        assert vartok().stdout.strip() == expected
