"""Training data: pictures of folders, tar shards and lists as batches of random crops, in a fixed order.

All processes iterate over the same stream of pictures. Process r of N takes pictures r, r + N, ... of it, so
that a step's pictures do not depend on N. The stream can begin at any position, so that a resumed run
continues where it stopped.
"""

from __future__ import annotations

import hashlib
import itertools
import posixpath
import random
import zlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from PIL.Image import Resampling

from vartok.errors import ImageError, SourceError, TrainError, VartokError
from vartok.files import os_error_reason
from vartok.images import Fit
from vartok.images.bands import Bands, as_image
from vartok.images.channels import CONVERTED
from vartok.images.tensors import Pixels, peak
from vartok.parallel import map_ordered
from vartok.sources.find import FoundFile, SearchReport, find_files
from vartok.sources.places import is_url, open_place, shorten_path
from vartok.sources.samples import Sample
from vartok.sources.tars import read_tar
from vartok.train.findings import Findings
from vartok.train.settings import DataSettings
from vartok.train.shuffle import divide_files, shuffle

MAX_UNREADABLE_RUN = 64
"""Training gives up if no picture of a batch can be read, nor any of this many pictures after it."""


@dataclass(frozen=True)
class StreamPosition:
    """A position in the stream of pictures.

    Attributes:
        epoch: number of the epoch, from 0.
        offset: number of pictures between the start of the epoch and this position. It may exceed the length
            of the epoch; the position then lies in a later one.
    """

    epoch: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Batch:
    """One process's crops of a step.

    Attributes:
        pixels: [B, H, W, 3] uint8; of another number of channels [B, H, W, C] uint16.
        unreadable: one line for each picture that could not be read. A readable picture is repeated in its
            place.
        after: position in the stream at which the next batch begins.
    """

    pixels: Pixels
    unreadable: tuple[str, ...]
    after: StreamPosition


class Pictures:
    """The pictures of folders, tar shards (WebDataset's layout), lists and files.

    Attributes:
        fingerprint: crc32 of the sorted names of all files, without suffixes. A resumed run compares it, to
            notice that files were added, removed or renamed.
        findings: what this process passed over, and took although damaged, so far.

    Args:
        sources: folders, tars, pictures, and lists (.txt) of them, as for `find_files`.
        settings: crops and validation split.
        size: (height, width) of a crop, in pixels.
        seed: seed of the order and the crops.
        channels: number of channels of the crops.
        exclude: folder to skip if it lies in one of the sources.

    Raises:
        ArgumentError: the path of a source is empty.
        SourceError: a source does not exist or cannot be searched, or there is no picture file and no tar.

    Warns:
        VartokWarning: files were passed over because of their suffixes.
    """

    def __init__(
        self,
        sources: Sequence[str | Path],
        settings: DataSettings,
        size: tuple[int, int],
        seed: int,
        channels: int = 3,
        exclude: Path | None = None,
    ) -> None:
        self.settings = settings
        self.size = size
        self.seed = seed
        self.channels = channels
        report = SearchReport()
        found = [
            file
            for source in sources
            for file in find_files(source, kinds=("picture", "tar"), exclude=exclude, report=report)
        ]
        report.warn()
        for file in found:
            if file.kind == "folder":  # training without its pictures would go unnoticed
                raise SourceError(f"{shorten_path(file.place)}: {file.error}")
        self._files = sorted(found, key=lambda file: (_name(file), PurePath(file.place).parts))
        if not self._files:
            raise SourceError("no pictures found: name picture files, tar shards, or folders that hold some")
        names = "\n".join(map(_name, self._files))
        self.fingerprint = zlib.crc32(names.encode(errors="replace"))
        self.findings = Findings()

    def held_out(self, workers: int) -> list[Pixels]:
        """Read the validation pictures.

        Args:
            workers: number of threads that read.

        Returns:
            At most `val_pictures` arrays [H, W, C] uint8 or uint16: each picture is scaled to cover the size
            of a crop, and its centre is cut out. Unreadable pictures are left out. Empty if `val_fraction`
            is 0.
        """
        fit = Fit(size=self.size, allow_damaged=self.settings.allow_damaged, channels=self.channels)

        def read(sample: Sample) -> Pixels | None:
            try:
                return self._read(sample, fit)
            except VartokError:
                return None

        if not self.settings.val_fraction:
            return []
        # Shuffled, as the first files may all come from one folder or one shard.
        files = random.Random(0).sample(self._files, len(self._files))
        chosen = (sample for sample in _samples(files, self.findings.members) if self._is_held_out(sample))
        pixels = (
            found
            for found in map_ordered(read, chosen, workers=workers, limit=2 * workers)
            if found is not None
        )
        return list(itertools.islice(pixels, self.settings.val_pictures))

    def streams(self, world_size: int) -> int:
        """Return the number of streams of pictures: one for all processes, or one for each.

        If there are at least as many tars as processes, files are divided: in every epoch each process reads
        its share of them alone, and a step's pictures depend on the number of processes. Otherwise each
        process reads every tar and takes every `world_size`-th picture of one stream, so that they do not.

        Args:
            world_size: number of processes.
        """
        tars = sum(file.kind == "tar" for file in self._files)
        return world_size if tars >= world_size else 1

    def batches(
        self, size: int, position: StreamPosition, *, rank: int = 0, world_size: int = 1, workers: int = 1
    ) -> Generator[Batch, None, None]:
        """Yield batches without end; threads read ahead.

        Args:
            size: number of crops in a batch of this process.
            position: position in the process's stream, see `streams`, at which the first batch begins.
            rank: number of this process, from 0.
            world_size: number of processes.
            workers: number of threads that read.

        Raises:
            TrainError: no picture of a batch can be read, nor the `MAX_UNREADABLE_RUN` pictures after it;
                or there is no picture to train on, as all are held out or the tars hold none.
        """
        streams = self.streams(world_size)
        own = [rank] if streams > 1 else []

        def read(entry: tuple[StreamPosition, int, Sample]) -> tuple[StreamPosition, Pixels | str]:
            after, number, sample = entry
            try:
                rng = np.random.default_rng([self.seed, after.epoch, number, *own])
                return after, self._crop(sample, rng)
            except VartokError as error:
                return after, f"{_place(sample)}: {error}"

        if own:
            mine = self._stream(position, rank, streams)
        else:
            mine = itertools.islice(self._stream(position), rank, None, world_size)
        found: Iterator[tuple[StreamPosition, Pixels | str]]
        found = map_ordered(
            read, mine, workers=workers, limit=3 * size + workers, nbytes=lambda entry: entry[2].nbytes
        )
        while part := list(itertools.islice(found, size)):
            good = [pixels for _, pixels in part if not isinstance(pixels, str)]
            bad = tuple(text for _, text in part if isinstance(text, str))
            stand_ins = good
            if not good:  # repeat the next readable picture, which also comes in its own turn
                further = []
                for entry in itertools.islice(found, MAX_UNREADABLE_RUN):
                    further.append(entry)
                    if not isinstance(entry[1], str):
                        stand_ins = [entry[1]]
                        break
                else:
                    raise TrainError(
                        f"{len(bad) + len(further)} pictures in a row cannot be read; the first is {bad[0]}"
                    )
                found = itertools.chain(further, found)
            filled = itertools.islice(itertools.cycle(stand_ins), size - len(good))
            last = part[-1][0]
            # In one stream, the pictures of the processes with higher rank follow this process's last one.
            after = last if own else StreamPosition(last.epoch, last.offset + world_size - 1 - rank)
            yield Batch(np.stack([*good, *filled]), bad, after)

    def _stream(
        self, position: StreamPosition, stream: int = 0, streams: int = 1
    ) -> Iterator[tuple[StreamPosition, int, Sample]]:
        """Yield training pictures without end: position after it, its number in the epoch, the picture."""
        skipped = position.offset
        for epoch in itertools.count(position.epoch):
            number = 0
            for sample in self._epoch(epoch, stream, streams):
                number += 1
                if number > skipped:
                    yield StreamPosition(epoch, number), number, sample
            if not number:
                raise TrainError(
                    "no pictures to train on: validation holds out all of them, or the tars hold none",
                    hint="add pictures, or set [data] val_fraction to 0",
                )
            skipped = max(0, skipped - number)

    def _epoch(self, epoch: int, stream: int = 0, streams: int = 1) -> Iterator[Sample]:
        """Yield every training picture of a stream once, in the random order of the epoch.

        A stream whose files hold no picture to train on in this epoch has those of all streams instead.
        """
        order = random.Random(f"{self.seed}/{epoch}")
        files = order.sample(self._files, len(self._files))
        found = False
        samples = _samples(divide_files(files, stream, streams), self.findings.members)
        for sample in shuffle(samples, order):
            if not self._is_held_out(sample):
                found = True
                yield sample
        if not found and streams > 1:
            yield from self._epoch(epoch)

    def _is_held_out(self, sample: Sample) -> bool:
        fraction = self.settings.val_fraction
        if not fraction or isinstance(sample.picture, VartokError):  # training reports the error
            return False
        return zlib.crc32(sample.key.encode(errors="replace")) % round(1 / fraction) == 0

    def _read(self, sample: Sample, fit: Fit) -> Pixels:
        """Return the fitted pixels of a picture, and note whether it is damaged, or was converted to grey."""
        picture = sample.read(fit)
        if CONVERTED in picture.notes:
            place = _full_place(sample).encode(errors="surrogatepass")
            self.findings.grey.add(hashlib.blake2b(place, digest_size=8).digest())
        if picture.damage is not None:
            self.findings.damaged.add(f"{_place(sample)}: {picture.damage}")
        return picture.pixels

    def _crop(self, sample: Sample, rng: np.random.Generator) -> Pixels:
        """Return a random crop, with random mirroring, grayscale, brightness and contrast; see `Batch`."""
        height, width = self.size
        allow_damaged = self.settings.allow_damaged
        fit = Fit(mode="native", multiple=1, allow_damaged=allow_damaged, channels=self.channels)
        picture = as_image(self._read(sample, fit))
        zoom = rng.uniform(self.settings.min_zoom, self.settings.zoom)
        zoom *= max(height / picture.height, width / picture.width)
        # Resize from a box of the original, which saves scaling the whole picture.
        part_w, part_h = min(picture.width, width / zoom), min(picture.height, height / zoom)
        left, top = rng.uniform(0, picture.width - part_w), rng.uniform(0, picture.height - part_h)
        box = (left, top, left + part_w, top + part_h)
        picture = picture.resize((width, height), Resampling.LANCZOS, box=box)
        if isinstance(picture, Bands):
            return self._vary(np.asarray(picture), rng)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < self.settings.grayscale_prob:
            picture = picture.convert("L").convert("RGB")
        if self.settings.color_jitter:
            low, high = 1 - self.settings.color_jitter, 1 + self.settings.color_jitter
            picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(low, high))
            picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(low, high))
        return np.asarray(picture)

    def _vary(self, pixels: Pixels, rng: np.random.Generator) -> NDArray[np.uint16]:
        """Mirror [H, W, C] pixels, and change brightness and contrast of all channels alike, at random."""
        levels = pixels.astype(np.float32) * (peak(np.uint16) // peak(pixels.dtype))
        if rng.random() < 0.5:
            levels = levels[:, ::-1]
        if self.settings.color_jitter:
            low, high = 1 - self.settings.color_jitter, 1 + self.settings.color_jitter
            levels = (levels * rng.uniform(low, high)).clip(0, peak(np.uint16))
            mean = levels.mean()
            levels = (mean + (levels - mean) * rng.uniform(low, high)).clip(0, peak(np.uint16))
        return np.rint(levels).astype(np.uint16)


def _name(file: FoundFile) -> str:
    """Return a file's name without suffix: the key of a picture file, by which files are sorted."""
    return posixpath.splitext(PurePath(file.name).as_posix())[0]


def _samples(files: Iterable[FoundFile], members: dict[str, Counter[str]]) -> Iterator[Sample]:
    """Yield a sample for every picture file, and for every picture in a tar shard.

    Args:
        files: picture files and tars.
        members: for each tar, the counts of members that are passed over, by kind; set when it has been read.
    """
    for file in files:
        if file.kind == "tar":
            passed_over = Counter[str]()
            yield from _read_shard(file.place, passed_over)
            members[file.place] = passed_over
        else:
            yield Sample(_name(file), file.place if is_url(file.place) else Path(file.place))


def _read_shard(place: str, passed_over: Counter[str]) -> Iterator[Sample]:
    """Yield the pictures of a tar shard; if reading fails, the last sample holds the error."""
    try:
        with open_place(place) as stream:
            for found in read_tar(stream, passed_over=passed_over):
                for picture in found.pictures:
                    yield Sample(found.key, picture)
    except ImageError as error:
        yield Sample(place, error)
    except Exception as error:  # any error of a remote file system's library
        yield Sample(place, ImageError(f"cannot be read on: {os_error_reason(error)}"))


def _place(sample: Sample) -> str:
    """Return a picture's path or URL, or its key in a tar, for a message."""
    return shorten_path(_full_place(sample))


def _full_place(sample: Sample) -> str:
    return str(sample.picture) if isinstance(sample.picture, Path | str) else sample.key
