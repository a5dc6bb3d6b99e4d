"""The broker goes away in mid-stream: each message is in the log once, nothing is lost."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nap_stream.alert.event import AlertEvent
from nap_stream.alert.kafka import KafkaAlertSink
from nap_stream.alert.sinks import AlertOutbox
from nap_stream.clock import Deadline, SystemClock
from nap_stream.dead_letter import KafkaDeadLetters
from nap_stream.kafka.client import create_topics
from nap_stream.metrics import Metrics
from nap_stream.records import TopicPartition
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.stores import store_at
from nap_stream.settings.schema import KafkaSettings
from tests.support.apache_kafka import ApacheKafka
from tests.support.lines import Worker, local_log
from tests.support.streams import Stream, require_each_offset_once, rows_in_log
from tests.support.topics import committed_offsets, new_settings, read_to_end, send
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.kafka]


def alert(number: int) -> AlertEvent:
    return AlertEvent(
        "monitor",
        {"id": str(number), "type": "io.nap-stream.drift.firing", "data": {"state": "firing"}},
    )


def dead_letters(settings: KafkaSettings, topic: str) -> dict[int, list[int]]:
    """The offsets of dead letters by partition in order of arrival, each one's first."""
    found: dict[int, list[int]] = {}
    for record in read_to_end(settings, topic):
        headers = dict(record.headers)
        offsets = found.setdefault(int(headers["nap-stream-partition"]), [])
        if (offset := int(headers["nap-stream-offset"])) not in offsets:
            offsets.append(offset)
    return found


def bad_offsets(root: Path, partition: TopicPartition) -> list[int]:
    rows = scan(store_at(root), Query(topic=partition.topic), ("partition", "offset", "status"))
    return [
        row["offset"]
        for batch in rows
        for row in batch.to_pylist()
        if row["partition"] == partition.partition and row["status"] != "ok"
    ]


def kill_and_restart(kafka: ApacheKafka, outage_s: float, during: Callable[[], None]) -> None:
    kafka.kill()
    during()
    threading.Event().wait(outage_s)
    kafka.start()


def freeze_and_thaw(kafka: ApacheKafka, outage_s: float, during: Callable[[], None]) -> None:
    kafka.freeze()
    try:
        during()
        threading.Event().wait(outage_s)
    finally:
        kafka.thaw()


@pytest.mark.parametrize(
    ("outage", "outage_s"),
    [
        pytest.param(kill_and_restart, 5, id="killed", marks=pytest.mark.slow),
        pytest.param(kill_and_restart, 30, id="killed-for-30-s", marks=pytest.mark.slow),
        pytest.param(freeze_and_thaw, 45, id="frozen-past-time-outs", marks=pytest.mark.slow),
    ],
)
def test_stream_alerts_and_dead_letters_outlast_a_broker_that_is_away(
    own_kafka: ApacheKafka,
    tmp_path: Path,
    outage: Callable[[ApacheKafka, float, Callable[[], None]], None],
    outage_s: float,
) -> None:
    settings = new_settings(own_kafka.bootstrap, partitions=2)
    alerts, bad = f"{settings.topic}-alerts", f"{settings.topic}-bad"
    create_topics(settings, [alerts, bad], 1)
    letters = KafkaDeadLetters(settings, bad, max_payload_bytes=1000)
    outbox = AlertOutbox(KafkaAlertSink(settings, alerts), Metrics("0"), SystemClock())
    log = local_log(tmp_path, "worker-0")

    def put_alerts() -> None:
        for number in range(1, 4):
            outbox.put(alert(number))
        outbox.deliver()

    try:
        outbox.put(alert(0))
        outbox.deliver()
        with Worker(settings, log, dead_letters=letters) as worker, Stream(settings) as stream:
            wait_until(lambda: rows_in_log(tmp_path, settings.topic) >= 100, "rows")
            delivering = threading.Thread(target=put_alerts, daemon=True)

            outage(own_kafka, outage_s, delivering.start)

            before = rows_in_log(tmp_path, settings.topic)
            wait_until(lambda: rows_in_log(tmp_path, settings.topic) >= before + 100, "more rows")
            ends = stream.finish()
            wait_until(lambda: rows_in_log(tmp_path, settings.topic) == sum(ends.values()), "all")
            worker.stop()
            said = {report.waiting_for for report in worker.told.reports}
        delivering.join(PATIENCE_S)
        outbox.drain(Deadline(SystemClock(), PATIENCE_S))
    finally:
        letters.close()
        outbox.close()

    require_each_offset_once(tmp_path, settings.topic, ends)
    assert committed_offsets(settings) == {p.partition: end for p, end in ends.items()}
    assert any("broker" in (text or "") or "dead-letter" in (text or "") for text in said), said
    found = dead_letters(settings, bad)
    assert found == {p.partition: bad_offsets(tmp_path, p) for p in ends}
    # Where an answer was lost with its connection, an alert may come twice, never out of order.
    ids = [json.loads(record.value)["id"] for record in read_to_end(settings, alerts)]
    assert list(dict.fromkeys(ids)) == ["0", "1", "2", "3"]


@pytest.mark.slow
def test_a_worker_that_is_stopped_while_the_broker_is_away_publishes_and_ends(
    own_kafka: ApacheKafka, tmp_path: Path
) -> None:
    settings = new_settings(own_kafka.bootstrap)
    partition = TopicPartition(settings.topic, 0)
    send(settings, [b"g"] * 10)
    with Worker(settings, local_log(tmp_path, "worker-0"), segment_max_age_s=3600) as worker:
        wait_until(lambda: worker.decoded == 10, "rows in flight")
        own_kafka.kill()
        worker.stop()

    require_each_offset_once(tmp_path, settings.topic, {partition: 10})
