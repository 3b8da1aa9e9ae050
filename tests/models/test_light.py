import json
from pathlib import Path

import pytest
import torch
from noise import bare, draw
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vartok.checkpoints import read_checkpoint
from vartok.config import LightConfig, TokenizerConfig
from vartok.models.light import Decoder, Encoder
from vartok.models.vqvae import VQVAE
from vartok.train.settings_file import read_settings

NETWORK = LightConfig(widths=(8, 12, 16), depths=(1, 2, 1))
NET = TokenizerConfig(vocab_size=16, z_channels=8, autoencoder=NETWORK)


def randomized(module: nn.Module) -> nn.Module:
    """A module none of whose weights is zero."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module.eval().requires_grad_(False)


def test_networks_start_as_the_linear_transform_alone() -> None:
    torch.manual_seed(0)
    encoder, decoder = Encoder(NETWORK, 8), Decoder(NETWORK, 8)
    x = torch.rand(2, 3, 48, 32) * 2 - 1
    f = encoder(x)
    assert f.shape == (2, 8, 3, 2)
    assert torch.equal(f, encoder.linear(x))
    assert torch.equal(decoder(f), nn.functional.pixel_shuffle(decoder.linear(f), 16))


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_gradients_reach_every_weight_after_one_step(part: str) -> None:
    torch.manual_seed(0)
    module: nn.Module = Encoder(NETWORK, 8) if part == "encoder" else Decoder(NETWORK, 8)
    x = torch.rand(2, 3, 64, 64) if part == "encoder" else torch.rand(2, 8, 4, 4)
    target = torch.randn_like(module(x))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):  # the last layer moves first, then what is before it, then the blocks' first layers
        optimizer.zero_grad()
        (module(x) - target).square().mean().backward()
        optimizer.step()
    (module(x) - target).square().mean().backward()
    still = [
        name
        for name, parameter in module.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert not still


def test_the_decoder_sees_across_patch_borders() -> None:
    decoder = randomized(Decoder(NETWORK, 8))
    f = torch.zeros(1, 8, 3, 3)
    changed = f.clone()
    changed[:, :, 1, 1] = 1
    difference = (decoder(changed) - decoder(f)).abs().sum(1)[0]
    middle = difference[16:32, 16:32]
    assert middle.min() > 0
    assert difference[15, 16:32].min() > 0
    assert difference[16:32, 32].min() > 0


def test_any_multiple_of_16_is_taken() -> None:
    model = randomized(VQVAE(NET))
    assert isinstance(model, VQVAE)
    for height, width in ((16, 16), (16, 80), (48, 32)):
        latent: Tensor = model.encode(torch.zeros(1, 3, height, width))
        assert latent.shape == (1, 8, height // 16, width // 16)
        assert model.decode(latent).shape == (1, 3, height, width)


def test_a_file_without_metadata_tells_widths_and_depths(tmp_path: Path) -> None:
    found = read_checkpoint(bare(tmp_path / "a.safetensors", draw(NET)))
    assert found.config == NET


def test_configuration_survives_json() -> None:
    assert json.loads(NET.to_json())["widths"] == [8, 12, 16]
    assert TokenizerConfig.from_json(NET.to_json()) == NET


def test_the_preset_keeps_to_its_budget() -> None:
    model = VQVAE(read_settings("light").model).eval()
    assert sum(tensor.nbytes for tensor in model.state_dict().values()) < 18e6
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.decode(model.encode(torch.zeros(1, 3, 256, 256)))
    assert counter.get_total_flops() < 6e9
