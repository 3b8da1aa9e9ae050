"""Tokens are compared, and mixed."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from token_data import image_info, image_tokens, model_info

from vartok.errors import ArgumentError, SourceError, TokenFileError, TokensError, VartokError
from vartok.operations import diff as module
from vartok.operations.diff import ScaleDiff, diff_tokens
from vartok.operations.diff_maps import DIFFERENT, EQUAL, draw_diff
from vartok.operations.mix import mix_tokens
from vartok.token_files import dump_json
from vartok.tokens import ImageTokens

SCHEDULE = ((1, 1), (2, 3))


def tokens(source: str = "a.png", *, last: int = 0, scales: int = 2, **model: Any) -> ImageTokens:
    arrays = (np.array([[1]]), np.array([[1, 2, 3], [4, 5, last]]))[:scales]
    info = dataclasses.replace(model_info(), **model)
    return ImageTokens(arrays, info, image_info(source=source), schedule=SCHEDULE)


def write(path: Path, *items: ImageTokens) -> Path:
    path.write_text("".join(f"{dump_json(item)}\n" for item in items))
    return path


def test_two_files_of_one_image(here: Path) -> None:
    tokens("a.png").save("a.npz")
    tokens("b.png", last=9).save("b.json")
    assert diff_tokens("a.npz", "a.npz").equal
    diff = diff_tokens("a.npz", "b.json")
    assert not diff.equal
    assert (diff.pictures, diff.differing, diff.scales) == (1, 1, [ScaleDiff(1, 0), ScaleDiff(6, 1)])
    drawn = draw_diff(diff)
    top = (drawn[:, 0] == EQUAL).all(-1).argmax()
    assert (drawn[:top] == 0).any()  # the heading is above
    assert len(draw_diff(diff, ("a.npz", "b.json"))) > len(drawn)  # the names are two lines more
    first, second = drawn[top : top + 107, :160], drawn[top : top + 107, 168:328]
    assert (first == EQUAL).all()
    assert (second[54:, 107:] == DIFFERENT).all()  # the last of 2x3 cells in 107 x 160 pixels
    assert (second[:54] == EQUAL).all()

    tokens("a.png", scales=1).save("coarse.npz")
    assert diff_tokens("coarse.npz", "a.npz").scales == [ScaleDiff(1, 0), ScaleDiff(6, 6)]


def test_collections_are_compared_by_key(here: Path) -> None:
    a = write(here / "a.jsonl", *(tokens(f"{n}.png") for n in range(6)))
    b = write(here / "b.jsonl", *(tokens(f"{n}.png", last=n // 5) for n in (5, 4, 3, 2, 7, 1)))
    seen: list[tuple[str, VartokError | None]] = []
    diff = diff_tokens(a, b, progress=lambda *told: seen.append(told))
    assert (diff.pictures, diff.differing, diff.only, diff.first_only) == (5, 1, (1, 1), ("0.png", "7.png"))
    assert diff.scales == [ScaleDiff(5, 0), ScaleDiff(30, 1)]
    assert diff.maps[SCHEDULE][1][1].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert len(seen) == 5
    assert diff_tokens(a, b, keys=["2.png", "4.png"]).equal
    assert diff_tokens(a, b, keys=["9.png"]).failed == 2

    for name in ("one", "two"):
        (here / name / "s").mkdir(parents=True)
        tokens(name).save(here / name / "s" / "x.npz")
        np.save(here / f"{name}.npy", np.tile(tokens().flatten(), (3, 1)))
    assert diff_tokens("one", "two").equal  # by their paths
    assert diff_tokens("one.npy", "two.npy", schedule="1,2x3").pictures == 3  # by their numbers
    assert diff_tokens("one/s/x.npz", a, keys="3.png").equal


def test_what_cannot_be_compared(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens().save("a.npz")
    tokens(fingerprint="0" * 64).save("b.npz")
    image_tokens().save("c.npz")
    write(here / "many.jsonl", tokens("0.png"), tokens("1.png"))
    write(here / "others.jsonl", tokens("2.png"), tokens("3.png"))
    for other, kind, told in (
        ("b.npz", TokensError, "two codebooks"),
        ("c.npz", TokensError, "the schedules differ: 1,2x3 and 1,2,3"),
        ("many.jsonl", SourceError, "several pictures"),
        ("missing.npz", TokenFileError, "missing.npz: no such file or folder"),
    ):
        with pytest.raises(kind, match=told):
            diff_tokens("a.npz", other)
    with pytest.raises(TokenFileError, match=r"missing.npz: no such file or folder"):
        diff_tokens("many.jsonl", "missing.npz")
    with pytest.raises(ArgumentError, match="both are pictures"):
        diff_tokens("a.png", "b.JPG")
    (here / "empty.jsonl").touch()
    (here / "folder").mkdir()
    with pytest.raises(VartokError):
        diff_tokens("folder", "folder")
    broken = write(here / "broken.jsonl", tokens("0.png"), tokens("1.png", fingerprint="0" * 64))
    diff = diff_tokens("many.jsonl", broken)
    assert (diff.pictures, diff.failed, diff.equal) == (1, 1, False)
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 1500)
    with pytest.raises(TokensError, match="3 rows wait for one of the same key"):
        diff_tokens("many.jsonl", "others.jsonl")


def test_only_so_many_schedules_are_drawn(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = ImageTokens((np.array([[1]]),), model_info(), image_info(source="b.png"))
    path = write(here / "a.jsonl", tokens(), other)
    assert len(diff_tokens(path, path).maps) == 2
    assert draw_diff(diff_tokens(path, path)).ndim == 3
    monkeypatch.setattr(module, "MAX_MAPS", 1)
    diff = diff_tokens(path, path)
    assert (len(diff.maps), diff.uncharted, diff.pictures) == (1, 1, 2)


def test_mixed_tokens() -> None:
    one, other = tokens("a.png"), tokens("b.png", last=9)
    mixed = mix_tokens(one, other, 1)
    assert mixed.image.source == "a.png+b.png"
    assert mixed.flatten().tolist() == [*one.scales[0].ravel(), *other.scales[1].ravel()]
    for fine, scales, told in (
        (other, 2, "`scales` must be from 1 to 1"),
        (other, 0, "from 1 to 1"),
        (tokens(fingerprint="0" * 64), 1, "two codebooks"),
        (image_tokens(), 1, "the schedules differ"),
    ):
        with pytest.raises(TokensError, match=told):
            mix_tokens(one, fine, scales)
