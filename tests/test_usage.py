"""Counting the codes of token files, folders, streams and data sets, against the codes themselves."""

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import Vartok, photo
from noise import SMALL, tokenizer

import vartok
from vartok.dataset.schema import is_dataset
from vartok.errors import TokenFileError, TokensError, VartokError
from vartok.images import to_tensor
from vartok.metadata import ImageInfo
from vartok.token_files import dump_json, dump_npz
from vartok.tokens import ImageTokens
from vartok.usage import TokenUsage, count_usage


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> vartok.Tokenizer:
    return tokenizer(tmp_path_factory.mktemp("weights") / "small.safetensors", SMALL)


def encode(small: vartok.Tokenizer, seed: int, schedule: str | None = None) -> ImageTokens:
    grids = vartok.schedule.parse_schedule(schedule) if schedule else None
    maps = small.encode(to_tensor(np.asarray(photo(seed, 16, 16))[None]), grids)
    info = ImageInfo(
        source="a", width=16, height=16, size=(16, 16), fit="crop", zoom=1.0, device="cpu", dtype="float32"
    )
    return ImageTokens.unflatten(maps.flatten()[0].numpy(), maps.schedule, small.info, info)


@pytest.fixture
def images(small: vartok.Tokenizer, tmp_path: Path) -> list[ImageTokens]:
    """Three images' tokens, one in an npz and two in a JSONL below it; in the folder `tokens`."""
    images = [encode(small, seed) for seed in range(3)]
    (tmp_path / "tokens" / "deep").mkdir(parents=True)
    (tmp_path / "tokens" / "a.npz").write_bytes(dump_npz(images[0]))
    lines = "\n".join(dump_json(image) for image in images[1:])
    (tmp_path / "tokens" / "deep" / "rest.jsonl").write_text(lines)
    (tmp_path / "tokens" / ".hidden.npz").write_bytes(b"")
    return images


def check(found: TokenUsage, images: list[ImageTokens]) -> None:
    assert (found.images, found.schedule) == (len(images), images[0].schedule)
    for k, usage in enumerate(found.usage.scales):
        codes = np.concatenate([image.scales[k].ravel() for image in images])
        assert (usage.tokens, usage.used) == (len(codes), len(set(codes.tolist())))


def test_folders_files_and_streams(
    small: vartok.Tokenizer, images: list[ImageTokens], tmp_path: Path
) -> None:
    folder = tmp_path / "tokens"
    whole = count_usage(folder, small)
    check(whole, images)
    assert whole.failures == ()
    assert count_usage([str(folder / "deep"), folder / "a.npz"], small) == whole
    stream = io.BytesIO((folder / "deep" / "rest.jsonl").read_bytes())
    check(count_usage(stream, small), images[1:])


def test_failures_are_in_the_result_and_told_at_once(
    small: vartok.Tokenizer, images: list[ImageTokens], tmp_path: Path
) -> None:
    bad, two, gone, empty = (tmp_path / name for name in ("bad.npz", "two.npz", "gone.npz", "empty"))
    bad.write_bytes(b"PK, but no zip")
    two.write_bytes(dump_npz(encode(small, 0, "1,8")))
    empty.mkdir()
    told: list[tuple[str, VartokError | None]] = []
    found = count_usage(
        [bad, tmp_path / "tokens", two, gone, empty],
        small,
        progress=lambda name, error: told.append((name, error)),
    )
    check(found, images)
    assert [name for name, _ in found.failures] == [str(path) for path in (bad, two, gone, empty)]
    assert "has 2 scales, but the first image has 3" in str(found.failures[1][1])
    assert tuple((name, error) for name, error in told if error) == found.failures
    assert len(told) == 7
    with pytest.raises(TokensError, match="no tokens"):
        count_usage([gone], small)


def test_tokens_of_another_codebook(images: list[ImageTokens], tmp_path: Path) -> None:
    other = tokenizer(tmp_path / "other.safetensors", SMALL, seed=1)
    errors: list[VartokError | None] = []
    with pytest.raises(TokensError):
        count_usage(tmp_path / "tokens", other, progress=lambda name, error: errors.append(error))
    assert len(errors) == 3
    assert all(isinstance(error, TokenFileError) for error in errors)


def test_a_data_set_counts_as_its_pictures_do(vartok: Vartok, here: Path) -> None:
    import vartok as library

    (here / "in").mkdir()
    for seed in range(3):
        photo(seed, 64, 64).save(here / "in" / f"{seed}.png")
    vartok("encode", "-q", "-r", "in", "-o", "tokens", "--size", "64")
    vartok("dataset", "-q", "in", "-o", "set", "--size", "64")
    light = library.load(device="cpu")
    assert is_dataset("set")
    assert not is_dataset("tokens")
    assert count_usage("set", light) == count_usage("tokens", light)
    next((here / "set" / "data").iterdir()).write_bytes(b"junk")
    found = count_usage(["tokens", "set"], light)
    assert len(found.failures) == 1
    assert found.images == 3
