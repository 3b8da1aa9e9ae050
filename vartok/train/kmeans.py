"""Initialisation of the quantizer: identity phis, and a codebook by k-means over residuals of all scales."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vartok.models.quantizer import MultiScaleQuantizer, Phi, area_pool
from vartok.parallel import map_ordered
from vartok.schedule import Schedule
from vartok.train.progress import StartProgress

POINTS_PER_CODE = 20  # in k-means; with fewer points, a code would fit a single picture
LLOYD_STEPS = 5  # per round; few, as the next round has other residuals
CHUNK = 64  # number of pictures in a batch
POINTS = 4096  # number of points that a thread looks up at once

T = TypeVar("T")
R = TypeVar("R")


class Deadline:
    """The time at which a computation should stop and return its result so far.

    Args:
        end: the time, on the clock of time.monotonic(), in seconds; if infinite, the deadline never passes.
    """

    def __init__(self, end: float = math.inf) -> None:
        self.end = end

    def passed(self) -> bool:
        """Return True once the deadline has passed."""
        return time.monotonic() >= self.end

    def within(self, fraction: float) -> Deadline:
        """Return an earlier deadline, at which `fraction` of the time left until this one is over."""
        now = time.monotonic()
        return Deadline(now + max(0.0, self.end - now) * fraction)


def init_quantizer(
    quantizer: MultiScaleQuantizer,
    latents: Tensor,
    schedule: Schedule,
    rounds: int,
    seed: int,
    *,
    deadline: Deadline | None = None,
    report: Callable[[StartProgress], None] = lambda _: None,
) -> int:
    """Set phis to the identity, and the codebook by k-means over the residuals of all scales.

    Every scale contributes the same number of residuals, as a coarse token covers many cells. The first
    round computes residuals as if quantization were exact; every later round quantizes with the codebook of
    the round before.

    Args:
        quantizer: quantizer on the latents' device, changed in place.
        latents: [N, C, h, w] float32.
        schedule: (h, w) of every scale, the last one the latents'.
        rounds: number of rounds of k-means.
        seed: seed of the random draws.
        deadline: when it passes, the computation stops and keeps the codebook so far. None: no deadline.
        report: called with the progress at every step of Lloyd's algorithm, and every batch of residuals.

    Returns:
        Number of rounds begun.
    """
    deadline = deadline or Deadline()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in quantizer.modules():
            if isinstance(module, Phi):
                nn.init.dirac_(module.weight)
                assert module.bias is not None
                module.bias.zero_()
        residuals = _exact_residuals(latents, schedule)
        for number in range(rounds):
            if number and deadline.passed():
                return number
            stage = f"k-means, round {number + 1} of {rounds}"
            points = _sample_evenly(residuals, quantizer.embedding.num_embeddings, random)
            _k_means(quantizer, points, random, number == 0, stage, deadline, report)
            if number + 1 < rounds:
                # At most half of the time left: the next round needs the other half.
                residuals = _residuals(quantizer, latents, schedule, deadline.within(0.5), report)
    return rounds


def init_like_var(quantizer: MultiScaleQuantizer, seed: int) -> None:
    """Set the codebook uniform in [-1/V, 1/V], as VAR does; phis keep nn.Conv2d's initialisation."""
    codes = quantizer.embedding.weight
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        codes.copy_(torch.empty(codes.shape).uniform_(-1 / len(codes), 1 / len(codes), generator=random))


def _exact_residuals(latents: Tensor, schedule: Schedule) -> list[Tensor]:
    """Return K tensors [n_k, C]: each scale's residuals, as if the scales before it quantized exactly."""
    rows, residual = [], latents
    for k, grid in enumerate(schedule):
        pooled = area_pool(residual, grid)
        rows.append(_rows(pooled))
        if k + 1 < len(schedule):
            residual = residual - F.interpolate(pooled, schedule[-1], mode="bicubic")
    return rows


def _residuals(
    quantizer: MultiScaleQuantizer,
    latents: Tensor,
    schedule: Schedule,
    deadline: Deadline,
    report: Callable[[StartProgress], None],
) -> list[Tensor]:
    """Return K tensors [n_k, C]: the residuals that the quantizer looks up at each scale.

    After the deadline the remaining pictures are skipped; the first `CHUNK` are always used.
    """

    def parts() -> Iterator[Tensor]:
        for number, part in enumerate(latents.split(CHUNK)):
            if number and deadline.passed():
                return
            yield part

    def quantize(part: Tensor) -> list[Tensor]:
        rows = []
        for scale in quantizer.scale_steps(schedule, latent=part):
            assert scale.cells is not None  # a latent is quantized
            rows.append(_rows(scale.cells))
        return rows

    found = []
    with closing(_map_in_threads(quantize, parts(), latents.device)) as computed:
        for number, rows in enumerate(computed):
            found.append(rows)
            done = min(len(latents), (number + 1) * CHUNK)
            report(StartProgress(stage="residuals", done=done, total=len(latents)))
    return [torch.cat(scale) for scale in zip(*found, strict=True)]


def _sample_evenly(residuals: list[Tensor], vocab_size: int, random: torch.Generator) -> Tensor:
    """Draw the same number of residuals from every scale, with replacement: [n, C], n about 20 V."""
    each = -(-POINTS_PER_CODE * vocab_size // len(residuals))
    return torch.cat(
        [rows[torch.randint(len(rows), (each,), generator=random).to(rows.device)] for rows in residuals]
    )


def _k_means(
    quantizer: MultiScaleQuantizer,
    points: Tensor,
    random: torch.Generator,
    fresh: bool,
    stage: str,
    deadline: Deadline,
    report: Callable[[StartProgress], None],
) -> None:
    """Run Lloyd's algorithm on the quantizer's codes, in place. If `fresh`, start from random points instead.

    A code that is nearest to no point becomes a random point.
    """
    codes = quantizer.embedding.weight
    parts = points.split(POINTS) if points.device.type == "cpu" else (points,)

    def nearest_codes(part: Tensor) -> Tensor:
        return quantizer.lookup()(part[:, :, None, None]).flatten()

    def draw(count: int) -> Tensor:
        return points[torch.randint(len(points), (count,), generator=random).to(points.device)]

    if fresh:
        codes.copy_(draw(len(codes)))
    for step in range(LLOYD_STEPS):
        if deadline.passed():
            return
        report(StartProgress(stage=stage, done=step, total=LLOYD_STEPS))
        nearest = torch.cat([*_map_in_threads(nearest_codes, parts, points.device)])
        counts = torch.bincount(nearest, minlength=len(codes))
        codes.copy_(torch.zeros_like(codes).index_add_(0, nearest, points) / counts.clamp(min=1)[:, None])
        codes[counts == 0] = draw(int((counts == 0).sum()))


def _map_in_threads(
    work: Callable[[T], R], items: Iterable[T], device: torch.device
) -> Generator[R, None, None]:
    """Call `work` on every item without gradients; on a CPU in as many threads as torch has.

    Each of them computes alone. If torch divided every small operation among its threads, they would wait for
    each other: beside other programs, that was half of the processor time.
    """
    work = torch.no_grad()(work)
    if device.type != "cpu":
        yield from map(work, items)
        return
    threads = torch.get_num_threads()
    try:
        yield from map_ordered(
            work, items, workers=threads, limit=threads, initializer=lambda: torch.set_num_threads(1)
        )
    finally:
        torch.set_num_threads(threads)  # that of new threads is what any thread has set last


def _rows(cells: Tensor) -> Tensor:
    """Return the cells of a grid as rows: [N, C, h, w] -> [N h w, C]."""
    return cells.permute(0, 2, 3, 1).reshape(-1, cells.shape[1])
