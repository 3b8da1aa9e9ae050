"""Streams of pictures through a tokenizer: in order, in batches, each failing alone."""

import dataclasses
import io
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import count_worker_threads
from noise import COFFEE
from PIL import Image

import vartok
from vartok.errors import (
    ImageError,
    ScheduleError,
    TokenFileError,
    TokensError,
    VartokError,
)
from vartok.images import Fit, Picture, Views, read_picture, to_pixels, to_tensor
from vartok.operations import decode_streams, decode_tokens, encode_pictures, encode_views, streams
from vartok.parallel import map_ordered
from vartok.schedule import adapt_schedule, square
from vartok.token_files import dump_json
from vartok.tokens import ImageTokens, TokenMaps


def png(width: int, height: int, seed: int = 0) -> bytes:
    """Return a piece of a photo as a PNG file."""
    left, top = np.random.default_rng(seed).integers(0, 256, 2).tolist()
    buffer = io.BytesIO()
    Image.open(COFFEE).crop((left, top, left + width, top + height)).save(buffer, "PNG")
    return buffer.getvalue()


SIZES = [(32, 32), (48, 32), (32, 32), (32, 32), (48, 32), (64, 64), (32, 32)]
PICTURES: list[tuple[int, str, Path | bytes]] = [
    (i, f"{i}.png", png(*size, seed=i)) for i, size in enumerate(SIZES)
]
NATIVE = Fit(mode="native")


def encoded(results: Iterator[tuple[Any, ImageTokens | VartokError]]) -> list[ImageTokens]:
    found = []
    for _, item in results:
        assert isinstance(item, ImageTokens)
        found.append(item)
    return found


def test_a_function_can_read_the_picture(tokenizer: vartok.Tokenizer) -> None:
    def read(fit: Fit) -> Picture:
        return read_picture(png(32, 32), fit)

    def fail(fit: Fit) -> Picture:
        raise TokenFileError("its label is lost")

    (_, made), (_, failed) = encode_pictures(tokenizer, [(0, "0.png", read), (1, "1.png", fail)], NATIVE)
    (told,) = encoded(encode_pictures(tokenizer, [(0, "0.png", png(32, 32))], NATIVE))
    assert isinstance(made, ImageTokens)
    assert dump_json(made) == dump_json(told)
    assert isinstance(failed, TokenFileError)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
@pytest.mark.parametrize("workers", [1, 3])
def test_tokens_are_in_order_and_do_not_depend_on_batches(
    tokenizer: vartok.Tokenizer, batch_size: int, workers: int
) -> None:
    results = list(encode_pictures(tokenizer, PICTURES, NATIVE, batch_size=batch_size, workers=workers))
    assert [caller for caller, _ in results] == list(range(len(SIZES)))
    for (i, (_, item)), (width, height) in zip(enumerate(results), SIZES, strict=True):
        assert isinstance(item, ImageTokens)
        assert item.notes == ()
        assert item.image.source == f"{i}.png"
        assert (item.image.width, item.image.height) == (width, height)
        assert item.image.size == (height, width)
        assert item.model == tokenizer.info
        pixels = np.asarray(Image.open(io.BytesIO(PICTURES[i][2])).convert("RGB"))  # type: ignore[arg-type]
        alone = tokenizer.encode(to_tensor(pixels[None]))
        assert torch.equal(TokenMaps.stack([item]).flatten(), alone.flatten())


def test_an_unreadable_picture_fails_in_its_place(tokenizer: vartok.Tokenizer, tmp_path: Path) -> None:
    pictures = [*PICTURES[:2], (2, "text", b"no picture"), (3, "none", tmp_path / "none"), *PICTURES[4:]]
    results = list(encode_pictures(tokenizer, pictures, NATIVE, batch_size=4, workers=2))
    assert [caller for caller, _ in results] == list(range(len(SIZES)))
    assert [i for i, item in results if isinstance(item, ImageError)] == [2, 3]
    assert [i for i, item in results if isinstance(item, ImageTokens)] == [0, 1, 4, 5, 6]


def test_a_picture_that_the_schedule_does_not_fit_fails_alone(tokenizer: vartok.Tokenizer) -> None:
    results = list(encode_pictures(tokenizer, PICTURES, NATIVE, schedule=square(1, 2), batch_size=7))
    for (_, item), size in zip(results, SIZES, strict=True):
        assert isinstance(item, ImageTokens if size == (32, 32) else ScheduleError)


def test_an_item_that_fails_in_a_batch_fails_alone(
    tokenizer: vartok.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize, calls = tokenizer.quantize, []
    image = to_tensor(np.asarray(Image.open(io.BytesIO(png(32, 32, seed=2))).convert("RGB"))[None])
    bad = tokenizer.latent(image)

    def fussy(latents: torch.Tensor, schedule: Any = None, scales: Any = None) -> vartok.TokenMaps:
        calls.append(len(latents))
        if (latents == bad).flatten(1).all(1).any():
            raise ScheduleError("not this one")
        return quantize(latents, schedule, scales)

    monkeypatch.setattr(tokenizer, "quantize", fussy)
    pictures = [(i, str(i), png(32, 32, seed=i)) for i in range(4)]
    results = list(encode_pictures(tokenizer, pictures, NATIVE, batch_size=4))
    failed = {i: str(item) for i, item in results if isinstance(item, VartokError)}
    assert failed == {2: "not this one"}
    assert calls == [4, 2, 2, 1, 1]


class Elsewhere:
    """A tokenizer that reports a device which this machine lacks, and computes on the CPU."""

    def __init__(self, tokenizer: vartok.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.device = torch.device("xpu")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def test_other_devices_prefetch_and_give_the_same_tokens(
    tokenizer: vartok.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [*PICTURES[:3], (3, "text", b"no picture"), *PICTURES[4:]]
    here = list(encode_pictures(tokenizer, pictures, NATIVE, batch_size=2))
    threads = set()

    def noted(device: torch.device, pixels: torch.Tensor) -> torch.Tensor:
        threads.add(threading.current_thread())
        assert pixels.dtype == torch.uint8  # a quarter of the bytes of the images that the model takes
        return pixels

    monkeypatch.setattr("vartok.runtime.pin_for", noted)
    away: Any = Elsewhere(tokenizer)
    there = list(encode_pictures(away, pictures, NATIVE, batch_size=2, workers=2))
    assert threads - {threading.main_thread()}
    assert [caller for caller, _ in there] == list(range(len(SIZES)))
    for (i, one), (_, other) in zip(here, there, strict=True):
        if i == 3:
            assert str(one) == str(other)
        else:
            assert isinstance(one, ImageTokens)
            assert isinstance(other, ImageTokens)
            assert np.array_equal(one.flatten(), other.flatten())
            assert other.image.device == "xpu"


def test_batches_are_bounded_by_pixels(tokenizer: vartok.Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bound for pictures to encode, for views and for tokens to decode."""
    for module in (streams, decode_streams):
        monkeypatch.setattr(module, "picture_weight", lambda _, size: max(1.0, size[0] * size[1] / 1024))
    away: Any = Elsewhere(tokenizer)
    encode, decode = tokenizer.encode, tokenizer.decode
    seen: list[tuple[int, ...]] = []

    def noted(pixels: torch.Tensor, *args: Any) -> TokenMaps:
        seen.append(tuple(pixels.shape[:3]))
        return encode(pixels, *args)

    def noted_tokens(maps: TokenMaps, *args: Any) -> torch.Tensor:
        images = decode(maps, *args)
        seen.append((len(images), *images.shape[2:]))
        return images

    monkeypatch.setattr(tokenizer, "encode", noted)
    monkeypatch.setattr(tokenizer, "decode", noted_tokens)
    sizes = [32] * 4 + [64] * 2 + [48] + [32] * 2
    bounded = [(4, 32, 32), (1, 64, 64), (1, 64, 64), (1, 48, 48), (1, 32, 32), (1, 32, 32)]
    pictures = [(i, f"{i}.png", png(side, side, seed=i)) for i, side in enumerate(sizes)]
    tokens = list(enumerate(encoded(encode_pictures(away, pictures, NATIVE, batch_size=4))))
    assert seen == bounded
    seen.clear()
    list(decode_tokens(tokenizer, tokens, batch_size=4))
    assert seen == bounded
    seen.clear()
    fit = Fit(size=48, views=Views.parse("flip"))
    list(encode_views(away, pictures[:2], fit, batch_size=5))
    assert seen == [(2, 48, 48)] * 2


def test_the_weight_of_a_picture_is_its_pixels_in_own_sizes(tokenizer: vartok.Tokenizer) -> None:
    weights = [streams.picture_weight(tokenizer.config, (side, side)) for side in (16, 256, 512)]
    assert weights == [1, 1, 4]


@pytest.mark.parametrize("batch_size", [2, 7])
def test_views_are_the_same_in_batches_of_any_size_and_on_any_device(
    tokenizer: vartok.Tokenizer, batch_size: int
) -> None:
    """Three views a picture: more than a batch takes, or two pictures at once."""
    fit = Fit(size=32, zoom=1.5, views=Views.parse("random:3"))
    away: Any = Elsewhere(tokenizer)
    here = list(encode_views(tokenizer, PICTURES[:3], fit, latents=True))
    there = list(encode_views(away, PICTURES[:3], fit, latents=True, batch_size=batch_size, workers=2))
    for (_, rows), (_, others) in zip(here, there, strict=True):
        assert isinstance(rows, list)
        assert isinstance(others, list)
        assert [row.view and row.view.number for row in rows] == [0, 1, 2]
        assert [
            dataclasses.replace(row, image=other.image) for row, other in zip(rows, others, strict=True)
        ] == others


def test_tokens_carry_fit_and_notes(tokenizer: vartok.Tokenizer) -> None:
    buffer = io.BytesIO()
    frames = [Image.new("L", (40, 60), level) for level in (0, 255)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    fit = Fit(mode="crop", size=(32, 64), zoom=2.0)
    (item,) = encoded(encode_pictures(tokenizer, [(None, "a.gif", buffer.getvalue())], fit))
    assert item.notes == ("animation: took the first of 2 frames",)
    image = item.image
    assert (image.fit, image.zoom, image.size, image.width, image.height) == ("crop", 2.0, (32, 64), 40, 60)
    assert (image.device, image.dtype) == ("cpu", "float32")
    assert item.schedule == adapt_schedule(tokenizer.config.patch_nums, (2, 4))


def test_decoding_undoes_encoding_in_order(tokenizer: vartok.Tokenizer) -> None:
    tokens = list(encoded(encode_pictures(tokenizer, PICTURES, NATIVE)))
    error = TokenFileError("damaged")
    items: list[tuple[int, ImageTokens | VartokError]] = [*enumerate(tokens), (7, error)]
    results = list(decode_tokens(tokenizer, items, batch_size=3))
    assert [caller for caller, _ in results] == list(range(8))
    assert results[7][1] is error
    for (_, pictures), item, (width, height) in zip(results, tokens, SIZES, strict=False):
        assert isinstance(pictures, list)
        (pixels,) = pictures
        assert pixels.shape == (height, width, 3)
        assert np.array_equal(pixels, to_pixels(tokenizer.decode(TokenMaps.stack([item])))[0])


def test_decode_a_prefix_and_a_strip(tokenizer: vartok.Tokenizer) -> None:
    (item,) = encoded(encode_pictures(tokenizer, PICTURES[:1], NATIVE))
    want = [to_pixels(tokenizer.decode(TokenMaps.stack([item]), scales=k))[0] for k in range(1, 11)]
    cases = [(None, False, want[9:]), (3, False, want[2:3]), (3, True, want[:3]), (None, True, want)]
    for scales, strip, expected in cases:
        ((_, pictures),) = decode_tokens(tokenizer, [(0, item)], scales=scales, strip=strip)
        assert isinstance(pictures, list)
        assert len(pictures) == len(expected)
        assert all(np.array_equal(a, b) for a, b in zip(pictures, expected, strict=True))
    ((_, failed),) = decode_tokens(tokenizer, [(0, item)], scales=11)
    assert isinstance(failed, VartokError)


@pytest.mark.parametrize(("place", "most"), [(lambda tokenizer: tokenizer, 5), (Elsewhere, 9)])
def test_closing_the_encoder_stops_its_threads(tokenizer: vartok.Tokenizer, place: Any, most: int) -> None:
    before = count_worker_threads()
    taken: list[int] = []

    def endless() -> Iterator[tuple[int, str, bytes]]:
        while True:
            taken.append(len(taken))
            yield len(taken), "a", png(32, 32)

    results = encode_pictures(place(tokenizer), endless(), NATIVE, batch_size=2, workers=2)
    next(results)
    results.close()
    assert count_worker_threads() == before
    assert len(taken) <= most  # four in hand, one more as the batch took its second; off the CPU two batches


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_workers_encode_small_pictures_with_their_share_of_threads(
    tokenizer: vartok.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, seen = tokenizer._runner.encode, []

    def spy(images: torch.Tensor) -> torch.Tensor:
        here = threading.current_thread() is threading.main_thread()
        seen.append((tuple(images.shape[2:]), here, torch.get_num_threads()))
        return encode(images)

    monkeypatch.setattr(tokenizer._runner, "encode", spy)
    monkeypatch.setattr(streams, "MAX_BATCHED_PIXELS", 48 * 32)
    found = encoded(encode_pictures(tokenizer, PICTURES, NATIVE, batch_size=4, workers=2))
    small = {(32, 32): 4, (32, 48): 2}
    assert Counter(seen) == {
        **{(size, False, 1): count for size, count in small.items()},
        ((64, 64), True, 2): 1,  # alone, with all threads
    }
    monkeypatch.undo()
    for (_, _, file), item in zip(PICTURES, found, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))  # type: ignore[arg-type]
        alone = tokenizer.encode(to_tensor(pixels[None]))
        assert torch.equal(TokenMaps.stack([item]).flatten(), alone.flatten())


@pytest.mark.usefixtures("two_threads")
def test_the_caller_keeps_all_of_torchs_threads(tokenizer: vartok.Tokenizer) -> None:
    first = encode_pictures(tokenizer, PICTURES, NATIVE, workers=2)
    second = encode_pictures(tokenizer, PICTURES, NATIVE, workers=2)
    for _ in zip(first, second, strict=True):
        assert torch.get_num_threads() == 2  # the caller's own work has them in between, too
    third = encode_pictures(tokenizer, PICTURES, NATIVE, workers=2)
    next(third)
    third.close()
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


def test_latents_that_do_not_fit_beside_others_are_computed_alone(
    tokenizer: vartok.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    latent, main = tokenizer.latent, threading.main_thread()

    def greedy(images: torch.Tensor) -> torch.Tensor:
        if threading.current_thread() is not main:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return latent(images)

    monkeypatch.setattr(tokenizer, "latent", greedy)
    assert len(encoded(encode_pictures(tokenizer, PICTURES, NATIVE, batch_size=4, workers=2))) == len(SIZES)


def test_tokens_of_too_many_pixels_are_refused(tokenizer: vartok.Tokenizer) -> None:
    """A small file may claim a schedule of any size."""
    [(_, small)] = encode_pictures(tokenizer, [(0, "a.png", png(32, 32))], NATIVE)
    assert isinstance(small, ImageTokens)
    scales = tuple(np.zeros(grid, np.uint16) for grid in ((1, 1), (700, 700)))
    tokens = dataclasses.replace(small, scales=scales, schedule=())
    [(_, result)] = decode_tokens(tokenizer, [(None, tokens)])
    assert isinstance(result, TokensError)
    assert "1 picture of 11,200 x 11,200 pixels" in str(result)


def test_large_items_are_taken_only_while_their_bytes_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vartok.parallel.MAX_NBYTES", 10)
    taken: list[int] = []

    def items() -> Iterator[int]:
        for size in (4, 4, 4, 30, 1, 1):
            taken.append(size)
            yield size

    results = map_ordered(lambda size: size, items(), workers=2, limit=100, nbytes=lambda size: size)
    assert next(results) == 4
    assert taken == [4, 4, 4]  # 12 bytes: too many to take the next
    assert next(results) == 4
    assert taken == [4, 4, 4, 30]  # one that is too large by itself is worked on alone
    assert list(results) == [4, 30, 1, 1]
