"""The examples run, and do what they say."""

import importlib
import itertools
import math
import re
import shlex
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, Vartok, save
from noise import SMALL
from noise import tokenizer as noise_tokenizer
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from vartok import Tokenizer, TokenMaps
from vartok.dataset import TokenDataset
from vartok.schedule import Schedule, square, token_count

SCHEDULES: list[Schedule] = [square(1, 2, 4), ((2, 1), (1, 3), (4, 4))]


@pytest.fixture(scope="module", autouse=True)
def _folder() -> Any:
    """Let the scripts, which are in no package, be imported as they import each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        patch.syspath_prepend(ROOT / "examples" / "next_scale")
        yield


def script(name: str) -> Any:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 64 codes, for which 8x8 pixels are 21 tokens."""
    return tmp_path_factory.mktemp("weights") / "noise.safetensors"


@pytest.fixture(scope="module")
def tokenizer(weights: Path) -> Tokenizer:
    return noise_tokenizer(weights, SMALL)


def new_model(tokenizer: Tokenizer, schedule: Schedule, seed: int = 0) -> Any:
    """Return a transformer with three classes whose gates are open, unlike a new one's."""
    torch.manual_seed(seed)
    module = script("model")
    config = module.ModelConfig(
        schedule=schedule, channels=8, vocab_size=64, classes=3, width=16, depth=2, heads=2
    )
    model = module.NextScale(config, tokenizer.codebook)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def teacher_forced(model: Any, tokenizer: Tokenizer, tokens: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Return the logits of every scale, [B, h_k w_k, V]."""
    inputs = tokenizer.var_inputs(TokenMaps.unflatten(tokens, model.config.schedule))
    parts: tuple[Tensor, ...] = model(inputs, labels).split(model.sizes, dim=1)
    return parts


@pytest.mark.parametrize("schedule", SCHEDULES)
@torch.no_grad()
def test_the_cache_gives_the_logits_of_the_whole(tokenizer: Tokenizer, schedule: Schedule) -> None:
    model, labels = new_model(tokenizer, schedule), torch.tensor([0, 2, -1])
    tokens = torch.randint(64, (3, token_count(schedule)))
    want = teacher_forced(model, tokenizer, tokens, labels)
    steps, caches = tokenizer.generation(schedule), [script("model").Cache() for _ in model.blocks]
    inputs = None
    for k, tokens_k in enumerate(TokenMaps.unflatten(tokens, schedule).maps):
        torch.testing.assert_close(model.step(k, inputs, labels, caches), want[k], rtol=1e-4, atol=1e-4)
        inputs = steps.add(tokens_k)


@pytest.mark.parametrize("schedule", SCHEDULES)
@torch.no_grad()
def test_a_scale_sees_the_coarser_ones_its_own_inputs_and_the_label_alone(
    tokenizer: Tokenizer, schedule: Schedule
) -> None:
    model, labels = new_model(tokenizer, schedule), torch.tensor([1])
    tokens = torch.randint(64, (1, token_count(schedule)))
    before = teacher_forced(model, tokenizer, tokens, labels)
    for scale, start in enumerate([0, *torch.tensor(model.sizes).cumsum(0)[:-1].tolist()]):
        changed = tokens.clone()
        changed[0, start] = (changed[0, start] + 1) % 64  # one cell
        for k, after in enumerate(teacher_forced(model, tokenizer, changed, labels)):
            moved = (before[k] - after).abs().amax(dim=2)
            assert (moved > 1e-5).all() if k > scale else (moved == 0).all(), (scale, k)
    for k, after in enumerate(teacher_forced(model, tokenizer, tokens, torch.tensor([2]))):
        assert not torch.equal(before[k], after)


@torch.no_grad()
def test_sampling_the_likeliest_codes_agrees_with_training(tokenizer: Tokenizer) -> None:
    model, labels = new_model(tokenizer, SCHEDULES[0]), torch.tensor([0, 1, -1])
    tokens = script("model").generate(model, tokenizer, labels, top_k=1)
    logits = teacher_forced(model, tokenizer, tokens.flatten(), labels)
    assert torch.equal(torch.cat(logits, dim=1).argmax(2), tokens.flatten())


def test_guidance_of_one_is_none(tokenizer: Tokenizer) -> None:
    module, labels = script("model"), torch.tensor([0, 1])
    model = new_model(tokenizer, SCHEDULES[0])

    def draw(guidance: float) -> Tensor:
        random = torch.Generator().manual_seed(1)
        flat: Tensor = module.generate(
            model, tokenizer, labels, guidance=guidance, generator=random
        ).flatten()
        return flat

    assert torch.equal(draw(1.0), draw(1 + 1e-9))  # the second computes both halves
    assert not torch.equal(draw(1.0), draw(8.0))
    a, b = torch.randn(2, 1, 3, 64)
    torch.testing.assert_close(module.guided(a, b, 3.0), a + 2 * (a - b))


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"), [(3, 1.0, 3), (0, 0.5, 1), (0, 0.75, 2), (2, 0.99, 2), (1, 0.0, 1)]
)
def test_top_k_and_top_p_keep_the_likeliest_codes(top_k: int, top_p: float, kept: int) -> None:
    probabilities = torch.tensor([0.05, 0.6, 0.1, 0.25])
    drawn = script("model").sample(probabilities.log().expand(1, 500, 4), top_k, top_p, torch.Generator())
    assert set(drawn.flatten().tolist()) == set([1, 3, 2, 0][:kept])


class Rows(Dataset[int]):
    """Fourteen rows, in place of a `TokenDataset`."""

    def __len__(self) -> int:
        return 14

    def __getitem__(self, index: int) -> int:
        return index

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def test_a_resumed_run_goes_on_with_the_batches_of_the_first() -> None:
    rows = Rows()
    sampler: DistributedSampler[int] = DistributedSampler(
        rows, 2, 1, drop_last=True
    )  # 7 rows, 2 batches of 3

    def take(start: int, count: int) -> list[list[int]]:
        found = itertools.islice(script("train").batches(rows, sampler, 3, start), count)
        return [batch.tolist() for batch in found]

    whole = take(0, 8)
    assert rows.epoch == 3
    assert len({tuple(batch) for batch in whole}) == 8  # each epoch in an order of its own
    assert len({*whole[0], *whole[1]}) == 6
    for start in (1, 2, 5):
        assert take(start, 8 - start) == whole[start:]


@pytest.mark.parametrize(
    ("fingerprint", "classes", "reason"),
    [("b", ["x", "y"], "tokens of another tokenizer than noise"), ("a", ["y", "x"], "other classes")],
)
def test_a_run_is_not_resumed_on_another_data_set(
    tokenizer: Tokenizer, tmp_path: Path, fingerprint: str, classes: list[str], reason: str
) -> None:
    def dataset(fingerprint: str, classes: list[str]) -> Any:
        return SimpleNamespace(model=SimpleNamespace(name="noise", fingerprint=fingerprint), classes=classes)

    optimizer = SimpleNamespace(state_dict=dict, load_state_dict=dict)
    run = script("train").Run(new_model(tokenizer, SCHEDULES[0]), {}, optimizer, step=7)
    path, same = tmp_path / "checkpoint.pt", dataset("a", ["x", "y"])
    run.save(path, same)
    run.load(path, same)
    with pytest.raises(SystemExit, match=reason):
        run.load(path, dataset(fingerprint, classes))


def test_classes_are_given_by_name_or_number() -> None:
    numbers = script("sample").class_numbers
    assert numbers(["tulips", "0"], ["roses", "tulips"], 2) == [1, 0]
    assert numbers(None, [], 3) == [0, 1, 2]
    assert numbers(["7"], [], 0) == [-1]  # a model without classes
    with pytest.raises(SystemExit, match="there is no class pansies: roses, tulips"):
        numbers(["pansies"], ["roses", "tulips"], 2)
    with pytest.raises(SystemExit, match="there is no class 3: they are 0 to 2"):
        numbers(["3"], [], 3)


@torch.no_grad()
def test_vars_names_for_the_tokenizer(tokenizer: Tokenizer) -> None:
    schedule = SCHEDULES[0]
    vae = script("var_training").TokenVAE(tokenizer, schedule)
    tokens = torch.randint(64, (2, 21))
    maps = TokenMaps.unflatten(tokens, schedule)
    scales = vae.img_to_idxBl(tokens)
    assert [scale.shape[1] for scale in scales] == [1, 4, 16]
    assert torch.equal(vae.quantize.idxBl_to_var_input(scales), tokenizer.var_inputs(maps))
    f_hat = torch.zeros(2, 8, 4, 4)
    for k, (h, w) in enumerate(schedule):  # the lines of VAR's `autoregressive_infer_cfg`
        codes = vae.quantize.embedding(scales[k]).transpose(1, 2).reshape(2, 8, h, w)
        f_hat, inputs = vae.quantize.get_next_autoregressive_input(k, 3, f_hat, codes)
        if k < 2:
            want = tokenizer.next_inputs(maps.maps[: k + 1], schedule)
            assert torch.equal(inputs.view(2, 8, -1).transpose(1, 2), want)
    assert torch.equal(vae.fhat_to_img(f_hat), tokenizer.decode(maps))


@pytest.mark.parametrize(
    ("buckets", "grids", "reason"),
    [(3, 3, "X has 3 buckets, and this takes one schedule"), (1, 2, "X has the first 2 scales only")],
)
def test_rows_of_several_schedules_or_not_of_all_scales_are_refused(
    monkeypatch: pytest.MonkeyPatch, buckets: int, grids: int, reason: str
) -> None:
    schedule = SCHEDULES[0]
    dataset = SimpleNamespace(buckets=range(buckets), grids=schedule[:grids], schedule=schedule)
    train, var_training = script("train"), script("var_training")
    for module in (train, var_training):
        monkeypatch.setattr(module, "TokenDataset", lambda folder, **options: dataset)
    with pytest.raises(SystemExit, match=reason):
        train.open_tokens("X", 0)
    with pytest.raises(SystemExit, match=reason):
        var_training.TokenPairs("X")


@pytest.fixture
def data(tmp_path: Path, weights: Path, tokenizer: Tokenizer, vartok: Vartok) -> Path:
    """A data set of eight pictures in three shards, each with a label of its own."""
    pictures = [save(tmp_path / "photos" / f"{n}.png", n, 12, 9).read_bytes() for n in range(8)]
    pq.write_table(pa.table({"image": pictures, "label": [*range(8)]}), tmp_path / "photos.parquet")
    vartok("dataset", tmp_path / "photos.parquet", "-o", tmp_path / "out", "-w", weights, "--shard-size", 3)
    return tmp_path / "out"


def unigram_entropy(folder: Path) -> float:
    """Return the entropy of the tokens of a data set, in nats per token."""
    counts = Counter(token for row in TokenDataset(folder) for token in row["tokens"].tolist())
    total = sum(counts.values())
    return -sum(n / total * math.log(n / total) for n in counts.values())


@pytest.mark.slow
def test_photos_become_a_trained_transformer_and_pictures(
    data: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, picture = tmp_path / "run", tmp_path / "samples.png"

    def call(name: str, command: str) -> str:
        monkeypatch.setattr("sys.argv", [name, *shlex.split(command)])
        module = script(name)
        module.main()
        return capsys.readouterr().out

    def losses(options: str) -> list[float]:
        out = call(
            "train",
            f"{data} -o {run} --weights {weights} --device cpu --classes 8 --width 32 --depth 2 "
            f"--batch-size 8 --lr 1e-2 --warmup-steps 5 --log-every 10 {options}",
        )
        return [float(loss) for loss in re.findall(r"^step \d+: ([\d.]+) nats", out, re.MULTILINE)]

    first = losses("--steps 60")
    assert len(first) == 6
    assert first[0] > first[-1]
    assert first[-1] < unigram_entropy(data)
    with pytest.raises(SystemExit, match=r"checkpoint\.pt exists: --resume goes on with it"):
        losses("--steps 100")
    more = losses("--steps 100 --resume")
    assert len(more) == 4
    assert more[-1] < first[-1]
    with pytest.raises(SystemExit, match="a model with another depth"):
        losses("--steps 100 --resume --depth 3")

    call("sample", f"{run} -o {picture} --weights {weights} --device cpu --count 2")
    assert Image.open(picture).size == (2 * 8, 8 * 8)
    call("sample", f"{run} -o {picture} --weights {weights} --device cpu --strip --classes 0 5")
    assert Image.open(picture).size == (3 * 8, 2 * 8)
    for options, reason in {
        f"{run} -o {picture}": "trained on tokens of another tokenizer",
        f"{data} -o {picture}": r"checkpoint\.pt does not exist: train\.py makes it",
        f"{run} -o {tmp_path}/samples.txt": r"samples\.txt: a picture's name ends in \.png",
    }.items():
        with pytest.raises(SystemExit, match=reason):
            call("sample", f"{options} --device cpu")
    with pytest.raises(SystemExit, match="holds no data set"):
        call("train", f"{tmp_path} -o {run} --device cpu")
