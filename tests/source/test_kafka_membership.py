"""What a member of a group sees when transactions skip offsets, and when it is thrown out."""

from collections.abc import Iterator

import pytest
from kafka import KafkaProducer

from nap_stream.records import TopicPartition
from nap_stream.settings.schema import KafkaSettings
from nap_stream.source.kafka import KafkaSource
from tests.source.test_contract import Listener, commit, poll_messages, poll_until
from tests.support.apache_kafka import ApacheKafka
from tests.support.topics import PATIENT_PRODUCER, describe_group, new_settings, remove_member, send
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.kafka


@pytest.fixture
def sources() -> Iterator[list[KafkaSource]]:
    opened: list[KafkaSource] = []
    yield opened
    for source in opened:
        source.close(5)


def send_in_transaction(settings: KafkaSettings, values: list[bytes], *, commit: bool) -> None:
    producer = KafkaProducer(
        bootstrap_servers=list(settings.bootstrap_servers),
        transactional_id=settings.topic,
        **PATIENT_PRODUCER,
    )
    try:
        producer.init_transactions()
        producer.begin_transaction()
        for value in values:
            producer.send(settings.topic, value)
        producer.flush()
        if commit:
            producer.commit_transaction()
        else:
            producer.abort_transaction()
    finally:
        producer.close()


def test_offsets_that_transactions_take_are_passed_over_and_aborted_messages_not_read(
    apache_kafka: ApacheKafka, sources: list[KafkaSource]
) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    send_in_transaction(settings, [b"a", b"b"], commit=True)  # offsets 0, 1, and a marker at 2
    send_in_transaction(settings, [b"aborted"], commit=False)  # offset 3, and a marker at 4
    send(settings, [b"c"])
    sources.append(KafkaSource(settings, Listener(), instance_id="worker-0"))

    parts = poll_until(sources[0], lambda found: sum(len(p.messages) for p in found) >= 3)

    messages = [message for part in parts for message in part.messages]
    assert [(m.offset, m.value) for m in messages] == [(0, b"a"), (1, b"b"), (5, b"c")]
    assert parts[-1].end == 6


def test_the_position_moves_on_where_a_transaction_leaves_nothing_to_read(
    apache_kafka: ApacheKafka, sources: list[KafkaSource]
) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    send(settings, [b"a"])
    sources.append(KafkaSource(settings, Listener(), instance_id="worker-0"))
    poll_messages(sources[0], 1)

    send_in_transaction(settings, [b"aborted"], commit=False)  # offset 1, and a marker at 2

    parts = poll_until(sources[0], lambda found: bool(found) and found[-1].end == 3)
    assert [part.messages for part in parts] == [()] * len(parts)
    assert sources[0].lag(TopicPartition(settings.topic, 0)) == 0


def test_a_member_that_was_thrown_out_loses_its_partitions_and_comes_back(
    apache_kafka: ApacheKafka, sources: list[KafkaSource]
) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    partition = TopicPartition(settings.topic, 0)
    listener = Listener()
    sources.append(KafkaSource(settings, listener, instance_id="worker-0"))
    poll_until(sources[0], lambda _found: bool(listener.assignments))

    remove_member(settings, "worker-0")

    assert sources[0].commit({partition: 0}) is False
    poll_until(sources[0], lambda _found: len(listener.assignments) == 2)
    assert (listener.losses, listener.revocations) == ([partition], [])
    commit(sources[0], {partition: 0})


def members(settings: KafkaSettings) -> set[str]:
    """Instance ids of the group's members, joined or joining."""
    return {member["group_instance_id"] for member in describe_group(settings)["members"]}


def test_a_member_that_is_closed_while_it_joins_leaves_the_group(
    apache_kafka: ApacheKafka, sources: list[KafkaSource]
) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    listener = Listener()
    sources.append(KafkaSource(settings, listener, instance_id="worker-0"))
    poll_until(sources[0], lambda _found: bool(listener.assignments))
    # The first one does not poll meanwhile, so that nobody answers the second one's join.
    second = KafkaSource(settings, Listener(), instance_id="worker-1")
    sources.append(second)
    poll_until(second, lambda _found: "worker-1" in members(settings))

    second.close(PATIENCE_S)

    assert members(settings) == {"worker-0"}
