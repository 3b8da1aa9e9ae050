"""The atlas: every code once, and neighbours that look alike, compared with a random order; and one code."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vartok import atlas
from vartok.atlas import atlas_order
from vartok.code_picture import MAX_GAIN, _raise_contrast

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]

SEEDS = st.integers(0, 2**32 - 1)


def normal(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def neighbour_distance(features: Floats, grid: Integers) -> float:
    """Mean distance between the features of codes side by side or one above the other."""
    distances = []
    for a, b in ((grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])):
        both = (a >= 0) & (b >= 0)
        distances.append(np.linalg.norm(features[a[both]] - features[b[both]], axis=1))
    return float(np.concatenate(distances).mean())


def random_grid(grid: Integers) -> Integers:
    shuffled = grid.copy()
    shuffled[grid >= 0] = np.random.default_rng(9).permutation(grid[grid >= 0])
    return shuffled


@settings(max_examples=10)
@given(count=st.integers(1, 60), width=st.integers(1, 5), columns=st.none() | st.integers(1, 70), seed=SEEDS)
def test_an_atlas_holds_every_code_once(count: int, width: int, columns: int | None, seed: int) -> None:
    grid = atlas_order(normal(count, width, seed), columns)
    assert grid.dtype == np.int64
    assert sorted(grid.flat[:count]) == list(range(count))
    assert (grid.flat[count:] == -1).all()
    rows, wide = grid.shape
    assert wide == columns or columns is None
    assert (rows - 1) * wide < count <= rows * wide
    if columns is None:
        assert 0 <= wide - rows <= 1


def test_equal_codes_have_an_atlas() -> None:
    assert sorted(atlas_order(np.ones((7, 3))).flat) == [-1, -1, *range(7)]


def test_an_atlas_brings_like_codes_together() -> None:
    # Four features of falling variance, V not a square: 0.276; a sort by two components alone: 0.43.
    features = normal(1000, 4) * np.array([2.0, 1.5, 1.0, 0.5])
    grid = atlas_order(features)
    assert grid.shape == (32, 32)
    assert neighbour_distance(features, grid) < 0.3 * neighbour_distance(features, random_grid(grid))
    np.testing.assert_array_equal(atlas_order(features), grid)


def test_an_atlas_does_not_depend_on_the_order_of_the_codes_to_look_good() -> None:
    features = normal(500, 3)
    shuffle = np.random.default_rng(3).permutation(500)
    grid = atlas_order(features[shuffle], 40)
    assert grid.shape == (13, 40)
    # 0.284; a sort by two components alone: 0.54
    assert neighbour_distance(features[shuffle], grid) < 0.3 * neighbour_distance(features, random_grid(grid))


def test_an_atlas_of_one_row_is_sorted() -> None:
    values = normal(50, 1)
    line = values[atlas_order(values, 50)[0], 0]
    steps = np.diff(line)
    assert (steps > 0).all() or (steps < 0).all()


@pytest.mark.parametrize("radius", [1, 2, 9])
def test_windows_are_centred_and_clipped(radius: int) -> None:
    grid = np.arange(5 * 7 * 2, dtype=np.float64).reshape(5, 7, 2)
    sums = atlas._box_sums(grid, radius)
    for y, x in np.ndindex(5, 7):
        window = grid[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
        np.testing.assert_array_equal(sums[y, x], window.sum((0, 1)))


def test_weak_codes_are_drawn_with_more_contrast() -> None:
    blank = np.full((2, 2, 3), 100, np.uint8)
    picture = blank.copy()
    picture[0, 0] = 108
    enlarged, gain = _raise_contrast(picture, blank)
    assert (gain, enlarged[0, 0, 0], enlarged[1, 1, 0]) == (8, 164, 100)
    assert _raise_contrast(blank, blank)[1] == MAX_GAIN
    picture[0, 0] = 200
    assert _raise_contrast(picture, blank)[0].tolist() == picture.tolist()
