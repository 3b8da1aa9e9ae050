"""HTML reports: complete, escaped, bounded, and the same for the same results."""

import base64
import dataclasses
import hashlib
import io
import math
import random
import re
import threading
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import save
from noise import SMALL, tokenizer
from PIL import Image

import vartok
from vartok.codebook import describe_codebook, describe_usage
from vartok.codebook_tables import usage_rows
from vartok.errors import ImageError
from vartok.evaluation import EvaluationReport, Failure, evaluate_files
from vartok.reports import Gallery, RunFigures, codebook_page, evaluation_page, training_page
from vartok.reports.charts import bar_chart, line_chart
from vartok.reports.gallery import MAX_COPIES, MAX_SIDE, Copy, Exhibit, shrink
from vartok.reports.page import _environment
from vartok.usage import TokenUsage

HOSTILE = "<img src=x onerror=alert(1)>.png"


class Reader(HTMLParser):
    """Collects the elements and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.inside: dict[str, str] = {}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self._open in ("script", "style"):
            self.inside[self._open] = self.inside.get(self._open, "") + data
        else:
            self.texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


def check(page: str) -> Reader:
    """Check that a page loads nothing, and runs no script but its own."""
    assert len(page.encode()) < 10_000_000
    found = Reader(page)
    policies = [one["content"] for _, one in found.elements if "http-equiv" in one and "content" in one]
    policy = dict(part.split(" ", 1) for part in policies[0].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["img-src"] == "data:"
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(found.inside[tag].encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
        assert sum(name == tag for name, _ in found.elements) == 1
    for _, attributes in found.elements:
        assert not any(name == "style" or name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert attributes.get("href", "#").startswith(("#", "data:,"))
    assert not re.search(r"https?://", page)
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> vartok.Tokenizer:
    return tokenizer(tmp_path_factory.mktemp("weights") / "small.safetensors", SMALL)


@pytest.fixture(scope="module")
def evaluated(
    small: vartok.Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[EvaluationReport, Gallery]:
    folder = tmp_path_factory.mktemp("in")
    for seed, name in enumerate((HOSTILE, "b'\"&\udcff.png", "c.png")):
        save(folder / name, seed, 40, 36)
    (folder / "<b>bad.png").write_bytes(b"no picture")
    gallery = Gallery()
    report = evaluate_files(
        folder, tokenizer=small, size=32, recursive=True, gallery=gallery, compare=small, again=1
    )
    return report, gallery


def test_an_evaluation(small: vartok.Tokenizer, evaluated: tuple[EvaluationReport, Gallery]) -> None:
    report, gallery = evaluated
    page = evaluation_page(report, small, gallery, labels=["<i>one</i>", "<i>one</i>"])
    found = check(page)
    for text in (
        HOSTILE,
        "b'\"&?.png",
        "<i>one</i> (2)",
        "1 picture not measured; see below.",
        "Round trips",
        "ST-LPIPS, VGG16",
        "ST-LPIPS (AlexNet) by scale",
        "Fréchet distance (Lite2), 3 pictures",
    ):
        assert any(text in one for one in found.texts), text
    assert any("<b>bad.png" in text for text in found.texts)
    pictures = [one for tag, one in found.elements if tag == "img" and one.get("class") == "copy"]
    assert len(pictures) == 3 * 2 * 3  # pictures, checkpoints, scales
    assert sum("hidden" not in one for one in pictures) == 3
    worst = [Path(scores.name).name.replace("\udcff", "?") for scores in report.worst(3)]
    rows = [text for text in found.texts if text in worst]
    assert rows == worst * 2  # below the pictures, and in the table
    assert any(one.get("data-value") == repr(report.worst(1)[0].models[0].psnr) for _, one in found.elements)


def test_what_is_left_out_is_said(
    small: vartok.Tokenizer, evaluated: tuple[EvaluationReport, Gallery]
) -> None:
    report, _ = evaluated
    gallery = Gallery(max_bytes=0)
    gallery.add("a", np.zeros((4, 4, 3), np.uint8), [[np.zeros((4, 4, 3), np.uint8)]], [[20.0]])
    found = check(evaluation_page(report, small, gallery))
    assert any("1 picture of higher PSNR not shown" in text for text in found.texts)


def test_a_page_is_bounded_whatever_the_number_of_pictures_and_their_names(
    small: vartok.Tokenizer, evaluated: tuple[EvaluationReport, Gallery]
) -> None:
    report, filled = evaluated
    [first, *_] = report.by_picture
    names = [f"{n:04}" + '"' * 1000 for n in range(600)]
    many = dataclasses.replace(
        report,
        pictures=len(names),
        by_picture=tuple(dataclasses.replace(first, name=name) for name in names),
        failures=tuple(Failure(name, ImageError(name)) for name in names),
    )
    gallery = Gallery()
    [exhibit, *_] = filled.pictures
    large = dataclasses.replace(exhibit, uri=f"data:image/webp;base64,{'A' * 50_000}")
    for name in names:
        gallery.keep(20.0, dataclasses.replace(large, name=name))
    page = evaluation_page(many, small, gallery)
    assert 8_000_000 < len(page.encode()) < 10_000_000
    shown = len(gallery.pictures)
    assert 100 < shown < 200
    assert gallery.left_out == 600 - shown
    left = f"{600 - shown} pictures of higher PSNR not shown"
    assert all(text in page for text in (left, "The 500 of lowest PSNR.", "550 others"))


@pytest.mark.parametrize(
    "name", ["a.png", '"' * 250, "a/" + "\U0001f600" * 400, "a/" * 200 + "'" * 290, "\udcff" * 500]
)
def test_the_bytes_of_a_picture_are_not_underestimated(name: str) -> None:
    copies = tuple(Copy(k + 1, 10, -math.pi * 100, "data:,") for k in range(10))
    exhibit = Exhibit(name, MAX_SIDE, MAX_SIDE, "data:,", (copies, copies))
    pictures = _environment().get_template("parts.html").module.pictures  # type: ignore[attr-defined]
    for folder in ("", name[: name.rfind("/") + 1]):
        one, two = (len(pictures([exhibit] * count, ["", ""], folder).encode()) for count in (1, 2))
        assert two - one <= exhibit.bytes


def test_names_break_where_they_have_parts() -> None:
    shown = _environment().from_string("{{ name|breakable }}").render(name="<b>/a_1.webp")
    assert shown == "&lt;b&gt;/<wbr>a_<wbr>1.webp"


def test_a_codebook(small: vartok.Tokenizer) -> None:
    page = codebook_page(small, describe_codebook(small.codebook.cpu()))
    found = check(page)
    assert small.fingerprint in found.texts
    assert sum(tag == "img" for tag, _ in found.elements) == 1


def test_a_large_codebook_is_not_drawn(small: vartok.Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vartok.reports.codebook.MAX_DRAWN", 63)
    counts = np.ones((3, 64), np.int64)
    used = TokenUsage(images=1, schedule=None, counts=counts, usage=describe_usage(counts), failures=())
    found = check(codebook_page(small, describe_codebook(small.codebook.cpu()), used))
    assert not any(tag == "img" for tag, _ in found.elements)
    headings, rows = usage_rows(used)
    assert all(text in found.texts for row in [headings, *rows] for text in row if text)
    assert any("No atlas: 64 codes are too many" in text for text in found.texts)


@pytest.mark.parametrize("running", [True, False])
def test_a_run(running: bool) -> None:
    points = [(float(step), 1 / step) for step in range(1, 1000)]
    figures = RunFigures(
        name="<b>run</b>",
        step=999,
        seconds=60.0,
        running_at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC) if running else None,
        pictures=0,
        loss=[*points, (1000.0, math.nan)],
        psnr=points,
        validation_psnr=[],
        used=[[]] * 3,
        total_used=[],
        perplexity=[[]] * 3,
        schedule=SMALL.patch_nums,
        vocab_size=64,
        settings='name = "</pre><script>alert(1)</script>"',
    )
    found = check(training_page(figures, Gallery()))
    assert "<b>run</b>" in " ".join(found.texts)
    assert any("No validation" in text for text in found.texts)
    refresh = [one for _, one in found.elements if one.get("http-equiv") == "refresh"]
    assert bool(refresh) == running
    state = "Running at 2026-01-02 03:04 UTC, after a validation: 999 steps in 1.0 minutes."
    assert (state in found.texts) == running


def noise(seed: int, side: int = 32) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def test_a_gallery_keeps_the_worst_pictures_that_fit_whatever_their_order() -> None:
    whole = Gallery()
    added = [(f"{n}", noise(n, 16 + 4 * (n % 3)), 20.0 + n % 7) for n in range(20)]

    def fill(gallery: Gallery, items: list[Any]) -> list[str]:
        for name, pixels, psnr in items:
            gallery.add(name, pixels, [[pixels]], [[psnr]])
        return [exhibit.name for exhibit in gallery.pictures]

    everything = fill(whole, added)
    assert everything == [name for name, _, psnr in sorted(added, key=lambda one: (one[2], one[0]))]
    room = sum(exhibit.bytes for exhibit in whole.pictures[:9])
    for seed in range(5):
        gallery = Gallery(max_bytes=room)
        assert fill(gallery, random.Random(seed).sample(added, 20)) == everything[:9]
        assert gallery.left_out == 11
    gallery = Gallery(max_bytes=room)
    threads = [threading.Thread(target=fill, args=(gallery, added[k::4])) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [exhibit.name for exhibit in gallery.pictures] == everything[:9]
    assert gallery.left_out == 11


def test_pictures_of_a_gallery_are_bounded() -> None:
    assert shrink(np.zeros((1, 5000, 1), np.uint16)).shape == (1, MAX_SIDE, 1)
    for channels in (1, 2, 3, 5):
        deep = np.full((20, 30, channels), 40_000, np.uint16)
        channel_gallery = Gallery()
        channel_gallery.add("deep", deep, [[deep]], [[100.0]])
        [exhibit] = channel_gallery.pictures
        data = base64.b64decode(exhibit.copies[0][0].uri.partition(",")[2])
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.size == (30, 20)
            assert abs(np.asarray(picture).mean() - 40_000 / 257) < 2
    gallery = Gallery()
    gallery.add("many", noise(0), [[noise(0)] * 40], [[float(k) for k in range(40)]])
    [exhibit] = gallery.pictures
    assert len(exhibit.copies[0]) == MAX_COPIES
    assert exhibit.copies[0][-1].text == "after 40 of 40 scales: 39.00 dB"


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [-3.0, 1e9], [1e-9, 2e-9], [20.1, 20.1, 20.1]])
def test_charts_stay_within_their_axes(values: list[float]) -> None:
    charts = [line_chart("t", {"a": list(enumerate(values))}, "x")]
    charts.append(line_chart("t", {"a": [(k + 1, abs(y) + 1) for k, y in enumerate(values)]}, "x", log=True))
    charts.append(bar_chart("t", [abs(value) for value in values], ["a"] * len(values), "x"))
    for chart in charts:
        assert chart is not None
        assert 1 <= len(chart.y_ticks) <= 12
        dots = [dot for line in chart.lines for dot in line.dots] + list(chart.bars)
        for x, y in [(dot.x, dot.y) for dot in dots] + [(chart.left, tick.at) for tick in chart.y_ticks]:
            assert chart.left - 1e-6 <= x <= chart.right + 1e-6
            assert chart.top - 1e-6 <= y <= chart.bottom + 1e-6
    counts = bar_chart("t", [1, 2], ["a", "b"], "x")
    assert counts is not None
    assert [tick.text for tick in counts.y_ticks] == ["0", "1", "2"]
    assert line_chart("t", {"a": [(0, math.nan)]}, "x") is None
    assert bar_chart("t", [], [], "x") is None
