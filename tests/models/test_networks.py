"""Layers, autoencoders, quantizer and the model that joins them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import DATA, SMALL, draw, shapes
from torch import Tensor, nn

from vartok.checkpoints import HITS
from vartok.config import LightConfig, TokenizerConfig, VarConfig
from vartok.models import light, quantizer, var
from vartok.models.cpu import PaddedLookup
from vartok.models.layers import AttnBlock, Downsample2x, ResnetBlock, Upsample2x, group_norm
from vartok.models.quantizer import MultiScaleQuantizer, Phi
from vartok.models.vqvae import VQVAE
from vartok.schedule import VAR_256, Schedule, phi_index, square

PUBLISHED = TokenizerConfig()


def noisy(config: TokenizerConfig, seed: int = 0) -> VQVAE:
    model = VQVAE(config)
    model.load_state_dict(draw(config, seed))
    return model.eval()


def quantizer_of(codes: Tensor, **values: Any) -> MultiScaleQuantizer:
    """A quantizer of this codebook, without phi unless told."""
    V, C = codes.shape
    values = {"quant_resi": 0.0, "patch_nums": square(1, 2, 4), **values}
    made = MultiScaleQuantizer(TokenizerConfig(vocab_size=V, z_channels=C, **values))
    made.embedding.weight.data = codes
    return made


def fill(layer: nn.Conv2d, weight: Callable[[Tensor], Tensor], bias: float = 0.0) -> None:
    """Set a convolution's weight by one of nn.init's functions, and its bias."""
    weight(layer.weight)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)


# The state dict.


def test_the_published_state_dict_has_vars_names_and_shapes() -> None:
    lines = (DATA / "published.txt").read_text().split("\n")
    want = {
        name: tuple(map(int, shape.split("x")))
        for name, _, shape in (line.partition(" ") for line in lines if line)
    }
    found = shapes(PUBLISHED)
    assert found == want
    assert len(found) == 324
    assert sum(math.prod(shape) for name, shape in found.items() if name != HITS) == 108_948_355
    assert found[HITS] == (10, 4096)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"share_quant_resi": 4}, [f"qresi_ls.{i}" for i in range(4)]),
        ({"share_quant_resi": 2}, [f"qresi_ls.{i}" for i in range(2)]),
        ({"share_quant_resi": 1}, ["qresi"]),
        ({"share_quant_resi": 0}, ["0", "1", "2"]),
        ({"quant_resi": 0.0}, []),
        ({"quant_resi": 0.0, "share_quant_resi": 0}, []),
    ],
)
def test_phis_have_vars_names(values: dict[str, Any], names: list[str]) -> None:
    found = shapes(dataclasses.replace(SMALL, **values))
    assert {name.partition("quant_resi.")[2] for name in found if "quant_resi" in name} == {
        f"{name}.{part}" for name in names for part in ("weight", "bias")
    }


def test_the_light_state_dict() -> None:
    found = shapes(TokenizerConfig(autoencoder=LightConfig()))
    assert {name: shape for name, shape in found.items() if not name.startswith("quantize.")} == {
        "encoder.linear.weight": (32, 3, 16, 16),
        "encoder.linear.bias": (32,),
        "quant_conv.weight": (32, 32, 3, 3),
        "quant_conv.bias": (32,),
        "post_quant_conv.weight": (32, 32, 3, 3),
        "post_quant_conv.bias": (32,),
        "decoder.linear.weight": (768, 32, 1, 1),
        "decoder.linear.bias": (768,),
    }


# Layers, each against its definition.


def test_group_norm_is_vars() -> None:
    norm = group_norm(64)
    assert (norm.num_groups, norm.eps) == (32, 1e-6)


def test_downsampling_pads_right_and_bottom() -> None:
    layer = Downsample2x(1)
    fill(layer.conv, nn.init.ones_)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    # sums of 3x3 windows that start at even rows and columns; beyond the right and the bottom are zeros
    assert layer(x).tolist() == [[[[45, 39], [66, 50]]]]


def test_upsampling_repeats_cells() -> None:
    layer = Upsample2x(1)
    fill(layer.conv, nn.init.dirac_)
    assert layer(torch.tensor([[[[1.0, 2.0]]]])).tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2]]]]


def test_attention_is_one_head_over_all_cells() -> None:
    torch.manual_seed(0)
    block = AttnBlock(32)
    x = torch.randn(2, 32, 3, 5)
    q, k, v = (
        block.qkv(F.group_norm(x, 32, block.norm.weight, block.norm.bias, 1e-6)).flatten(2).chunk(3, dim=1)
    )
    weights = torch.einsum("bci,bcj->bij", q, k).div(math.sqrt(32)).softmax(dim=2)
    attended = torch.einsum("bij,bcj->bci", weights, v).view(2, 32, 3, 5)
    torch.testing.assert_close(block(x), x + block.proj_out(attended))


@pytest.mark.parametrize("channels", [32, 64])
def test_resnet_block_adds_to_a_shortcut_and_leaves_its_input_alone(channels: int) -> None:
    torch.manual_seed(0)
    block = ResnetBlock(32, channels)
    fill(block.conv2, nn.init.zeros_)
    x = torch.randn(1, 32, 4, 4)
    before = x.clone()
    assert isinstance(block.nin_shortcut, nn.Identity if channels == 32 else nn.Conv2d)
    torch.testing.assert_close(block(x), block.nin_shortcut(x))
    assert torch.equal(x, before)


# Autoencoders.


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_var_halves_and_doubles_once_between_levels(levels: int) -> None:
    config = VarConfig(ch=32, ch_mult=(1, 2, 1)[:levels], num_res_blocks=1)
    step = 2 ** (levels - 1)
    z = var.Encoder(config, 8)(torch.zeros(1, 3, 4 * step, 8 * step))
    assert z.shape == (1, 8, 4, 8)
    assert var.Decoder(config, 8)(z).shape == (1, 3, 4 * step, 8 * step)


def test_light_transforms_each_patch_by_itself() -> None:
    encoder, decoder = light.Encoder(LightConfig(), 768), light.Decoder(LightConfig(), 768)
    for linear in (encoder.linear, decoder.linear):  # coefficient i: value i, by channel, row, column
        fill(linear, lambda weight: weight.data.copy_(torch.eye(768).view_as(weight)))
    x = torch.randn(2, 3, 32, 48)
    z = encoder(x)
    assert torch.equal(z[1, :, 1, 2], x[1, :, 16:32, 32:48].flatten())
    assert torch.equal(decoder(z), x)


# Nearest codes.


def brute_force(rows: Tensor, codes: Tensor, *, znorm: bool = False) -> Tensor:
    """Indices by definition, in float64."""
    if znorm:
        return (F.normalize(rows.double(), dim=1) @ F.normalize(codes.double(), dim=1).T).argmax(1)
    return torch.cdist(rows.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


def as_rows(z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


@pytest.mark.parametrize("znorm", [False, True])
def test_nearest_is_brute_force(znorm: bool) -> None:
    torch.manual_seed(0)
    codes, z = torch.randn(300, 8), torch.randn(2, 8, 7, 5)
    found = quantizer_of(codes, using_znorm=znorm).lookup()(z)
    assert found.shape == (2, 7, 5)
    assert found.dtype == torch.int64
    assert torch.equal(found.flatten(), brute_force(as_rows(z), codes, znorm=znorm))


def test_znorm_looks_at_directions_alone() -> None:
    codes = torch.tensor([[1.0, 0.0], [0.0, 100.0]])
    z = torch.tensor([1.0, 1.1]).view(1, 2, 1, 1)
    assert quantizer_of(codes, using_znorm=True).lookup()(z).item() == 1
    assert quantizer_of(codes).lookup()(z).item() == 0


whole = st.integers(-3, 3).map(float)  # of which float32 sums and products are exact, so that ties are ties


@given(
    st.lists(st.tuples(whole, whole), min_size=1, max_size=40),
    st.lists(st.tuples(whole, whole), min_size=1, max_size=9),
)
def test_of_equally_near_codes_the_first_is_taken(codes: Any, cells: Any) -> None:
    table, z = torch.tensor(codes), torch.tensor(cells).T.reshape(1, 2, 1, -1)
    distances = (torch.tensor(cells)[:, None] - table).square().sum(2)
    want = [row.index(min(row)) for row in distances.tolist()]
    assert quantizer_of(table).lookup()(z).flatten().tolist() == want


def test_duplicate_codes_yield_the_lowest_index_with_znorm_too() -> None:
    codes = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]] * 20)
    z = torch.tensor([[2.0, 0.0], [0.0, 3.0]]).T.reshape(1, 2, 1, 2)
    assert quantizer_of(codes, using_znorm=True).lookup()(z).flatten().tolist() == [1, 0]


@pytest.mark.parametrize("rows", [7, 64, 1000])
@pytest.mark.parametrize("znorm", [False, True])
def test_lookup_in_parts_is_lookup_at_once(monkeypatch: pytest.MonkeyPatch, rows: int, znorm: bool) -> None:
    torch.manual_seed(0)
    made = quantizer_of(torch.randn(500, 8), using_znorm=znorm)
    z = torch.randn(3, 8, 9, 9)
    whole_table = made.lookup()(z)
    monkeypatch.setattr(quantizer, "MAX_DISTANCES", 500 * rows)
    assert torch.equal(made.lookup()(z), whole_table)


def test_lookup_asks_no_default_device() -> None:
    torch.manual_seed(0)
    lookup, z = quantizer_of(torch.randn(4096, 8)).lookup(), torch.randn(1, 8, 16, 16)
    want = lookup(z)
    with torch.device("meta"):
        assert torch.equal(lookup(z), want)


@given(st.integers(1, 70), st.sampled_from([64, 50]), st.booleans(), st.integers(0, 1 << 20))
@settings(max_examples=30)
def test_what_a_cell_finds_does_not_depend_on_its_company(
    count: int, half: int, znorm: bool, seed: int
) -> None:
    # Codes in pairs that lie 1e-7 apart: rounding decides between them, and so must be the same.
    torch.manual_seed(seed)
    codes = torch.randn(half, 32).repeat(2, 1)
    codes[half:] += 1e-7 * torch.randn(half, 32)
    lookup = PaddedLookup(codes, znorm=znorm)
    z = torch.randn(1, 32, 1, count)
    alone = torch.cat([lookup(cell) for cell in z.split(1, dim=3)], dim=2)
    assert torch.equal(lookup(z), alone)


# The loop over scales.


def test_pooling_is_the_mean_of_each_cells_area() -> None:
    codes = torch.arange(64.0).view(-1, 1)
    latent = torch.arange(16.0).view(1, 1, 4, 4) * 2
    schedule = ((1, 1), (2, 4), (3, 3), (4, 4))
    # phi is the identity: what the first scale takes out of the residual is the mean, 15, everywhere
    scales = list(quantizer_of(codes).scale_steps(schedule, latent=latent))
    assert scales[0].indices.tolist() == [[[15]]]
    assert scales[0].f_hat.flatten().tolist() == [15.0] * 16
    # area pooling of 4 rows to 3: cells span rows 0-1, 1-2, 2-3, overlapping where they do not divide
    pooled = F.interpolate(latent, (3, 3), mode="area")[0, 0]
    assert pooled[:, 0].tolist() == [5.0, 13.0, 21.0]
    assert pooled[0, :].tolist() == [5.0, 7.0, 9.0]
    found = list(quantizer_of(codes).scale_steps(((3, 3), (4, 4)), latent=latent))
    assert found[0].indices[0].tolist() == pooled.int().tolist()


def test_upsampling_is_bicubic_without_aligned_corners() -> None:
    codes = torch.tensor([[0.0], [1.0]])
    maps = [torch.tensor([[[0, 1]]])]
    (scale,) = quantizer_of(codes).scale_steps(((1, 2), (1, 4)), maps=maps)
    # Cubic convolution with a = -0.75 of the cells 0 0 [0 1] 1 1, edges repeated, at -1/4, 1/4, 3/4 and 5/4.
    # Weights a quarter off a cell: -27/256, 225/256, 67/256, -9/256 of the cells -1, 0, 1, 2.
    want = [-27 / 256, 58 / 256, 198 / 256, 283 / 256]
    assert scale.f_hat.flatten().tolist() == pytest.approx(want, abs=1e-6)


def test_phi_mixes_what_it_takes_with_its_convolution() -> None:
    phi = Phi(1, -0.25)  # its share is the absolute value
    fill(phi, nn.init.dirac_, 4.0)
    assert phi(torch.full((1, 1, 1, 1), 8.0)).item() == 8.0 * 0.75 + (8.0 + 4.0) * 0.25


def test_each_scale_has_the_phi_that_serves_it_also_in_a_prefix() -> None:
    made = quantizer_of(torch.zeros(2, 1), quant_resi=1.0, share_quant_resi=4, patch_nums=VAR_256)
    for i, phi in enumerate(module for module in made.modules() if isinstance(module, Phi)):
        fill(phi, nn.init.zeros_, 10.0**i)  # with a share of 1, all that phi i gives
    maps = [torch.zeros(1, h, w, dtype=torch.int64) for h, w in VAR_256]
    served = [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    for prefix in (1, 5, 10):
        steps = [scale.f_hat.mean().item() for scale in made.scale_steps(VAR_256, maps=maps[:prefix])]
        assert len(steps) == prefix
        assert np.diff([0.0, *steps]).tolist() == [10.0**i for i in served[:prefix]]


CASES: list[tuple[dict[str, Any], Schedule]] = [
    ({}, square(1, 2, 4)),
    ({"share_quant_resi": 1, "using_znorm": True}, square(1, 2, 3, 5)),
    ({"share_quant_resi": 0}, ((1, 1), (3, 2), (5, 7))),
    ({"quant_resi": 0.0}, square(4)),
    ({"quant_resi": -0.3, "share_quant_resi": 2}, square(2, 2, 1, 4)),
]


@pytest.mark.parametrize(("values", "schedule"), CASES)
def test_replaying_the_maps_gives_what_encoding_added_up(values: dict[str, Any], schedule: Schedule) -> None:
    model = noisy(dataclasses.replace(SMALL, **values)).quantize
    torch.manual_seed(1)
    latent = torch.randn(2, 8, *schedule[-1])
    with torch.no_grad():
        encoded = list(model.scale_steps(schedule, latent=latent))
        maps = [scale.indices for scale in encoded]
        assert [tuple(indices.shape) for indices in maps] == [(2, h, w) for h, w in schedule]
        for prefix in range(1, len(schedule) + 1):
            replayed = list(model.scale_steps(schedule, maps=maps[:prefix]))
            assert len(replayed) == prefix
            for ours, theirs in zip(replayed, encoded, strict=False):
                assert torch.equal(ours.f_hat, theirs.f_hat)
                assert torch.equal(ours.indices, theirs.indices)


def test_the_residual_is_rounded_as_vars_is() -> None:
    unit = 2.0**-23  # what float32 resolves next to 1
    codes = torch.tensor([[1.0], [0.75 * unit], [0.25 * unit], [0.0]])
    latent = torch.full((1, 1, 1, 1), 1 + unit)
    scales = list(quantizer_of(codes).scale_steps(square(1, 1, 1), latent=latent))
    # f_hat rounds to the latent itself after two scales, but the residual still holds a quarter unit
    assert scales[1].f_hat.item() == latent.item()
    assert [scale.indices.item() for scale in scales] == [0, 1, 2]


def test_f_hats_already_given_do_not_change() -> None:
    model = noisy(SMALL).quantize
    with torch.no_grad():
        loop = model.scale_steps(square(1, 2, 4), latent=torch.randn(1, 8, 4, 4))
        first = next(loop).f_hat
        before = first.clone()
        list(loop)
    assert torch.equal(first, before)


def test_every_scale_brings_f_hat_closer_where_phi_is_the_identity() -> None:
    torch.manual_seed(0)
    codes = torch.cat([torch.zeros(1, 4), torch.randn(2000, 4)])  # zero: doing nothing is a choice
    latent = torch.randn(1, 4, 4, 4)
    schedule = square(4, 4, 4, 4)
    errors = [
        (latent - scale.f_hat).square().sum().item()
        for scale in quantizer_of(codes).scale_steps(schedule, latent=latent)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 2


def test_gradients_flow_through_f_hat_to_codebook_and_phis() -> None:
    model = noisy(SMALL)
    latent = model.encode(torch.rand(1, 3, 8, 8) * 2 - 1)
    *_, last = model.quantize.scale_steps(square(1, 2, 4), latent=latent)
    model.decode(last.f_hat).square().mean().backward()
    scales = model.quantize.scale_steps(square(1, 2, 4), latent=latent)
    used = torch.cat([scale.indices.flatten() for scale in scales]).unique()
    grad = model.quantize.embedding.weight.grad
    assert grad is not None
    assert torch.equal(grad.abs().sum(1).nonzero().flatten(), used)
    phis = list(model.quantize.quant_resi.parameters())
    served = [phi_index(k, 3, 4) for k in range(3)]
    assert len(set(served)) == 3
    for i, phi in enumerate(phis[::2]):
        assert (phi.grad is not None and bool(phi.grad.abs().sum() > 0)) == (i in served)
    assert all(p.grad is None for p in model.encoder.parameters())  # what is looked up has no gradient


# The whole model.


def test_latent_and_picture_convert_into_the_autoencoders_dtype_and_back() -> None:
    model = noisy(SMALL)
    for part in (model.encoder, model.quant_conv, model.post_quant_conv, model.decoder):
        part.to(torch.bfloat16)
    with torch.no_grad():
        latent = model.encode(torch.rand(1, 3, 8, 8, dtype=torch.float64))
        picture = model.decode(100 * latent)
    assert latent.dtype == picture.dtype == torch.float32
    assert model.quantize.embedding.weight.dtype == torch.float32
    assert picture.abs().max() == 1.0  # clamped


@pytest.mark.parametrize("part", ["encode", "decode"])
@settings(max_examples=5)
@given(seed=st.integers(0, 99))
def test_pictures_of_a_batch_do_not_mix(part: str, seed: int) -> None:
    model = noisy(SMALL)
    size = (2, 3, 8, 8) if part == "encode" else (2, 8, 4, 4)
    batch = torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, size).astype(np.float32))
    run: Callable[[Tensor], Tensor] = getattr(model, part)
    with torch.no_grad():
        torch.testing.assert_close(run(batch)[1:], run(batch[1:]), rtol=0, atol=1e-4)
