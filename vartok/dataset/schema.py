"""The schema of a data set: names of its files, the encoding that all its tokens share, and dataset.json.

OUT/
  dataset.json             model, schedule and picture settings; sha256 of all shards; whether it is complete
  data/00003-0000.parquet  a shard, part 0 of input shard 3: a row for each view of every sample that did not
                           fail
  stats/00003-0000.json    counts, sha256 and failed samples of the shard; written last, it marks it as done
  failed.jsonl             all failed samples: key, cause and shard of each
  damaged.jsonl            all samples whose picture is damaged and was taken: key, cause and shard of each
  README.md                a card for Hugging Face's loader and for people
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vartok.errors import DatasetError, VartokError, one_line, quoted
from vartok.files import atomic_write, check_regular, os_error_reason
from vartok.images import Views
from vartok.metadata import ImageInfo, ModelInfo
from vartok.schedule import Schedule
from vartok.tokens import check_token_schedule

FORMAT = "vartok.dataset"
VERSION = 1

DATASET = "dataset.json"
DATA = "data"
STATS = "stats"
FAILED = "failed.jsonl"
DAMAGED = "damaged.jsonl"
README = "README.md"

MAX_DESCRIPTION = 1 << 26
"""Size limit in bytes of dataset.json; it has about 200 bytes for each shard."""

OPTIONAL_COLUMNS = ("label", "caption", "metadata")
"""Columns of a row that sources may provide; they are also attributes of `ImageTokens`."""

LATENT = "latent"
"""Column of the latents, in data sets that keep them; also an attribute of `ImageTokens`."""


@dataclass(frozen=True)
class Encoding:
    """The settings that all tokens of a data set share.

    Attributes:
        model: the checkpoint whose codebook the tokens index.
        schedule: (h, w) of every scale, coarse to fine.
        size: (height, width) of the encoded pixels.
        fit: how pictures were brought to `size`: "crop", "pad" or "stretch".
        zoom: with "crop": factor by which pictures were scaled up before the cut, 1 to 100; else 1.
        background: RGB, 0 to 255, under transparency and around padded pictures.
        device: type of the encoder's device, such as "cpu" or "cuda".
        dtype: dtype of the encoder, such as "float32".
        views: views of each picture, as `Views.parse` reads them: "center", "flip", "ten-crop" or "random:N".
        seed: seed of random views; 0 for others.
        latent_channels: C of the latents that rows keep, [C, h, w] with (h, w) the last of `schedule`; None
            if they keep none.
    """

    model: ModelInfo
    schedule: Schedule
    size: tuple[int, int]
    fit: str
    zoom: float
    background: tuple[int, int, int]
    device: str
    dtype: str
    views: str = "center"
    seed: int = 0
    latent_channels: int | None = None

    @property
    def latents(self) -> bool:
        """Whether rows keep latents."""
        return self.latent_channels is not None

    @property
    def latent_shape(self) -> tuple[int, int, int] | None:
        """(C, h, w) of the latents that rows keep; None if they keep none."""
        return None if self.latent_channels is None else (self.latent_channels, *self.schedule[-1])

    @property
    def has_views(self) -> bool:
        """Whether rows have a `View`: each picture has other views than its fitted pixels alone."""
        return self.views != "center"

    @property
    def rows_per_picture(self) -> int:
        """Number of views of each picture, each of which is a row."""
        return Views.parse(self.views).count

    def count_rows(self, shard: dict[str, Any]) -> int:
        """Return the number of rows of a shard, all views of its pictures, from its entry in dataset.json."""
        pictures: int = shard["pictures"]
        return pictures * self.rows_per_picture

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a JSON object with the keys "model", "image" and "schedule".

        A setting that has a default is left out if it has that value.
        """
        image = {
            name: getattr(self, name) for name in ("size", "fit", "zoom", "background", "device", "dtype")
        }
        for field in dataclasses.fields(self):
            if field.default is not dataclasses.MISSING and getattr(self, field.name) != field.default:
                image[field.name] = getattr(self, field.name)
        # JSON turns tuples into lists, so the result equals the parsed file.
        document: dict[str, Any] = json.loads(
            json.dumps({"model": dataclasses.asdict(self.model), "image": image, "schedule": self.schedule})
        )
        return document

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Encoding:
        """Parse the result of `to_dict`.

        Raises:
            VartokError, TypeError, KeyError, ValueError: `document` lacks a key or has an invalid value.
        """
        image = document["image"]
        encoding = cls(
            model=ModelInfo(**document["model"]),
            schedule=check_token_schedule(tuple((h, w) for h, w in document["schedule"])),
            size=tuple(image["size"]),
            fit=image["fit"],
            zoom=image["zoom"],
            background=tuple(image["background"]),
            device=image["device"],
            dtype=image["dtype"],
            **{
                field.name: image[field.name]
                for field in dataclasses.fields(cls)
                if field.default is not dataclasses.MISSING and field.name in image
            },
        )
        Views.parse(encoding.views)
        if type(encoding.seed) is not int or (encoding.latents and not _is_count(encoding.latent_channels)):
            raise DatasetError("'seed' and 'latent_channels' must be whole numbers")
        return encoding

    def image_info(self, key: str, width: int, height: int) -> ImageInfo:
        """Return the metadata of one picture, with the settings that all pictures of the data set share.

        Args:
            key: key of the picture; it becomes `ImageInfo.source`.
            width: width of the picture file in pixels.
            height: height of the picture file in pixels.

        Raises:
            TokensError: a value is out of the range of token files.
        """
        return ImageInfo(
            source=key,
            width=width,
            height=height,
            size=self.size,
            fit=self.fit,
            zoom=self.zoom,
            device=self.device,
            dtype=self.dtype,
            background=self.background,
        )


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def shard_name(index: int, part: int) -> str:
    """Return a shard's file name without suffix; for part 0 of input shard 3, "00003-0000"."""
    return f"{index:05d}-{part:04d}"


def is_dataset(folder: str | Path) -> bool:
    """Return whether a folder holds a data set, even an incomplete or broken one."""
    path = Path(folder, DATASET)
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return f'"{FORMAT}"'.encode() in file.read(1000)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False


def read_description(out: Path) -> dict[str, Any]:
    """Return the parsed dataset.json; only its format and version are checked.

    Raises:
        DatasetError: the file is missing, cannot be read, is not vartok's, or has another version.
    """
    path = out / DATASET
    try:
        check_regular(path)
        if path.stat().st_size > MAX_DESCRIPTION:
            raise DatasetError(f"{path} is larger than {MAX_DESCRIPTION >> 20} MiB")
        description = json.loads(path.read_bytes())
    except DatasetError as error:
        raise DatasetError(f"{path} {error}") from None
    except FileNotFoundError:
        raise DatasetError(f"{out} holds no data set: there is no {DATASET}") from None
    except OSError as error:
        raise DatasetError(f"{path}: {os_error_reason(error)}") from None
    except (ValueError, RecursionError):
        description = None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise DatasetError(f"{path} does not describe a data set of vartok")
    if description.get("version") != VERSION:
        raise DatasetError(
            f"{path} has version {quoted(description.get('version'))}, and this vartok reads {VERSION}",
            hint="upgrade vartok",
        )
    return description


def open_dataset(out: Path) -> tuple[dict[str, Any], Encoding]:
    """Read and check dataset.json.

    Returns:
        The parsed dataset.json, and the `Encoding` in it.

    Raises:
        DatasetError: dataset.json is missing, cannot be read, has another version, or is broken.
    """
    description = read_description(out)
    hint = "remove it and build the data set again; finished shards are kept"
    try:
        encoding = Encoding.from_dict(description)
        if not isinstance(description["files"], str):
            raise DatasetError(f"'files' must be the name of a format, not {quoted(description['files'])}")
        columns = description.get("carried", {})
        if type(columns) is not dict or any(type(count) is not int for count in columns.values()):
            raise DatasetError("'carried' must give a count for every column")
        if not all(isinstance(name, str) for name in description.get("classes", ())):
            raise DatasetError("'classes' must be a list of texts")
        for shard in description["shards"] if description.get("complete") else description.get("shards", ()):
            if not re.fullmatch(rf"{DATA}/[0-9]+-[0-9]+\.[a-z]+", shard["name"]):
                raise DatasetError(f"{quoted(shard['name'])} is not a shard's name")
            if type(shard["pictures"]) is not int or shard["pictures"] < 0:
                raise DatasetError(f"'pictures' of a shard must be a count, not {quoted(shard['pictures'])}")
    except KeyError as error:
        raise DatasetError(f"{out / DATASET} is broken: it has no {error}", hint=hint) from None
    except (VartokError, TypeError, ValueError) as error:
        raise DatasetError(f"{out / DATASET} is broken: {one_line(error)}", hint=hint) from None
    return description, encoding


def write_text(path: Path, text: str) -> None:
    """Write a text file, or replace it, atomically: not even a power cut leaves a part of the text.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_write(path, overwrite=True, durable=True) as file:
        file.write(text.encode())
