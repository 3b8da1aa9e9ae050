"""The Ray engine on clusters of unequal machines; `request_resources` without a cluster."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from commands import only_ray_cluster
from dataset_cases import contents

import vartok
from vartok.dataset import build
from vartok.dataset import ray as ray_engine
from vartok.dataset.ray import ResourceRequests, ray_cluster, request_resources
from vartok.errors import DatasetError

pytest_plugins = ["dataset_cases"]


@pytest.mark.parametrize(
    ("cpus", "wanted"),
    [  # actors, CPUs and threads of each; readers
        ([2], (1, 1.5, 2, 1)),
        ([8], (1, 6, 8, 4)),
        ([96], (12, 6, 8, 48)),
        ([0, 1, 1], (2, 0.5, 1, 2)),
        ([4, 8, 8], (5, 3, 4, 10)),
        ([1, 16], (8, 1.5, 2, 10)),  # the first only reads
        ([0.5, 2], (1, 1.5, 2, 1)),
    ],
)
def test_actors_of_one_size_fill_machines_of_several(
    cpus: list[float], wanted: tuple[int, float, int, int]
) -> None:
    found = request_resources([{"CPU": count, "GPU": 1} if count else {} for count in cpus], "cpu")
    assert (found.actors, found.actor_cpus, found.threads, found.readers) == wanted
    assert found.actors * found.actor_cpus + wanted[3] * found.reader_cpus <= sum(cpus)


def test_actors_with_gpus_leave_the_cpus_to_readers() -> None:
    nodes = [{}, {"CPU": 8, "GPU": 8}, {"CPU": 1}]
    assert request_resources(nodes, "cuda") == ResourceRequests(8, 0, 1, None, None, 1)
    with pytest.raises(DatasetError, match="the Ray cluster has no GPU"):
        request_resources(nodes[2:], "cuda")
    for device in ("cpu", "cuda"):
        with pytest.raises(DatasetError, match="the Ray cluster has no CPU"):
            request_resources([{"GPU": 1}, {"CPU": 0.5}], device)


def test_a_cluster_that_lacks_the_device_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ray = Mock(
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": 2}}, {"Alive": False, "Resources": {"GPU": 1}}]
    )
    for name in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, name, ray)
    monkeypatch.setattr("vartok.dataset.builder.check_packages", lambda *more: None)
    with ray_cluster(None, "auto") as device:
        assert device == "cpu"
    with pytest.raises(DatasetError, match="the Ray cluster has no GPU"):
        build("nope", tmp_path / "out", engine="ray", device="cuda")
    assert ray.shutdown.call_count == 2
    assert not (tmp_path / "out").exists()
    ray.nodes = lambda: [{"Alive": True, "Resources": {"CPU": 2, "GPU": 1}}]
    with ray_cluster() as device:
        assert device == "cuda"


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Return the address of a cluster: a head without CPUs, and two nodes of one CPU and one GPU each.

    The GPUs are numbers in Ray's books.
    """
    from ray.cluster_utils import Cluster

    with only_ray_cluster():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(2):
            cluster.add_node(num_cpus=1, num_gpus=1)
        yield cluster.address
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_small_machines_read_and_encode(
    cluster: str,
    device: str,
    source: Path,
    whole: dict[str, bytes],
    small_weights: Path,
    small_tokenizer: vartok.Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With "cuda" the requests are those of GPUs, while the actors compute on the CPU."""
    asked = []

    def request(nodes: Any, _: str) -> ResourceRequests:
        asked.append(request_resources(nodes, device))
        return asked[-1]

    monkeypatch.setattr(ray_engine, "request_resources", request)
    options: dict[str, Any] = {"weights": small_weights, "device": "cpu", "shard_size": 3}
    summary = build(source, tmp_path / "out", engine="ray", address=cluster, **options)
    assert summary.complete
    assert (asked[0].actors, asked[0].actor_gpus) == (2, int(device == "cuda"))
    assert contents(tmp_path / "out") == whole
