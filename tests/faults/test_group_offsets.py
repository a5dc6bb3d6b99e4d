"""The group's committed offsets are lost or changed, or retention has eaten what comes next."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from kafka import KafkaProducer
from kafka.structs import OffsetAndMetadata
from kafka.structs import TopicPartition as KafkaPartition

from nap_stream.kafka.offsets import offsets_of
from nap_stream.monitor.run import begin_chains
from nap_stream.records import TopicPartition
from nap_stream.scored_log.stores import store_at
from nap_stream.scored_log.verify.run import verify
from nap_stream.settings.schema import KafkaSettings
from tests.support.apache_kafka import ApacheKafka
from tests.support.lines import Worker, local_log
from tests.support.streams import offsets_in_log, require_each_offset_once, rows_in_log
from tests.support.topics import (
    PATIENT_PRODUCER,
    administering,
    committed_offsets,
    delete_before,
    new_settings,
    send,
)
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.kafka


@pytest.fixture
def settings(apache_kafka: ApacheKafka) -> KafkaSettings:
    return new_settings(apache_kafka.bootstrap)


def read_all_of(settings: KafkaSettings, root: Path, rows: int) -> None:
    """Have a worker run until the log holds so many rows."""
    with Worker(settings, local_log(root, "worker-0")) as worker:
        wait_until(lambda: rows_in_log(root, settings.topic) >= rows, f"{rows} rows")
        worker.stop()


def delete_group_offsets(settings: KafkaSettings) -> None:
    with administering(settings.bootstrap_servers) as admin:
        admin.delete_group_offsets(settings.group_id, [KafkaPartition(settings.topic, 0)])


def reset_group_offset(settings: KafkaSettings, offset: int) -> None:
    offsets = {KafkaPartition(settings.topic, 0): OffsetAndMetadata(offset, "", -1)}
    with administering(settings.bootstrap_servers) as admin:
        admin.alter_group_offsets(settings.group_id, offsets)


@pytest.mark.parametrize("change", ["deleted", "behind", "ahead"])
def test_the_log_wins_over_committed_offsets_that_were_deleted_or_reset(
    settings: KafkaSettings, tmp_path: Path, change: str
) -> None:
    partition = TopicPartition(settings.topic, 0)
    send(settings, [b"g"] * 10)
    read_all_of(settings, tmp_path, 10)
    send(settings, [b"g"] * 10)
    if change == "deleted":
        delete_group_offsets(settings)
        assert committed_offsets(settings) == {}
    else:
        reset_group_offset(settings, 3 if change == "behind" else 18)

    read_all_of(settings, tmp_path, 20)

    require_each_offset_once(tmp_path, settings.topic, {partition: 20})
    assert committed_offsets(settings) == {0: 20}


@pytest.mark.slow  # a consumer looks for new partitions every few seconds
@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_partitions_that_are_added_have_all_of_their_messages_in_the_log_or_in_a_gap(
    settings: KafkaSettings, tmp_path: Path, start: Literal["earliest", "latest"]
) -> None:
    kafka = settings.model_copy(update={"start": start})
    send(kafka, [b"g"] * 7, partition=0)
    begin_chains(local_log(tmp_path, "driver"), offsets_of(kafka, {}, [kafka.topic]), start)
    # What comes before a worker has the partition came after the run began.
    send(kafka, [b"g"] * 2, partition=0)
    first = 0 if start == "earliest" else 7
    with Worker(kafka, local_log(tmp_path, "worker-0")) as worker:
        wait_until(lambda: rows_in_log(tmp_path, kafka.topic) == 9 - first, "the first rows")
        _add_partitions(kafka, 2)
        send(kafka, [b"g"] * 5, partition=1)
        wait_until(lambda: rows_in_log(tmp_path, kafka.topic) >= 14 - first, "rows of both")
        worker.stop()
    # Added while nothing runs, and found by a run whose chains stand already.
    _add_partitions(kafka, 4)
    send(kafka, [b"g"] * 6, partition=2)
    delete_before(kafka, 4, partition=2)
    send(kafka, [b"g"] * 3, partition=3)
    begin_chains(local_log(tmp_path, "driver"), offsets_of(kafka, {}, [kafka.topic]), start)
    with Worker(kafka, local_log(tmp_path, "worker-0")) as worker:
        wait_until(lambda: rows_in_log(tmp_path, kafka.topic) >= 19 - first, "the last rows")
        worker.stop()

    assert [found for _name, found in sorted(offsets_in_log(tmp_path, kafka.topic).items())] == [
        list(range(first, 9)),
        [0, 1, 2, 3, 4],
        [4, 5],
        [0, 1, 2],
    ]
    (gap,) = verify(store_at(tmp_path), deep=True).gaps
    assert "partition=2" in gap.file
    assert (gap.base_offset, gap.end_offset) == (0, 4)


def _add_partitions(kafka: KafkaSettings, total: int) -> None:
    with administering(kafka.bootstrap_servers) as admin:
        admin.create_partitions({kafka.topic: total})


def test_what_retention_has_eaten_between_two_runs_is_a_declared_gap(
    settings: KafkaSettings, tmp_path: Path
) -> None:
    send(settings, [b"g"] * 10)
    read_all_of(settings, tmp_path, 10)
    send(settings, [b"g"] * 10)
    delete_before(settings, 15)

    read_all_of(settings, tmp_path, 15)

    require_gap(settings, tmp_path, range(10, 15), end=20)


def test_what_retention_eats_before_a_running_worker_reads_it_is_a_declared_gap(
    settings: KafkaSettings, tmp_path: Path
) -> None:
    partition = TopicPartition(settings.topic, 0)
    send(settings, [b"g"] * 10)
    with Worker(settings, local_log(tmp_path, "worker-0")) as worker:
        wait_until(lambda: end_of(tmp_path, partition) == 10, "rows")
        # Nobody reads past an open transaction, so that what follows is there and not yet read.
        with open_transaction(settings):
            send(settings, [b"g"] * 10)
            delete_before(settings, 15)
            wait_until(lambda: end_of(tmp_path, partition) >= 15, "the gap")
        wait_until(lambda: end_of(tmp_path, partition) == 22, "the end")
        worker.stop()

    require_gap(settings, tmp_path, range(10, 15), end=22, rows_end=21)


@contextmanager
def open_transaction(settings: KafkaSettings) -> Iterator[None]:
    """Of one message, aborted in the end: it takes an offset, and its marker another."""
    producer = KafkaProducer(
        bootstrap_servers=list(settings.bootstrap_servers),
        transactional_id=settings.topic,
        **PATIENT_PRODUCER,
    )
    try:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(settings.topic, b"g").get(timeout=PATIENCE_S)
        yield
        producer.abort_transaction()
    finally:
        producer.close(timeout=5)


def require_gap(
    settings: KafkaSettings, root: Path, missing: range, *, end: int, rows_end: int | None = None
) -> None:
    report = verify(store_at(root), deep=True)
    assert report.clean, report.defects
    (gap,) = report.gaps
    assert range(gap.base_offset, gap.end_offset) == missing
    assert "retention" in gap.reason
    found = offsets_in_log(root, settings.topic)[TopicPartition(settings.topic, 0)]
    assert found == [offset for offset in range(rows_end or end) if offset not in missing]
    assert committed_offsets(settings) == {0: end}


def end_of(root: Path, partition: TopicPartition) -> int:
    position = local_log(root, "reader").end(partition)
    return 0 if position is None else position.offset
