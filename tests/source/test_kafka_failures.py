"""A source whose listener, broker or group fails it."""

from collections.abc import Iterator
from contextlib import suppress

import pytest

from nap_stream.records import TopicPartition
from nap_stream.settings.schema import KafkaSettings
from nap_stream.source.kafka import KafkaSource
from tests.source.test_contract import Listener, commit, hold_back, poll_messages, poll_until
from tests.support.apache_kafka import ApacheKafka
from tests.support.topics import administering, describe_group, new_settings, send
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.kafka


@pytest.fixture
def sources() -> Iterator[list[KafkaSource]]:
    opened: list[KafkaSource] = []
    yield opened
    for source in opened:
        with suppress(RuntimeError):
            source.close(2)


def members(settings: KafkaSettings) -> int:
    return len(describe_group(settings)["members"])


def test_the_group_is_left_also_when_the_listener_fails(
    apache_kafka: ApacheKafka, sources: list[KafkaSource]
) -> None:
    settings = new_settings(apache_kafka.bootstrap)

    def fail() -> None:
        raise RuntimeError("the log's disk is full")

    listener = Listener(on_revoked=fail)
    sources.append(KafkaSource(settings, listener, instance_id="worker-0"))
    poll_until(sources[0], lambda _found: bool(listener.assignments))
    assert members(settings) == 1

    with pytest.raises(RuntimeError, match="disk is full"):
        sources[0].close(PATIENCE_S)

    assert listener.revocations == [TopicPartition(settings.topic, 0)]
    assert members(settings) == 0


def test_an_error_of_the_listener_while_another_joins_comes_out_of_poll(
    apache_kafka: ApacheKafka, sources: list[KafkaSource]
) -> None:
    settings = new_settings(apache_kafka.bootstrap, partitions=2)

    def fail() -> None:
        raise RuntimeError("the log's disk is full")

    first, second = Listener(on_revoked=fail), Listener()
    sources.append(KafkaSource(settings, first, instance_id="worker-0"))
    poll_until(sources[0], lambda _found: len(first.assignments) == 2)
    sources.append(KafkaSource(settings, second, instance_id="worker-1"))

    def poll_both() -> bool:
        sources[1].poll(0.1, 10)
        sources[0].poll(0.1, 10)
        return False

    with pytest.raises(RuntimeError, match="disk is full"):
        wait_until(poll_both, "the first member to lose a partition")


def test_one_that_never_joined_does_not_remove_its_namesake(
    apache_kafka: ApacheKafka, sources: list[KafkaSource]
) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    listener = Listener()
    sources.append(KafkaSource(settings, listener, instance_id="worker-0"))
    poll_until(sources[0], lambda _found: bool(listener.assignments))

    KafkaSource(settings, Listener(), instance_id="worker-0").close(PATIENCE_S)

    assert members(settings) == 1
    commit(sources[0], {TopicPartition(settings.topic, 0): 0})


def test_close_keeps_to_its_time_while_the_broker_is_away(
    own_kafka: ApacheKafka, sources: list[KafkaSource]
) -> None:
    settings = new_settings(own_kafka.bootstrap)
    listener = Listener()
    source = KafkaSource(settings, listener, instance_id="worker-0")
    sources.append(source)
    listener.on_revoked = lambda: source.commit_soon({TopicPartition(settings.topic, 0): 0})
    poll_until(source, lambda _found: bool(listener.assignments))

    own_kafka.kill()
    source.close(2)

    assert listener.revocations == [TopicPartition(settings.topic, 0)]


@pytest.mark.slow
def test_a_partition_waits_while_nobody_tells_its_offsets(
    own_kafka: ApacheKafka, sources: list[KafkaSource]
) -> None:
    settings = new_settings(own_kafka.bootstrap)
    send(settings, [b"a"])
    listener = Listener()
    source = KafkaSource(settings, listener, instance_id="worker-0")
    sources.append(source)
    poll_until(source, lambda _found: bool(listener.assignments))
    listener.assignments.clear()

    hold_back(source, TopicPartition(settings.topic, 0))
    own_kafka.kill()
    assert source.poll(0.1, 10) == []
    assert listener.assignments == []
    assert source.away() == "it does not answer"

    own_kafka.start()
    wait_until(lambda: source.away() is None, "the broker to be reachable")
    assert [m.value for m in poll_messages(source, 1)] == [b"a"]
    assert len(listener.assignments) == 1


def test_each_worker_is_told_apart_by_the_broker(
    apache_kafka: ApacheKafka, sources: list[KafkaSource]
) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    listener = Listener()
    sources.append(KafkaSource(settings, listener, instance_id="worker-7"))
    poll_until(sources[0], lambda _found: bool(listener.assignments))

    (member,) = describe_group(settings)["members"]

    assert (member["group_instance_id"], member["client_id"]) == ("worker-7", "nap-stream-worker-7")


def test_a_topic_that_was_deleted_is_no_broker_that_is_away(
    apache_kafka: ApacheKafka, sources: list[KafkaSource]
) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    listener = Listener()
    source = KafkaSource(settings, listener, instance_id="worker-0")
    sources.append(source)
    poll_until(source, lambda _found: bool(listener.assignments))
    wait_until(lambda: source.away() is None, "the broker that is there")

    with administering(settings.bootstrap_servers) as admin:
        admin.delete_topics([settings.topic])

    def told() -> bool:
        source.poll(0.1, 10)
        return source.away() == f"it has no topic {settings.topic}; was it deleted?"

    wait_until(told, "the topic to be missed")
