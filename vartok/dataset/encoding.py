"""The encoding of a data set: the settings that all its tokens share, as dataset.json states them."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from typing import Any

from vartok.buckets import MAX_BUCKETS, Bucket
from vartok.errors import DatasetError, quoted
from vartok.images import Views
from vartok.metadata import ImageInfo, ModelInfo
from vartok.schedule import Schedule, first_scales
from vartok.tokens import check_token_schedule


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
        """True if rows keep latents."""
        return self.latent_channels is not None

    @property
    def latent_shape(self) -> tuple[int, int, int] | None:
        """(C, h, w) of the latents that rows keep; None if they keep none."""
        return None if self.latent_channels is None else (self.latent_channels, *self.schedule[-1])

    @property
    def has_views(self) -> bool:
        """True if rows have a `View`, as pictures have other views than their fitted pixels."""
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
        if name not in self._by_name:
            raise DatasetError(f"{quoted(name)} is no bucket of this data set")
        size, schedule = self._by_name[name]
        return dataclasses.replace(self, size=size, schedule=schedule, buckets=())

    @functools.cached_property
    def _by_name(self) -> dict[str, Bucket]:
        return {bucket_name(bucket.size): bucket for bucket in self.buckets}

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
        for grids in (encoding.schedule, *(bucket.schedule for bucket in buckets)):
            first_scales(grids, encoding.scales)
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
    """Parse "buckets" of dataset.json: 1 to `MAX_BUCKETS` buckets, no two of one size.

    Raises:
        VartokError, TypeError, KeyError, ValueError: an invalid value.
    """
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_BUCKETS:
        raise DatasetError(f"'buckets' must be a list of 1 to {MAX_BUCKETS} buckets")
    buckets = []
    for item in items:
        height, width = item["size"]
        if not (_is_count(height) and _is_count(width)):
            raise DatasetError(f"a bucket's 'size' must be [height, width], not {quoted(item['size'])}")
        schedule = check_token_schedule(tuple((h, w) for h, w in item["schedule"]))
        buckets.append(Bucket((height, width), schedule))
    if len({bucket.size for bucket in buckets}) < len(buckets):
        raise DatasetError("'buckets' must have different sizes")
    return tuple(buckets)


def bucket_name(size: tuple[int, int]) -> str:
    """Return the name of the bucket of a (height, width), and of its folder in data/, such as "256x384"."""
    return f"{size[0]}x{size[1]}"


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0
