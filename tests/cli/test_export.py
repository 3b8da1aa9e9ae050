"""`vartok dataset export`: its output, its exit codes, and what it says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Vartok, names
from dataset_cases import some_rows, write_dataset

pytest_plugins = ["dataset_cases"]


@pytest.fixture
def out(here: Path) -> Path:
    """A data set of three rows; the first has no label."""
    first, *rest = some_rows(3)
    return write_dataset(here / "out", [[replace(first, label=None), *rest]])


def test_a_data_set_is_exported(out: Path, vartok: Vartok) -> None:
    made = vartok("dataset", "export", "out", "arrays", "--to", "npy")
    assert "note: 1 picture without a label: -1 in labels.npy" in made.stderr
    assert "vartok: exported 3 rows of 3 pictures to arrays" in made.stderr
    assert np.load("arrays/labels.npy").tolist() == [-1, 1, 2]
    again = vartok("dataset", "export", "out", "arrays", "--to", "npy", code=1)
    assert again.stderr == "vartok: arrays exists: set --force to replace it\n"
    forced = vartok("dataset", "export", "out", "arrays", "--to", "bin", "--force", "-q")
    assert (forced.stdout, forced.stderr) == ("", "")
    assert names(Path("arrays")) == ["metadata.json", "rows.jsonl", "train.bin"]


def test_pictures_that_are_left_out_are_counted_and_give_exit_code_3(out: Path, vartok: Vartok) -> None:
    made = vartok("dataset", "export", "out", "lines", "--to", "jsonl", "--json", code=3)
    assert json.loads(made.stdout) == {
        "pictures": 2,
        "rows": 2,
        "without_label": 1,
        "left_out": 1,
        "not_carried": {},
    }
    assert "note: left out 1 picture without a label, which jsonl needs" in made.stderr


def test_wrong_arguments_are_one_line(out: Path, vartok: Vartok) -> None:
    assert (
        "nope: no such file or folder"
        in vartok("dataset", "export", "nope", "x", "--to", "npy", code=1).stderr
    )
    assert "holds no data set" in vartok("dataset", "export", ".", "x", "--to", "npy", code=1).stderr
    assert "'csv' is not one of" in vartok("dataset", "export", "out", "x", "--to", "csv", code=2).stderr
    plain = write_dataset(out.parent / "plain", [[replace(some_rows(1)[0], label=None)]])
    refused = vartok("dataset", "export", plain, "x", "--to", "llamagen", code=1)
    assert "has no labels, and llamagen needs them: set --to to npy or bin" in refused.stderr
    assert not Path("x").exists()
