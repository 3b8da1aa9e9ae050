"""The configuration of a tokenizer, as checkpoints carry it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from vartok import schedule as schedules
from vartok.errors import ConfigError, ScheduleError, quoted
from vartok.schedule import VAR_256, Schedule

LIGHT_PATCH = 16
"""Side of the patches that the `light` autoencoder transforms, in pixels."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What a checkpoint's tensors are shaped by, under VAR's own argument names.

    Attributes:
        vocab_size: V, codes in the codebook.
        z_channels: C, channels of the latent and of a code.
        using_znorm: look codes up by cosine instead of Euclidean distance.
        quant_resi: r in phi(h) = (1 - r) h + r conv(h); 0: phi is the identity and has no tensors.
        share_quant_resi: how many phis the scales share; 0: one for each scale.
        patch_nums: the checkpoint's own schedule, the last grid that of its latent.
        autoencoder: "var", VAR's convolutional one, or "light", a linear transform of 16x16 patches
            and a small network that adds to it.
        ch: channels of the first level (var).
        ch_mult: multiple of `ch` at each level; each further level halves the resolution (var).
        num_res_blocks: residual blocks a level in the encoder; the decoder has one more (var).
        widths: channels of the network at 1/4, 1/8, 1/16 of the picture; empty: linear alone (light).
        depths: its residual blocks there in the encoder; the decoder has one more at each (light).

    Raises:
        ConfigError: a value that no model can have.
    """

    vocab_size: int = 4096
    z_channels: int = 32
    using_znorm: bool = False
    quant_resi: float = 0.5
    share_quant_resi: int = 4
    patch_nums: Schedule = VAR_256
    autoencoder: str = "var"
    ch: int = 160
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    widths: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check every value."""
        _check("vocab_size", self.vocab_size, 1, 1 << 24)
        _check("z_channels", self.z_channels, 1, 1 << 14)
        _check("share_quant_resi", self.share_quant_resi, 0, schedules.MAX_SCALES)
        _check("ch", self.ch, 1, 1 << 14)
        _check("num_res_blocks", self.num_res_blocks, 1, 16)
        if not isinstance(self.using_znorm, bool):
            raise ConfigError(f"using_znorm is true or false, not {quoted(self.using_znorm)}")
        if type(self.quant_resi) not in (int, float) or not abs(self.quant_resi) <= 1e3:
            raise ConfigError(f"quant_resi is a number, not {quoted(self.quant_resi)}")
        for name in ("ch_mult", "widths", "depths"):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or len(values) > 8:
                raise ConfigError(f"{name} is a list of at most 8 whole numbers, not {quoted(values)}")
            for value in values:
                _check(name, value, 1, 1 << 14)
            object.__setattr__(self, name, tuple(values))
        try:
            object.__setattr__(self, "patch_nums", schedules.check_schedule(self.patch_nums))
        except ScheduleError as error:
            raise ConfigError(f"patch_nums: {error}") from None
        if self.autoencoder == "var":
            if not self.ch_mult:
                raise ConfigError("ch_mult is empty")
            if any((self.ch * multiple) % 32 for multiple in self.ch_mult):
                raise ConfigError(f"ch = {self.ch}: every level's channels must be a multiple of 32")
        elif self.autoencoder != "light":
            raise ConfigError(f'autoencoder is "var" or "light", not {quoted(self.autoencoder)}')
        elif len(self.widths) != len(self.depths) or len(self.widths) not in (0, 3):
            raise ConfigError("widths and depths are three numbers each, at 1/4, 1/8, 1/16, or none")

    @property
    def downsample(self) -> int:
        """Pixels a side of one latent cell."""
        return LIGHT_PATCH if self.autoencoder == "light" else 2 ** (len(self.ch_mult) - 1)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the picture that `patch_nums` is for, in pixels."""
        height, width = self.patch_nums[-1]
        return height * self.downsample, width * self.downsample

    @property
    def phi_count(self) -> int:
        """How many phis the quantizer has; 0 where phi is the identity."""
        if abs(self.quant_resi) <= 1e-6:
            return 0
        return self.share_quant_resi or len(self.patch_nums)

    def to_json(self) -> str:
        """The configuration as a JSON object, without what its autoencoder does not use."""
        unused = ("ch", "ch_mult", "num_res_blocks") if self.autoencoder == "light" else ("widths", "depths")
        values = {key: value for key, value in dataclasses.asdict(self).items() if key not in unused}
        values["patch_nums"] = schedules.to_json(self.patch_nums)
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str, overrides: Mapping[str, Any] = MappingProxyType({})) -> TokenizerConfig:
        """Read what `to_json` wrote; keys left out take the published VAR checkpoint's values.

        Args:
            text: a JSON object.
            overrides: values that replace its own.

        Raises:
            ConfigError: not a JSON object, an unknown key, or a value that no model can have.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the configuration is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError("the configuration is not a JSON object")
        values = {**values, **overrides}
        unknown = values.keys() - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ConfigError(f"the configuration has an unknown key, {quoted(min(unknown))}")
        return cls(**values)


def _check(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{name} is a whole number from {low} to {high}, not {quoted(value)}")
