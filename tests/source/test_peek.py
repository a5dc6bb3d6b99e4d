from collections.abc import Iterable
from contextlib import closing

import pytest
from kafka import KafkaProducer

from nap_stream.errors import BrokerError, BrokerUnavailableError, TopicNotFoundError
from nap_stream.settings.schema import KafkaSettings
from nap_stream.source.peek import peek
from tests.support.apache_kafka import ApacheKafka
from tests.support.topics import (
    PATIENT_PRODUCER,
    committed_offsets,
    delete_before,
    new_settings,
    settings_without_topic,
)
from tests.support.waiting import PATIENCE_S


def send(
    settings: KafkaSettings, values: Iterable[bytes | None], partition: int | None = None
) -> None:
    """Send each message in a batch of its own: the embedded broker's end is that of batches."""
    servers = list(settings.bootstrap_servers)
    with closing(KafkaProducer(bootstrap_servers=servers, **PATIENT_PRODUCER)) as producer:
        for value in values:
            key = b"" if value is None else None
            producer.send(settings.topic, value=value, key=key, partition=partition).get(
                timeout=PATIENCE_S
            )


def values(settings: KafkaSettings, limit: int = 10) -> list[bytes | None]:
    return [message.value for message in peek(settings, limit).messages]


def test_the_newest_messages_in_order(broker: str) -> None:
    settings = new_settings(broker)
    send(settings, [b"%d" % number for number in range(25)])

    found = peek(settings, 10)

    assert [message.value for message in found.messages] == [b"%d" % n for n in range(15, 25)]
    assert [message.offset for message in found.messages] == list(range(15, 25))
    assert (found.partitions, found.offsets, found.whole) == (1, 25, False)


def test_fewer_than_asked_for(broker: str) -> None:
    settings = new_settings(broker)
    send(settings, [b"a", None, b""])

    found = peek(settings, 10)

    assert [message.value for message in found.messages] == [b"a", None, b""]
    assert found.whole


def test_an_empty_topic(broker: str) -> None:
    found = peek(new_settings(broker, partitions=3), 10)

    assert (found.messages, found.partitions, found.offsets) == ((), 3, 0)
    assert found.whole


def test_every_partition_has_its_share(broker: str) -> None:
    settings = new_settings(broker, partitions=3)
    for partition in range(3):
        send(settings, [b"%d-%d" % (partition, n) for n in range(20)], partition=partition)

    found = peek(settings, 10).messages

    numbers = [message.partition.partition for message in found]
    assert len(found) == 10
    assert {numbers.count(partition) for partition in range(3)} == {3, 4}
    assert max(message.offset for message in found) == 19
    assert numbers == sorted(numbers)


def test_a_partition_with_little_leaves_its_share_to_others(broker: str) -> None:
    settings = new_settings(broker, partitions=2)
    send(settings, [b"only"], partition=0)
    send(settings, [b"%d" % number for number in range(100)], partition=1)

    assert values(settings) == [b"only", *(b"%d" % number for number in range(91, 100))]


@pytest.mark.kafka
def test_what_retention_has_deleted_is_not_waited_for(apache_kafka: ApacheKafka) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    send(settings, [b"%d" % number for number in range(20)])
    delete_before(settings, 17)

    assert values(settings) == [b"17", b"18", b"19"]
    delete_before(settings, 20)
    assert values(settings) == []


@pytest.mark.kafka
def test_offsets_of_transactions_are_no_messages(apache_kafka: ApacheKafka) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    producer = KafkaProducer(
        bootstrap_servers=list(settings.bootstrap_servers),
        transactional_id=settings.topic,
        **PATIENT_PRODUCER,
    )
    producer.init_transactions()
    for number in range(20):
        producer.begin_transaction()
        producer.send(settings.topic, value=b"%d" % number).get(timeout=PATIENCE_S)
        if number % 2:
            producer.abort_transaction()
        else:
            producer.commit_transaction()
    producer.close()

    # Every second offset is a marker, and every second message was aborted.
    assert values(settings, 4) == [b"%d" % number for number in (12, 14, 16, 18)]


def test_large_messages_come_too(broker: str) -> None:
    settings = new_settings(broker)
    send(settings, [bytes([number]) * 900_000 for number in range(4)])

    found = [value[:1] for value in values(settings, 3) if value]
    assert found == [bytes([number]) for number in range(1, 4)]


@pytest.mark.embedded
def test_nobody_is_disturbed(embedded: str) -> None:
    settings = new_settings(embedded)
    send(settings, [b"a"])
    peek(settings, 10)

    assert committed_offsets(settings) == {}


def test_a_topic_that_is_not_there_is_named_and_not_made(broker: str) -> None:
    settings = settings_without_topic(broker)

    for _ in range(2):
        with pytest.raises(TopicNotFoundError, match=settings.topic):
            peek(settings, 10)


def test_a_broker_that_is_not_there() -> None:
    settings = KafkaSettings(
        bootstrap_servers=("127.0.0.1:1",), topic="images", connect_timeout_s=0.3
    )

    with pytest.raises(BrokerUnavailableError, match="no broker answered"):
        peek(settings, 10)


def test_time_that_is_up(broker: str) -> None:
    settings = new_settings(broker)
    send(settings, [b"a"])

    with pytest.raises(BrokerError, match="did not arrive in time"):
        peek(settings, 10, timeout_s=0.0)
