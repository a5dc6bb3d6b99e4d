"""The real parts of a worker's line, each of which says at which failpoint it is."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from nap_stream.clouds import as_log_error
from nap_stream.dead_letter import KafkaDeadLetters
from nap_stream.objects import ObjectStore
from nap_stream.records import (
    ChainPosition,
    FailedImage,
    PartitionOffsets,
    PublishedSegment,
    SegmentSummary,
    TopicPartition,
    WorkerReport,
)
from nap_stream.scored_log.chain import ScoredLog
from nap_stream.scored_log.stores.local import PosixOperations
from nap_stream.settings.schema import KafkaSettings
from nap_stream.source.base import COMMIT_TIMEOUT_S, PartitionListener
from nap_stream.source.kafka import KafkaSource
from tests.faults.failpoints import FILE_STEPS, Failpoint, Injector

In = TypeVar("In")
Out = TypeVar("Out")


class FaultyOperations(PosixOperations):
    """The steps of the file system."""

    def __init__(self, injector: Injector) -> None:
        self._injector = injector

    def create(self, path: Path) -> BinaryIO:
        step = super().create
        return self._injector.attempt(Failpoint.TEMPORARY_CREATED, lambda: step(path))

    def write(self, file: BinaryIO, content: bytes) -> None:
        half = len(content) // 2
        super().write(file, content[:half])  # a full disk takes what fits
        step = super().write
        self._injector.attempt(Failpoint.TEMPORARY_WRITTEN, lambda: step(file, content[half:]))

    def fsync(self, file: BinaryIO) -> None:
        step = super().fsync
        self._injector.attempt(Failpoint.TEMPORARY_FSYNCED, lambda: step(file))

    def link(self, temporary: Path, final: Path) -> None:
        step = super().link
        self._injector.attempt(Failpoint.LINKED, lambda: step(temporary, final))

    def fsync_folder(self, folder: Path) -> None:
        step = super().fsync_folder
        self._injector.attempt(Failpoint.FOLDER_FSYNCED, lambda: step(folder))

    def unlink(self, path: Path) -> None:
        step = super().unlink
        self._injector.attempt(Failpoint.TEMPORARY_UNLINKED, lambda: step(path))


class FaultyObjects(ObjectStore):
    """An object store. The steps of a file before it has its name are here those before the PUT."""

    def __init__(self, root: str, injector: Injector) -> None:
        super().__init__(root)
        self._injector = injector

    def create(self, path: str, content: bytes) -> bool:
        self._pass(FILE_STEPS[:3], path)
        created = super().create(path, content)
        self._pass(FILE_STEPS[3:], path)
        return created

    def _pass(self, points: Sequence[Failpoint], path: str) -> None:
        for point in points:
            try:
                self._injector.attempt(point, lambda: None)
            except OSError as error:
                raise as_log_error(error, f"{self.root}/{path}") from error


class FaultyLog(ScoredLog):
    """A scored log.

    Args:
        log: The real one.
        injector: Of this process.
    """

    def __init__(self, log: ScoredLog, injector: Injector) -> None:
        self._log, self._injector = log, injector

    def end(self, partition: TopicPartition, *known: Any, **named: Any) -> ChainPosition | None:
        self._injector.reach(Failpoint.END_BEFORE)
        found = self._log.end(partition, *known, **named)
        self._injector.reach(Failpoint.END_AFTER)
        return found

    def begin(
        self, partition: TopicPartition, offset: int, *known: Any, **named: Any
    ) -> ChainPosition:
        self._injector.reach(Failpoint.BEGIN_BEFORE)
        begun = self._log.begin(partition, offset, *known, **named)
        self._injector.reach(Failpoint.BEGIN_AFTER)
        return begun

    def publish(self, partition: TopicPartition, *known: Any, **named: Any) -> PublishedSegment:
        self._injector.reach(Failpoint.PUBLISH_BEFORE)
        published = self._log.publish(partition, *known, **named)
        self._injector.reach(Failpoint.PUBLISH_AFTER)
        return published


class FaultySource(KafkaSource):
    """The member of the group, between the broker and the line."""

    def __init__(
        self,
        settings: KafkaSettings,
        listener: PartitionListener,
        *,
        instance_id: str,
        injector: Injector,
    ) -> None:
        self._injector = injector
        told = _FaultyListener(listener, injector)
        super().__init__(settings, told, instance_id=instance_id)

    def poll(self, timeout_s: float, max_messages: int) -> list[Any]:
        self._injector.reach(Failpoint.POLL_BEFORE)
        fetched = super().poll(timeout_s, max_messages)
        if fetched:
            self._injector.reach(Failpoint.POLL_AFTER)
        return fetched

    def commit(
        self, offsets: Mapping[TopicPartition, int], timeout_s: float = COMMIT_TIMEOUT_S
    ) -> bool:
        self._injector.reach(Failpoint.COMMIT_BEFORE)
        committed = super().commit(offsets, timeout_s)
        self._injector.reach(Failpoint.COMMIT_AFTER)
        return committed

    def commit_soon(self, offsets: Mapping[TopicPartition, int]) -> None:
        super().commit_soon(offsets)
        self._injector.reach(Failpoint.COMMIT_SOON_AFTER)

    def close(self, timeout_s: float) -> None:
        super().close(timeout_s)
        self._injector.reach(Failpoint.SOURCE_CLOSED)


class _FaultyListener:
    """The line, as its source sees it."""

    def __init__(self, listener: PartitionListener, injector: Injector) -> None:
        self._listener, self._injector = listener, injector

    def assigned(self, offsets: PartitionOffsets) -> int | None:
        self._injector.reach(Failpoint.ASSIGNED_BEFORE)
        offset = self._listener.assigned(offsets)
        self._injector.reach(Failpoint.ASSIGNED_AFTER)
        return offset

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self._injector.reach(Failpoint.REVOKED_BEFORE)
        self._listener.revoked(partitions)
        self._injector.reach(Failpoint.REVOKED_AFTER)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._injector.reach(Failpoint.LOST_BEFORE)
        self._listener.lost(partitions)


class FaultyDeadLetters(KafkaDeadLetters):
    """The producer to the dead-letter topic."""

    def __init__(
        self, settings: KafkaSettings, topic: str, *, max_payload_bytes: int, injector: Injector
    ) -> None:
        self._injector = injector
        super().__init__(settings, topic, max_payload_bytes=max_payload_bytes)

    def send(self, image: FailedImage) -> None:
        self._injector.reach(Failpoint.DEAD_LETTER_SEND_BEFORE)
        super().send(image)
        self._injector.reach(Failpoint.DEAD_LETTER_SEND_AFTER)

    def flush(self, timeout_s: float) -> None:
        self._injector.reach(Failpoint.DEAD_LETTER_FLUSH_BEFORE)
        super().flush(timeout_s)
        self._injector.reach(Failpoint.DEAD_LETTER_FLUSH_AFTER)


class FaultyReporter:
    """Where a coordinator would be told of summaries; nobody listens."""

    def __init__(self, injector: Injector) -> None:
        self._injector = injector

    def submit(self, _summary: SegmentSummary) -> None:
        self._injector.reach(Failpoint.SUMMARY_BEFORE)
        self._injector.reach(Failpoint.SUMMARY_AFTER)

    def report(self, report: WorkerReport) -> None:
        """Nobody listens."""


def faulty(
    step: Callable[[In], Out], injector: Injector, before: Failpoint, after: Failpoint
) -> Callable[[In], Out]:
    """A function of the scoring stage."""

    def taken(given: In) -> Out:
        injector.reach(before)
        found = step(given)
        injector.reach(after)
        return found

    return taken
