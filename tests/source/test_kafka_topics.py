"""Which of several topics are left out, when they are tried again, and what that asks."""

import socket
import time
from collections.abc import Collection, Iterable, Sequence
from threading import Event
from typing import Any

import pytest
from kafka import errors
from kafka.structs import TopicPartition as KafkaPartition
from structlog.testing import capture_logs

from nap_stream.clock import ManualClock
from nap_stream.settings.schema import KafkaSettings
from nap_stream.source import kafka_topics
from nap_stream.source.kafka_topics import ASK_S, TRIAL_S, TRY_AGAIN_MOST_S, LeftOut, may_read
from tests.support.waiting import PATIENCE_S, wait_until

TOPICS = [f"t{number:02}" for number in range(20)]
NATIVES = [KafkaPartition(topic, 0) for topic in TOPICS]


class Consumer:
    """Has all partitions; notes which are given up."""

    def __init__(self) -> None:
        self.dropped: list[tuple[list[KafkaPartition], bool]] = []

    def assignment(self) -> set[KafkaPartition]:
        return {*NATIVES}

    def drop(self, natives: Iterable[KafkaPartition], lost: bool) -> None:
        self.dropped.append((list(natives), lost))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def left_out(clock: ManualClock) -> LeftOut:
    consumer: Any = Consumer()
    settings = KafkaSettings(topics=tuple(TOPICS), topic="all")
    return LeftOut(settings, consumer, clock, consumer.drop, several=True)


def answered(
    left_out: LeftOut, due: list[KafkaPartition], held_back: Sequence[KafkaPartition] = NATIVES
) -> None:
    """Have the broker asked, and what it lets us read be ``due``."""
    found = left_out.due(held_back)

    def is_answered() -> bool:
        nonlocal found
        if left_out._question is not None:
            found = left_out.due(held_back)
        return left_out._question is None

    wait_until(is_answered, "an answer")
    assert found == due


def test_all_that_may_not_be_read_are_asked_for_at_once(
    left_out: LeftOut, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[set[str]] = []

    def asked(_settings: KafkaSettings, topics: Collection[str]) -> set[str]:
        questions.append({*topics})
        return {"t03"} if len(questions) > 1 else set()

    monkeypatch.setattr(kafka_topics, "may_read", asked)
    for native in NATIVES:
        left_out.note_forbidden(errors.TopicAuthorizationFailedError({native.topic}), [])
        left_out.drop_forbidden()
        clock.advance(0.01)
    clock.advance(1)
    answered(left_out, [])
    assert questions == [{*TOPICS}]
    assert left_out.due(NATIVES) == []
    clock.advance(2)
    answered(left_out, [NATIVES[3]])
    assert questions == [{*TOPICS}] * 2


def test_a_broker_that_is_slow_to_say_it_holds_nothing_up(
    left_out: LeftOut, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, says = Event(), Event()

    def slow(_settings: KafkaSettings, topics: Collection[str]) -> set[str]:
        asked.set()
        assert says.wait(PATIENCE_S)
        return {*topics}

    monkeypatch.setattr(kafka_topics, "may_read", slow)
    left_out.note_forbidden(errors.TopicAuthorizationFailedError({"t00"}), [])
    left_out.drop_forbidden()
    clock.advance(1)
    assert left_out.due(NATIVES) == NATIVES[1:]
    assert asked.wait(PATIENCE_S)
    clock.advance(60)
    assert left_out.due(NATIVES) == NATIVES[1:]
    says.set()
    answered(left_out, NATIVES)


def test_where_only_a_fetch_tells_the_backoff_stays_until_one_succeeds(
    left_out: LeftOut, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker says nothing of rights, and what is taken up is refused at once."""
    monkeypatch.setattr(kafka_topics, "may_read", lambda _settings, topics: {*topics})
    native, refusal = NATIVES[0], errors.TopicAuthorizationFailedError({"t00"})
    tries = 0

    def refuse() -> None:
        left_out.note_forbidden(refusal, [])
        left_out.drop_forbidden()

    with capture_logs() as events:
        refuse()
        for _ in range(10 * 60):
            clock.advance(1)
            left_out.fetched({"t01"})
            if left_out.due([native]) or left_out._question is not None:
                answered(left_out, [native], [native])
                tries += 1
                left_out.placed("t00", [])
                assert native in left_out
                refuse()
        assert tries <= 600 / TRY_AGAIN_MOST_S + 5
        assert [event["event"] for event in events] == ["topic_left_out"]

        clock.advance(TRY_AGAIN_MOST_S)
        answered(left_out, [native], [native])
        left_out.placed("t00", [])
        clock.advance(TRIAL_S)
        left_out.fetched(())
        assert native not in left_out
    assert [event["event"] for event in events] == ["topic_left_out", "topic_taken_up"]


def test_what_was_fetched_is_read_at_once(
    left_out: LeftOut, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_topics, "may_read", lambda _settings, topics: {*topics})
    left_out.note_forbidden(errors.TopicAuthorizationFailedError(), ["t00"])
    left_out.drop_forbidden()
    clock.advance(1)
    left_out.placed("t00", [NATIVES[0]])
    left_out.fetched({"t00"})
    assert NATIVES[0] in left_out, "one of its partitions still waits"
    left_out.placed("t00", [])
    left_out.fetched({"t00"})
    assert NATIVES[0] not in left_out


def test_a_broker_that_is_silent_is_asked_for_a_bounded_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = KafkaSettings(
            topic="all", bootstrap_servers=(f"127.0.0.1:{silent.getsockname()[1]}",)
        )

        def seconds() -> float:
            began_s = time.monotonic()
            assert may_read(settings, TOPICS) == set()
            return time.monotonic() - began_s

        # This machine may stand still for a while, but not each time.
        wait_until(lambda: seconds() < 3 * ASK_S, "an end in time")
