"""Pictures for training: from folders, tar shards and lists to batches of crops, in an order that is known.

All processes go through one stream of pictures; of N processes, number r takes every Nth, from the rth on.
So any number of processes sees the same batches, and a run that is resumed goes on where it was.
"""

from __future__ import annotations

import itertools
import os
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from PIL.Image import Resampling

from vartok.errors import ImageError, TrainError
from vartok.images import Fit, picture_suffixes, read_picture
from vartok.parallel import map_ordered
from vartok.sources.tars import read_tar
from vartok.train.settings import DataSettings

SHUFFLED = 1000
"""Pictures out of which the next is drawn: tars are read in order, and this mixes them."""


GIVE_UP = 64
"""Pictures in a row that cannot be read, after which none is expected to be readable."""


class Item(NamedTuple):
    """A picture that has not been read.

    Attributes:
        name: its path within its folder or shard, without suffix; by it a picture is held out.
        file: its file or bytes; or why there are none.
    """

    name: str
    file: Path | bytes | ImageError

    def __str__(self) -> str:
        """Where a user finds it."""
        return str(self.file) if isinstance(self.file, Path) else self.name


@dataclass(frozen=True)
class Place:
    """A place in the stream: so many pictures into an epoch, or beyond its end into the next."""

    epoch: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Batch:
    """Crops for a step of one process, and where the stream goes on after it.

    Attributes:
        pixels: [B, H, W, 3] uint8.
        unreadable: what could not be read, a line each; others stand in for them.
        after: the place of the next batch.
    """

    pixels: NDArray[np.uint8]
    unreadable: tuple[str, ...]
    after: Place


class Pictures:
    """The pictures of folders, tar shards (WebDataset's layout), lists and files.

    Args:
        sources: paths; folders are searched, .txt files hold a path a line.
        settings: how pictures become crops.
        size: (height, width) of a crop, in pixels.
        seed: of order and crops.
        without: a folder whose pictures are left out, if it lies in one that is searched.

    Raises:
        TrainError: a source that does not exist, or none that holds a picture.
    """

    def __init__(
        self,
        sources: Sequence[str | Path],
        settings: DataSettings,
        size: tuple[int, int],
        seed: int,
        without: Path | None = None,
    ) -> None:
        self.settings = settings
        self.size = size
        self.seed = seed
        # A picture or a shard each: its name, and where it is.
        self._units = sorted(unit for source in sources for unit in _find(Path(source), without))
        if not self._units:
            raise TrainError("no pictures: name folders that hold some, tar shards, or files")
        names = "\n".join(name for name, _ in self._units)
        self.fingerprint = zlib.crc32(names.encode(errors="replace"))
        """Of the names of files: of others, the stream's order is another."""

    def held_out(self, workers: int) -> list[NDArray[np.uint8]]:
        """The pictures kept for validation, [H, W, 3] uint8 each: scaled to cover, then the centre."""
        fit = Fit(size=self.size)

        def read(item: Item) -> NDArray[np.uint8] | None:
            try:
                return _read(item, fit)
            except ImageError:
                return None

        # Mixed: in order they might all be of one folder, or of one shard.
        units = random.Random(0).sample(self._units, len(self._units))
        chosen = (item for item in self._expand(units) if self._is_held_out(item))
        pixels = (
            found
            for found in map_ordered(read, chosen, workers=workers, limit=2 * workers)
            if found is not None
        )
        return list(itertools.islice(pixels, self.settings.validation_pictures))

    def batches(
        self, size: int, place: Place, *, rank: int = 0, world: int = 1, workers: int = 1
    ) -> Iterator[Batch]:
        """Batches without end, read ahead in threads.

        Args:
            size: crops a batch, for this process.
            place: where the stream begins.
            rank: which of the processes this is.
            world: how many there are.
            workers: threads that read.

        Raises:
            TrainError: of many pictures in a row none can be read.
        """

        def read(entry: tuple[Place, int, Item]) -> tuple[Place, NDArray[np.uint8] | str]:
            after, number, item = entry
            try:
                return after, self._crop(item, np.random.default_rng([self.seed, after.epoch, number]))
            except ImageError as error:
                return after, f"{item}: {error}"

        mine = itertools.islice(self._stream(place), rank, None, world)
        found: Iterator[tuple[Place, NDArray[np.uint8] | str]]
        found = map_ordered(read, mine, workers=workers, limit=3 * size + workers)
        while part := list(itertools.islice(found, size)):
            good = [pixels for _, pixels in part if not isinstance(pixels, str)]
            bad = tuple(text for _, text in part if isinstance(text, str))
            stand_ins = good
            if not good:  # the next one that can be read, which then also has its own turn
                further = []
                for entry in itertools.islice(found, GIVE_UP):
                    further.append(entry)
                    if not isinstance(entry[1], str):
                        stand_ins = [entry[1]]
                        break
                else:
                    raise TrainError(f"no picture can be read; one of them: {bad[0]}")
                found = itertools.chain(further, found)
            filled = itertools.islice(itertools.cycle(stand_ins), size - len(good))
            last = part[-1][0]
            # The last of this process's pictures is followed by those of the processes after it.
            yield Batch(np.stack([*good, *filled]), bad, Place(last.epoch, last.offset + world - 1 - rank))

    def _stream(self, place: Place) -> Iterator[tuple[Place, int, Item]]:
        """Pictures to train on, without end: the place after each, its number in the epoch, and itself."""
        skipped = place.offset
        for epoch in itertools.count(place.epoch):
            number = 0
            for item in self._epoch(epoch):
                number += 1
                if number > skipped:
                    yield Place(epoch, number), number, item
            if not number:
                raise TrainError("no pictures to train on")
            skipped = max(0, skipped - number)

    def _epoch(self, epoch: int) -> Iterator[Item]:
        """Every picture to train on once, in this epoch's order."""
        import webdataset

        order = random.Random(f"{self.seed}/{epoch}")
        units = order.sample(self._units, len(self._units))
        mixed: Iterable[Item] = webdataset.shuffle(SHUFFLED, rng=order)(self._expand(units))
        return (item for item in mixed if not self._is_held_out(item))

    def _is_held_out(self, item: Item) -> bool:
        if isinstance(item.file, ImageError):  # of a shard, which training tells of
            return False
        return zlib.crc32(item.name.encode(errors="replace")) % self.settings.hold_out == 0

    def _expand(self, units: Iterable[tuple[str, Path]]) -> Iterator[Item]:
        for name, path in units:
            if path.suffix.lower() == ".tar":
                yield from _read_shard(path)
            else:
                yield Item(name, path)

    def _crop(self, item: Item, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A random part of a picture, perhaps mirrored, its colours a little changed: [H, W, 3] uint8."""
        height, width = self.size
        picture = Image.fromarray(_read(item, Fit(mode="native", multiple=1)))
        zoom = max(height / picture.height, width / picture.width) * rng.uniform(1, self.settings.zoom)
        # The part of the original that the crop shows, placed at random; scaled down, never all of it.
        part_w, part_h = min(picture.width, width / zoom), min(picture.height, height / zoom)
        left, top = rng.uniform(0, picture.width - part_w), rng.uniform(0, picture.height - part_h)
        box = (left, top, left + part_w, top + part_h)
        picture = picture.resize((width, height), Resampling.LANCZOS, box=box)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < self.settings.grey:
            picture = picture.convert("L").convert("RGB")
        if self.settings.jitter:
            low, high = 1 - self.settings.jitter, 1 + self.settings.jitter
            picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(low, high))
            picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(low, high))
        return np.asarray(picture)


def _find(source: Path, without: Path | None) -> Iterator[tuple[str, Path]]:
    """The pictures and shards of a source: what each is called, and where it is."""
    if source.is_dir():
        suffixes = (*picture_suffixes(), ".tar")
        for path in source.rglob("*"):
            if path.name.startswith(".") or not path.name.lower().endswith(suffixes) or not path.is_file():
                continue
            if without is None or not path.resolve().is_relative_to(without.resolve()):
                yield path.relative_to(source).with_suffix("").as_posix(), path
    elif not source.exists():
        raise TrainError(f"{source}: no such file or folder")
    elif source.suffix.lower() == ".txt":
        for line in source.read_bytes().splitlines():
            if line:
                path = Path(os.fsdecode(line))
                yield path.with_suffix("").as_posix(), path
    else:
        yield source.stem, source


def _read_shard(path: Path) -> Iterator[Item]:
    """The pictures of a tar shard."""
    try:
        with open(path, "rb") as stream:
            for sample in read_tar(stream):
                for picture in sample.pictures:
                    yield Item(sample.key, picture)
    except ImageError as error:
        yield Item(str(path), error)
    except OSError as error:
        yield Item(str(path), ImageError(f"cannot be read on: {error.strerror}"))


def _read(item: Item, fit: Fit) -> NDArray[np.uint8]:
    if isinstance(item.file, ImageError):
        raise item.file
    return read_picture(item.file, fit).pixels
