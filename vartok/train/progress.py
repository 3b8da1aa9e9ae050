"""Progress of a run: what is reported while it trains."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StartProgress:
    """Progress of the initialisation.

    Attributes:
        stage: name of the computation, such as "reading crops".
        done: number of its units that are done.
        total: number of all its units.
    """

    stage: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a run; losses are means over the steps since the last report.

    Attributes:
        step: steps done.
        fraction: part of the run that is done, in [0, 1].
        seconds: time of the run so far, over all sessions.
        loss: total loss.
        psnr: PSNR of the training crops, in dB.
        perplexity: perplexity of every scale's usage of the codebook, an EMA.
        replaced_codes: dead codes that were re-initialised so far.
        images_per_second: crops per second, over all processes.
        unreadable: pictures that could not be read in this session.
    """

    step: int
    fraction: float
    seconds: float
    loss: float
    psnr: float
    perplexity: tuple[float, ...]
    replaced_codes: int
    images_per_second: float
    unreadable: int


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Quality of the averaged weights on the validation pictures.

    Attributes:
        step: steps done.
        pictures: number of pictures.
        psnr: PSNR of rounded pixels, in dB, mean over pictures.
        used: codes used by each scale.
        perplexity: perplexity of each scale's usage.
        total_used: codes used by any scale.
    """

    step: int
    pictures: int
    psnr: float
    used: tuple[int, ...]
    perplexity: tuple[float, ...]
    total_used: int


Event = StartProgress | Progress | Validation | str
"""A report of a run; a str is a note for the user."""


class Meter:
    """Means over steps of scalar values, summed on the device, and images per second."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = self._images = 0
        self._begin = time.monotonic()

    def add(self, values: dict[str, Tensor], images: int) -> None:
        """Add the scalars of a step, and the number of its images."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._steps += 1
        self._images += images

    def means(self) -> dict[str, Tensor]:
        """Return the mean of every value."""
        return {name: value / self._steps for name, value in self._sums.items()}

    def images_per_second(self) -> float:
        """Return the images per second since the meter was made."""
        return self._images / max(time.monotonic() - self._begin, 1e-9)
