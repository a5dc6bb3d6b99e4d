"""A worker that stops while its group rebalances."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka.coordinator.base import MemberState

from nap_stream.records import TopicPartition
from nap_stream.scored_log.chain import ScoredLog
from nap_stream.settings.schema import KafkaSettings
from nap_stream.source.kafka import KafkaSource
from tests.source.test_contract import Listener, poll_until
from tests.support.apache_kafka import ApacheKafka
from tests.support.lines import Worker, local_log
from tests.support.topics import committed_offsets, describe_group, new_settings, send
from tests.support.waiting import wait_until

pytestmark = pytest.mark.kafka


@pytest.fixture
def sources() -> Iterator[list[KafkaSource]]:
    opened: list[KafkaSource] = []
    yield opened
    for source in opened:
        source.close(5)


def members(settings: KafkaSettings) -> set[str]:
    return {member["group_instance_id"] for member in describe_group(settings)["members"]}


def rebalances(source: KafkaSource) -> bool:
    """Whether the member waits for the rest of the group to join."""
    return source._consumer.group_metadata().state is MemberState.REBALANCING


def chain_end(log: ScoredLog, partition: TopicPartition) -> int | None:
    position = log.end(partition)
    return None if position is None else position.offset


@pytest.mark.slow
def test_what_is_published_at_the_stop_is_committed_when_the_rebalance_is_over(
    apache_kafka: ApacheKafka, sources: list[KafkaSource], tmp_path: Path
) -> None:
    settings = new_settings(apache_kafka.bootstrap, partitions=2)
    log = local_log(tmp_path, "worker-0")
    with Worker(settings, log, segment_max_age_s=3600) as worker:
        wait_until(lambda: len(worker.owned) == 2, "both partitions")
        other = Listener()
        sources.append(KafkaSource(settings, other, instance_id="worker-1"))
        poll_until(sources[0], lambda _found: bool(other.assignments))
        (mine,) = {TopicPartition(settings.topic, n) for n in (0, 1)} - {other.assignments[0][0]}
        send(settings, [b"g"] * 10, partition=mine.partition)
        # Its first partitions have the second member join once more: it is to have that behind it.
        poll_until(sources[0], lambda _found: worker.decoded == 10 and not rebalances(sources[0]))

        # The second member polls no more, so that the rebalance for the third cannot end.
        third = KafkaSource(settings, Listener(), instance_id="worker-2")
        sources.append(third)
        poll_until(third, lambda _found: "worker-2" in members(settings))
        wait_until(lambda: rebalances(worker.source), "the worker to join anew")
        worker.tell_to_stop()
        wait_until(lambda: chain_end(log, mine) == 10, "rows in the log")
        assert worker.running
        sources[0].close(10)
        worker.stop()

    assert committed_offsets(settings)[mine.partition] == 10
