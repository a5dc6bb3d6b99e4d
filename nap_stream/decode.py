"""From bytes to uint8 pixels. A bad image is a row, not a crash.

An image is JPEG, PNG or WebP, told by its first bytes. It is read as torchvision's dataset loader
reads the ones that models are trained on: converted to RGB, alpha and palette transparency dropped,
EXIF orientation ignored, the first frame of an animation. One thing differs: 16-bit greyscale is
scaled to 8 bits, not clipped.

libjpeg-turbo decodes plain JPEGs through simplejpeg, to the pixels that Pillow gives. Pillow
decodes all else: what libjpeg-turbo so much as warns of, too, so that Pillow alone says what is
wrong with a file.

A message of many images is an Arrow IPC stream, which is not trusted. It has a column ``image``
(binary or large_binary) and may have ``key`` (binary or string, large or not) and ``event_time``
(timestamp of any unit); other columns are ignored. Compressed bodies are refused, since their
buffers declare any size, and so are dictionaries. Uncompressed buffers are read in place, so memory
stays bounded by the message.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from nap_stream.jpeg import Undecoded, decode_jpeg, divisor, plain_header, undecoded_jpeg
from nap_stream.records import (
    IMAGE_COLUMNS,
    DecodedRows,
    EncodedJpeg,
    FailedImage,
    Message,
    Origin,
    Status,
)
from nap_stream.settings.schema import LimitSettings

_JPEG: Final = b"\xff\xd8\xff"
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK_OVERHEAD: Final = 12
_PNG_PIXEL_CHUNKS: Final = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_ERROR_LENGTH: Final = 300


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image: ``pixels`` are RGB, uint8, shape (3, height, width), interleaved in memory.

    ``width`` and ``height`` are the file's. The pixels are fewer where it was decoded scaled.
    """

    pixels: torch.Tensor
    width: int
    height: int
    format: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why bytes are no picture; the size and format where the bytes said them."""

    status: Status
    error: str
    width: int | None = None
    height: int | None = None
    format: str | None = None


MAX_JPEG_SCANS = 100
"""Each scan of a progressive file costs the time of a whole image; encoders make about ten."""
_START_OF_SCAN = b"\xff\xda"


def decode_image(
    data: bytes | None, limits: LimitSettings, at_least: tuple[int, int] | None = None
) -> Picture | Refusal:
    """Decode one image file; None stands for a missing one. Never raises for what the bytes hold.

    Nothing is decoded of more bytes than ``limits`` allow, nor of a file that declares more pixels.
    ``at_least``, height and width in pixels, lets a JPEG be decoded to 1/8, 1/4 or 1/2 of its
    sides, the smallest that keeps them so large; None decodes all of it.
    """
    if data is None:
        return Refusal(Status.TOMBSTONE, "the value is null")
    if not data:
        return Refusal(Status.EMPTY, "the value has no bytes")
    kind = _sniff(data)
    if len(data) > limits.max_image_bytes:
        return Refusal(
            Status.TOO_LARGE,
            f"{len(data)} bytes, more than limits.max_image_bytes = {limits.max_image_bytes}",
            format=kind,
        )
    if kind is None:
        return Refusal(
            Status.UNSUPPORTED, f"not a JPEG, PNG or WebP image: starts with {data[:8].hex(' ')}"
        )
    if kind == "jpeg":
        return _decode_jpeg(data, limits, at_least)
    return _decode(data, kind, limits.max_image_pixels)


def describe(error: BaseException) -> str:
    """Give an error's type and text as one printable line of bounded length."""
    text = str(error).encode("unicode_escape").decode("ascii")
    return f"{type(error).__name__}: {text}"[:_ERROR_LENGTH]


def _sniff(data: bytes) -> str | None:
    if data.startswith(_JPEG):
        return "jpeg"
    if data.startswith(_PNG):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return None


def _decode_jpeg(
    data: bytes, limits: LimitSettings, at_least: tuple[int, int] | None
) -> Picture | Refusal:
    header = plain_header(data)
    may_have_scans = header is None or not header.is_one_scan
    if may_have_scans and data.count(_START_OF_SCAN) > MAX_JPEG_SCANS:
        return Refusal(
            Status.TOO_LARGE, f"a JPEG of more than {MAX_JPEG_SCANS} scans", format="jpeg"
        )
    if header is not None and header.width * header.height <= limits.max_image_pixels:
        pixels = decode_jpeg(data, header, at_least)
        if pixels is not None:
            return Picture(pixels, header.width, header.height, "jpeg")
    return _decode(data, "jpeg", limits.max_image_pixels, at_least)


def _decode(
    data: bytes, kind: str, max_pixels: int, at_least: tuple[int, int] | None = None
) -> Picture | Refusal:
    size: tuple[int, int] | None = None
    try:
        size = _webp_size(data) if kind == "webp" else None
        if size is None or size[0] * size[1] <= max_pixels:
            with _open(data, kind) as image:
                size = image.size
                if size[0] * size[1] <= max_pixels:
                    if (divided := divisor(*size, at_least)) > 1:
                        image.draft(image.mode, (size[0] // divided, size[1] // divided))
                    return Picture(_rgb(image), *size, kind)
    except MemoryError as error:
        problem = Status.TOO_LARGE, f"there is not the memory to decode it ({describe(error)})"
    # Decoders raise whatever hostile bytes make them raise.
    except Exception as error:  # noqa: BLE001
        problem = Status.CORRUPT, f"it cannot be decoded ({describe(error)})"
    else:
        problem = (
            Status.TOO_LARGE,
            f"{size[0]} x {size[1]} pixels, more than limits.max_image_pixels = {max_pixels}",
        )
    width, height = size if size is not None else (None, None)
    return Refusal(*problem, width, height, kind)


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """Does not read EXIF, which says nothing about pixels and warns where it is malformed."""

    def _read_dpi_from_exif(self) -> None:
        return


def _open(data: bytes, kind: str) -> ImageFile.ImageFile:
    # The plugin of the format itself: Image.open would try others, and its limit on pixels is
    # a global of the process that warns.
    if kind == "jpeg":
        return _Jpeg(BytesIO(data))
    if kind == "png":
        return PngImagePlugin.PngImageFile(BytesIO(_pixel_chunks(data)))
    return WebPImagePlugin.WebPImageFile(BytesIO(data))


def _pixel_chunks(png: bytes) -> bytes:
    """Leave the chunks that hold pixels: the others warn, inflate, or set transparency."""
    kept = [_PNG]
    position = len(_PNG)
    while position + _PNG_CHUNK_OVERHEAD <= len(png):
        length, name = struct.unpack_from(">I4s", png, position)
        end = position + _PNG_CHUNK_OVERHEAD + length
        if name in _PNG_PIXEL_CHUNKS or end > len(png):
            kept.append(png[position:end])
        position = end
    return b"".join(kept)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Read the declared size: Pillow's decoder allocates the canvas when it is created."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        low = struct.unpack_from("<HBHB", data, 24)
        return 1 + low[0] + (low[1] << 16), 1 + low[2] + (low[3] << 16)
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("no VP8 chunk follows the RIFF header")


def _rgb(image: Image.Image) -> torch.Tensor:
    if image.mode.startswith("I;16"):
        wide = np.asarray(image)
        # Pillow's own conversion clips at 255. The high byte is what it takes of 16-bit colour.
        image = Image.fromarray((wide >> 8).astype(np.uint8))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


ARROW_STREAM: Final = "application/vnd.apache.arrow.stream"
"""Content type of a message that holds a batch of images."""

_CONTENT_TYPE: Final = "content-type"
_LAST_TIME_MS: Final = 253_402_300_799_999
"""The end of the year 9999, the last time that calendars of common tools can show."""
_MS_PER_UNIT = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}
_IMAGE_TYPES = (pa.binary(), pa.large_binary())
_KEY_TYPES = (*_IMAGE_TYPES, pa.string(), pa.large_string())

# Slots in the vtables of Arrow's flatbuffers: Message.fbs.
_MESSAGE_HEADER_SLOT = 8
_RECORD_BATCH_COMPRESSION_SLOT = 10


def decode_message(
    message: Message,
    limits: LimitSettings,
    *,
    kept_headers: tuple[str, ...],
    ingest_time_ms: int,
    at_least: tuple[int, int] | None = None,
    prepare: Callable[[torch.Tensor], torch.Tensor] = lambda pixels: pixels,
    leaves_jpegs: bool = False,
) -> DecodedRows:
    """Decode the images of a message. Never raises for what the message holds.

    A message whose header ``content-type`` is `ARROW_STREAM` is a batch: its rows are the
    images, and one bad image spoils only its own row. Any other message is one image.

    An event time outside the years 1970 to 9999 counts as absent: a row's own gives way to the
    message's timestamp, and that to ``ingest_time_ms``, when the message was consumed, milliseconds
    since the epoch. ``kept_headers`` names the message headers that go with each row, as spelt.
    ``at_least`` is that of `decode_image`. ``prepare`` is applied to the pixels of each image
    before the next one is decoded. Where it ``leaves_jpegs``, those that `undecoded_jpeg` finds
    are checked and not decoded.

    Returns:
        One row for each image, at least one. The payload of a failed row is the image's bytes,
        or the whole value where the message as such was refused.
    """
    headers = tuple(header for header in message.headers if header[0] in kept_headers)
    key, value = message.key, message.value
    repeated = len(key or b"") + sum(len(name) + len(data or b"") for name, data in headers)
    found: Picture | Refusal | Undecoded | tuple[BatchItem, ...]

    def decode(data: bytes | None) -> Picture | Refusal | Undecoded:
        left = undecoded_jpeg(data, limits) if leaves_jpegs else None
        return left or decode_image(data, limits, at_least)

    if repeated > limits.max_key_bytes:
        key, headers = None, ()
        found = Refusal(
            Status.TOO_LARGE,
            f"key and kept headers have {repeated} bytes, more than limits.max_key_bytes = "
            f"{limits.max_key_bytes}; they are left out",
        )
    elif value and len(value) > limits.max_message_bytes:
        found = Refusal(
            Status.TOO_LARGE,
            f"{len(value)} bytes, more than limits.max_message_bytes = {limits.max_message_bytes}",
        )
    elif value and _is_batch(message):
        found = read_batch(value, limits)
    else:
        found = decode(value)
    rows = _Rows(message, headers, ingest_time_ms, prepare)
    if not isinstance(found, tuple):
        rows.add(key, _event_time(message.timestamp_ms, ingest_time_ms), value, found)
        return rows.whole()
    for item in found:
        own_key = item.key if item.has_key else key
        time_ms = _event_time(item.event_time_ms, message.timestamp_ms, ingest_time_ms)
        rows.add(own_key, time_ms, item.image, decode(item.image))
    return rows.whole()


class _Rows:
    """The rows of one message, as they are decoded."""

    def __init__(
        self,
        message: Message,
        headers: tuple[tuple[str, bytes | None], ...],
        ingest_time_ms: int,
        prepare: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self._message, self._headers = message, headers
        self._ingest_time_ms, self._prepare = ingest_time_ms, prepare
        self._rows: list[tuple[Any, ...]] = []
        self._pixels: list[torch.Tensor | EncodedJpeg] = []
        self._failed: list[FailedImage] = []

    def add(
        self,
        key: bytes | None,
        time_ms: int,
        data: bytes | None,
        found: Picture | Refusal | Undecoded,
    ) -> None:
        """Append the row of an image, ``data`` as it came."""
        message, index, ingest_ms = self._message, len(self._rows), self._ingest_time_ms
        sha256 = hashlib.sha256(data).hexdigest() if data else None
        status, error = Status.OK, None
        size = found.width, found.height
        if isinstance(found, Picture):
            self._pixels.append(self._prepare(found.pixels))
        else:
            origin = Origin(
                message.partition, message.offset, index, key, time_ms, ingest_ms, self._headers
            )
        if isinstance(found, Undecoded):
            assert data is not None
            assert sha256 is not None
            self._pixels.append(EncodedJpeg(data, origin, sha256, found.width, found.height))
        elif isinstance(found, Refusal):
            status, error = found.status, found.error
            self._failed.append(
                FailedImage(origin, status, error, data, sha256, *size, found.format)
            )
        times = time_ms, ingest_ms
        # In the order of IMAGE_COLUMNS.
        head = message.offset, index, key, *times, status, error
        self._rows.append((*head, *size, found.format, sha256, self._headers, None, None))

    def whole(self) -> DecodedRows:
        """All of them."""
        columns = dict(zip(IMAGE_COLUMNS, map(list, zip(*self._rows, strict=True)), strict=True))
        return DecodedRows(columns, tuple(self._pixels), self._failed)


def _is_batch(message: Message) -> bool:
    values = [value for name, value in message.headers if name.lower() == _CONTENT_TYPE]
    if not values or values[-1] is None:
        return False
    media_type = values[-1].split(b";", 1)[0].strip().lower()
    return media_type == ARROW_STREAM.encode()


def _event_time(*candidates: int | None) -> int:
    in_range = (time for time in candidates if time is not None and 0 <= time <= _LAST_TIME_MS)
    return next(in_range, 0)


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One row. ``event_time_ms`` is None where the column is absent or null.

    ``has_key`` says that the stream has a column ``key``; a null in it is no key.
    """

    image: bytes | None
    key: bytes | None
    has_key: bool
    event_time_ms: int | None


class _BatchError(Exception):
    """The stream is not what is expected."""

    def __init__(self, text: str, status: Status = Status.BAD_BATCH) -> None:
        super().__init__(text)
        self.status = status


def read_batch(value: bytes, limits: LimitSettings) -> tuple[BatchItem, ...] | Refusal:
    """Read the rows of an Arrow IPC stream. Never raises for what the bytes hold.

    Returns:
        At least one row; a refusal ``bad_batch``, ``too_large`` (more rows than
        ``limits.max_images_per_message``) or ``empty`` (no row).
    """
    try:
        rows = tuple(_rows(value, limits.max_images_per_message))
    except _BatchError as error:
        return Refusal(error.status, str(error))
    # pyarrow raises many types for hostile bytes, MemoryError among them.
    except Exception as error:  # noqa: BLE001
        return Refusal(Status.BAD_BATCH, f"not a valid Arrow IPC stream ({describe(error)})")
    return rows or Refusal(Status.EMPTY, "the Arrow IPC stream has no rows")


def _rows(value: bytes, max_rows: int) -> Iterator[BatchItem]:
    _check_messages(value)
    fields = _fields(pa.ipc.open_stream(value).schema)
    options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=sorted(fields.values()))
    batches: list[pa.RecordBatch] = []
    rows = 0
    for batch in pa.ipc.open_stream(value, options=options):
        batch.validate(full=True)
        rows += batch.num_rows
        if rows > max_rows:
            raise _BatchError(
                f"more than limits.max_images_per_message = {max_rows} images", Status.TOO_LARGE
            )
        batches.append(batch)
    for batch in batches:
        yield from _items(batch, has_key="key" in fields)


def _items(batch: pa.RecordBatch, *, has_key: bool) -> Iterator[BatchItem]:
    names = batch.schema.names
    absent = [None] * batch.num_rows
    images = batch.column("image").to_pylist()
    keys = batch.column("key").to_pylist() if has_key else absent
    times = _times_ms(batch.column("event_time")) if "event_time" in names else absent
    for image, key, time_ms in zip(images, keys, times, strict=True):
        encoded = key.encode() if isinstance(key, str) else key
        yield BatchItem(image, encoded, has_key, time_ms)


def _times_ms(column: Any) -> list[int | None]:
    factor, divisor = _MS_PER_UNIT[column.type.unit]
    ticks = column.cast(pa.int64()).to_pylist()
    return [None if tick is None else tick * factor // divisor for tick in ticks]


def _fields(schema: pa.Schema) -> dict[str, int]:
    """Find the position of each column that is used."""
    found: dict[str, int] = {}
    for name in ("image", "key", "event_time"):
        indices = schema.get_all_field_indices(name)
        if len(indices) > 1:
            raise _BatchError(f"there are {len(indices)} columns {name!r}")
        if indices:
            _check_type(name, schema.field(indices[0]).type)
            found[name] = indices[0]
    if "image" not in found:
        listed = ", ".join(schema.names[:10]).encode("unicode_escape").decode("ascii")
        raise _BatchError(f"there is no column 'image' (columns: {listed[:200] or 'none'})")
    return found


def _check_type(name: str, kind: pa.DataType) -> None:
    if name == "event_time":
        fits, expected = pa.types.is_timestamp(kind), "timestamp"
    elif name == "key":
        fits, expected = kind in _KEY_TYPES, "binary or string"
    else:
        fits, expected = kind in _IMAGE_TYPES, "binary or large_binary"
    if not fits:
        raise _BatchError(f"column {name!r} is {str(kind)[:100]}, expected {expected}")


def _check_messages(value: bytes) -> None:
    """Refuse dictionaries and compressed bodies before anything is read from a body."""
    reader = pa.ipc.MessageReader.open_stream(value)
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        if message.type == "dictionary":
            raise _BatchError("dictionary-encoded columns are not supported")
        if message.type == "record batch" and _is_compressed(message.metadata.to_pybytes()):
            raise _BatchError("compressed Arrow buffers are not supported: write without it")


def _is_compressed(metadata: bytes) -> bool:
    """Whether the flatbuffer of a record batch's message names a body compression.

    pyarrow does not tell before it decompresses.
    """
    (message,) = struct.unpack_from("<I", metadata)
    header = _field(metadata, message, _MESSAGE_HEADER_SLOT)
    if header is None:
        return False
    (offset,) = struct.unpack_from("<I", metadata, header)
    return _field(metadata, header + offset, _RECORD_BATCH_COMPRESSION_SLOT) is not None


def _field(buffer: bytes, table: int, slot: int) -> int | None:
    """Find the position of a flatbuffer table's field, by its slot in the vtable."""
    (distance,) = struct.unpack_from("<i", buffer, table)
    vtable = table - distance
    (size,) = struct.unpack_from("<H", buffer, vtable)
    if slot >= size:
        return None
    (offset,) = struct.unpack_from("<H", buffer, vtable + slot)
    return table + offset if offset else None
