"""Whether a topic is still the one that a consumer began with."""

from threading import Event

import structlog
from kafka import KafkaConsumer, errors

from nap_stream.clock import Clock

METADATA_TIMEOUT_S = 5.0
UNWATCHED_S = 1.0
"""A consumer that fetches hears at once that its topic is deleted; after so long a pause, ask."""


class TopicWatch:
    """Watches the id that the broker gave a topic when it was made.

    Args:
        consumer: Reads the topic. Its metadata are asked for anew when a fetch fails, and every
            half minute.
        topic: The name.
        clock: Times pauses.
    """

    def __init__(self, consumer: KafkaConsumer, topic: str, clock: Clock) -> None:
        self._consumer, self._topic, self._clock = consumer, topic, clock
        self._id: str | None = None
        self._paused_at: float | None = None
        self._unwatched = False

    @property
    def topic_id(self) -> str | None:
        """The id as of the last `refresh` or `has_changed`; None from a broker that gives none."""
        return self._id

    def refresh(self) -> None:
        """Ask anew and take what the broker says.

        Raises:
            KafkaTimeoutError: kafka-python's own; nobody answered in time.
        """
        self._ask()
        self._id = self._known()

    def has_changed(self) -> bool:
        """Whether there is another topic of the name than last time; then take its id."""
        if self._unwatched:
            self._ask_if_possible()
        found = self._known()
        if None in (found, self._id) or found == self._id:
            return False
        structlog.get_logger().error(
            "topic_replaced", topic=self._topic, before=self._id, now=found
        )
        self._id = found
        return True

    def look_again(self) -> None:
        """Have `has_changed` ask the broker the next time."""
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

    def _ask_if_possible(self) -> None:
        try:
            self._ask()
        except errors.KafkaTimeoutError:
            return
        self._unwatched = False

    def _ask(self) -> None:
        # kafka-python shows a consumer's metadata nowhere else.
        refreshed = self._consumer._cluster.request_update()  # noqa: SLF001
        answered = Event()
        refreshed.add_both(lambda _answer: answered.set())
        if not answered.wait(METADATA_TIMEOUT_S):
            raise errors.KafkaTimeoutError("no answer to a question for metadata")

    def _known(self) -> str | None:
        found = self._consumer._cluster.topic_id(self._topic)  # noqa: SLF001  as above
        return str(found) if found else None
