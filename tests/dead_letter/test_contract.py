"""What every dead-letter path promises."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from nap_stream.dead_letter import DeadLetters, KafkaDeadLetters, dead_letter_headers
from nap_stream.errors import BrokerError, BrokerUnavailableError
from nap_stream.records import FailedImage, Origin, Status, TopicPartition
from tests.support.apache_kafka import ApacheKafka
from tests.support.doubles import MemoryDeadLetters
from tests.support.topics import limit_messages, new_settings, read_all
from tests.support.waiting import PATIENCE_S


def failed(
    payload: bytes | None, *, key: bytes | None = b"camera-1", offset: int = 7, index: int = 2
) -> FailedImage:
    origin = Origin(TopicPartition("images", 3), offset, index, key, 0, 0, (("line", b"4"),))
    return FailedImage(origin, Status.CORRUPT, "the file is truncated", payload, None)


@dataclass
class Path:
    """A dead-letter path, and what has arrived on it: (key, value, headers)."""

    letters: DeadLetters
    arrived: Callable[[int], list[tuple[bytes | None, bytes | None, dict[str, bytes]]]]


@pytest.fixture(
    params=[
        "memory",
        pytest.param("embedded", marks=pytest.mark.embedded),
        pytest.param("apache_kafka", marks=pytest.mark.kafka),
    ]
)
def path(request: pytest.FixtureRequest) -> Iterator[Path]:
    if request.param == "memory":
        memory = MemoryDeadLetters()

        def kept(_count: int) -> list[tuple[bytes | None, bytes | None, dict[str, bytes]]]:
            return [
                (image.origin.key, image.payload, dict(dead_letter_headers(image)))
                for image in memory.images
            ]

        yield Path(memory, kept)
        return
    found = request.getfixturevalue(request.param)
    settings = new_settings(getattr(found, "bootstrap", found))
    letters = KafkaDeadLetters(settings, settings.topic, max_payload_bytes=2**20)

    def read(count: int) -> list[tuple[bytes | None, bytes | None, dict[str, bytes]]]:
        records: list[Any] = read_all(settings, settings.topic, count)
        return [(r.key, r.value, dict(r.headers)) for r in records]

    yield Path(letters, read)
    letters.close()


def test_payload_and_key_arrive_as_they_came_with_why_and_from_where(path: Path) -> None:
    path.letters.send(failed(b"\xff\xd8 broken"))
    path.letters.flush(PATIENCE_S)

    ((key, value, headers),) = path.arrived(1)

    assert (key, value) == (b"camera-1", b"\xff\xd8 broken")
    assert headers["nap-stream-status"] == b"corrupt"
    assert headers["nap-stream-error"] == b"the file is truncated"
    assert headers["nap-stream-topic"] == b"images"
    assert headers["nap-stream-partition"] == b"3"
    assert headers["nap-stream-offset"] == b"7"
    assert headers["nap-stream-index"] == b"2"


def test_order_is_kept(path: Path) -> None:
    for number in range(20):
        path.letters.send(failed(bytes([number]), offset=number))
    path.letters.flush(PATIENCE_S)

    assert [value for _, value, _ in path.arrived(20)] == [bytes([n]) for n in range(20)]


def test_a_tombstone_without_a_key_can_be_sent(path: Path) -> None:
    path.letters.send(failed(None, key=None))
    path.letters.flush(PATIENCE_S)

    ((_, value, headers),) = path.arrived(1)
    assert value is None
    assert headers["nap-stream-offset"] == b"7"


def test_close_may_be_called_twice(path: Path) -> None:
    path.letters.close()
    path.letters.close()


@pytest.mark.kafka
def test_original_headers_go_along(apache_kafka: ApacheKafka) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    letters = KafkaDeadLetters(settings, settings.topic, max_payload_bytes=2**20)
    letters.send(failed(b"x"))
    letters.flush(PATIENCE_S)
    letters.close()

    (record,) = read_all(settings, settings.topic, 1)
    assert ("line", b"4") in list(record.headers)


@pytest.mark.kafka
def test_what_was_not_delivered_in_time_is_an_error(own_kafka: ApacheKafka) -> None:
    settings = new_settings(own_kafka.bootstrap)
    letters = KafkaDeadLetters(settings, settings.topic, max_payload_bytes=2**20)
    letters.send(failed(b"x"))
    letters.flush(PATIENCE_S)

    own_kafka.kill()
    letters.send(failed(b"y"))
    with pytest.raises(BrokerUnavailableError, match=settings.topic):
        letters.flush(0.5)
    letters.close()


@pytest.mark.slow
@pytest.mark.kafka
def test_trying_again_sends_what_was_not_delivered_once(own_kafka: ApacheKafka) -> None:
    settings = new_settings(own_kafka.bootstrap)
    letters = KafkaDeadLetters(settings, settings.topic, max_payload_bytes=2**20)
    letters.send(failed(b"x", offset=1))
    letters.flush(PATIENCE_S)

    own_kafka.kill()
    for _ in range(3):
        letters.send(failed(b"y", offset=2))
        letters.send(failed(b"z", offset=3))
        with pytest.raises(BrokerUnavailableError, match=settings.topic):
            letters.flush(0.2)
    own_kafka.start()
    letters.send(failed(b"y", offset=2))
    letters.send(failed(b"z", offset=3))
    letters.flush(PATIENCE_S)
    letters.send(failed(b"last", offset=4))
    letters.flush(PATIENCE_S)
    letters.close()

    assert [r.value for r in read_all(settings, settings.topic, 4)] == [b"x", b"y", b"z", b"last"]


@pytest.mark.kafka
@pytest.mark.parametrize("max_payload_bytes", [100, 2**20], ids=["by the client", "by the broker"])
def test_a_payload_that_the_topic_is_too_small_for_is_left_out(
    apache_kafka: ApacheKafka, max_payload_bytes: int
) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    limit_messages(settings, 1_000)
    letters = KafkaDeadLetters(settings, settings.topic, max_payload_bytes=max_payload_bytes)
    for offset, payload in enumerate((b"small", b"x" * 200_000, b"also small")):
        letters.send(failed(payload, offset=offset))
    letters.flush(PATIENCE_S)
    letters.send(failed(b"after"))
    letters.flush(PATIENCE_S)
    letters.close()

    records = {r.value: dict(r.headers) for r in read_all(settings, settings.topic, 4)}

    assert records.keys() == {b"small", b"", b"also small", b"after"}
    assert records[b""]["nap-stream-payload-left-out"] == b"200000"
    assert records[b""]["nap-stream-offset"] == b"1"
    assert "nap-stream-payload-left-out" not in records[b"small"]


def test_memory_refuses_while_away() -> None:
    letters = MemoryDeadLetters()
    letters.available = False
    letters.send(failed(b"x"))

    with pytest.raises(BrokerError):
        letters.flush(1)
    assert letters.images == []
