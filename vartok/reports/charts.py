"""Charts of a report: data to coordinates. The template `charts.html` draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Points = Sequence[tuple[float, float]]
"""Pairs (x, y)."""

WIDTH, HEIGHT = 380, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 372, 10, 202
"""Size of a chart, and the rectangle between its axes, in SVG units: about pixels, on a phone too."""

MAX_POINTS = 300
"""Largest number of points of a line; of more, evenly spaced ones are drawn."""

MAX_DOTS = 40
"""Largest number of points of a line that are drawn as dots, which show their values."""

COLORS = 12
"""Number of colours of the ramp in the style sheet, for lines that have an order."""


@dataclass(frozen=True)
class Tick:
    """A position on an axis, in SVG units, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """A point of a line or the top of a bar, in SVG units, and the text that shows its value."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """A line: its name in the legend, its class in the style sheet, its points for SVG, and its dots."""

    name: str
    color: str
    points: str
    dots: tuple[Dot, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of lines or bars, in SVG units.

    Attributes:
        title: heading.
        x_label: title of the x axis.
        x_ticks: ticks of the x axis.
        y_ticks: ticks of the y axis.
        lines: lines; empty in a chart of bars.
        bars: tops of the bars.
        bar_width: width of a bar.
    """

    title: str
    x_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    bars: tuple[Dot, ...] = ()
    bar_width: float = 0.0
    width: int = field(default=WIDTH, init=False)
    height: int = field(default=HEIGHT, init=False)
    left: int = field(default=LEFT, init=False)
    right: int = field(default=RIGHT, init=False)
    top: int = field(default=TOP, init=False)
    bottom: int = field(default=BOTTOM, init=False)


def line_chart(
    title: str,
    series: Mapping[str, Points],
    x_label: str,
    *,
    log: bool = False,
    ordered: bool = False,
    digits: int = 2,
) -> Chart | None:
    """Return a chart of lines; None if no line has a point.

    Args:
        title: heading.
        series: points of each line, by its name; x are whole numbers.
        x_label: title of the x axis.
        log: logarithmic axes; only points above 0 are drawn.
        ordered: the lines have an order, and get the colours of a ramp.
        digits: number of decimals of y in the texts of dots.
    """
    usable = {
        name: _thin([(x, y) for x, y in points if math.isfinite(y) and (not log or min(x, y) > 0)])
        for name, points in series.items()
    }
    usable = {name: points for name, points in usable.items() if points}
    every = [point for points in usable.values() for point in points]
    if not every:
        return None
    xs, ys = ([point[axis] for point in every] for axis in (0, 1))
    x_axis = _Axis(min(xs), max(xs), LEFT, RIGHT, log=log, tight=True, whole=True)
    y_axis = _Axis(min(ys), max(ys), BOTTOM, TOP, log=log, whole=digits == 0)
    last = max(len(usable) - 1, 1)
    lines = []
    for number, (name, points) in enumerate(usable.items()):
        color = f"ramp{round(number * (COLORS - 1) / last)}" if ordered else f"line{number % 4}"
        dots = [Dot(x_axis.at(x), y_axis.at(y), f"{name}, {x:,g}: {y:,.{digits}f}") for x, y in points]
        line = " ".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in dots)
        lines.append(Line(name, color, line, tuple(dots) if len(dots) <= MAX_DOTS else ()))
    return Chart(
        title=title, x_label=x_label, x_ticks=x_axis.ticks(), y_ticks=y_axis.ticks(), lines=tuple(lines)
    )


def bar_chart(
    title: str, values: Sequence[float], names: Sequence[str], x_label: str, *, percent: bool = False
) -> Chart | None:
    """Return a chart of bars from 0; None without values.

    Args:
        title: heading.
        values: heights of the bars, 0 or more.
        names: text of each bar.
        x_label: title of the x axis.
        percent: show values in per cent.
    """
    if not values:
        return None
    whole = all(value == int(value) for value in values)
    y_axis = _Axis(0.0, max(max(values), 1e-9), BOTTOM, TOP, whole=whole and not percent)
    step = (RIGHT - LEFT) / len(values)
    middles = [LEFT + step * (k + 0.5) for k in range(len(values))]
    bars = tuple(
        Dot(x, y_axis.at(value), f"{name}: {value:.1%}" if percent else f"{name}: {value:,g}")
        for x, value, name in zip(middles, values, names, strict=True)
    )
    every = -(-len(values) // 12)  # no more than 12 names have room
    x_ticks = tuple(Tick(x, name) for x, name in list(zip(middles, names, strict=True))[::every])
    y_ticks = y_axis.ticks(percent=percent)
    return Chart(
        title=title, x_label=x_label, x_ticks=x_ticks, y_ticks=y_ticks, bars=bars, bar_width=0.8 * step
    )


class _Axis:
    """Maps values to positions between two ends, and chooses ticks.

    Args:
        low: smallest value.
        high: largest value.
        first: position of the axis' lower end.
        last: position of its upper end.
        log: a logarithmic axis; values are then above 0.
        tight: the axis ends at the values, not at ticks.
        whole: all values are whole numbers, and so are the ticks.
    """

    def __init__(
        self,
        low: float,
        high: float,
        first: float,
        last: float,
        *,
        log: bool = False,
        tight: bool = False,
        whole: bool = False,
    ) -> None:
        self._first, self._last, self._log = first, last, log
        if log:
            low, high = math.log10(low), math.log10(high)
            self._step = max(1.0, math.ceil((high - low) / 5))
        else:
            self._step = _nice((high - low) / (6 if tight else 4) or max(abs(high), 1.0) / 2)
            self._step = max(self._step, 1.0) if whole else self._step
        if not tight or low == high:
            low = self._step * math.floor(low / self._step + 1e-9)
            high = self._step * max(math.ceil(high / self._step - 1e-9), low / self._step + 1)
        self._low, self._high = low, high

    def at(self, value: float) -> float:
        """Return the position of a value."""
        value = math.log10(value) if self._log else value
        share = (value - self._low) / (self._high - self._low)
        return self._first + share * (self._last - self._first)

    def ticks(self, *, percent: bool = False) -> tuple[Tick, ...]:
        """Return the ticks of the axis, in order."""
        numbers = range(
            math.ceil(self._low / self._step - 1e-9), math.floor(self._high / self._step + 1e-9) + 1
        )
        values = [10.0 ** (n * self._step) if self._log else n * self._step for n in numbers]
        return tuple(Tick(self.at(value), f"{value:.0%}" if percent else _short(value)) for value in values)


def _nice(step: float) -> float:
    """Return the smallest of 1, 2, 5, 10, ... times a power of ten that is at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * (1 - 1e-9))


def _short(value: float) -> str:
    """Return a number in few characters: 0.25, 400, 12k, 3M."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if suffix == 'k' else limit):,g}{suffix}"
    return f"{round(value, 10):g}"


def _thin(points: Points) -> Points:
    if len(points) <= MAX_POINTS:
        return points
    last = len(points) - 1
    return [points[round(k * last / (MAX_POINTS - 1))] for k in range(MAX_POINTS)]
