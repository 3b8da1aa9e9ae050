"""The texts of tables of codebooks and their usage, as the command line and HTML reports show them."""

from __future__ import annotations

from vartok.codebook import EXPLAINED_VARIANCE, CodebookReport, Usage
from vartok.errors import counted
from vartok.schedule import describe, phis_by_scale
from vartok.tokenizer import Tokenizer
from vartok.usage import TokenUsage


def codebook_rows(tokenizer: Tokenizer, report: CodebookReport) -> list[tuple[str, str]]:
    """Return the statistics of a tokenizer's codebook, and how it is used: names and texts."""
    config = tokenizer.config
    channels = counted(report.channels, "channel")
    rows = [
        ("codes", f"{report.vocab_size:,} of {channels}, {report.size_bytes:,} bytes"),
        ("fingerprint", tokenizer.fingerprint),
    ]
    for name, spread in (("norm", report.norm), ("nearest code", report.nearest)):
        if spread is not None:
            text = f"{spread.minimum:.3g} to {spread.maximum:.3g}, median {spread.median:.3g}"
            rows.append((name, text))
    explain = f"{report.effective_dimensions} of {report.channels} explain {100 * EXPLAINED_VARIANCE:.0f} %"
    phis = phis_by_scale(len(config.patch_nums), config.phi_count)
    return [
        *rows,
        ("duplicates", f"{report.exact_duplicates:,} exact, {report.near_duplicates:,} near"),
        ("dimensions", explain),
        ("schedule", describe(config.patch_nums)),
        ("phi by scale", ",".join(map(str, phis)) if phis else "none: codes are added as they are"),
    ]


def usage_rows(used: TokenUsage) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the rows of the table of usage: a row for each scale, and one for all."""
    headings = ["scale", "grid", "tokens", "used", "coverage", "dead", "perplexity", "entropy"]
    rows = [
        [
            str(k + 1),
            "x".join(map(str, used.schedule[k])) if used.schedule else "",
            *_usage_cells(scale),
            f"{used.usage.divergence[k]:.2f} ({used.usage.chance[k]:.2f})",
        ]
        for k, scale in enumerate(used.usage.scales)
    ]
    return [*headings, "divergence (chance)"], [*rows, ["all", "", *_usage_cells(used.usage.overall), ""]]


def _usage_cells(usage: Usage) -> list[str]:
    return [
        *(f"{usage.tokens:,}", f"{usage.used:,}", f"{usage.coverage:.1%}", f"{usage.dead:,}"),
        *(f"{usage.perplexity:,.0f}", f"{usage.entropy:.2f}"),
    ]
