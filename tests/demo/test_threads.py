import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nap_stream.clock import SystemClock
from nap_stream.demo import run
from nap_stream.demo.run import AlertFollower, Producer
from nap_stream.errors import TopicNotFoundError
from nap_stream.settings.schema import KafkaSettings
from tests.support.topics import new_settings, read_all, send
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.embedded


@pytest.fixture
def settings(embedded: str) -> KafkaSettings:
    return new_settings(embedded)


def parquet(path: Path, count: int) -> Path:
    names = [f"digit/{number}.png" for number in range(count)]
    columns = {"image": [name.encode() for name in names], "name": names}
    pq.write_table(pa.table({**columns, "label": ["digit"] * count}), path)
    return path


def test_sends_all_in_order_with_their_kind_and_notes_each_phase(
    settings: KafkaSettings, tmp_path: Path
) -> None:
    stream = parquet(tmp_path / "stream.parquet", 6)
    producer = Producer(settings, stream, [3, 2, 1], 100, SystemClock())

    with producer:
        wait_until(lambda: not producer.is_alive(), "the end of the stream")
    producer.check()

    records = read_all(settings, settings.topic, 6)
    assert [record.value for record in records] == [f"digit/{n}.png".encode() for n in range(6)]
    assert records[0].headers == [("camera", b"digit")]
    first, second, third = producer.ended_ms
    times = [record.timestamp for record in records]
    assert times[2] <= first <= times[3] <= times[4] <= second <= times[5] <= third
    assert (producer.sent, producer.phase) == (6, 2)


def test_the_end_of_the_block_ends_the_producer(settings: KafkaSettings, tmp_path: Path) -> None:
    stream = parquet(tmp_path / "stream.parquet", 10_000)

    with Producer(settings, stream, [10_000], 50, SystemClock()) as producer:
        wait_until(lambda: producer.sent > 0, "the first image")

    assert not producer.is_alive()
    assert producer.sent < 10_000
    producer.check()


def test_an_error_of_the_producer_comes_out(settings: KafkaSettings, tmp_path: Path) -> None:
    missing = settings.model_copy(update={"topic": "not-there"})

    with Producer(missing, parquet(tmp_path / "s", 1), [1], 50, SystemClock()) as producer:
        wait_until(lambda: not producer.is_alive(), "the end of the producer")

    with pytest.raises(TopicNotFoundError):
        producer.check()


def test_alerts_come_as_they_are_sent_and_to_the_last(settings: KafkaSettings) -> None:
    events = [{"id": str(uuid.uuid4()), "data": {"state": "firing"}} for _ in range(3)]
    with AlertFollower(settings, settings.topic, SystemClock()) as follower:
        send(settings, [json.dumps(events[0]).encode()])
        taken: list[Any] = []

        def came() -> bool:
            taken.extend(follower.take())
            return bool(taken)

        wait_until(came, "an alert")
        send(settings, [json.dumps(event).encode() for event in events[1:]])
        follower.finish(len(events))

        assert taken + follower.take() == events
        assert follower.take() == []


def test_alerts_that_the_log_tells_of_are_waited_for(
    settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "LAST_LOOKS", 0)
    follower = AlertFollower(settings, settings.topic, SystemClock())
    with ThreadPoolExecutor(1) as pool, follower:
        finished = pool.submit(follower.finish, 2)
        for number in range(2):
            send(settings, [json.dumps({"id": str(number), "data": {}}).encode()])
        finished.result(PATIENCE_S)
    assert [event["id"] for event in follower.take()] == ["0", "1"]


def test_what_is_no_alert_is_handed_on_with_what_is_wrong(settings: KafkaSettings) -> None:
    send(settings, [b"not JSON"])
    with AlertFollower(settings, settings.topic, SystemClock()) as follower:
        follower.finish(1)
        (event,) = follower.take()

    assert "JSON" in event["data"]["state"]
