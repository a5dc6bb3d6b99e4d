"""The topics of a consumer: whether they are still the same, and which of several are left out."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from threading import Event
from typing import Any

import structlog
from kafka import KafkaAdminClient, KafkaConsumer, errors
from kafka.admin import ACLOperation
from kafka.util import WeakMethod

from nap_stream.clock import Clock
from nap_stream.errors import BrokerError, BrokerUnavailableError, NapStreamError
from nap_stream.kafka.client import (
    client_options,
    described,
    open_client,
    topics_missing,
    translated_errors,
)
from nap_stream.settings.schema import KafkaSettings

METADATA_TIMEOUT_S = 5.0
UNWATCHED_S = 1.0
"""A consumer that fetches hears at once that its topic is deleted; after so long a pause, ask."""


class TopicWatch:
    """Watches the ids that the broker gave the consumer's topics when they were made.

    The consumer's metadata are asked for anew when a fetch fails, and every few seconds.
    ``ids`` are as of the last `refresh` or `replaced`; none of a broker that gives none.
    """

    def __init__(self, consumer: KafkaConsumer, clock: Clock) -> None:
        self._consumer, self._clock = consumer, clock
        self.ids: Mapping[str, str] = {}
        self._paused_at: float | None = None
        self._unwatched = False

    def refresh(self) -> None:
        """Ask anew and take what the broker says.

        Raises:
            KafkaTimeoutError: kafka-python's own; nobody answered in time.
        """
        self._ask()
        self.ids = self._known()

    def replaced(self) -> frozenset[str]:
        """The topics of which there is another of the name than last time; then take its id."""
        if self._unwatched:
            with suppress(errors.KafkaTimeoutError):
                self._ask()
                self._unwatched = False
        found, before = self._known(), self.ids
        others = frozenset(name for name, one in found.items() if before.get(name, one) != one)
        for name in sorted(others):
            structlog.get_logger().error(
                "topic_replaced", topic=name, before=before[name], now=found[name]
            )
        self.ids = {**before, **found}
        return others

    def look_again(self) -> None:
        """Have `replaced` ask the broker the next time."""
        self._unwatched = True

    def paused(self) -> None:
        """Take note that nothing is fetched from now on."""
        if self._paused_at is None:
            self._paused_at = self._clock.monotonic()

    def resumed(self) -> None:
        """Take note that messages are fetched again."""
        at, self._paused_at = self._paused_at, None
        if at is not None and self._clock.monotonic() - at >= UNWATCHED_S:
            self.look_again()

    def _ask(self) -> None:
        # kafka-python shows a consumer's metadata nowhere else.
        refreshed = self._consumer._cluster.request_update()  # noqa: SLF001
        answered = Event()
        refreshed.add_both(lambda _answer: answered.set())
        if not answered.wait(METADATA_TIMEOUT_S):
            raise errors.KafkaTimeoutError("no answer to a question for metadata")

    def _known(self) -> Mapping[str, str]:
        topics = {native.topic for native in self._consumer.assignment()}
        found = {name: self._consumer._cluster.topic_id(name) for name in topics}  # noqa: SLF001  as above
        return {name: str(topic_id) for name, topic_id in found.items() if topic_id}


REACHABLE_TIMEOUT_S = 2.0
SILENT = "it does not answer"
TRY_AGAIN_S = 1.0
TRY_AGAIN_MOST_S = 30.0
ASK_S = 2.0
"""How long the broker may take to say what this user may do."""


@dataclass(slots=True)
class _Wait:
    why: str
    is_forbidden: bool
    retry_at: float
    backoff_s: float


class LeftOut:
    """The topics of several that cannot be read now, and why; each is tried again with backoff."""

    def __init__(self, settings: KafkaSettings, clock: Clock) -> None:
        self._settings, self._clock = settings, clock
        self._waits: dict[str, _Wait] = {}

    def __contains__(self, topic: object) -> bool:
        return topic in self._waits

    def why(self, topic: str) -> str:
        """Why one of them is left out."""
        return self._waits[topic].why

    def add(self, topic: str, error: NapStreamError, *, is_forbidden: bool = False) -> None:
        """Leave a topic out, or go on to; it is said where that is new, or has another reason."""
        last, why = self._waits.get(topic), str(error)
        if last is None or last.why != why:
            structlog.get_logger().error("topic_left_out", topic=topic, cause=why)
        delay_s = TRY_AGAIN_S if last is None else min(last.backoff_s * 2, TRY_AGAIN_MOST_S)
        retry_at = self._clock.monotonic() + delay_s
        self._waits[topic] = _Wait(why, is_forbidden, retry_at, delay_s)

    def may_try(self, topic: str) -> bool:
        """Whether it is time to try to read a topic, and the broker does not forbid it."""
        wait = self._waits.get(topic)
        if wait is None:
            return True
        if self._clock.monotonic() < wait.retry_at:
            return False
        if wait.is_forbidden and not may_read(self._settings, topic):
            self.add(topic, forbidden(self._settings, topic), is_forbidden=True)
            return False
        return True

    def over(self, topic: str) -> None:
        """Read a topic again; harmless where it is."""
        wait = self._waits.pop(topic, None)
        if wait is not None:
            structlog.get_logger().info("topic_taken_up", topic=topic, left_out_for=wait.why)


def forbidden(settings: KafkaSettings, topic: str) -> BrokerError:
    """The error for a topic of several that the broker lets this user read no more."""
    user = f"user {settings.sasl_username}" if settings.sasl_username else "the client"
    return BrokerError(
        f"the broker does not let {user} read it",
        f"topic {topic}",
        "Allow READ and DESCRIBE: it is then read from where its chain ends",
    )


def may_read(settings: KafkaSettings, topic: str) -> bool:
    """Whether the broker says that this user may READ a topic; one that cannot say it may.

    A fetch tells it too, and leaves no trace where it brings nothing.
    """
    options = client_options(settings) | {"bootstrap_timeout_ms": int(ASK_S * 1000)}
    try:
        with (
            translated_errors(settings, f"asking what may be done with {topic}"),
            closing(open_client(KafkaAdminClient, options)) as admin,
        ):
            found = list(described(admin, settings, [topic]))
    except BrokerError:
        return False
    allowed = [topic.get("authorized_operations") for topic in found]
    return bool(found) and all(not one or ACLOperation.READ.name in one for one in allowed)


def why_silent(settings: KafkaSettings, topics: Sequence[str], *, several: bool) -> str | None:
    """Why nobody answers for topics; None where the broker is there, and they are taken away.

    Raises:
        BrokerError: The only topic may not be seen.
    """
    soon = settings.model_copy(update={"connect_timeout_s": REACHABLE_TIMEOUT_S})
    try:
        missing = topics_missing(soon, topics)
    except BrokerUnavailableError:
        return SILENT
    except BrokerError:
        if not several:
            raise
        return None
    return f"it has no topic {', '.join(missing)}; was it deleted?" if missing else SILENT


def take_metadata_as_it_is(
    consumer: KafkaConsumer, forbidden: Callable[[Collection[str]], None]
) -> None:
    """Have a topic that may not be seen count as one that is not there, and be told of it.

    kafka-python stops at such a topic, and takes note of no other's change then: of a new
    partition, or of one that this topic is to give up. ``forbidden`` is called on its own thread.
    """
    coordinator, cluster = consumer._coordinator, consumer._cluster  # noqa: SLF001  no other way

    def update(cluster: Any) -> None:
        topics, cluster.unauthorized_topics = cluster.unauthorized_topics, set()
        forbidden(topics)
        coordinator._handle_metadata_update(cluster)  # noqa: SLF001  as above

    cluster.remove_listener(WeakMethod(coordinator._handle_metadata_update))  # noqa: SLF001
    cluster.add_listener(update)
