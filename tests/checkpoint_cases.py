"""Configurations and checks of the tests of checkpoints."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from noise import SMALL
from torch import Tensor

from vartok.checkpoints import (
    read_checkpoint,
)
from vartok.config import LightConfig, TokenizerConfig
from vartok.errors import CheckpointError
from vartok.schedule import VAR_256

TEN = dataclasses.replace(SMALL, patch_nums=VAR_256)
"""Configuration that shapes alone tell: ten scales."""

LIGHT = TokenizerConfig(autoencoder=LightConfig(), vocab_size=64, z_channels=8)


ASSUMED = {
    key: f"the file does not say {note}"
    for key, note in {
        "using_znorm": "whether codes are looked up by cosine (using_znorm): assumed Euclidean distance",
        "quant_resi": "the ratio r of phi (quant_resi): assumed 0.5",
        "patch_nums": "its schedule (patch_nums): assumed 1,2,3,4,5,6,8,10,13,16",
    }.items()
}
"""Notes on what a bare state dict does not tell, by the keys of the configuration."""


def same(found: Any, wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def refusal(path: Path, **overrides: Any) -> str:
    """Why a file is refused: one line, not too long for a terminal."""
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path, overrides)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    text = text.removeprefix(f"{path}: ")
    assert "\n" not in text
    assert len(text) < 260
    return text


def in_a_process(code: str, path: Path) -> list[str]:
    """Run code on a file in a process of its own, and return the lines that it prints."""
    start = f"""
import re
from pathlib import Path
import torch
from vartok import checkpoints
path = Path({str(path)!r})
def peak():  # MiB; unlike ru_maxrss, not the parent's
    return int(re.search("VmHWM:\\\\s*([0-9]+)", Path("/proc/self/status").read_text())[1]) / 1024
"""
    run = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


has_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
