"""One worker line on a source, a log and dead letters in memory, with real threads."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from nap_stream.clock import Clock, SystemClock
from nap_stream.errors import ScoredLogError
from nap_stream.pipeline.commits import WorkerCounters
from nap_stream.pipeline.evidence import EvidenceKeeper, NoteEvidence
from nap_stream.pipeline.line import WorkerLine
from nap_stream.pipeline.partition import ResumeFrom
from nap_stream.pipeline.scoring import Decode, Score, ScoringStage
from nap_stream.records import PublishedSegment, SegmentSummary, TopicPartition
from nap_stream.scored_log.chain import WriterIdentity
from nap_stream.scored_log.summary import SummaryShape, summarise
from nap_stream.settings.log import LogSettings
from nap_stream.settings.run import WorkerSettings
from nap_stream.source.base import PartitionListener, Source
from tests.pipeline.test_scoring import decode, score
from tests.support.doubles import MemoryDeadLetters, MemorySource, MemoryTopic
from tests.support.log_files import rows_in
from tests.support.memory_store import MemoryStore
from tests.support.scored_records import RecordLog
from tests.support.told import Told
from tests.support.waiting import PATIENCE_S

FIRST, SECOND = TopicPartition("images", 0), TopicPartition("images", 1)


DISK_FULL = ScoredLogError("the disk is full", "/log", "Free space on it")


class FaultyStore(MemoryStore):
    """Refuses to create files while ``is_broken``; where ``too_late``, once they are made."""

    def __init__(self) -> None:
        super().__init__()
        self.is_broken = False
        self.too_late = False
        self.error = DISK_FULL
        self.refusals = 0

    def create(self, path: str, content: bytes) -> bool:
        if not self.is_broken:
            return super().create(path, content)
        self.refusals += 1
        if self.too_late:
            super().create(path, content)
        raise self.error


@dataclass
class Bench:
    """One worker's surroundings; `run` works until ``enough`` holds."""

    topic: MemoryTopic
    store: FaultyStore = field(default_factory=FaultyStore)
    letters: MemoryDeadLetters = field(default_factory=MemoryDeadLetters)
    told: Told = field(default_factory=Told)
    segment_max_rows: int = 10
    segment_max_age_s: float = 0.05
    segment_max_bytes: int = 2**20
    max_in_hand_images: int = 100
    max_in_hand_bytes: int = 2**20
    max_decoded_bytes: int = 2**20
    resume_from: ResumeFrom = "log"
    deadline_s: float = PATIENCE_S
    revoke_deadline_s: float = PATIENCE_S
    decode: Decode = decode
    score: Score = score
    open_log: Callable[[], RecordLog] | None = None
    evidence: Callable[[NoteEvidence], EvidenceKeeper] | None = None
    sources: list[MemorySource] = field(default_factory=list)

    def log(self, name: str = "worker-0") -> RecordLog:
        return RecordLog(self.store, WriterIdentity(name, "0" * 64, "1" * 64), SystemClock())

    def run(self, enough: Callable[[], bool]) -> None:
        clock: Clock = SystemClock()
        counters = WorkerCounters("worker-0", 0)
        stage = ScoringStage(
            self.decode,
            [self.score],
            batch_size=4,
            linger_s=0.0,
            decode_threads=1,
            max_decoded_images=100,
            max_decoded_bytes=self.max_decoded_bytes,
            clock=clock,
            observe=counters.observe,
        )

        def open_source(listener: PartitionListener) -> Source:
            self.sources.append(MemorySource(self.topic, listener, clock=clock))
            return self.sources[-1]

        def summary(segment: PublishedSegment, rows: pa.Table, gap: str | None) -> SegmentSummary:
            return summarise(segment, rows, SummaryShape(100, 3), gap)

        line = WorkerLine(
            open_source,
            stage=stage,
            log=self.open_log() if self.open_log else self.log(),
            dead_letters=self.letters,
            reporter=self.told,
            summarise=summary,
            log_settings=LogSettings(
                root=Path("unused"),
                segment_max_rows=self.segment_max_rows,
                segment_max_age_s=self.segment_max_age_s,
                segment_max_bytes=self.segment_max_bytes,
            ),
            worker_settings=WorkerSettings(
                max_in_hand_images=self.max_in_hand_images,
                max_in_hand_bytes=self.max_in_hand_bytes,
                revoke_deadline_s=self.revoke_deadline_s,
            ),
            clock=clock,
            counters=counters,
            resume_from=self.resume_from,
            evidence=self.evidence(counters.note_evidence) if self.evidence else None,
        )
        end = clock.monotonic() + PATIENCE_S

        def should_stop() -> bool:
            assert clock.monotonic() < end, "the line did not get there"
            return enough()

        try:
            line.run(should_stop, self.deadline_s)
        finally:
            stage.close()

    def offsets(self, partition: TopicPartition = FIRST) -> list[tuple[int, int]]:
        """(offset, index) of all rows that are in the log."""
        table = rows_in(self.store, partition)
        return list(
            zip(table.column("offset").to_pylist(), table.column("index").to_pylist(), strict=True)
        )


@dataclass
class Script:
    """Does one thing after another, each once its condition holds; done when all are."""

    steps: list[tuple[Callable[[], bool], Callable[[], object]]] = field(default_factory=list)

    def __call__(self) -> bool:
        while self.steps and self.steps[0][0]():
            self.steps.pop(0)[1]()
        return not self.steps


def nothing() -> None:
    """For the last step of a script."""


def waits(bench: Bench, text: str) -> bool:
    last = bench.told.reports[-1] if bench.told.reports else None
    return last is not None and text in (last.waiting_for or "")
