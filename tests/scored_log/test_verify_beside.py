"""Verification beside writers and beside compactions: it finds nothing wrong where nothing is."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from nap_stream.clock import ManualClock
from nap_stream.records import ChainPosition
from nap_stream.scored_log.compact import CompactionReport, compact
from nap_stream.scored_log.format import genesis_path, segment_path
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.report import DefectKind, VerifyReport
from nap_stream.scored_log.verify.run import verify
from tests.scored_log.builders import (
    CARS,
    NOON_MS,
    local_log,
    memory_log,
    merged_segments,
    origin,
    scored,
)
from tests.support.memory_store import MemoryStore
from tests.support.waiting import PATIENCE_S

SEGMENTS = 6
PATHS = [segment_path(CARS, 10 * number) for number in range(SEGMENTS)]


class EventfulStore(MemoryStore):
    """Things happen to it before the reads with these numbers, and while its reader sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.events: dict[int, Callable[[], object]] = {}
        self.reads = 0
        self._happening = threading.RLock()

    def names(self, folder: str, first: str = "") -> list[str]:
        self._happen()
        return super().names(folder, first)

    def open(self, path: str) -> BinaryIO | None:
        self._happen()
        return super().open(path)

    def _happen(self) -> None:
        with self._happening:
            # What an event itself reads does not count.
            self.reads += 1
            event = self.events.pop(self.reads, None)
            if event is not None:
                reads, self.reads = self.reads, -1_000_000
                event()
                self.reads = reads


class EventfulClock(ManualClock):
    """Things happen while somebody sleeps."""

    def __init__(self, events: list[Callable[[], object]]) -> None:
        super().__init__()
        self.events = events

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self.events:
            self.events.pop(0)()


@pytest.fixture
def store(published: dict[str, bytes]) -> EventfulStore:
    """Six segments of ten offsets and one row."""
    store = EventfulStore()
    for path, content in published.items():
        assert store.create(path, content)
    return store


@pytest.fixture(scope="module")
def published() -> dict[str, bytes]:
    store = MemoryStore()
    _publish(store, SEGMENTS)
    return {path: store.read(path) or b"" for path in [genesis_path(CARS), *PATHS]}


@pytest.fixture(scope="module")
def merged(published: dict[str, bytes]) -> bytes:
    """What a compaction makes of the second to the fifth."""
    store = MemoryStore()
    for path, content in published.items():
        store.create(path, content)
    return merged_segments(store, PATHS[1:5])


def _publish(store: MemoryStore, count: int) -> ChainPosition:
    log = memory_log(store)
    position = log.begin(CARS, 0)
    for _ in range(count):
        row = scored(origin(position.offset))
        position = log.publish(CARS, position, position.offset + 10, [row]).position
    return position


def _verified(store: MemoryStore, clock: ManualClock | None = None) -> VerifyReport:
    return verify(store, clock=clock or ManualClock())


def _compaction(store: MemoryStore, merged: bytes) -> list[Callable[[], object]]:
    """Its steps: the merged file takes the place of the first, the others go one by one."""
    return [
        lambda: store.replace(PATHS[1], merged),
        *(lambda path=path: store.remove([path]) for path in PATHS[2:5]),
    ]


def _is_whole(report: VerifyReport) -> bool:
    return report.clean and (report.segments, report.rows, report.offsets) == (6, 6, 60)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("first", range(1, 13))
def test_a_compaction_at_any_moment(
    store: EventfulStore, merged: bytes, first: int, every: int
) -> None:
    steps = _compaction(store, merged)
    store.reads = 0
    store.events = {first + every * number: step for number, step in enumerate(steps)}
    report = _verified(store, ManualClock())
    assert _is_whole(report), report


@pytest.mark.parametrize("first", range(1, 13, 3))
def test_a_compaction_that_goes_on_while_verification_waits(
    store: EventfulStore, merged: bytes, first: int
) -> None:
    exchange, *removals = _compaction(store, merged)
    store.reads = 0
    store.events = {first: exchange}
    report = _verified(store, EventfulClock(removals))
    assert _is_whole(report), report


def test_a_compaction_that_does_not_go_on_is_a_defect(store: EventfulStore, merged: bytes) -> None:
    exchange, first_removal, *_ = _compaction(store, merged)
    exchange()
    report = _verified(store, EventfulClock([first_removal]))
    assert [(d.file, d.kind) for d in report.defects] == [
        (PATHS[3], DefectKind.COVERED),
        (PATHS[4], DefectKind.COVERED),
    ]
    assert (report.segments, report.rows, report.offsets) == (6, 6, 60)


@pytest.mark.parametrize("first", range(1, 12, 3))
def test_a_writer_that_slept_and_takes_its_segment_back(
    store: EventfulStore, merged: bytes, first: int
) -> None:
    for step in _compaction(store, merged):
        step()
    stale = MemoryStore()
    log = memory_log(stale, "zombie")
    position = log.publish(CARS, log.begin(CARS, 0), 20, []).position
    path = log.publish(CARS, position, 27, [scored(origin(20))]).path
    zombie = stale.read(path) or b""
    store.reads = 0
    store.events = {first: lambda: store.create(path, zombie)}
    report = _verified(store, EventfulClock([lambda: store.remove([path])]))
    assert _is_whole(report), report


@pytest.mark.parametrize("first", range(1, 13, 3))
def test_writers_that_publish_meanwhile(first: int) -> None:
    store = EventfulStore()
    position = _publish(store, 3)
    log = memory_log(store)

    def publish() -> None:
        nonlocal position
        row = scored(origin(position.offset))
        position = log.publish(CARS, position, position.offset + 10, [row]).position

    store.reads = 0
    store.events = dict.fromkeys(range(first, first + 3), publish)
    report = _verified(store)
    assert report.clean, report
    (head,) = report.heads
    assert 30 <= head.end_offset <= position.offset
    assert report.rows == head.end_offset // 10


def test_beside_a_compaction_and_a_writer_in_other_threads(tmp_path: Path) -> None:
    store, clock = LocalStore(tmp_path), ManualClock(NOON_MS)
    log = local_log(tmp_path, clock=clock)
    position = log.begin(CARS, 0)
    for number in range(32):
        clock.advance(86_400 if number % 8 == 7 else 1)
        row = scored(origin(position.offset))
        position = log.publish(CARS, position, position.offset + 2, [row]).position
    with ThreadPoolExecutor(2) as pool:
        start = threading.Barrier(3)

        def compacting() -> CompactionReport:
            start.wait(PATIENCE_S)
            return compact(store, clock=clock)

        def writing() -> int:
            start.wait(PATIENCE_S)
            end = position
            for _ in range(10):
                row = scored(origin(end.offset))
                end = log.publish(CARS, end, end.offset + 2, [row]).position
            return end.offset

        compacted, written = pool.submit(compacting), pool.submit(writing)
        start.wait(PATIENCE_S)
        reports = [verify(store, deep=True)]
        while not (compacted.done() and written.done()):
            reports.append(verify(store, deep=True))
    reports.append(verify(store, deep=True))
    assert [defect for report in reports for defect in report.defects] == []
    assert [report.offsets for report in reports] == sorted(report.offsets for report in reports)
    assert compacted.result().files >= 3
    assert sum(file.segments for file in reports[-1].compacted) == compacted.result().segments
    assert reports[-1].offsets == written.result() == 84
