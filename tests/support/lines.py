"""Worker lines with a light scoring stage, in threads, on a real broker and a real log."""

import threading
from pathlib import Path
from typing import Self

import pyarrow as pa

from nap_stream.clock import SystemClock
from nap_stream.dead_letter import DeadLetters
from nap_stream.pipeline.commits import WorkerCounters
from nap_stream.pipeline.line import WorkerLine
from nap_stream.pipeline.scoring import ScoringStage
from nap_stream.records import (
    DecodedRows,
    Message,
    PublishedSegment,
    SegmentSummary,
    TopicPartition,
)
from nap_stream.scored_log.chain import WriterIdentity
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.summary import SummaryShape, summarise
from nap_stream.settings.log import LogSettings
from nap_stream.settings.run import WorkerSettings
from nap_stream.settings.schema import KafkaSettings
from nap_stream.source.base import PartitionListener
from nap_stream.source.kafka import KafkaSource
from tests.pipeline.test_scoring import decode, score
from tests.support.doubles import MemoryDeadLetters
from tests.support.scored_records import RecordLog
from tests.support.told import Told
from tests.support.waiting import PATIENCE_S

STOP_S = 30.0
"""What a worker has to end in, whatever it waits for."""


def local_log(root: Path, name: str) -> RecordLog:
    return RecordLog(LocalStore(root), WriterIdentity(name, "0" * 64, "1" * 64), SystemClock())


class Worker:
    """One worker line in a thread of its own, from its start until `stop`.

    A message's value says what becomes of it: one row a letter, ``g`` is good and ``b`` is bad.

    Args:
        kafka: Topic, group and time-outs.
        log: Where it publishes.
        name: The static member's name.
        dead_letters: Where bad rows go.
        segment_max_age_s: How long rows are in flight before they are published, at most.
        revoke_deadline_s: How long a revocation may take.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        log: RecordLog,
        name: str = "worker-0",
        *,
        dead_letters: DeadLetters | None = None,
        segment_max_age_s: float = 0.2,
        revoke_deadline_s: float = 10.0,
    ) -> None:
        self.told = Told()
        self.decoded = 0
        self._held = threading.Event()
        self._held.set()
        self.error: BaseException | None = None
        self.source: KafkaSource
        clock = SystemClock()
        counters = WorkerCounters(name, 0)
        self._stage = ScoringStage(
            self._decode,
            [score],
            batch_size=16,
            linger_s=0.0,
            decode_threads=1,
            max_decoded_images=100,
            clock=clock,
            observe=counters.observe,
        )
        self._stopping = threading.Event()

        def open_source(listener: PartitionListener) -> KafkaSource:
            self.source = KafkaSource(kafka, listener, instance_id=name)
            return self.source

        try:
            self.line = WorkerLine(
                open_source,
                stage=self._stage,
                log=log,
                dead_letters=dead_letters or MemoryDeadLetters(),
                reporter=self.told,
                summarise=_summary,
                log_settings=LogSettings(root=Path("unused"), segment_max_age_s=segment_max_age_s),
                worker_settings=WorkerSettings(revoke_deadline_s=revoke_deadline_s),
                clock=clock,
                counters=counters,
            )
        except BaseException:
            self._stage.close()
            raise
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def owned(self) -> set[TopicPartition]:
        """The partitions that it has as of its last report, which comes every second."""
        reports = self.told.reports
        return {progress.partition for progress in reports[-1].partitions} if reports else set()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def hold(self) -> None:
        """Have its scoring stage hang."""
        self._held.clear()

    def release(self) -> None:
        self._held.set()

    def tell_to_stop(self) -> None:
        self._stopping.set()

    def stop(self) -> None:
        """Stop in good order, and raise what ended the line."""
        self._stopping.set()
        self._thread.join(PATIENCE_S)
        assert not self.running, "still running"
        if self.error is not None:
            raise self.error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.set()
        self._stopping.set()
        self._thread.join(PATIENCE_S)

    def _decode(self, given: Message) -> DecodedRows:
        self._held.wait()
        self.decoded += 1
        return decode(given)

    def _run(self) -> None:
        try:
            self.line.run(self._stopping.is_set, STOP_S)
        except BaseException as error:  # noqa: BLE001  raised again by `stop`
            self.error = error
        finally:
            self._stage.close()


def _summary(segment: PublishedSegment, rows: pa.Table, gap: str | None) -> SegmentSummary:
    return summarise(segment, rows, SummaryShape(100, 3), gap)
