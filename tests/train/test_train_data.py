"""Training data: order, crops, the validation split, what cannot be read."""

import random
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_run import pictures, take

from vartok.errors import SourceError, TrainError, VartokWarning
from vartok.sources import places
from vartok.sources.samples import Sample
from vartok.train import data, shuffle
from vartok.train.data import StreamPosition


def shards_of(tiles: Path, folder: Path, count: int) -> Path:
    """Write the tiles as tars of as many members each, and return their folder."""
    folder.mkdir(exist_ok=True)
    paths = sorted(tiles.glob("*.png"))
    for number in range(count):
        with tarfile.open(folder / f"{number}.tar", "w") as shard:
            for path in paths[number::count]:
                shard.add(path, path.name)
    return folder


def looks(crops: Any) -> list[bytes]:
    """Return what tells crops of whole pictures apart, mirrored or not."""
    return [min(crop.tobytes(), crop[:, ::-1].tobytes()) for crop in crops]


WHOLE: dict[str, Any] = {"val_fraction": 0.0, "zoom": 1.0, "grayscale_prob": 0.0, "color_jitter": 0.0}


@pytest.mark.parametrize("shards", [0, 1])
def test_every_process_takes_its_share_of_the_same_batches(tiles: Path, tmp_path: Path, shards: int) -> None:
    source = shards_of(tiles, tmp_path / "tars", shards) if shards else tiles
    alone = take(pictures(source), 6)
    shares = [take(pictures(source), 6, size=2, rank=rank, world_size=2) for rank in range(2)]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert np.array_equal(batch.pixels[0::2], parts[0].pixels)
        assert np.array_equal(batch.pixels[1::2], parts[1].pixels)
        assert {batch.after} == {part.after for part in parts}


def test_each_process_reads_shards_of_its_own(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shards_of(tiles, tmp_path / "tars", 4)
    opened: list[str] = []

    def open_place(place: str) -> Any:
        opened.append(place)
        return places.open_place(place)

    monkeypatch.setattr(data, "open_place", open_place)
    seen, read = [], []
    for rank in range(2):
        (batch,) = take(pictures(folder, **WHOLE), 1, size=8, rank=rank, world_size=2)
        assert batch.after == StreamPosition(0, 8)
        seen += looks(batch.pixels)
        read.append({Path(place).name for place in opened[:2]})
        opened.clear()
    assert len(set(seen)) == 16
    assert sorted(read[0] | read[1]) == ["0.tar", "1.tar", "2.tar", "3.tar"]
    source = pictures(folder)
    assert source.streams(2) == 2
    assert source.streams(5) == source.streams(1) == 1
    batches = take(source, 5, size=2, rank=1, world_size=2)
    (again,) = take(source, 1, batches[3].after, size=2, rank=1, world_size=2)
    assert np.array_equal(again.pixels, batches[4].pixels)


def test_a_process_whose_shards_are_empty_reads_the_others(tiles: Path, tmp_path: Path) -> None:
    shards_of(tiles, tmp_path, 1)
    tarfile.open(tmp_path / "empty.tar", "w").close()
    seen = [
        looks(take(pictures(tmp_path, **WHOLE), 1, size=16, rank=rank, world_size=2)[0].pixels)
        for rank in range(2)
    ]
    assert set(seen[0]) == set(seen[1])
    assert len(set(seen[0])) == 16


def test_the_buffer_shuffles_as_webdatasets_and_is_limited_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    import webdataset

    samples = [Sample(str(number), b"picture") for number in range(2500)]
    theirs = webdataset.shuffle(1000, rng=random.Random(7))(iter(samples))
    assert list(shuffle.shuffle(iter(samples), random.Random(7))) == list(theirs)

    monkeypatch.setattr(shuffle, "SHUFFLE_NBYTES", 300)
    held = most = 0

    def counting() -> Iterator[Sample]:
        nonlocal held, most
        for number in range(200):
            held += 100
            most = max(most, held)
            yield Sample(str(number), bytes(100))

    found = []
    for sample in shuffle.shuffle(counting(), random.Random(7)):
        held -= sample.nbytes
        found.append(sample.key)
    assert most == 400  # the picture that exceeds the limit is held too
    assert sorted(map(int, found)) == list(range(200))
    assert found != sorted(found, key=int)


def test_findings_of_several_processes_count_once(tiles: Path, tmp_path: Path) -> None:
    shards_of(tiles, tmp_path, 2)
    found = []
    for name in ("0.tar", "1.tar"):
        with tarfile.open(tmp_path / name, "a") as shard:
            shard.add(tiles / "tile00.png", "odd.xyz")
    for rank in range(2):
        source = pictures(tmp_path, val_fraction=0.0)
        take(source, 2, size=8, rank=rank, world_size=2)
        found.append(source.findings)
    assert [len(one.members) for one in found] == [2, 2]  # in the second epoch those of the other one
    found[0].update(found[1])
    with pytest.warns(VartokWarning, match=r"2 .*\.xyz"):
        found[0].warn()


@pytest.mark.parametrize("done", [1, 3, 4, 9])
def test_the_stream_goes_on_where_it_was(tiles: Path, done: int) -> None:
    batches = take(pictures(tiles), done + 2)
    (again,) = take(pictures(tiles), 1, batches[done - 1].after)
    assert np.array_equal(again.pixels, batches[done].pixels)


def test_an_offset_beyond_the_epoch_counts_into_the_next(tiles: Path) -> None:
    source = pictures(tiles, val_fraction=0.0)
    assert np.array_equal(
        take(source, 1, StreamPosition(0, 18))[0].pixels, take(source, 1, StreamPosition(1, 2))[0].pixels
    )


def test_an_epoch_shows_every_picture_once_but_those_held_out(tiles: Path) -> None:
    source = pictures(tiles, val_fraction=0.2, zoom=1.0, grayscale_prob=0.0, color_jitter=0.0)
    held = source.held_out(1)
    (epoch,) = take(source, 1, size=16 - len(held))
    assert epoch.after == StreamPosition(0, 16 - len(held))
    assert 0 < len(held) < 8

    def levels(crops: Any) -> set[tuple[int, ...]]:  # mirrored or not, a crop of the whole has these levels
        return {tuple(np.sort(crop.astype(int).sum((0, 1))).tolist()) for crop in crops}

    assert len(levels(epoch.pixels)) == len(epoch.pixels)
    assert not levels(epoch.pixels) & levels(held)


def test_tars_lists_and_folders_hold_the_same_pictures(tiles: Path, tmp_path: Path) -> None:
    names = sorted(tiles.glob("*.png"))
    for number, part in enumerate((names[:7], names[7:])):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as shard:
            for path in part:
                shard.add(path, path.name)
                label = tmp_path / f"{path.stem}.cls"
                label.write_text("3")
                shard.add(label, label.name)
    (tmp_path / "list.txt").write_text("\n".join(map(str, names)))

    def seen(*sources: Path) -> set[bytes]:
        (batch,) = take(pictures(*sources, **WHOLE), 1, size=16)
        return set(looks(batch.pixels))

    assert len(seen(tiles)) == 16
    assert seen(tiles) == seen(tmp_path / "list.txt") == seen(tmp_path / "0.tar", tmp_path / "1.tar")


def test_crops_cover_no_more_than_the_picture(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    batches = take(pictures(tmp_path, grayscale_prob=0.0, color_jitter=0.0, zoom=1.25), 8)
    widths = [int(crop.max()) - int(crop.min()) for batch in batches for crop in batch.pixels]
    # 64 of 100 pixels a side are 100 levels of the ramp, or 80 at the largest zoom.
    assert all(76 <= width <= 100 for width in widths)
    assert len(set(widths)) > 5


def test_unreadable_pictures_are_reported_and_others_repeated(tiles: Path, tmp_path: Path) -> None:
    shutil.copytree(tiles, tmp_path, dirs_exist_ok=True)
    for name in ("broken1.png", "broken2.png"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    batches = take(pictures(tmp_path, val_fraction=0.0), 9, size=6)
    assert all(batch.pixels.shape == (6, 64, 64, 3) for batch in batches)
    reported = [text for batch in batches for text in batch.unreadable]
    assert len(reported) == 6  # two in each of three epochs
    assert all(text.startswith(f"{tmp_path}/broken") for text in reported)


def test_damaged_pictures_are_left_out_or_taken_and_said(tiles: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        shutil.copy(tiles / "tile00.png", tmp_path / name)
    cut = (tmp_path / "b.png").read_bytes()[:3000]
    (tmp_path / "b.png").write_bytes(cut)
    (batch,) = take(pictures(tmp_path, val_fraction=0.0), 1, size=2)
    assert len(batch.unreadable) == 1
    source = pictures(tmp_path, val_fraction=0.0, allow_damaged=True)
    (batch,) = take(source, 1, size=2)
    assert batch.unreadable == ()
    told = r"^took what can be decoded of 1 damaged picture, such as .*b\.png: is truncated: "
    with pytest.warns(VartokWarning, match=told):
        source.findings.warn()


def test_sources_without_readable_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no pictures"):
        pictures(tmp_path)
    with pytest.raises(SourceError, match="no such file"):
        pictures(tmp_path / "nowhere")
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(TrainError, match=r"pictures in a row cannot be read; the first is .*a\.png: "):
        take(pictures(tmp_path), 1)
    (tmp_path / "b.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(TrainError, match=r"b\.tar: is not a whole tar file"):
        take(pictures(tmp_path / "b.tar"), 1)


def test_a_broken_shard_is_reported_and_the_others_are_used(tiles: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.tar"
    with tarfile.open(whole, "w") as shard:
        for path in sorted(tiles.glob("*.png")):
            shard.add(path, path.name)
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:100_000])
    batches = take(pictures(tmp_path, val_fraction=0.0), 12)
    reported = [text for batch in batches for text in batch.unreadable]
    assert reported
    assert all("cut.tar: is not a whole tar file" in text for text in reported)


def test_names_of_shards_and_pictures_are_never_taken_for_commands(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"pipe:touch {tmp_path.name}-made;.tar")
    with pytest.raises(TrainError, match="no such file"):
        take(pictures(tmp_path / "list.txt"), 1)
    assert not list(Path().glob("*-made*"))


def test_one_readable_picture_is_enough(tiles: Path, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"broken{number}.png").write_bytes(b"no picture")
    shutil.copy(tiles / "tile11.png", tmp_path)
    batches = take(pictures(tmp_path, val_fraction=0.0), 30, size=1)
    assert all(batch.pixels.shape == (1, 64, 64, 3) for batch in batches)
    (again,) = take(pictures(tmp_path, val_fraction=0.0), 1, batches[10].after, size=1)
    assert np.array_equal(again.pixels, batches[11].pixels)  # the same one stands in


def test_one_picture_in_64_is_held_out_by_its_name(tiles: Path) -> None:
    # The crc32 of a name decides, so that adding pictures moves none from one side to the other.
    source = pictures(tiles, val_fraction=1 / 64)
    names = [f"photo{number}" for number in range(2000)]
    chosen = [name for name in names if source._is_held_out(Sample(name, b""))]
    assert chosen == [name for name in names if zlib.crc32(name.encode()) % 64 == 0]
    assert not pictures(tiles, val_fraction=0.0).held_out(1)


def test_folders_hold_no_hidden_files_and_no_decoded_pictures_but_compressed_tars(
    tiles: Path, tmp_path: Path
) -> None:
    (tmp_path / ".cache").mkdir()
    for name in (".cache/a.png", "a.png", "a.decoded.png", "a.strip.png"):
        shutil.copy(tiles / "tile00.png", tmp_path / name)
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as shard:
        shard.add(tiles / "tile11.png", "b.png")
    (batch,) = take(pictures(tmp_path, val_fraction=0.0), 1, size=2)
    assert batch.after == StreamPosition(0, 2)
    assert not batch.unreadable
    (batch,) = take(pictures(tmp_path, val_fraction=0.0), 1, size=3)
    assert batch.after == StreamPosition(1, 1)


def test_messages_hide_the_passwords_of_urls() -> None:
    for sample in (Sample("k", "http://me:pass@host/a.png"), Sample("http://me:pass@host/a.png", b"")):
        assert data._place(sample) == "http://host/a.png"
