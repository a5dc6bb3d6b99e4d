"""What every source promises, on memory and on Apache Kafka."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from nap_stream.clock import SystemClock
from nap_stream.kafka.client import to_native
from nap_stream.records import Fetched, Message, PartitionOffsets, TopicPartition
from nap_stream.source.base import Source
from nap_stream.source.kafka import KafkaSource
from tests.support.doubles import MemorySource, MemoryTopic
from tests.support.topics import new_settings, send
from tests.support.waiting import PATIENCE_S, wait_until


@dataclass
class Listener:
    """Reads from where the log would end, else from the commit, else from the start."""

    log_ends: dict[TopicPartition, int] = field(default_factory=dict)
    refusals: dict[TopicPartition, int] = field(default_factory=dict)
    asked: list[tuple[TopicPartition, int, str | None]] = field(default_factory=list)
    assignments: list[tuple[TopicPartition, int, int | None]] = field(default_factory=list)
    revocations: list[TopicPartition] = field(default_factory=list)
    losses: list[TopicPartition] = field(default_factory=list)
    owned: set[TopicPartition] = field(default_factory=set)
    on_revoked: Callable[[], None] = lambda: None

    def assigned(self, offsets: PartitionOffsets) -> int | None:
        partition, committed = offsets.partition, offsets.committed
        self.asked.append((partition, offsets.end, offsets.topic_id))
        if self.refusals.get(partition, 0) > 0:
            self.refusals[partition] -= 1
            return None
        self.assignments.append((partition, offsets.earliest, committed))
        self.owned.add(partition)
        return self.log_ends.get(partition, committed or offsets.earliest)

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.revocations.extend(partitions)
        self.owned.difference_update(partitions)
        self.on_revoked()

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self.losses.extend(partitions)
        self.owned.difference_update(partitions)


def hold_back(source: Source, partition: TopicPartition) -> None:
    """As where retention has deleted what the position needs: `assigned` is called again."""
    if isinstance(source, KafkaSource):
        source._hold_back([to_native(partition)])
    else:
        assert isinstance(source, MemorySource)
        source._fresh.add(partition)


@dataclass
class Place:
    """Somewhere to send messages to and to open sources on."""

    send: Callable[[int, Sequence[bytes]], None]
    open: Callable[[Listener], Source]
    partition: Callable[[int], TopicPartition]


@pytest.fixture(
    params=[
        "memory",
        pytest.param("kafka", marks=pytest.mark.kafka),
    ]
)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    opened: list[Source] = []

    def keep(source: Source) -> Source:
        opened.append(source)
        return source

    if request.param == "memory":
        topic = MemoryTopic("images", 2)

        def append(partition: int, values: Sequence[bytes]) -> None:
            for value in values:
                topic.append(TopicPartition("images", partition), value)

        yield Place(
            append,
            lambda listener: keep(MemorySource(topic, listener, clock=SystemClock())),
            lambda number: TopicPartition("images", number),
        )
    else:
        settings = new_settings(request.getfixturevalue("apache_kafka").bootstrap, partitions=2)

        def produce(partition: int, values: Sequence[bytes]) -> None:
            send(settings, values, partition=partition)

        yield Place(
            produce,
            lambda listener: keep(KafkaSource(settings, listener, instance_id="worker-0")),
            lambda number: TopicPartition(settings.topic, number),
        )
    for source in opened:
        source.close(5)


def poll_messages(source: Source, count: int) -> list[Message]:
    fetched = poll_until(source, lambda parts: sum(len(p.messages) for p in parts) >= count)
    return [message for part in fetched for message in part.messages]


def poll_until(
    source: Source, enough: Callable[[list[Fetched]], bool], max_messages: int = 100
) -> list[Fetched]:
    fetched: list[Fetched] = []

    def done() -> bool:
        fetched.extend(source.poll(0.2, max_messages))
        return enough(fetched)

    wait_until(done, "messages")
    return fetched


def commit(source: Source, offsets: Mapping[TopicPartition, int]) -> None:
    """Commit; a broker that moves partitions meanwhile lets nobody do so who does not poll."""

    def committed() -> bool:
        if source.commit(offsets):
            return True
        assert isinstance(source, KafkaSource), "in memory nothing is in the way"
        source.poll(0.1, 10)
        return False

    wait_until(committed, "the commit")


def test_every_message_comes_once_in_order_with_its_offset(place: Place) -> None:
    place.send(0, [b"a", b"b", b"c"])
    place.send(1, [b"x", b"y"])

    messages = poll_messages(place.open(Listener()), 5)

    by_partition = {
        number: [(m.offset, m.value) for m in messages if m.partition == place.partition(number)]
        for number in (0, 1)
    }
    assert by_partition == {0: [(0, b"a"), (1, b"b"), (2, b"c")], 1: [(0, b"x"), (1, b"y")]}


def test_all_partitions_are_assigned_before_anything_of_them_is_read(place: Place) -> None:
    place.send(0, [b"a"])
    listener = Listener()

    poll_messages(place.open(listener), 1)

    assert sorted(listener.assignments) == [
        (place.partition(0), 0, None),
        (place.partition(1), 0, None),
    ]


def test_reading_starts_where_the_listener_says(place: Place) -> None:
    place.send(0, [b"a", b"b", b"c"])
    listener = Listener(log_ends={place.partition(0): 2})

    (message,) = poll_messages(place.open(listener), 1)

    assert (message.offset, message.value) == (2, b"c")


def test_no_poll_brings_more_than_asked_for(place: Place) -> None:
    place.send(0, [bytes([n]) for n in range(10)])
    source = place.open(Listener())

    parts = poll_until(
        source, lambda found: sum(len(p.messages) for p in found) >= 10, max_messages=3
    )

    assert max(len(part.messages) for part in parts) <= 3
    assert [m.offset for part in parts for m in part.messages] == list(range(10))


def test_the_end_of_what_was_fetched_is_where_the_next_begins(place: Place) -> None:
    place.send(0, [bytes([n]) for n in range(7)])
    source = place.open(Listener())

    parts = poll_until(
        source, lambda found: sum(len(p.messages) for p in found) >= 7, max_messages=2
    )

    ends = [part.end for part in parts if part.partition == place.partition(0)]
    starts = [part.messages[0].offset for part in parts if part.messages]
    assert starts[1:] == ends[: len(starts) - 1]
    assert ends[-1] == 7


def test_seek_reads_again(place: Place) -> None:
    place.send(0, [b"a", b"b", b"c"])
    source = place.open(Listener())
    poll_messages(source, 3)

    source.seek(place.partition(0), 1)

    assert [m.value for m in poll_messages(source, 2)] == [b"b", b"c"]


def test_a_paused_source_brings_nothing_until_it_is_resumed(place: Place) -> None:
    place.send(0, [b"a"])
    source = place.open(Listener())
    poll_messages(source, 1)

    source.pause()
    place.send(0, [b"b"])
    assert [source.poll(0.2, 10) for _ in range(3)] == [[], [], []]

    source.resume()
    assert [m.value for m in poll_messages(source, 1)] == [b"b"]


def test_what_was_committed_is_told_to_the_next_source(place: Place) -> None:
    place.send(0, [b"a", b"b", b"c"])
    first = place.open(Listener())
    poll_messages(first, 3)

    commit(first, {place.partition(0): 2})
    first.close(PATIENCE_S)

    listener = Listener()
    assert [m.value for m in poll_messages(place.open(listener), 1)] == [b"c"]
    assert (place.partition(0), 0, 2) in listener.assignments


def test_close_revokes_what_is_owned_once(place: Place) -> None:
    place.send(0, [b"a"])
    listener = Listener()
    source = place.open(listener)
    poll_messages(source, 1)

    source.close(5)
    source.close(5)

    assert sorted(listener.revocations) == [place.partition(0), place.partition(1)]
    assert listener.losses == []


def test_a_commit_while_partitions_are_revoked_is_kept(place: Place) -> None:
    place.send(0, [b"a", b"b"])
    listener = Listener()
    source = place.open(listener)
    poll_messages(source, 2)
    listener.on_revoked = lambda: source.commit_soon({place.partition(0): 2})

    source.close(PATIENCE_S)

    again = Listener()
    reader = place.open(again)
    poll_until(reader, lambda _found: len(again.assignments) == 2)
    assert (place.partition(0), 0, 2) in again.assignments


def test_a_partition_that_is_held_back_again_is_placed_anew(place: Place) -> None:
    place.send(0, [b"a", b"b"])
    listener = Listener()
    source = place.open(listener)
    poll_messages(source, 2)

    listener.log_ends[place.partition(0)] = 1
    hold_back(source, place.partition(0))

    assert [m.value for m in poll_messages(source, 1)] == [b"b"]


def test_a_partition_that_cannot_be_placed_yet_is_held_back_and_the_others_go_on(
    place: Place,
) -> None:
    place.send(0, [b"a"])
    place.send(1, [b"x"])
    listener = Listener(refusals={place.partition(0): 10**9})
    source = place.open(listener)

    (message,) = poll_messages(source, 1)
    assert message.partition == place.partition(1)
    assert source.lag(place.partition(0)) is None

    listener.refusals.clear()
    assert [m.value for m in poll_messages(source, 1)] == [b"a"]
    assert listener.revocations == []


def test_a_partition_that_was_held_back_is_told_when_it_is_given_up(place: Place) -> None:
    place.send(1, [b"x"])
    listener = Listener(refusals={place.partition(0): 10**9})
    source = place.open(listener)
    poll_messages(source, 1)

    source.close(5)

    assert sorted(listener.revocations) == [place.partition(0), place.partition(1)]


def test_the_listener_is_told_the_end_and_the_id_of_the_topic(place: Place) -> None:
    place.send(0, [b"a", b"b"])
    listener = Listener()

    poll_messages(place.open(listener), 2)

    ends = {partition: latest for partition, latest, _ in listener.asked}
    assert ends == {place.partition(0): 2, place.partition(1): 0}
    ids = {topic_id for _, _, topic_id in listener.asked}
    assert len(ids) == 1
    assert ids.pop()


def test_a_broker_that_is_there_is_reachable(place: Place) -> None:
    source = place.open(Listener())
    # It is asked for two seconds, and may be busy for longer.
    wait_until(lambda: source.away() is None, "the broker that is there")


def test_a_source_is_settled_once_its_partitions_are_placed(place: Place) -> None:
    place.send(0, [b"a"])
    source = place.open(Listener())
    assert not source.settled()

    poll_messages(source, 1)
    wait_until(lambda: source.poll(0.1, 10) == [] and source.settled(), "a settled source")

    hold_back(source, place.partition(0))
    assert not source.settled()


def test_an_error_of_the_listener_comes_out_of_poll(place: Place) -> None:
    place.send(0, [b"a"])

    class Failing(Listener):
        def assigned(self, *_args: object, **_offsets: object) -> int:
            raise RuntimeError("the log's disk is full")

    source = place.open(Failing())

    with pytest.raises(RuntimeError, match="disk is full"):
        poll_messages(source, 1)


def test_memory_gives_nothing_while_away() -> None:
    topic = MemoryTopic("images")
    topic.append(TopicPartition("images", 0), b"a")
    listener = Listener()
    source = MemorySource(topic, listener, clock=SystemClock())
    topic.available = False

    assert source.poll(0.01, 10) == []
    assert source.away() == "it does not answer"
    assert not source.commit({})
    assert listener.asked == []

    topic.available = True
    assert [m.value for m in poll_messages(source, 1)] == [b"a"]
