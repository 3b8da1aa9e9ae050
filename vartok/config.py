"""The configuration of a tokenizer, which a checkpoint carries as JSON under VAR's argument names.

`AUTOENCODERS` lists the autoencoders. Each has a dataclass here for its own arguments, and a module of
networks in `vartok.models`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

from vartok import schedule as schedules
from vartok.errors import ConfigError, ScheduleError, quoted
from vartok.metadata import MAX_IMAGE_CHANNELS
from vartok.schedule import VAR_256, Schedule

MAX_CHANNELS = 1 << 14
"""Largest number of channels of a layer."""

MAX_BLOCKS = 64
"""Largest number of residual blocks of a level."""

MAX_LEVELS = 8
"""Largest number of resolutions of an autoencoder."""


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{name} must be a whole number from {low} to {high}, not {quoted(value)}")


def _checked_ints(name: str, values: object, high: int) -> tuple[int, ...]:
    """Return a list of at most `MAX_LEVELS` whole numbers from 1 to `high` as a tuple."""
    if not isinstance(values, (list, tuple)) or len(values) > MAX_LEVELS:
        raise ConfigError(f"{name} must be a list of up to {MAX_LEVELS} whole numbers, not {quoted(values)}")
    for value in values:
        _check_int(name, value, 1, high)
    return tuple(values)


@dataclass(frozen=True, kw_only=True)
class VarConfig:
    """Arguments of VAR's convolutional autoencoder; the defaults are the published checkpoint's.

    Attributes:
        ch: base number of channels.
        ch_mult: multiple of `ch` at each level; every level after the first halves the resolution.
        num_res_blocks: residual blocks of each level of the encoder, 1 to 64; the decoder has one more.

    Raises:
        ConfigError: a value has the wrong type or is out of its range, or the channels of a level are not a
            multiple of 32.
    """

    name: ClassVar[str] = "var"

    ch: int = 160
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2

    def __post_init__(self) -> None:
        """Check every value."""
        _check_int("ch", self.ch, 1, MAX_CHANNELS)
        object.__setattr__(self, "ch_mult", _checked_ints("ch_mult", self.ch_mult, MAX_CHANNELS))
        _check_int("num_res_blocks", self.num_res_blocks, 1, MAX_BLOCKS)
        if not self.ch_mult:
            raise ConfigError("ch_mult is empty; it must have one number for each level")
        if any((self.ch * multiple) % 32 for multiple in self.ch_mult):
            raise ConfigError(
                f"ch = {self.ch}: the channels of every level, ch times its ch_mult, must be a multiple of 32"
            )

    @property
    def downsample(self) -> int:
        """Side of a latent cell, in pixels."""
        return int(2 ** (len(self.ch_mult) - 1))


@dataclass(frozen=True, kw_only=True)
class LightConfig:
    """Arguments of the `light` autoencoder: a linear transform of patches, plus a residual network.

    Attributes:
        widths: channels of the network at 1/4, 1/8 and 1/16 of the resolution; if empty, there is no network.
        depths: residual blocks of the encoder at each of these resolutions, 1 to 64; the decoder has one
            more at each. Empty if `widths` is.

    Raises:
        ConfigError: a value has the wrong type or is out of its range, or `widths` and `depths` do not both
            have three numbers, or none.
    """

    name: ClassVar[str] = "light"
    patch: ClassVar[int] = 16
    """Side of the patches, in pixels."""

    widths: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check every value."""
        object.__setattr__(self, "widths", _checked_ints("widths", self.widths, MAX_CHANNELS))
        object.__setattr__(self, "depths", _checked_ints("depths", self.depths, MAX_BLOCKS))
        if len(self.widths) != len(self.depths) or len(self.widths) not in (0, 3):
            raise ConfigError(
                "widths and depths must be three numbers each, for 1/4, 1/8 and 1/16 of the resolution, "
                "or both empty"
            )

    @property
    def downsample(self) -> int:
        """Side of a latent cell, in pixels."""
        return self.patch


AutoencoderConfig: TypeAlias = VarConfig | LightConfig

AUTOENCODERS: dict[str, type[AutoencoderConfig]] = {kind.name: kind for kind in (VarConfig, LightConfig)}
"""The dataclass of each autoencoder, by its name in the JSON."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Arguments of a tokenizer's model: quantizer, schedule and autoencoder, under VAR's argument names.

    The defaults are those of VAR's published checkpoint.

    Attributes:
        vocab_size: V, the number of codes in the codebook.
        z_channels: C, the number of channels of the latent and of a code.
        in_channels: number of channels of an image, 1 to 256: 3 for RGB, 1 for grey levels. VAR's name; the
            decoder's output has as many.
        using_znorm: look codes up by cosine similarity instead of Euclidean distance.
        quant_resi: r in phi(h) = (1 - r) h + r conv(h). With 0, phi is the identity and has no tensors.
        share_quant_resi: number of phis that all scales share. With 0, every scale has a phi of its own.
        patch_nums: the schedule that the checkpoint was trained with; its last grid is that of the latent.
        last_phi: whether the last scale goes through its phi, as in VAR. The generation code of HART and
            VARSR leaves it out there. Tokens are the same either way; f_hat is not.
        autoencoder: arguments of the encoder and the decoder; the type selects the autoencoder.

    Raises:
        ConfigError: a value has the wrong type or is out of its range.
    """

    vocab_size: int = 4096
    z_channels: int = 32
    in_channels: int = 3
    using_znorm: bool = False
    quant_resi: float = 0.5
    share_quant_resi: int = 4
    patch_nums: Schedule = VAR_256
    last_phi: bool = True
    autoencoder: AutoencoderConfig = VarConfig()

    def __post_init__(self) -> None:
        """Check every value."""
        _check_int("vocab_size", self.vocab_size, 1, 1 << 24)
        _check_int("z_channels", self.z_channels, 1, MAX_CHANNELS)
        _check_int("in_channels", self.in_channels, 1, MAX_IMAGE_CHANNELS)
        _check_int("share_quant_resi", self.share_quant_resi, 0, schedules.MAX_SCALES)
        for name in ("using_znorm", "last_phi"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, not {quoted(getattr(self, name))}")
        if type(self.quant_resi) not in (int, float) or not abs(self.quant_resi) <= 1e3:
            value = quoted(self.quant_resi)
            raise ConfigError(f"quant_resi must be a number from -1000 to 1000, not {value}")
        try:
            object.__setattr__(self, "patch_nums", schedules.as_schedule(self.patch_nums))
        except ScheduleError as error:
            raise ConfigError(f"patch_nums: {error}") from None
        if not isinstance(self.autoencoder, VarConfig | LightConfig):
            value = quoted(self.autoencoder)
            raise ConfigError(f"autoencoder must be a VarConfig or a LightConfig, not {value}")

    @property
    def downsample(self) -> int:
        """Side of a latent cell, in pixels."""
        return self.autoencoder.downsample

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that `patch_nums` is made for, in pixels."""
        height, width = self.patch_nums[-1]
        return height * self.downsample, width * self.downsample

    @property
    def phi_count(self) -> int:
        """Number of phis of the quantizer; 0 if phi is the identity."""
        if abs(self.quant_resi) <= 1e-6:  # VAR's threshold
            return 0
        return self.share_quant_resi or len(self.patch_nums)

    def to_json(self) -> str:
        """Return the configuration as one flat JSON object with VAR's argument names.

        The key "autoencoder" holds the autoencoder's name; its arguments are further keys. "in_channels" and
        "last_phi" are left out where they have their defaults, which older versions of vartok know alone.
        """
        values: dict[str, Any] = {name: getattr(self, name) for name in SHARED_KEYS}
        for name in ("in_channels", "last_phi"):
            if values[name] == getattr(TokenizerConfig, name):
                del values[name]
        values["patch_nums"] = schedules.to_json(self.patch_nums)
        values["autoencoder"] = self.autoencoder.name
        return json.dumps(values | dataclasses.asdict(self.autoencoder))

    @classmethod
    def from_json(cls, text: str, overrides: Mapping[str, Any] = MappingProxyType({})) -> TokenizerConfig:
        """Parse the JSON that `to_json` writes. A missing key gets its field's default.

        Args:
            text: a JSON object.
            overrides: values that replace those of the text, by their keys in the JSON.

        Raises:
            ConfigError: the text is not a JSON object, a key is unknown, or a value has the wrong type or is
                out of its range.
        """
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the configuration is not JSON: {error}") from None
        if not isinstance(parsed, dict):
            raise ConfigError("the configuration is not a JSON object")
        values = {**parsed, **overrides}
        name = values.pop("autoencoder", VarConfig.name)
        if not isinstance(name, str) or name not in AUTOENCODERS:
            known = " or ".join(f'"{known}"' for known in AUTOENCODERS)
            raise ConfigError(f"autoencoder must be {known}, not {quoted(name)}")
        kind = AUTOENCODERS[name]
        shared = {key: values.pop(key) for key in SHARED_KEYS if key in values}
        known_keys = [field.name for field in dataclasses.fields(kind)]
        unknown = values.keys() - set(known_keys)
        if unknown:
            raise ConfigError(
                f"the configuration has an unknown key, {quoted(min(unknown))}",
                hint=f'the keys of "{name}" are {", ".join((*SHARED_KEYS, "autoencoder", *known_keys))}',
            )
        return cls(**shared, autoencoder=kind(**values))


SHARED_KEYS = tuple(
    field.name for field in dataclasses.fields(TokenizerConfig) if field.name != "autoencoder"
)
"""Keys of the JSON that do not depend on the autoencoder."""
