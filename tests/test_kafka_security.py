"""Credentials: used, refused, and not shown."""

import logging
import threading
from typing import Any
from unittest.mock import Mock

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import KafkaTimeoutError, SaslAuthenticationFailedError

from nap_stream.errors import BrokerError
from nap_stream.kafka.client import (
    _Manager,
    client_options,
    connect,
    open_client,
    topics_missing,
)
from nap_stream.settings.schema import KafkaSettings
from tests.support.apache_kafka import SASL_PASSWORD, SASL_USER, ApacheKafka
from tests.support.waiting import PATIENCE_S


def sasl_settings(bootstrap: str, password: str) -> KafkaSettings:
    return KafkaSettings(
        bootstrap_servers=(bootstrap,),
        topic="images",
        connect_timeout_s=PATIENCE_S,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_username=SASL_USER,
        sasl_password=password,
    )


@pytest.mark.kafka
def test_the_right_password_lets_in(apache_kafka: ApacheKafka) -> None:
    connect(sasl_settings(apache_kafka.sasl_bootstrap, SASL_PASSWORD))


@pytest.mark.kafka
def test_a_wrong_password_is_an_error_that_points_at_the_credentials(
    apache_kafka: ApacheKafka,
) -> None:
    with pytest.raises(BrokerError) as caught:
        connect(sasl_settings(apache_kafka.sasl_bootstrap, "wrong-password"))

    assert "credentials" in caught.value.action
    assert "wrong-password" not in str(caught.value)


def test_a_refusal_ends_the_attempts_at_once() -> None:
    """The broker's answer, given by hand: it does not always get through kafka-python."""
    manager: Any = _Manager(Mock(), bootstrap_servers=["127.0.0.1:1"])
    manager.get_connection("bootstrap-0").close(SaslAuthenticationFailedError("no such user"))

    with pytest.raises(SaslAuthenticationFailedError, match="no such user"):
        manager.get_connection("bootstrap-0")


def test_the_password_is_not_in_any_log(caplog: pytest.LogCaptureFixture) -> None:
    options = client_options(sasl_settings("127.0.0.1:1", "hunter2")) | {"bootstrap_timeout_ms": 50}

    with caplog.at_level(logging.DEBUG), pytest.raises(KafkaTimeoutError):
        open_client(KafkaAdminClient, options)

    assert "sasl_plain_password" in caplog.text
    assert "hunter2" not in caplog.text
    assert "hunter2" not in repr(options)


@pytest.mark.parametrize("kind", [KafkaAdminClient, KafkaConsumer, KafkaProducer])
def test_a_client_that_cannot_be_built_leaves_no_thread(kind: type) -> None:
    before = set(threading.enumerate())

    with pytest.raises(KafkaTimeoutError):
        open_client(kind, {"bootstrap_servers": ["127.0.0.1:1"], "bootstrap_timeout_ms": 50})

    # One of an earlier test may have ended meanwhile.
    assert set(threading.enumerate()) <= before


@pytest.mark.kafka
def test_what_the_broker_says_of_a_topic_is_not_taken_for_its_absence(
    apache_kafka: ApacheKafka,
) -> None:
    settings = KafkaSettings(bootstrap_servers=(apache_kafka.bootstrap,), topic="images")

    with pytest.raises(BrokerError, match="InvalidTopicError"):
        topics_missing(settings, ["no topic can have this name"])
