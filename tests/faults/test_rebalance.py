"""Members come and go by cooperative-sticky assignment: each offset is in the log once."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from nap_stream.records import TopicPartition
from tests.support.apache_kafka import ApacheKafka
from tests.support.lines import Worker, local_log
from tests.support.streams import Stream, require_each_offset_once, rows_in_log
from tests.support.topics import committed_offsets, new_settings, remove_member, send
from tests.support.waiting import wait_until

pytestmark = pytest.mark.kafka

PARTITIONS = 4


def settled(*workers: Worker) -> bool:
    """Whether these workers, each with some, share all partitions."""
    owned = [worker.owned for worker in workers]
    return all(owned) and sum(map(len, owned)) == len(set().union(*owned)) == PARTITIONS


@pytest.mark.slow
def test_each_offset_comes_once_while_members_come_and_go(
    apache_kafka: ApacheKafka, tmp_path: Path
) -> None:
    settings = new_settings(apache_kafka.bootstrap, partitions=PARTITIONS)

    def start(number: int) -> Worker:
        name = f"worker-{number}"
        return stack.enter_context(Worker(settings, local_log(tmp_path, name), name))

    def more_rows() -> None:
        rows = rows_in_log(tmp_path, settings.topic)
        wait_until(lambda: rows_in_log(tmp_path, settings.topic) >= rows + 50, "more rows")

    with ExitStack() as stack:
        first = start(0)
        stream = stack.enter_context(Stream(settings))
        wait_until(lambda: settled(first), "one member to have all")
        more_rows()
        second, third = start(1), start(2)
        wait_until(lambda: settled(first, second, third), "three members to share")
        more_rows()
        second.stop()
        wait_until(lambda: settled(first, third), "two members to share")
        more_rows()
        third.stop()
        again = start(2)
        wait_until(lambda: settled(first, again), "the member that came back to share")
        more_rows()
        ends = stream.finish()
        wait_until(lambda: rows_in_log(tmp_path, settings.topic) == sum(ends.values()), "all")
        for worker in (first, again):
            worker.stop()
        conflicts = [worker.told.reports[-1].segment_conflicts for worker in (first, third, again)]

    require_each_offset_once(tmp_path, settings.topic, ends)
    assert committed_offsets(settings) == {p.partition: end for p, end in ends.items()}
    assert conflicts == [0, 0, 0]


@pytest.mark.slow
def test_a_revocation_that_cannot_drain_keeps_to_its_deadline_and_loses_nothing(
    apache_kafka: ApacheKafka, tmp_path: Path
) -> None:
    settings = new_settings(apache_kafka.bootstrap, partitions=2)
    log = local_log(tmp_path, "worker-0")
    with ExitStack() as stack:
        slow = stack.enter_context(Worker(settings, log, revoke_deadline_s=1.0))
        stream = stack.enter_context(Stream(settings))
        wait_until(lambda: rows_in_log(tmp_path, settings.topic) >= 20, "rows")
        slow.hold()  # decodes nothing more, as a model that hangs
        other = stack.enter_context(Worker(settings, local_log(tmp_path, "worker-1"), "worker-1"))
        wait_until(lambda: len(other.owned) == 1, "a partition of a worker that hangs")
        (taken,) = other.owned
        reached = end_of(tmp_path, taken)
        wait_until(lambda: end_of(tmp_path, taken) > reached + 20, "rows of the new")
        slow.release()
        ends = stream.finish()
        wait_until(lambda: rows_in_log(tmp_path, settings.topic) == sum(ends.values()), "all")
        slow.stop()
        other.stop()

    require_each_offset_once(tmp_path, settings.topic, ends)
    assert committed_offsets(settings) == {p.partition: end for p, end in ends.items()}


@pytest.mark.slow
def test_rows_in_hand_of_a_member_that_is_thrown_out_are_dropped_and_read_again(
    apache_kafka: ApacheKafka, tmp_path: Path
) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    partition = TopicPartition(settings.topic, 0)
    send(settings, [b"g"] * 10)
    log = local_log(tmp_path, "worker-0")
    with Worker(settings, log, segment_max_age_s=3600) as worker:
        wait_until(lambda: worker.decoded == 10, "rows in flight")
        remove_member(settings, "worker-0")
        wait_until(lambda: worker.decoded == 20, "the same messages again")
        assert end_of(tmp_path, partition) == 0
        worker.stop()

    require_each_offset_once(tmp_path, settings.topic, {partition: 10})
    assert committed_offsets(settings) == {0: 10}


def end_of(root: Path, partition: TopicPartition) -> int:
    position = local_log(root, "reader").end(partition)
    return 0 if position is None else position.offset
