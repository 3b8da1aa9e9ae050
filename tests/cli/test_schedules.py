"""`vartok schedules`: its table and its JSON."""

import json
from pathlib import Path

from conftest import Vartok
from noise import SMALL, save

from vartok.schedule import NAMED, check_schedule, phi_index


def test_schedules_are_listed_with_the_phis_of_a_checkpoint(vartok: Vartok, here: Path) -> None:
    shown = json.loads(vartok("schedules", "--json").stdout)
    assert (shown["checkpoint"], shown["phis"]) == ("vartok-light-v2", 4)
    assert {row["name"]: check_schedule(row["schedule"]) for row in shown["schedules"]} == NAMED
    assert [row["name"] for row in shown["schedules"] if row["own"]] == ["var-256"]
    for row in shown["schedules"]:
        scales = len(row["schedule"])
        assert row["phi"] == [phi_index(k, scales, 4) for k in range(scales)]
        assert row["size"] == [16 * side for side in row["schedule"][-1]]
    table = vartok("schedules").stdout
    assert all(name in table for name in NAMED)
    assert "var-1024     1024x1024   9,451  1,2,3,4,5,7,9,12,16,21,27,36,48,64  0,0,0,1," in table
    assert SMALL.patch_nums not in NAMED.values()
    *named, own = json.loads(vartok("schedules", "-w", save(here / "s.safetensors", SMALL), "--json").stdout)[
        "schedules"
    ]
    assert (own["name"], own["own"], len(named)) == (None, True, len(NAMED))
    assert check_schedule(own["schedule"]) == SMALL.patch_nums
