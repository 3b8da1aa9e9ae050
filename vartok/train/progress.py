"""The events that a run reports: progress, validations and notes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StartProgress:
    """Progress of one stage of the initialisation.

    Attributes:
        stage: name of the computation, such as "reading crops".
        done: number of units done, such as crops or steps.
        total: number of all units of the stage.
    """

    stage: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a run.

    The loss, PSNR and speed are means over the steps since the last report, or since a validation after it.

    Attributes:
        step: number of steps done.
        fraction: part of the run that is done, in [0, 1].
        seconds: time of the run so far in seconds, over all sessions.
        loss: total loss.
        psnr: PSNR of the training crops, in dB.
        perplexity: perplexity of every scale's usage of the codebook; the usage is an EMA that
            begins uniform, so the first steps' values are near V.
        replaced_codes: number of dead codes re-initialised so far.
        images_per_second: crops per second, all processes together.
        unreadable: number of pictures that could not be read in this session, in all processes.
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
    """Quality of a model on the validation pictures.

    After training began, the model is the EMA of the weights.

    Attributes:
        step: number of steps that the model was trained for.
        pictures: number of pictures.
        psnr: PSNR of rounded pixels, in dB, mean over pictures.
        used: number of different codes that each scale uses.
        perplexity: perplexity of the usage of the codebook by each scale.
        total_used: number of different codes that all scales use together.
        perceptual: perceptual distance, mean over pictures, see `perceptual_distance`; None if the run has no
            network for it.
    """

    step: int
    pictures: int
    psnr: float
    used: tuple[int, ...]
    perplexity: tuple[float, ...]
    total_used: int
    perceptual: float | None = None


Event = StartProgress | Progress | Validation | str
"""An event that a run reports; a str is a note for the user."""


class Meter:
    """Means of scalars over steps, and images per second. Sums stay on the device, so that nothing waits."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = Counter[str]()
        self._images = 0
        self._begin = time.monotonic()

    def add(self, values: dict[str, Tensor], images: int) -> None:
        """Add the scalars of a step, by name, and its number of images."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._steps.update(values.keys())
        self._images += images

    def means(self, mean: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the mean of every scalar over the steps that have it, by name; this waits for the device.

        Args:
            mean: maps a tensor to its mean over all processes; called once.
        """
        means = mean(torch.stack([value / self._steps[name] for name, value in self._sums.items()]))
        return dict(zip(self._sums, means.tolist(), strict=True))

    def images_per_second(self) -> float:
        """Return the number of images per second since the meter was created."""
        return self._images / max(time.monotonic() - self._begin, 1e-9)
