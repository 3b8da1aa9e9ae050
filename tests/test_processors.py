"""Processors by affinity and quota, on a stand-in for the files of Linux; OpenMP's variables."""

import os
from pathlib import Path

import pytest

from vartok import processors
from vartok.processors import available_processors, configure_openmp

V1 = "31 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct"
V2 = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw"
OTHER = "35 31 0:32 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n24 1 0:2 / / rw - ext4 /dev/vda rw"


def machine(root: Path, groups: str, mounts: str, **quotas: str) -> Path:
    """Lay out the files of a machine; `quotas` maps folders below sys/fs/cgroup to "quota period"."""
    files = {"proc/self/cgroup": groups, "proc/self/mountinfo": f"{OTHER}\n{mounts}\n"}
    for folder, text in quotas.items():
        files[f"sys/fs/cgroup/{folder}/cpu.max"] = text
        for name, value in zip(("quota", "period"), text.split(), strict=True):
            files[f"sys/fs/cgroup/{folder}/cpu.cfs_{name}_us"] = value
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process run on eight processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


GROUPS = "9:name=systemd:/a\n3:cpuset:/x\n2:cpu,cpuacct:/a/b\n0::/a/b\n"
V1_IN_DOCKER = V1.replace(" / /sys", " /a/b /sys")


@pytest.mark.parametrize(
    ("mounts", "quotas", "wanted"),
    [
        (V2, {}, 8),
        (V2, {".": "max 100000", "a/b": "max 100000"}, 8),
        (V2, {"a/b": "250000 100000"}, 2),
        (V2, {"a": "400000 100000", "a/b": "600000 100000"}, 4),  # a parent allows less
        (V2, {"a/b": "50000 100000"}, 1),
        (V2, {"a/b": "1600000 100000"}, 8),
        (V2, {"a/c": "100000 100000"}, 8),  # another process's
        (V2, {"a/b": "nonsense 100000"}, 8),
        (V2, {"a/b": "100000 0"}, 8),
        (V1, {"cpu,cpuacct/a/b": "300000 100000"}, 3),
        (V1, {"cpu,cpuacct": "-1 100000", "cpu,cpuacct/a": "299999 100000"}, 2),
        (V1_IN_DOCKER, {"cpu,cpuacct": "200000 100000"}, 2),  # the mount shows the group itself
        (V2.replace(" / /sys", " /elsewhere /sys"), {".": "200000 100000"}, 2),
        (V2.replace("/sys/fs/cgroup", r"/sys/fs/cgroup/with\040space"), {"with space/a": "100000 50000"}, 2),
        (f"{V1}\n{V2.replace('/cgroup ', '/cgroup/unified ')}", {"cpu,cpuacct/a/b": "300000 100000"}, 3),
    ],
)
def test_a_quota_of_any_control_group_above_the_process_counts(
    tmp_path: Path, mounts: str, quotas: dict[str, str], wanted: int
) -> None:
    assert available_processors(machine(tmp_path, GROUPS, mounts, **quotas)) == wanted


def test_in_a_namespace_of_its_own_a_group_is_the_mounts_root(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/../../other\n", V2, **{".": "300000 100000"})
    assert available_processors(root) == 3


def test_without_these_files_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_processors(tmp_path) == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_processors(tmp_path) == 1


def test_openmp_gets_what_the_user_has_not_set(tmp_path: Path) -> None:
    limited = machine(tmp_path, GROUPS, V2, **{"a/b": "200000 100000"})
    spins = {"GOMP_SPINCOUNT": processors.SPINS}
    for given, root, wanted in (
        ({}, tmp_path / "none", spins),
        ({}, limited, {**spins, "OMP_NUM_THREADS": "2"}),
        ({"OMP_NUM_THREADS": "5"}, limited, {**spins, "OMP_NUM_THREADS": "5"}),
        ({"OMP_WAIT_POLICY": "active"}, tmp_path / "none", {"OMP_WAIT_POLICY": "active"}),
        ({"GOMP_SPINCOUNT": "7"}, tmp_path / "none", {"GOMP_SPINCOUNT": "7"}),
    ):
        environment = dict(given)
        configure_openmp(environment, root)
        assert environment == wanted
