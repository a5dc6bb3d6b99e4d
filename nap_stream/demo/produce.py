"""Sends image files as messages, for trying things out."""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from kafka import KafkaProducer

from nap_stream.clock import Clock, Progress, SystemClock
from nap_stream.decode.arrow import ARROW_STREAM
from nap_stream.errors import ConfigError
from nap_stream.image_files import ImageFile, count_images, iter_images
from nap_stream.kafka.client import (
    close_producer,
    connect,
    open_client,
    producer_options,
    require_topics,
    translated_errors,
)
from nap_stream.settings.schema import KafkaSettings

MAX_REQUEST_BYTES = 64 * 2**20
DELIVERY_TIMEOUT_S = 120.0
CLOSE_TIMEOUT_S = 5.0
IN_FLIGHT_MESSAGES = 1_000
IN_FLIGHT_BYTES = 64 * 2**20
"""Sent before the oldest message must have arrived: bounds memory."""

BATCH_SCHEMA = pa.schema(
    [
        pa.field("image", pa.binary()),
        pa.field("key", pa.string()),
        pa.field("event_time", pa.timestamp("ms", tz="UTC")),
    ]
)


@dataclass(frozen=True, slots=True)
class ProduceReport:
    """What was sent; ``size_bytes`` counts the messages' values."""

    messages: int
    images: int
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Outgoing:
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]
    images: int


def produce(
    settings: KafkaSettings,
    path: Path,
    *,
    rate: float | None = None,
    label_header: str | None = None,
    images_per_message: int = 1,
    limit: int | None = None,
    clock: Clock | None = None,
    progress: Progress | None = None,
) -> ProduceReport:
    """Send the image files of a folder or Parquet file to ``settings.topic``, in their order.

    ``path`` is as for `iter_images`: image files are sent byte for byte, keyed by their name, at
    ``rate`` images a second, or as fast as they go where it is None. ``label_header`` names the
    header with each image's label; None leaves labels out, and it does not go with several images a
    message. More than one ``images_per_message`` sends Arrow IPC streams of so many images.
    ``progress`` is told (images sent, images in all).

    Raises:
        ConfigError: ``label_header`` with several images a message.
        InputDataError: There are no images, or they cannot be read.
        BrokerError: The broker cannot be reached or refuses, or a message was not delivered.
    """
    clock = clock or SystemClock()
    if label_header is not None and images_per_message > 1:
        raise ConfigError("a message of several images has one set of headers", "--label-header")
    total = count_images(path) if limit is None else min(limit, count_images(path))
    connect(settings, clock)
    require_topics(settings, [settings.topic])
    options = producer_options(settings, MAX_REQUEST_BYTES) | {"linger_ms": 5}
    with translated_errors(settings, f"producing to {settings.topic}"):
        producer = open_client(KafkaProducer, options)
        try:
            messages = _outgoing(
                islice(iter_images(path), limit), images_per_message, label_header, clock
            )
            paced = messages if rate is None else _paced(messages, rate, clock)
            send = partial(producer.send, settings.topic)
            return _send(send, paced, clock, lambda images: progress and progress(images, total))
        finally:
            close_producer(producer, CLOSE_TIMEOUT_S)


def arrow_batch(images: Iterable[ImageFile], event_time_ms: int) -> bytes:
    """An Arrow IPC stream of images with `BATCH_SCHEMA`: one record batch, not compressed."""
    rows = list(images)
    columns = [
        [image.data for image in rows],
        [image.name for image in rows],
        [event_time_ms] * len(rows),
    ]
    arrays = [
        pa.array(column, field.type) for column, field in zip(columns, BATCH_SCHEMA, strict=True)
    ]
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, BATCH_SCHEMA) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=BATCH_SCHEMA))
    return sink.getvalue()


def _outgoing(
    images: Iterator[ImageFile], images_per_message: int, label_header: str | None, clock: Clock
) -> Iterator[_Outgoing]:
    while batch := list(islice(images, images_per_message)):
        key = batch[0].name.encode("utf-8", "replace")
        if images_per_message > 1:
            headers = [("content-type", ARROW_STREAM.encode())]
            yield _Outgoing(key, arrow_batch(batch, clock.now_ms()), headers, len(batch))
            continue
        (image,) = batch
        label = image.label or ""
        headers = [] if label_header is None else [(label_header, label.encode())]
        yield _Outgoing(key, image.data, headers, 1)


def _paced(messages: Iterator[_Outgoing], rate: float, clock: Clock) -> Iterator[_Outgoing]:
    """The same messages, each when its turn has come; a stall is not made up by a burst."""
    due = clock.monotonic()
    for message in messages:
        wait = due - clock.monotonic()
        if wait > 0:
            clock.sleep(wait)
        else:
            due = clock.monotonic()
        yield message
        due += message.images / rate


def _send(
    send: Callable[..., Any],
    messages: Iterator[_Outgoing],
    clock: Clock,
    sent_so_far: Callable[[int], object],
) -> ProduceReport:
    started = clock.monotonic()
    in_flight: deque[tuple[Any, int]] = deque()
    sent = images = size = arrived = 0
    for message in messages:
        future = send(key=message.key, value=message.value, headers=message.headers)
        in_flight.append((future, len(message.value)))
        sent, images, size = sent + 1, images + message.images, size + len(message.value)
        while len(in_flight) >= IN_FLIGHT_MESSAGES or size - arrived >= IN_FLIGHT_BYTES:
            oldest, oldest_bytes = in_flight.popleft()
            oldest.get(timeout=DELIVERY_TIMEOUT_S)
            arrived += oldest_bytes
        sent_so_far(images)
    for future, _ in in_flight:
        future.get(timeout=DELIVERY_TIMEOUT_S)
    return ProduceReport(sent, images, size, clock.monotonic() - started)
