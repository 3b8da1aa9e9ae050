"""The examples run, and do what they say."""

import importlib.util
import math
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, Vartok, save
from noise import SMALL
from noise import save as save_checkpoint
from torch import Tensor

from vartok import Tokenizer, TokenMaps, load
from vartok.dataset import TokenDataset
from vartok.schedule import Schedule, square, token_count

LABEL = torch.tensor([-1])


@pytest.fixture(scope="module")
def example() -> Any:
    """examples/train_next_scale.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("train_next_scale", ROOT / "examples/train_next_scale.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 64 codes, for which 8x8 pixels are 21 tokens."""
    return save_checkpoint(tmp_path_factory.mktemp("weights") / "noise.safetensors", SMALL)


@pytest.fixture
def tokenizer(weights: Path) -> Tokenizer:
    return load(weights, device="cpu")


@pytest.fixture
def data(tmp_path: Path, weights: Path, vartok: Vartok) -> Path:
    """A data set of eight pictures in three shards, each with a label of its own."""
    pictures = [save(tmp_path / "photos" / f"{n}.png", n, 12, 9).read_bytes() for n in range(8)]
    pq.write_table(pa.table({"image": pictures, "label": [*range(8)]}), tmp_path / "photos.parquet")
    vartok("dataset", tmp_path / "photos.parquet", "-o", tmp_path / "out", "-w", weights, "--shard-size", 3)
    return tmp_path / "out"


def least_loss(folder: Path) -> float:
    """Return the least loss, in nats per token, of a model that sees the coarser scales alone."""
    dataset = TokenDataset(folder)
    rows = [row["tokens"].tolist() for row in dataset]
    total, first = 0.0, 0
    for h, w in dataset.schedule:
        alike: defaultdict[tuple[int, ...], list[list[int]]] = defaultdict(list)
        for row in rows:
            alike[tuple(row[:first])].append(row[first : first + h * w])
        for group in alike.values():
            for column in zip(*group, strict=True):
                total -= sum(n * math.log(n / len(column)) for n in Counter(column).values())
        first += h * w
    return total / len(rows) / first


@pytest.mark.slow
def test_the_loss_falls_as_far_as_it_can(example: Any, data: Path, weights: Path) -> None:
    tiny = {"steps": 80, "width": 32, "depth": 1, "lr": 1e-2, "device": "cpu"}
    least = least_loss(data)
    assert 0.1 < least < 0.5  # some of the pictures begin alike

    losses = example.train(data, weights, **tiny)
    assert len(losses) == 80
    assert mean(losses[:3]) > 3
    assert least - 1e-3 < mean(losses[-10:]) < least + 0.05  # less, and it would have seen what it predicts

    labelled = example.train(data, weights, classes=8, **tiny)
    assert mean(labelled[-10:]) < 0.05  # a label says which picture it is


def test_epochs_follow_one_another(example: Any, data: Path) -> None:
    batches = example.endless(TokenDataset(data), 3)
    epochs = [[key for _ in range(3) for key in next(batches)["key"]] for _ in range(3)]
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 1
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_no_pictures_are_no_endless_loop(example: Any, tmp_path: Path, weights: Path, vartok: Vartok) -> None:
    (tmp_path / "a.png").write_bytes(b"junk")
    vartok("dataset", tmp_path / "a.png", "-o", tmp_path / "out", "-w", weights, code=1)
    with pytest.raises(ValueError, match="no pictures"):
        example.train(tmp_path / "out", weights, device="cpu")


def test_it_runs_from_the_command_line(
    example: Any,
    data: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = f"--weights {weights} --steps 20 --width 16 --depth 1 --batch-size 3 --device cpu"
    monkeypatch.setattr("sys.argv", ["train_next_scale.py", str(data), *options.split()])
    example.main()
    first, *steps = capsys.readouterr().out.splitlines()
    assert first == "8 pictures; a guess costs 4.159 nats per token"
    assert [line.partition(":")[0] for line in steps] == ["step 10", "step 20"]


@pytest.mark.parametrize("schedule", [square(1, 2, 4), ((2, 1), (1, 3), (4, 4))])
@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_a_scale_depends_on_all_of_the_coarser_ones_and_on_nothing_else(
    example: Any, tokenizer: Tokenizer, schedule: Schedule, training: bool
) -> None:
    torch.manual_seed(0)
    model = example.NextScale(schedule, SMALL.z_channels, SMALL.vocab_size, width=16, depth=2).train(training)
    sizes = [token_count([grid]) for grid in schedule]

    def logits(tokens: Tensor) -> tuple[Tensor, ...]:
        found: Tensor = model(tokenizer.var_inputs(TokenMaps.unflatten(tokens, schedule)), LABEL)
        assert found.shape == (1, sum(sizes), SMALL.vocab_size)
        parts: tuple[Tensor, ...] = found.split(sizes, dim=1)
        return parts

    tokens = torch.randint(SMALL.vocab_size, (1, sum(sizes)))
    before = logits(tokens)
    for position in range(sum(sizes)):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % SMALL.vocab_size
        scale = next(k for k in range(len(sizes)) if position < sum(sizes[: k + 1]))
        for k, (old, new) in enumerate(zip(before, logits(changed), strict=True)):
            moved = (old - new).abs().amax(dim=2)  # [1, h_k w_k]
            assert (moved > 1e-5).all() if k > scale else (moved < 1e-6).all(), (position, k)


@torch.no_grad()
def test_a_scale_sees_all_of_its_own_input(example: Any) -> None:
    torch.manual_seed(0)
    model = example.NextScale(square(1, 2, 4), 8, 64, width=16, depth=1)
    inputs = torch.randn(1, 20, 8)
    before = model(inputs, LABEL)
    inputs[0, 3] += 1  # the last cell of the 2x2 grid
    moved = (model(inputs, LABEL) - before).abs().amax(dim=2)[0]  # [21]
    assert (moved > 1e-5).tolist() == [False] + [True] * 20
