"""Brokers for all tests. Each is started once, when the first test asks for it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from nap_stream.dev.broker import embedded_broker
from tests.support.apache_kafka import ApacheKafka, KafkaNotThereError, resolve_jars

REQUIRE_KAFKA = "NAP_STREAM_REQUIRE_KAFKA"

# How long an example takes depends on what else the machine does.
settings.register_profile("nap-stream", deadline=None)
settings.load_profile("nap-stream")


@pytest.fixture(scope="session")
def embedded() -> Iterator[str]:
    """The address of the embedded broker."""
    with embedded_broker() as address:
        yield address


@pytest.fixture(scope="session")
def kafka_jars() -> Path:
    """Apache Kafka's jars; skips with the reason where they cannot be had."""
    try:
        return resolve_jars()
    except KafkaNotThereError as error:
        if os.environ.get(REQUIRE_KAFKA) == "1":
            pytest.fail(f"{REQUIRE_KAFKA}=1, but Apache Kafka cannot be run: {error}")
        pytest.skip(f"Apache Kafka cannot be run: {error}")


@pytest.fixture(scope="session")
def apache_kafka(
    kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApacheKafka]:
    """Apache Kafka, shared by all tests that leave it running."""
    with ApacheKafka(kafka_jars, tmp_path_factory.mktemp("kafka")) as kafka:
        yield kafka


@pytest.fixture
def own_kafka(kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """Apache Kafka for a test that stops or kills it."""
    with ApacheKafka(kafka_jars, tmp_path_factory.mktemp("own-kafka")) as kafka:
        yield kafka


@pytest.fixture(
    params=[
        pytest.param("embedded", marks=pytest.mark.embedded),
        pytest.param("apache", marks=pytest.mark.kafka),
    ]
)
def broker(request: pytest.FixtureRequest) -> str:
    """The address of each broker in turn."""
    if request.param == "embedded":
        address: str = request.getfixturevalue("embedded")
        return address
    kafka: ApacheKafka = request.getfixturevalue("apache_kafka")
    return kafka.bootstrap
