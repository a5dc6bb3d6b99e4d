"""A message of many images: an Arrow IPC stream, which is not trusted.

It has a column ``image`` (binary or large_binary) and may have ``key`` (binary or string, large or
not) and ``event_time`` (timestamp of any unit); other columns are ignored. Compressed bodies are
refused, since their buffers declare any size, and so are dictionaries and formats older than V5,
which have another way to say that a body is compressed. Uncompressed buffers are read in place, so
memory stays bounded by the message.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
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
_TYPES: Final[dict[str, tuple[str, Callable[[pa.DataType], bool]]]] = {
    "key": ("binary or string", lambda kind: kind in _KEY_TYPES),
    "event_time": ("timestamp", pa.types.is_timestamp),
}
"""Columns that any batch may have."""
_ELSEWHERE: Final = ", and a model's outputs are read where model.elsewhere is set"

# Slots in the vtables of Arrow's flatbuffers: Message.fbs.
_MESSAGE_VERSION_SLOT = 4
_MESSAGE_HEADER_SLOT = 8
_RECORD_BATCH_COMPRESSION_SLOT = 10
_V5 = 4
"""The format of Arrow 1.0, of 2020, as its flatbuffers number it."""
_COMPRESSION_BEFORE_V5 = b"ARROW:experimental_compression"
"""Key of a message's own metadata by which pyarrow decompresses, too."""


class BatchError(Exception):
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
    return read_rows(value, limits, ("image",), _check_images, _items)


def read_rows(
    value: bytes,
    limits: LimitSettings,
    names: Sequence[str],
    check: Callable[[pa.Schema], None],
    rows_of: Callable[[pa.RecordBatch], Iterator[SourceImage]],
) -> tuple[SourceImage, ...] | Refusal:
    """Read some columns of an Arrow IPC stream. Never raises for what the bytes hold.

    ``names`` are the columns that are read beside ``key`` and ``event_time``. ``check`` raises
    `BatchError` where the schema is not what is expected; ``rows_of`` makes rows of a batch.

    Returns:
        As `read_batch`.
    """
    try:
        batches = _batches(value, limits.max_images_per_message, names, check)
        rows = tuple(row for batch in batches for row in rows_of(batch))
    except BatchError as error:
        return Refusal(error.status, str(error))
    # pyarrow raises many types for hostile bytes, MemoryError among them.
    except Exception as error:  # noqa: BLE001
        return Refusal(Status.BAD_BATCH, f"not a valid Arrow IPC stream ({describe(error)})")
    return rows or Refusal(Status.EMPTY, "the Arrow IPC stream has no rows")


def _batches(
    value: bytes, max_rows: int, names: Sequence[str], check: Callable[[pa.Schema], None]
) -> list[pa.RecordBatch]:
    _check_messages(value)
    schema = pa.ipc.open_stream(value).schema
    found = positions(schema, (*names, *_TYPES))
    check(schema)
    options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=sorted(found))
    batches: list[pa.RecordBatch] = []
    rows = 0
    for batch in pa.ipc.open_stream(value, options=options):
        batch.validate(full=True)
        rows += batch.num_rows
        if rows > max_rows:
            raise BatchError(
                f"more than limits.max_images_per_message = {max_rows} images", Status.TOO_LARGE
            )
        batches.append(batch)
    return batches


def _items(batch: pa.RecordBatch) -> Iterator[SourceImage]:
    for image, own in zip(batch.column("image").to_pylist(), keys_and_times(batch), strict=True):
        yield SourceImage(image, **own)


def keys_and_times(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """What rows say of their keys and event times, as fields of `SourceImage`."""
    names = batch.schema.names
    absent, has_key = [None] * batch.num_rows, "key" in names
    keys = batch.column("key").to_pylist() if has_key else absent
    times = _times_ms(batch.column("event_time")) if "event_time" in names else absent
    for key, time_ms in zip(keys, times, strict=True):
        encoded = key.encode() if isinstance(key, str) else key
        yield {"key": encoded, "has_key": has_key, "event_time_ms": time_ms}


def _times_ms(column: Any) -> list[int | None]:
    factor, divisor = _MS_PER_UNIT[column.type.unit]
    ticks = column.cast(pa.int64()).to_pylist()
    return [None if tick is None else tick * factor // divisor for tick in ticks]


def positions(schema: pa.Schema, names: Sequence[str]) -> list[int]:
    """Find the position of each column that is used.

    Raises:
        BatchError: One is there twice, or is of another type than any batch may have it.
    """
    found: list[int] = []
    for name in names:
        indices = schema.get_all_field_indices(name)
        if len(indices) > 1:
            raise BatchError(f"there are {len(indices)} columns {name!r}")
        if indices and name in _TYPES:
            _check_type(name, schema.field(indices[0]).type)
        found += indices
    return found


def no_column(what: str, schema: pa.Schema) -> BatchError:
    """An error that names the columns there are."""
    listed = ", ".join(schema.names[:10]).encode("unicode_escape").decode("ascii")
    return BatchError(f"there is no column {what} (columns: {listed[:200] or 'none'})")


def _check_images(schema: pa.Schema) -> None:
    if "image" not in schema.names:
        raise no_column("'image'" + _ELSEWHERE * ("logits" in schema.names), schema)
    kind = schema.field("image").type
    if kind not in _IMAGE_TYPES:
        raise BatchError(f"column 'image' is {str(kind)[:100]}, expected binary or large_binary")


def _check_type(name: str, kind: pa.DataType) -> None:
    expected, fits = _TYPES[name]
    if not fits(kind):
        raise BatchError(f"column {name!r} is {str(kind)[:100]}, expected {expected}")


def _check_messages(value: bytes) -> None:
    """Refuse dictionaries and compressed bodies before anything is read from a body."""
    reader = pa.ipc.MessageReader.open_stream(value)
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        if message.type == "dictionary":
            raise BatchError("dictionary-encoded columns are not supported")
        metadata = message.metadata.to_pybytes()
        is_batch = message.type == "record batch"
        if _COMPRESSION_BEFORE_V5 in metadata or (is_batch and _is_compressed(metadata)):
            raise BatchError("compressed Arrow buffers are not supported: write without it")
        if is_batch and _version(metadata) < _V5:
            raise BatchError("the format is older than Arrow 1.0: write metadata version V5")


def _version(metadata: bytes) -> int:
    (message,) = struct.unpack_from("<I", metadata)
    position = _field(metadata, message, _MESSAGE_VERSION_SLOT)
    return 0 if position is None else int(struct.unpack_from("<h", metadata, position)[0])


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
