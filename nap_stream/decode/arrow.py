"""A message of many images: an Arrow IPC stream, which is not trusted.

It has a column ``image`` (binary or large_binary) and may have ``key`` (binary or string, large or
not) and ``event_time`` (timestamp of any unit); other columns are ignored. Compressed bodies are
refused, since their buffers declare any size, and so are dictionaries. Uncompressed buffers are
read in place, so memory stays bounded by the message.
"""

import struct
from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa

from nap_stream.decode.picture import Refusal, describe
from nap_stream.records import SourceImage, Status
from nap_stream.settings.schema import LimitSettings

ARROW_STREAM: Final = "application/vnd.apache.arrow.stream"
"""Content type of a message that holds a batch of images."""

_MS_PER_UNIT = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}
_IMAGE_TYPES = (pa.binary(), pa.large_binary())
_KEY_TYPES = (*_IMAGE_TYPES, pa.string(), pa.large_string())

# Slots in the vtables of Arrow's flatbuffers: Message.fbs.
_MESSAGE_HEADER_SLOT = 8
_RECORD_BATCH_COMPRESSION_SLOT = 10


class _BatchError(Exception):
    """The stream is not what is expected."""

    def __init__(self, text: str, status: Status = Status.BAD_BATCH) -> None:
        super().__init__(text)
        self.status = status


def read_batch(value: bytes, limits: LimitSettings) -> tuple[SourceImage, ...] | Refusal:
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


def _rows(value: bytes, max_rows: int) -> Iterator[SourceImage]:
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


def _items(batch: pa.RecordBatch, *, has_key: bool) -> Iterator[SourceImage]:
    names = batch.schema.names
    absent = [None] * batch.num_rows
    images = batch.column("image").to_pylist()
    keys = batch.column("key").to_pylist() if has_key else absent
    times = _times_ms(batch.column("event_time")) if "event_time" in names else absent
    for image, key, time_ms in zip(images, keys, times, strict=True):
        encoded = key.encode() if isinstance(key, str) else key
        yield SourceImage(image, key=encoded, has_key=has_key, event_time_ms=time_ms)


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
