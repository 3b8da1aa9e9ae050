"""Pages of a checkpoint's file leave the memory when the weights in them are not used any more."""

import re
from pathlib import Path

import pytest
from checkpoint_cases import TEN, same
from noise import draw, save

from vartok.checkpoints import build_model, dropping_pages, read_checkpoint
from vartok.checkpoints.mapping import MAPS

SMAPS = Path(MAPS).with_name("smaps")


def resident(path: Path) -> int:
    """Kilobytes of a file that are mapped into this process and in memory."""
    return sum(
        int(found[1])
        for found in re.finditer(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss: *(\d+) kB", SMAPS.read_text())
    )


@pytest.mark.skipif(not SMAPS.exists(), reason="memory is read from /proc")
def test_pages_of_freed_weights_leave_the_memory(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", TEN)
    size = path.stat().st_size / 1000
    checkpoint = read_checkpoint(path)
    assert resident(path) > 0.9 * size  # all values were checked
    model = build_model(checkpoint)
    parameters = dict(model.named_parameters())
    with dropping_pages(parameters, checkpoint.tensors):
        assert resident(path) < 0.5 * size
        assert same(model.state_dict(), draw(TEN))
        assert resident(path) > 0.9 * size
        del model, parameters
        assert resident(path) < 0.5 * size
        assert same(checkpoint.tensors, draw(TEN))
    assert resident(path) < 0.5 * size
    assert same(checkpoint.tensors, draw(TEN))
