"""The shards of a data set: rows of tokens to Parquet, WebDataset tars or JSON lines, and back.

The same rows give the same bytes, whatever the clock and the batches that they came in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from vartok.errors import DatasetError, VartokError, one_line, quoted
from vartok.schedule import Schedule, check_schedule, token_count
from vartok.tokens import ImageInfo, ImageTokens, ModelInfo, token_dtype

FORMAT = "vartok.dataset"
VERSION = 1
DATASET, DATA = "dataset.json", "data"
SUFFIXES = {"parquet": ".parquet", "wds": ".tar", "jsonl": ".jsonl"}

GROUP = 1024
"""Rows of a Parquet row group: what a reader takes at once, and what the writer holds."""

GROUP_TEXT = 1 << 25
"""Characters of captions and metadata that end a row group early."""

MAX_ROW = 1 << 26
"""Bytes of a row of JSON, or of a file of tokens in a tar."""


@dataclass(frozen=True)
class Encoding:
    """What all tokens of a data set have in common, and how they came about.

    Attributes:
        model: the checkpoint.
        schedule: the (h, w) grid of every scale.
        size: (height, width) of the pixels that were encoded.
        fit: how pictures were brought to that size.
        zoom: as `Fit` has it.
        background: RGB under transparency and around padded pictures.
        device: what the encoder ran on.
        dtype: what it computed in.
    """

    model: ModelInfo
    schedule: Schedule
    size: tuple[int, int]
    fit: str
    zoom: float
    background: tuple[int, int, int]
    device: str
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: an object for the model, the schedule, one for the image."""
        image = {
            name: getattr(self, name) for name in ("size", "fit", "zoom", "background", "device", "dtype")
        }
        # Through JSON, to have what is read: lists, where there were tuples.
        document: dict[str, Any] = json.loads(
            json.dumps({"model": dataclasses.asdict(self.model), "image": image, "schedule": self.schedule})
        )
        return document

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Encoding:
        """Undo `to_dict`.

        Raises:
            VartokError, TypeError, KeyError: something else.
        """
        image = document["image"]
        return cls(
            model=ModelInfo(**document["model"]),
            schedule=check_schedule(tuple((h, w) for h, w in document["schedule"])),
            size=tuple(image["size"]),
            fit=image["fit"],
            zoom=image["zoom"],
            background=tuple(image["background"]),
            device=image["device"],
            dtype=image["dtype"],
        )

    def image_info(self, source: str, width: int, height: int) -> ImageInfo:
        """What a token file says of one of the pictures."""
        return ImageInfo(
            source=source,
            width=width,
            height=height,
            size=self.size,
            fit=self.fit,
            zoom=self.zoom,
            device=self.device,
            dtype=self.dtype,
        )


@dataclass(frozen=True, eq=False)
class Row:
    """A picture of a data set.

    Attributes:
        key: what it is called.
        tokens: [L] uint16, or uint32 above 65,536 codes; coarse to fine, each scale row by row.
        width: of the picture as it was found, in pixels.
        height: of the same.
        label: a class, 0 or more.
        caption: any text.
        metadata: JSON, as it was found.
        picture: where a tar keeps it, the file that was tokenized.
    """

    key: str
    tokens: NDArray[Any]
    width: int
    height: int
    label: int | None = None
    caption: str | None = None
    metadata: str | None = None
    picture: bytes | None = None


CARRIED = ("label", "caption", "metadata")


def read_description(out: Path) -> dict[str, Any]:
    """What dataset.json says.

    Raises:
        DatasetError: there is none, or it is no data set of this version of vartok.
    """
    path = out / DATASET
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DatasetError(f"{out} holds no data set: there is no {DATASET}") from None
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DatasetError(f"{path} describes no data set of vartok's")
    if found.get("version") != VERSION:
        raise DatasetError(
            f"{path} is of version {quoted(found.get('version'))}; this vartok reads {VERSION}"
        )
    return found


def open_dataset(out: Path) -> tuple[dict[str, Any], Encoding]:
    """What dataset.json says, and of it what its tokens have in common.

    Raises:
        DatasetError: there is none, or it does not say.
    """
    description = read_description(out)
    try:
        encoding = Encoding.from_dict(description)
        if description["files"] not in SUFFIXES:
            raise DatasetError(f"shards of an unknown format, {one_line(description['files'])}")
        columns = description.get("carried", {})
        if type(columns) is not dict or any(type(count) is not int for count in columns.values()):
            raise DatasetError("what is carried along")
        if not all(isinstance(name, str) for name in description.get("classes", ())):
            raise DatasetError("classes that are no names")
        for shard in description["shards"] if description.get("complete") else description.get("shards", ()):
            if not re.fullmatch(rf"{DATA}/[0-9]+-[0-9]+\.[a-z]+", shard["name"]):
                raise DatasetError(f"a shard called {quoted(shard['name'])}")
            if type(shard["pictures"]) is not int or shard["pictures"] < 0:
                raise DatasetError(f"a shard of {quoted(shard['pictures'])} pictures")
    except (VartokError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{out / DATASET} is broken: {one_line(error)}") from None
    return description, encoding


class Writer(Protocol):
    """Writes rows into a stream."""

    def add(self, row: Row) -> None:
        """Write a row, or keep it until there are more.

        Raises:
            VartokError: the format cannot hold it; nothing of it is written.
        """

    def close(self) -> None:
        """Write what is left; the stream stays open."""


def write_shard(format: str, stream: HashedFile, encoding: Encoding) -> Writer:
    """A writer of one of `SUFFIXES`' formats."""
    writers: dict[str, Callable[[HashedFile, Encoding], Writer]] = {
        "parquet": _ParquetWriter,
        "wds": _TarWriter,
        "jsonl": _JsonWriter,
    }
    return writers[format](stream, encoding)


def read_shard(format: str, path: Path, encoding: Encoding) -> Iterator[Row]:
    """Read a shard's rows, whole, in order.

    Args:
        format: one of `SUFFIXES`.
        path: the shard.
        encoding: what its data set says of its tokens.

    Raises:
        DatasetError: it is not such a shard, or holds rows of another encoding, as far as it says of which.
            Indices are not compared with the vocabulary.
        OSError: it cannot be read.
    """
    readers: dict[str, Callable[[Path, Encoding], Iterator[Row]]] = {
        "parquet": _read_parquet,
        "wds": _read_tar,
        "jsonl": _read_json,
    }
    length, dtype = token_count(encoding.schedule), token_dtype(encoding.model.vocab_size)
    try:
        for row in readers[format](path, encoding):
            if row.tokens.shape != (length,) or row.tokens.dtype.kind not in "iu":
                raise DatasetError(f"{one_line(row.key)}: not {length} tokens")
            if row.tokens.dtype != dtype:
                low, high = int(row.tokens.min()), int(row.tokens.max())
                if low < 0 or high > np.iinfo(dtype).max:
                    raise DatasetError(f"{one_line(row.key)}: an index that is not {dtype}")
                row = dataclasses.replace(row, tokens=row.tokens.astype(dtype))
            yield row
    except (DatasetError, OSError):
        raise
    except Exception as error:  # whatever Arrow, tarfile and the like raise for broken bytes
        raise DatasetError(
            f"is no {format} shard of tokens: {one_line(error) or type(error).__name__}"
        ) from error


class HashedFile(io.RawIOBase):
    """A file that is only written, and knows the sha256 of what was.

    Attributes:
        size: bytes that were written.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Bytes that were written."""
        return self.size

    def write(self, data: Any) -> int:
        """Write all of some bytes."""
        count = memoryview(data).nbytes
        if self._file.closed:  # given up, while a writer of Arrow's still wants to end well
            return count
        self._file.write(data)
        self._hash.update(data)
        self.size += count
        return count

    @property
    def sha256(self) -> str:
        """In hex."""
        return self._hash.hexdigest()


class _ParquetWriter:
    """Rows in groups of GROUP; tokens dictionary-coded, which packs an index into 12 bits, then zstd."""

    def __init__(self, stream: HashedFile, encoding: Encoding) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        about = {"format": FORMAT, "version": VERSION, **encoding.to_dict()}
        tokens = pa.uint16() if token_dtype(encoding.model.vocab_size).itemsize == 2 else pa.uint32()
        self._tokens = pa.list_(tokens, token_count(encoding.schedule))
        self._schema = pa.schema(
            [
                pa.field("key", pa.string(), nullable=False),
                pa.field("tokens", self._tokens, nullable=False),
                pa.field("width", pa.int32(), nullable=False),
                pa.field("height", pa.int32(), nullable=False),
                pa.field("label", pa.int64()),
                pa.field("caption", pa.string()),
                pa.field("metadata", pa.string()),
            ],
            metadata={"vartok": json.dumps(about)},
        )
        self._writer = pq.ParquetWriter(stream, self._schema, compression="zstd")
        self._rows: list[Row] = []
        self._held = 0

    def add(self, row: Row) -> None:
        self._rows.append(row)
        self._held += len(row.caption or "") + len(row.metadata or "")
        if len(self._rows) == GROUP or self._held > GROUP_TEXT:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        rows = self._rows
        flat = np.concatenate([row.tokens for row in rows])
        columns = [
            pa.array([row.key for row in rows], pa.string()),
            pa.FixedSizeListArray.from_arrays(pa.array(flat), type=self._tokens),
            *(
                pa.array([getattr(row, field.name) for row in rows], field.type)
                for field in list(self._schema)[2:]
            ),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=GROUP)
        self._rows = []
        self._held = 0


def _read_parquet(path: Path, encoding: Encoding) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        schema = table.schema_arrow
        if Encoding.from_dict(json.loads(schema.metadata[b"vartok"])) != encoding:
            raise DatasetError("is of another data set")
        if schema.field("tokens").type.list_size != token_count(encoding.schedule):
            raise DatasetError(f"not {token_count(encoding.schedule)} tokens a row")
        others = ["key", "width", "height", *CARRIED]
        for rows in table.iter_batches(GROUP, columns=[*others, "tokens"], use_threads=False):
            lists = rows.column("tokens")
            tokens = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)
            for flat, about in zip(tokens, rows.select(others).to_pylist(), strict=True):
                yield _row(about, flat)


class _TarWriter:
    """KEY.tokens.npy, KEY.json and perhaps the picture, of every row, with no clock and no owner."""

    def __init__(self, stream: HashedFile, encoding: Encoding) -> None:
        self._archive = tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._key: str | None = None

    def add(self, row: Row) -> None:
        if row.key == self._key:
            raise DatasetError("has the key of the picture before it, and a tar cannot tell them apart")
        self._key = row.key
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, row.tokens, version=(1, 0), allow_pickle=False)
        about = {
            name: getattr(row, name)
            for name in ("key", "width", "height", *CARRIED)
            if getattr(row, name) is not None
        }
        key = _tar_key(row.key)
        self._write(f"{key}.tokens.npy", buffer.getvalue())
        self._write(f"{key}.json", json.dumps(about).encode())
        if row.picture is not None:
            self._write(f"{key}.{_picture_suffix(row.picture)}", row.picture)

    def close(self) -> None:
        self._archive.close()

    def _write(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._archive.addfile(member, io.BytesIO(data))
        self._archive.members.clear()  # type: ignore[attr-defined]  # or all headers would stay in memory


def _tar_key(key: str) -> str:
    """A key as the name of a sample, which leads nowhere but down, and no other key's.

    WebDataset ends it at the first dot after the last slash; no tar holds all characters.
    """
    *folders, name = map(_escape, key.split("/"))
    folders = [folder.replace(".", "%2E") if folder in (".", "..") else folder for folder in folders]
    return "/".join([*folders, name.replace(".", "%2E")])


def _escape(part: str) -> str:
    """A part of a path without control characters, by %XX as in URLs; an empty one is a % alone."""
    return re.sub(r"[%\0-\x1f\x7f-\x9f\u2028\u2029]", lambda found: f"%{ord(found[0]):02X}", part) or "%"


def _picture_suffix(picture: bytes) -> str:
    """The extension of a picture by what it begins with, as WebDataset's readers go by it."""
    for start, suffix in (
        (b"\x89PNG", "png"),
        (b"\xff\xd8", "jpg"),
        (b"GIF8", "gif"),
        (b"II*", "tif"),
        (b"MM", "tif"),
    ):
        if picture.startswith(start):
            return suffix
    if picture[:4] == b"RIFF" and picture[8:12] == b"WEBP":
        return "webp"
    return "bmp" if picture.startswith(b"BM") else "img"


def _read_tar(path: Path, encoding: Encoding) -> Iterator[Row]:
    key, parts = "", dict[str, bytes]()
    with tarfile.open(path, "r|") as archive:
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]
            match = re.fullmatch(r"((?:.*/)?[^./]+)\.(tokens\.npy|json)", member.name)
            if not match or not member.isreg():
                continue
            if member.size > MAX_ROW:
                raise DatasetError(f"{one_line(member.name)} is larger than {MAX_ROW:,} bytes")
            if match[1] != key and parts:
                yield _tar_row(key, parts)
                parts = {}
            key = match[1]
            file = archive.extractfile(member)
            parts[match[2]] = file.read() if file else b""
    if parts:
        yield _tar_row(key, parts)


def _tar_row(key: str, parts: dict[str, bytes]) -> Row:
    if parts.keys() != {"tokens.npy", "json"}:
        raise DatasetError(f"{one_line(key)}: not both its tokens and its .json")
    stream = io.BytesIO(parts["tokens.npy"])
    if np.lib.format.read_magic(stream) != (1, 0):
        raise DatasetError(f"{one_line(key)}: tokens of another version of npy")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if (
        len(shape) != 1
        or dtype.kind not in "iu"
        or len(parts["tokens.npy"]) - stream.tell() != shape[0] * dtype.itemsize
    ):
        raise DatasetError(f"{one_line(key)}: not an array of tokens")
    tokens = np.frombuffer(parts["tokens.npy"], dtype, offset=stream.tell())
    return _row(json.loads(parts["json"]), tokens)


class _JsonWriter:
    """A token file's JSON a line, which `vartok decode` draws, and beside it the key and what is carried."""

    def __init__(self, stream: HashedFile, encoding: Encoding) -> None:
        self._stream = stream
        self._encoding = encoding

    def add(self, row: Row) -> None:
        encoding = self._encoding
        info = encoding.image_info(row.key, row.width, row.height)
        tokens = ImageTokens.unflatten(row.tokens, encoding.schedule, encoding.model, info)
        about = {name: getattr(row, name) for name in ("key", *CARRIED) if getattr(row, name) is not None}
        line = json.dumps(about, separators=(",", ":"))[:-1] + "," + tokens.to_json()[1:]
        self._stream.write(f"{line}\n".encode())

    def close(self) -> None:
        pass


def _read_json(path: Path, encoding: Encoding) -> Iterator[Row]:
    with open(path, "rb") as file:
        while line := file.readline(MAX_ROW):
            tokens = ImageTokens.from_json(line)
            if tokens.model != encoding.model or tokens.schedule != encoding.schedule:
                raise DatasetError("is of another data set")
            yield _row(
                {"width": tokens.image.width, "height": tokens.image.height, **json.loads(line)},
                tokens.flatten(),
            )


def _row(about: Any, tokens: NDArray[Any]) -> Row:
    """A row of its JSON, checked."""
    kinds: dict[str, type] = {
        "key": str,
        "width": int,
        "height": int,
        "label": int,
        "caption": str,
        "metadata": str,
    }
    if not isinstance(about, dict):
        raise DatasetError("a row is not a JSON object")
    values: dict[str, Any] = {name: about.get(name) for name in kinds}
    for name, kind in kinds.items():
        if type(values[name]) is not kind and (name not in CARRIED or values[name] is not None):
            raise DatasetError(f"{name} of a row is {quoted(values[name])}")
    try:
        values["key"].encode()
    except UnicodeEncodeError:
        raise DatasetError("a key that is not Unicode") from None
    return Row(tokens=tokens, **values)
