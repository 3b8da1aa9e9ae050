"""Training data: pictures of folders, tar shards and lists as batches of random crops, in a fixed order.

All processes iterate over one stream of pictures; of N processes, process r takes pictures r, r + N, ...
So the batches do not depend on the number of processes, and a resumed run continues where it stopped.
"""

from __future__ import annotations

import itertools
import posixpath
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from PIL.Image import Resampling

from vartok.errors import ImageError, SourceError, TrainError, VartokError
from vartok.files import os_error_reason
from vartok.images import Fit
from vartok.parallel import map_ordered
from vartok.sources.find import FoundFile, find_files, is_url, open_place
from vartok.sources.samples import Sample
from vartok.sources.tars import read_tar
from vartok.train.settings import DataSettings

SHUFFLE_BUFFER = 1000
"""Size in pictures of the buffer that shuffles the stream, as a tar is read in order."""

MAX_UNREADABLE_RUN = 64
"""Unreadable pictures in a row after which training gives up."""


@dataclass(frozen=True)
class StreamPosition:
    """A position in the stream of pictures.

    Attributes:
        epoch: number of the epoch, from 0.
        offset: number of the epoch's pictures before this position; it may run into later epochs.
    """

    epoch: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Batch:
    """One process's crops of a step.

    Attributes:
        pixels: [B, H, W, 3] uint8.
        unreadable: one line for each unreadable picture, in whose place a readable one is repeated.
        after: position of the next batch.
    """

    pixels: NDArray[np.uint8]
    unreadable: tuple[str, ...]
    after: StreamPosition


class Pictures:
    """The pictures of folders, tar shards (WebDataset's layout), lists and files.

    Attributes:
        fingerprint: crc32 of the names of all files, by which a resumed run notices other pictures.

    Args:
        sources: folders, tars, pictures, and lists (.txt) of them, as for `find_files`.
        settings: crops and validation split.
        size: (height, width) of a crop, in pixels.
        seed: seed of the order and the crops.
        exclude: folder that is not searched, if it lies in one of the sources.

    Raises:
        SourceError: a source does not exist or cannot be searched, or there are no pictures.
    """

    def __init__(
        self,
        sources: Sequence[str | Path],
        settings: DataSettings,
        size: tuple[int, int],
        seed: int,
        exclude: Path | None = None,
    ) -> None:
        self.settings = settings
        self.size = size
        self.seed = seed
        found = (
            file
            for source in sources
            for file in find_files(source, kinds=("picture", "tar"), exclude=exclude)
        )
        self._files = sorted(found, key=lambda file: (_name(file), PurePath(file.place).parts))
        if not self._files:
            raise SourceError("no pictures: name folders that hold some, tar shards, or files")
        names = "\n".join(map(_name, self._files))
        self.fingerprint = zlib.crc32(names.encode(errors="replace"))

    def held_out(self, workers: int) -> list[NDArray[np.uint8]]:
        """Read the validation pictures.

        Args:
            workers: threads that read.

        Returns:
            At most `val_pictures` arrays [H, W, 3] uint8, scaled to cover the crop's size and cropped to the
            centre. Unreadable pictures are left out.
        """
        fit = Fit(size=self.size)

        def read(sample: Sample) -> NDArray[np.uint8] | None:
            try:
                return sample.read(fit).pixels
            except VartokError:
                return None

        if not self.settings.val_fraction:
            return []
        # Shuffled, as the first files may all be of one folder or one shard.
        files = random.Random(0).sample(self._files, len(self._files))
        chosen = (sample for sample in _samples(files) if self._is_held_out(sample))
        pixels = (
            found
            for found in map_ordered(read, chosen, workers=workers, limit=2 * workers)
            if found is not None
        )
        return list(itertools.islice(pixels, self.settings.val_pictures))

    def batches(
        self, size: int, position: StreamPosition, *, rank: int = 0, world_size: int = 1, workers: int = 1
    ) -> Iterator[Batch]:
        """Yield batches without end; threads read ahead.

        Args:
            size: crops per batch, for this process.
            position: position of the first picture in the stream.
            rank: number of this process, from 0.
            world_size: number of processes.
            workers: threads that read.

        Raises:
            TrainError: many pictures in a row cannot be read, or there are none to train on.
        """

        def read(entry: tuple[StreamPosition, int, Sample]) -> tuple[StreamPosition, NDArray[np.uint8] | str]:
            after, number, sample = entry
            try:
                return after, self._crop(sample, np.random.default_rng([self.seed, after.epoch, number]))
            except VartokError as error:
                return after, f"{_place(sample)}: {error}"

        mine = itertools.islice(self._stream(position), rank, None, world_size)
        found: Iterator[tuple[StreamPosition, NDArray[np.uint8] | str]]
        found = map_ordered(read, mine, workers=workers, limit=3 * size + workers)
        while part := list(itertools.islice(found, size)):
            good = [pixels for _, pixels in part if not isinstance(pixels, str)]
            bad = tuple(text for _, text in part if isinstance(text, str))
            stand_ins = good
            if not good:  # repeat the next readable one, which also comes in its own turn
                further = []
                for entry in itertools.islice(found, MAX_UNREADABLE_RUN):
                    further.append(entry)
                    if not isinstance(entry[1], str):
                        stand_ins = [entry[1]]
                        break
                else:
                    raise TrainError(f"no picture can be read; one of them: {bad[0]}")
                found = itertools.chain(further, found)
            filled = itertools.islice(itertools.cycle(stand_ins), size - len(good))
            last = part[-1][0]
            # The pictures of the processes with higher rank follow this process's last one.
            after = StreamPosition(last.epoch, last.offset + world_size - 1 - rank)
            yield Batch(np.stack([*good, *filled]), bad, after)

    def _stream(self, position: StreamPosition) -> Iterator[tuple[StreamPosition, int, Sample]]:
        """Yield training pictures without end: position after it, number in the epoch, sample."""
        skipped = position.offset
        for epoch in itertools.count(position.epoch):
            number = 0
            for sample in self._epoch(epoch):
                number += 1
                if number > skipped:
                    yield StreamPosition(epoch, number), number, sample
            if not number:
                raise TrainError("no pictures to train on")
            skipped = max(0, skipped - number)

    def _epoch(self, epoch: int) -> Iterator[Sample]:
        """Yield every training picture once, in the epoch's order."""
        import webdataset

        order = random.Random(f"{self.seed}/{epoch}")
        files = order.sample(self._files, len(self._files))
        shuffled: Iterable[Sample] = webdataset.shuffle(SHUFFLE_BUFFER, rng=order)(_samples(files))
        return (sample for sample in shuffled if not self._is_held_out(sample))

    def _is_held_out(self, sample: Sample) -> bool:
        fraction = self.settings.val_fraction
        if not fraction or isinstance(sample.picture, VartokError):  # training reports a shard's error
            return False
        return zlib.crc32(sample.key.encode(errors="replace")) % round(1 / fraction) == 0

    def _crop(self, sample: Sample, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Return a random crop with random mirroring, grey and color jitter: [H, W, 3] uint8."""
        height, width = self.size
        picture = Image.fromarray(sample.read(Fit(mode="native", multiple=1)).pixels)
        zoom = max(height / picture.height, width / picture.width) * rng.uniform(1, self.settings.zoom)
        # Resize from a box of the original: the whole picture is never scaled.
        part_w, part_h = min(picture.width, width / zoom), min(picture.height, height / zoom)
        left, top = rng.uniform(0, picture.width - part_w), rng.uniform(0, picture.height - part_h)
        box = (left, top, left + part_w, top + part_h)
        picture = picture.resize((width, height), Resampling.LANCZOS, box=box)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < self.settings.grayscale_prob:
            picture = picture.convert("L").convert("RGB")
        if self.settings.color_jitter:
            low, high = 1 - self.settings.color_jitter, 1 + self.settings.color_jitter
            picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(low, high))
            picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(low, high))
        return np.asarray(picture)


def _name(file: FoundFile) -> str:
    """Return a file's name without suffix, which decides its order and whether it is held out."""
    return posixpath.splitext(PurePath(file.name).as_posix())[0]


def _samples(files: Iterable[FoundFile]) -> Iterator[Sample]:
    """Yield picture files, and the pictures of tar shards."""
    for file in files:
        if file.kind == "tar":
            yield from _read_shard(file.place)
        else:
            yield Sample(_name(file), file.place if is_url(file.place) else Path(file.place))


def _read_shard(place: str) -> Iterator[Sample]:
    """Yield the pictures of a tar shard; if reading fails, the last sample holds the error."""
    try:
        with open_place(place) as stream:
            for found in read_tar(stream):
                for picture in found.pictures:
                    yield Sample(found.key, picture)
    except ImageError as error:
        yield Sample(place, error)
    except Exception as error:  # any error of a remote file system's library
        yield Sample(place, ImageError(f"cannot be read on: {os_error_reason(error)}"))


def _place(sample: Sample) -> str:
    """Return a picture's path or URL, or its key in a tar, for a message."""
    return str(sample.picture) if isinstance(sample.picture, Path | str) else sample.key
