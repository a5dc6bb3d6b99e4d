"""Brokers go one after the other: leaders and the group's coordinator move away, and back."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kafka import errors
from kafka.protocol.admin import ElectionType

from tests.support.apache_kafka import ApacheKafka
from tests.support.lines import Worker, local_log
from tests.support.streams import Stream, require_each_offset_once, rows_in_log
from tests.support.topics import administering, committed_offsets, new_settings
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

TWO_REPLICAS = """\
default.replication.factor=2
offsets.topic.replication.factor=2
transaction.state.log.replication.factor=2
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
"""


@dataclass
class Cluster:
    """Two brokers; the first one is also the controller."""

    first: ApacheKafka
    second: ApacheKafka

    @property
    def bootstrap(self) -> tuple[str, ...]:
        return self.first.bootstrap, self.second.bootstrap

    def leaders(self, topic: str) -> dict[int, int]:
        """The node that leads each partition; none where a broker that is gone was asked."""
        with administering(self.first.bootstrap) as admin:
            try:
                (found,) = admin.describe_topics([topic])
            except errors.KafkaConnectionError:
                return {}
        return {part["partition_index"]: part["leader_id"] for part in found["partitions"]}

    def move_leaders_back(self) -> None:
        with administering(self.first.bootstrap) as admin:
            admin.elect_leaders(ElectionType.PREFERRED, raise_errors=False)


@pytest.fixture
def cluster(kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folders = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    with (
        ApacheKafka(kafka_jars, folders[0], extra=TWO_REPLICAS) as first,
        ApacheKafka(kafka_jars, folders[1], first=first, extra=TWO_REPLICAS) as second,
    ):
        yield Cluster(first, second)


def test_each_offset_comes_once_while_the_brokers_are_started_anew_in_turn(
    cluster: Cluster, tmp_path: Path
) -> None:
    made = new_settings(cluster.first.bootstrap, partitions=4)
    settings = made.model_copy(update={"bootstrap_servers": cluster.bootstrap})
    before = cluster.leaders(settings.topic)
    assert set(before.values()) == {1, 2}

    def more_rows() -> None:
        rows = rows_in_log(tmp_path, settings.topic)
        wait_until(lambda: rows_in_log(tmp_path, settings.topic) >= rows + 150, "more rows")

    with Worker(settings, local_log(tmp_path, "worker-0")) as worker, Stream(settings) as stream:
        more_rows()
        cluster.second.kill()
        wait_until(lambda: set(cluster.leaders(settings.topic).values()) == {1}, "leaders")
        more_rows()
        cluster.second.start()

        def moved_back() -> bool:
            cluster.move_leaders_back()
            return cluster.leaders(settings.topic) == before

        wait_until(moved_back, "the leaders to be where they were")
        more_rows()
        # The other one, in good order: with it the only controller is away.
        cluster.first.stop()
        cluster.first.start()
        more_rows()
        ends = stream.finish()
        wait_until(lambda: rows_in_log(tmp_path, settings.topic) == sum(ends.values()), "all")
        worker.stop()

    require_each_offset_once(tmp_path, settings.topic, ends)
    assert committed_offsets(settings) == {p.partition: end for p, end in ends.items()}
