"""Committing offsets to a consumer group."""

from collections.abc import Mapping
from threading import Event
from typing import Any

import structlog
from kafka import KafkaConsumer, errors

from nap_stream.deadline import Deadline
from nap_stream.errors import BrokerError
from nap_stream.kafka_errors import translated_errors
from nap_stream.records import TopicPartition
from nap_stream.settings import KafkaSettings
from nap_stream.source.kafka_names import native_offsets

_REFUSED = (
    errors.CommitFailedError,
    errors.RebalanceInProgressError,
    errors.IllegalGenerationError,
    errors.UnknownMemberIdError,
)


class Commits:
    """The commits of one consumer. Failures are logged once, until a commit succeeds.

    Args:
        consumer: A kafka-python consumer with a group.
        settings: For what errors say.
        instance_id: The static member's name.
    """

    def __init__(self, consumer: KafkaConsumer, settings: KafkaSettings, instance_id: str) -> None:
        self._consumer, self._settings, self._instance_id = consumer, settings, instance_id
        self._pending: list[Any] = []
        self._failed: str | None = None

    def commit(self, offsets: Mapping[TopicPartition, int], timeout_s: float) -> bool:
        """Commit and wait for the answer; False where the group or the network refused.

        Raises:
            BrokerError: Another process has taken this member's place, or may not commit.
        """
        try:
            # kafka-python takes 0 for its own default.
            timeout_ms = max(1.0, timeout_s * 1000)
            self._consumer.commit(native_offsets(offsets), timeout_ms=timeout_ms)
        except errors.FencedInstanceIdError as error:
            raise BrokerError(
                "another process has joined the group as this worker and taken its place",
                f"group {self._settings.group_id}, static member {self._instance_id}",
                "Run one monitor a consumer group; nothing is lost or doubled in the log",
            ) from error
        except errors.KafkaError as error:
            if not (isinstance(error, _REFUSED) or error.retriable):
                with translated_errors(self._settings, "committing"):
                    raise
            self._note_failure(offsets, error)
            return False
        if self._failed is not None:
            structlog.get_logger().info("commits_go_on", after=self._failed)
            self._failed = None
        return True

    def commit_soon(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit without waiting for the answer."""
        self._pending = [commit for commit in self._pending if not commit.is_done]
        try:
            commit = self._consumer.commit_async(
                native_offsets(offsets), callback=self._note_failure
            )
        except errors.KafkaError as error:
            self._note_failure(offsets, error)
        else:
            self._pending.append(commit)

    def wait(self, deadline: Deadline) -> None:
        """Let commits arrive that were sent without waiting: closing would cut them off."""
        for commit in self._pending:
            answered = Event()
            commit.add_both(lambda _answer, answered=answered: answered.set())
            answered.wait(deadline.remaining_s())

    def _note_failure(self, _offsets: Any, response: Any) -> None:
        if not isinstance(response, Exception):
            return
        cause = type(response).__name__
        if cause != self._failed:
            structlog.get_logger().warning("commit_failed", cause=f"{cause}: {response}")
        self._failed = cause
