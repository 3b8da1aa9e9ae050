"""The schema of a data set: names of its files, the encoding that all its tokens share, and dataset.json.

OUT/
  dataset.json             model, schedule and picture settings; sha256 of all shards; whether it is complete
  data/00003-0000.parquet  a shard, part 0 of input shard 3: a row for each view of every sample that did not
                           fail
  data/256x384/...         with buckets: the shards of the pictures that were cropped to 256x384 pixels
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

from vartok.buckets import Bucket
from vartok.errors import DatasetError, VartokError, one_line, quoted
from vartok.files import atomic_write, check_regular, os_error_reason
from vartok.images import Views
from vartok.metadata import ImageInfo, ModelInfo
from vartok.schedule import Schedule, first_scales
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
        schedule: (h, w) of every scale of the whole schedule, coarse to fine.
        size: (height, width) of the encoded pixels.
        fit: how pictures were brought to `size`: "crop", "pad", "stretch" or "bucket".
        zoom: with "crop" and "bucket": factor by which pictures were scaled up before the cut, 1 to 100;
            else 1.
        background: RGB, 0 to 255, under transparency and around padded pictures.
        device: type of the encoder's device, such as "cpu" or "cuda".
        dtype: dtype of the encoder, such as "float32".
        resample: how pictures were scaled, "lanczos" or "adm"; see `vartok.images.Fit`.
        views: views of each picture, as `Views.parse` reads them: "center", "flip", "ten-crop" or "random:N".
        seed: seed of random views; 0 for others.
        latent_channels: C of the latents that rows keep, [C, h, w] with (h, w) the last of `schedule`; None
            if they keep none.
        buckets: sizes and schedules of a data set with the fit "bucket", `size` and `schedule` being those of
            the first; `of_bucket` gives the encoding of each. Empty for one bucket, and for other fits.
        scales: K, the number of scales whose tokens rows hold, the first K of `schedule`; None for all.
    """

    model: ModelInfo
    schedule: Schedule
    size: tuple[int, int]
    fit: str
    zoom: float
    background: tuple[int, int, int]
    device: str
    dtype: str
    resample: str = "lanczos"
    views: str = "center"
    seed: int = 0
    latent_channels: int | None = None
    buckets: tuple[Bucket, ...] = ()
    scales: int | None = None

    @property
    def grids(self) -> Schedule:
        """(h, w) of each scale whose tokens rows hold."""
        return self.schedule[: self.scales]

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

    def of_bucket(self, name: str) -> Encoding:
        """Return the encoding of a bucket, as its shards record it; without buckets, this one.

        Args:
            name: name of the bucket, see `bucket_name`; "" without buckets.

        Raises:
            DatasetError: there is no such bucket.
        """
        if not self.buckets and not name:
            return self
        for size, schedule in self.buckets:
            if bucket_name(size) == name:
                return dataclasses.replace(self, size=size, schedule=schedule, buckets=())
        raise DatasetError(f"{quoted(name)} is no bucket of this data set")

    def of_shard(self, name: str) -> Encoding:
        """Return the encoding of a shard, that of its bucket.

        Args:
            name: name of the shard in dataset.json: its path in the data set.

        Raises:
            DatasetError: the shard lies in the folder of no bucket.
        """
        return self.of_bucket("/".join(name.split("/")[1:-1]))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a JSON object: "model", "image", and "schedule" or "buckets".

        A setting of an image that has a default is left out if it has that value.
        """
        image = {
            name: getattr(self, name) for name in ("size", "fit", "zoom", "background", "device", "dtype")
        }
        for name, default in _image_options().items():
            if getattr(self, name) != default:
                image[name] = getattr(self, name)
        grids: dict[str, Any] = {"schedule": self.schedule}
        if self.buckets:
            del image["size"]
            grids = {"buckets": [bucket._asdict() for bucket in self.buckets]}
        # JSON turns tuples into lists, so the result equals the parsed file.
        document: dict[str, Any] = json.loads(
            json.dumps({"model": dataclasses.asdict(self.model), "image": image, **grids})
        )
        return document

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Encoding:
        """Parse the result of `to_dict`.

        Raises:
            VartokError, TypeError, KeyError, ValueError: `document` lacks a key or has an invalid value.
        """
        image = document["image"]
        buckets = _read_buckets(document["buckets"]) if "buckets" in document else ()
        size, schedule = buckets[0] if buckets else (image["size"], document["schedule"])
        encoding = cls(
            model=ModelInfo(**document["model"]),
            schedule=check_token_schedule(tuple((h, w) for h, w in schedule)),
            size=tuple(size),
            fit=image["fit"],
            zoom=image["zoom"],
            background=tuple(image["background"]),
            device=image["device"],
            dtype=image["dtype"],
            **{name: image[name] for name in _image_options() if name in image},
            buckets=buckets,
        )
        Views.parse(encoding.views)
        if type(encoding.seed) is not int or (encoding.latents and not _is_count(encoding.latent_channels)):
            raise DatasetError("'seed' and 'latent_channels' must be whole numbers")
        if encoding.scales is not None and not _is_count(encoding.scales):
            raise DatasetError("'scales' must be a whole number")
        first_scales(encoding.schedule, encoding.scales)
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
            resample=self.resample,
            device=self.device,
            dtype=self.dtype,
            background=self.background,
        )


def _image_options() -> dict[str, Any]:
    """Return the attributes of an `Encoding` that "image" holds unless they have their default; by name."""
    options = {field.name: field.default for field in dataclasses.fields(Encoding)}
    return {
        name: default
        for name, default in options.items()
        if default is not dataclasses.MISSING and name != "buckets"
    }


def _read_buckets(items: Any) -> tuple[Bucket, ...]:
    """Parse "buckets" of dataset.json: at least one bucket, no two of one size.

    Raises:
        VartokError, TypeError, KeyError, ValueError: an invalid value.
    """
    buckets = []
    for item in items:
        height, width = item["size"]
        if not (_is_count(height) and _is_count(width)):
            raise DatasetError(f"a bucket's 'size' must be [height, width], not {quoted(item['size'])}")
        schedule = check_token_schedule(tuple((h, w) for h, w in item["schedule"]))
        buckets.append(Bucket((height, width), schedule))
    if not buckets or len({bucket.size for bucket in buckets}) < len(buckets):
        raise DatasetError("'buckets' must be a list of buckets of different sizes")
    return tuple(buckets)


def without_count(bucket: Any) -> Any:
    """Return an entry of "buckets" in dataset.json without the number of its pictures."""
    return {k: v for k, v in bucket.items() if k != "pictures"} if isinstance(bucket, dict) else bucket


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def shard_name(index: int, part: int) -> str:
    """Return a shard's file name without suffix; for part 0 of input shard 3, "00003-0000"."""
    return f"{index:05d}-{part:04d}"


def shard_file(name: str, bucket: str, suffix: str) -> str:
    """Return the path of a shard's file in the data set, such as "data/256x384/00003-0000.parquet".

    Args:
        name: name of the shard, see `shard_name`.
        bucket: name of the bucket, see `bucket_name`; "" without buckets.
        suffix: suffix of the format.
    """
    return "/".join(filter(None, (DATA, bucket, name + suffix)))


def bucket_name(size: tuple[int, int]) -> str:
    """Return the name of the bucket of a (height, width), and of its folder in data/, such as "256x384"."""
    return f"{size[0]}x{size[1]}"


def find_shard(path: Path) -> tuple[Path, str] | None:
    """Return the folder of the data set that a shard lies in, and the shard's name in dataset.json.

    None if the path lies neither in data/ of a data set nor in a bucket's folder there. No file need exist.
    """
    whole = path.absolute()
    for depth in (2, 3):
        folders = whole.parts[-depth:-1]
        root = whole.parents[depth - 1] if len(whole.parents) >= depth else None
        if root and folders[0] == DATA and is_dataset(root):
            return root, "/".join((*folders, whole.name))
    return None


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
            if not re.fullmatch(rf"{DATA}/([0-9]+x[0-9]+/)?[0-9]+-[0-9]+\.[a-z]+", shard["name"]):
                raise DatasetError(f"{quoted(shard['name'])} is not a shard's name")
            encoding.of_shard(shard["name"])
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
