"""One Kafka message to its images, each with its origin.

A message of many images is an Arrow IPC stream, which is not trusted. It has a column ``image``
(binary or large_binary) and may have ``key`` (binary or string, large or not) and ``event_time``
(timestamp of any unit); other columns are ignored. Compressed bodies are refused, since their
buffers declare any size, and so are dictionaries. Uncompressed buffers are read in place, so memory
stays bounded by the message.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from nap_stream.decode.image import Picture, Refusal, decode_image, describe
from nap_stream.records import DecodedImage, FailedImage, Message, Origin, Status
from nap_stream.settings.schema import LimitSettings

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


def iter_decoded(
    message: Message, limits: LimitSettings, *, kept_headers: tuple[str, ...], ingest_time_ms: int
) -> Iterator[DecodedImage | FailedImage]:
    """Decode the images of a message one by one. Never raises for what the message holds.

    A message whose header ``content-type`` is `ARROW_STREAM` is a batch: its rows are the
    images, and one bad image spoils only its own row. Any other message is one image.

    An event time outside the years 1970 to 9999 counts as absent: a row's own gives way to the
    message's timestamp, and that to ``ingest_time_ms``, when the message was consumed, milliseconds
    since the epoch. ``kept_headers`` names the message headers that go with each row, as spelt.

    Yields:
        One row for each image, at least one. The payload of a failed row is the image's bytes,
        or the whole value where the message as such was refused.
    """
    headers = tuple(header for header in message.headers if header[0] in kept_headers)
    key = message.key
    repeated = len(key or b"") + sum(len(name) + len(data or b"") for name, data in headers)
    too_much_to_repeat = repeated > limits.max_key_bytes
    if too_much_to_repeat:
        key, headers = None, ()

    def origin(index: int, item: BatchItem | None = None) -> Origin:
        own_time = item.event_time_ms if item else None
        return Origin(
            partition=message.partition,
            offset=message.offset,
            index=index,
            key=item.key if item and item.has_key else key,
            event_time_ms=_event_time(own_time, message.timestamp_ms, ingest_time_ms),
            ingest_time_ms=ingest_time_ms,
            headers=headers,
        )

    value = message.value
    found: Picture | Refusal | tuple[BatchItem, ...]
    if too_much_to_repeat:
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
        found = decode_image(value, limits)
    if not isinstance(found, tuple):
        yield _row(origin(0), value, found)
        return
    for index, item in enumerate(found):
        yield _row(origin(index, item), item.image, decode_image(item.image, limits))


def _row(
    origin: Origin, data: bytes | None, result: Picture | Refusal
) -> DecodedImage | FailedImage:
    sha256 = hashlib.sha256(data).hexdigest() if data else None
    if isinstance(result, Picture):
        assert sha256 is not None
        return DecodedImage(
            origin, result.pixels, result.width, result.height, result.format, sha256
        )
    size = result.width, result.height
    return FailedImage(origin, result.status, result.error, data, sha256, *size, result.format)


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
