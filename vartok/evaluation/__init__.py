"""How well tokenizers redraw pictures: figures of pixels and tokens, and JPEG and WebP beside them.

Every figure compares two pictures of uint8 pixels: the reference, which is exactly what entered the
encoder, and what the decoder gave, clamped and rounded. Another reference, such as the file before it
was scaled, gives other figures of the same checkpoint.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vartok.codebook import UsageReport, count_codes, describe_usage
from vartok.errors import ImageError, VartokError, one_line
from vartok.images import Fit, Picture, to_pixels, to_tensor
from vartok.operations import read_pictures
from vartok.parallel import map_batches, map_ordered
from vartok.schedule import Schedule
from vartok.tokenizer import Tokenizer
from vartok.tokens import ModelInfo

S = TypeVar("S")
Pixels = NDArray[np.uint8]

EXACT = 100.0
"""dB that an exact copy counts as, and no copy more: its PSNR is infinite, and so would be every mean."""
SSIM_SIDE = 11  # pixels, of the window
MS_SSIM_SIDE = 176  # pixels; what torchmetrics asks for at five scales
LPIPS_SIDE = 32  # pixels; fewer vanish in AlexNet
ALEXNET = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
INCEPTION = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
BASELINES = ("jpeg", "webp")

METHODS = {
    "reference": "the uint8 pixels that entered the encoder; what is decoded is clamped and rounded to uint8",
    "psnr": "dB of 255, over a picture's RGB levels; mean over pictures, an exact copy counting as 100",
    "unquantized_psnr": "of the latent, decoded without quantizing it: what the autoencoder alone loses",
    "ssim": "torchmetrics' defaults: Gaussian window of 11 pixels, of each RGB channel; mean over pictures",
    "ms_ssim": f"torchmetrics' defaults: five scales; of pictures of {MS_SSIM_SIDE} pixels a side and more",
    "lpips": f"AlexNet, as torchmetrics has it; mean over pictures of {LPIPS_SIDE} pixels a side or more",
    "rfid": "of these pictures and their reconstructions alone: 2048 features of torch-fidelity's Inception",
    "bits_per_pixel": "tokens x log2(codes) / pixels, all pictures together; without entropy coding",
    "blockiness": "mean step across patch borders / mean step inside patches, down and across, all pictures",
    "jpeg": "4:2:0, optimized; the highest quality in the bytes of the tokens, else the lowest there is",
    "webp": "lossy, method 6; the highest quality in the bytes of the tokens, else the lowest there is",
}
"""What each figure is, for whoever reads it beside another program's."""


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How like its reference a picture is, or pictures are in the mean.

    Attributes:
        psnr: in dB, up to 100; see `METHODS`, as for the others.
        ssim: up to 1.
        ms_ssim: from 0 to 1; None where no picture is large enough.
    """

    psnr: float
    ssim: float
    ms_ssim: float | None


@dataclass(frozen=True, kw_only=True)
class Redrawn(Likeness):
    """What a tokenizer makes of one picture.

    Attributes:
        lpips: from 0, the same, up to about 1; None where it was not asked for or the picture is too small.
        unquantized_psnr: in dB, without quantization.
        prefix_psnr: in dB, after 1, 2, ... all scales.
    """

    lpips: float | None
    unquantized_psnr: float
    prefix_psnr: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Compressed(Likeness):
    """What a picture file of a few bytes makes of one picture.

    Attributes:
        format: one of `BASELINES`.
        size_bytes: of the file.
        over: whether these are more than the tokens have, since the format has no smaller file.
    """

    format: str
    size_bytes: int
    over: bool


@dataclass(frozen=True, kw_only=True)
class PictureScores:
    """One picture's figures.

    Attributes:
        name: what the caller calls it.
        height: of the pixels that were encoded.
        width: likewise.
        notes: what a user should know of how it was read.
        models: of each tokenizer.
        baselines: of each format, where asked for.
    """

    name: str
    height: int
    width: int
    notes: tuple[str, ...]
    models: tuple[Redrawn, ...]
    baselines: tuple[Compressed, ...]


@dataclass(frozen=True, kw_only=True)
class ModelReport(Likeness):
    """What a tokenizer makes of pictures, in the mean.

    Attributes:
        model: the checkpoint.
        schedule: (h, w) of every scale; None where pictures of several sizes have several.
        lpips: None where it was not asked for, or no picture is large enough.
        rfid: Fréchet distance, from 0; None where it was not asked for, or of one picture only.
        unquantized_psnr: in dB, without quantization.
        prefix_psnr: in dB, after 1, 2, ... all scales.
        bits_per_pixel: of the tokens.
        size_bytes: mean bytes of a picture's tokens, each picture's rounded up to whole ones.
        blockiness: of the decoded pictures, 1 where borders do not show; None where there is no
            border, or no step inside.
        reference_blockiness: of the references, on the same borders.
        usage: of the codebook, by all scales and each.
    """

    model: ModelInfo
    schedule: Schedule | None
    lpips: float | None
    rfid: float | None
    unquantized_psnr: float
    prefix_psnr: tuple[float, ...]
    bits_per_pixel: float
    size_bytes: float
    blockiness: float | None
    reference_blockiness: float | None
    usage: UsageReport


@dataclass(frozen=True, kw_only=True)
class BaselineReport(Likeness):
    """What a picture format makes of pictures, in the mean.

    Attributes:
        format: one of `BASELINES`.
        bits_per_pixel: all pictures together.
        size_bytes: mean bytes of a picture's file.
        over: pictures whose smallest file has more bytes than the first tokenizer's tokens.
        psnr_within: of the other pictures, in dB; None where there is none.
        tokens_psnr_within: of the first tokenizer, on these others.
    """

    format: str
    bits_per_pixel: float
    size_bytes: float
    over: int
    psnr_within: float | None
    tokens_psnr_within: float | None


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """What is known of all pictures.

    Attributes:
        pictures: how many.
        ms_ssim_pictures: how many of them are large enough for MS-SSIM.
        models: of each tokenizer.
        baselines: of each format, where asked for.
    """

    pictures: int
    ms_ssim_pictures: int
    models: tuple[ModelReport, ...]
    baselines: tuple[BaselineReport, ...]


class _Copy(NamedTuple):
    """What a tokenizer drew of one picture, before it is measured in full."""

    pixels: Pixels
    maps: tuple[NDArray[np.int64], ...]
    lpips: float | None
    features: Tensor | None
    unquantized_psnr: float
    prefix_psnr: tuple[float, ...]


class _Drawn(NamedTuple):
    """A picture, and each tokenizer's copy of it."""

    name: str
    picture: Picture
    features: Tensor | None
    copies: tuple[_Copy, ...]


class _Tally:
    """What one tokenizer's pictures add up to; holds no picture."""

    def __init__(self, tokenizer: Tokenizer, scales: int) -> None:
        self.schedules: set[Schedule] = set()
        self.bits = 0.0
        self.size_bytes = 0
        self.counts = np.zeros((scales, tokenizer.config.vocab_size), np.int64)
        self.steps = np.zeros(4, np.int64)
        self.reference_steps = np.zeros(4, np.int64)
        self.fid: Any = None  # torchmetrics', made when the number of features is known


class Evaluation:
    """Measures pictures, one after the other, and then all of them together.

    Args:
        tokenizers: to be measured on the same pixels; baselines have the bytes of the first one's tokens.
        fit: how a picture becomes the pixels that are encoded, which all the tokenizers take.
        schedule: (h, w) of every scale; each checkpoint's own, stretched to each latent, if None.
        baselines: measure JPEG and WebP too.
        lpips: gives the distances [B, 1, 1, 1] of two batches in [-1, 1]; see `load_lpips`.
        inception: gives the features [B, D] of a batch of uint8; see `load_inception`.

    Raises:
        VartokError: torchmetrics is not installed.
    """

    def __init__(
        self,
        tokenizers: Sequence[Tokenizer],
        fit: Fit,
        *,
        schedule: Schedule | None = None,
        baselines: bool = False,
        lpips: nn.Module | None = None,
        inception: nn.Module | None = None,
    ) -> None:
        _torchmetrics()
        self._tokenizers = tuple(tokenizers)
        self._fit = fit
        self._schedule = schedule
        self._baselines = BASELINES if baselines else ()
        # MPS lacks float64, in which the Fréchet distance adds up.
        self._device = tokenizers[0].device if tokenizers[0].device.type == "cuda" else torch.device("cpu")
        self._lpips = lpips and lpips.to(self._device)
        self._inception = inception and inception.to(self._device)
        self._scores: list[PictureScores] = []
        self._pixels = 0
        self._tallies = [_Tally(one, len(schedule or one.config.patch_nums)) for one in tokenizers]

    def run(
        self, pictures: Iterable[tuple[S, str, Path | bytes]], *, batch_size: int = 1, workers: int = 1
    ) -> Iterator[tuple[S, PictureScores | VartokError]]:
        """Measure picture files. The report is about those that were yielded.

        Args:
            pictures: of each: what the caller knows it by, what its scores shall call it, and the file or
                what came through a pipe.
            batch_size: pictures that go through the models together, those of one size.
            workers: threads that read pictures, and as many that measure them, while the models work.

        Yields:
            What the caller knows a picture by, and its figures or why there are none; in order.
        """
        limit = workers + batch_size
        read = read_pictures(pictures, self._fit, workers=workers, limit=limit)
        drawn = map_batches(self._draw, read, size=batch_size, key=lambda item: item[1].pixels.shape)

        def measure(item: tuple[S, _Drawn | VartokError]) -> tuple[S, _Drawn | None, Any]:
            caller, found = item
            if isinstance(found, VartokError):
                return caller, None, found
            try:
                return caller, found, self._measure(found)
            except VartokError as error:
                return caller, None, error
            except MemoryError:
                return caller, None, VartokError("not enough memory to measure it")

        for caller, picture, result in map_ordered(measure, drawn, workers=workers, limit=limit):
            if picture is not None:
                self._add(picture, result)
            yield caller, result

    def worst(self, count: int) -> list[PictureScores]:
        """The pictures of the lowest PSNR by the first tokenizer, the worst first."""
        return sorted(self._scores, key=lambda scores: scores.models[0].psnr)[:count]

    def report(self) -> EvaluationReport:
        """The figures of all pictures so far, of which there is at least one."""
        return EvaluationReport(
            pictures=len(self._scores),
            ms_ssim_pictures=sum(scores.models[0].ms_ssim is not None for scores in self._scores),
            models=tuple(self._model_report(m) for m in range(len(self._tokenizers))),
            baselines=tuple(self._baseline_report(i) for i in range(len(self._baselines))),
        )

    def _draw(self, batch: list[tuple[str, Picture]]) -> list[_Drawn]:
        """Everything that the models compute, of pictures of one size."""
        pixels = np.stack([picture.pixels for _, picture in batch])
        images = to_tensor(pixels)
        features = self._features(pixels)
        copies = zip(*(self._redraw(one, pixels, images) for one in self._tokenizers), strict=True)
        return [
            _Drawn(name, picture, None if features is None else features[b], found)
            for b, ((name, picture), found) in enumerate(zip(batch, copies, strict=True))
        ]

    def _redraw(self, tokenizer: Tokenizer, pixels: Pixels, images: Tensor) -> list[_Copy]:
        tokens = tokenizer.encode(images, self._schedule)
        unquantized = to_pixels(tokenizer.decode_latent(tokenizer.latent(images)))
        drawn, prefixes = pixels, []
        for prefix in tokenizer.decode_prefixes(tokens):
            drawn = to_pixels(prefix)
            prefixes.append([psnr(one, copy) for one, copy in zip(pixels, drawn, strict=True)])
        maps = [tokens_map.cpu().numpy() for tokens_map in tokens.maps]
        distances: list[float] | None = None
        if self._lpips is not None and min(pixels.shape[1:3]) >= LPIPS_SIDE:
            with torch.no_grad():
                pair = (to_tensor(part).to(self._device) for part in (drawn, pixels))
                distances = self._lpips(*pair).flatten().tolist()
        features = self._features(drawn)
        return [
            _Copy(
                drawn[b],
                tuple(tokens_map[b] for tokens_map in maps),
                distances[b] if distances else None,
                None if features is None else features[b],
                psnr(pixels[b], unquantized[b]),
                tuple(scale[b] for scale in prefixes),
            )
            for b in range(len(pixels))
        ]

    def _features(self, pixels: Pixels) -> Tensor | None:
        """What the Fréchet distance is between: [B, D], None where it was not asked for."""
        if self._inception is None:
            return None
        with torch.no_grad():
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self._device)
            features: Tensor = self._inception(images)
        return features

    def _measure(self, drawn: _Drawn) -> PictureScores:
        """What needs no model, so that threads can do it."""
        reference = drawn.picture.pixels
        height, width = reference.shape[:2]
        models = tuple(
            Redrawn(
                **_likeness(reference, copy.pixels),
                lpips=copy.lpips,
                unquantized_psnr=copy.unquantized_psnr,
                prefix_psnr=copy.prefix_psnr,
            )
            for copy in drawn.copies
        )
        baselines = []
        for format in self._baselines:
            budget = _size_bytes(drawn.copies[0].maps, self._tokenizers[0])
            data = compress(reference, format, budget)
            with Image.open(io.BytesIO(data)) as file:
                copy = np.asarray(file.convert("RGB"))
            likeness = _likeness(reference, copy)
            over = len(data) > budget
            baselines.append(Compressed(**likeness, format=format, size_bytes=len(data), over=over))
        return PictureScores(
            name=drawn.name,
            height=height,
            width=width,
            notes=drawn.picture.notes,
            models=models,
            baselines=tuple(baselines),
        )

    def _add(self, drawn: _Drawn, scores: PictureScores) -> None:
        """Count a picture in."""
        self._scores.append(scores)
        self._pixels += scores.height * scores.width
        for tokenizer, tally, copy in zip(self._tokenizers, self._tallies, drawn.copies, strict=True):
            schedule = tuple((tokens.shape[0], tokens.shape[1]) for tokens in copy.maps)
            tally.schedules.add(schedule)
            tally.bits += _bits(copy.maps, tokenizer)
            tally.size_bytes += _size_bytes(copy.maps, tokenizer)
            tally.counts += count_codes([copy.maps], *reversed(tally.counts.shape))
            tally.steps += count_steps(copy.pixels, tokenizer.config.downsample)
            tally.reference_steps += count_steps(drawn.picture.pixels, tokenizer.config.downsample)
            if drawn.features is not None and copy.features is not None:
                if tally.fid is None:
                    tally.fid = _frechet_distance(len(copy.features)).to(self._device)
                tally.fid.update(drawn.features[None], real=True)
                tally.fid.update(copy.features[None], real=False)

    def _model_report(self, m: int) -> ModelReport:
        tokenizer, tally = self._tokenizers[m], self._tallies[m]
        scores = [picture.models[m] for picture in self._scores]
        prefixes = zip(*(one.prefix_psnr for one in scores), strict=True)
        return ModelReport(
            **_mean_likeness(scores),
            model=tokenizer.info,
            schedule=next(iter(tally.schedules)) if len(tally.schedules) == 1 else None,
            lpips=_mean_of_known(one.lpips for one in scores),
            rfid=float(tally.fid.compute()) if tally.fid is not None and len(scores) > 1 else None,
            unquantized_psnr=_mean([one.unquantized_psnr for one in scores]),
            prefix_psnr=tuple(_mean(prefix) for prefix in prefixes),
            bits_per_pixel=tally.bits / self._pixels,
            size_bytes=tally.size_bytes / len(scores),
            blockiness=blockiness(tally.steps),
            reference_blockiness=blockiness(tally.reference_steps),
            usage=describe_usage(tally.counts),
        )

    def _baseline_report(self, i: int) -> BaselineReport:
        scores = [picture.baselines[i] for picture in self._scores]
        size_bytes = sum(one.size_bytes for one in scores)
        within = [picture for picture in self._scores if not picture.baselines[i].over]
        return BaselineReport(
            **_mean_likeness(scores),
            format=scores[0].format,
            bits_per_pixel=8 * size_bytes / self._pixels,
            size_bytes=size_bytes / len(scores),
            over=len(scores) - len(within),
            psnr_within=_mean_of_known(picture.baselines[i].psnr for picture in within),
            tokens_psnr_within=_mean_of_known(picture.models[0].psnr for picture in within),
        )


def psnr(reference: Pixels, copy: Pixels) -> float:
    """Peak signal-to-noise ratio, in dB of 255, of two [H, W, 3] uint8 pictures; at most 100."""
    error = float(np.square(np.subtract(reference, copy, dtype=np.int32)).mean())
    return min(EXACT, 10 * math.log10(255**2 / error)) if error else EXACT


def count_steps(pixels: Pixels, patch: int) -> NDArray[np.int64]:
    """Steps between neighbours, down and across, in levels of each channel.

    Args:
        pixels: [H, W, 3] uint8.
        patch: side of the patches, whose first corner is the picture's, in pixels.

    Returns:
        [4] int64: the steps across patch borders, added up without their signs, and how many they are;
        then the same of those inside patches. Of two pictures they add up.
    """
    counted = np.zeros(4, np.int64)
    for axis in (0, 1):
        steps = np.abs(np.diff(pixels.astype(np.int16), axis=axis))
        border = np.arange(1, pixels.shape[axis]) % patch == 0
        for place, chosen in enumerate((border, ~border)):
            found = steps.compress(chosen, axis)
            counted[2 * place : 2 * place + 2] += (int(found.sum(dtype=np.int64)), found.size)
    return counted


def blockiness(steps: NDArray[np.int64]) -> float | None:
    """Of what `count_steps` counted: the mean step across borders by that inside; None if one is missing."""
    across, borders, inside, others = (int(value) for value in steps)
    return (across / borders) / (inside / others) if borders and inside else None


def compress(pixels: Pixels, format: str, budget: int) -> bytes:
    """A JPEG or WebP file of the highest quality, found by bisection, that has at most `budget` bytes.

    Args:
        pixels: [H, W, 3] uint8.
        format: one of `BASELINES`.
        budget: in bytes; where even the lowest quality has more, it is the lowest quality.

    Raises:
        ImageError: the format cannot hold that many pixels.
    """
    image = Image.fromarray(pixels)

    def save(quality: int, **options: Any) -> bytes:
        stream = io.BytesIO()
        try:
            image.save(stream, format, quality=quality, **options)
        except (OSError, ValueError) as error:
            height, width = pixels.shape[:2]
            raise ImageError(
                f"{format} cannot hold {width:,} x {height:,} pixels: leave the baselines out"
            ) from error
        return stream.getvalue()

    def smallest(quality: int) -> bytes:
        if format == "webp":
            return save(quality, method=6)
        kinds = (save(quality, optimize=True, subsampling="4:2:0", progressive=kind) for kind in (0, 1))
        return min(kinds, key=len)

    best, low, high = smallest(0), 0, 101  # low is known to fit, or there is none that does
    while high - low > 1 and len(best) <= budget:
        middle = (low + high) // 2
        data = smallest(middle)
        if len(data) <= budget:
            best, low = data, middle
        else:
            high = middle
    return best


def load_lpips() -> nn.Module:
    """LPIPS, on AlexNet, as torchmetrics has it; nothing is downloaded.

    Returns:
        A module of two [B, 3, H, W] batches in [-1, 1] that gives their distances, [B, 1, 1, 1].

    Raises:
        VartokError: torchvision, torchmetrics or the weights are not there.
    """
    _find("LPIPS", "torchvision", ALEXNET)
    _torchmetrics()
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        return LearnedPerceptualImagePatchSimilarity(net_type="alex").net
    except Exception as error:  # torchvision of another torch, or a broken file
        raise VartokError(f"LPIPS cannot be loaded: {one_line(error)}") from error


def load_inception() -> nn.Module:
    """The Inception network that Fréchet distances are measured by; nothing is downloaded.

    torch-fidelity's own, which scales pictures as TensorFlow did when the weights were trained.
    torchmetrics' has antialiasing, and gives other distances.

    Returns:
        A module of [B, 3, H, W] uint8 that gives [B, 2048] features.

    Raises:
        VartokError: torch-fidelity or the weights are not there.
    """
    weights = _find("rFID", "torch-fidelity", INCEPTION)
    try:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        return _First(module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights)))
    except Exception as error:
        raise VartokError(f"rFID cannot be loaded: {one_line(error)}") from error


class _First(nn.Module):
    """The first of several results."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        first: Tensor = self.network(images)[0]
        return first


class _Ready(nn.Module):
    """Stands for a network whose features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _frechet_distance(num_features: int) -> Any:
    from torchmetrics.image.fid import FrechetInceptionDistance

    return FrechetInceptionDistance(_Ready(num_features))


def _find(what: str, package: str, url: str) -> Path:
    """The weights where torch.hub would put them.

    Raises:
        VartokError: they, or the package, are not there.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    cures = []
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        cures.append(f"pip install {package}")
    if not path.is_file():
        cures.append(f"download {url} to {path}")
    if cures:
        raise VartokError(f"{what} needs {package} and its weights: {', and '.join(cures)}")
    return path


def _torchmetrics() -> Any:
    """The functions of torchmetrics on images.

    Raises:
        VartokError: it is not installed.
    """
    try:
        import torchmetrics.functional.image
    except ImportError:
        raise VartokError("vartok eval needs torchmetrics: pip install 'vartok[train]'") from None
    return torchmetrics.functional.image


def _likeness(reference: Pixels, copy: Pixels) -> dict[str, Any]:
    """The attributes of a `Likeness`. On the CPU, where no float32 product is less than that."""
    if min(reference.shape[:2]) < SSIM_SIDE:
        raise ImageError(f"has a side of fewer than {SSIM_SIDE} pixels, the window of SSIM")
    measures = _torchmetrics()
    target, preds = (torch.tensor(part).permute(2, 0, 1)[None].float() for part in (reference, copy))
    with torch.no_grad():
        ssim = measures.structural_similarity_index_measure(preds, target, data_range=255.0)
        ms_ssim = None
        if min(reference.shape[:2]) >= MS_SSIM_SIDE:
            ms_ssim = float(
                measures.multiscale_structural_similarity_index_measure(preds, target, data_range=255.0)
            )
    return {"psnr": psnr(reference, copy), "ssim": float(ssim), "ms_ssim": ms_ssim}


def _mean_likeness(scores: Sequence[Likeness]) -> dict[str, Any]:
    return {
        "psnr": _mean([one.psnr for one in scores]),
        "ssim": _mean([one.ssim for one in scores]),
        "ms_ssim": _mean_of_known(one.ms_ssim for one in scores),
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _mean_of_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def _bits(maps: Sequence[NDArray[Any]], tokenizer: Tokenizer) -> float:
    return sum(tokens.size for tokens in maps) * math.log2(tokenizer.config.vocab_size)


def _size_bytes(maps: Sequence[NDArray[Any]], tokenizer: Tokenizer) -> int:
    return math.ceil(_bits(maps, tokenizer) / 8)
