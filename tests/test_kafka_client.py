from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nap_stream.clock import ManualClock
from nap_stream.errors import BrokerUnavailableError, ConfigError, TopicNotFoundError
from nap_stream.kafka import client
from nap_stream.kafka.client import (
    TopicCounter,
    client_options,
    connect,
    create_topics,
    open_client,
    require_topics,
    topics_missing,
)
from nap_stream.kafka.offsets import offsets_of
from nap_stream.settings.schema import KafkaSettings
from nap_stream.settings.topics import TopicSelection
from tests.support.topics import new_settings
from tests.support.waiting import PATIENCE_S, wait_until

SASL = {
    "topic": "images",
    "security_protocol": "SASL_PLAINTEXT",
    "sasl_mechanism": "PLAIN",
    "sasl_username": "monitor",
}


def test_topics_are_found_created_and_counted(broker: str) -> None:
    settings = new_settings(broker, partitions=3)
    other = f"{settings.topic}-other"

    assert topics_missing(settings, [settings.topic, other]) == (other,)
    with pytest.raises(TopicNotFoundError, match=other):
        require_topics(settings, [settings.topic, other])

    create_topics(settings, [settings.topic, other], 2)
    require_topics(settings, [settings.topic, other])
    assert len(offsets_of(settings, {}, [settings.topic])) == 3
    assert len(offsets_of(settings, {}, [other])) == 2


def test_topics_are_counted_by_one_client(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = new_settings(broker, partitions=3)
    other = f"{settings.topic}-other"
    opened = []

    def open_one(*arguments: Any) -> Any:
        opened.append(open_client(*arguments))
        return opened[-1]

    monkeypatch.setattr(client, "open_client", open_one)
    named = TopicSelection((settings.topic, other))
    alike = TopicSelection((), f"{settings.topic}.*")
    with (
        closing(TopicCounter(settings, named)) as names,
        closing(TopicCounter(settings, alike)) as all_,
    ):
        assert names() == {settings.topic: 3, other: 0}
        assert all_() == {settings.topic: 3}
        assert len(opened) == 2
        create_topics(settings, [other], 2)
        wait_until(lambda: names() == all_() == {settings.topic: 3, other: 2}, "the new topic")
        assert len(opened) == 4, "creating took two"
    found = offsets_of(settings, {}, [settings.topic, other])
    assert [(one.partition.topic, one.partition.partition) for one in found] == [
        *((settings.topic, number) for number in range(3)),
        *((other, number) for number in range(2)),
    ]
    assert len({one.topic_id for one in found}) == 2


def test_connect_returns_when_a_broker_answers(broker: str) -> None:
    settings = KafkaSettings(
        bootstrap_servers=(broker,), topic="none", connect_timeout_s=PATIENCE_S
    )
    connect(settings)


def test_a_broker_that_is_down_is_an_error_at_the_deadline() -> None:
    settings = KafkaSettings(
        bootstrap_servers=("127.0.0.1:1",), topic="images", connect_timeout_s=0.3
    )

    with pytest.raises(BrokerUnavailableError) as caught:
        connect(settings)

    assert "127.0.0.1:1" in str(caught.value)
    assert "kafka.bootstrap_servers" in caught.value.action


def test_attempts_go_on_until_the_deadline() -> None:
    settings = KafkaSettings(
        bootstrap_servers=("127.0.0.1:1",), topic="images", connect_timeout_s=0.2
    )
    clock = ManualClock()

    with pytest.raises(BrokerUnavailableError):
        connect(settings, clock)

    assert clock.monotonic() == pytest.approx(0.2)


def test_password_comes_from_the_setting_or_its_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("from-file\n", encoding="utf-8")

    direct = client_options(KafkaSettings(**SASL, sasl_password="direct"))
    filed = client_options(KafkaSettings(**SASL, sasl_password_file=file))

    assert direct["sasl_plain_password"] == "direct"
    assert filed["sasl_plain_password"] == "from-file"


def test_a_password_file_that_is_gone_is_named_without_its_content(tmp_path: Path) -> None:
    settings = KafkaSettings(**SASL, sasl_password_file=tmp_path / "gone")

    with pytest.raises(ConfigError, match="sasl_password_file"):
        client_options(settings)


def test_no_password_goes_over_a_connection_without_sasl() -> None:
    options = client_options(KafkaSettings(topic="images", sasl_password="unused"))

    assert "sasl_plain_password" not in options
