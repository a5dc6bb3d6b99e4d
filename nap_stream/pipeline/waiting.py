"""What keeps a worker from going on: said once, tried again with backoff, said when it is over."""

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from nap_stream.clock import Clock
from nap_stream.errors import NapStreamError
from nap_stream.records import TopicPartition

BACKOFF_INITIAL_S = 1.0
BACKOFF_MAX_S = 30.0
ASK_EVERY_S = 1.0
"""How often a broker that brings nothing is asked whether it is there."""

BROKER = "the broker"


class Unavailable(Exception):  # noqa: N818  a state of the world, for whoever decides to wait
    """The scored log or the dead-letter topic cannot be written to now, and may be mended."""

    def __init__(self, what: str, cause: NapStreamError) -> None:
        super().__init__(what, cause)
        self.what, self.cause = what, cause

    def __str__(self) -> str:
        return f"{self.what}: {self.cause}"


@dataclass(slots=True)
class _Wait:
    text: str
    retry_at: float
    backoff_s: float


class Waiting:
    """The partitions that wait, and for what."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waits: dict[TopicPartition, _Wait] = {}

    def __contains__(self, partition: TopicPartition) -> bool:
        return partition in self._waits

    def __len__(self) -> int:
        return len(self._waits)

    @property
    def text(self) -> str | None:
        """What is waited for; None where nothing is."""
        return next((wait.text for wait in self._waits.values()), None)

    def may_try(self, partition: TopicPartition) -> bool:
        """Whether a partition does not wait, or has waited long enough to try again."""
        wait = self._waits.get(partition)
        return wait is None or self._clock.monotonic() >= wait.retry_at

    def failed(self, partition: TopicPartition, unavailable: Unavailable) -> None:
        """Have a partition wait, twice as long as the last time."""
        last = self._waits.get(partition)
        delay_s = min(last.backoff_s * 2, BACKOFF_MAX_S) if last else BACKOFF_INITIAL_S
        retry_at = self._clock.monotonic() + delay_s
        self._waits[partition] = _Wait(str(unavailable), retry_at, delay_s)
        structlog.get_logger().warning(
            "waiting_for",
            what=unavailable.what,
            partition=str(partition),
            cause=str(unavailable.cause),
            retry_in_s=delay_s,
        )

    def over(self, partition: TopicPartition) -> None:
        """Note that a partition goes on; harmless where it did not wait."""
        wait = self._waits.pop(partition, None)
        if wait is not None:
            structlog.get_logger().info("goes_on", partition=str(partition), waited_for=wait.text)

    def forget(self, partition: TopicPartition) -> None:
        """Drop what is known of a partition that is owned no longer."""
        self._waits.pop(partition, None)


class BrokerWatch:
    """Whether the broker answers, asked where nothing else tells and once a second at most."""

    def __init__(self, away: Callable[[], str | None], clock: Clock) -> None:
        self._away, self._clock = away, clock
        self._asked_at = float("-inf")
        self._why: str | None = None

    @property
    def text(self) -> str | None:
        """What is waited for; None while the broker answered when it was last heard."""
        return None if self._why is None else f"{BROKER}: {self._why}"

    def ask(self) -> bool:
        """Whether the broker answers."""
        if self._clock.monotonic() - self._asked_at >= ASK_EVERY_S:
            self._note(self._away())
            self._asked_at = self._clock.monotonic()
        return self._why is None

    def heard(self) -> None:
        """Note that the broker has brought something."""
        self._note(None)

    def _note(self, why: str | None) -> None:
        if why is not None and why != self._why:
            structlog.get_logger().warning("waiting_for", what=BROKER, cause=why)
        elif why is None and self._why is not None:
            structlog.get_logger().info("goes_on", waited_for=self.text)
        self._why = why
