"""What is installed, what is public, and what imports what."""

import ast
import graphlib
import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import vartok
from vartok import errors

ROOT = Path(__file__).parent.parent
FILES = {
    ".".join(("vartok", *path.relative_to(ROOT / "vartok").with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted((ROOT / "vartok").rglob("*.py"))
}
"""Every module of the library, by its name."""

# A unit is a module, or a package with all its modules. Each may import those of the lines before it.
ORDER = (
    ["errors"],
    [
        *("files", "fingerprint", "lazy", "metadata", "npy", "optional", "processors", "schedule"),
        *("stopping", "suffixes"),
    ],
    ["buckets"],
    ["compression", "config", "codebook", "images"],
    ["tokens", "drawing", "reports.gallery"],
    ["token_files", "flat_tokens", "sources", "models.layers", "models.packed_conv"],
    ["dataset.encoding"],
    ["dataset.schema", "token_streams"],
    ["dataset.formats"],
    ["token_sources"],
    ["models.var", "models.light", "models.quantizer"],
    ["models.vqvae", "models.optimized_quantizer"],
    ["models.cuda_graphs", "models.cuda_quantizer", "models.triton_kernels"],
    ["checkpoints", "models.cpu", "models.cuda", "parallel", "pretrained", "runtime"],
    ["runner", "metrics", "features", "st_lpips", "inputs"],
    ["generation"],
    ["tokenizer"],
    ["loading", "atlas", "maps", "environment"],
    ["operations", "export"],
    ["evaluation", "dataset", "usage"],
    ["codebook_tables"],
    ["reports", "code_picture"],
    ["train"],
)
UNITS = [f"vartok.{unit}" for line in ORDER for unit in line]
MODEL = {
    "vartok.models",
    "vartok.checkpoints",
    "vartok.runtime",
    "vartok.runner",
    "vartok.tokenizer",
    "vartok.operations",
}


def unit_of(module: str) -> str:
    """The longest name in ORDER that a module is or lies in; a package above units is none."""
    inside = [unit for unit in UNITS if f"{module}.".startswith(f"{unit}.")]
    return max(inside, key=len, default="")


def imported(path: Path) -> set[str]:
    """Modules of vartok that a file imports, anywhere in it; "." for a relative import."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add(".")
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & FILES.keys()) | ({str(node.module)} if inner - FILES.keys() else set())
    if (
        path == FILES["vartok.tokens"]
    ):  # ImageTokens.save: a method that writes what token_files knows to write
        found.remove("vartok.token_files")
    return {name for name in found if name == "." or name.partition(".")[0] == "vartok"}


def heavy(path: Path) -> set[str]:
    """Other packages that a file imports as it is loaded itself."""
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_every_module_has_its_place() -> None:
    placeless = {module for module in FILES if not unit_of(module)}
    assert placeless == {"vartok", "vartok.__main__", "vartok.models"}


@pytest.mark.parametrize("module", sorted(name for name in FILES if unit_of(name)))
def test_imports_run_one_way(module: str) -> None:
    unit = unit_of(module)
    line = next(i for i, units in enumerate(ORDER) if unit.removeprefix("vartok.") in units)
    before = {f"vartok.{name}" for units in ORDER[:line] for name in units} | {unit, "vartok.models"}
    assert {unit_of(name) or name for name in imported(FILES[module])} <= before


def test_no_imports_go_round_in_a_circle() -> None:
    graph = {name: imported(path) & FILES.keys() for name, path in FILES.items() if name != "vartok"}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("unit", ["images", "tokens", "token_files", "codebook", "sources"])
def test_what_knows_no_model_imports_none(unit: str) -> None:
    for module, path in FILES.items():
        if unit_of(module) == f"vartok.{unit}":
            assert not any(name.startswith(tuple(MODEL)) for name in imported(path)), module
            assert "torch" not in heavy(path), module


def test_the_library_neither_prints_nor_parses_arguments_nor_imports_the_command_line() -> None:
    for module, path in FILES.items():
        text = path.read_text().replace("from argparse import Namespace\n", "")  # which checkpoints hold
        assert not re.search(r"\bprint\(|\bargv\b|ArgumentParser", text), module
        assert not heavy(path) & {"typer", "rich", "click"}, module
        assert "import argparse" not in text, module
        assert "from argparse" not in text, module
        assert (
            not any(name.startswith(("vartok.cli", ".")) for name in imported(path))
            or module == "vartok.__main__"
        )


def test_the_command_line_imports_the_library_absolutely_and_its_siblings_relatively() -> None:
    for path in (ROOT / "cli").glob("*.py"):
        assert "vartok.cli" not in path.read_text().replace("vartok.cli:", ""), path.name
        assert "torch" not in heavy(path), path.name


# What is public.


def test_public_names_resolve() -> None:
    assert vartok.__all__ == sorted(vartok.__all__)
    for name in vartok.__all__:
        value = getattr(vartok, name)
        assert value.__name__ == name
        assert value.__doc__
    assert set(dir(vartok)) == {*vartok.__all__, *vartok.SUBMODULES, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        vartok.nonsense  # noqa: B018


@pytest.mark.parametrize("name", ["vartok.dataset", "vartok.export", "vartok.reports", "vartok.train"])
def test_lazy_names_of_subpackages_resolve(name: str) -> None:
    package = importlib.import_module(name)
    assert dir(package) == sorted(package.__all__)
    for public in package.__all__:
        assert getattr(package, public) is not None
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nonsense'"):
        package.nonsense  # noqa: B018


def test_public_names_are_where_type_checkers_look() -> None:
    tree = ast.parse((ROOT / "vartok" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = {name for name in vartok.__all__ if getattr(vartok, name).__module__ != "vartok.errors"}
    submodules = dict.fromkeys(vartok.SUBMODULES, "vartok")
    assert told == {name: getattr(vartok, name).__module__ for name in lazy} | submodules


def test_submodules_need_no_import_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in vartok.SUBMODULES:
        monkeypatch.delattr(vartok, name, raising=False)
        assert getattr(vartok, name).__name__ == f"vartok.{name}"


def test_every_error_is_public_and_ours() -> None:
    raised = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == "vartok.errors"
    }
    assert raised.keys() <= set(vartok.__all__)
    assert all(issubclass(value, vartok.VartokError | Warning) for value in raised.values())


def test_importing_vartok_imports_nothing_heavy() -> None:
    code = (
        "import sys, vartok; print(sorted({'torch', 'numpy', 'PIL', 'typer', 'rich'} & sys.modules.keys()));"
        "import vartok.cli; print(sorted({'torch', 'numpy', 'PIL', 'huggingface_hub'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n[]\n"


@pytest.mark.parametrize(
    "module",
    [
        "config",
        "schedule",
        "metadata",
        "tokens",
        "token_files",
        "images",
        "codebook",
        "files",
        "parallel",
        "operations",
        "checkpoints.summary",
    ],
)
def test_importing_what_knows_no_model_imports_no_torch(module: str) -> None:
    code = f"import sys, vartok.{module}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_the_version_is_the_installed_one() -> None:
    assert importlib.metadata.version("vartok") == vartok.__version__


# What is installed.


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built offline from a copy of the tree."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("vartok", "cli", "weights"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index"]
    run = subprocess.run([*build, "--quiet", "--wheel-dir", out, tree], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (path,) = out.iterdir()
    assert path.name == f"vartok-{vartok.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path)


@pytest.mark.slow
def test_the_wheel_holds_vartok_alone(wheel: zipfile.ZipFile) -> None:
    top = {name.partition("/")[0] for name in wheel.namelist()}
    assert top == {"vartok", f"vartok-{vartok.__version__}.dist-info"}


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_every_package(wheel: zipfile.ZipFile) -> None:
    installed = {name for name in wheel.namelist() if name.startswith("vartok/")}
    wanted = {"vartok/py.typed"}
    for folder, package in (("vartok", "vartok"), ("cli", "vartok/cli"), ("weights", "vartok/weights")):
        found = (path for kind in ("*.py", "*.toml", "templates/*") for path in (ROOT / folder).rglob(kind))
        wanted |= {f"{package}/{path.relative_to(ROOT / folder)}" for path in found}
    weights = {f"vartok/weights/{path.name}" for path in (ROOT / "weights").glob("*.[smt]*")}
    assert {"vartok/weights/vartok-light-v2.safetensors", "vartok/weights/vartok-light-v2.md"} <= weights
    assert installed == wanted | weights
    for name in ("vartok/weights/vartok-light-v2.safetensors", "vartok/py.typed"):
        folder, _, file = name.removeprefix("vartok/").rpartition("/")
        assert wheel.read(name) == (ROOT / (folder or "vartok") / file).read_bytes()


@pytest.mark.slow
def test_the_wheel_installs_a_command(wheel: zipfile.ZipFile) -> None:
    info = f"vartok-{vartok.__version__}.dist-info"
    assert "vartok = vartok.__main__:main" in wheel.read(f"{info}/entry_points.txt").decode()
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: MIT" in metadata
    assert "Requires-Python: >=3.11" in metadata


@pytest.mark.slow
def test_the_wheel_runs_by_itself(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import torch, vartok
assert vartok.__file__.startswith({str(tmp_path)!r}), vartok.__file__
tokens = vartok.load(device="cpu").encode(torch.zeros(1, 3, 256, 256))
print(tokens.flatten().shape)
"""
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert run.stdout == "torch.Size([1, 680])\n", run.stderr
