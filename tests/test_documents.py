"""README and docs: their commands and Python blocks run, their links exist, and README stays one page."""

from __future__ import annotations

import contextlib
import glob
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import ROOT, Vartok, save

from vartok.train import parse_settings

DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
)
LANGUAGES = {"sh", "python", "json", "toml"}
MARKS = {"", "not-run", "slow"}


class Block(NamedTuple):
    """A fenced block of a document.

    Attributes:
        document: the document's path.
        line: line number of the block's content.
        language: word after the fence.
        mark: "", "not-run", or "slow".
        text: content.
    """

    document: str
    line: int
    language: str
    mark: str
    text: str

    @property
    def name(self) -> str:
        """Document and line, as editors open them."""
        return f"{self.document}:{self.line}"


def blocks(document: str) -> list[Block]:
    """Return the fenced blocks of a document, in order."""
    text = (ROOT / document).read_text()
    found = []
    for match in re.finditer(r"^```([a-z]*) ?([a-z-]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text[: match.start(3)].count("\n") + 1
        found.append(Block(document, line, *match.groups()))
    return found


def commands(text: str) -> list[str]:
    """Return the command lines of a shell block; a backslash joins lines."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.partition("#")[0].strip()]


def words(line: str) -> list[str]:
    """Split a command line as a shell does, comments and file patterns included."""
    expanded = []
    for word in shlex.split(line, comments=True):
        expanded += sorted(glob.glob(word)) or [word]
    return expanded


def is_plain(line: str) -> bool:
    """Return True for one call of vartok, without pipes."""
    return line.startswith("vartok ") and not re.search(r"[|<>]", line.partition(" #")[0])


@pytest.fixture
def place(here: Path) -> Path:
    """Return the working folder that documents assume, with small pictures in it."""
    save(here / "img.png", 0, 96, 64)
    for n in range(3):
        save(here / "photos" / "trip" / f"{n}.jpg", n, 80, 80)
        save(here / "classes" / f"class{n}" / f"{n}.png", n, 80, 80)
    shutil.copy(here / "photos" / "trip" / "0.jpg", here / "a.jpg")
    (here / "shards").mkdir()
    with tarfile.open(here / "shards" / "0.tar", "w") as tar:
        for n in range(3):
            tar.add(here / "photos" / "trip" / f"{n}.jpg", f"{n}.jpg")
    shutil.copy(ROOT / "weights" / "vartok-light-v2.safetensors", here / "shipped.safetensors")
    return here


def run_python(block: Block, names: dict[str, Any]) -> None:
    """Run a Python block among the names that earlier blocks of its document have made."""
    code = compile("\n" * (block.line - 1) + block.text, str(ROOT / block.document), "exec")
    with contextlib.redirect_stdout(None):
        exec(code, names)


def run_blocks(document: str, marks: set[str], vartok: Vartok) -> None:
    """Run a document's blocks of some marks in this process; pipes and other programs are left out."""
    names: dict[str, Any] = {"__name__": "document"}
    for block in blocks(document):
        if block.mark in marks and block.language == "python":
            run_python(block, names)
        if block.mark in marks and block.language == "sh":
            for line in filter(is_plain, commands(block.text)):
                vartok(*words(line)[1:])


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(d, marks=() if d == "README.md" else pytest.mark.slow)
        for d in DOCUMENTS
        if any(block.mark == "" for block in blocks(d))
    ],
)
def test_blocks_run(document: str, place: Path, vartok: Vartok) -> None:
    run_blocks(document, {""}, vartok)


@pytest.mark.slow
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if any(b.mark == "slow" for b in blocks(d))])
def test_slow_blocks_run(document: str, place: Path, vartok: Vartok) -> None:
    """Blocks without a mark run too: the slow ones may use their files."""
    run_blocks(document, {"", "slow"}, vartok)


PIPES = [
    block
    for document in DOCUMENTS
    for block in blocks(document)
    if block.language == "sh" and block.mark != "not-run" and not all(map(is_plain, commands(block.text)))
]


@pytest.mark.slow
@pytest.mark.parametrize("block", PIPES, ids=[block.name for block in PIPES])
def test_pipes_run_in_a_shell(block: Block, place: Path) -> None:
    program = place / "bin" / "vartok"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m vartok "$@"\n')
    program.chmod(0o755)
    script = f'PATH="{program.parent}:$PATH"; export VARTOK_DEVICE=cpu; set -e -o pipefail\n{block.text}'
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{block.name}: {run.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_toml_blocks_are_settings(document: str) -> None:
    for block in blocks(document):
        if block.language == "toml":
            parse_settings(block.text)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_are_of_known_kinds(document: str) -> None:
    text = (ROOT / document).read_text()
    found = blocks(document)
    assert 2 * len(found) == len(re.findall("^```", text, re.MULTILINE))
    for block in found:
        assert block.language in LANGUAGES, block.name
        assert block.mark in MARKS, block.name


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if any(b.mark == "not-run" for b in blocks(d))])
def test_a_document_says_why_a_block_is_not_run(document: str) -> None:
    text = re.sub(r"\s+", " ", (ROOT / document).read_text())
    assert re.search(r"not run (here|by the tests)|Not run (here|by the tests)", text)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_that_are_not_run_have_only_known_options(document: str, vartok: Vartok) -> None:
    helps: dict[str, str] = {}
    for block in blocks(document):
        lines = commands(block.text) if block.mark == "not-run" and block.language == "sh" else []
        for line in lines:
            _, _, call = line.partition("vartok ") if re.search(r"(^|-m )vartok ", line) else ("", "", "")
            if not call:
                continue
            name, *rest = shlex.split(call, comments=True)
            if name not in helps:
                helps[name] = vartok(name, "--help").output + (
                    "" if name != "dataset" else vartok(name, "make", "--help").output
                )
            for option in (word for word in rest if word.startswith("-")):
                assert re.search(rf"(^|[\s,]){re.escape(option)}\b", helps[name]), f"{block.name}: {option}"


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md", "examples/README.md"])
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), f"{document}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{document}: {target}"


def test_the_design_names_files_that_exist() -> None:
    tops = (
        "vartok",
        "cli",
        "tests",
        "docs",
        "benchmarks",
        "examples",
        "weights",
    )  # not .venv, which is large
    text = (ROOT / "docs" / "design.md").read_text()
    for name in re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|md))`", text):
        assert (ROOT / name).exists() or any(list(ROOT.glob(f"{top}/**/{name}")) for top in tops), name


def test_the_readme_is_one_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert text.index("## Limitations") < 0.6 * len(text)
    assert {"Install", "Use", "Models", "Limitations", "What it does", "Licence"} <= set(sections)


def test_pyproject_lists_every_package() -> None:
    listed = re.search(
        r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL
    )
    assert listed
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "vartok").rglob("__init__.py")}
    assert set(re.findall('"(.+?)"', listed[1])) == found | {"vartok.cli", "vartok.weights"}
