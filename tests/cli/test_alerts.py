"""`nap-stream alerts` against a topic with alerts of drift, a later one, a gap and foreign ones."""

import json
from collections.abc import Sequence

import pytest

from nap_stream.alert.event import alert_event, gap_event
from nap_stream.alert.kafka import KafkaAlertSink
from nap_stream.alert.render import render_lines
from nap_stream.settings.schema import KafkaSettings
from tests.alert.samples import ALERTS, FACTS, PLAN, SETTINGS, event_tree
from tests.cli.program import Call
from tests.support.apache_kafka import ApacheKafka
from tests.support.summaries import summary
from tests.support.topics import new_settings, send

pytestmark = pytest.mark.kafka
LATER = {
    "specversion": "1.0",
    "id": "841a3a1ea9be29d3841be00138ae767c",
    "source": "/nap-stream/images/ood-fraction",
    "type": "io.nap-stream.drift.firing",
    "subject": "images",
    "time": "2023-11-14T22:13:21.500Z",
    "dataschema": "urn:nap-stream:alert:9",
    "data": {"monitor": "ood-fraction", "state": "firing", "topic": "images", "fraction": 0.125},
}
"""An event of a version that this program does not know."""
GAP = gap_event(summary(3, 200, [], end=270, gap="retention deleted them"), SETTINGS, "1.2.3")


@pytest.fixture(scope="module")
def topic(apache_kafka: ApacheKafka) -> KafkaSettings:
    settings = new_settings(apache_kafka.bootstrap)
    send(settings, [json.dumps(LATER).encode(), b"\x1b[2J"])
    sink = KafkaAlertSink(settings, settings.topic)
    try:
        for alert in ALERTS.values():
            sink.publish(alert_event(alert, PLAN, SETTINGS, FACTS, "1.2.3"))
        sink.publish(GAP)
    finally:
        sink.close()
    return settings


def options(topic: KafkaSettings) -> list[str]:
    (server,) = topic.bootstrap_servers
    return ["alerts", "--bootstrap-servers", server, "--topic", topic.topic]


def test_alerts_are_printed_in_order_and_foreign_messages_named(
    nap: Call, topic: KafkaSettings
) -> None:
    ended = nap(*options(topic))

    assert ended.exit_code == 0
    shown = [LATER, *map(event_tree, ALERTS.values()), GAP.event]
    assert ended.out == "".join("\n".join(render_lines(event)) + "\n\n" for event in shown)
    assert ended.err == f"skipped {topic.topic}/0@1: not JSON (JSONDecodeError)\n"


def test_json_gives_each_event_on_a_line_as_it_came(nap: Call, topic: KafkaSettings) -> None:
    ended = nap(*options(topic), "--json")

    events = [json.loads(line) for line in ended.out.splitlines()]
    assert events == [LATER, *map(event_tree, ALERTS.values()), dict(GAP.event)]


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        (["--severity", "critical", "--key", "camera-7"], ["key"]),
        (["--state", "firing", "--severity", "warning"], ["began", "shifted"]),
        (["--state", "gap"], ["gap"]),
    ],
)
def test_filters(
    nap: Call, topic: KafkaSettings, filters: Sequence[str], wanted: Sequence[str]
) -> None:
    ended = nap(*options(topic), "--json", *filters)

    assert ended.exit_code == 0
    found = [json.loads(line)["id"] for line in ended.out.splitlines()]
    ids = {name: event_tree(alert)["id"] for name, alert in ALERTS.items()} | {"gap": GAP.id}
    assert found == [ids[name] for name in wanted]


@pytest.mark.parametrize("wrong", [["--state", "inactive"], ["--severity", "info"]])
def test_a_filter_that_cannot_match_is_refused(
    nap: Call, topic: KafkaSettings, wrong: Sequence[str]
) -> None:
    assert nap(*options(topic), *wrong).exit_code == 2
