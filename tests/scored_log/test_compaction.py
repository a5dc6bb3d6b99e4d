"""Compaction: same rows and chain in fewer files, whatever interrupts it."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from nap_stream.clock import ManualClock
from nap_stream.errors import ConfigError, LogRootError, ScoredLogError, SegmentConflictError
from nap_stream.objects import ObjectStore
from nap_stream.records import TopicPartition
from nap_stream.scored_log import compact_plan
from nap_stream.scored_log.chain import WriterIdentity
from nap_stream.scored_log.compact import (
    LOCK_NAME,
    CompactionReport,
    LockOwner,
    compact,
    compaction_lock,
)
from nap_stream.scored_log.compact_plan import FileLimits
from nap_stream.scored_log.footer import SegmentFooter, segment_sha256
from nap_stream.scored_log.format import parse_segment_path, segment_path
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.read import segments, walk
from nap_stream.scored_log.segment import (
    ROW_GROUP_ROWS,
    SMALL_BYTES,
    encode_segment,
    open_segment,
)
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.summary import SummaryShape, summarise_chain
from nap_stream.scored_log.verify.report import DefectKind
from nap_stream.scored_log.verify.run import verify
from nap_stream.show import find_row
from tests.scored_log.builders import (
    CALIBRATION,
    CARS,
    MODEL,
    NOON_MS,
    failed,
    origin,
    scored,
    without_path,
)
from tests.scored_log.failing_store import DyingStore, Killed
from tests.support.log_files import read_footer, run_query, tail
from tests.support.memory_store import MemoryStore
from tests.support.scored_records import RecordLog, ScoredRecord

DAY_S = 86_400
TOMORROW = ManualClock(NOON_MS + DAY_S * 1000)
OTHER = TopicPartition("cars", 1)


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SegmentStore:
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "log")


class Writer:
    """Publishes segments of two offsets, a row each, one after another."""

    def __init__(
        self, store: SegmentStore, partition: TopicPartition = CARS, model: str = MODEL
    ) -> None:
        self.clock = ManualClock(NOON_MS)
        self._partition = partition
        self.log = RecordLog(store, WriterIdentity("worker-0", model, CALIBRATION), self.clock)
        self.position = self.log.begin(partition, 0, "id-of-the-topic")

    def publish(
        self, count: int = 1, rows: Sequence[ScoredRecord] | None = None, gap: str | None = None
    ) -> None:
        for _ in range(count):
            base = self.position.offset
            records = [scored(origin(base, partition=self._partition), p_value=0.01)]
            records += [failed(origin(base + 1, partition=self._partition))]
            chosen = records if rows is None else rows
            published = self.log.publish(self._partition, self.position, base + 2, chosen, gap=gap)
            self.position = published.position


def _compact(
    store: SegmentStore, clock: ManualClock = TOMORROW, **options: Any
) -> CompactionReport:
    return compact(store, clock=clock, **options)


def _rows(store: SegmentStore) -> pa.Table:
    return run_query(store, Query())


def _bases(store: SegmentStore, partition: TopicPartition = CARS) -> list[int]:
    return [parse_segment_path(path)[1] for path in segments(store, partition)]


def _parts(store: SegmentStore, partition: TopicPartition = CARS) -> list[SegmentFooter]:
    paths = segments(store, partition)
    return [part for path in paths for part in read_footer(store, path).parts]


def test_a_closed_day_becomes_one_file_and_the_chain_stays(store: SegmentStore) -> None:
    writer = Writer(store)
    writer.publish(5)
    rows, parts = _rows(store), _parts(store)
    report = _compact(store)
    assert (report.partitions, report.segments, report.files, report.rows) == (1, 4, 1, 8)
    assert report.clean
    assert report.bytes_before > report.bytes_after > 0
    assert _bases(store) == [0, 8]
    assert _rows(store).equals(rows)
    assert _parts(store) == parts
    merged = read_footer(store, segment_path(CARS, 0))
    assert (merged.base_offset, merged.end_offset, merged.rows, merged.scored_rows) == (0, 8, 8, 4)
    assert merged.topic_id == "id-of-the-topic"
    assert merged.writer_id.startswith("compaction@")
    assert merged.created_time_ms == TOMORROW.now_ms()
    assert parts[4].previous_sha256 == segment_sha256(merged.merged[-1])


def test_the_chain_goes_on_after_a_compaction(store: SegmentStore) -> None:
    writer = Writer(store)
    writer.publish(4)
    _compact(store)
    assert writer.log.end(CARS) == writer.position
    writer.publish(2)
    assert Writer(store).log.end(CARS) == writer.position
    links = [part.previous_sha256 for part in _parts(store)[1:]]
    assert links == [segment_sha256(part) for part in _parts(store)[:-1]]
    assert _rows(store).column("offset").to_pylist() == list(range(12))


def test_a_second_run_changes_nothing(store: SegmentStore) -> None:
    Writer(store).publish(5)
    _compact(store)
    before = {path: store.read(path) for path in segments(store, CARS)}
    report = _compact(store)
    assert (report.segments, report.files, report.leftovers) == (0, 0, 0)
    assert {path: store.read(path) for path in segments(store, CARS)} == before


def test_days_stay_apart_and_today_stays_as_it_is(store: SegmentStore) -> None:
    writer = Writer(store)
    for _ in range(3):
        writer.publish(3)
        writer.clock.advance(DAY_S)
    today = datetime.fromtimestamp(NOON_MS / 1000 + 2 * DAY_S, UTC).date()
    assert _compact(store, today=today).files == 2
    assert _bases(store) == [0, 6, 12, 14, 16]
    assert _compact(store, today=date(2026, 1, 3)).files == 0
    assert _compact(store, ManualClock(NOON_MS + 3 * DAY_S * 1000)).files == 1
    assert _bases(store) == [0, 6, 12, 16]


def _three_hours(store: SegmentStore) -> Writer:
    writer = Writer(store)
    for count in (3, 3, 2):
        writer.publish(count)
        writer.clock.advance(3_600)
    return writer


def _after(minutes: int) -> ManualClock:
    return ManualClock(NOON_MS + minutes * 60_000)


def test_hours_that_are_over_become_files_and_with_their_day_one_file(store: SegmentStore) -> None:
    _three_hours(store)
    rows, parts = _rows(store), _parts(store)
    assert _compact(store, _after(64)).files == 0
    expected = {65: [0, 6, 8, 10, 12, 14], 125: [0, 6, 12, 14], 600: [0, 6, 12, 14], 720: [0, 14]}
    for minutes, bases in expected.items():
        assert _compact(store, _after(minutes)).clean
        assert _bases(store) == bases
        assert _rows(store).equals(rows)
        assert _parts(store) == parts
        assert verify(store, deep=True).clean
        assert _compact(store, _after(minutes)).files == 0
    assert _compact(store, _after(100_000)).files == 0


def test_hours_that_are_merged_over_midnight_still_become_their_day(store: SegmentStore) -> None:
    _three_hours(store)
    clock = _after(125)

    def midnight() -> bool:
        clock.advance(DAY_S)
        return False

    assert _compact(store, clock, should_stop=midnight).files == 2
    assert _bases(store) == [0, 6, 12, 14]
    assert _compact(store, _after(720)).files == 1
    assert _bases(store) == [0, 14]


def test_the_chain_goes_on_beside_files_of_hours(store: SegmentStore) -> None:
    writer = _three_hours(store)
    _compact(store, _after(179))
    sleeper = Writer(store)
    assert sleeper.position.offset == 16
    writer.publish(2)
    with pytest.raises(SegmentConflictError):
        sleeper.publish()
    _compact(store, _after(720))
    assert _bases(store) == [0, 18]
    assert _parts(store)[-1].end_offset == 20
    assert verify(store, deep=True).clean


def test_a_run_that_dies_while_hours_become_a_day_loses_nothing() -> None:
    whole = MemoryStore()
    _three_hours(whole)
    _compact(whole, _after(179))
    rows, parts = _rows(whole), _parts(whole)
    for steps in range(100):
        store = MemoryStore()
        store._files = dict(whole._files)
        try:
            _compact(DyingStore(store, steps), _after(720))
        except Killed:
            kinds = {defect.kind for defect in verify(store, clock=ManualClock(0)).defects}
            assert kinds <= {DefectKind.COVERED}
        else:
            break
        assert _rows(store).equals(rows)
        report = _compact(store, _after(720), break_lock=True)
        assert report.clean
        assert _bases(store) == [0, 14]
        assert _parts(store) == parts
        assert _rows(store).equals(rows)
    assert steps > 8


def test_limits_bound_a_file(store: SegmentStore) -> None:
    Writer(store).publish(8)
    sizes = {len(store.read(path) or b"") for path in segments(store, CARS)}
    assert _compact(store, limits=FileLimits(5, 2**30)).files == 3
    assert _bases(store) == [0, 4, 8, 12, 14]
    assert _compact(store, limits=FileLimits(100, 2 * max(sizes))).files == 0
    assert _bases(store) == [0, 4, 8, 12, 14]
    with pytest.raises(ValueError, match="positive limits"):
        FileLimits(0, 1)


def test_bytes_bound_a_file(store: SegmentStore) -> None:
    Writer(store).publish(6)
    most = max(len(store.read(path) or b"") for path in segments(store, CARS))
    assert _compact(store, limits=FileLimits(100, 2 * most)).files == 2
    assert _bases(store) == [0, 4, 8, 10]


def test_rows_that_are_large_in_memory_make_more_files(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    key = b"k" * 16_000
    writer = Writer(store)
    for base in range(0, 12, 2):
        writer.publish(rows=[scored(origin(base, key=key)), scored(origin(base + 1, key=key))])
    before = _rows(store)
    assert all(len(store.read(path) or b"") < 20_000 for path in segments(store, CARS))
    report = _compact(store, limits=FileLimits(100, 2**30, max_memory_bytes=75_000))
    assert (report.files, report.segments) == (2, 4)
    assert _bases(store) == [0, 4, 8, 10]
    assert _rows(store).equals(before)
    assert verify(store, deep=True).clean
    assert _compact(store, limits=FileLimits(100, 2**30, max_memory_bytes=75_000)).files == 0


def test_rows_too_large_to_share_a_file_are_not_decoded_by_each_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    writer = Writer(store)
    for base in range(0, 10, 2):
        rows = [scored(origin(offset, key=b"k" * 16_000)) for offset in (base, base + 1)]
        writer.publish(rows=rows)
    before = _rows(store)
    limits = FileLimits(100, 2**30, max_memory_bytes=40_000)
    report = _compact(store, limits=limits)
    assert (report.files, report.alone, report.clean) == (0, 3, True)
    assert _bases(store) == [0, 2, 4, 6, 8]
    assert _rows(store).equals(before)
    assert verify(store, deep=True).clean

    decoded: list[str] = []
    monkeypatch.setattr(compact_plan, "checked_parts", lambda segment: decoded.append(segment.path))
    assert _compact(store, limits=limits).files == 0
    assert not decoded


def test_gaps_and_skipped_offsets_are_merged_and_kept(store: SegmentStore) -> None:
    writer = Writer(store)
    writer.publish()
    writer.publish(rows=[], gap="retention has deleted them")
    writer.publish(rows=[])
    writer.publish(2)
    _compact(store)
    merged = read_footer(store, segment_path(CARS, 0))
    assert [part.gap for part in merged.merged] == [None, "retention has deleted them", None, None]
    assert (merged.gap, merged.rows) == (None, 4)
    assert _rows(store).column("offset").to_pylist() == [0, 1, 6, 7, 8, 9]
    for offset, told in ((3, "declares a gap there: retention"), (4, "has no message there")):
        with pytest.raises(ConfigError, match=told):
            find_row(store, f"{CARS.topic}/{CARS.partition}/{offset}", [])


def test_gaps_alone_make_a_file_without_rows(store: SegmentStore) -> None:
    writer = Writer(store)
    for _ in range(3):
        writer.publish(rows=[], gap="retention")
    assert _compact(store).segments == 2
    writer.publish()
    assert _rows(store).column("offset").to_pylist() == [6, 7]


def test_two_models_that_alternate_share_a_file(store: SegmentStore) -> None:
    writers = [Writer(store), Writer(store, model="d4" * 32)]
    position = writers[0].position
    for number in range(7):
        writer = writers[number % 2]
        writer.position = position
        writer.publish()
        position = writer.position
    rows, parts = _rows(store), _parts(store)
    report = _compact(store)
    assert (report.clean, report.segments, report.files) == (True, 6, 1)
    assert _bases(store) == [0, 12]
    assert (_rows(store).equals(rows), _parts(store)) == (True, parts)
    assert verify(store, deep=True).clean
    path = segment_path(CARS, 0)
    with open_segment(store, path) as file:
        assert file is not None
        assert file.footer.model_fingerprint == f"{MODEL},{'d4' * 32}"
        whole = pa.concat_tables([table for _, table in file.rows_of_parts()])
    at = whole.schema.get_field_index("model_fingerprint")
    one_model = pa.array([MODEL] * whole.num_rows)
    forged = whole.set_column(at, whole.schema.field(at), one_model)
    store.replace(path, encode_segment(read_footer(store, path), forged))
    kinds = {defect.kind for defect in verify(store, deep=True).defects}
    assert kinds == {DefectKind.ROWS_HASH, DefectKind.CONTENT}


def test_partitions_are_compacted_apart_and_topics_can_be_chosen(store: SegmentStore) -> None:
    dogs = TopicPartition("dogs", 0)
    for partition in (CARS, OTHER, dogs):
        Writer(store, partition).publish(3)
    report = _compact(store, topic="cars")
    assert (report.partitions, report.files) == (2, 2)
    assert [_bases(store, each) for each in (CARS, OTHER, dogs)] == [[0, 4], [0, 4], [0, 2, 4]]


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(store: SegmentStore) -> None:
    Writer(store).publish(4)
    before = {path: store.read(path) for path in segments(store, CARS)}
    report = _compact(DyingStore(store, steps=1), dry_run=True)
    assert (report.segments, report.files, report.rows, report.dry_run) == (3, 1, 6, True)
    assert {path: store.read(path) for path in segments(store, CARS)} == before
    assert dataclasses.replace(report, dry_run=False, bytes_after=1) == dataclasses.replace(
        _compact(store), bytes_after=1
    )


def _two_days(store: SegmentStore) -> None:
    writer = Writer(store)
    writer.publish(4)
    writer.clock.advance(DAY_S)
    writer.publish(3)


LATER = ManualClock(NOON_MS + 3 * DAY_S * 1000)


def test_a_run_that_dies_at_any_step_loses_nothing_and_the_next_one_finishes_it(
    tmp_path: Path,
) -> None:
    whole = MemoryStore()
    _two_days(whole)
    rows, parts = _rows(whole), _parts(whole)
    died = 0
    for steps in range(100):
        store = LocalStore(tmp_path / str(steps))
        _two_days(store)
        try:
            _compact(DyingStore(store, steps), LATER)
        except Killed:
            died += 1
        else:
            break
        first_day = [base for base in _bases(store) if base < 8]
        # A writer that has slept relies on it: a name is free only where its predecessor's is.
        assert first_day in ([0, 2, 4, 6], [0, 4, 6], [0, 6], [0])
        assert _rows(store).equals(rows)
        plain = ds.dataset(Path(store.root), partitioning="hive").to_table(columns=["offset"])
        assert set(plain.column("offset").to_pylist()) == set(range(14))
        report = _compact(store, LATER, break_lock=True)
        assert report.clean
        assert _bases(store) == [0, 8, 12]
        assert _parts(store) == parts
        assert _rows(store).equals(rows)
        assert store.read(LOCK_NAME) is None
    # Lock, replace and 3 removals, replace and 1 removal, all removals again, those of their
    # indexes and 2 new indexes, and the lock.
    assert died == 18


def test_a_leftover_is_removed_only_beside_a_sound_compacted_file(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    Writer(store).publish(4)
    with pytest.raises(Killed):
        _compact(DyingStore(store, steps=2))
    path = tmp_path / segment_path(CARS, 0)
    path.write_bytes(_with_one_value_changed(path))
    report = _compact(store, break_lock=True)
    assert not report.clean
    assert "not those of the footer's digest" in report.refusals[0].reason
    assert _bases(store) == [0, 2, 4, 6]


def _with_one_value_changed(path: Path) -> bytes:
    """A segment of the same footer, with another energy in its first row."""
    table = pq.read_table(path, partitioning=None)
    at = table.schema.get_field_index("energy")
    values = [99.5, *table.column("energy").to_pylist()[1:]]
    field = table.schema.field(at)
    sink = pa.BufferOutputStream()
    pq.write_table(table.set_column(at, field, pa.array(values, field.type)), sink)
    return bytes(sink.getvalue())


def test_a_damaged_segment_is_not_merged_and_other_partitions_are(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    Writer(store).publish(4)
    Writer(store, OTHER).publish(4)
    path = tmp_path / segment_path(CARS, 2)
    path.write_bytes(_with_one_value_changed(path))
    report = _compact(store)
    assert [refusal.partition for refusal in report.refusals] == [CARS]
    assert segment_path(CARS, 2) in report.refusals[0].reason
    assert _bases(store) == [0, 2, 4, 6]
    assert _bases(store, OTHER) == [0, 6]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (Path.unlink, r"offsets \[2, 4\) are in no segment"),
        (_cut, "cannot be read"),
        (lambda path: path.write_bytes((path.parent / f"{4:020d}.parquet").read_bytes()), "moved"),
    ],
    ids=["missing", "cut", "copied"],
)
def test_a_broken_chain_is_left_as_it_is(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    store = LocalStore(tmp_path)
    Writer(store).publish(5)
    damage(tmp_path / segment_path(CARS, 2))
    files = {path: store.read(path) for path in segments(store, CARS)}
    (refusal,) = _compact(store).refusals
    assert refusal.partition == CARS
    assert re.search(reason, refusal.reason)
    assert {path: store.read(path) for path in segments(store, CARS)} == files


def test_a_segment_that_is_linked_to_another_chain_is_refused(store: SegmentStore) -> None:
    writer = Writer(store)
    writer.publish(2)
    writer.position = dataclasses.replace(writer.position, previous_sha256="ab" * 32, base=None)
    writer.publish(2)
    (refusal,) = _compact(store).refusals
    assert "does not name the digest" in refusal.reason
    assert _bases(store) == [0, 2, 4, 6]


def test_an_overlap_that_no_compacted_file_explains_is_refused(store: SegmentStore) -> None:
    writer = Writer(store)
    writer.publish(2)
    stale = dataclasses.replace(writer.position, offset=3, base=None)
    writer.log.publish(CARS, stale, 6, [scored(origin(4))])
    (refusal,) = _compact(store).refusals
    assert "overlaps" in refusal.reason


def test_a_writer_that_slept_through_a_compaction_is_told(store: SegmentStore) -> None:
    writer = Writer(store)
    writer.publish()
    stale = writer.position
    writer.publish(4)
    _compact(store)
    rows = _rows(store)
    with pytest.raises(SegmentConflictError, match="compacted file"):
        writer.log.publish(CARS, stale, 7, [scored(origin(2), p_value=0.9)])
    assert _bases(store) == [0, 8]
    assert _rows(store).equals(rows)


def test_what_a_sleeper_left_that_died_before_it_could_take_it_back_is_removed(
    store: SegmentStore,
) -> None:
    writer = Writer(store)
    writer.publish()
    stale = writer.position
    writer.publish(4)
    _compact(store)
    rows = _rows(store)
    sleeper = Writer(DyingStore(store, steps=1))
    with pytest.raises(Killed):
        sleeper.log.publish(CARS, stale, 9, [scored(origin(2), p_value=0.9)])
    assert _bases(store) == [0, 2, 8]
    assert _rows(store).equals(rows)
    assert _compact(store).leftovers == 1
    assert _bases(store) == [0, 8]
    assert _rows(store).equals(rows)


def test_a_sleeper_is_told_although_another_sleeper_left_what_its_segment_would_follow(
    store: SegmentStore,
) -> None:
    writer = Writer(store)
    writer.publish()
    first = writer.position
    writer.publish()
    second = writer.position
    writer.publish(3)
    _compact(store)
    with pytest.raises(Killed):
        Writer(DyingStore(store, steps=1)).log.publish(CARS, first, 4, [scored(origin(3))])
    with pytest.raises(SegmentConflictError, match="compacted file"):
        writer.log.publish(CARS, second, 6, [scored(origin(4))])
    assert _bases(store) == [0, 2, 8]


@pytest.mark.parametrize("end", [3, 4, 5, 8, 9, 10])
def test_what_a_sleeper_left_keeps_no_row_from_who_reads_on_from_it(
    store: SegmentStore, end: int
) -> None:
    """Such a file may end amid a segment, and a reader that has listed before may come upon it."""
    writer = Writer(store)
    writer.publish()
    stale = writer.position
    writer.publish(4)
    _compact(store)
    with pytest.raises(Killed):
        Writer(DyingStore(store, steps=1)).log.publish(
            CARS, stale, end, [scored(origin(offset)) for offset in range(2, end)]
        )
    found = [
        offset
        for file, start in walk(store, CARS, 2)
        for batch in file.batches(["offset"], start=start)
        for offset in batch.column("offset").to_pylist()
    ]
    assert found == list(range(2, 10))


def test_one_compaction_at_a_time(store: SegmentStore) -> None:
    Writer(store).publish(3)
    owner = LockOwner("host-7", 4711, "2026-01-02T12:00:00+00:00")
    with compaction_lock(store, owner) as check_lock:
        check_lock()
        with pytest.raises(ScoredLogError, match="process 4711 on host-7, since 2026-01-02"):
            _compact(store)
        assert _compact(store, dry_run=True).segments == 2
    assert _bases(store) == [0, 2, 4]
    assert _compact(store).segments == 2
    assert store.read(LOCK_NAME) is None


def test_a_broken_lock_stops_its_owner_before_it_exchanges_files(store: SegmentStore) -> None:
    Writer(store).publish(3)
    owner = LockOwner("host-7", 4711, "2026-01-02T12:00:00+00:00")
    with compaction_lock(store, owner) as check_lock:
        _compact(store, break_lock=True)
        with pytest.raises(ScoredLogError, match="was broken"):
            check_lock()
    store.create(LOCK_NAME, b"no JSON")
    with pytest.raises(ScoredLogError, match="does not say whose"):
        _compact(store)
    assert store.read(LOCK_NAME) == b"no JSON"


def test_it_stops_between_two_files_when_asked(store: SegmentStore) -> None:
    Writer(store).publish(9)
    asked: list[int] = []
    report = _compact(
        store,
        limits=FileLimits(4, 2**30),
        progress=lambda done, _total: asked.append(done),
        should_stop=lambda: bool(asked),
    )
    assert report.stopped
    assert asked == [2]
    assert _bases(store) == [0, 4, 6, 8, 10, 12, 14, 16]
    assert store.read(LOCK_NAME) is None


def test_a_root_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogRootError, match="no scored log"):
        _compact(LocalStore(tmp_path / "none"))


def test_tail_and_summaries_see_the_merged_segments_one_by_one(store: SegmentStore) -> None:
    Writer(store).publish(6)

    def summaries(start: int, end: int) -> list[Any]:
        found = summarise_chain(store, CARS, start, end, SummaryShape(100, 2))
        return [without_path(each) for each in found]

    before = {at: summaries(*at) for at in ((0, 12), (4, 8), (4, 2**62), (10, 2**62), (12, 2**62))}
    starts = [tail(store, CARS, count) for count in range(8)]
    assert starts == [None, 10, 8, 6, 4, 2, 0, 0]
    _compact(store)
    assert {at: summaries(*at) for at in before} == before
    assert [tail(store, CARS, count) for count in range(8)] == starts
    assert [len(each) for each in before.values()] == [6, 2, 4, 1, 0]


def test_tail_counts_no_leftover_twice(store: SegmentStore) -> None:
    Writer(store).publish(5)
    starts = [tail(store, CARS, count) for count in range(7)]
    with pytest.raises(Killed):
        _compact(DyingStore(store, steps=6))
    assert _bases(store) == [0, 4, 6, 8]
    assert [tail(store, CARS, count) for count in range(7)] == starts


def test_an_object_store_is_compacted_and_read_like_a_folder(each_store_root: str) -> None:
    store = ObjectStore(each_store_root)
    Writer(store).publish(5)
    rows = _rows(store)
    with pytest.raises(Killed):
        _compact(DyingStore(store, steps=6))
    assert _bases(store) == [0, 4, 6, 8]
    with pytest.raises(ScoredLogError, match="another compaction or prune holds the lock"):
        _compact(store)
    assert _rows(store).equals(rows)
    assert tail(store, CARS, 3) == 4
    assert _compact(store, break_lock=True).leftovers == 2
    assert _bases(store) == [0, 8]
    assert _rows(store).equals(rows)
    assert verify(store, deep=True).clean


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compacted file of several row groups, larger than what is read in one go."""
    root = tmp_path_factory.mktemp("large")
    writer = Writer(LocalStore(root))
    hours = 3_600_000
    for _ in range(5):
        base = writer.position.offset
        records = [
            dataclasses.replace(
                scored(origin(base + n, event_time_ms=NOON_MS + base * hours)),
                sha256=sha256(b"%d" % (base + n)).hexdigest(),
            )
            for n in range(10_000)
        ]
        published = writer.log.publish(CARS, writer.position, base + 10_000, records)
        writer.position = published.position
    _compact(LocalStore(root))
    return root


def test_a_large_file_is_read_by_row_group(large: Path) -> None:
    store = LocalStore(large)
    with open_segment(store, segment_path(CARS, 0)) as file:
        assert file is not None
        assert file.size_bytes > SMALL_BYTES
        assert file.metadata.num_row_groups == -(-40_000 // ROW_GROUP_ROWS) == 2
        (batch,) = file.batches(["offset"], start=39_998)
        assert batch.column("offset").to_pylist() == [39_998, 39_999]
    late = Query(since_ms=NOON_MS + 40_000 * 3_600_000)
    assert sum(batch.num_rows for batch in scan(store, late)) == 10_000
    offsets = [o for b in scan(store, Query(), ["offset"]) for o in b.column("offset").to_pylist()]
    assert offsets == list(range(50_000))
    chosen = summarise_chain(store, CARS, 30_000, 40_000, SummaryShape(1, 1))
    assert [(each.base_offset, sum(each.rows_by_status.values())) for each in chosen] == [
        (30_000, 10_000)
    ]
