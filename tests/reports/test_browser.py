"""A report in a real browser: its controls work by keyboard, and nothing else runs."""

import dataclasses
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from browser import CHROMIUM, chromium
from conftest import save
from noise import SMALL, tokenizer

from vartok.evaluation import evaluate_files
from vartok.reports import Gallery, evaluation_page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)"),
]

HOSTILE = "<img src=x onerror=alert(1)>.png"

NAMES = "[...document.querySelectorAll('.sortable tbody th')].map(cell => cell.firstChild.textContent)"
SHOWN = (
    "[...document.querySelectorAll('.picture')].map(p => p.querySelector('.copy:not([hidden])').dataset.text)"
)
WIDTHS = "[document.documentElement.scrollWidth, innerWidth]"


def test_a_report_in_chromium(tmp_path: Path) -> None:
    small = tokenizer(tmp_path / "small.safetensors", SMALL)
    five = dataclasses.replace(SMALL, patch_nums=((1, 1), (2, 2), (3, 3), (4, 4), (8, 8)))
    longer = tokenizer(tmp_path / "longer.safetensors", five)
    for seed, name in enumerate((HOSTILE, "b.png", "c.png")):
        save(tmp_path / "in" / name, seed, 40, 36)
    gallery = Gallery()
    report = evaluate_files(
        tmp_path / "in", tokenizer=small, size=16, recursive=True, gallery=gallery, compare=longer
    )
    file = tmp_path / "report.html"
    file.write_text(evaluation_page(report, small, gallery), encoding="utf-8")
    names = [Path(scores.name).name for scores in report.worst(3)]
    profile = Path(tempfile.mkdtemp())
    try:
        with chromium(profile) as page:
            page.open(file)
            assert page.run(NAMES) == names
            assert HOSTILE in page.run("document.body.innerText")
            assert page.run("document.querySelectorAll('img[onerror]').length") == 0
            assert page.run("[...document.images].every(image => image.src.startsWith('data:'))")

            # The slider between the original and the copy.
            page.run("document.querySelector('.cut').focus()")
            cut = "document.querySelector('.frame').style.getPropertyValue('--cut')"
            assert page.run(cut) == "50%"
            page.press("ArrowRight")
            assert page.run(cut) == "51%"

            # The scales of one picture, and of all.
            finest = [f"after 3 of 3 scales: {one.models[0].psnr:.2f} dB" for one in report.worst(3)]
            assert page.run(SHOWN) == finest
            page.run("document.querySelector('.scales').focus()")
            for _ in range(3):  # from 5, the number of scales of the other checkpoint
                page.press("ArrowLeft")
            assert [text[:7] for text in page.run(SHOWN)] == ["after 2", "after 3", "after 3"]
            page.run("document.getElementById('all-scales').focus()")
            page.press("Home")
            assert [text[:7] for text in page.run(SHOWN)] == ["after 1"] * 3
            assert page.run("document.getElementById('all-scales-text').value") == "1 of 3 scales"
            for _ in range(3):
                page.press("ArrowRight")
            assert [text[:12] for text in page.run(SHOWN)] == ["after 3 of 3"] * 3
            assert page.run("document.getElementById('all-scales-text').value") == "3 of 3 scales"

            # The second checkpoint has more scales.
            page.run("document.getElementById('model').focus()")
            page.press("ArrowDown")
            shown = "document.querySelector('.copy:not([hidden])').dataset.model"
            assert page.run(shown) == "1"
            assert [text[:12] for text in page.run(SHOWN)] == ["after 4 of 5"] * 3
            assert page.run("document.getElementById('all-scales-text').value") == "4 of 5 scales"
            page.run("document.getElementById('all-scales').focus()")
            page.press("End")
            assert [text[:12] for text in page.run(SHOWN)] == ["after 5 of 5"] * 3
            assert page.run("document.getElementById('all-scales-text').value") == "all scales"
            loaded = "document.querySelector('.copy:not([hidden])').decode().then(() => true)"
            assert page.run(loaded)

            # The table is sorted by any column, both ways.
            button = "document.querySelectorAll('.sortable button')[1]"
            for wanted, order in ((names[::-1], "descending"), (names, "ascending")):
                page.run(f"{button}.focus()")
                page.press("Enter")
                assert page.run(NAMES) == wanted
                assert page.run(f"{button}.closest('th').getAttribute('aria-sort')") == order
            page.run("document.querySelector('.sortable button').click()")
            assert page.run(f"{NAMES}.filter(name => name !== {HOSTILE!r})") == ["b.png", "c.png"]

            # The atlas tells the codes' indices and counts.
            page.run("document.querySelector('.atlas').focus()")
            page.press("ArrowDown")
            page.press("ArrowRight")
            text = page.run("document.getElementById('code').value")
            code = int(re.fullmatch(r"Code (\d+): (\d+) tokens", text)[1])  # type: ignore[index]
            assert text.endswith(f": {report.code_counts[0].sum(0)[code]} tokens")

            page.open(file, width=390, dark=True)
            width, window = page.run(WIDTHS)
            assert width <= window == 390
            background = "getComputedStyle(document.body).backgroundColor"
            assert page.run(background) == "rgb(20, 23, 26)"
            assert not page.errors
            assert {*page.requests} == {file.as_uri()}

            # The policy: a script that a file brought in would not run.
            page.run("document.body.append(Object.assign(document.createElement('script'), {text: 'x = 1'}))")
            assert page.run("typeof x") == "undefined"
    finally:
        shutil.rmtree(profile, ignore_errors=True)
