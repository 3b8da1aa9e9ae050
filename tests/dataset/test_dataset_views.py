"""Views and latents: rows of several views a picture, with the latents before quantization."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_cases import ENCODING, VIEWED, some_rows, viewed_rows, write_rows

from vartok.dataset.formats import FORMATS, iter_rows, read_shard
from vartok.dataset.schema import Encoding
from vartok.errors import DatasetError, TokensError, VartokError
from vartok.metadata import View

pytest_plugins = ["dataset_cases"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("changes", [{}, {"views": "center", "seed": 0}, {"latent_channels": None}])
def test_rows_with_views_and_latents_survive_a_round_trip(
    tmp_path: Path, format: str, changes: dict[str, Any]
) -> None:
    encoding = replace(VIEWED, **changes)
    found = viewed_rows(2, encoding)
    write_rows(tmp_path / "a", format, found, encoding)
    assert list(read_shard(format, tmp_path / "a", encoding)) == found
    light = [replace(row, caption=None, latent=None) for row in found]
    assert list(iter_rows(format, tmp_path / "a", encoding)) == light
    assert list(read_shard(format, tmp_path / "a", encoding, ("label",))) == light


def test_settings_are_written_only_where_they_differ_from_the_defaults() -> None:
    assert ENCODING.to_dict()["image"].keys() == {"size", "fit", "zoom", "background", "device", "dtype"}
    image = VIEWED.to_dict()["image"]
    assert {name: image[name] for name in image.keys() - ENCODING.to_dict()["image"].keys()} == {
        "views": "random:3",
        "seed": 5,
        "latent_channels": 2,
    }
    assert Encoding.from_dict(VIEWED.to_dict()) == VIEWED
    for changes in ({"views": "random:0"}, {"views": 3}, {"seed": "0"}, {"latent_channels": 0}):
        with pytest.raises(VartokError):
            Encoding.from_dict({**VIEWED.to_dict(), "image": {**image, **changes}})


def test_views_and_latents_are_columns_of_parquet(tmp_path: Path) -> None:
    found = viewed_rows(2)
    write_rows(tmp_path / "a.parquet", "parquet", found, VIEWED)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names[7:] == ["view", "box", "flipped", "latent"]
    assert table.schema.types[7:] == [
        pa.int32(),
        pa.list_(pa.float64(), 4),
        pa.bool_(),
        pa.list_(pa.float16(), 32),
    ]
    assert table["view"].to_pylist() == [0, 1, 2] * 2
    assert table["flipped"].to_pylist() == [False, True, False] * 2
    assert table["box"][1].as_py() == [0.1, 1 / 3, 8.5, 7]
    assert np.array_equal(
        table["latent"].combine_chunks().flatten().to_numpy(), np.ravel([row.latent for row in found])
    )


def test_webdataset_reads_each_view_as_a_sample(tmp_path: Path) -> None:
    import webdataset

    found = viewed_rows(2)
    write_rows(tmp_path / "a.tar", "wds", found, VIEWED)
    read = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in read] == [f"k/{n}%2Ex#{v}" for n in range(2) for v in range(3)]
    assert [sample["json"]["key"] for sample in read] == [row.key for row in found]
    assert (read[1]["json"]["view"], read[1]["json"]["flipped"]) == (1, True)
    assert read[4]["json"]["box"] == [0.1, 1 / 3, 8.5, 7]
    np.testing.assert_array_equal(read[4]["latent.npy"], found[4].latent)
    assert read[4]["latent.npy"].dtype == np.float16


@pytest.mark.parametrize("format", FORMATS)
def test_rows_without_their_view_or_latent_are_broken(tmp_path: Path, format: str) -> None:
    bare = replace(VIEWED, views="center", latent_channels=None)
    write_rows(tmp_path / "a", format, some_rows(1), bare)
    if format != "parquet":  # which records its encoding
        for encoding, reason in (
            (replace(VIEWED, latent_channels=None), "view must be"),
            (replace(VIEWED, views="center"), "its latent is not"),
        ):
            with pytest.raises(DatasetError, match=reason):
                list(read_shard(format, tmp_path / "a", encoding))
    write_rows(tmp_path / "a", format, viewed_rows(1), VIEWED)
    with pytest.raises(DatasetError, match=r"has view 2, but the views are flip|another encoding"):
        list(read_shard(format, tmp_path / "a", replace(VIEWED, views="flip")))
    with pytest.raises(DatasetError, match=r"its latent is not \[3, 4, 4\] float16|another encoding"):
        list(read_shard(format, tmp_path / "a", replace(VIEWED, latent_channels=3)))


@pytest.mark.parametrize(
    "values",
    [
        (-1, (0, 0, 1, 1)),
        (0, (0, 0, 0, 1)),
        (0, (0, 0, float("nan"), 1)),
        (0, "abcd"),
        (True, (0, 0, 1, 1)),
        (0, (0, 0, 1, 1), 1),
    ],
)
def test_broken_views_are_refused(values: Any) -> None:
    with pytest.raises(TokensError):
        View(*values)


def test_latents_have_the_grid_of_the_last_scale() -> None:
    [row] = some_rows(1)
    wrong: tuple[Any, ...] = (
        np.zeros((2, 4, 4)),
        np.zeros((4, 4), np.float16),
        np.zeros((2, 4, 2), np.float16),
    )
    for latent in wrong:
        with pytest.raises(TokensError, match="a latent"):
            replace(row, latent=latent)
    kept = replace(row, latent=np.zeros((2, 4, 4), np.float16))
    assert kept != row
    assert kept == replace(row, latent=np.zeros((2, 4, 4), np.float16))
    assert kept.latent is not None
    assert not kept.latent.flags.writeable
