import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vartok.errors import ScheduleError
from vartok.schedule import (
    MAX_GRID_SIDE,
    MAX_SCALES,
    NAMED,
    VAR,
    VAR_256,
    VAR_512,
    VAR_1024,
    adapt_schedule,
    check_schedule,
    describe,
    parse_schedule,
    phi_index,
    square,
    stretch_schedule,
    to_json,
    token_count,
)

grids = st.tuples(st.integers(1, 64), st.integers(1, 64))
schedules = st.lists(grids, min_size=1, max_size=12).map(
    lambda found: (*found[:-1], (max(h for h, _ in found), max(w for _, w in found)))
)


def test_named_schedules() -> None:
    """The grids in the published code: VAR's, Switti's, VARSR's and STAR's."""
    assert {name: token_count(schedule) for name, schedule in NAMED.items()} == {
        "var-256": 680,
        "var-512": 2240,
        "var-1024": 9451,
        "switti-512": 2240,
        "switti-1024": 9451,
        "varsr-512": 3331,
        "star-512": 2280,
    }
    assert describe(VAR_512) == "1,2,3,4,6,9,13,18,24,32"
    assert describe(VAR_1024) == "1,2,3,4,5,7,9,12,16,21,27,36,48,64"
    for name, schedule in NAMED.items():
        assert check_schedule(parse_schedule(name)) == schedule
        assert schedule[-1][0] * 16 == int(name.rpartition("-")[2])
    with pytest.raises(ScheduleError) as error:
        parse_schedule("var-2048")
    assert all(name in str(error.value.hint) for name in NAMED)


def test_vars_schedule_has_680_tokens() -> None:
    assert tuple((n, n) for n in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)) == VAR_256
    assert token_count(VAR_256) == 680
    assert token_count([(2, 3), (16, 24)]) == 390


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("1", ((1, 1),)),
        ("1,2,4", ((1, 1), (2, 2), (4, 4))),
        ("1,2x3,16x24", ((1, 1), (2, 3), (16, 24))),
        (" 1, 2 ,3 x 4 ", ((1, 1), (2, 2), (3, 4))),
        ("4,2,4", square(4, 2, 4)),
        (" var-512\n", VAR_512),
    ],
)
def test_parse(text: str, schedule: Any) -> None:
    assert parse_schedule(text) == schedule


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ",",
            "1,",
            "1,,2",
            "a",
            "1;2",
            "1x",
            "1x2x3",
            "1.5",
            "0",
            "-1",
            "1,0x2",
            "1x16,8",
            "8,4",
            "3x2,2x3",
        ),
        *(",".join(["1"] * (MAX_SCALES + 1)), str(MAX_GRID_SIDE + 1), "9" * 4000, "9" * 5000, "a\nb"),
    ],
)
def test_what_is_no_schedule_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ScheduleError) as error:
        parse_schedule(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 150


@pytest.mark.parametrize(
    "value",
    [None, 3, "12", (), [], [[]], [[1]], [[1, 2, 3]], [None], [True], [1.0], [[1, 2.0]], [(1, "2")], {1: 2}],
)
def test_check_refuses_what_is_not_grids(value: object) -> None:
    with pytest.raises(ScheduleError, match="must be a"):
        check_schedule(value)


def test_a_scale_larger_than_the_last_is_named() -> None:
    with pytest.raises(
        ScheduleError, match=re.escape("scale 2, 3x5, is higher or wider than the last scale, 4x4")
    ):
        check_schedule([1, [3, 5], 4])


@given(schedules)
def test_text_and_json_round_trip(schedule: Any) -> None:
    assert parse_schedule(describe(schedule)) == schedule
    assert check_schedule(json.loads(json.dumps(to_json(schedule)))) == schedule


def test_json_and_text_are_as_short_as_can_be() -> None:
    assert to_json(((1, 1), (2, 3))) == [1, [2, 3]]
    assert describe(((1, 1), (2, 3))) == "1,2x3"


@pytest.mark.parametrize("own", VAR)
def test_vars_schedules_adapt_to_one_another(own: Any) -> None:
    assert [adapt_schedule(own, schedule[-1]) for schedule in VAR] == list(VAR)
    assert adapt_schedule(own, (32, 48)) == stretch_schedule(own, (32, 48))
    other = (*own[:-2], own[-1])
    assert adapt_schedule(other, own[-1]) == other
    assert adapt_schedule(other, (32, 32)) == stretch_schedule(other, (32, 32))


def test_stretching_takes_each_axis_by_itself() -> None:
    assert stretch_schedule(VAR_256, (32, 32)) == square(1, 4, 6, 8, 10, 12, 16, 20, 26, 32)
    wide = adapt_schedule(VAR_256, (16, 24))
    assert wide == (*((1, 1), (2, 3), (3, 4), (4, 6), (5, 8), (6, 9), (8, 12), (10, 15), (13, 20), (16, 24)),)
    assert adapt_schedule(VAR_256, (1, 16)) == tuple((1, n) for n in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    assert adapt_schedule(((2, 1), (4, 4)), (8, 8)) == ((4, 2), (8, 8))  # only 1x1 stays as it is


@given(schedules, grids)
def test_adapt_gives_a_schedule_of_the_latent(schedule: Any, grid: tuple[int, int]) -> None:
    adapted = adapt_schedule(schedule, grid)
    assert check_schedule(adapted) == adapted == stretch_schedule(schedule, grid)
    assert adapted[-1] == grid
    assert len(adapted) == len(schedule)


@pytest.mark.parametrize(
    ("scales", "phis", "expected"),
    [
        (10, 4, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),  # what VAR's code gives, as are the others
        (10, 1, [0] * 10),
        (10, 10, list(range(10))),
        (10, 2, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]),
        (7, 3, [0, 0, 0, 1, 1, 2, 2]),
        (12, 4, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]),
        (1, 4, [0]),
        (2, 5, [0, 4]),
    ],
)
def test_which_phi_serves_which_scale(scales: int, phis: int, expected: list[int]) -> None:
    assert [phi_index(k, scales, phis) for k in range(scales)] == expected


@given(st.integers(1, MAX_SCALES), st.integers(1, MAX_SCALES))
def test_phis_come_in_order_and_the_nearest_tick_is_taken(scales: int, phis: int) -> None:
    found = [phi_index(k, scales, phis) for k in range(scales)]
    assert found == sorted(found)
    margin = 1 / (3 if phis == 4 else 2) / phis
    ticks = np.linspace(margin, 1 - margin, phis)
    for k, phi in enumerate(found):
        distances = abs(ticks - k / max(scales - 1, 1))
        assert distances[phi] <= distances.min() + 1e-12
