"""The topics of a consumer: whether they are still the same, and which of several are left out."""

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import structlog
from kafka import KafkaAdminClient, KafkaConsumer, errors
from kafka.admin import ACLOperation
from kafka.structs import TopicPartition as KafkaPartition
from kafka.util import WeakMethod

from nap_stream.clock import Clock, Deadline
from nap_stream.errors import BrokerError, BrokerUnavailableError, NapStreamError
from nap_stream.kafka.client import (
    client_options,
    described,
    open_client,
    topics_missing,
    translated_errors,
)
from nap_stream.settings.schema import KafkaSettings
from nap_stream.source.kafka_group import truncated

METADATA_TIMEOUT_S, ASK_AGAIN_S = 5.0, 0.1
TRY_AGAIN_S = 1.0
TRY_AGAIN_MOST_S = 30.0
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
        self._unwatched = self._is_told = False
        self._revive_at, self._revive_pause_s = float("-inf"), TRY_AGAIN_S

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
            try:
                self._ask()
                self._unwatched, self._is_told = False, False
            except errors.KafkaTimeoutError as error:
                if not self._is_told:
                    structlog.get_logger().warning("topic_not_confirmed", cause=str(error))
                self._is_told = True
        found, before = self._known(), self.ids
        others = frozenset(name for name, one in found.items() if before.get(name, one) != one)
        for name in sorted(others):
            structlog.get_logger().error(
                "topic_replaced", topic=name, before=before[name], now=found[name]
            )
        self.ids = {**before, **found}
        return others

    def revive(self) -> None:
        """Have kafka-python ask for metadata again where it has ceased to.

        An error in the midst of an answer ends the task that asks, which nothing starts anew: a
        partition whose leader has moved would not be read any more, and nobody would say so.
        """
        cluster = self._consumer._cluster  # noqa: SLF001  see `_ask`
        task = cluster._refresh_loop_future  # noqa: SLF001  likewise
        now = self._clock.monotonic()
        if task is None or not task.is_done or cluster.closed or now < self._revive_at:
            return
        cause = f"{type(task.exception).__name__}: {task.exception}"
        structlog.get_logger().warning("metadata_asked_for_again", cause=cause)
        # Each answer may end it, of a broker that kafka-python does not understand.
        self._revive_at = now + self._revive_pause_s
        self._revive_pause_s = min(2 * self._revive_pause_s, TRY_AGAIN_MOST_S)
        cluster._refresh_loop_future = None  # noqa: SLF001  likewise
        cluster.request_update()

    @property
    def may_be_others(self) -> bool:
        """Whether nobody has answered `replaced` since the last `look_again`."""
        return self._unwatched

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
        """Ask for metadata until somebody answers; an error of a topic is an answer.

        Raises:
            KafkaTimeoutError: Nobody answers in time.
        """
        deadline, cause = Deadline(self._clock, METADATA_TIMEOUT_S), "it takes too long"
        while not deadline.expired():
            # kafka-python shows a consumer's metadata nowhere else.
            refreshed = self._consumer._cluster.request_update()  # noqa: SLF001
            answered = Event()
            refreshed.add_both(lambda _answer, answered=answered: answered.set())
            if not answered.wait(deadline.remaining_s()):
                break
            error = refreshed.exception
            if error is None or (
                isinstance(error, errors.BrokerResponseError)
                and not isinstance(error, errors.RequestTimedOutError)
            ):
                return
            cause = f"{type(error).__name__}: {error}"
            self._clock.sleep(ASK_AGAIN_S)
        raise errors.KafkaTimeoutError(f"no answer to a question for metadata: {cause}")

    def _known(self) -> Mapping[str, str]:
        topics = {native.topic for native in self._consumer.assignment()}
        found = {name: self._consumer._cluster.topic_id(name) for name in topics}  # noqa: SLF001  as above
        return {name: str(topic_id) for name, topic_id in found.items() if topic_id}


REACHABLE_TIMEOUT_S = 2.0
SILENT = "it does not answer"
ASK_S = 2.0
"""How long a broker is tried, and may take to say what this user may do; kafka-python takes longer
where one is connected and silent."""
TRIAL_S = 5.0
"""How long a topic is fetched without a refusal until it counts as read again."""


@dataclass(slots=True)
class _Wait:
    why: str
    is_forbidden: bool
    retry_at: float
    backoff_s: float
    tried_at: float | None = None
    """Since when it is fetched again, where only that tells whether it may be."""


class LeftOut:
    """What cannot be read now of several topics, and why. Where one is read alone, it raises.

    A topic is tried again with backoff. A partition that lost messages which were read is not:
    what comes in their place has their offsets, and none of it would be judged.

    ``drop`` gives partitions up, in good order unless they are lost, and holds them back.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        consumer: KafkaConsumer,
        clock: Clock,
        drop: Callable[[Iterable[KafkaPartition], bool], None],
        *,
        several: bool,
    ) -> None:
        self._settings, self._consumer, self._clock = settings, consumer, clock
        self._drop, self._several = drop, several
        self._waits: dict[str, _Wait] = {}
        self._lost: dict[KafkaPartition, str] = {}
        self._question: tuple[set[str], Future[set[str]]] | None = None
        self.forbidden: set[str] = set()
        """The topics of which it was noticed that they may not be read; for `drop_forbidden`."""
        self.truncated: dict[KafkaPartition, Any] = {}
        """The partitions that lost messages, and the first offset; for `drop_truncated`."""

    def __contains__(self, native: object) -> bool:
        return isinstance(native, KafkaPartition) and self.why(native) is not None

    def why(self, native: KafkaPartition) -> str | None:
        """Why a partition is left out; None where it is not."""
        wait = self._waits.get(native.topic)
        return self._lost.get(native) or (None if wait is None else wait.why)

    def note_forbidden(
        self, error: errors.TopicAuthorizationFailedError, asked: Iterable[str]
    ) -> None:
        """Have the topics left out that this user may not read.

        Those are all that were ``asked`` for, where the error does not say which.

        Raises:
            TopicAuthorizationFailedError: It is one that is read alone.
        """
        if not self._several:
            raise error
        self.forbidden |= set(error.args[0] if error.args else asked)

    def drop_forbidden(self) -> None:
        """Leave out the topics that were noted."""
        while self.forbidden:
            topic = self.forbidden.pop()
            self.topic(topic, forbidden(self._settings, topic), is_forbidden=True)

    def drop_truncated(self, reads: Container[KafkaPartition]) -> None:
        """Leave out those of the partitions that were noted which are still read.

        Raises:
            OffsetRangeError: It is of the only topic that is read.
        """
        while self.truncated:
            native, at = self.truncated.popitem()
            if native in reads:
                self.partition(native, truncated(native, at))

    def topic(self, topic: str, error: NapStreamError, *, is_forbidden: bool = False) -> None:
        """Give a topic's partitions up and hold them back.

        Raises:
            NapStreamError: It is the only topic that is read: ``error``.
        """
        if not self._several:
            raise error
        self._wait(topic, error, is_forbidden=is_forbidden)
        owned = sorted(one for one in self._consumer.assignment() if one.topic == topic)
        self._drop(owned, not is_forbidden)

    def partition(self, native: KafkaPartition, error: NapStreamError) -> None:
        """Give a partition up that must not be read on, and hold it back for good.

        Raises:
            NapStreamError: It is of the only topic that is read: ``error``.
        """
        if not self._several:
            raise error
        if native not in self._lost:
            structlog.get_logger().error(
                "topic_left_out", topic=native.topic, partition=native.partition, cause=str(error)
            )
        self._lost[native] = str(error)
        self._drop([native], True)

    def made_anew(self, topics: Container[str]) -> None:
        """Forget what was lost of topics whose place another of the name has taken."""
        self._lost = {one: why for one, why in self._lost.items() if one.topic not in topics}

    def due(self, held_back: Iterable[KafkaPartition]) -> list[KafkaPartition]:
        """Those of the partitions that it is time to try to read, and the broker lets us."""
        waiting = [native for native in held_back if native not in self._lost]
        topics = {native.topic for native in waiting}
        now = self._clock.monotonic()
        due = {t for t in topics if t not in self._waits or now >= self._waits[t].retry_at}
        refused = {t for t in topics if t in self._waits and self._waits[t].is_forbidden}
        allowed = self._allowed(refused, ask=not due.isdisjoint(refused))
        due = (due - refused) | (allowed & refused)
        return sorted(native for native in waiting if native.topic in due)

    def _allowed(self, refused: set[str], *, ask: bool) -> set[str]:
        """Those of the topics that may be read again, once the broker has said so.

        A thread asks for all of them: a broker that is silent would hold up what is read.
        """
        if self._question is None:
            if not ask:
                return set()
            self._question = refused, Future()
            answer = self._question[1]
            Thread(target=_answer, args=(answer, self._settings, refused), daemon=True).start()
        asked, answer = self._question
        if not answer.done():
            return set()
        self._question, allowed = None, answer.result()
        for topic in (asked & refused) - allowed:
            self._wait(topic, forbidden(self._settings, topic), is_forbidden=True)
        return allowed

    def placed(self, topic: str, held_back: Iterable[KafkaPartition]) -> None:
        """Take note that a topic is fetched again, unless some of it still waits for that."""
        wait = self._waits.get(topic)
        if wait is None or any(one.topic == topic and one not in self._lost for one in held_back):
            return
        if not wait.is_forbidden:
            self._taken_up(topic)
        elif wait.tried_at is None:
            wait.tried_at = self._clock.monotonic()

    def fetched(self, topics: Collection[str]) -> None:
        """Take note of what a fetch brought: what was fetched, or for a while not refused, is read.

        Until then the backoff stays. A broker may not say what it will refuse.
        """
        now = self._clock.monotonic()
        for topic, wait in list(self._waits.items()):
            since = wait.tried_at
            if since is not None and (topic in topics or now - since >= TRIAL_S):
                self._taken_up(topic)

    def _wait(self, topic: str, error: NapStreamError, *, is_forbidden: bool) -> None:
        """Leave a topic out, or go on to; it is said where that is new, or has another reason."""
        last, why = self._waits.get(topic), str(error)
        if last is None or last.why != why:
            structlog.get_logger().error("topic_left_out", topic=topic, cause=why)
        delay_s = TRY_AGAIN_S if last is None else min(last.backoff_s * 2, TRY_AGAIN_MOST_S)
        retry_at = self._clock.monotonic() + delay_s
        self._waits[topic] = _Wait(why, is_forbidden, retry_at, delay_s)

    def _taken_up(self, topic: str) -> None:
        structlog.get_logger().info(
            "topic_taken_up",
            topic=topic,
            left_out_for=self._waits.pop(topic).why,
            drift="what came meanwhile counts late; a replay judges it by its own times",
        )


def forbidden(settings: KafkaSettings, topic: str) -> BrokerError:
    """The error for a topic of several that the broker lets this user read no more."""
    user = f"user {settings.sasl_username}" if settings.sasl_username else "the client"
    return BrokerError(
        f"the broker does not let {user} read it",
        f"topic {topic}",
        "Allow READ and DESCRIBE: it is then read from where its chain ends",
    )


def _answer(answer: Future[set[str]], settings: KafkaSettings, topics: set[str]) -> None:
    try:
        answer.set_result(may_read(settings, topics))
    # Whatever it is, it is raised where the answer is taken.
    except Exception as error:  # noqa: BLE001
        answer.set_exception(error)


def may_read(settings: KafkaSettings, topics: Collection[str]) -> set[str]:
    """Those of the topics that the broker says this user may READ, or says nothing about.

    A fetch tells it too, and leaves no trace where it brings nothing.
    """
    within_ms = int(ASK_S * 1000)
    options = client_options(settings) | {
        "bootstrap_timeout_ms": within_ms,
        "request_timeout_ms": within_ms,
    }
    try:
        with (
            translated_errors(settings, "asking which topics may be read"),
            closing(open_client(KafkaAdminClient, options)) as admin,
        ):
            found = list(described(admin, settings, sorted(topics), topics))
    except BrokerError:
        return set()
    allowed = {topic["name"]: topic.get("authorized_operations") for topic in found}
    return {name for name, may in allowed.items() if not may or ACLOperation.READ.name in may}


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
