"""Retention: what a prune takes and keeps, and what proves the chain afterwards."""

import base64
import dataclasses
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from nap_stream.clock import ManualClock
from nap_stream.errors import ChainBrokenError, ScoredLogError, SegmentConflictError
from nap_stream.objects import ObjectStore
from nap_stream.records import ChainPosition, TopicPartition
from nap_stream.scored_log.chain import WriterIdentity, chain_end, chain_start
from nap_stream.scored_log.compact import LOCK_NAME, compact
from nap_stream.scored_log.events import Event, EventKind, append_event, read_events
from nap_stream.scored_log.footer import SegmentFooter, segment_sha256
from nap_stream.scored_log.format import genesis_path, seal_path, segment_path
from nap_stream.scored_log.history import entries
from nap_stream.scored_log.index import indexed, write_index
from nap_stream.scored_log.proof.checkpoint import (
    last_signed,
    read_checkpoints,
    take_checkpoint,
    write_checkpoint,
)
from nap_stream.scored_log.proof.note import Signer
from nap_stream.scored_log.prune import PruneReport, Request, prune
from nap_stream.scored_log.query import Query
from nap_stream.scored_log.read import segments, walk
from nap_stream.scored_log.seals import (
    decode_seal,
    encode_seal,
    pruned_spans,
    pruned_words,
    read_seal,
)
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.anchored import compare_with_checkpoints
from nap_stream.scored_log.verify.compared import compare_with_kept
from nap_stream.scored_log.verify.report import ChainHead, DefectKind, VerifyReport
from nap_stream.scored_log.verify.run import verify
from nap_stream.scored_log.verify.sealed import unsigned_seals
from tests.scored_log.attacks import SIGNER
from tests.scored_log.builders import (
    CALIBRATION,
    CARS,
    MODEL,
    NOON_MS,
    failed,
    local_log,
    merged_segments,
    origin,
    scored,
)
from tests.scored_log.failing_store import DyingStore, Killed
from tests.support.log_files import read_footer, run_query
from tests.support.memory_store import MemoryStore
from tests.support.scored_records import RecordLog, ScoredRecord

DAY_MS = 86_400_000
OTHER = TopicPartition("cars", 1)
LATER_MS = NOON_MS + 100 * DAY_MS
DAYS = 6


def _rows(base: int, time_ms: int, partition: TopicPartition = CARS) -> list[ScoredRecord]:
    """Four rows: three with scores, the first of them flagged, and one without."""
    where = [
        origin(base + n, event_time_ms=time_ms + n, partition=partition, key=b"camera-%d" % n)
        for n in range(4)
    ]
    good = [scored(each, p_value=0.01 if n == 0 else 0.5) for n, each in enumerate(where[:3])]
    return [*good, failed(where[3])]


def write_days(store: SegmentStore, partition: TopicPartition = CARS, days: int = DAYS) -> None:
    """A segment of four offsets each day at noon; the third one a declared gap."""
    clock = ManualClock(NOON_MS)
    log = RecordLog(store, WriterIdentity("worker-0", MODEL, CALIBRATION), clock)
    position = log.begin(partition, 0, "id-of-the-topic")
    for day in range(days):
        end, rows = position.offset + 4, _rows(position.offset, clock.now_ms(), partition)
        if day == 2:
            position = log.publish(partition, position, end, [], gap="retention").position
        else:
            position = log.publish(partition, position, end, rows).position
        clock.advance(DAY_MS / 1000)


def prune_days(
    store: SegmentStore,
    days: float = 4,
    *,
    now_ms: int = LATER_MS,
    signer: Signer | None = None,
    dry_run: bool = False,
    break_lock: bool = False,
) -> PruneReport:
    """Prune what is from before so many days after the first noon, less half a day."""
    before_ms = NOON_MS + round((days - 0.5) * DAY_MS)
    request = Request(before_ms, "Ann", "90 days", signer=signer, program_version="1")
    clock = ManualClock(now_ms)
    return prune(store, request, clock=clock, dry_run=dry_run, break_lock=break_lock)


def _verify(store: SegmentStore) -> VerifyReport:
    return verify(store, deep=True, clock=ManualClock())


def _bases(store: SegmentStore, partition: TopicPartition = CARS) -> list[str]:
    return list(segments(store, partition))


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    write_days(store)
    return store


def test_the_oldest_files_go_and_their_seal_says_what_they_held(store: MemoryStore) -> None:
    before = _verify(store)
    done = prune_days(store)
    assert (done.files, done.refusals, done.finished) == (4, (), 0)
    assert _bases(store) == [segment_path(CARS, 16), segment_path(CARS, 20)]
    (span,) = done.spans
    assert read_seal(store, seal_path(CARS, 0)).span == span
    assert (span.start_offset, span.end_offset, span.segments, span.rows) == (0, 16, 4, 12)
    assert span.rows_by_status == {"corrupt": 3, "ok": 9}
    assert (span.flagged_rows, span.gap_offsets) == (3, 4)
    assert (span.min_event_time_ms, span.max_event_time_ms) == (
        NOON_MS,
        NOON_MS + 3 * DAY_MS + 3,
    )
    assert (span.models, span.calibrations) == ((MODEL,), (CALIBRATION,))
    assert (span.by, span.reason, span.pruned_ms) == ("Ann", "90 days", LATER_MS)
    after = _verify(store)
    assert after.defects == ()
    assert after.heads == before.heads
    assert (after.rows, after.gap_offsets) == (8, 4)
    assert [gap.reason for gap in after.gaps] == ["retention"]
    assert [found.span for found in after.pruned] == [span]
    (kept,) = done.kept
    assert (kept.partition, kept.offset) == (CARS, 16)
    assert "2026-01-05T12:00:00.000Z" in kept.why


def test_events_tell_of_it_before_and_after(store: MemoryStore) -> None:
    prune_days(store)
    asked, done = read_events(store)
    assert (asked.kind, done.kind) == (EventKind.PRUNING, EventKind.PRUNED)
    assert (asked.by, asked.topic, asked.data["reason"]) == ("Ann", "cars", "90 days")
    assert done.data["asked"] == asked.number
    (named,) = asked.data["seals"]
    assert named["seal_sha256"] == read_seal(store, seal_path(CARS, 0)).sha256
    told = [entry.what for entry in entries([asked, done])]
    assert told == [
        "12 rows of 1 partitions before 2026-01-05T00:00:00.000Z: 90 days",
        "12 rows of 1 partitions: their files are gone",
    ]


def test_a_second_prune_goes_on_where_the_first_ended_and_a_third_has_nothing(
    store: MemoryStore,
) -> None:
    prune_days(store, 2)
    assert [span.start_offset for span in prune_days(store, 4).spans] == [8]
    assert prune_days(store, 4).spans == ()
    spans = list(pruned_spans(store, [CARS], []))
    assert [(span.start_offset, span.end_offset) for span in spans] == [(0, 8), (8, 16)]
    assert spans[1].previous_sha256 == spans[0].sha256
    assert _verify(store).clean


def test_a_dry_run_changes_nothing_and_says_the_same(store: MemoryStore) -> None:
    paths = _bases(store)
    told = prune_days(store, dry_run=True)
    assert _bases(store) == paths
    assert list(read_events(store)) == []
    assert told.dry_run
    assert dataclasses.replace(told, dry_run=False) == prune_days(store)


def test_every_end_that_was_kept_before_is_still_proved(store: MemoryStore) -> None:
    start = chain_start(store, CARS)
    assert start is not None
    ends = [(start.offset, start.previous_sha256)]
    for path in _bases(store):
        footer = read_footer(store, path)
        ends.append((footer.end_offset, segment_sha256(footer)))
    heads = [ChainHead(CARS, 0, end, sha256) for end, sha256 in ends]
    prune_days(store, 2)
    prune_days(store, 5)
    assert list(compare_with_kept(store, heads)) == []
    for head in heads:
        (defect,) = compare_with_kept(store, [dataclasses.replace(head, sha256="ab" * 32)])
        assert (defect.kind, f"now it is {head.sha256}" in defect.detail) == (
            DefectKind.KEPT_DIGEST,
            True,
        )
    found = _verify(store)
    within = [found.pruned_at(CARS, head.end_offset) is not None for head in heads]
    assert within == [False, True, True, True, True, True, False]


def test_checkpoints_of_before_agree_and_a_signer_goes_on_from_what_it_signed(
    tmp_path: Path,
) -> None:
    store = LocalStore(tmp_path)
    for days in (2, 4, DAYS):
        log = RecordLog(
            store, WriterIdentity("w", MODEL, CALIBRATION), ManualClock(NOON_MS + days * DAY_MS)
        )
        position = log.begin(CARS, 0)
        while position.offset < 4 * days:
            time_ms = NOON_MS + position.offset // 4 * DAY_MS
            rows = _rows(position.offset, time_ms)
            position = log.publish(CARS, position, position.offset + 4, rows).position
        _sign(store, NOON_MS + days * DAY_MS)
    prune_days(store, 5, signer=SIGNER)
    report = _verify(store)
    found = read_checkpoints(store, [SIGNER.public], ())
    anchors = compare_with_checkpoints(store, report.heads, found)
    assert anchors.defects == ()
    assert list(unsigned_seals(store, report.pruned, [SIGNER.public])) == []
    assert [chain.anchored_offset for chain in anchors.chains if chain.partition == CARS] == [24]
    # The last one that a signer knows may lie in the pruned span: it is not called changed.
    known = last_signed(store, SIGNER.public)
    (pruned,) = (part for part in _pruned_parts(store) if part.end_offset == 8)
    head = dataclasses.replace(known.heads[CARS], end_offset=8, sha256=segment_sha256(pruned))
    old = dataclasses.replace(known, heads={CARS: head})
    assert take_checkpoint(store, LATER_MS, old).changed == ()


def _pruned_parts(store: SegmentStore) -> tuple[SegmentFooter, ...]:
    return read_seal(store, seal_path(CARS, 0)).parts


def _sign(store: SegmentStore, time_ms: int) -> None:
    before = last_signed(store, SIGNER.public)
    write_checkpoint(store, take_checkpoint(store, time_ms, before), SIGNER, before)


def test_unsigned_seals_count_for_nothing_where_keys_are_given(store: MemoryStore) -> None:
    prune_days(store)
    report = _verify(store)
    (defect,) = unsigned_seals(store, report.pruned, [SIGNER.public])
    assert (defect.file, defect.kind) == (seal_path(CARS, 0), DefectKind.SEAL)
    assert "not signed" in defect.detail


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9, 11, 15, 16])
def test_after_a_death_anywhere_nothing_is_lost_that_no_event_tells_of_and_the_next_run_ends_it(
    steps: int,
) -> None:
    """The lock, an event, the seal, four indexes, four files, twice, an event, the lock."""
    store = MemoryStore()
    write_days(store)
    before = run_query(store, Query())
    heads = _verify(store).heads
    with pytest.raises(Killed):
        prune_days(DyingStore(store, steps))
    found = _verify(store)
    assert {defect.kind for defect in found.defects} <= {DefectKind.COVERED}
    for defect in found.defects:
        assert "the next `nap-stream prune` finishes it" in defect.detail
    left = run_query(store, Query())
    assert left.equals(before.slice(before.num_rows - left.num_rows)), "what is there is read"
    if left.num_rows < before.num_rows:
        assert [e.kind for e in read_events(store)][:1] == [EventKind.PRUNING]
    compact(store, clock=ManualClock(LATER_MS), break_lock=True)
    done = prune_days(store, break_lock=True)
    assert done.refusals == ()
    after = _verify(store)
    assert after.clean
    assert after.heads == heads
    assert {row["offset"] for row in run_query(store, Query()).to_pylist()} == set(range(16, 24))
    asked, done_ones = list[str](), list[str]()
    for event in read_events(store):
        paths = [each["seal_sha256"] for each in event.data["seals"]]
        (asked if event.kind == EventKind.PRUNING else done_ones).extend(paths)
    assert done_ones == [read_seal(store, seal_path(CARS, 0)).sha256]
    assert set(done_ones) <= set(asked)


def test_it_holds_the_lock_of_compaction(store: MemoryStore) -> None:
    store.create(LOCK_NAME, b"{}")
    with pytest.raises(ScoredLogError, match="another compaction or prune holds the lock"):
        prune_days(store)
    assert len(_bases(store)) == DAYS


def test_compacted_days_go_whole_and_what_reaches_over_the_date_stays(store: MemoryStore) -> None:
    paths = _bases(store)
    store.replace(paths[1], merged_segments(store, paths[1:4]))
    store.remove(paths[2:4])
    done = prune_days(store, 3)
    assert [span.end_offset for span in done.spans] == [4]
    (kept,) = done.kept
    assert (kept.offset, "its file is kept whole" in kept.why) == (4, True)
    assert [span.end_offset for span in prune_days(store, 4).spans] == [16]
    assert _verify(store).clean


def test_the_newest_file_stays_whatever_its_age(store: MemoryStore) -> None:
    done = prune_days(store, 50)
    assert _bases(store) == [segment_path(CARS, 20)]
    assert "the newest file of a chain is never pruned" in done.kept[0].why


def test_what_was_published_within_a_day_stays(store: MemoryStore) -> None:
    done = prune_days(store, 5.2, now_ms=NOON_MS + 5 * DAY_MS)
    assert _bases(store)[0] == segment_path(CARS, 16)
    assert done.kept[0].why == "it was published within a day"


def test_what_a_monitor_reads_when_it_starts_stays(store: MemoryStore) -> None:
    """Its window is what its last start says: 7 rows with scores are in the last three files."""
    for window in (100_000, 7):
        data = {"window_records": window}
        started = Event(
            time_ms=NOON_MS,
            kind=EventKind.RUN_STARTED,
            by="monitor",
            topic="cars",
            monitor="cars",
            data=data,
        )
        append_event(store, started)
    done = prune_days(store, 50)
    assert _bases(store)[0] == segment_path(CARS, 12)
    assert done.kept[0].why == "a monitor that starts anew reads the newest 7 rows"


def test_times_that_cannot_be_true_neither_hold_it_up_nor_take_what_is_new() -> None:
    store = MemoryStore()
    clock = ManualClock(NOON_MS)
    log = RecordLog(store, WriterIdentity("w", MODEL, CALIBRATION), clock)
    position = log.begin(CARS, 0)
    for time_ms in (NOON_MS + 900 * DAY_MS, NOON_MS, 0, 0, 0):
        rows = _rows(position.offset, time_ms)
        position = log.publish(CARS, position, position.offset + 4, rows).position
        clock.advance(86_400.0)
    prune_days(store, 3)
    assert _bases(store)[0] == segment_path(CARS, 12)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_writer_that_slept_through_a_prune_publishes_nothing(
    store: MemoryStore, is_first: bool
) -> None:
    start = chain_start(store, CARS)
    assert start is not None
    first = segment_sha256(read_footer(store, segment_path(CARS, 0)))
    second = dataclasses.replace(start, offset=4, previous_sha256=first, base=0)
    prune_days(store)
    position = start if is_first else second
    sleeper = RecordLog(store, WriterIdentity("sleeper", MODEL, CALIBRATION), ManualClock(LATER_MS))
    rows = _rows(position.offset, NOON_MS)
    with pytest.raises(SegmentConflictError, match="was pruned"):
        sleeper.publish(CARS, position, position.offset + 4, rows)
    assert _verify(store).clean


def test_what_a_sleeper_left_that_died_is_named_and_removed_by_the_nextprune_days(
    store: MemoryStore,
) -> None:
    start = chain_start(store, CARS)
    assert start is not None
    prune_days(store)
    dying = RecordLog(
        DyingStore(store, 1), WriterIdentity("w", MODEL, CALIBRATION), ManualClock(NOON_MS)
    )
    with pytest.raises(Killed):
        dying.publish(CARS, start, 3, _rows(0, NOON_MS)[:3])
    (defect,) = _verify(store).defects
    assert (defect.file, defect.kind) == (segment_path(CARS, 0), DefectKind.COVERED)
    assert compact(store, clock=ManualClock(LATER_MS)).clean
    assert prune_days(store).finished == 1
    assert _verify(store).clean


def test_a_writer_goes_on_where_a_chain_ended_of_which_all_rows_are_gone(
    store: MemoryStore,
) -> None:
    """No prune goes so far, but somebody may remove what it leaves: the log is the truth."""
    prune_days(store, 50)
    sealed = read_seal(store, seal_path(CARS, 0)).span
    store.remove([segment_path(CARS, 20)])
    (defect,) = _verify(store).defects
    assert (defect.kind, "nothing stands behind" in defect.detail) == (DefectKind.TRUNCATED, True)
    position = chain_end(store, CARS)
    assert position == ChainPosition(20, sealed.sha256, None, "id-of-the-topic")
    log = RecordLog(store, WriterIdentity("w", MODEL, CALIBRATION), ManualClock(LATER_MS))
    assert log.begin(CARS, 0) == position
    log.publish(CARS, position, 24, _rows(20, NOON_MS))
    assert _verify(store).clean


def test_a_compaction_afterwards_merges_what_is_left(store: MemoryStore) -> None:
    log = RecordLog(store, WriterIdentity("w", MODEL, CALIBRATION), ManualClock(LATER_MS))
    position = log.end(CARS)
    assert position is not None
    for _ in range(3):
        rows = _rows(position.offset, LATER_MS)
        position = log.publish(CARS, position, position.offset + 4, rows).position
    prune_days(store, 50)
    done = compact(store, clock=ManualClock(LATER_MS + DAY_MS))
    assert (done.segments, done.refusals) == (2, ())
    assert _verify(store).clean


def test_a_damaged_file_stays_and_is_named_and_other_chains_go(store: MemoryStore) -> None:
    write_days(store, OTHER)
    path = segment_path(CARS, 4)
    content = bytearray(store.read(path) or b"")
    content[200] ^= 1
    store.replace(path, bytes(content))
    done = prune_days(store)
    (refused,) = done.refusals
    assert (refused.partition, path in refused.reason) == (CARS, True)
    assert [span.place for span in done.spans] == [OTHER]
    assert len(_bases(store)) == DAYS


def test_a_chain_that_begins_late_without_a_seal_is_not_pruned(store: MemoryStore) -> None:
    store.remove([segment_path(CARS, 0)])
    assert "does not begin where" in prune_days(store).refusals[0].reason
    hole, link = _verify(store).defects
    assert (hole.kind, "in no segment and no seal" in hole.detail) == (DefectKind.HOLE, True)
    assert link.kind == DefectKind.PREVIOUS_HASH


def test_a_seal_that_no_event_tells_of_removes_nothing(store: MemoryStore) -> None:
    other = MemoryStore()
    write_days(other)
    prune_days(other)
    store.create(seal_path(CARS, 0), other.read(seal_path(CARS, 0)) or b"")
    done = prune_days(store)
    assert "no event of a prune tells of this seal" in done.refusals[0].reason
    assert len(_bases(store)) == DAYS
    kinds = {defect.kind for defect in _verify(store).defects}
    assert kinds == {DefectKind.COVERED, DefectKind.SEAL}


Change = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    "change",
    [
        lambda seal: seal.replace(b'"by": "Ann"', b'"by": "Eve"'),
        lambda seal: seal.replace(b'"corrupt": 3, "ok": 9', b'"corrupt": 4, "ok": 8'),
        lambda seal: seal.replace(b'"rows": 12', b'"rows": 11'),
        lambda seal: seal.replace(b'"flagged_rows": 3', b'"flagged_rows": 10'),
        lambda seal: seal.replace(b'"topic": "cars"', b'"topic": "cats"'),
        lambda seal: seal.replace(b'"topic": "cars"', b'"topic": "x", "topic": "cars"'),
        lambda seal: seal.replace(b"pruned span v1", b"pruned span v2"),
        lambda seal: seal + b"more\n",
        lambda seal: seal[: len(seal) // 2],
        lambda seal: b"\xff" + seal,
        lambda _: b"",
    ],
)
def test_a_changed_seal_is_a_defect_and_stops_no_reader(change: Change, store: MemoryStore) -> None:
    prune_days(store)
    path = seal_path(CARS, 0)
    old = store.read(path) or b""
    store.replace(path, change(old))
    assert store.read(path) != old
    found = _verify(store).defects
    assert {(defect.file, defect.kind) for defect in found} == {(path, DefectKind.SEAL)}
    assert run_query(store, Query()).num_rows == 8
    assert prune_days(store, 50).refusals != ()


def test_a_seal_that_is_removed_is_missed(store: MemoryStore) -> None:
    prune_days(store)
    store.remove([seal_path(CARS, 0)])
    kinds = {defect.kind for defect in _verify(store).defects}
    assert kinds == {DefectKind.HOLE, DefectKind.PREVIOUS_HASH, DefectKind.SEAL}


def test_footers_of_another_past_do_not_fit(store: MemoryStore) -> None:
    prune_days(store)
    path = seal_path(CARS, 0)
    seal = read_seal(store, path)
    parts = [dataclasses.replace(part, writer_id="nobody") for part in seal.parts[-1:]]
    parts = [*seal.parts[:-1], *parts]
    span = dataclasses.replace(seal.span, sha256=segment_sha256(parts[-1]))
    store.replace(path, encode_seal(span, parts, None))
    kinds = [defect.kind for defect in _verify(store).defects]
    assert sorted(kinds) == [DefectKind.PREVIOUS_HASH, DefectKind.SEAL]


def test_words_for_people_name_who_and_when_once_for_all_partitions(store: MemoryStore) -> None:
    write_days(store, OTHER)
    prune_days(store)
    spans = list(pruned_spans(store, [CARS, OTHER], []))
    (words,) = pruned_words(spans)
    assert words == (
        "24 rows of 2 partitions of cars with event times from 2026-01-01T12:00:00.000Z to "
        "2026-01-04T12:00:00.003Z were pruned by Ann on 2026-04-11T12:00:00.000Z, with all before "
        "2026-01-05T00:00:00.000Z: 90 days"
    )


def test_a_reader_amid_a_prune_goes_on_with_what_is_left(store: MemoryStore) -> None:
    reader = walk(store, CARS)
    first, _ = next(reader)
    assert first.footer.base_offset == 0
    prune_days(store)
    assert [file.footer.base_offset for file, _ in reader] == [16, 20]


def test_an_object_store_is_pruned_like_a_folder(each_store_root: str) -> None:
    store = ObjectStore(each_store_root)
    write_days(store)
    with pytest.raises(Killed):
        prune_days(DyingStore(store, 9))
    done = prune_days(store, break_lock=True)
    assert (done.finished, done.refusals) == (2, ())
    assert _bases(store) == [segment_path(CARS, 16), segment_path(CARS, 20)]
    assert _verify(store).clean


def test_without_a_marker_nothing_is_pruned(store: MemoryStore) -> None:
    store.remove([genesis_path(CARS)])
    assert "no marker" in prune_days(store).refusals[0].reason


def test_a_seal_is_text_that_people_read(tmp_path: Path) -> None:
    local = local_log(tmp_path)
    write_days(LocalStore(tmp_path))
    assert local.end(CARS) is not None
    prune_days(LocalStore(tmp_path), signer=SIGNER)
    lines = (tmp_path / seal_path(CARS, 0)).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "nap-stream pruned span v1"
    assert json.loads(lines[1])["by"] == "Ann"
    assert lines[3] == ""
    assert lines[4].startswith("— PeterNeumann ")
    with pytest.raises(ChainBrokenError, match="is the seal of"):
        read_seal(LocalStore(tmp_path), _moved(tmp_path))


def _moved(root: Path) -> str:
    path = seal_path(CARS, 4)
    (root / path).write_bytes((root / seal_path(CARS, 0)).read_bytes())
    return path


def test_a_signature_vouches_for_the_seal_that_was_read(store: MemoryStore) -> None:
    prune_days(store, signer=SIGNER)
    report = _verify(store)
    path = seal_path(CARS, 0)
    text = (store.read(path) or b"").partition(b"\n\n")[0].decode() + "\n"
    store.replace(path, SIGNER.sign(text.replace("Ann", "Bob")))
    (defect,) = unsigned_seals(store, report.pruned, [SIGNER.public])
    assert "changed while it was read" in defect.detail


def test_a_seal_that_another_zlib_has_packed_is_as_valid(store: MemoryStore) -> None:
    prune_days(store)
    path = seal_path(CARS, 0)
    content = store.read(path) or b""
    lines = content.split(b"\n")
    lines[2] = base64.b64encode(zlib.compress(zlib.decompress(base64.b64decode(lines[2])), 1))
    changed = b"\n".join(lines)
    assert changed != content
    assert decode_seal(changed, path).parts == read_seal(store, path).parts
    spaced = zlib.decompress(base64.b64decode(lines[2])).replace(b",", b", ", 1)
    lines[2] = base64.b64encode(zlib.compress(spaced))
    with pytest.raises(ChainBrokenError, match="is not valid"):
        decode_seal(b"\n".join(lines), path)


def test_no_index_outlives_the_file_that_was_pruned(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    write_days(store)
    for path in _bases(store)[:4]:
        write_index(store, path, store.read(path) or b"")
    assert indexed(store, CARS) == {0, 4, 8, 12}
    with pytest.raises(Killed):
        prune_days(DyingStore(store, 7))
    assert indexed(store, CARS) == set()
    # As an earlier nap-stream may have left it.
    write_index(store, segment_path(CARS, 12), store.read(segment_path(CARS, 12)) or b"")
    prune_days(store, break_lock=True)
    assert indexed(store, CARS) == set()
    assert _verify(store).clean


def test_a_chain_is_sealed_and_removed_before_the_next(store: MemoryStore) -> None:
    write_days(store, OTHER)
    seen: list[tuple[bool, int]] = []

    class Seen(DyingStore):
        def create(self, path: str, content: bytes) -> bool:
            if path == seal_path(OTHER, 0):
                seen.append((store.read(seal_path(CARS, 0)) is not None, len(_bases(store))))
            return super().create(path, content)

    prune_days(Seen(store))
    assert seen == [(True, 2)]
    assert [event.kind for event in read_events(store)] == [EventKind.PRUNING, EventKind.PRUNED]
