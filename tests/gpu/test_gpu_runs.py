"""Runs on an accelerator: prefetch, too little memory, several processes, killed and resumed data sets."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import start, wait_for
from conftest import names
from device_cases import MOST_CHANGED, Case, Sizes, State, make_images, save_images, share_equal
from torch import Tensor

import vartok
from vartok.errors import VartokWarning
from vartok.images import Fit, to_tensor
from vartok.operations import encode_pictures
from vartok.tokens import ImageTokens, TokenMaps

pytestmark = pytest.mark.gpu
pytest_plugins = ["device_cases"]

Cases = Callable[[str], Case]


def levels(images: Tensor) -> Any:
    """Return [B, H, W, 3] uint8 levels of [B, 3, H, W] images."""
    return ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def stream(tokenizer: vartok.Tokenizer, folder: Path, side: int, batch_size: int) -> TokenMaps:
    """Encode the pictures of a folder as commands do: read, laid out and copied while others are computed."""
    entries = [(n, path.name, path) for n, path in enumerate(sorted(folder.iterdir()))]
    fit = Fit(size=(side, side))
    found = list(encode_pictures(tokenizer, entries, fit, batch_size=batch_size, workers=2))
    assert [n for n, _ in found] == list(range(len(entries)))
    rows = [tokens for _, tokens in found if isinstance(tokens, ImageTokens)]
    assert len(rows) == len(entries)
    return TokenMaps.stack(rows)


def test_prefetched_batches_equal_direct_ones(
    cases: Cases, sizes: Sizes, device: str, tmp_path: Path
) -> None:
    """A stream reads in threads and copies from pinned memory; here its batches are made by hand."""
    images = make_images(3 * sizes.few + 1, sizes.side)
    folder = save_images(tmp_path / "photos", images)
    tokenizer = cases("light").load(device, "bfloat16")
    found = stream(tokenizer, folder, sizes.side, sizes.few)
    direct = [tokenizer.encode(to_tensor(levels(part))) for part in images.split(sizes.few)]
    for k, maps in enumerate(found.maps):
        assert torch.equal(maps, torch.cat([part.maps[k].cpu() for part in direct]))


@contextlib.contextmanager
def little_memory(
    device: str, tokenizer: vartok.Tokenizer, room: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Leave a CUDA device `room` more bytes; elsewhere fail as torch does for batches of more than two."""
    if device == "cuda":
        torch.cuda.empty_cache()
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + room) / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return

    def limited(compute: Callable[..., object]) -> Callable[..., object]:
        def call(batch: Any, *rest: object) -> object:
            if len(batch) > 2:
                raise RuntimeError("can't allocate memory: a stand-in")
            return compute(batch, *rest)

        return call

    for name in ("encode", "quantize"):
        monkeypatch.setattr(tokenizer, name, limited(getattr(tokenizer, name)))
    yield


def test_a_batch_that_does_not_fit_is_halved_and_said(
    cases: Cases, sizes: Sizes, device: str, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases("ch32")
    folder = save_images(tmp_path / "photos", make_images(sizes.batch, sizes.side))
    tokenizer = case.load(device)
    whole = stream(tokenizer, folder, sizes.side, 2)
    with (
        pytest.warns(VartokWarning, match=r"do not fit into memory: going on with \d") as said,
        little_memory(device, tokenizer, 1 << 30, monkeypatch),
    ):
        found = stream(tokenizer, folder, sizes.side, sizes.batch)
    state(said=[str(one.message) for one in said])
    assert share_equal(found, whole) >= 1 - MOST_CHANGED


@pytest.fixture(scope="module")
def photos(sizes: Sizes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of pictures for data sets."""
    images = make_images(8, sizes.side)
    return save_images(tmp_path_factory.mktemp("pictures") / "photos", images[torch.arange(sizes.files) % 8])


@pytest.fixture(scope="module")
def options(sizes: Sizes, device: str) -> dict[str, Any]:
    """Return the settings of the data sets."""
    pytest.importorskip("webdataset")
    return {"device": device, "size": sizes.side, "shard_size": 8, "batch_size": 4, "format": "jsonl"}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


@pytest.fixture(scope="module")
def made(photos: Path, options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a data set that one process has made on the device."""
    out = tmp_path_factory.mktemp("made") / "out"
    assert vartok.dataset.build(photos, out, processes=1, **options).complete
    return contents(out)


def test_a_data_set_equals_that_of_a_second_run(
    photos: Path, options: dict[str, Any], made: dict[str, bytes], tmp_path: Path
) -> None:
    assert vartok.dataset.build(photos, tmp_path / "out", processes=1, **options).complete
    assert contents(tmp_path / "out") == made


@pytest.mark.slow
def test_two_processes_on_one_device_make_the_same_data_set(
    photos: Path, options: dict[str, Any], made: dict[str, bytes], tmp_path: Path
) -> None:
    done = vartok.dataset.build(photos, tmp_path / "out", processes=2, **options)
    assert done.complete
    assert contents(tmp_path / "out") == made


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_data_set(
    photos: Path, options: dict[str, Any], made: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    process = start("dataset", photos, "-o", out, "--processes", 1, *flags)
    wait_for(lambda: (out / "data").is_dir() and any((out / "data").glob("[0-9]*.jsonl")), process)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert contents(out) != made
    assert vartok.dataset.build(photos, out, processes=1, **options).complete
    assert contents(out) == made
