"""The settings of a training run: one dataclass for each table of its TOML file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from vartok.config import TokenizerConfig, VarConfig
from vartok.errors import ConfigError, quoted
from vartok.features import NETWORKS
from vartok.metrics import MIN_PERIODS

MAX_PATCH_VALUES = 8192
"""Largest number of values of a patch of several channels; their covariance takes 1 GiB of memory with it."""

MIN_PATCH_SIDE = 28
"""Shortest side of a crop, in pixels, whose window is large enough for a logit of the patch discriminator."""

CONTRAST_WINDOW = 16
"""Side of the windows in which local contrast is compared, in pixels."""

UNUSED_IF_TOKENS_ARE_KEPT = (
    "[quantizer] codebook",
    "[quantizer] dead_code_threshold",
    "[loss] commitment",
    "[loss] final_commitment",
    "[loss] latent_anchor",
    "[optimizer] encoder_lr",
    "[optimizer] encoder_warmup_steps",
)
"""Settings that a run with `keep_tokens` does not use, besides the rest of [start]."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Batches, augmentation and validation split. Crops have the image size of the model's schedule.

    Attributes:
        batch_size: number of crops per step, over all processes.
        zoom: largest random zoom, in [1, 8]; at zoom 1 a picture just covers the crop.
        min_zoom: smallest random zoom, from 1 to `zoom`. Above 1, crops of pictures of the crop's own size
            do not keep the grid of 4 or 8 pixels that JPEG or WebP may have left in them.
        grayscale_prob: probability that a crop becomes greyscale, in [0, 1]; not used unless the model has
            three channels.
        color_jitter: largest relative change of brightness and of contrast, in [0, 0.9].
        val_fraction: fraction of the pictures that is held out for validation, in [0, 0.5]; 0 holds out none.
            The crc32 of its name decides whether a picture is one in round(1 / val_fraction), so that the
            choice does not depend on other pictures.
        val_pictures: largest number of pictures that validation measures; any other held-out picture is not
            used at all.
        allow_damaged: take what can be decoded of a truncated or corrupt picture, which else is left out.
    """

    batch_size: int = 16
    zoom: float = 1.125
    min_zoom: float = 1.0
    grayscale_prob: float = 0.05
    color_jitter: float = 0.1
    val_fraction: float = 1 / 64
    val_pictures: int = 64
    allow_damaged: bool = False


@dataclass(frozen=True, kw_only=True)
class StartSettings:
    """Initialisation of the weights.

    Attributes:
        weights: checkpoint to fine-tune, whose configuration must equal [model]; empty: train from scratch.
            In fine-tuning the other settings of this table are not used, and `latent_anchor` keeps latents
            near those of the checkpoint's encoder. settings.toml in the run's folder gives the checkpoint's
            name here, not its path.
        init_pictures: number of crops from which principal components and codebook are computed. A number
            above 64 is rounded up to a multiple of 64. With a time limit, fewer crops are used if
            initialisation would take more than a quarter of it.
        keep_tokens: in fine-tuning, train only decoder and post_quant_conv. Encoder, codebook and phis are
            frozen, so that pictures keep their tokens, and the checkpoint its fingerprint. Those in
            `UNUSED_IF_TOKENS_ARE_KEPT` are then not used.
        kmeans_rounds: number of rounds of k-means for the codebook. The first round computes residuals as if
            quantization were exact; every later round quantizes with the codebook so far. 0: initialise as
            VAR does, with a uniform random codebook and phis that are random convolutions.
    """

    weights: str = ""
    keep_tokens: bool = False
    init_pictures: int = 2048
    kmeans_rounds: int = 3


@dataclass(frozen=True, kw_only=True)
class QuantizerSettings:
    """Training of the codebook, and replacement of dead codes.

    Attributes:
        codebook: "ema": each code is the exponential moving average (EMA) of the residuals assigned to it;
            "gradient": the optimizer trains the codes, by the codebook loss as in VAR, and by the
            reconstruction losses.
        token_weight: exponent in [0, 1]. In the EMA and in the usage of codes, a scale has the weight
            (its number of tokens) ** token_weight. 0: all scales count equally. 1: all tokens count equally,
            which gives a little more PSNR, and coarse scales use fewer codes.
        codebook_ema_decay: decay per step of the EMA of codes and of their usage, in [0, 1].
        dead_code_threshold: a code whose EMA usage is below threshold / V is re-initialised from a residual,
            more often of a scale that uses few codes; in [0, 1]. 0: never.
    """

    codebook: str = "ema"
    token_weight: float = 0.0
    codebook_ema_decay: float = 0.99
    dead_code_threshold: float = 0.3


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Weights of the losses, 0 or more; 0 switches a loss off. Pixels are in [-1, 1].

    Attributes:
        mse: mean squared error.
        log_mse: mean over pictures of log(MSE), which is -PSNR up to a factor and a constant.
        l1: mean absolute error.
        gradient: mean absolute error of the differences between neighbouring pixels.
        blockiness: squared difference between the blockiness of the decoded batch and that of the originals.
            Blockiness is the mean absolute difference of neighbouring pixels across the borders of latent
            cells, divided by the mean inside cells. A `light` decoder has a second such loss, for the cells
            of 4 pixels of its last layer.
        periodicity: mean squared difference between the peaks of the decoded batch's spectrum and those of
            the originals', see `spectral_peaks`, at the multiples of one cycle per latent cell. A texture
            that repeats in every cell has such peaks. Needs crops of 8 cells a side or more.
        local_contrast: mean squared difference of the logarithms of local contrast: the squared difference
            of a pixel from the mean of the 5x5 pixels around it, averaged over windows of 16 pixels a side,
            at full and at half resolution. Blur has less of it than the original. Texture need not match
            pixel by pixel. Needs crops of 16 pixels a side or more.
        commitment: mean squared distance of latents from f_hat, mean over scales, as in VAR. The f_hat of
            coarse scales lacks detail, so this loss pulls latents to zero, and fine scales use fewer codes.
        final_commitment: the commitment loss of the last scale alone, which hardly has these effects.
        latent_anchor: mean squared distance of latents from the principal components of the patches, or in
            fine-tuning from the latents of the checkpoint's encoder.
        lpips: perceptual distance LPIPS on AlexNet, whose weights are not part of vartok.
        perceptual: squared distance of the features of `perceptual_net` at four depths, of strides 4 to 32,
            summed; their channels have unit norm. The network, and every discriminator, sees a window of 7/8
            of a crop's sides at a random offset.
        perceptual_net: "efficientnet-lite0", "efficientnet-lite1" or "efficientnet-lite2", trained on
            ImageNet; each is larger than the one before.
        adversarial: generator loss against a discriminator.
        adversarial_net: "patch": a patch discriminator of pixels, as in VQGAN; "projected": a projected
            discriminator of the features of `perceptual_net`, with a small patch discriminator of pixels,
            at a quarter of the cost.
        adversarial_adaptive: scale the generator loss so that at weight 1 its gradient is as large as that
            of the other losses on pixels. This takes two more backward passes through the networks of the
            losses.
        adversarial_start: number of first steps without the adversarial loss and its discriminator.
        adversarial_ramp: number of steps after these in which the weight rises from 0, while the
            discriminator learns.
        target_psnr_drop: in fine-tuning, how far the PSNR of validation pictures may fall below that of the
            checkpoint, in dB. Every 200 steps the weight of `log_mse` is changed towards this. None: the
            weight stays.
    """

    mse: float = 0.0
    log_mse: float = 0.0
    l1: float = 0.0
    gradient: float = 0.0
    blockiness: float = 0.0
    periodicity: float = 0.0
    local_contrast: float = 0.0
    commitment: float = 0.25
    final_commitment: float = 0.0
    latent_anchor: float = 0.0
    lpips: float = 0.0
    perceptual: float = 0.0
    perceptual_net: str = "efficientnet-lite0"
    adversarial: float = 0.0
    adversarial_net: str = "patch"
    adversarial_adaptive: bool = True
    adversarial_start: int = 0
    adversarial_ramp: int = 0
    target_psnr_drop: float | None = None

    @property
    def uses_features(self) -> bool:
        """True if a loss or the discriminator needs the features of `perceptual_net`."""
        return bool(self.perceptual or (self.adversarial and self.adversarial_net == "projected"))


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW, with a learning rate that warms up linearly, stays constant, and decays linearly to zero.

    Attributes:
        lr: learning rate of the decoder and the phis; also of the discriminator, where it stays constant.
        encoder_lr: learning rate of the encoder, and of a codebook that is trained by gradient.
        weight_decay: decoupled weight decay of these weights, except the discriminator's.
        warmup_steps: number of first steps in which the learning rate rises.
        decay_fraction: fraction of the run, at its end, in which the learning rate decays; in [0, 1].
        encoder_warmup_steps: number of first steps in which the quantizer gets the latents of the anchor, the
            principal components, instead of the encoder's. Meanwhile `latent_anchor` teaches the encoder
            these latents, and the decoder learns to decode quantized latents. `read_settings` sets 0 for
            fine-tuning.
        grad_clip: largest norm of the gradient; a larger gradient is scaled down to this norm.
        ema_decay: decay per step of the EMA of the weights, which is validated and exported. The first steps
            have a smaller decay.
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
        steps: number of optimizer steps.
        minutes: time limit in minutes, over all sessions and with initialisation. The run ends at it, or
            after `steps` if they take less time. None: no limit.
        val_every: number of steps from one validation to the next. Each also saves the state, and exports
            the checkpoint.
        precision: precision of the networks: "bf16"; "float32"; or "auto", bf16 if the hardware computes it.
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
        name: name of the exported checkpoint; empty: the name of the run's folder.
        license: licence of the exported weights; None if none is stated.
        model: configuration of the tokenizer.
        data: pictures and crops.
        start: initialisation.
        quantizer: codebook training.
        loss: weights of the losses.
        optimizer: learning rates, and the EMA of the weights.
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
        for table, key, value, allowed in (
            ("quantizer", "codebook", self.quantizer.codebook, ("ema", "gradient")),
            ("loss", "perceptual_net", loss.perceptual_net, tuple(NETWORKS)),
            ("loss", "adversarial_net", loss.adversarial_net, ("patch", "projected")),
            ("run", "precision", run.precision, ("auto", "bf16", "float32")),
        ):
            if value not in allowed:
                choices = ", ".join(f'"{choice}"' for choice in allowed[:-1]) + f' or "{allowed[-1]}"'
                raise ConfigError(f"[{table}] {key} must be {choices}, not {quoted(value)}")
        if not (loss.mse or loss.log_mse or loss.l1 or loss.gradient):
            raise ConfigError("[loss] has no reconstruction loss: give mse, log_mse, l1 or gradient a weight")
        if self.start.keep_tokens and not self.start.weights:
            raise ConfigError(
                "[start] keep_tokens needs [start] weights, the checkpoint whose tokens are kept"
            )
        self._check_ranges()
        if self.data.min_zoom > self.data.zoom:
            raise ConfigError(
                f"[data] min_zoom must be at most zoom, {self.data.zoom!r}, not {self.data.min_zoom!r}"
            )
        if loss.target_psnr_drop is not None and not (self.start.weights and loss.log_mse):
            raise ConfigError(
                "[loss] target_psnr_drop needs [start] weights, the checkpoint whose PSNR may fall, and a "
                "weight of log_mse, which it changes"
            )
        is_var = isinstance(self.model.autoencoder, VarConfig)
        if is_var and self.optimizer.encoder_warmup_steps and not loss.latent_anchor:
            raise ConfigError(
                "[optimizer] encoder_warmup_steps needs [loss] latent_anchor above 0, to train the encoder"
            )
        height, width = self.model.image_size
        values = self.model.in_channels * self.model.downsample**2
        if not self.start.weights:  # from scratch, principal components of patches are computed
            if self.model.z_channels > values:
                raise ConfigError(
                    f"[model] z_channels must be at most {values:,}, the number of values in a patch"
                )
            if values > max(MAX_PATCH_VALUES, 3 * self.model.downsample**2):
                raise ConfigError(
                    f"[model] in_channels {self.model.in_channels} makes patches of {values:,} values, more "
                    f"than the {MAX_PATCH_VALUES:,} whose principal components can be computed"
                )
        projected = loss.adversarial if loss.adversarial_net == "projected" else 0.0
        for name, weight in (
            ("lpips", loss.lpips),
            ("perceptual", loss.perceptual),
            ("adversarial", projected),
        ):
            if weight and self.model.in_channels not in (1, 3):
                raise ConfigError(f"[loss] {name} needs a model of 1 or 3 channels: set it to 0")
        if loss.adversarial and loss.adversarial_net == "patch" and min(height, width) < MIN_PATCH_SIDE:
            raise ConfigError(
                f'[loss] adversarial_net "patch" needs crops of {MIN_PATCH_SIDE} pixels a side or more: '
                'choose "projected", or set adversarial to 0'
            )
        cell = self.model.downsample
        if loss.periodicity and (cell < 2 or min(height, width) < MIN_PERIODS * cell):
            raise ConfigError(
                f"[loss] periodicity needs crops of {MIN_PERIODS} latent cells a side or more, and cells of "
                "several pixels: set it to 0"
            )
        if loss.local_contrast and min(height, width) < CONTRAST_WINDOW:
            raise ConfigError(
                f"[loss] local_contrast needs crops of {CONTRAST_WINDOW} pixels a side or more: set it to 0"
            )
        cells = self.start.init_pictures * height * width // self.model.downsample**2
        if self.start.kmeans_rounds and cells < 2:
            raise ConfigError(
                "[start] init_pictures must be at least 2 for k-means: a crop is one latent cell"
            )

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
        "min_zoom": (1, 8),
        "grayscale_prob": (0, 1),
        "color_jitter": (0, 0.9),
        "val_fraction": (0, 0.5),
        "val_pictures": (1, 1 << 16),
    },
    "start": {"init_pictures": (1, 1 << 20), "kmeans_rounds": (0, 100)},
    "quantizer": {"token_weight": (0, 1), "codebook_ema_decay": (0, 1), "dead_code_threshold": (0, 1)},
    "loss": {
        entry.name: (0, 1e9)
        for entry in dataclasses.fields(LossSettings)
        if not isinstance(entry.default, str | bool)
    },
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
