"""The order of training pictures: a process's share of the files, and a buffer that shuffles."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence

from vartok.sources.find import FoundFile
from vartok.sources.samples import Sample

SHUFFLE_BUFFER = 1000
"""Largest number of pictures in the buffer that shuffles the stream. A tar is read in order, so that
shuffling files is not enough."""

SHUFFLE_NBYTES = 1 << 29
"""Limit on the bytes of the compressed pictures in that buffer. Pictures of more than 0.5 MB in tars are so
shuffled over fewer than `SHUFFLE_BUFFER`."""

SHUFFLE_FIRST = 100
"""Number of pictures in the buffer from which on it gives some out."""


def divide_files(files: Sequence[FoundFile], stream: int, streams: int) -> Iterator[FoundFile]:
    """Yield the files of a stream: every `streams`-th tar, and every `streams`-th picture file, in order."""
    seen = Counter[str]()
    for file in files:
        if seen[file.kind] % streams == stream:
            yield file
        seen[file.kind] += 1


def shuffle(samples: Iterator[Sample], order: random.Random) -> Iterator[Sample]:
    """Shuffle samples in a buffer; `SHUFFLE_BUFFER` and `SHUFFLE_NBYTES` limit it.

    Two samples go in for one that comes out, until the buffer is full.

    Source: webdataset.filters.shuffle, whose order this is unless the limit on bytes is reached.
    """
    buffer: list[Sample] = []
    nbytes = 0

    def take() -> Sample:
        nonlocal nbytes
        number = order.randint(0, len(buffer) - 1)
        buffer[number], buffer[-1] = buffer[-1], buffer[number]
        nbytes -= buffer[-1].nbytes
        return buffer.pop()

    for sample in samples:
        buffer.append(sample)
        nbytes += sample.nbytes
        if len(buffer) < SHUFFLE_BUFFER and nbytes < SHUFFLE_NBYTES:
            for following in itertools.islice(samples, 1):
                buffer.append(following)
                nbytes += following.nbytes
        if len(buffer) >= SHUFFLE_FIRST:
            yield take()
        while nbytes > SHUFFLE_NBYTES:
            yield take()
    while buffer:
        yield take()
