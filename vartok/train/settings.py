"""The settings of a training run: one dataclass for each table of its TOML file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from vartok.config import TokenizerConfig, VarConfig
from vartok.errors import ConfigError, quoted


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Batches, augmentation and validation split. Crops have the image size of the model's schedule.

    Attributes:
        batch_size: crops per step, over all processes.
        zoom: largest random zoom, 1 or more, on top of the scale at which a picture covers the crop.
        grayscale_prob: probability that a crop is made grey, in [0, 1].
        color_jitter: largest relative change of brightness and of contrast, in [0, 0.9].
        val_fraction: fraction of the pictures that is held out for validation, in [0, 0.5]. One picture in
            round(1 / val_fraction) is chosen by the crc32 of its name, so that the choice does not depend on
            other pictures; 0 holds out none.
        val_pictures: largest number of validation pictures; more are held out but not measured.
    """

    batch_size: int = 16
    zoom: float = 1.125
    grayscale_prob: float = 0.05
    color_jitter: float = 0.1
    val_fraction: float = 1 / 64
    val_pictures: int = 64


@dataclass(frozen=True, kw_only=True)
class StartSettings:
    """Initialisation of the weights.

    Attributes:
        weights: a checkpoint to fine-tune, with the same [model]; empty: train from scratch. In fine-tuning,
            `latent_anchor` keeps latents near those of the checkpoint's encoder instead of the principal
            components, and the other settings here are not used. The settings.toml in a run's folder has the
            checkpoint's name.
        init_pictures: number of crops for principal components and codebook; above 64 rounded up to a
            multiple of 64. With a time limit, fewer if initialisation would take more than a quarter of it.
        kmeans_rounds: rounds of k-means for the codebook. The first computes residuals as if
            quantization were exact, each later one with the codebook so far. 0: initialise as VAR
            does, with a uniform random codebook and phis that are random convolutions.
    """

    weights: str = ""
    init_pictures: int = 2048
    kmeans_rounds: int = 3


@dataclass(frozen=True, kw_only=True)
class QuantizerSettings:
    """Training of the codebook, and replacement of dead codes.

    Attributes:
        codebook: "ema": each code is the exponential moving average (EMA) of the residuals assigned to it;
            "gradient": the codebook loss trains it, as in VAR.
        token_weight: exponent of a scale's weight in the EMA and in a code's usage, in [0, 1]: the weight is
            its number of tokens to this power. 0: all scales are equal. 1: all tokens are equal, which gives
            a little more PSNR and less usage by coarse scales.
        codebook_ema_decay: decay per step of the EMA, and of the usage counts.
        dead_code_threshold: a code whose EMA usage is below threshold / V is re-initialised from a residual
            of the least-used scales; 0: never.
    """

    codebook: str = "ema"
    token_weight: float = 0.0
    codebook_ema_decay: float = 0.99
    dead_code_threshold: float = 0.3


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Weights of the losses. Pictures are in [-1, 1].

    Attributes:
        mse: mean squared error.
        log_mse: mean over pictures of log(MSE), which is PSNR up to a factor.
        l1: mean absolute error.
        gradient: mean absolute error of the differences between neighbouring pixels.
        blockiness: squared excess of the decoded batch's blockiness over the original's. Blockiness is the
            mean step across the borders of latent cells divided by the mean step inside cells.
        commitment: mean squared distance of latents from f_hat, mean over scales, as in VAR. Coarse scales
            have no detail in f_hat, so this pulls latents to zero, and fine scales use fewer codes.
        final_commitment: the commitment loss of the last scale alone, which hardly has these effects.
        latent_anchor: mean squared distance of latents from the principal components of the patches, or in
            fine-tuning from the latents of the checkpoint's encoder.
        lpips: perceptual distance LPIPS (AlexNet); its weights are not part of vartok.
        adversarial: generator loss against a patch discriminator, relative to the reconstruction's gradient.
        adversarial_start: first step with the adversarial loss.
    """

    mse: float = 0.0
    log_mse: float = 0.0
    l1: float = 0.0
    gradient: float = 0.0
    blockiness: float = 0.0
    commitment: float = 0.25
    final_commitment: float = 0.0
    latent_anchor: float = 0.0
    lpips: float = 0.0
    adversarial: float = 0.0
    adversarial_start: int = 0


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW, with a learning rate that warms up, stays, and decays linearly to zero.

    Attributes:
        lr: learning rate of the decoder and the phis.
        encoder_lr: learning rate of the encoder, and of a codebook that is trained by gradient.
        weight_decay: decoupled weight decay of all weights.
        warmup_steps: steps of linear warm-up of the learning rate.
        decay_fraction: fraction of the run, at its end, in which the learning rate decays; in [0, 1].
        encoder_warmup_steps: number of first steps in which the quantizer gets the latents of the principal
            components instead of the encoder's. Meanwhile the encoder learns to give these latents
            (`latent_anchor`), and the decoder learns to decode quantized latents. Fine-tuning has none.
        grad_clip: largest norm of the gradient; larger ones are scaled down to it.
        ema_decay: decay per step of the EMA of the weights. This EMA is validated and exported.
    """

    lr: float = 1e-3
    encoder_lr: float = 3e-4
    weight_decay: float = 0.0
    warmup_steps: int = 100
    decay_fraction: float = 0.3
    encoder_warmup_steps: int = 0
    grad_clip: float = 1.0
    ema_decay: float = 0.999


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Length, precision and seed of a run.

    Attributes:
        steps: optimizer steps.
        minutes: time limit, including initialisation, in case `steps` takes longer. None: no limit.
        val_every: steps between validations; the state is saved at each.
        precision: precision of the networks: "bf16", "float32", or "auto": bf16 if the hardware has it.
        seed: random seed of the weights, the order of pictures, the crops and the codebook.
    """

    steps: int = 100_000
    minutes: float | None = None
    val_every: int = 500
    precision: str = "auto"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """All settings of a run.

    Attributes:
        name: name of the checkpoint; empty: the name of the run's folder.
        license: licence of its weights; None if none is stated.
        model: configuration of the tokenizer.
        data: pictures and crops.
        start: initialisation.
        quantizer: codebook training.
        loss: weights of the losses.
        optimizer: learning rates and averages.
        run: length, precision, seed.
    """

    name: str = ""
    license: str | None = None
    model: TokenizerConfig
    data: DataSettings = field(default_factory=DataSettings)
    start: StartSettings = field(default_factory=StartSettings)
    quantizer: QuantizerSettings = field(default_factory=QuantizerSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: a value is out of its range, or settings contradict each other.
        """
        loss, run = self.loss, self.run
        if not (loss.mse or loss.log_mse or loss.l1 or loss.gradient):
            raise ConfigError("[loss] has no reconstruction loss: give mse, log_mse, l1 or gradient a weight")
        if self.quantizer.codebook not in ("ema", "gradient"):
            raise ConfigError(
                f'[quantizer] codebook must be "ema" or "gradient", not {quoted(self.quantizer.codebook)}'
            )
        if run.precision not in ("auto", "bf16", "float32"):
            raise ConfigError(
                f'[run] precision must be "auto", "bf16" or "float32", not {quoted(run.precision)}'
            )
        self._check_ranges()
        is_var = isinstance(self.model.autoencoder, VarConfig)
        if is_var and self.optimizer.encoder_warmup_steps and not loss.latent_anchor:
            raise ConfigError(
                "[optimizer] encoder_warmup_steps needs [loss] latent_anchor, which trains the encoder"
            )
        height, width = self.model.image_size
        if self.model.z_channels > 3 * self.model.downsample**2:
            raise ConfigError("[model] z_channels must not exceed the number of values in a patch")
        cells = self.start.init_pictures * height * width // self.model.downsample**2
        if self.start.kmeans_rounds and cells < 2:
            raise ConfigError("[start] init_pictures is too small for k-means")

    def _check_ranges(self) -> None:
        for table, ranges in _RANGES.items():
            part = getattr(self, table)
            for name, (low, high) in ranges.items():
                value = getattr(part, name)
                if value is not None and not low <= value <= high:
                    raise ConfigError(f"[{table}] {name} must be from {low:,} to {high:,}, not {value!r}")


_RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "data": {
        "batch_size": (1, 1 << 20),
        "zoom": (1, 8),
        "grayscale_prob": (0, 1),
        "color_jitter": (0, 0.9),
        "val_fraction": (0, 0.5),
        "val_pictures": (1, 1 << 16),
    },
    "start": {"init_pictures": (1, 1 << 20), "kmeans_rounds": (0, 100)},
    "quantizer": {"token_weight": (0, 1), "codebook_ema_decay": (0, 1), "dead_code_threshold": (0, 1)},
    "loss": {entry.name: (0, 1e9) for entry in dataclasses.fields(LossSettings)},
    "optimizer": {
        "lr": (0, 1e9),
        "encoder_lr": (0, 1e9),
        "weight_decay": (0, 1e3),
        "warmup_steps": (0, 1 << 40),
        "decay_fraction": (0, 1),
        "encoder_warmup_steps": (0, 1 << 40),
        "grad_clip": (1e-9, 1e9),
        "ema_decay": (0, 1),
    },
    "run": {
        "steps": (1, 1 << 40),
        "minutes": (1e-3, 1 << 30),
        "val_every": (1, 1 << 40),
        "seed": (0, 1 << 31),
    },
}
