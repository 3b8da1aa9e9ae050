"""Token maps, what is known about them, and the files that hold them: npz, JSON, JSONL.

A token file comes from anywhere, so the readers here trust nothing: whatever the bytes, they
return tokens that hold together or raise TokenFileError, and take memory in proportion to the file.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import io
import itertools
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TypeVar

import numpy as np

from vartok.errors import ScheduleError, TokenFileError, TokensError, quoted
from vartok.schedule import Schedule, check_schedule, token_count

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

FORMAT = "vartok.tokens"
VERSION = 1

# Together they mean that whatever can be written can be read: a token takes at most 8 digits, a
# comma and two brackets of JSON. The limit is for JSON's sake, which parses to 25 times its size.
MAX_TOKENS = 1 << 22
MAX_BYTES = 40 << 20
MAX_VOCAB = 1 << 24
MAX_SIDE = 1 << 24  # pixels
MAX_TEXT = 4096  # characters of a name or a path
MAX_META = 1 << 20  # bytes of meta.npy, at four a character: five names of which every character is escaped
MAX_HEADER = 1 << 14  # bytes before an npy array's data; numpy takes headers of up to 10,000

_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True, eq=False)
class TokenMaps:
    """The tokens of a batch of images, on their way between a model and its user.

    Attributes:
        maps: K token maps, coarse to fine; map k is [B, h_k, w_k] int64. Other integers are converted.

    Raises:
        TokensError: no maps, or one that is not a 3-d integer tensor of the others' batch size.
    """

    maps: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        """Check the maps, and make them int64."""
        maps = tuple(_check_tensor(f"token map {k}", tokens, 3) for k, tokens in enumerate(self.maps))
        object.__setattr__(self, "maps", maps)
        _check_grids(self.schedule)
        if len({len(tokens) for tokens in maps}) > 1:
            raise TokensError(
                f"the maps' batch sizes differ: {', '.join(str(len(tokens)) for tokens in maps)}"
            )

    def __len__(self) -> int:
        """B, the images in the batch."""
        return len(self.maps[0])

    @property
    def schedule(self) -> Schedule:
        """The (h, w) grid of every scale, coarse to fine."""
        return tuple((tokens.shape[1], tokens.shape[2]) for tokens in self.maps)

    def flatten(self) -> Tensor:
        """The tokens as [B, L] int64: scales coarse to fine, each row by row."""
        import torch

        return torch.cat([tokens.flatten(1) for tokens in self.maps], dim=1)

    @classmethod
    def unflatten(cls, flat: Tensor, schedule: Schedule) -> TokenMaps:
        """Undo `flatten`.

        Args:
            flat: [B, L] integers.
            schedule: the (h, w) grid of every scale, L cells in all.

        Raises:
            TokensError: `flat` is not of that shape, or holds no integers.
            ScheduleError: not a schedule.
        """
        schedule = check_schedule(schedule)
        flat = _check_tensor("flat tokens", flat, 2)
        if flat.shape[1] != token_count(schedule):
            raise TokensError(f"{flat.shape[1]} tokens, but the schedule has {token_count(schedule)} cells")
        scales = flat.split([h * w for h, w in schedule], dim=1)
        return cls(tuple(scale.unflatten(1, grid) for scale, grid in zip(scales, schedule, strict=True)))

    def check_vocab(self, vocab_size: int) -> None:
        """Check that every token is an index into a codebook of `vocab_size` vectors.

        Raises:
            TokensError: one is not in [0, vocab_size).
        """
        if len(self):
            low, high = self.flatten().aminmax()  # both at once: a GPU is waited for here
            _check_range(int(low), int(high), vocab_size)


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Which checkpoint tokens belong to.

    Attributes:
        name: the checkpoint's.
        fingerprint: sha256 of its codebook, 64 lower-case hex digits.
        vocab_size: V, vectors in the codebook.

    Raises:
        TokensError: a value of another type or range.
    """

    name: str
    fingerprint: str
    vocab_size: int

    def __post_init__(self) -> None:
        """Check every value."""
        _check_text("model name", self.name)
        if not isinstance(self.fingerprint, str) or not re.fullmatch("[0-9a-f]{64}", self.fingerprint):
            raise TokensError(f"fingerprint is 64 hex digits, not {quoted(self.fingerprint)}")
        _check_whole("vocab_size", self.vocab_size, MAX_VOCAB)


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """What was encoded, and how.

    Attributes:
        source: the image's path or name.
        width: of the image as it was found, in pixels.
        height: of the same.
        size: (height, width) of the pixels that were encoded.
        fit: how the image was brought to that size.
        zoom: what `--zoom` was, above 0 and up to a million: 1 covers `size` exactly.
        device: what the encoder ran on.
        dtype: what it computed in.

    Raises:
        TokensError: a value of another type or range.
    """

    source: str
    width: int
    height: int
    size: tuple[int, int]
    fit: str
    zoom: float
    device: str
    dtype: str

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("source", "fit", "device", "dtype"):
            _check_text(name, getattr(self, name))
        if not isinstance(self.size, (list, tuple)) or len(self.size) != 2:
            raise TokensError(f"size is [height, width], not {quoted(self.size)}")
        object.__setattr__(self, "size", tuple(self.size))
        for name, side in (("width", self.width), ("height", self.height), *(("size", n) for n in self.size)):
            _check_whole(name, side, MAX_SIDE)
        if type(self.zoom) not in (int, float) or not 0 < self.zoom <= 1e6:
            raise TokensError(f"zoom is a number above 0 and up to a million, not {quoted(self.zoom)}")
        object.__setattr__(self, "zoom", float(self.zoom))


_Info = TypeVar("_Info", ModelInfo, ImageInfo)


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """One image's tokens: what a token file, or a row of a data set, holds.

    Attributes:
        scales: K read-only arrays, coarse to fine; array k is [h_k, w_k] uint16, or uint32 where
            the vocabulary has more than 65,536 codes. Other integers are converted.
        model: the checkpoint whose codebook they index.
        image: the image that they are of.
        label: a class, 0 or more; only data sets carry it, like the next two.
        caption: any text.
        metadata: JSON, as it was found.
        notes: what the user should know of how the image was read; not written to files.

    Raises:
        TokensError: an array that is not 2-d integers, grids that are no schedule, more than
            4 Mi tokens, or an index outside the vocabulary.
    """

    scales: tuple[NDArray[Any], ...]
    model: ModelInfo
    image: ImageInfo
    label: int | None = None
    caption: str | None = None
    metadata: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the scales, and copy them into the files' dtype."""
        for k, scale in enumerate(self.scales):
            if not isinstance(scale, np.ndarray) or scale.dtype.kind not in "iu" or scale.ndim != 2:
                raise TokensError(f"scale {k} is not a 2-d array of integers")
        _check_grids(self.schedule)
        dtype = token_dtype(self.model.vocab_size)
        scales = []
        for k, scale in enumerate(self.scales):
            _check_range(int(scale.min()), int(scale.max()), self.model.vocab_size, f"scale {k}: ")
            scales.append(np.array(scale, dtype=dtype, order="C"))
            scales[-1].flags.writeable = False
        object.__setattr__(self, "scales", tuple(scales))

    @property
    def schedule(self) -> Schedule:
        """The (h, w) grid of every scale, coarse to fine."""
        return tuple((scale.shape[0], scale.shape[1]) for scale in self.scales)

    def flatten(self) -> NDArray[Any]:
        """The tokens as [L] of the scales' dtype: scales coarse to fine, each row by row."""
        return np.concatenate([scale.ravel() for scale in self.scales])

    @classmethod
    def unflatten(
        cls, flat: NDArray[Any], schedule: Schedule, model: ModelInfo, image: ImageInfo
    ) -> ImageTokens:
        """Undo `flatten`.

        Args:
            flat: [L] integers.
            schedule: the (h, w) grid of every scale, L cells in all.
            model: the checkpoint whose codebook they index.
            image: the image that they are of.

        Raises:
            TokensError: `flat` is not of that shape, or holds what no token file can.
        """
        if flat.shape != (token_count(schedule),):
            raise TokensError(f"tokens of shape {list(flat.shape)}, but {token_count(schedule)} cells")
        ends = np.cumsum([h * w for h, w in schedule])
        scales = np.split(flat, ends[:-1])
        return cls(
            tuple(scale.reshape(grid) for scale, grid in zip(scales, schedule, strict=True)), model, image
        )

    def to_json(self) -> str:
        """One JSON object on one line, in ASCII, without a newline; the same text for the same tokens."""
        return _dump({**self._meta(), "scales": [scale.tolist() for scale in self.scales]})

    @classmethod
    def from_json(cls, text: str | bytes) -> ImageTokens:
        """Read what `to_json` wrote, or the same in another layout. Unknown keys are ignored.

        Args:
            text: one JSON object; bytes are UTF-8, with or without a byte order mark.

        Raises:
            TokenFileError: anything else.
        """
        with _as_file_errors():
            document = _parse(text)
            model, image, schedule = _check_meta(document)
            grids = document.get("scales")
            if not isinstance(grids, list) or len(grids) != len(schedule):
                raise TokenFileError(f"scales is not a list of {len(schedule)} grids, as the schedule has it")
            scales = []
            for k, (rows, (h, w)) in enumerate(zip(grids, schedule, strict=True)):
                # Types first: numpy would take true for 1, and give every string the longest one's room.
                if not isinstance(rows, list) or len(rows) != h or not all(_is_row(row, w) for row in rows):
                    raise TokenFileError(
                        f"scale {k} is not {h} rows of {w} whole numbers, as the schedule has it"
                    )
                try:
                    scales.append(np.array(rows, dtype=np.int64))
                except OverflowError:
                    raise TokenFileError(f"scale {k}: an index outside the vocabulary") from None
            return cls(tuple(scales), model, image)

    def to_npz(self) -> bytes:
        """An npz of `scale_00`, `scale_01`, ... and `meta`; the same bytes for the same tokens.

        Source: numpy's format, numpy.lib.format; what np.savez adds of its own is the clock.
        """
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for k, scale in enumerate(self.scales):
                # Stored: indices hardly deflate, and what is stored cannot inflate.
                _write_entry(archive, _scale_name(k), scale, zipfile.ZIP_STORED)
            meta = _dump(self._meta())
            _write_entry(archive, "meta.npy", np.array(meta, dtype=f"<U{len(meta)}"), zipfile.ZIP_DEFLATED)
        return buffer.getvalue()

    @classmethod
    def from_npz(cls, data: bytes) -> ImageTokens:
        """Read what `to_npz` wrote, or np.savez and np.savez_compressed of the same arrays.

        Raises:
            TokenFileError: anything else.
        """
        with _as_file_errors(), _open_npz(data) as archive:
            meta = _read_entry(archive, "meta.npy", "U", (), MAX_META)
            try:  # not numpy's own conversion, which makes strings of what is no code point
                text = meta.tobytes().decode("utf-32-be" if meta.dtype.str[0] == ">" else "utf-32-le")
            except UnicodeDecodeError:
                raise TokenFileError("meta.npy is not Unicode text") from None
            model, image, schedule = _check_meta(_parse(text.rstrip("\0")))
            scales = len(archive.namelist()) - 1
            if scales != len(schedule):
                raise TokenFileError(f"{scales} scales, but a schedule of {len(schedule)}")
            arrays = [
                # 8 bytes a cell, int64's, are the most that numpy's integers take
                _read_entry(archive, _scale_name(k), "iu", (h, w), MAX_HEADER + 8 * h * w)
                for k, (h, w) in enumerate(schedule)
            ]
            return cls(tuple(arrays), model, image)

    def _meta(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": dataclasses.asdict(self.model),
            "image": dataclasses.asdict(self.image),
            "schedule": self.schedule,
        }


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """What files keep indices into so many codes in: uint16, or uint32 above 65,536 codes; little-endian."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def stack(tokens: Sequence[ImageTokens]) -> TokenMaps:
    """Make a batch, on the CPU, of images whose tokens have one schedule.

    Raises:
        TokensError: no images, or several schedules.
    """
    import torch

    if len({item.schedule for item in tokens}) != 1:
        raise TokensError("a batch is one or more images of one schedule")
    scales = zip(*(item.scales for item in tokens), strict=True)
    return TokenMaps(tuple(torch.from_numpy(np.stack(scale).astype(np.int64)) for scale in scales))


def read_tokens(file: BinaryIO) -> Iterator[ImageTokens | TokenFileError]:
    """Read the images of a token file, one at a time: npz, JSON or JSONL, told apart by content.

    A file that begins with "PK" is an npz. One that begins with "{" is JSONL where its first line
    also ends with "}" or its second line begins with "{", else one JSON object on several lines.
    Blank lines, a byte order mark, CRLF and a missing last newline make no difference.

    Args:
        file: a buffered binary stream; it is read forward only, so a pipe will do.

    Yields:
        One image's tokens, or, in their place, why they cannot be read: a bad line of JSONL does
        not keep its neighbours from being read, and its error begins with "line 7: ". It is the
        caller's choice to raise it. Of JSONL no more than a line is in memory.
    """
    for label, parse, data in _parts(file):
        item: ImageTokens | TokenFileError
        try:
            item = parse(data)
        except TokenFileError as error:
            item = TokenFileError(f"{label}{error}")
        yield item


def _parts(file: BinaryIO) -> Iterator[tuple[str, Callable[[bytes], ImageTokens], bytes]]:
    """Split a stream into one image's bytes each, with how an error about them begins and their reader."""
    lines = _lines(file)
    first = next(lines, (1, b""))
    head = first[1].removeprefix(codecs.BOM_UTF8).strip()
    if head.startswith(b"PK"):
        yield "", ImageTokens.from_npz, _read_on(file, first[1])
    elif not head.startswith(b"{"):
        yield "not a token file: ", ImageTokens.from_json, first[1]
    else:
        ahead = [first]
        if not head.endswith(b"}"):
            ahead.append(next(lines, (2, b"")))
            if not ahead[1][1].startswith(b"{"):
                yield "", ImageTokens.from_json, _read_on(file, first[1] + ahead[1][1])
                return
        for number, line in itertools.chain(ahead, lines):
            yield f"line {number}: ", ImageTokens.from_json, line


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Number the lines, without the blank ones; of one that is too long comes as much as gets it refused."""
    for number in itertools.count(1):
        line = file.readline(MAX_BYTES + 1)
        if not line:
            return
        if not line.isspace() or len(line) > MAX_BYTES:
            yield number, line
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_BYTES)


def _read_on(file: BinaryIO, start: bytes) -> bytes:
    return start + file.read(max(0, MAX_BYTES + 1 - len(start)))


def _dump(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"), allow_nan=False)


def _parse(text: str | bytes) -> dict[str, Any]:
    """The JSON object in `text`."""
    _check_size(text)
    if not text:
        raise TokenFileError("empty")
    try:
        document = json.loads(
            text if isinstance(text, str) else text.decode("utf-8-sig"), parse_constant=_refuse_constant
        )
    except UnicodeDecodeError:
        raise TokenFileError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise TokenFileError(f"not JSON, or cut short: {error.msg} (character {error.pos + 1})") from None
    except ValueError:  # Python's guard against the quadratic time that long numbers take
        raise TokenFileError("a number has too many digits") from None
    if not isinstance(document, dict):
        raise TokenFileError("not a JSON object")
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise TokenFileError(f"{name} is not a number in JSON")


def _check_meta(document: dict[str, Any]) -> tuple[ModelInfo, ImageInfo, Schedule]:
    """Check everything but the scales of a token file's object."""
    if document.get("format") != FORMAT:
        raise TokenFileError(f'not a token file: its format is not "{FORMAT}"')
    version = document.get("version")
    if type(version) is not int or version < 1:
        raise TokenFileError(f"version is a whole number from 1, not {quoted(version)}")
    if version != VERSION:
        raise TokenFileError(
            f"version {quoted(version)}: this vartok reads version {VERSION}; upgrade vartok"
        )
    schedule = _check_grids(document.get("schedule"))
    return _info(ModelInfo, "model", document), _info(ImageInfo, "image", document), schedule


def _info(cls: type[_Info], key: str, document: dict[str, Any]) -> _Info:
    values = document.get(key)
    if not isinstance(values, dict):
        raise TokenFileError(f"{key} is not an object")
    names = [field.name for field in dataclasses.fields(cls)]
    for name in names:
        if name not in values:
            raise TokenFileError(f"{key} has no {name}")
    return cls(**{name: values[name] for name in names})


def _scale_name(k: int) -> str:
    return f"scale_{k:02d}.npy"


def _write_entry(archive: zipfile.ZipFile, name: str, array: NDArray[Any], compression: int) -> None:
    entry = zipfile.ZipInfo(name)  # dated 1980-01-01, as ever
    entry.create_system = 3  # Unix, on every system
    entry.external_attr = 0o644 << 16
    entry.compress_type = compression
    npy = io.BytesIO()
    np.lib.format.write_array(npy, array, version=(1, 0), allow_pickle=False)
    archive.writestr(entry, npy.getvalue())


def _open_npz(data: bytes) -> zipfile.ZipFile:
    """Open a zip whose directory is that of a token file; nothing is inflated yet."""
    _check_size(data)
    # Checked before zipfile makes an object of every entry, at twenty times the directory's size.
    if data.count(b"PK\x01\x02") > 1000:
        raise TokenFileError("not a token file: a zip of more than a thousand entries")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except Exception:  # zipfile raises a dozen types over what it stumbles on; see _read_entry
        raise TokenFileError("not an npz, or cut short") from None
    entries = archive.infolist()
    expected = {"meta.npy", *(_scale_name(k) for k in range(len(entries) - 1))}
    missing = expected.difference(archive.namelist())
    if missing:
        raise TokenFileError(f"not a token file: {len(entries)} entries, {min(missing)} not among them")
    for entry in entries:
        if entry.flag_bits & 1:
            raise TokenFileError(f"{entry.filename} is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise TokenFileError(f"{entry.filename} is neither stored nor deflated")
    inflated = sum(entry.file_size for entry in entries)
    if inflated > (1 << 20) + 16 * len(data):
        raise TokenFileError(f"{len(data)} bytes that would inflate to {inflated}")
    return archive


def _read_entry(
    archive: zipfile.ZipFile, name: str, kinds: str, shape: tuple[int, ...], limit: int
) -> NDArray[Any]:
    """Read an array of a known shape and kind of dtype from at most `limit` bytes."""
    entry = archive.getinfo(name)
    if entry.file_size > limit:
        raise TokenFileError(f"{name} is {entry.file_size} bytes, too many for what it is")
    try:
        with archive.open(entry) as content:
            # To read to the end instead would inflate all there is, whatever the directory declares.
            npy = content.read(entry.file_size)
        if len(npy) != entry.file_size:
            raise EOFError
        stream = io.BytesIO(npy)
        found, fortran_order, dtype = _NPY_HEADERS[np.lib.format.read_magic(stream)](stream)
    except Exception:  # struct.error, zlib.error, EOFError, NotImplementedError, tokenize.TokenError, ...
        raise TokenFileError(f"{name} is damaged, or not an npy array") from None
    if dtype.kind not in kinds:
        raise TokenFileError(f"{name} holds {quoted(dtype.str)}, not numpy's kind {' or '.join(kinds)}")
    if found != shape:
        raise TokenFileError(f"{name} has shape {quoted(found)}, not {shape}")
    start = stream.tell()
    if len(npy) - start != math.prod(shape) * dtype.itemsize:
        raise TokenFileError(f"{name} has {len(npy) - start} bytes of data, not what its header says")
    return np.ndarray(shape, dtype, npy, start, order="F" if fortran_order else "C")


def _is_row(row: object, width: int) -> bool:
    return isinstance(row, list) and len(row) == width and set(map(type, row)) == {int}


def _check_tensor(name: str, tokens: Tensor, ndim: int) -> Tensor:
    import torch

    if (
        not isinstance(tokens, torch.Tensor)
        or tokens.ndim != ndim
        or tokens.is_floating_point()
        or tokens.is_complex()
        or tokens.dtype == torch.bool
    ):
        raise TokensError(f"{name}: not a {ndim}-d tensor of integers")
    return tokens.to(torch.int64)


def _check_grids(value: object) -> Schedule:
    try:
        schedule = check_schedule(value)
    except ScheduleError as error:
        raise TokensError(str(error)) from None
    if token_count(schedule) > MAX_TOKENS:
        raise TokensError(f"a schedule of {token_count(schedule)} tokens: vartok takes up to {MAX_TOKENS}")
    return schedule


def _check_range(low: int, high: int, vocab_size: int, where: str = "") -> None:
    if low < 0 or high >= vocab_size:
        raise TokensError(f"{where}index {min(low, 0) or high} is outside the vocabulary of {vocab_size}")


def _check_whole(name: str, value: object, high: int) -> None:
    if type(value) is not int or not 1 <= value <= high:
        raise TokensError(f"{name} is a whole number from 1 to {high}, not {quoted(value)}")


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise TokensError(f"{name} is a text of up to {MAX_TEXT} characters, not {quoted(value)}")
    if re.search("[\ud800-\udfff]", value):  # half a surrogate pair, which no encoding can write
        raise TokensError(f"{name} is not Unicode: {quoted(value)}")


def _check_size(data: str | bytes) -> None:
    if len(data) > MAX_BYTES:
        raise TokenFileError(f"larger than {MAX_BYTES >> 20} MiB")


@contextlib.contextmanager
def _as_file_errors() -> Iterator[None]:
    """Whatever is wrong with tokens that were read is wrong with the file."""
    try:
        yield
    except TokensError as error:
        raise TokenFileError(str(error)) from None
    except RecursionError:
        raise TokenFileError("nested too deeply") from None
