"""`vartok inspect-codebook`: what a codebook holds, and how token files use it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vartok.errors import VartokError

from .files import TOKEN_SUFFIXES, Input, gather, read_inputs, write_file
from .options import DebugOption, DeviceOption, ForceOption, JsonOption, WeightsOption, load_tokenizer
from .report import Report, command, say, shown
from .tables import new_table, print_tables

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.table import Table

    from vartok.codebook import CodebookReport, Usage, UsageReport
    from vartok.schedule import Schedule
    from vartok.tokenizer import Tokenizer
    from vartok.tokens import ModelInfo


@command
def inspect_codebook(
    tokens: Annotated[
        list[str] | None, typer.Argument(metavar="TOKENS", help="More of what --usage takes.")
    ] = None,
    usage: Annotated[
        list[str] | None,
        typer.Option(
            "--usage",
            metavar="TOKENS...",
            help="Count codes in these token files, folders, data sets.",
        ),
    ] = None,
    atlas: Annotated[
        Path | None,
        typer.Option(
            "--atlas",
            metavar="OUT.png",
            help="Draw all codes, each as it decodes by itself, like beside like. "
            "In a picture codes interact: those of all scales add up, and the decoder blends neighbours.",
        ),
    ] = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Tell what the codebook holds.

    Norms, distances, duplicates, dimensions; with --usage, how every scale uses it.

    Examples:
      vartok inspect-codebook
      vartok inspect-codebook --usage tokens/ more/*.npz
      vartok inspect-codebook --atlas codes.png
    """
    named = [*(usage or ()), *(tokens or ())]
    datasets = [Path(name) for name in named if _is_dataset(Path(name))]
    named = [name for name in named if Path(name) not in datasets]
    files = (
        gather(
            named, recursive=True, files_from=None, null=False, suffixes=TOKEN_SUFFIXES, kind="token files"
        )
        if named
        else []
    )
    if atlas and atlas.suffix.lower() != ".png":
        raise typer.BadParameter(f"--atlas {shown(atlas)}: it is written as .png")
    if atlas and atlas.exists() and not force:
        raise VartokError(f"{shown(atlas)} exists: use --force to overwrite it")
    report = Report(None, verb="counted", quiet=True, debug=debug)

    tokenizer = load_tokenizer(weights, device, "float32")
    from vartok.codebook import describe_codebook

    codebook = describe_codebook(tokenizer.codebook.cpu().numpy())
    used = _count(tokenizer, files, datasets, report) if files or datasets else None
    if as_json:
        print(json.dumps(_as_json(tokenizer, codebook, used)))
    else:
        _print(tokenizer, codebook, used)
    if atlas:
        write_file(atlas, _draw_atlas(tokenizer), overwrite=force)
        if not as_json:
            say(f"drew {tokenizer.config.vocab_size} codes in {shown(atlas)}")
    report.finish()


def _count(
    tokenizer: Tokenizer, files: list[Input], datasets: list[Path], report: Report
) -> tuple[Schedule | None, UsageReport]:
    """How the images of token files and data sets use the codebook, and their schedule if they share one."""
    from vartok.codebook import count_codes, describe_usage

    def everything() -> Iterator[tuple[str, ModelInfo, Schedule, tuple[NDArray[Any], ...]]]:
        for item in files:
            for tokens in read_inputs(item, report):
                yield str(item), tokens.model, tokens.schedule, tokens.scales
        for folder in datasets:
            yield from _read_dataset(folder, report)

    schedules: set[Schedule] = set()

    def images() -> Iterator[tuple[NDArray[Any], ...]]:
        scales = None
        for name, model, schedule, maps in everything():
            try:
                tokenizer.check_model(model)
            except VartokError as error:
                report.fail(name, shown(error))
                continue
            scales = scales or len(maps)
            if len(maps) != scales:
                report.fail(name, f"has {len(maps)} scales, the files before it {scales}")
                continue
            schedules.add(schedule)
            report.succeed(name, "counted")
            yield maps

    found = images()
    first = next(found, None)
    if first is None:
        report.finish()
        raise VartokError("no tokens to count")
    counts = count_codes(itertools.chain([first], found), tokenizer.config.vocab_size, len(first))
    return schedules.pop() if len(schedules) == 1 else None, describe_usage(counts)


def _is_dataset(folder: Path) -> bool:
    """Whether a folder is one that `vartok dataset` made; knows by a file in it, broken or not."""
    try:
        return b'"vartok.dataset"' in (folder / "dataset.json").read_bytes()[:1000]
    except OSError:
        return False


def _read_dataset(
    folder: Path, report: Report
) -> Iterator[tuple[str, ModelInfo, Schedule, tuple[NDArray[Any], ...]]]:
    """The images of a data set's shards; what cannot be read is reported."""
    from vartok.dataset.formats import read_shard
    from vartok.dataset.schema import open_dataset

    try:
        description, encoding = open_dataset(folder)
    except VartokError as error:
        report.fail(str(folder), shown(error))
        return
    for shard in description.get("shards", ()):
        path = folder / shard["name"]
        try:
            for row in read_shard(description["files"], path, encoding):
                yield str(path), encoding.model, encoding.schedule, row.scales
        except (VartokError, OSError) as error:
            report.fail(str(path), shown(getattr(error, "strerror", None) or error))


def _as_json(
    tokenizer: Tokenizer, codebook: CodebookReport, used: tuple[Schedule | None, UsageReport] | None
) -> dict[str, Any]:
    config = tokenizer.config
    return {
        "model": dataclasses.asdict(tokenizer.info),
        "codebook": dataclasses.asdict(codebook),
        "schedule": config.patch_nums,
        "phi": _phis(tokenizer),
        "usage": used and {"schedule": used[0], **dataclasses.asdict(used[1])},
    }


def _phis(tokenizer: Tokenizer) -> list[int] | None:
    """Which phi serves each scale of the checkpoint's own schedule; None where there is none."""
    from vartok.schedule import phi_index

    scales, phis = len(tokenizer.config.patch_nums), tokenizer.config.phi_count
    return [phi_index(k, scales, phis) for k in range(scales)] if phis else None


def _print(
    tokenizer: Tokenizer, codebook: CodebookReport, used: tuple[Schedule | None, UsageReport] | None
) -> None:
    print_tables(
        _codebook_table(tokenizer, codebook), *([_usage_table(*used), _top_table(used[1])] if used else [])
    )


def _codebook_table(tokenizer: Tokenizer, codebook: CodebookReport) -> Table:
    from vartok.schedule import describe

    table = new_table(f"Codebook of {shown(tokenizer.name)}", "", "")
    norm, nearest, phis = codebook.norm, codebook.nearest, _phis(tokenizer)
    table.add_row(
        "codes", f"{codebook.vocab_size:,} of {codebook.channels} channels, {codebook.size_bytes:,} bytes"
    )
    table.add_row("fingerprint", tokenizer.fingerprint)
    table.add_row("norm", f"{norm.minimum:.3g} to {norm.maximum:.3g}, median {norm.median:.3g}")
    if nearest:
        spread = f"{nearest.minimum:.3g} to {nearest.maximum:.3g}, median {nearest.median:.3g}"
        table.add_row("nearest other", spread)
    table.add_row("duplicates", f"{codebook.exact_duplicates:,} exact, {codebook.near_duplicates:,} near")
    table.add_row(
        "dimensions",
        f"{codebook.effective_dimensions} of {codebook.channels} explain 95 % {_bars(codebook.explained)}",
    )
    table.add_row("schedule", describe(tokenizer.config.patch_nums))
    table.add_row(
        "phi of each scale", ",".join(map(str, phis)) if phis else "none: what is looked up is added as it is"
    )
    return table


def _usage_table(schedule: Schedule | None, usage: UsageReport) -> Table:
    table = new_table(
        "Use of the codes", "scale", "grid", "tokens", "used", "of possible", "", "dead", "perplexity", "bits"
    )
    table.add_column("differs (by chance)", justify="right")
    rows = zip(usage.scales, usage.divergence, usage.chance, strict=True)
    for k, (scale, divergence, chance) in enumerate(rows):
        grid = "x".join(map(str, schedule[k])) if schedule else ""
        table.add_row(str(k), grid, *_usage_cells(scale), f"{divergence:.2f} ({chance:.2f})")
    table.add_section()
    table.add_row("all", "", *_usage_cells(usage.overall), "")
    table.caption = (
        "of possible: used / the most that so many tokens could show. differs: Jensen-Shannon divergence "
        "from the other scales, 0 same, 1 disjoint, and what equal scales of so few tokens would show."
    )
    return table


def _usage_cells(usage: Usage) -> list[str]:
    return [
        f"{usage.tokens:,}",
        f"{usage.used:,}",
        f"{usage.coverage:.1%}",
        _bar(usage.coverage),
        f"{usage.dead:,}",
        f"{usage.perplexity:,.0f}",
        f"{usage.entropy:.2f}",
    ]


def _top_table(usage: UsageReport) -> Table:
    table = new_table("Most used codes, and their share of the scale's tokens", "scale", "")
    for k, scale in [*enumerate(usage.scales), ("all", usage.overall)]:
        table.add_row(str(k), "  ".join(f"{code.code} {code.share:.1%}" for code in scale.top))
    return table


def _bar(share: float, width: int = 10) -> str:
    """A bar of eighths of a character."""
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _bars(values: tuple[float, ...]) -> str:
    """A column a value, the highest full."""
    top = max(values) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(value / top * 8))] for value in values[:64])


def _draw_atlas(tokenizer: Tokenizer) -> bytes:
    """All codes as one picture."""
    import numpy as np

    from vartok.codebook import atlas_order
    from vartok.images import encode_picture, to_pixels

    pictures = to_pixels(tokenizer.draw_codes())
    V, side = pictures.shape[:2]
    order = atlas_order(pictures.reshape(V, -1).astype(np.float32))
    cells = np.concatenate([pictures, np.full_like(pictures[:1], 255)])[
        order
    ]  # -1, an empty cell, is the last: white
    rows, columns = order.shape
    return encode_picture(cells.swapaxes(1, 2).reshape(rows * side, columns * side, 3), "png")
