"""A topic that is deleted and made anew under the same name: never taken for the old one."""

from pathlib import Path

import pytest

from nap_stream.errors import TopicReplacedError
from nap_stream.kafka.client import create_topics
from nap_stream.records import TopicPartition
from nap_stream.settings.schema import KafkaSettings
from tests.support.apache_kafka import ApacheKafka
from tests.support.lines import Worker, local_log
from tests.support.streams import require_each_offset_once, rows_in_log
from tests.support.topics import new_settings, replace_topic, send
from tests.support.waiting import wait_until

pytestmark = pytest.mark.kafka

BEFORE = 20


@pytest.fixture
def settings(apache_kafka: ApacheKafka) -> KafkaSettings:
    made = new_settings(apache_kafka.bootstrap)
    send(made, [b"g"] * BEFORE)
    return made


@pytest.mark.parametrize("messages", [5, 50], ids=["smaller", "larger"])
def test_between_two_runs(settings: KafkaSettings, tmp_path: Path, messages: int) -> None:
    log = local_log(tmp_path, "worker-0")
    with Worker(settings, log) as first:
        wait_until(lambda: rows_in_log(tmp_path, settings.topic) == BEFORE, "rows")
        first.stop()
    replace_topic(settings, messages)

    with Worker(settings, log) as second:
        wait_until(lambda: not second.running, "a refusal")

    require_refused(second, settings, tmp_path)


@pytest.mark.parametrize("messages", [5, 50], ids=["smaller", "larger"])
def test_while_it_is_read(settings: KafkaSettings, tmp_path: Path, messages: int) -> None:
    log = local_log(tmp_path, "worker-0")
    with Worker(settings, log) as worker:
        wait_until(lambda: rows_in_log(tmp_path, settings.topic) == BEFORE, "rows")
        replace_topic(settings, messages)
        wait_until(lambda: not worker.running, "a refusal")

    require_refused(worker, settings, tmp_path)


def test_one_of_two_is_left_out_and_the_other_goes_on(
    settings: KafkaSettings, tmp_path: Path
) -> None:
    other = settings.model_copy(update={"topic": f"{settings.topic}-other"})
    create_topics(other, [other.topic], 1)
    both = settings.model_copy(update={"topics": (settings.topic, other.topic)})
    replaced = TopicPartition(settings.topic, 0)
    with Worker(both, local_log(tmp_path, "worker-0")) as worker:
        wait_until(lambda: rows_in_log(tmp_path, settings.topic) == BEFORE, "rows")
        replace_topic(settings, 50)
        wait_until(lambda: replaced in worker.told.reports[-1].left_out, "it to be left out")
        send(other, [b"g"] * 30)
        wait_until(lambda: rows_in_log(tmp_path, other.topic) == 30, "rows of the other")
        why = worker.told.reports[-1].left_out[replaced]
        assert "deleted and made anew" in why
        assert "log.root" in why
        assert worker.owned == {TopicPartition(other.topic, 0)}
        worker.stop()
    # A later run leaves it out as well.
    with Worker(both, local_log(tmp_path, "worker-1")) as worker:
        wait_until(
            lambda: bool(worker.told.reports) and replaced in worker.told.reports[-1].left_out,
            "it to be left out again",
        )
        worker.stop()
    require_each_offset_once(tmp_path, settings.topic, {replaced: BEFORE})
    require_each_offset_once(tmp_path, other.topic, {TopicPartition(other.topic, 0): 30})


def require_refused(worker: Worker, settings: KafkaSettings, root: Path) -> None:
    assert isinstance(worker.error, TopicReplacedError), worker.error
    assert "deleted and made anew" in str(worker.error)
    require_each_offset_once(root, settings.topic, {TopicPartition(settings.topic, 0): BEFORE})
