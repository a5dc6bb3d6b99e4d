"""What every alert sink promises, and reading alerts back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from structlog.testing import capture_logs

from nap_stream.alert.event import AlertEvent
from nap_stream.alert.kafka import KafkaAlertSink, read_alerts
from nap_stream.alert.sinks import AlertSink, LogAlertSink
from nap_stream.alert.webhook import WebhookAlertSink
from nap_stream.clock import ManualClock, SystemClock
from nap_stream.errors import (
    AlertRefusedError,
    BrokerError,
    BrokerUnavailableError,
    TopicNotFoundError,
)
from nap_stream.settings.alerts import AlertSettings, WebhookSettings
from nap_stream.settings.schema import KafkaSettings
from tests.support.apache_kafka import ApacheKafka
from tests.support.doubles import MemoryAlertSink
from tests.support.http_receiver import HttpReceiver
from tests.support.topics import limit_messages, new_settings, read_all, send
from tests.support.waiting import PATIENCE_S

MONITOR = "ood-fraction"


def alert(number: int) -> AlertEvent:
    event = {"specversion": "1.0", "id": str(number), "type": "io.nap-stream.drift.firing"}
    return AlertEvent(MONITOR, {**event, "data": {"class": "naïve"}})


@dataclass
class Place:
    """A sink, and what has arrived there: (monitor, id)."""

    sink: AlertSink
    arrived: Callable[[], list[tuple[str, str]]]
    can_tell: bool = True


@pytest.fixture(
    params=[
        "memory",
        "log",
        "webhook",
        pytest.param("embedded", marks=pytest.mark.embedded),
        pytest.param("apache_kafka", marks=pytest.mark.kafka),
    ]
)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "memory":
        memory = MemoryAlertSink()
        yield Place(memory, lambda: [(a.key, a.id) for a in memory.alerts])
    elif request.param == "log":
        with capture_logs() as logs:
            yield Place(
                LogAlertSink(),
                # Threads of other tests may log too.
                lambda: [(e["monitor"], e["id"]) for e in logs if e["event"] == "alert"],
                can_tell=False,
            )
    elif request.param == "webhook":
        receiver = HttpReceiver()
        with receiver.listening():
            webhook = WebhookAlertSink(
                AlertSettings(),
                WebhookSettings(url=receiver.url, timeout_s=PATIENCE_S),
                ManualClock(),
            )
            yield Place(webhook, lambda: posted(receiver), can_tell=False)
            webhook.close()
    else:
        found = request.getfixturevalue(request.param)
        settings = new_settings(getattr(found, "bootstrap", found))
        sink = KafkaAlertSink(settings, settings.topic)
        yield Place(sink, lambda: [(MONITOR, event["id"]) for event in events(settings)])
        sink.close()


def posted(receiver: HttpReceiver) -> list[tuple[str, str]]:
    alerts = [one for request in receiver.requests for one in request.tree]
    return [(one["labels"]["monitor"], one["annotations"]["id"]) for one in alerts]


def events(settings: KafkaSettings) -> list[Any]:
    found = read_alerts(
        settings, settings.topic, clock=SystemClock(), follow=False, from_beginning=True
    )
    return [read.event for read in found]


def test_alerts_arrive_in_order_and_are_known_where_that_can_be_told(place: Place) -> None:
    for number in range(3):
        place.sink.publish(alert(number))

    assert place.arrived() == [(MONITOR, str(number)) for number in range(3)]
    assert place.sink.delivered() == (frozenset("012") if place.can_tell else frozenset())


def test_each_sink_has_a_name(place: Place) -> None:
    assert place.sink.name in {"memory", "log", "webhook", "kafka"}


def test_close_may_be_called_twice(place: Place) -> None:
    place.sink.close()
    place.sink.close()


def test_reading_back_passes_over_what_is_foreign(broker: str) -> None:
    settings = new_settings(broker)
    send(settings, [b"not json", b"[1]", None, b'{"id": 7}', b'{"id": "ours"}', b'{"id": ""}'])
    send(settings, [b'{"id": "%s"}' % (b"x" * 300)])
    sink = KafkaAlertSink(settings, settings.topic)

    assert sink.delivered() == {"ours", ""}
    sink.close()


@pytest.mark.kafka
def test_the_last_thousand_offsets_of_each_partition_are_read_back_or_it_is_told(
    apache_kafka: ApacheKafka,
) -> None:
    class Fleeting(SystemClock):
        """A minute passes between two looks."""

        looks = 0

        def monotonic(self) -> float:
            self.looks += 1
            return 60.0 * self.looks

    settings = new_settings(apache_kafka.bootstrap, partitions=2)
    sink = KafkaAlertSink(settings, settings.topic)
    hasty = KafkaAlertSink(settings, settings.topic, Fleeting())
    assert sink.delivered() == frozenset()
    for partition in range(2):
        ids = [b'{"id": "%d-%d"}' % (partition, number) for number in range(1_100)]
        send(settings, ids, partition=partition)

    expected = {f"{partition}-{number}" for partition in range(2) for number in range(100, 1_100)}
    assert sink.delivered() == expected
    with pytest.raises(BrokerUnavailableError, match="last alerts were not read in 30 s"):
        hasty.delivered()
    sink.close()
    hasty.close()


def test_a_topic_that_does_not_exist_has_received_nothing(broker: str) -> None:
    sink = KafkaAlertSink(new_settings(broker), "no-such-topic")

    assert sink.delivered() == frozenset()
    sink.close()


@pytest.mark.kafka
def test_message_key_is_the_monitor_and_the_content_type_is_said(
    apache_kafka: ApacheKafka,
) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    sink = KafkaAlertSink(settings, settings.topic)
    sink.publish(alert(1))
    sink.close()

    (record,) = read_all(settings, settings.topic, 1)

    assert record.key == b"ood-fraction"
    assert dict(record.headers)["content-type"] == b"application/cloudevents+json; charset=utf-8"


@pytest.mark.kafka
def test_foreign_messages_are_told_and_passed_over(apache_kafka: ApacheKafka) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    send(settings, [b"not json", b"[1]", None, b'{"id": "1"}', b"[" * 100_000])

    read = list(
        read_alerts(
            settings, settings.topic, clock=SystemClock(), follow=False, from_beginning=True
        )
    )

    assert [r.event for r in read] == [None, None, None, {"id": "1"}, None]
    assert [r.problem is None for r in read] == [False, False, False, True, False]


def test_everything_is_read_also_from_batches_of_several_records(broker: str) -> None:
    settings = new_settings(broker)
    count = 1_200  # more than one poll brings
    send(settings, [b'{"id": "%d"}' % number for number in range(count)])

    assert events(settings) == [{"id": str(number)} for number in range(count)]


def test_an_empty_topic_has_no_alerts(broker: str) -> None:
    assert events(new_settings(broker)) == []


@pytest.mark.kafka
def test_after_a_refusal_the_sink_goes_on_when_its_cause_is_gone(
    apache_kafka: ApacheKafka,
) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    limit_messages(settings, 80)
    sink = KafkaAlertSink(settings, settings.topic)

    for _ in range(2):
        with pytest.raises(AlertRefusedError, match="MessageSizeTooLarge"):
            sink.publish(alert(1))
    limit_messages(settings, 2**20)
    sink.publish(alert(1))
    sink.close()

    assert events(settings) == [alert(1).event]


@pytest.mark.kafka
def test_a_closed_sink_says_so(apache_kafka: ApacheKafka) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    sink = KafkaAlertSink(settings, settings.topic)
    sink.close()

    with pytest.raises(BrokerError, match="closed"):
        sink.publish(alert(1))


@pytest.mark.kafka
def test_following_gives_new_alerts_until_told_to_stop(apache_kafka: ApacheKafka) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    send(settings, [b'{"id": "old"}'])
    seen: list[Any] = []

    found = read_alerts(
        settings,
        settings.topic,
        clock=SystemClock(),
        follow=True,
        from_beginning=True,
        should_stop=lambda: len(seen) == 2,
    )
    for read in found:
        seen.append(read.event)
        if len(seen) == 1:
            send(settings, [b'{"id": "new"}'])

    assert seen == [{"id": "old"}, {"id": "new"}]


@pytest.mark.kafka
def test_a_topic_that_does_not_exist_is_named(apache_kafka: ApacheKafka) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    reading = read_alerts(
        settings, "no-such-topic", clock=SystemClock(), follow=False, from_beginning=True
    )

    with pytest.raises(TopicNotFoundError, match="no-such-topic"):
        next(reading)


def test_memory_refuses_while_away() -> None:
    sink = MemoryAlertSink()
    sink.available = False

    with pytest.raises(BrokerUnavailableError):
        sink.publish(alert(1))
