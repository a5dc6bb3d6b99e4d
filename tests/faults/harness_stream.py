"""What is produced in a run, while it runs, and what the log must hold of it."""

import functools
import hashlib
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import KafkaProducer

from nap_stream.settings.schema import KafkaSettings
from tests.support.image_bytes import ARROW_HEADERS, arrow_stream, encoded
from tests.support.images import smooth_image
from tests.support.topics import PATIENT_PRODUCER
from tests.support.waiting import PATIENCE_S

Rows = dict[tuple[int, int, int], str | None]
"""SHA-256 of each image by (partition, offset, index); None where there are no bytes."""

POOL = 24


@dataclass(frozen=True, slots=True)
class Sent:
    """One message: its value, its headers, the images that are its rows, and which are bad."""

    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    images: tuple[bytes | None, ...]
    bad: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Burst:
    """Messages, each with its partition, sent together.

    ``transaction`` is "commit" or "abort", which leave offsets without messages, or None.
    """

    messages: tuple[tuple[int, Sent], ...]
    transaction: str | None
    pause_s: float


@functools.cache
def _pool() -> tuple[bytes, ...]:
    kinds = ("JPEG", "PNG")
    return tuple(encoded(smooth_image(seed), kinds[seed % 2]) for seed in range(POOL))


def draw_bursts(seed: int, messages: int, partitions: int) -> list[Burst]:
    """The stream of a seed: mostly images, also batches, garbage and nothing at all."""
    draw = random.Random(f"stream {seed}")
    bursts = []
    left = messages
    while left > 0:
        size = min(left, draw.randint(1, 20))
        left -= size
        bursts.append(
            Burst(
                tuple((draw.randrange(partitions), _message(draw)) for _ in range(size)),
                draw.choice((None, None, None, "commit", "abort")),
                draw.choice((0.0, 0.02, 0.1, 0.2)),
            )
        )
    return bursts


def _message(draw: random.Random) -> Sent:
    kind = draw.random()
    if kind < 0.65:
        image = draw.choice(_pool())
        return Sent(image, (), (image,), ())
    if kind < 0.75:
        garbage = draw.randbytes(draw.randint(1, 60))
        return Sent(garbage, (), (garbage,), (0,))
    if kind < 0.8:
        value = draw.choice((None, b""))
        return Sent(value, (), (None,), (0,))
    if kind < 0.85:
        garbage = draw.randbytes(draw.randint(1, 60))
        return Sent(garbage, ARROW_HEADERS, (garbage,), (0,))
    images = [draw.choice((*_pool(), b"no image", None)) for _ in range(draw.randint(1, 12))]
    bad = tuple(i for i, image in enumerate(images) if image in {b"no image", None})
    return Sent(arrow_stream({"image": images}), ARROW_HEADERS, tuple(images), bad)


class Stream:
    """Produces bursts in a thread of its own, and keeps what a complete log must hold."""

    def __init__(self, kafka: KafkaSettings, bursts: Sequence[Burst]) -> None:
        self.rows: Rows = {}
        self.bad: set[tuple[int, int, int]] = set()
        self.messages = 0
        self._kafka, self._bursts = kafka, bursts
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finished(self) -> bool:
        """Whether everything has been sent; raises what ended it."""
        if self._error is not None:
            raise self._error
        return not self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        plain = self._producer()
        in_transactions = self._producer(transactional_id=f"of-{self._kafka.topic}")
        try:
            in_transactions.init_transactions()
            for burst in self._bursts:
                self._send(in_transactions if burst.transaction else plain, burst)
        except BaseException as error:  # noqa: BLE001  raised again by `finished`
            self._error = error
        finally:
            plain.close()
            in_transactions.close()

    def _producer(self, **options: Any) -> Any:
        return KafkaProducer(
            bootstrap_servers=list(self._kafka.bootstrap_servers),
            acks="all",
            enable_idempotence=True,
            **PATIENT_PRODUCER,
            **options,
        )

    def _send(self, producer: Any, burst: Burst) -> None:
        if burst.transaction:
            producer.begin_transaction()
        futures = [
            producer.send(
                self._kafka.topic,
                key=b"k",
                value=sent.value,
                partition=partition,
                headers=list(sent.headers),
            )
            for partition, sent in burst.messages
        ]
        offsets = [future.get(timeout=PATIENCE_S).offset for future in futures]
        if burst.transaction == "abort":
            producer.abort_transaction()
            return
        if burst.transaction:
            producer.commit_transaction()
        for (partition, sent), offset in zip(burst.messages, offsets, strict=True):
            self.messages += 1
            self.rows.update(_rows(partition, offset, sent))
            self.bad.update((partition, offset, index) for index in sent.bad)
        threading.Event().wait(burst.pause_s)


def _rows(partition: int, offset: int, sent: Sent) -> Iterator[tuple[tuple[int, int, int], Any]]:
    for index, image in enumerate(sent.images):
        digest = hashlib.sha256(image).hexdigest() if image else None
        yield (partition, offset, index), digest
