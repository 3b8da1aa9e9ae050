"""Training data: order, crops, the validation split, what cannot be read."""

import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_run import pictures, take

from vartok.errors import SourceError, TrainError, VartokWarning
from vartok.sources.samples import Sample
from vartok.train import data
from vartok.train.data import StreamPosition


def test_every_process_takes_its_share_of_the_same_batches(tiles: Path) -> None:
    alone = take(pictures(tiles), 6)
    shares = [take(pictures(tiles), 6, size=2, rank=rank, world_size=2) for rank in range(2)]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert np.array_equal(batch.pixels[0::2], parts[0].pixels)
        assert np.array_equal(batch.pixels[1::2], parts[1].pixels)
        assert {batch.after} == {part.after for part in parts}


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

    def looks(crops: Any) -> set[tuple[int, ...]]:  # mirrored or not, a crop of the whole has these levels
        return {tuple(np.sort(crop.astype(int).sum((0, 1))).tolist()) for crop in crops}

    assert len(looks(epoch.pixels)) == len(epoch.pixels)
    assert not looks(epoch.pixels) & looks(held)


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
        source = pictures(*sources, val_fraction=0.0, zoom=1.0, grayscale_prob=0.0, color_jitter=0.0)
        (batch,) = take(source, 1, size=16)
        return {min(crop.tobytes(), crop[:, ::-1].tobytes()) for crop in batch.pixels}

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
        source.warn()


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
