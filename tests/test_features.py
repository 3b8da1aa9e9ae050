"""Features of EfficientNet-Lite."""

import pytest
import torch

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
