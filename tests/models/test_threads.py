"""Latents and tokens do not depend on torch's number of threads, nor on which oneDNN there is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from noise import save

from vartok.config import TokenizerConfig, VarConfig

CODE = """
import hashlib, sys, torch
torch.set_num_threads(int(sys.argv[1]))
import vartok
images = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
for weights in sys.argv[2:]:
    tokenizer = vartok.load(weights, device="cpu")
    for part in (images, images[:, :, :48]):
        latent, tokens = tokenizer.latent(part), tokenizer.encode(part)
        assert tokenizer.decode(tokens).isfinite().all()
        values = [value.contiguous().numpy().tobytes() for value in (latent, tokens.flatten())]
        print(*(hashlib.sha256(value).hexdigest() for value in values))
"""


def run(threads: int, *weights: str | Path, **environment: str) -> list[list[str]]:
    """Return the hashes of latent and tokens, from a process of its own."""
    command = [sys.executable, "-c", CODE, str(threads), *map(str, weights)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[str | Path, ...]:
    """The shipped checkpoint, one of VAR's architecture, and one of few codes."""
    folder = tmp_path_factory.mktemp("threads")
    few = TokenizerConfig(autoencoder=VarConfig(ch=32), vocab_size=7, z_channels=8)
    return (
        "shipped",
        save(folder / "var.safetensors", TokenizerConfig(autoencoder=VarConfig(ch=32))),
        save(folder / "few.safetensors", few),
    )


@pytest.mark.slow
def test_three_threads_give_the_latents_of_one(weights: tuple[str | Path, ...]) -> None:
    assert run(3, weights[1]) == run(1, weights[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{}, {"ONEDNN_MAX_CPU_ISA": "SSE41"}, {"ATEN_CPU_CAPABILITY": "default"}],
    ids=["packed convolutions", "public operations, SSE4.1", "public operations"],
)
def test_threads_change_no_latent(weights: tuple[str | Path, ...], environment: dict[str, str]) -> None:
    one = run(1, *weights, **environment)
    for threads in (2, 3, 8):
        assert run(threads, *weights, **environment) == one, threads


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{"ONEDNN_MAX_CPU_ISA": isa} for isa in ("SSE41", "AVX", "AVX2")] + [{"ATEN_CPU_CAPABILITY": "default"}],
)
def test_older_processors_give_the_same_tokens(
    weights: tuple[str | Path, ...], environment: dict[str, str]
) -> None:
    found = run(1, *weights[:2], **environment)
    assert [tokens for _, tokens in found] == [tokens for _, tokens in run(1, *weights[:2])]
