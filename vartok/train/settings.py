"""What a training run is described by: one small TOML file, a table for each part."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vartok.checkpoints import Checkpoint, read_checkpoint
from vartok.config import TokenizerConfig
from vartok.errors import CheckpointError, ConfigError, one_line, quoted

PRESETS = ("light", "var-small", "var")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How pictures become batches. Crops have the size that the model's schedule is for.

    Attributes:
        batch_size: crops a step, over all processes.
        zoom: pictures are scaled to cover up to this times the crop, at random, before it is cut out.
        grey: share of crops that are made grey.
        jitter: brightness and contrast change by up to this, at random.
        hold_out: one in so many pictures is kept for validation, chosen by its name.
        validation_pictures: at most so many of them are used.
    """

    batch_size: int = 16
    zoom: float = 1.125
    grey: float = 0.05
    jitter: float = 0.1
    hold_out: int = 64
    validation_pictures: int = 64


@dataclass(frozen=True, kw_only=True)
class StartSettings:
    """Where training starts from.

    Attributes:
        weights: a checkpoint that training goes on from, of the same [model]. Latents are then held to those
            of its encoder wherever the linear transform's are spoken of, and nothing is computed from the
            pictures. Empty: training starts anew.
        pictures: crops that the principal components and the codebook are computed from.
        rounds: of k-means, each over the residuals that the codebook of the round before leaves;
            0: VAR's own start instead, a uniform random codebook and phis that are random convolutions.
    """

    weights: str = ""
    pictures: int = 2048
    rounds: int = 3


@dataclass(frozen=True, kw_only=True)
class QuantizerSettings:
    """How the codebook follows the latents, and stays in use.

    Attributes:
        codebook: "average": every code is the moving average of what it was picked for; "gradient": it is
            trained by its loss, as in VAR.
        token_weight: in that average and in the use of a code, scales weigh as their tokens to the power of
            this: 0: each the same; 1: each token, for a little more PSNR and less use by coarse ones.
        decay: of that average, and of the counts of use, a step.
        restart: codes with less than this share of their even part of the use start anew, at residuals
            of the scales that use the codebook least; 0: never.
    """

    codebook: str = "average"
    token_weight: float = 0.0
    decay: float = 0.99
    restart: float = 0.3


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Weights of the losses; pictures are in [-1, 1].

    Attributes:
        mse: mean squared error.
        log_mse: mean over pictures of the logarithm of their mean squared error: PSNR itself.
        l1: mean absolute error.
        gradient: mean absolute error of the differences between neighbouring pixels.
        border: square of how much more than in the originals the borders of a latent's cells show: the mean
            step across them by the mean step inside cells, over a batch.
        commitment: how far latents are from what they are quantized to, mean square, mean over scales, as
            in VAR. Coarse scales, which know no details, draw them to zero, and finer ones use fewer codes.
        last_commitment: the same of the last scale alone, which hardly does.
        anchor: how far latents are from the linear transform's, mean square.
        lpips: perceptual distance (AlexNet); it needs weights that are not ours, so 0 unless wanted.
        adversarial: a patch discriminator's opinion, relative to the gradient of the others.
        adversarial_start: step at which the discriminator's opinion begins to count.
    """

    mse: float = 0.0
    log_mse: float = 0.0
    l1: float = 0.0
    gradient: float = 0.0
    border: float = 0.0
    commitment: float = 0.25
    last_commitment: float = 0.0
    anchor: float = 0.0
    lpips: float = 0.0
    adversarial: float = 0.0
    adversarial_start: int = 0


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How weights follow gradients: AdamW, a rate that rises, stays, and falls to zero at the end.

    Attributes:
        rate: of the decoder and the phis.
        encoder_rate: of the encoder, and of a codebook that is trained by gradient.
        weight_decay: decoupled, of all weights.
        warmup: steps in which the rate rises.
        cooldown: share of the run, at its end, in which the rate falls.
        taught: steps in which the quantizer is given the linear transform's latents; the encoder meanwhile
            learns to give them itself (anchor), and the decoder what to do with quantized ones. A shorter run
            is taught to its end.
        clip: the gradient's largest norm.
        average: decay, a step, of the average of the weights that is validated and exported.
    """

    rate: float = 1e-3
    encoder_rate: float = 3e-4
    weight_decay: float = 0.0
    warmup: int = 100
    cooldown: float = 0.3
    taught: int = 0
    clip: float = 1.0
    average: float = 0.999


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How long a run is, and how it goes.

    Attributes:
        steps: of training.
        minutes: of time; the run ends with whichever comes first. None: no limit.
        validate_every: steps from one validation and saved state to the next.
        precision: of the networks: "bf16", "float32", or "auto": bf16 where the processor is built for it.
        seed: of everything that is random.
    """

    steps: int = 100_000
    minutes: float | None = None
    validate_every: int = 500
    precision: str = "auto"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """A run.

    Attributes:
        name: of the checkpoint that it exports.
        license: likewise, of its weights; None: it says none.
        model: what is trained.
        data: see there, as the rest.
        start: likewise.
        quantizer: likewise.
        loss: likewise.
        optimizer: likewise.
        run: likewise.
    """

    name: str = "tokenizer"
    license: str | None = None
    model: TokenizerConfig
    data: DataSettings = field(default_factory=DataSettings)
    start: StartSettings = field(default_factory=StartSettings)
    quantizer: QuantizerSettings = field(default_factory=QuantizerSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        """Check what no run can have."""
        loss, data, rates, run = self.loss, self.data, self.optimizer, self.run
        if not (loss.mse or loss.log_mse or loss.l1 or loss.gradient):
            raise ConfigError("[loss] has no reconstruction loss: give mse, log_mse, l1 or gradient a weight")
        if self.quantizer.codebook not in ("average", "gradient"):
            raise ConfigError(
                f'[quantizer] codebook is "average" or "gradient", not {quoted(self.quantizer.codebook)}'
            )
        if run.precision not in ("auto", "bf16", "float32"):
            raise ConfigError(f'[run] precision is "auto", "bf16" or "float32", not {quoted(run.precision)}')
        for name, value, low, high in (
            ("[data] batch_size", data.batch_size, 1, 1 << 20),
            ("[data] zoom", data.zoom, 1, 8),
            ("[data] grey", data.grey, 0, 1),
            ("[data] jitter", data.jitter, 0, 0.9),
            ("[data] hold_out", data.hold_out, 2, 1 << 30),
            ("[data] validation_pictures", data.validation_pictures, 1, 1 << 16),
            ("[start] pictures", self.start.pictures, 1, 1 << 20),
            ("[start] rounds", self.start.rounds, 0, 100),
            ("[quantizer] token_weight", self.quantizer.token_weight, 0, 1),
            ("[quantizer] decay", self.quantizer.decay, 0, 1),
            ("[quantizer] restart", self.quantizer.restart, 0, 1),
            ("[optimizer] cooldown", self.optimizer.cooldown, 0, 1),
            ("[optimizer] average", self.optimizer.average, 0, 1),
            ("[run] steps", run.steps, 1, 1 << 40),
            ("[run] minutes", 1 if run.minutes is None else run.minutes, 1e-3, 1 << 30),
            ("[run] seed", run.seed, 0, 1 << 31),
            *((f"[loss] {name}", value, 0, 1e9) for name, value in dataclasses.asdict(loss).items()),
            ("[optimizer] rate", rates.rate, 0, 1e9),
            ("[optimizer] encoder_rate", rates.encoder_rate, 0, 1e9),
            ("[optimizer] weight_decay", rates.weight_decay, 0, 1e3),
            ("[optimizer] warmup", rates.warmup, 0, 1 << 40),
            ("[optimizer] taught", rates.taught, 0, 1 << 40),
            ("[optimizer] clip", rates.clip, 1e-9, 1e9),
            ("[run] validate_every", run.validate_every, 1, 1 << 40),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{name} is from {low:,} to {high:,}, not {value!r}")
        if rates.taught and not loss.anchor and self.model.autoencoder == "var":
            raise ConfigError("[optimizer] taught: without [loss] anchor nothing teaches the encoder")
        height, width = self.model.image_size
        if self.model.z_channels > 3 * self.model.downsample**2:
            raise ConfigError("[model] z_channels: more than a patch has values")
        if self.start.rounds and self.start.pictures * height * width // self.model.downsample**2 < 2:
            raise ConfigError("[start] pictures: too few")

    def to_toml(self) -> str:
        """The settings as `from_toml` reads them."""
        values = dataclasses.asdict(self)
        values["model"] = json.loads(self.model.to_json())
        tables = {key: value for key, value in values.items() if isinstance(value, dict)}
        lines = [_toml(key, value) for key, value in values.items() if key not in tables]
        for name, table in tables.items():
            lines += ["", f"[{name}]", *(_toml(key, value) for key, value in table.items())]
        return "\n".join(line for line in lines if line is not None) + "\n"

    @classmethod
    def from_toml(cls, text: str, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> TrainSettings:
        """Read settings; what is left out has its default.

        Args:
            text: TOML.
            overrides: by table and key, values that replace the text's.

        Raises:
            ConfigError: not TOML, an unknown table or key, a value of the wrong type or that no run can have.
        """
        try:
            values = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigError(f"is not TOML ({one_line(error)})") from None
        for table, changes in (overrides or {}).items():
            values[table] = {**_table(values, table), **changes}
        parts: dict[str, Any] = {
            "data": DataSettings,
            "start": StartSettings,
            "quantizer": QuantizerSettings,
            "loss": LossSettings,
            "optimizer": OptimizerSettings,
            "run": RunSettings,
        }
        unknown = values.keys() - parts.keys() - {"name", "license", "model"}
        if unknown:
            raise ConfigError(f"has an unknown key, {quoted(min(unknown))}")
        for key in ("name", "license"):
            if not isinstance(values.get(key, ""), str):
                raise ConfigError(f"{key} is a text, not {quoted(values[key])}")
        given: dict[str, Any] = {key: values[key] for key in ("name", "license") if key in values}
        try:
            model = TokenizerConfig.from_json(json.dumps(_table(values, "model"), default=str))
        except ConfigError as error:
            raise ConfigError(f"[model] {error}") from None
        for name, part in parts.items():
            given[name] = _read(part, name, _table(values, name))
        return cls(model=model, **given)


def read_settings(
    preset: str,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    weights: Path | None = None,
) -> TrainSettings:
    """The settings of a preset's name, or of a TOML file's path.

    Args:
        preset: one of `PRESETS`, or a path.
        overrides: see `TrainSettings.from_toml`.
        weights: a checkpoint to go on from; [model] is then its configuration, the licence its own unless
            the preset names one, and its encoder, which has learned what it does, is not `taught`.

    Raises:
        ConfigError: no such preset or file, or what `TrainSettings.from_toml` refuses.
        CheckpointError: not a checkpoint that vartok can run.
    """
    settings = _read_preset(preset, overrides or {})
    if weights is None:
        return settings
    checkpoint = read_start(weights)
    return dataclasses.replace(
        settings,
        license=settings.license or checkpoint.license,
        model=checkpoint.config,
        start=dataclasses.replace(settings.start, weights=str(weights)),
        optimizer=dataclasses.replace(settings.optimizer, taught=0),
    )


def _read_preset(preset: str, overrides: Mapping[str, Mapping[str, Any]]) -> TrainSettings:
    if preset in PRESETS:
        text = (importlib.resources.files("vartok.train") / "presets" / f"{preset}.toml").read_text("utf-8")
        return TrainSettings.from_toml(text, overrides)
    try:
        text = Path(preset).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{quoted(preset)} is no preset ({', '.join(PRESETS)}) and no file that can be read "
            f"({one_line(getattr(error, 'strerror', error))})"
        ) from None
    try:
        return TrainSettings.from_toml(text, overrides)
    except ConfigError as error:
        raise ConfigError(f"{preset}: {error}") from None


def read_start(weights: str | Path) -> Checkpoint:
    """The checkpoint that training goes on from.

    Raises:
        CheckpointError: not a checkpoint that vartok can run.
    """
    try:
        return read_checkpoint(Path(weights))
    except CheckpointError as error:
        raise CheckpointError(f"{weights}: {error}") from None


def _table(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = values.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"[{name}] is a table, not {quoted(table)}")
    return table


def _read(part: type[T], name: str, values: Mapping[str, Any]) -> T:
    """A part's settings, each of its default's type; whole numbers may stand for others."""
    known = {entry.name: entry for entry in dataclasses.fields(part)}  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"[{name}] has an unknown key, {quoted(key)}")
        default = known[key].default
        kind = float if default is None else type(default)
        allowed = (int, float) if kind is float else (kind,)
        if type(value) not in allowed or value != value:
            raise ConfigError(f"[{name}] {key}: {quoted(value)} is not {_KINDS[kind]}")
    return part(**values)


_KINDS: dict[type, str] = {int: "a whole number", float: "a number", str: "a text"}


def _toml(key: str, value: Any) -> str | None:
    """A line of TOML; JSON writes texts, numbers, booleans and lists of them as TOML does."""
    return None if value is None else f"{key} = {json.dumps(value, ensure_ascii=False)}"
