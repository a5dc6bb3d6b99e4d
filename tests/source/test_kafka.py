"""What only a real broker can show."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from kafka import errors
from kafka.future import Future
from structlog.testing import capture_logs

from nap_stream.errors import BrokerError, BrokerUnavailableError, OffsetRangeError
from nap_stream.kafka.client import connect, create_topics, to_native
from nap_stream.records import Message, TopicPartition
from nap_stream.settings.schema import KafkaSettings
from nap_stream.source import kafka_topics
from nap_stream.source.kafka import KafkaSource
from nap_stream.source.kafka_group import ask_offsets
from nap_stream.source.kafka_topics import TRY_AGAIN_S, UNWATCHED_S
from tests.source.test_contract import Listener, commit, poll_messages, poll_until
from tests.support.apache_kafka import ApacheKafka
from tests.support.topics import administering, delete_before, new_settings, replace_topic, send
from tests.support.waiting import PATIENCE_S, wait_until

Open = Callable[..., KafkaSource]


@pytest.fixture
def opened() -> Iterator[Open]:
    sources: list[KafkaSource] = []

    def make(settings: KafkaSettings, listener: Listener, name: str = "worker-0") -> KafkaSource:
        sources.append(KafkaSource(settings, listener, instance_id=name))
        return sources[-1]

    yield make
    for source in sources:
        source.close(5)


def share(sources: dict[KafkaSource, Listener], partitions: int, *, timeout_s: float = 0.1) -> None:
    """Poll all sources until each owns something and together they own everything."""

    def settled() -> bool:
        for source in sources:
            source.poll(timeout_s, 10)
        owned = [one.owned for one in listeners]
        return all(owned) and sum(map(len, owned)) == partitions

    listeners = list(sources.values())
    wait_until(settled, "both consumers to share the partitions")


@pytest.mark.kafka
def test_a_second_member_takes_half_and_gives_it_back_when_it_leaves(
    apache_kafka: ApacheKafka, opened: Open
) -> None:
    settings = new_settings(apache_kafka.bootstrap, partitions=4)
    first_listener, second_listener = Listener(), Listener()
    first = opened(settings, first_listener, "worker-0")
    poll_until(first, lambda _found: len(first_listener.assignments) == 4)

    second = opened(settings, second_listener, "worker-1")
    share({first: first_listener, second: second_listener}, 4)
    assert len(first_listener.revocations) == 2
    assert first_listener.losses == []

    second.close(PATIENCE_S)
    # The session time-out is 45 s: partitions come back at once only because it has left.
    poll_until(first, lambda _found: len(first_listener.owned) == 4)


@pytest.mark.kafka
def test_members_that_poll_without_waiting_share_too(
    apache_kafka: ApacheKafka, opened: Open
) -> None:
    settings = new_settings(apache_kafka.bootstrap, partitions=4)
    listeners = [Listener(), Listener()]
    sources = {opened(settings, one, f"worker-{n}"): one for n, one in enumerate(listeners)}

    share(sources, 4, timeout_s=0.0)

    assert all(one.losses == [] for one in listeners)


@pytest.mark.kafka
def test_new_partitions_come_to_a_member_that_polls_without_waiting(
    apache_kafka: ApacheKafka, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nap_stream.source.kafka_group.METADATA_MAX_AGE_MS", 500)
    settings = new_settings(apache_kafka.bootstrap, partitions=1)
    listener = Listener()
    source = opened(settings, listener)

    def owns(count: int) -> bool:
        source.poll(0.0, 1)
        return len(listener.owned) == count

    wait_until(lambda: owns(1), "the partition")
    add_partitions(settings, 3)
    wait_until(lambda: owns(3), "the new partitions")
    commit(source, {TopicPartition(settings.topic, 0): 0})


@pytest.mark.kafka
def test_a_static_member_that_comes_back_takes_the_place_of_its_zombie(
    apache_kafka: ApacheKafka, opened: Open
) -> None:
    settings = new_settings(apache_kafka.bootstrap, partitions=2)
    before, after = Listener(), Listener()
    zombie = opened(settings, before, "worker-0")
    poll_until(zombie, lambda _found: len(before.assignments) == 2)

    replacement = opened(settings, after, "worker-0")
    poll_until(replacement, lambda _found: len(after.assignments) == 2)

    with pytest.raises(BrokerError, match="another process has joined the group as this worker"):
        commit(zombie, {TopicPartition(settings.topic, 0): 0})
    zombie.close(5)
    commit(replacement, {TopicPartition(settings.topic, 0): 0})


@pytest.mark.kafka
def test_lag_is_what_is_not_yet_read(apache_kafka: ApacheKafka, opened: Open) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    partition = TopicPartition(settings.topic, 0)
    send(settings, [b"x"] * 10)
    source = opened(settings, Listener())
    assert source.lag(partition) is None

    poll_until(source, bool, max_messages=4)

    assert source.lag(partition) == 6


@pytest.mark.kafka
def test_retention_that_passes_the_position_has_the_listener_asked_again(
    apache_kafka: ApacheKafka, opened: Open
) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    partition = TopicPartition(settings.topic, 0)
    send(settings, [bytes([n]) for n in range(10)])
    delete_before(settings, 6)
    listener = Listener(log_ends={partition: 3})
    source = opened(settings, listener)

    def accept_earliest() -> bool:
        source.poll(0.2, 10)
        return len(listener.assignments) >= 2

    wait_until(accept_earliest, "the partition to be placed again")
    assert listener.assignments[:2] == [(partition, 6, None), (partition, 6, None)]


@pytest.mark.kafka
def test_a_broker_that_is_too_busy_to_tell_the_ends_is_asked_again(
    apache_kafka: ApacheKafka, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    partition = TopicPartition(settings.topic, 0)
    send(settings, [bytes([n]) for n in range(10)])
    listener = Listener(log_ends={partition: 3})
    source = opened(settings, listener)
    poll_messages(source, 7)
    delete_before(settings, 6)
    source.seek(partition, 3)
    ends, asked = source._consumer.end_offsets, 0

    def busy_once(*arguments: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise errors.KafkaTimeoutError("no answer in time")
        return ends(*arguments, **options)

    monkeypatch.setattr(source._consumer, "end_offsets", busy_once)
    listener.log_ends[partition] = 6
    assert [m.offset for m in poll_messages(source, 4)] == [6, 7, 8, 9]


@pytest.mark.kafka
def test_a_position_past_the_end_is_refused(apache_kafka: ApacheKafka, opened: Open) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    send(settings, [b"x"] * 3)
    source = opened(settings, Listener(log_ends={TopicPartition(settings.topic, 0): 100}))

    with pytest.raises(OffsetRangeError, match=r"next offset to read is 100.*ends at 3"):
        poll_until(source, lambda _found: False)


def having_read_one(
    kafka: ApacheKafka, opened: Open
) -> tuple[KafkaSettings, KafkaSource, Listener]:
    """A source that has read the one message of its topic, and its listener."""
    settings = new_settings(kafka.bootstrap)
    send(settings, [b"old"])
    listener = Listener(log_ends={TopicPartition(settings.topic, 0): 0})
    source = opened(settings, listener)
    poll_messages(source, 1)
    return settings, source, listener


@pytest.mark.kafka
def test_a_topic_that_was_made_anew_during_a_pause_is_told_before_anything_of_it_is_read(
    apache_kafka: ApacheKafka, opened: Open
) -> None:
    settings, source, listener = having_read_one(apache_kafka, opened)
    partition = TopicPartition(settings.topic, 0)
    before = listener.asked[-1][2]
    source.pause()
    paused_at = time.monotonic()
    replace_topic(settings, 5)
    wait_until(lambda: time.monotonic() - paused_at > UNWATCHED_S, "a pause of some length")
    source.resume()
    listener.refusals[partition] = 1
    poll_until_lost(source, listener)

    assert listener.losses == [partition]
    assert listener.asked[-1][2] not in {before, None}


@pytest.mark.kafka
@pytest.mark.parametrize("seconds", [0.0, 0.5], ids=["busy", "hangs-up"])
def test_after_a_pause_nothing_is_read_before_the_broker_has_said_which_topic_it_is(
    seconds: float, apache_kafka: ApacheKafka, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it does not answer in time, or hangs up, and answers a fetch a moment later."""
    settings, source, listener = having_read_one(apache_kafka, opened)
    source.pause()
    monkeypatch.setattr(kafka_topics, "UNWATCHED_S", 0.0)
    replace_topic(settings, 5)
    source.resume()
    monkeypatch.setattr(kafka_topics, "METADATA_TIMEOUT_S", seconds)
    before = source._topics.ids
    hung_up = Future().failure(errors.KafkaConnectionError("the test's own"))
    monkeypatch.setattr(source._consumer._cluster, "request_update", lambda: hung_up)
    # Whatever kafka-python is told of by itself meanwhile.
    monkeypatch.setattr(source._topics, "_known", lambda: before)
    assert [source.poll(1.0, 10) for _ in range(3)] == [[]] * 3
    assert listener.losses == []
    monkeypatch.undo()
    listener.refusals[TopicPartition(settings.topic, 0)] = 1
    poll_until_lost(source, listener)


@pytest.mark.kafka
def test_metadata_are_asked_for_again_where_kafka_python_has_ceased_to(
    apache_kafka: ApacheKafka, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    source = opened(settings, Listener())
    send(settings, [b"1"])
    poll_messages(source, 1)
    cluster = source._consumer._cluster
    task = cluster._refresh_loop_future

    def fail(_answer: object) -> None:
        raise RuntimeError("the test's own")

    with monkeypatch.context() as failing:
        failing.setattr(cluster, "update_metadata", fail)
        cluster.request_update()
        wait_until(lambda: task.is_done, "the end of the task that asks")
    unanswered = cluster.request_update()
    source.poll(0.1, 10)
    wait_until(lambda: unanswered.is_done, "an answer")
    send(settings, [b"2"])
    assert [message.value for message in poll_messages(source, 1)] == [b"2"]


def poll_until_lost(source: KafkaSource, listener: Listener) -> None:
    """Poll until a partition is lost; nothing may come before that."""

    def lost() -> bool:
        assert source.poll(0.2, 10) == []
        return bool(listener.losses)

    wait_until(lost, "the topic to be known as another one")


def two_topics(bootstrap: str) -> tuple[KafkaSettings, str]:
    """Settings whose `topics` are their own and another one."""
    settings = new_settings(bootstrap)
    other = f"{settings.topic}-other"
    create_topics(settings, [other], 1)
    return settings.model_copy(update={"topics": (settings.topic, other)}), other


@pytest.mark.kafka
def test_of_two_topics_one_that_is_made_anew_leaves_the_other_as_it_is(
    apache_kafka: ApacheKafka, opened: Open
) -> None:
    settings, other = two_topics(apache_kafka.bootstrap)
    both = [TopicPartition(name, 0) for name in (settings.topic, other)]
    for name in settings.topics:
        send(settings, [name.encode()], topic=name)
    listener = Listener(log_ends=dict.fromkeys(both, 0))
    source = opened(settings, listener)
    assert {each.partition for each in poll_messages(source, 2)} == {*both}
    ids = {partition: topic_id for partition, _end, topic_id in listener.asked}
    source.pause()
    paused_at = time.monotonic()
    replace_topic(settings, 5)
    wait_until(lambda: time.monotonic() - paused_at > UNWATCHED_S, "a pause of some length")
    source.resume()
    listener.refusals[both[0]] = 1
    poll_until_lost(source, listener)

    assert listener.losses == [both[0]]
    assert listener.asked[-1][0] == both[0]
    assert listener.asked[-1][2] not in {ids[both[0]], None}
    send(settings, [b"more"], topic=other)
    assert [each.value for each in poll_messages(source, 6) if each.partition == both[1]] == [
        b"more"
    ]


@pytest.mark.kafka
def test_a_topic_of_a_pattern_that_appears_is_read_from_where_the_listener_says(
    apache_kafka: ApacheKafka, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nap_stream.source.kafka_group.METADATA_MAX_AGE_MS", 500)
    settings = new_settings(apache_kafka.bootstrap)
    send(settings, [b"first"])
    pattern = settings.model_copy(update={"topic_pattern": f"{settings.topic}(-[a-z]+)?"})
    listener = Listener()
    source = opened(pattern, listener)
    assert [each.value for each in poll_messages(source, 1)] == [b"first"]

    later, unlike = f"{settings.topic}-later", f"{settings.topic}-2"
    create_topics(settings, [later, unlike], 1)
    for name in (later, unlike):
        send(settings, [name.encode()], topic=name)
    assert [each.value for each in poll_messages(source, 1)] == [later.encode()]
    assert {partition.topic for partition in listener.owned} == {settings.topic, later}
    assert listener.losses == []


@pytest.mark.kafka
def test_a_topic_whose_leader_is_away_does_not_keep_the_other_back(
    apache_kafka: ApacheKafka, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, other = two_topics(apache_kafka.bootstrap)
    for name in settings.topics:
        send(settings, [name.encode()], topic=name)
    away = {settings.topic}

    def without_leader(consumer: Any, partitions: Sequence[Any]) -> Any:
        if away & {native.topic for native in partitions}:
            raise errors.KafkaTimeoutError("no leader")
        return ask_offsets(consumer, partitions)

    monkeypatch.setattr("nap_stream.source.kafka.ask_offsets", without_leader)
    source = opened(settings, Listener())
    with capture_logs() as events:
        assert [each.value for each in poll_messages(source, 1)] == [other.encode()]
        assert not source.settled()
        away.clear()
        assert [each.value for each in poll_messages(source, 1)] == [settings.topic.encode()]
    told = [event["event"] for event in events]
    assert told == ["partitions_wait_for_offsets", "offsets_found"]


@pytest.mark.kafka
def test_a_partition_that_lost_messages_is_left_out_alone_and_for_good(
    apache_kafka: ApacheKafka, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kafka-python's answer to an unclean election; what comes in the place of what was lost."""
    settings = new_settings(apache_kafka.bootstrap)
    other = f"{settings.topic}-other"
    create_topics(settings, [other], 2)
    both = settings.model_copy(update={"topics": (settings.topic, other)})
    lost, beside = TopicPartition(other, 0), TopicPartition(other, 1)
    sent = [(settings.topic, 0), (other, 0), (other, 1)]
    for topic, number in sent:
        send(settings, [b"before"], topic=topic, partition=number)
    listener = Listener()
    source = opened(both, listener)
    assert len(poll_messages(source, 3)) == 3

    poll, truncations = source._consumer.poll, [{to_native(lost): None}]

    def poll_once_truncated(*arguments: Any, **options: Any) -> Any:
        if truncations:
            raise errors.LogTruncationError(truncations.pop())
        return poll(*arguments, **options)

    monkeypatch.setattr(source._consumer, "poll", poll_once_truncated)
    with capture_logs() as events:
        wait_until(lambda: not source.poll(0.1, 10) and bool(source.left_out()), "it to be out")
        for topic, number in sent:
            send(settings, [b"later"], topic=topic, partition=number)
        found = poll_messages(source, 2)
        held_at = time.monotonic()
        wait_until(
            lambda: source.poll(0.1, 10) == [] and time.monotonic() - held_at > 2 * TRY_AGAIN_S,
            "it to be tried again, if ever",
        )
    assert {message.partition for message in found} == {TopicPartition(settings.topic, 0), beside}
    assert listener.losses == [lost]
    (why,) = source.left_out().values()
    assert source.left_out().keys() == {lost}
    assert f"{lost}: the broker has lost messages that were read" in why
    (said,) = [event for event in events if event["event"] == "topic_left_out"]
    assert (said["topic"], said["partition"]) == (other, 0)
    assert source.settled()


@pytest.mark.kafka
def test_a_topic_whose_commit_may_not_be_seen_is_left_out_though_the_error_names_none(
    apache_kafka: ApacheKafka, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, other = two_topics(apache_kafka.bootstrap)
    for name in settings.topics:
        send(settings, [name.encode()], topic=name)
    hidden = {settings.topic}

    def without_rights(consumer: Any, partitions: Sequence[Any]) -> Any:
        if hidden & {native.topic for native in partitions}:
            raise errors.TopicAuthorizationFailedError
        return ask_offsets(consumer, partitions)

    monkeypatch.setattr("nap_stream.source.kafka.ask_offsets", without_rights)
    source = opened(settings, Listener())
    assert [each.value for each in poll_messages(source, 1)] == [other.encode()]
    source.poll(0.1, 10)
    assert [partition.topic for partition in source.left_out()] == [settings.topic]
    hidden.clear()
    assert [each.value for each in poll_messages(source, 1)] == [settings.topic.encode()]
    assert source.left_out() == {}


@pytest.mark.kafka
def test_null_values_keys_headers_and_times_come_through(
    apache_kafka: ApacheKafka, opened: Open
) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    send(settings, [None, b""], headers=[("content-type", b"image/jpeg")])

    first, second = poll_messages(opened(settings, Listener()), 2)

    assert (first.value, second.value) == (None, b"")
    assert first.headers == (("content-type", b"image/jpeg"),)
    assert isinstance(first, Message)
    assert first.timestamp_ms > 1_577_836_800_000


@pytest.mark.kafka
def test_a_header_name_that_is_not_utf_8_is_named_as_the_cause(
    apache_kafka: ApacheKafka, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    send(settings, [b"x"])
    source = opened(settings, Listener())
    poll_messages(source, 1)

    def undecodable(*_args: object, **_kwargs: object) -> None:
        b"\xff".decode("utf-8")

    # No Python producer sends such a header; this is where kafka-python's own decoding fails.
    monkeypatch.setattr(source._consumer, "poll", undecodable)
    with pytest.raises(
        BrokerError, match=rf"{settings.topic}/0@1: a message has a header whose name is not UTF-8"
    ):
        source.poll(0.1, 10)


@pytest.mark.kafka
@pytest.mark.slow
def test_reading_goes_on_after_the_broker_was_killed_and_came_back(
    own_kafka: ApacheKafka, opened: Open
) -> None:
    settings = new_settings(own_kafka.bootstrap)
    send(settings, [b"before"])
    source = opened(settings, Listener())
    poll_messages(source, 1)

    own_kafka.kill()
    assert source.poll(0.5, 10) == []
    own_kafka.start()
    send(settings, [b"after"])

    assert [m.value for m in poll_messages(source, 1)] == [b"after"]


@pytest.mark.embedded
def test_the_embedded_broker_serves_messages_commits_and_seeks(embedded: str, opened: Open) -> None:
    # It lets a first member wait for half its session time-out.
    settings = new_settings(embedded, partitions=2, session_timeout_s=10)
    partition = TopicPartition(settings.topic, 0)
    send(settings, [b"a", b"b", b"c"], partition=0)
    source = opened(settings, Listener())

    assert [m.value for m in poll_messages(source, 3)] == [b"a", b"b", b"c"]
    commit(source, {partition: 2})
    source.seek(partition, 1)
    assert [m.value for m in poll_messages(source, 2)] == [b"b", b"c"]


def test_a_broker_that_is_down_is_named_when_the_deadline_has_passed() -> None:
    settings = KafkaSettings(
        bootstrap_servers=("127.0.0.1:1",), topic="images", connect_timeout_s=0.5
    )

    with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1.*no broker answered"):
        connect(settings)


def add_partitions(settings: KafkaSettings, total: int) -> None:
    with administering(settings.bootstrap_servers) as admin:
        admin.create_partitions({settings.topic: total})
