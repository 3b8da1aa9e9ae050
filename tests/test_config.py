"""The configuration of a tokenizer: its JSON, derived sizes, and what is refused."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vartok.config import LightConfig, TokenizerConfig, VarConfig
from vartok.errors import ConfigError
from vartok.schedule import VAR_256, square

PUBLISHED = {
    "vocab_size": 4096,
    "z_channels": 32,
    "using_znorm": False,
    "quant_resi": 0.5,
    "share_quant_resi": 4,
    "patch_nums": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
    "autoencoder": "var",
    "ch": 160,
    "ch_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
}


def test_the_defaults_are_the_published_checkpoint() -> None:
    assert json.loads(TokenizerConfig().to_json()) == PUBLISHED
    assert TokenizerConfig.from_json("{}") == TokenizerConfig()


def test_json_holds_the_arguments_of_its_own_autoencoder_alone() -> None:
    keys = json.loads(TokenizerConfig(autoencoder=LightConfig()).to_json()).keys()
    assert keys == (PUBLISHED.keys() - {"ch", "ch_mult", "num_res_blocks"}) | {"widths", "depths"}


def test_lists_become_tuples_so_that_configurations_compare_and_hash() -> None:
    values: dict[str, Any] = {"ch_mult": [1, 2]}
    schedule: Any = [1, [2, 3]]
    config = TokenizerConfig(autoencoder=VarConfig(**values), patch_nums=schedule)
    assert config == TokenizerConfig(autoencoder=VarConfig(ch_mult=(1, 2)), patch_nums=((1, 1), (2, 3)))
    assert hash(config) == hash(dataclasses.replace(config))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.vocab_size = 32  # type: ignore[misc]


def test_derived_sizes() -> None:
    assert TokenizerConfig().downsample == 16
    assert TokenizerConfig(autoencoder=VarConfig(ch_mult=(1,))).downsample == 1
    assert TokenizerConfig(autoencoder=LightConfig()).downsample == 16
    assert TokenizerConfig().image_size == (256, 256)
    assert TokenizerConfig(patch_nums=((1, 1), (16, 24))).image_size == (256, 384)


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ({}, 4),
        ({"share_quant_resi": 1}, 1),
        ({"share_quant_resi": 0}, 10),
        ({"share_quant_resi": 0, "patch_nums": square(1, 2)}, 2),
        ({"quant_resi": 0}, 0),
        ({"quant_resi": -1e-6}, 0),  # VAR's threshold
        ({"quant_resi": -1e-5}, 4),
    ],
)
def test_phi_count(values: dict[str, Any], count: int) -> None:
    assert TokenizerConfig(**values).phi_count == count


@given(
    st.builds(
        TokenizerConfig,
        vocab_size=st.integers(1, 1 << 24),
        z_channels=st.integers(1, 1 << 14),
        using_znorm=st.booleans(),
        last_phi=st.booleans(),
        quant_resi=st.floats(-1000, 1000),
        share_quant_resi=st.integers(0, 64),
        patch_nums=st.sampled_from([VAR_256, ((1, 1), (2, 3)), ((7, 5),)]),
        autoencoder=st.one_of(
            st.builds(
                VarConfig,
                ch=st.integers(1, 100).map(lambda n: n * 32),
                ch_mult=st.lists(st.integers(1, 9), min_size=1, max_size=8),
                num_res_blocks=st.integers(1, 64),
            ),
            st.builds(
                LightConfig,
                widths=st.lists(st.integers(1, 999), min_size=3, max_size=3),
                depths=st.lists(st.integers(1, 64), min_size=3, max_size=3),
            ),
        ),
    )
)
def test_json_round_trip(config: TokenizerConfig) -> None:
    assert TokenizerConfig.from_json(config.to_json()) == config


def test_the_shipped_configuration_is_written_as_it_is_read() -> None:
    text = (
        '{"vocab_size": 4096, "z_channels": 32, "using_znorm": false, "quant_resi": 0.5, '
        '"share_quant_resi": 4, "patch_nums": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], "autoencoder": "light", '
        '"widths": [64, 128, 192], "depths": [1, 1, 1]}'
    )
    assert TokenizerConfig.from_json(text).to_json() == text


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": 1 << 25}, "vocab_size"),
        ({"vocab_size": 4096.0}, "vocab_size"),
        ({"z_channels": "32"}, "z_channels"),
        ({"z_channels": True}, "z_channels"),
        ({"using_znorm": 1}, "using_znorm"),
        ({"last_phi": None}, "last_phi"),
        ({"quant_resi": "0.5"}, "quant_resi"),
        ({"quant_resi": float("nan")}, "quant_resi"),
        ({"quant_resi": float("inf")}, "quant_resi"),
        ({"quant_resi": True}, "quant_resi"),
        ({"share_quant_resi": -1}, "share_quant_resi"),
        ({"patch_nums": []}, "patch_nums"),
        ({"patch_nums": [16, 8]}, "patch_nums"),
        ({"patch_nums": None}, "patch_nums"),
        ({"autoencoder": "VAR"}, "autoencoder"),
        ({"autoencoder": None}, "autoencoder"),
        ({"ch": 100}, "multiple of 32"),
        ({"ch": 16, "ch_mult": [2, 1]}, "multiple of 32"),
        ({"ch_mult": []}, "ch_mult"),
        ({"ch_mult": [1] * 9}, "ch_mult"),
        ({"ch_mult": [0]}, "ch_mult"),
        ({"ch_mult": 4}, "ch_mult"),
        ({"num_res_blocks": 0}, "num_res_blocks"),
        ({"num_res_blocks": 65}, "num_res_blocks must be a whole number from 1 to 64"),
        (
            {"autoencoder": "light", "widths": [64] * 3, "depths": [1, 1, 65]},
            "depths must be a whole .* to 64",
        ),
        ({"autoencoder": "light", "ch": 160}, "unknown key, 'ch'"),
        ({"widths": [64] * 3}, "unknown key, 'widths'"),
        ({"autoencoder": "light", "widths": [64], "depths": [2]}, "three numbers each"),
        ({"autoencoder": "light", "widths": [64, 64, 64]}, "three numbers each"),
        ({"autoencoder": "light", "widths": [64, 64, 64], "depths": [1, 0, 1]}, "depths"),
        ({"dropout": 0.0}, "unknown key, 'dropout'"),
    ],
)
def test_impossible_values_are_refused_in_one_line(values: dict[str, Any], names: str) -> None:
    for text, overrides in ((json.dumps(values), {}), ("{}", values)):
        with pytest.raises(ConfigError, match=names) as error:
            TokenizerConfig.from_json(text, overrides)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "1", "null", '"{}"', "[" * 100_000, "{}{}"])
def test_other_than_a_json_object_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not"):
        TokenizerConfig.from_json(text)


def test_overrides_replace_values_of_the_text() -> None:
    config = TokenizerConfig.from_json('{"ch": 64, "using_znorm": false}', {"using_znorm": True})
    assert config == TokenizerConfig(autoencoder=VarConfig(ch=64), using_znorm=True)
    assert TokenizerConfig.from_json(
        '{"patch_nums": "damaged"}', {"patch_nums": [1, 2]}
    ).patch_nums == square(1, 2)


def test_an_unknown_key_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        TokenizerConfig.from_json('{"autoencoder": "light", "ch": 160}')
    assert error.value.hint is not None
    assert error.value.hint.startswith('the keys of "light" are vocab_size, ')
    assert error.value.hint.endswith("autoencoder, widths, depths")


def test_an_autoencoder_by_its_name_alone_is_refused() -> None:
    name: Any = "light"
    with pytest.raises(ConfigError, match="a VarConfig or a LightConfig, not 'light'"):
        TokenizerConfig(autoencoder=name)
