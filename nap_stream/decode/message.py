"""One Kafka message to its images, each with its origin."""

import hashlib
from collections.abc import Iterator
from typing import Final

from nap_stream.decode.arrow_batch import BatchItem, read_batch
from nap_stream.decode.image import Picture, Refusal, decode_image
from nap_stream.records import DecodedImage, FailedImage, Message, Origin, Status
from nap_stream.settings import LimitSettings

ARROW_STREAM: Final = "application/vnd.apache.arrow.stream"
"""Content type of a message that holds a batch of images."""

_CONTENT_TYPE: Final = "content-type"
_LAST_TIME_MS: Final = 253_402_300_799_999
"""The end of the year 9999, the last time that calendars of common tools can show."""


def decode_message(
    message: Message,
    limits: LimitSettings,
    *,
    kept_headers: tuple[str, ...],
    ingest_time_ms: int,
) -> list[DecodedImage | FailedImage]:
    """Decode all images of a message at once; see `iter_decoded`.

    The pixels of all images of a batch are in memory together.
    """
    return list(
        iter_decoded(message, limits, kept_headers=kept_headers, ingest_time_ms=ingest_time_ms)
    )


def iter_decoded(
    message: Message,
    limits: LimitSettings,
    *,
    kept_headers: tuple[str, ...],
    ingest_time_ms: int,
) -> Iterator[DecodedImage | FailedImage]:
    """Decode the images of a message one by one. Never raises for what the message holds.

    A message whose header ``content-type`` is `ARROW_STREAM` is a batch: its rows are the
    images, and one bad image spoils only its own row. Any other message is one image.

    An event time outside the years 1970 to 9999 counts as absent: a row's own gives way to the
    message's timestamp, and that to ``ingest_time_ms``.

    Args:
        message: As it came.
        limits: What is refused before it is decoded.
        kept_headers: Names of the message headers that go with each row, as they are spelt.
        ingest_time_ms: When the message was consumed, milliseconds since the epoch.

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
    if too_much_to_repeat:
        refusal = Refusal(
            Status.TOO_LARGE,
            f"key and kept headers have {repeated} bytes, more than limits.max_key_bytes = "
            f"{limits.max_key_bytes}; they are left out",
        )
        yield _row(origin(0), value, refusal)
        return
    if value and len(value) > limits.max_message_bytes:
        refusal = Refusal(
            Status.TOO_LARGE,
            f"{len(value)} bytes, more than limits.max_message_bytes = {limits.max_message_bytes}",
        )
        yield _row(origin(0), value, refusal)
        return
    if not value or not _is_batch(message):
        yield _row(origin(0), value, decode_image(value, limits))
        return
    items = read_batch(value, limits)
    if isinstance(items, Refusal):
        yield _row(origin(0), value, items)
        return
    for index, item in enumerate(items):
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
    return FailedImage(
        origin,
        result.status,
        result.error,
        data,
        sha256,
        result.width,
        result.height,
        result.format,
    )


def _is_batch(message: Message) -> bool:
    values = [value for name, value in message.headers if name.lower() == _CONTENT_TYPE]
    if not values or values[-1] is None:
        return False
    media_type = values[-1].split(b";", 1)[0].strip().lower()
    return media_type == ARROW_STREAM.encode()


def _event_time(*candidates: int | None) -> int:
    in_range = (time for time in candidates if time is not None and 0 <= time <= _LAST_TIME_MS)
    return next(in_range, 0)
