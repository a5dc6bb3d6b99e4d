"""Joining a consumer group in polls that are shorter than a rebalance."""

from kafka import KafkaConsumer


class Joins:
    """Keeps the group's answer to a join until the consumer takes it, and has it taken.

    kafka-python forgets an answer that comes between two polls, and joins anew. Where this member
    leads the group, all members must then join anew: a rebalance that need not end, and that of a
    consumer that polls without waiting never does. Where the leader joined for partitions that are
    new, it does not join anew either: it stays in the rebalance for good, without heartbeats.

    Args:
        consumer: A kafka-python consumer with a group, before its first poll.
    """

    def __init__(self, consumer: KafkaConsumer) -> None:
        # kafka-python has no other way to reach its joins.
        self._coordinator = consumer._coordinator  # noqa: SLF001
        self._ask = self._coordinator._do_join_and_sync_async  # noqa: SLF001
        self._complete = self._coordinator._on_join_complete_async  # noqa: SLF001
        self._answer: tuple[object, bytes] | None = None
        self._coordinator._do_join_and_sync_async = self._join  # noqa: SLF001
        self._coordinator._on_join_complete_async = self._take  # noqa: SLF001

    @property
    def under_way(self) -> bool:
        """Whether a join has begun whose answer the consumer has not taken."""
        return bool(self._coordinator.rebalance_in_progress())

    async def _join(self) -> bytes:
        """The assignment, as bytes: that of an answer that nobody took, else of a new one."""
        self._coordinator.request_rejoin()
        if self._answer is not None and self.under_way:
            generation, kept = self._answer
            if generation == self._coordinator._generation:  # noqa: SLF001
                return kept
        self._answer = None
        assignment: bytes = await self._ask()
        self._answer = self._coordinator._generation, assignment  # noqa: SLF001
        return assignment

    async def _take(self, *answer: object) -> None:
        self._answer = None
        await self._complete(*answer)
