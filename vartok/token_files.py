"""The formats of token files, npz and JSON: one image's tokens to bytes and back.

A token file may come from anywhere, so the parsers trust nothing: for any bytes they return valid tokens or
raise TokenFileError, and take memory in proportion to the file. JSON and npz are in one module, since they
hold the same document and share its checks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import numpy as np

from vartok.errors import TokenFileError, TokensError, quoted
from vartok.files import write_bytes
from vartok.metadata import ImageInfo, ModelInfo
from vartok.npy import MAX_NPY_START, read_npy_header
from vartok.schedule import Schedule
from vartok.tokens import ImageTokens, check_token_schedule

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = "vartok.tokens"
VERSION = 1

MAX_DOCUMENT_BYTES = 40 << 20
"""Size limit of an image's JSON or npz, in bytes; parsed JSON takes 25 times its size in memory. The JSON of
`tokens.MAX_TOKENS` tokens fits: 8 digits and a comma a token at most, and brackets of at most 2**20 rows."""

MAX_META = 1 << 20  # bytes of meta.npy, 4 a character: fits five texts of 4,096 characters, escaped by 12

_Info = TypeVar("_Info", ModelInfo, ImageInfo)


class TokenMetadata(NamedTuple):
    """Metadata of an image's tokens in a token file.

    Attributes:
        model: the checkpoint that encoded the image.
        image: the image that was encoded.
        schedule: (h, w) of every scale of the whole schedule.
        scales: K, the number of scales that the file holds: the first K of the schedule.
    """

    model: ModelInfo
    image: ImageInfo
    schedule: Schedule
    scales: int


def save_tokens(tokens: ImageTokens, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a token file; see `ImageTokens.save`."""
    suffix = Path(path).suffix.lower()
    if suffix == ".npz":
        data = dump_npz(tokens)
    elif suffix in (".json", ".jsonl"):
        data = f"{dump_json(tokens)}\n".encode()
    else:
        raise TokenFileError(f"{path}: the name of a token file must end in .npz, .json or .jsonl")
    write_bytes(Path(path), data, overwrite=overwrite)


def dump_json(tokens: ImageTokens) -> str:
    """Return one JSON object on one line, in ASCII, without a newline; equal tokens give equal text."""
    return _dump({**_meta(tokens), "scales": [scale.tolist() for scale in tokens.scales]})


def parse_json(text: str | bytes) -> ImageTokens:
    """Parse the JSON of a token file, in any layout. Unknown keys are ignored.

    Args:
        text: one JSON object; bytes are UTF-8, with or without a byte order mark.

    Raises:
        TokenFileError: not the tokens of an image, or damaged.
    """
    with _as_file_errors():
        document = _parse(text)
        model, image, schedule, count = _json_meta(document)
        scales = []
        for number, (rows, (h, w)) in enumerate(zip(document["scales"], schedule[:count], strict=True), 1):
            # Check types first: numpy reads true as 1, and pads every string to the longest one.
            if not isinstance(rows, list) or len(rows) != h or not all(_is_row(row, w) for row in rows):
                raise TokenFileError(
                    f"scale {number} must be {h} rows of {w} whole numbers, its grid in the schedule"
                )
            try:
                scales.append(np.array(rows, dtype=np.int64))
            except OverflowError:
                raise TokenFileError(f"scale {number}: an index is outside the vocabulary") from None
        return ImageTokens(tuple(scales), model, image, schedule=schedule)


def dump_npz(tokens: ImageTokens) -> bytes:
    """Return the bytes of an npz with `scale_00`, `scale_01`, ... and `meta`; equal tokens give equal bytes.

    Source: numpy.lib.format; np.savez is not used, as it would write the current time.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for k, scale in enumerate(tokens.scales):
            # Stored, not deflated: indices hardly compress, and a stored entry cannot inflate.
            _write_entry(archive, _scale_name(k), scale, zipfile.ZIP_STORED)
        meta = _dump(_meta(tokens))
        _write_entry(archive, "meta.npy", np.array(meta, dtype=f"<U{len(meta)}"), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def parse_npz(data: bytes) -> ImageTokens:
    """Parse an npz of `dump_npz`, or one of np.savez or np.savez_compressed with the same arrays.

    Raises:
        TokenFileError: not the tokens of an image, or damaged.
    """
    with _as_file_errors(), _open_npz(data) as archive:
        model, image, schedule, count = _read_meta(archive)
        arrays = [
            # 8 bytes a cell: numpy's largest integers
            _read_entry(archive, _scale_name(k), "iu", (h, w), MAX_NPY_START + 8 * h * w)
            for k, (h, w) in enumerate(schedule[:count])
        ]
        return ImageTokens(tuple(arrays), model, image, schedule=schedule)


def npz_metadata(data: bytes) -> TokenMetadata:
    """Parse the metadata of an npz of tokens, without the tokens.

    Raises:
        TokenFileError: the metadata are damaged, or it is no npz of tokens.
    """
    with _as_file_errors(), _open_npz(data) as archive:
        return _read_meta(archive)


def json_metadata(text: str | bytes) -> TokenMetadata:
    """Parse the JSON of a token file, and return its metadata; the tokens are not checked.

    Raises:
        TokenFileError: the metadata are damaged, or it is no JSON of a token file.
    """
    with _as_file_errors():
        return _json_meta(_parse(text))


def _dump(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"), allow_nan=False)


def _parse(text: str | bytes) -> dict[str, Any]:
    """Parse the JSON object in `text`."""
    _check_size(text)
    if not text:
        raise TokenFileError("it is empty")
    try:
        document = json.loads(
            text if isinstance(text, str) else text.decode("utf-8-sig"), parse_constant=_refuse_constant
        )
    except UnicodeDecodeError:
        reason = "not UTF-8 text"
    except json.JSONDecodeError as error:
        reason = f"not JSON, or cut short: {error.msg} (character {error.pos + 1})"
    except ValueError:  # Python's guard against the quadratic time that long numbers take
        reason = "a number has too many digits"
    else:
        if isinstance(document, dict):
            return document
        reason = "not a JSON object"
    raise TokenFileError(reason)  # not above: the errors there hold the text, and this one may be kept


def _refuse_constant(name: str) -> NoReturn:
    raise TokenFileError(f"{name} is not a number that JSON allows")


def _meta(tokens: ImageTokens) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": dataclasses.asdict(tokens.model),
        "image": _stated(tokens.image),
        "schedule": tokens.schedule,
    }


def _stated(image: ImageInfo) -> dict[str, Any]:
    """Return the fields that a document states of an image: all but optional ones that have their default."""
    values = {field: getattr(image, field.name) for field in dataclasses.fields(image)}
    return {field.name: value for field, value in values.items() if value != field.default}


def _json_meta(document: dict[str, Any]) -> TokenMetadata:
    """Return the metadata in a JSON object that also holds the scales, after checking it and their number."""
    scales = document.get("scales")
    return _check_meta(document, len(scales) if isinstance(scales, list) else 0)


def _check_meta(document: dict[str, Any], scales: int) -> TokenMetadata:
    """Return the metadata in a token file's JSON object, after checking it.

    Args:
        document: the object.
        scales: number of scales that the file holds.
    """
    if document.get("format") != FORMAT:
        raise TokenFileError(f'not a token file: its format is not "{FORMAT}"')
    version = document.get("version")
    if type(version) is not int or version < 1:
        raise TokenFileError(f"version must be a whole number from 1, not {quoted(version)}")
    if version != VERSION:
        raise TokenFileError(
            f"it has version {quoted(version)}, but this vartok reads version {VERSION}; upgrade vartok"
        )
    schedule = check_token_schedule(document.get("schedule"))
    model, image = _info(ModelInfo, "model", document), _info(ImageInfo, "image", document)
    if not 1 <= scales <= len(schedule):
        raise TokenFileError(
            f"its scales must be 1 to {len(schedule)} grids, the first of its schedule, but it has {scales}"
        )
    return TokenMetadata(model, image, schedule, scales)


def _info(cls: type[_Info], key: str, document: dict[str, Any]) -> _Info:
    values = document.get(key)
    if not isinstance(values, dict):
        raise TokenFileError(f"{key} must be a JSON object")
    fields = dataclasses.fields(cls)
    for field in fields:
        if field.name not in values and field.default is dataclasses.MISSING:
            raise TokenFileError(f"{key} has no {field.name}")
    return cls(**{field.name: values[field.name] for field in fields if field.name in values})


def _scale_name(k: int) -> str:
    return f"scale_{k:02d}.npy"


def _write_entry(archive: zipfile.ZipFile, name: str, array: NDArray[Any], compression: int) -> None:
    entry = zipfile.ZipInfo(name)  # its date is always 1980-01-01
    entry.create_system = 3  # Unix, on every system
    entry.external_attr = 0o644 << 16
    entry.compress_type = compression
    npy = io.BytesIO()
    np.lib.format.write_array(npy, array, version=(1, 0), allow_pickle=False)
    archive.writestr(entry, npy.getvalue())


def _open_npz(data: bytes) -> zipfile.ZipFile:
    """Open a zip and check that its directory is that of a token file; nothing is inflated yet."""
    _check_size(data)
    # Counted first: zipfile's objects take twenty times the directory's size in memory.
    if data.count(b"PK\x01\x02") > 1000:
        raise TokenFileError("not a token file: a zip of more than a thousand entries")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except Exception:  # zipfile raises many types of errors for a broken file; see _read_entry
        raise TokenFileError("not an npz, or cut short") from None
    entries = archive.infolist()
    expected = {"meta.npy", *(_scale_name(k) for k in range(len(entries) - 1))}
    missing = expected.difference(archive.namelist())
    if missing:
        raise TokenFileError(f"not a token file: its {len(entries)} entries do not include {min(missing)}")
    for entry in entries:
        if entry.flag_bits & 1:
            raise TokenFileError(f"{entry.filename} is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise TokenFileError(f"{entry.filename} is compressed by another method than deflate")
    inflated = sum(entry.file_size for entry in entries)
    if inflated > (1 << 20) + 16 * len(data):
        raise TokenFileError(
            f"its {len(data):,} bytes would inflate to {inflated:,}, more than a token file may: "
            "damaged or hostile"
        )
    return archive


def _read_meta(archive: zipfile.ZipFile) -> TokenMetadata:
    meta = _read_entry(archive, "meta.npy", "U", (), MAX_META)
    try:  # numpy's own conversion would accept invalid code points
        text = meta.tobytes().decode("utf-32-be" if meta.dtype.str[0] == ">" else "utf-32-le")
    except UnicodeDecodeError:
        raise TokenFileError("meta.npy is not Unicode text") from None
    return _check_meta(_parse(text.rstrip("\0")), len(archive.namelist()) - 1)


def _read_entry(
    archive: zipfile.ZipFile, name: str, kinds: str, shape: tuple[int, ...], limit: int
) -> NDArray[Any]:
    """Read an array of the given shape, whose dtype kind is one of `kinds`, from at most `limit` bytes."""
    entry = archive.getinfo(name)
    if entry.file_size > limit:
        raise TokenFileError(f"{name} has {entry.file_size:,} bytes, more than its shape needs")
    try:
        with archive.open(entry) as content:
            # Reading to the end instead would inflate more than the directory declares.
            npy = content.read(entry.file_size)
        if len(npy) != entry.file_size:
            raise EOFError
        stream = io.BytesIO(npy)
        found, fortran_order, dtype = read_npy_header(stream)
    except Exception:  # struct.error, zlib.error, EOFError, NotImplementedError, ...
        raise TokenFileError(f"{name} is damaged, or not an npy array") from None
    if dtype.kind not in kinds:
        wanted = "text" if kinds == "U" else "integers"
        raise TokenFileError(f"{name} must hold {wanted}, not dtype {quoted(dtype.str)}")
    if found != shape:
        raise TokenFileError(f"{name} has shape {quoted(found)}, not {shape}")
    start = stream.tell()
    if len(npy) - start != math.prod(shape) * dtype.itemsize:
        raise TokenFileError(
            f"{name} has {len(npy) - start} bytes of data, but its header declares another size"
        )
    return np.ndarray(shape, dtype, npy, start, order="F" if fortran_order else "C")


def _is_row(row: object, width: int) -> bool:
    return isinstance(row, list) and len(row) == width and set(map(type, row)) == {int}


def _check_size(data: str | bytes) -> None:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise TokenFileError(f"it is larger than {MAX_DOCUMENT_BYTES >> 20} MiB, the limit for one image")


@contextlib.contextmanager
def _as_file_errors() -> Iterator[None]:
    """Turn a TokensError, or the RecursionError of deeply nested JSON, into a TokenFileError."""
    try:
        yield
    except TokensError as error:
        raise TokenFileError(str(error)) from None
    except RecursionError:
        raise TokenFileError("its JSON is nested too deeply") from None
