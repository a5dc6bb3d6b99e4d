"""The log against a model in memory: writers with stale positions, deaths, compactions, readers."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nap_stream.clock import ManualClock
from nap_stream.errors import SegmentConflictError
from nap_stream.scored_log.chain import WriterIdentity, sha256_hex
from nap_stream.scored_log.compact import CompactionReport, compact
from nap_stream.scored_log.compact_plan import FileLimits
from nap_stream.scored_log.footer import segment_sha256
from nap_stream.scored_log.format import genesis_path
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.read import segments, walk
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.run import verify
from tests.scored_log.builders import CALIBRATION, CARS, MODEL, NOON_MS, origin, scored
from tests.scored_log.failing_store import DyingStore, Killed
from tests.support.log_files import tail
from tests.support.memory_store import MemoryStore
from tests.support.scored_records import RecordLog

if TYPE_CHECKING:
    from nap_stream.records import ChainPosition

DAY_S = 86_400
START = 5
WRITERS = 3

Row = tuple[int, int, str]
"""(offset, index, who has published it)."""

writers = st.integers(0, WRITERS - 1)
lengths = st.integers(1, 4)


class PausingStore(DyingStore):
    """A store whose process sleeps after its first successful create, while things happen."""

    def __init__(self, store: SegmentStore, meanwhile: Callable[[], None]) -> None:
        super().__init__(store)
        self._meanwhile: Callable[[], None] | None = meanwhile

    def create(self, path: str, content: bytes) -> bool:
        created = super().create(path, content)
        meanwhile, self._meanwhile = self._meanwhile, None
        if created and meanwhile is not None:
            meanwhile()
        return created


@dataclass
class Reader:
    """A scan that was begun, what it has read, and how much the log held then."""

    batches: Iterator[pa.RecordBatch]
    rows_at_start: int
    rows: list[tuple[int, int]] = field(default_factory=list)

    def read(self) -> bool:
        batch = next(self.batches, None)
        if batch is None:
            return False
        self.rows += [(row["offset"], row["index"]) for row in batch.to_pylist()]
        return True


class LogMachine(RuleBasedStateMachine):
    """One partition. The model is the rows that the log must hold, and where its chain ends."""

    def __init__(self) -> None:
        super().__init__()
        self.store = self.make_store()
        self.clock = ManualClock(NOON_MS)
        self.rows: list[Row] = []
        self.end = START
        self.published = 0
        self.readers: list[Reader] = []
        start = self.log("writer-0").begin(CARS, START, "topic-id")
        self.positions: list[ChainPosition] = [start] * WRITERS

    def make_store(self) -> SegmentStore:
        """Where the log lies."""
        return MemoryStore()

    def log(self, name: str, store: SegmentStore | None = None) -> RecordLog:
        return RecordLog(store or self.store, WriterIdentity(name, MODEL, CALIBRATION), self.clock)

    def publish_over(self, store: SegmentStore, writer: int, length: int, is_gap: bool) -> bool:
        """Publish at the writer's position; whether it won. The model changes as the chain must."""
        position = self.positions[writer]
        name = f"{writer}/{self.published}"
        offsets = range(position.offset, position.offset + length, 1 + length // 3)
        named = [(offset, index) for offset in offsets for index in range(1 + offset % 2)]
        chosen = [] if is_gap else named
        records = [scored(origin(*each, key=name.encode())) for each in chosen]
        if position.offset == self.end:
            self.published += 1
            self.rows += [(*each, name) for each in chosen]
            self.end += length
        try:
            published = self.log(name, store).publish(
                CARS,
                position,
                position.offset + length,
                records,
                gap="retention" if is_gap else None,
            )
        except SegmentConflictError:
            return False
        self.positions[writer] = published.position
        return True

    @rule(writer=writers, length=lengths, is_gap=st.booleans())
    def publish(self, writer: int, length: int, is_gap: bool) -> None:
        wins = self.positions[writer].offset == self.end
        assert self.publish_over(self.store, writer, length, is_gap and length > 2) == wins

    @rule(writer=writers, length=lengths)
    def publish_often(self, writer: int, length: int) -> None:
        """What there is to compact."""
        self.refresh(writer)
        for _ in range(length):
            assert self.publish_over(self.store, writer, length, is_gap=False)

    @rule(writer=writers, length=lengths, steps=st.integers(0, 1))
    def publish_and_die(self, writer: int, length: int, steps: int) -> None:
        before = (list(self.rows), self.end)
        try:
            self.publish_over(DyingStore(self.store, steps), writer, length, is_gap=False)
        except Killed:
            if steps == 0:
                self.rows, self.end = before
        position = self.log("restarted").end(CARS)
        assert position is not None
        self.positions[writer] = position

    @rule(writer=writers, length=lengths, others=st.integers(0, 3), passes=st.booleans())
    def publish_and_sleep(self, writer: int, length: int, others: int, passes: bool) -> None:
        """The process is stopped between the create and what it looks at after that."""

        def meanwhile() -> None:
            other = (writer + 1) % WRITERS
            for _ in range(others):
                self.refresh(other)
                assert self.publish_over(self.store, other, 2, is_gap=False)
            if passes:
                self.clock.advance(DAY_S)
            self.compact_over(self.store)

        wins = self.positions[writer].offset == self.end
        won = self.publish_over(PausingStore(self.store, meanwhile), writer, length, is_gap=False)
        assert wins or not won

    @rule(writer=writers, before=lengths, length=lengths, dies=st.booleans())
    def sleep_through_a_compaction(self, writer: int, before: int, length: int, dies: bool) -> None:
        """The writer's next base offset is published, merged and free again when it wakes up."""
        other = (writer + 1) % WRITERS
        self.publish_often(other, before)
        self.refresh(writer)
        self.publish_often(other, length)
        self.clock.advance(DAY_S)
        self.compact_over(self.store)
        if dies:
            self.publish_and_die(writer, length, steps=1)
        else:
            self.publish(writer, length, is_gap=False)

    @rule(writer=writers)
    def refresh(self, writer: int) -> None:
        position = self.log("reader").end(CARS)
        assert position is not None
        assert (position.offset, position.topic_id) == (self.end, "topic-id")
        assert self.log("reader").end(CARS, hint=self.end) == position
        self.positions[writer] = position

    @rule()
    def a_day_passes(self) -> None:
        self.clock.advance(DAY_S)

    def compact_over(self, store: SegmentStore, max_rows: int = 1_000) -> CompactionReport:
        limits = FileLimits(max_rows, 2**30)
        return compact(store, clock=self.clock, limits=limits, break_lock=True)

    @rule(max_rows=st.sampled_from([4, 12, 1_000]))
    def compact(self, max_rows: int) -> None:
        report = self.compact_over(self.store, max_rows)
        assert report.clean, report.refusals
        again = self.compact_over(self.store, max_rows)
        assert (again.files, again.leftovers) == (0, 0)
        files = segments(self.store, CARS)
        assert files == tuple(file.path for file, _ in walk(self.store, CARS))

    @rule(steps=st.integers(1, 7))
    def compact_and_die(self, steps: int) -> None:
        with contextlib.suppress(Killed):
            self.compact_over(DyingStore(self.store, steps))

    @rule()
    def begin_to_read(self) -> None:
        batches = scan(self.store, Query(), ["offset", "index"])
        self.readers.append(Reader(batches, len(self.rows)))
        self.readers[-1].read()

    @precondition(lambda self: self.readers)
    @rule(batches=st.integers(1, 3))
    def read_on(self, batches: int) -> None:
        for _ in range(batches):
            self.readers[0].read()

    @precondition(lambda self: self.readers)
    @rule()
    def read_to_the_end(self) -> None:
        reader = self.readers.pop(0)
        while reader.read():
            pass
        names = [(offset, index) for offset, index, _ in self.rows]
        assert reader.rows == names[: len(reader.rows)]
        assert len(reader.rows) >= reader.rows_at_start

    @invariant()
    def every_row_is_read_once(self) -> None:
        found = scan(self.store, Query(), ["offset", "index", "key"])
        rows = [row for batch in found for row in batch.to_pylist()]
        assert [(r["offset"], r["index"], r["key"].decode()) for r in rows] == self.rows

    @invariant()
    def the_chain_is_whole(self) -> None:
        position, previous = START, sha256_hex(self.store.read(genesis_path(CARS)) or b"")
        for file, wanted in walk(self.store, CARS):
            assert wanted == file.footer.base_offset == position
            for part in file.parts():
                assert (part.base_offset, part.previous_sha256) == (position, previous)
                position, previous = part.end_offset, segment_sha256(part)
        assert position == self.end
        end = self.log("reader").end(CARS)
        assert end is not None
        assert (end.offset, end.previous_sha256) == (position, previous)

    @invariant()
    def the_tail_holds_what_was_asked_for(self) -> None:
        start = tail(self.store, CARS, 3)
        newest = [row for row in self.rows if start is not None and row[0] >= start]
        assert len(newest) >= min(3, len(self.rows))

    def teardown(self) -> None:
        while self.readers:
            self.read_to_the_end()
        self.compact(1_000)
        report = verify(self.store, deep=True)
        assert report.clean, report.defects
        assert (report.rows, report.heads[0].end_offset) == (len(self.rows), self.end)


class LocalLogMachine(LogMachine):
    """The same on a disk."""

    def make_store(self) -> SegmentStore:
        self.folder = Path(tempfile.mkdtemp())
        return LocalStore(self.folder)

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.folder)


def _run(machine: type[LogMachine], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize(("machine", "examples"), [(LogMachine, 4), (LocalLogMachine, 1)])
def test_the_log_holds_what_the_model_says(machine: type[LogMachine], examples: int) -> None:
    _run(machine, examples)


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "examples"), [(LogMachine, 120), (LocalLogMachine, 20)])
def test_the_log_holds_what_the_model_says_at_length(
    machine: type[LogMachine], examples: int
) -> None:
    _run(machine, examples)
