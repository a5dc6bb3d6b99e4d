"""A producer that goes on while a broker is away, and what a log must hold after it."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from kafka import KafkaProducer

from nap_stream.records import TopicPartition
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.stores import store_at
from nap_stream.scored_log.verify.run import verify
from nap_stream.settings.schema import KafkaSettings
from tests.support.topics import PATIENT_PRODUCER
from tests.support.waiting import PATIENCE_S


class Stream:
    """Sends messages in a thread of its own, each once, until it is told to stop.

    Args:
        kafka: Where to.
        rate: Messages a second.
        values: What is sent, again and again. By default every tenth message is a bad one; see
            `tests.support.lines.Worker`.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        rate: float = 100.0,
        values: Sequence[bytes] = (*[b"g"] * 9, b"b"),
    ) -> None:
        self._topic, self._pause_s, self._values = kafka.topic, 1 / rate, values
        self._producer = KafkaProducer(
            bootstrap_servers=list(kafka.bootstrap_servers),
            acks="all",
            enable_idempotence=True,
            metadata_max_age_ms=1_000,
            **PATIENT_PRODUCER,
        )
        self._sent: list[Any] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self) -> dict[TopicPartition, int]:
        """Stop, and tell how many messages each partition has got when all have arrived."""
        self._stopping.set()
        self._thread.join(PATIENCE_S)
        ends: dict[TopicPartition, int] = {}
        for sent in self._sent:
            arrived = sent.get(timeout=PATIENCE_S)
            partition = TopicPartition(arrived.topic, arrived.partition)
            ends[partition] = max(ends.get(partition, 0), arrived.offset + 1)
        assert sum(ends.values()) == len(self._sent), "the producer has sent something twice"
        return ends

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(PATIENCE_S)
        self._producer.close(timeout=5)

    def _run(self) -> None:
        while not self._stopping.wait(self._pause_s):
            value = self._values[len(self._sent) % len(self._values)]
            self._sent.append(self._producer.send(self._topic, value))


def offsets_in_log(root: Path, topic: str) -> dict[TopicPartition, list[int]]:
    """The offsets of all rows of a log, in its order."""
    found: dict[TopicPartition, list[int]] = {}
    for batch in scan(store_at(root), Query(topic=topic), ("partition", "offset")):
        for row in batch.to_pylist():
            found.setdefault(TopicPartition(topic, row["partition"]), []).append(row["offset"])
    return found


def rows_in_log(root: Path, topic: str) -> int:
    """How many rows a log holds; none where it is not there yet."""
    return sum(map(len, offsets_in_log(root, topic).values())) if any(root.iterdir()) else 0


def require_each_offset_once(
    root: Path, topic: str, ends: dict[TopicPartition, int], gaps: Sequence[object] = ()
) -> None:
    """Fail unless the log holds one row for each offset and has no defect."""
    assert offsets_in_log(root, topic) == {p: list(range(end)) for p, end in ends.items()}
    report = verify(store_at(root), deep=True)
    assert report.clean, report.defects
    assert list(report.gaps) == list(gaps)
