"""A broker that refuses a password, a topic or a group: typed errors that say what to do."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)
from structlog.testing import capture_logs

from nap_stream.alert.event import AlertEvent
from nap_stream.alert.kafka import KafkaAlertSink
from nap_stream.dead_letter import KafkaDeadLetters
from nap_stream.errors import BrokerError
from nap_stream.kafka.client import create_topics, require_topics
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.run import verify
from nap_stream.settings.schema import KafkaSettings
from nap_stream.source.kafka import KafkaSource
from tests.dead_letter.test_contract import failed
from tests.source.test_contract import Listener, poll_messages, poll_until
from tests.support.apache_kafka import ACCESS_CONTROL, SASL_PASSWORD, SASL_USER, ApacheKafka
from tests.support.lines import Worker, local_log
from tests.support.streams import rows_in_log
from tests.support.topics import administering, new_settings, send
from tests.support.waiting import PATIENCE_S, wait_until

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


def forbid(admin: KafkaAdminClient, topic: str, *names: str) -> None:
    admin.delete_acls(
        [
            ACLFilter(
                principal=f"User:{SASL_USER}",
                host="*",
                operation=ACLOperation[operation],
                permission_type=ACLPermissionType.ALLOW,
                resource_pattern=ResourcePatternFilter(
                    ResourceType.TOPIC, topic, ACLResourcePatternType.LITERAL
                ),
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


@pytest.mark.parametrize(
    "case",
    [("topics", ("READ", "DESCRIBE")), ("topics", ("READ",)), ("topic_pattern", ("READ",))],
    ids=["named", "named, and may be described", "by a pattern"],
)
def test_one_of_two_topics_is_left_out_while_it_may_not_be_read(
    strict_kafka: ApacheKafka,
    admin: KafkaAdminClient,
    settings: KafkaSettings,
    tmp_path: Path,
    case: tuple[str, tuple[str, ...]],
) -> None:
    """The other goes on, and what came meanwhile is read once it may be, each offset once."""
    (key, taken), first, second = case, settings.topic, f"{settings.topic}-b"
    # As the user who may do all.
    sender = KafkaSettings(topic=first, bootstrap_servers=(strict_kafka.bootstrap,))
    create_topics(sender, [second], 2)
    for topic in (first, second):
        allow(admin, ResourceType.TOPIC, topic, "READ", "DESCRIBE")
    allow(admin, ResourceType.GROUP, settings.group_id, "READ")
    reads = {"topics": (first, second), "topic_pattern": f"{first}.*"}
    mine = settings.model_copy(update={key: reads[key]})
    send(sender, [b"g"] * 10, topic=second)

    def have(of_first: int, of_second: int) -> bool:
        assert worker.running, worker.error
        rows = rows_in_log(tmp_path, first), rows_in_log(tmp_path, second)
        return rows == (of_first, of_second)

    with Worker(mine, local_log(tmp_path, "worker-0")) as worker, capture_logs() as logs:
        wait_until(lambda: have(1, 10), "rows of both")
        forbid(admin, second, *taken)
        wait_until(lambda: any(e["event"] == "topic_left_out" for e in logs), "it to be left out")
        send(sender, [b"g"] * 5, topic=first)
        send(sender, [b"g"] * 5, topic=second)
        wait_until(lambda: have(6, 10), "rows of the first alone")
        wait_until(lambda: {one.topic for one in worker.owned} == {first}, "the other to be left")
        allow(admin, ResourceType.TOPIC, second, *taken)
        wait_until(lambda: have(6, 15), "what came meanwhile")
        wait_until(lambda: not worker.told.reports[-1].left_out, "nothing to be left out")
        worker.stop()
    (said,) = [entry for entry in logs if entry["event"] == "topic_left_out"]
    assert (said["log_level"], said["topic"]) == ("error", second)
    assert f"does not let user {SASL_USER} read it. Allow READ and DESCRIBE" in said["cause"]
    verified = verify(LocalStore(tmp_path), deep=True)
    assert verified.clean, verified.defects


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
