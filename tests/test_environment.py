"""The environment is described, also where torch is broken."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Vartok

import vartok as library
from vartok.environment import describe_environment


def test_env(vartok: Vartok, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "secret")
    (tmp_path / "vartok" / "s").mkdir(parents=True)
    (tmp_path / "vartok" / "s" / "rows").write_bytes(bytes(1234))
    shown = vartok("env", "--json").stdout
    assert "secret" not in shown
    found = json.loads(shown)
    assert (found["vartok"], found["torch"]["version"]) == (library.__version__, torch.__version__)
    assert found["caches"]["vartok"] == {"folder": str(tmp_path / "vartok"), "bytes": 1234}
    assert found["variables"]["VARTOK_DEVICE"] == "cpu"
    assert found["devices"].keys() >= {"cpu", "auto"}
    lines = vartok("env").stdout.splitlines()
    assert lines[0] == f"vartok      {library.__version__}"
    assert any("bytes 1234" in line for line in lines)


def test_a_torch_that_is_broken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def load_all_but_torch(name: str, *rest: Any) -> Any:
        if name == "torch":
            raise OSError("libcudart.so.12: cannot open shared object file")
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", load_all_but_torch)
    found = describe_environment()
    assert found["torch"] == {"error": "OSError: libcudart.so.12: cannot open shared object file"}
    assert found["devices"] == {}
