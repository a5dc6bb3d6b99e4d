"""A broker that refuses a password, a topic or a group: typed errors that say what to do."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

from nap_stream.alert.event import AlertEvent
from nap_stream.alert.kafka import KafkaAlertSink
from nap_stream.dead_letter import KafkaDeadLetters
from nap_stream.errors import BrokerError
from nap_stream.kafka.client import require_topics
from nap_stream.settings.schema import KafkaSettings
from nap_stream.source.kafka import KafkaSource
from tests.dead_letter.test_contract import failed
from tests.source.test_contract import Listener, poll_messages, poll_until
from tests.support.apache_kafka import ACCESS_CONTROL, SASL_PASSWORD, SASL_USER, ApacheKafka
from tests.support.topics import administering, new_settings, send
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def strict_kafka(
    kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApacheKafka]:
    """A broker that allows `SASL_USER` nothing but what an ACL says."""
    folder = tmp_path_factory.mktemp("strict-kafka")
    with ApacheKafka(kafka_jars, folder, extra=ACCESS_CONTROL) as kafka:
        yield kafka


@pytest.fixture
def admin(strict_kafka: ApacheKafka) -> Iterator[KafkaAdminClient]:
    with administering(strict_kafka.bootstrap) as client:
        yield client


@pytest.fixture
def settings(strict_kafka: ApacheKafka) -> KafkaSettings:
    """As `SASL_USER`, for a topic with one message."""
    made = new_settings(strict_kafka.bootstrap)
    send(made, [b"x"])
    return made.model_copy(update=as_user(strict_kafka, SASL_PASSWORD))


def as_user(kafka: ApacheKafka, password: str) -> dict[str, object]:
    return {
        "bootstrap_servers": (kafka.sasl_bootstrap,),
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_username": SASL_USER,
        "sasl_password": KafkaSettings(topic="x", sasl_password=password).sasl_password,
        "connect_timeout_s": PATIENCE_S,
    }


def allow(admin: KafkaAdminClient, kind: ResourceType, name: str, *names: str) -> None:
    admin.create_acls(
        [
            ACL(
                principal=f"User:{SASL_USER}",
                host="*",
                operation=ACLOperation[operation],
                permission_type=ACLPermissionType.ALLOW,
                resource_pattern=ResourcePattern(kind, name),
            )
            for operation in names
        ]
    )


def test_a_wrong_password_keeps_a_source_from_opening_and_is_shown_nowhere(
    strict_kafka: ApacheKafka, settings: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = settings.model_copy(update=as_user(strict_kafka, "hunter2-hunter2"))

    with caplog.at_level(logging.DEBUG), pytest.raises(BrokerError) as caught:
        KafkaSource(wrong, Listener(), instance_id="worker-0")

    assert "credentials" in f"{caught.value}"
    assert "hunter2" not in f"{caught.value!r} {wrong!r} {caplog.text}"


def test_a_topic_that_may_not_be_read_is_named_before_anything_starts(
    settings: KafkaSettings,
) -> None:
    with pytest.raises(BrokerError, match=rf"READ and DESCRIBE topic {settings.topic}") as caught:
        require_topics(settings, [settings.topic])

    assert not caught.value.retriable


def test_a_group_that_may_not_be_joined_is_named(
    admin: KafkaAdminClient, settings: KafkaSettings
) -> None:
    allow(admin, ResourceType.TOPIC, settings.topic, "READ", "DESCRIBE")

    require_refused_by_poll(settings, rf"user {SASL_USER} to READ group {settings.group_id}")


def test_a_topic_that_may_only_be_described_is_named(
    admin: KafkaAdminClient, settings: KafkaSettings
) -> None:
    allow(admin, ResourceType.TOPIC, settings.topic, "DESCRIBE")
    allow(admin, ResourceType.GROUP, settings.group_id, "READ")

    require_refused_by_poll(settings, rf"READ and DESCRIBE topic {settings.topic}")


def test_what_is_allowed_is_read_and_committed(
    admin: KafkaAdminClient, settings: KafkaSettings
) -> None:
    allow(admin, ResourceType.TOPIC, settings.topic, "READ", "DESCRIBE")
    allow(admin, ResourceType.GROUP, settings.group_id, "READ")
    source = KafkaSource(settings, Listener(), instance_id="worker-0")
    try:
        (message,) = poll_messages(source, 1)
        assert source.commit({message.partition: 1})
    finally:
        source.close(10)


def test_an_alert_topic_that_may_not_be_written_to_is_named_and_written_to_when_it_may(
    admin: KafkaAdminClient, settings: KafkaSettings
) -> None:
    sink = KafkaAlertSink(settings, settings.topic)
    try:
        with pytest.raises(BrokerError, match=rf"{settings.topic}.*WRITE and DESCRIBE") as caught:
            sink.publish(AlertEvent("monitor", {"id": "1"}))
        assert not caught.value.retriable
        allow(admin, ResourceType.TOPIC, settings.topic, "WRITE", "DESCRIBE")
        sink.publish(AlertEvent("monitor", {"id": "1"}))
    finally:
        sink.close()


def test_dead_letters_that_may_not_be_written_are_refused_until_they_may(
    admin: KafkaAdminClient, settings: KafkaSettings
) -> None:
    letters = KafkaDeadLetters(settings, settings.topic, max_payload_bytes=1000)
    try:
        with pytest.raises(BrokerError, match="WRITE and DESCRIBE"):
            deliver(letters)
        allow(admin, ResourceType.TOPIC, settings.topic, "WRITE", "DESCRIBE")
        deliver(letters)
    finally:
        letters.close()


def deliver(letters: KafkaDeadLetters) -> None:
    letters.send(failed(b"bad"))
    letters.flush(PATIENCE_S)


def require_refused_by_poll(settings: KafkaSettings, action: str) -> None:
    source = KafkaSource(settings, Listener(), instance_id="worker-0")
    try:
        with pytest.raises(BrokerError, match=action) as caught:
            poll_until(source, lambda _found: False)
        assert not caught.value.retriable
        assert SASL_PASSWORD not in repr(settings)
    finally:
        source.close(2)
