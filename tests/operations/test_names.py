"""Names of outputs that every system can hold."""

import os
from pathlib import Path, PurePath

import pytest

from vartok.errors import ArgumentError
from vartok.operations.existing import PictureComparison
from vartok.operations.inputs import Input
from vartok.operations.layouts import Layout
from vartok.operations.names import folded_name, numbered_name, portable_name, safe_name
from vartok.operations.outputs import Target, check_folder
from vartok.operations.plan import OutputPlan


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.tokens.npz", "a/b.tokens.npz"),
        ("10:30?.tokens.npz", "10_30_.tokens.npz"),
        ('<a>"b"|c*\\d\n/e.npz', "_a__b__c__d_/e.npz"),
        ("CON.tokens.npz", "CON_.tokens.npz"),
        ("nul", "nul_"),
        ("Lpt1 .tokens.npz", "Lpt1 _.tokens.npz"),
        ("console.tokens.npz", "console.tokens.npz"),
        ("COM10.npz", "COM10.npz"),
        ("end. /aux/x.npz", "end__/aux_/x.npz"),
    ],
)
def test_names_that_windows_cannot_hold(name: str, expected: str) -> None:
    assert portable_name(PurePath(name)).as_posix() == expected


@pytest.mark.parametrize("letter", ["x", "é", "日", os.fsdecode(b"\xe9")])
def test_long_names_are_shortened_and_stay_different(letter: str) -> None:
    count = 250 // len(os.fsencode(letter))
    names = [portable_name(PurePath(f"{letter * count}{end}.tokens.npz")).name for end in "ab"]
    assert len({*names}) == 2
    for name in names:
        assert 245 < len(os.fsencode(name)) <= 255
        assert name.startswith(letter * 70)
        assert name.endswith(".tokens.npz")
    assert len(os.fsencode(numbered_name(PurePath(names[0]), 12).name)) <= 255
    assert numbered_name(PurePath("k/a.b.decoded.png"), 2) == PurePath("k/a.b-2.decoded.png")
    assert numbered_name(PurePath(".npz"), 2) == PurePath(".npz-2")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("../../a", "a"),
        ("/etc/a", "etc/a"),
        ("C:\\photos\\a", "C/photos/a"),
        ("d:", "d"),
        ('a<b>:"|?*\x00', "a_b_______"),
        ("..", "image"),
        ("", "image"),
    ],
)
def test_stored_names_stay_below_the_folder(stored: str, expected: str) -> None:
    assert safe_name(stored).as_posix() == expected


def test_names_that_are_one_on_some_system() -> None:
    for one, other in (("IMG", "img"), ("caf\u00e9", "CAFE\u0301"), ("straße", "STRASSE")):
        assert folded_name(PurePath(one)) == folded_name(PurePath(other))
    assert folded_name(PurePath("a")) != folded_name(PurePath("ä"))


def plan(target: Target, *places: str) -> list[str]:
    inputs = [Input(PurePath(Path(place).name), "picture", place) for place in places]
    compare = PictureComparison(scales=None, layout=Layout(), restore_size=False)
    found = OutputPlan(target, inputs, overwrite=False, skip_existing=False, compare=compare)
    return [str(found.claim(item)[1]) for item in found.todo]  # type: ignore[index]


def target(folder: Path | None) -> Target:
    def rename(name: PurePath) -> PurePath:
        return name.with_suffix(".npz")

    return Target(rename, rename, folder=folder)


@pytest.mark.parametrize(
    ("one", "other", "cure"),
    [
        ("a/IMG.png", "b/img.png", "name the folder above them and set `recursive`"),
        ("a/caf\u00e9.png", "a/cafe\u0301.png", "set `format` to jsonl"),
        ("a/img.png", "a/IMG.jpg", "set `full_names`"),
        ("a/1:2.png", "a/1?2.png", "set `format` to jsonl"),
    ],
)
def test_outputs_that_are_one_file_elsewhere_are_refused(
    tmp_path: Path, one: str, other: str, cure: str
) -> None:
    message = r"are one file on macOS and Windows|both be written to"
    with pytest.raises(ArgumentError, match=message) as refused:
        plan(target(tmp_path), one, other)
    assert str(refused.value.hint).startswith(cure)


def test_folders_that_differ_in_case_are_no_conflict(tmp_path: Path) -> None:
    assert plan(target(None), "A/img.png", "a/img.png") == ["A/img.npz", "a/img.npz"]


def test_names_that_are_changed_are_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.warns(
        match=r"1 output got another name, since not every system can hold the name: CON_\.npz for CON\."
    ):
        assert plan(target(tmp_path), "CON.png", "a.png") == [f"{tmp_path}/CON_.npz", f"{tmp_path}/a.npz"]


def test_a_folder_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Exception, match="file is not a folder"):
        check_folder(tmp_path / "file" / "deep" / "out")
    check_folder(tmp_path / "new" / "out")
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with pytest.raises(Exception, match="out: no permission"):
        check_folder(tmp_path / "out")
