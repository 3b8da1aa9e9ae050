"""The page of a codebook, and the section on the codebook that other pages share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vartok.atlas import draw_ordered_atlas
from vartok.codebook import USAGE_METHODS, CodebookReport, Usage, UsageReport
from vartok.codebook_tables import codebook_rows, usage_rows
from vartok.errors import counted
from vartok.reports.charts import Chart, bar_chart, line_chart
from vartok.reports.gallery import picture_uri, shrink
from vartok.reports.page import failure_rows, render
from vartok.tokenizer import Tokenizer
from vartok.usage import TokenUsage

MAX_ATLAS = 1024
"""Longest side of the atlas in a page, in pixels."""

MAX_DRAWN = 16_384
"""Largest number of codes that a page draws, with their indices and counts: 32,768 take 19 s and 1.3 GB."""

UNUSED = (200, 50, 40)
"""Colour of codes that are not used."""


@dataclass(frozen=True, kw_only=True)
class CodebookSection:
    """The section of a page about a codebook.

    Attributes:
        codes: number of codes, as text.
        charts: charts; None stands for one without data.
        atlas: data: URI of the atlas; None for more than `MAX_DRAWN` codes, which have no use map either.
        use_map: data: URI of a picture of the codes' use, in the order of the atlas; None without usage.
        use_text: number of codes that are used, and how to read the picture.
        columns: number of columns of the atlas.
        order: indices of its codes, row by row, divided by spaces; "" without an atlas.
        counts: number of tokens of each code, likewise; "" without an atlas or usage.
    """

    codes: str
    charts: tuple[Chart | None, ...]
    atlas: str | None
    use_map: str | None
    use_text: str
    columns: int
    order: str
    counts: str


def codebook_section(
    tokenizer: Tokenizer, counts: NDArray[np.int64] | None, usage: UsageReport | None
) -> CodebookSection:
    """Draw the atlas of a codebook, and charts and a map of its use.

    Args:
        tokenizer: the tokenizer with the codebook.
        counts: [K, V] int64, how often each scale uses each code; None without tokens.
        usage: statistics of these counts; None without tokens.
    """
    atlas, use_map, order = None, None, np.full((0, 0), -1)
    if tokenizer.config.vocab_size <= MAX_DRAWN:
        pixels, order = draw_ordered_atlas(tokenizer)
        atlas = picture_uri(shrink(pixels, MAX_ATLAS))
        use_map = None if counts is None else picture_uri(_draw_use(counts.sum(0), order), lossless=True)
    codes = order[order >= 0]
    used = f"{usage.overall.used:,} of {usage.vocab_size:,} codes are used" if usage else ""
    return CodebookSection(
        codes=f"{tokenizer.config.vocab_size:,}",
        charts=() if usage is None or counts is None else usage_charts(counts, usage),
        atlas=atlas,
        use_map=use_map,
        use_text=f"{used}; bright codes often, red ones never",
        columns=order.shape[1],
        order=" ".join(map(str, codes)),
        counts="" if counts is None else " ".join(map(str, counts.sum(0)[codes])),
    )


def usage_charts(counts: NDArray[np.int64], usage: UsageReport) -> tuple[Chart | None, ...]:
    """Return charts of the use by scale, and of the use of all codes from the most to the least used one."""
    names = [str(k + 1) for k in range(len(usage.scales))]
    ranked = np.sort(counts.sum(0))[::-1]
    places = np.unique(np.geomspace(1, len(ranked), 200).round().astype(int))
    line = [(float(n), float(ranked[n - 1])) for n in places]
    coverage = [scale.coverage for scale in usage.scales]
    perplexity = [round(scale.perplexity) for scale in usage.scales]
    ranking = "Tokens of each code, most used code first"
    return (
        bar_chart("Coverage: codes used of those possible", coverage, names, "scale", percent=True),
        bar_chart("Perplexity by scale", perplexity, names, "scale"),
        line_chart(ranking, {"tokens": line}, "rank of the code", log=True, digits=0),
    )


def codebook_page(tokenizer: Tokenizer, codebook: CodebookReport, used: TokenUsage | None = None) -> str:
    """Return the HTML page of a codebook's statistics, with its atlas.

    Args:
        tokenizer: the tokenizer with the codebook.
        codebook: statistics of the codes.
        used: usage of the codes by tokens; None if none were counted.
    """
    counts, usage = (used.counts, used.usage) if used else (None, None)
    section = codebook_section(tokenizer, counts, usage)
    explained = codebook.explained[:64]
    dimensions = bar_chart(
        "Variance explained by principal components",
        explained,
        [str(k + 1) for k in range(len(explained))],
        "component",
        percent=True,
    )
    return render(
        "codebook.html",
        title=f"Codebook of {tokenizer.name}",
        subtitle=f"{counted(codebook.vocab_size, 'code')} of {counted(codebook.channels, 'channel')}"
        + (f", used by the tokens of {counted(used.images, 'image')}" if used else ""),
        notes=[],
        statistics=codebook_rows(tokenizer, codebook),
        dimensions=dimensions,
        usage=_usage_table(used) if used else None,
        usage_methods=USAGE_METHODS,
        codebook=section,
        failures=failure_rows(used.failures if used else ()),
    )


def _usage_table(used: TokenUsage) -> tuple[list[str], list[list[str]]]:
    headings, rows = usage_rows(used)
    usages = (*used.usage.scales, used.usage.overall)
    return [*headings, "most used codes"], [
        [*row, _top(usage)] for row, usage in zip(rows, usages, strict=True)
    ]


def _top(usage: Usage) -> str:
    return ", ".join(f"{code.code} ({code.share:.1%})" for code in usage.top[:3])


def _draw_use(counts: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return a picture of the use of codes, [rows, columns, 3] uint8: dark to bright by its logarithm."""
    found = np.append(counts, 0)[order]
    shade = np.log1p(found) / max(np.log1p(counts.max()), 1e-9)
    channels = zip((20, 24, 60), (30, 120, 150), (250, 235, 120), strict=True)  # dark, middle, bright
    colors = np.stack([np.interp(shade, (0, 0.5, 1), levels) for levels in channels], axis=-1)
    colors[found == 0] = UNUSED
    colors[order < 0] = 255
    return colors.round().astype(np.uint8)
