"""Exports: each is read back as the repository reads it that it is for; and `vartok dataset export`."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Vartok, names
from dataset_cases import BUCKETED, ENCODING, VIEWED, L, bucketed_rows, some_rows, viewed_rows, write_dataset

from vartok.dataset import export, export_formats
from vartok.dataset.lock import folder_lock
from vartok.errors import ArgumentError, DatasetError, OutputError, OutputExistsError, VartokWarning
from vartok.tokens import ImageTokens

pytest_plugins = ["dataset_cases"]


@pytest.fixture(scope="module")
def rows() -> list[ImageTokens]:
    """Eight rows, of which the third has no label."""
    return [replace(row, label=None) if n == 2 else row for n, row in enumerate(some_rows(8))]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, rows: list[ImageTokens]) -> Path:
    return write_dataset(tmp_path_factory.mktemp("labelled") / "out", [rows[:5], rows[5:]])


@pytest.fixture(scope="module")
def viewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of three views, with latents."""
    return write_dataset(tmp_path_factory.mktemp("viewed") / "out", [viewed_rows(4)], encoding=VIEWED)


def sidecar(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_npy_is_an_array_of_tokens_and_one_of_labels(
    labelled: Path, rows: list[ImageTokens], tmp_path: Path
) -> None:
    seen = []
    with pytest.warns(VartokWarning, match=r"1 picture without a label: -1 in labels\.npy"):
        summary = export(labelled, tmp_path / "a/b", "npy", progress=lambda *now: seen.append(now))
    assert (summary.pictures, summary.rows, summary.without_label, summary.left_out) == (8, 8, 1, 0)
    assert seen == [(8, 8)]
    assert names(tmp_path) == [
        f"a/b/{name}" for name in ("labels.npy", "metadata.json", "rows.jsonl", "tokens.npy")
    ]
    tokens = np.load(tmp_path / "a/b/tokens.npy", mmap_mode="r")
    labels = np.load(tmp_path / "a/b/labels.npy")
    assert (tokens.dtype, labels.dtype) == (np.uint16, np.int64)
    assert tokens.tolist() == [row.flatten().tolist() for row in rows]
    assert labels.tolist() == [0, 1, -1, 3, 4, 5, 6, 7]
    assert [item["key"] for item in sidecar(tmp_path / "a/b")] == [row.key for row in rows]
    assert sidecar(tmp_path / "a/b")[0]["caption"] == "c0"


def test_jsonl_is_read_line_by_line(labelled: Path, rows: list[ImageTokens], tmp_path: Path) -> None:
    """As the data set of TiTok and RAR does."""
    with pytest.warns(VartokWarning, match="left out 1 picture without a label, which jsonl needs") as said:
        summary = export(labelled, tmp_path / "out", "jsonl")
    assert (summary.pictures, summary.left_out, said[0].filename) == (7, 1, __file__)
    kept = [row for row in rows if row.label is not None]
    found = [json.loads(line) for line in (tmp_path / "out/pretokenized.jsonl").read_text().split("\n")[:-1]]
    assert torch.tensor([item["class_id"] for item in found]).tolist() == [row.label for row in kept]
    assert torch.tensor([item["tokens"] for item in found]).shape == (7, L)
    assert found[3] == {"class_id": kept[3].label, "tokens": kept[3].flatten().tolist()}
    assert [item["key"] for item in sidecar(tmp_path / "out")] == [row.key for row in kept]


def test_bin_is_one_row_of_tokens(labelled: Path, rows: list[ImageTokens], tmp_path: Path) -> None:
    """As nanoGPT does; metadata.json is its meta.pkl."""
    export(labelled, tmp_path / "out", "bin")
    meta = json.loads((tmp_path / "out/metadata.json").read_text())
    data = np.memmap(tmp_path / "out/train.bin", dtype=meta["dtype"], mode="r")
    assert len(data) == meta["rows"] * meta["tokens_per_row"] == 8 * L
    assert data.tolist() == [token for row in rows for token in row.flatten().tolist()]
    assert (meta["vocab_size"], meta["schedule"]) == (64, [[1, 1], [2, 2], [4, 4]])


def test_llamagen_is_two_files_a_picture(viewed: Path, tmp_path: Path) -> None:
    """As its CustomDataset does, which takes a random view if the path says "flip"."""
    with pytest.warns(VartokWarning, match=r"not exported: latent \(12 rows\)"):
        summary = export(viewed, tmp_path / "code_flip", "llamagen")
    assert (summary.pictures, summary.rows, summary.not_carried) == (4, 12, {"latent": 12})
    expected = viewed_rows(4)
    for n in range(4):
        codes = torch.from_numpy(np.load(tmp_path / f"code_flip/imagenet8_codes/{n}.npy"))
        label = torch.from_numpy(np.load(tmp_path / f"code_flip/imagenet8_labels/{n}.npy"))
        assert (codes.dtype, codes.shape) == (torch.int64, (1, 3, L))
        assert codes[:, 1].tolist() == [expected[3 * n + 1].flatten().tolist()]
        assert label.tolist() == [n]
    assert len(os.listdir(tmp_path / "code_flip/imagenet8_codes")) == 4
    assert [(item["key"], item["view"]) for item in sidecar(tmp_path / "code_flip")][3:6] == [
        ("k/1.x", 0),
        ("k/1.x", 1),
        ("k/1.x", 2),
    ]


def test_a_bucket_is_a_folder(tmp_path: Path) -> None:
    rows = bucketed_rows()
    out = write_dataset(tmp_path / "set", [rows], encoding=BUCKETED)
    summary = export(out, tmp_path / "out", "npy")
    assert (summary.pictures, summary.rows) == (60, 60)
    assert json.loads((tmp_path / "out/metadata.json").read_text())["buckets"] == ["8x8", "4x12", "12x4"]
    found = dict[str, list[int]]()
    for name in ("8x8", "4x12", "12x4"):
        tokens = np.load(tmp_path / "out" / name / "tokens.npy")
        meta = json.loads((tmp_path / "out" / name / "metadata.json").read_text())
        assert tokens.shape == (meta["rows"], meta["tokens_per_row"])
        keys = [item["key"] for item in sidecar(tmp_path / "out" / name)]
        found |= dict(zip(keys, tokens.tolist(), strict=True))
    assert found == {row.key: row.flatten().tolist() for row in rows}


def test_large_vocabularies_have_wider_tokens(tmp_path: Path) -> None:
    encoding = replace(ENCODING, model=replace(ENCODING.model, vocab_size=1 << 17))
    scales = tuple(np.full((h, w), 70000) for h, w in encoding.schedule)
    row = ImageTokens(scales, encoding.model, encoding.image_info("a", 8, 8))
    out = write_dataset(tmp_path / "out", [[row]], encoding=encoding)
    for to, name in (("npy", "tokens.npy"), ("bin", "train.bin")):
        export(out, tmp_path / to, to)
        meta = json.loads((tmp_path / to / "metadata.json").read_text())
        path = tmp_path / to / name
        data = np.load(path) if to == "npy" else np.fromfile(path, meta["dtype"])
        assert data.dtype == np.uint32
        assert data.ravel().tolist() == [70000] * L


def test_nothing_is_overwritten_but_an_export(labelled: Path, viewed: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    export(labelled, dest, "bin")
    with pytest.raises(OutputExistsError, match="out exists"):
        export(viewed, dest)
    assert (dest / "train.bin").exists()
    export(viewed, dest, "npy", overwrite=True)
    assert names(tmp_path) == [
        f"out/{name}" for name in ("labels.npy", "metadata.json", "rows.jsonl", "tokens.npy")
    ]
    for other in ("file", "folder", "link"):
        path = tmp_path / other
        path.write_text("mine") if other == "file" else path.mkdir() if other == "folder" else (
            path.symlink_to(dest)
        )
        with pytest.raises(OutputExistsError, match="is no export of a data set, and is not replaced"):
            export(viewed, path, overwrite=True)
    assert (dest / "tokens.npy").exists()


@pytest.mark.parametrize(
    ("path", "first"),
    [
        ("notes.txt", "notes.txt"),
        ("data/a.parquet", "data"),
        ("train.bin/a", "train.bin/a"),
        ("imagenet8_codes/0.txt", "imagenet8_codes/0.txt"),
        ("8x8/b", "8x8/b"),
    ],
)
def test_an_export_with_other_files_is_not_replaced(
    labelled: Path, tmp_path: Path, path: str, first: str
) -> None:
    other = tmp_path / "out" / path
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    (tmp_path / "out/metadata.json").write_text('{"format": "vartok.export"}')
    with pytest.raises(OutputExistsError, match=f"out is not replaced: no export wrote its {first}\n"):
        export(labelled, tmp_path / "out", overwrite=True)
    assert other.read_text() == "mine"


@pytest.mark.parametrize("dest", ["", "set", "link"])
def test_no_export_replaces_the_data_set(tmp_path: Path, dest: str) -> None:
    out = write_dataset(tmp_path / "set", [some_rows(2)])
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (out, tmp_path):
        (folder / "metadata.json").write_text('{"format": "vartok.export"}')
    before = names(tmp_path)
    with pytest.raises(OutputError, match="holds the data set"):
        export(out, tmp_path / dest, overwrite=True)
    assert names(tmp_path) == before


def test_exports_of_every_format_are_replaced(tmp_path: Path) -> None:
    rows = [row for row in bucketed_rows() if row.label is not None]
    bucket = [row for row in rows if row.scales[-1].shape == rows[0].scales[-1].shape]
    for folder in (tmp_path / "one", tmp_path / "all"):
        write_dataset(folder, [bucket[:1] if folder.name == "one" else rows[:9]], encoding=BUCKETED)
        for to in export_formats.EXPORTS:
            export(folder, tmp_path / "out", to, overwrite=True)


def test_a_failed_export_leaves_nothing_and_the_rest_of_a_killed_one_is_removed(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(writer: object, views: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(export_formats.BinWriter, "add", full)
        with pytest.raises(OutputError, match=r"cannot write .*out: no space left on the disk"):
            export(labelled, tmp_path / "out", "bin")
    assert names(tmp_path) == []
    left = tmp_path / ".vartok-out.export/imagenet8_codes"
    left.mkdir(parents=True)
    (left / "0.npy").write_bytes(b"torn")
    with folder_lock(left.parent), pytest.raises(DatasetError, match="another process exports to"):
        export(labelled, tmp_path / "out", "bin")
    export(labelled, tmp_path / "out", "bin")
    assert names(tmp_path) == [f"out/{name}" for name in ("metadata.json", "rows.jsonl", "train.bin")]


def test_an_interruption_between_two_renames_keeps_the_earlier_export(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(labelled, tmp_path / "out", "bin")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name.endswith(".export"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(labelled, tmp_path / "out", "npy", overwrite=True)
    assert names(tmp_path) == [f"out/{name}" for name in ("metadata.json", "rows.jsonl", "train.bin")]


def test_what_cannot_be_exported_is_refused(labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="exported to npy, jsonl, bin, llamagen, not 'csv'"):
        export(labelled, tmp_path / "out", "csv")
    plain = write_dataset(tmp_path / "plain", [[replace(row, label=None) for row in some_rows(2)]])
    for to in ("jsonl", "llamagen"):
        with pytest.raises(DatasetError, match=f"has no labels, and {to} needs them"):
            export(plain, tmp_path / "out", to)
    assert export(plain, tmp_path / "out").without_label == 0  # nothing is missing: there are none
    shard = plain / "data/00000-0000.parquet"
    shard.write_bytes(shard.read_bytes()[::-1])
    with pytest.raises(DatasetError, match=r"00000-0000\.parquet: its sha256 is not"):
        export(plain, tmp_path / "other")
    assert not (tmp_path / "other").exists()


# The command.


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
