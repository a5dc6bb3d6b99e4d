"""From a message to the rows of its images. A bad image is a row, not a crash."""

import hashlib
from collections.abc import Callable
from typing import Any, Final

import torch

from nap_stream.decode.arrow import ARROW_STREAM, read_batch
from nap_stream.decode.image import DEFAULT_PREPROCESSING, decode_image
from nap_stream.decode.picture import Picture, Refusal
from nap_stream.jpeg import Undecoded, undecoded_jpeg
from nap_stream.records import (
    IMAGE_COLUMNS,
    DecodedRows,
    EncodedJpeg,
    FailedImage,
    Message,
    ModelOutput,
    Origin,
    SourceImage,
    Status,
)
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings

LETTER_HEADERS = frozenset({"nap-stream-status", "nap-stream-topic"})
"""Each dead letter has them (`nap_stream.dead_letter`)."""
_CONTENT_TYPE: Final = "content-type"
_LAST_TIME_MS: Final = 253_402_300_799_999
"""The end of the year 9999, the last time that calendars of common tools can show."""


def decode_message(
    message: Message,
    limits: LimitSettings,
    *,
    kept_headers: tuple[str, ...],
    ingest_time_ms: int,
    at_least: tuple[int, int] | None = None,
    preprocessing: PreprocessingSettings = DEFAULT_PREPROCESSING,
    prepare: Callable[[torch.Tensor], torch.Tensor] = lambda pixels: pixels,
    leaves_jpegs: bool = False,
    keeps_files: bool = False,
    read: Callable[[Message], tuple[SourceImage, ...]] | None = None,
    read_outputs: Callable[[bytes], tuple[SourceImage, ...] | Refusal] | None = None,
) -> DecodedRows:
    """Decode the images of a message. Never raises for what the message holds.

    A message whose header ``content-type`` is `ARROW_STREAM` is a batch: its rows are the
    images, and one bad image spoils only its own row. Any other message is one image.

    An event time outside the years 1970 to 9999 counts as absent: a row's own gives way to the
    message's timestamp, and that to ``ingest_time_ms``, when the message was consumed, milliseconds
    since the epoch. ``kept_headers`` names the message headers that go with each row, as spelt.
    ``at_least`` and ``preprocessing`` are those of `decode_image`. ``prepare`` is applied to the
    pixels of each image before the next one is decoded. Where it ``leaves_jpegs``, those that
    `undecoded_jpeg` finds are checked and not decoded. Where it ``keeps_files``, rows have the
    bytes of the images that are decoded, or left, too. ``read`` finds the images of other messages
    than batches; without it a message's value is its image. ``read_outputs`` is there where every
    message is a batch of a model's outputs, and no image.

    Returns:
        One row for each image, at least one. The payload of a failed row is the image's bytes, or
        the whole value where the message as such was refused, or read and has no other image. Of
        several images for which reading found no bytes, the first has the whole value.
    """
    headers = tuple(header for header in message.headers if header[0] in kept_headers)
    key, value = message.key, message.value
    repeated = len(key or b"") + sum(len(name) + len(data or b"") for name, data in headers)
    found: Picture | Refusal | Undecoded | tuple[SourceImage, ...]
    payload = None

    def decode(data: bytes | None) -> Picture | Refusal | Undecoded:
        left = undecoded_jpeg(data, limits) if leaves_jpegs else None
        return left or decode_image(data, limits, at_least, preprocessing)

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
    elif value and read_outputs is not None:
        found, payload = read_outputs(value), value
    elif value and _is_batch(message):
        found = read_batch(value, limits)
    elif read is not None:
        found, payload = read(message), value
    else:
        found = decode(value)
    rows = _Rows(message, headers, ingest_time_ms, prepare, keeps_files=keeps_files)
    if not isinstance(found, tuple):
        time_ms = _event_time(message.timestamp_ms, ingest_time_ms)
        rows.add(SourceImage(value), found, key, time_ms)
        return rows.whole()
    for item in found:
        own_key = item.key if item.has_key else key
        time_ms = _event_time(item.event_time_ms, message.timestamp_ms, ingest_time_ms)
        image: Picture | Refusal | Undecoded | ModelOutput
        image = Refusal(item.status, item.error) if item.error else item.output or decode(item.data)
        # Once at most: a copy for each of many images could be a thousand times what came.
        holds_message = len(found) == 1 or (item.data is None and item.output is None)
        rows.add(item, image, own_key, time_ms, payload if holds_message else None)
        payload = None if holds_message else payload
    return rows.whole()


class _Rows:
    """The rows of one message, as they are decoded."""

    def __init__(
        self,
        message: Message,
        headers: tuple[tuple[str, bytes | None], ...],
        ingest_time_ms: int,
        prepare: Callable[[torch.Tensor], torch.Tensor],
        *,
        keeps_files: bool,
    ) -> None:
        self._message, self._headers = message, headers
        self._files: list[bytes | None] | None = [] if keeps_files else None
        self._ingest_time_ms, self._prepare = ingest_time_ms, prepare
        self._rows: list[tuple[Any, ...]] = []
        self._pixels: list[torch.Tensor | EncodedJpeg | ModelOutput] = []
        self._failed: list[FailedImage] = []

    def add(
        self,
        image: SourceImage,
        found: Picture | Refusal | Undecoded | ModelOutput,
        key: bytes | None,
        time_ms: int,
        payload: bytes | None = None,
    ) -> None:
        """Append the row of an image, of the key and event time given, and what became of it.

        ``payload`` is what a dead letter holds, where that is not the image.
        """
        message, index, ingest_ms = self._message, len(self._rows), self._ingest_time_ms
        data = image.data
        sha256 = hashlib.sha256(data).hexdigest() if data else None
        status, error, warning = Status.OK, None, None
        size = found.width, found.height
        if isinstance(found, Picture):
            self._pixels.append(self._prepare(found.pixels))
            warning = found.warning
        elif isinstance(found, ModelOutput):
            self._pixels.append(found)
            sha256 = found.sha256
        else:
            of_message = message.partition, message.offset, index, key, time_ms, ingest_ms
            origin = Origin(*of_message, self._headers, _is_letter(message))
        if isinstance(found, Undecoded):
            assert data is not None
            assert sha256 is not None
            jpeg = EncodedJpeg(data, origin, sha256, found.width, found.height, payload)
            self._pixels.append(jpeg)
        elif isinstance(found, Refusal):
            status, error = found.status, found.error
            self._failed.append(
                FailedImage(origin, status, error, payload or data, sha256, *size, found.format)
            )
        if self._files is not None:
            self._files.append(data if status is Status.OK else None)
        times = time_ms, ingest_ms
        # In the order of IMAGE_COLUMNS.
        head = message.offset, index, key, *times, status, error
        of_file = *size, found.format, sha256
        self._rows.append((*head, *of_file, self._headers, warning, image.source_uri))

    def whole(self) -> DecodedRows:
        """All of them."""
        columns = dict(zip(IMAGE_COLUMNS, map(list, zip(*self._rows, strict=True)), strict=True))
        files = tuple(self._files or ())
        return DecodedRows(columns, tuple(self._pixels), self._failed, files)


def _is_batch(message: Message) -> bool:
    values = [value for name, value in message.headers if name.lower() == _CONTENT_TYPE]
    if not values or values[-1] is None:
        return False
    media_type = values[-1].split(b";", 1)[0].strip().lower()
    return media_type == ARROW_STREAM.encode()


def _is_letter(message: Message) -> bool:
    return {name for name, _ in message.headers} >= LETTER_HEADERS


def _event_time(*candidates: int | None) -> int:
    in_range = (time for time in candidates if time is not None and 0 <= time <= _LAST_TIME_MS)
    return next(in_range, 0)
