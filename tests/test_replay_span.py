"""Spans of event time against what a monitor counts when, on a real log."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from nap_stream.clock import ManualClock
from nap_stream.core.panes import ClosedPane, PaneBuffer
from nap_stream.records import OffsetRange, SegmentSummary
from nap_stream.replay import EventSpan, PartitionRange, find_range, within
from nap_stream.scored_log.chain import WriterIdentity
from nap_stream.scored_log.summary import SummaryShape, summarise_chain
from tests.scored_log.builders import CALIBRATION, CARS, MODEL, NOON_MS, origin, scored
from tests.scored_log.test_summary import ALL, SHAPES, split
from tests.support.memory_store import MemoryStore
from tests.support.scored_records import RecordLog, ScoredRecord

DAY_MS = 86_400_000
SHAPE = SummaryShape(100, 5)
LIMITS = st.none() | st.integers(NOON_MS - 300, NOON_MS + 500)


def publish(
    store: MemoryStore,
    segments: Sequence[tuple[int, Sequence[ScoredRecord]]],
    calibrations: Sequence[str] = (CALIBRATION,),
) -> None:
    """Publish each segment when its newest record has been read, judged by these by turns."""
    clock = ManualClock(NOON_MS - 1_000)
    logs = [
        RecordLog(store, WriterIdentity("worker-0", MODEL, calibration), clock)
        for calibration in calibrations
    ]
    position = logs[0].begin(CARS, 0)
    for number, (end, records) in enumerate(segments):
        read_ms = max((record.origin.ingest_time_ms for record in records), default=0)
        clock.advance(max(read_ms - clock.now_ms(), 0) / 1000)
        log = logs[number % len(logs)]
        position = log.publish(CARS, position, end, records).position


def found(store: MemoryStore, span: EventSpan, shape: SummaryShape) -> list[SegmentSummary]:
    part = find_range(store, CARS, span, CALIBRATION)
    if part is None:
        return []
    summaries = summarise_chain(store, CARS, part.start, ALL, shape)
    return list(within(summaries, span, shape.pane_ms))


def counted(
    summaries: Sequence[SegmentSummary], shape: SummaryShape
) -> tuple[list[ClosedPane], dict[tuple[int, str], int]]:
    """What a monitor counts of a partition: its panes, and flagged records by pane and class."""
    is_thinned = shape.keys is not None and shape.keys.one_per_pane
    buffer = PaneBuffer(shape.pane_ms, one_per_pane=is_thinned)
    newest_ms: int | None = None
    classes: dict[tuple[int, str], int] = {}
    for each in summaries:
        earliest_ms = 0 if newest_ms is None else newest_ms - newest_ms % shape.pane_ms
        buffer.add(each.panes, CARS.partition, newest_ms, each.images)
        for flagged in each.flagged_classes:
            place = max(flagged.start_ms, earliest_ms), flagged.class_name
            classes[place] = classes.get(place, 0) + flagged.flagged
        told_ms = each.max_event_time_ms
        newest_ms = max((m for m in (newest_ms, told_ms) if m is not None), default=None)
    return buffer.close_all(), classes


def comparable(pane: ClosedPane) -> tuple[object, ...]:
    arrays = (pane.bins, pane.key_records, pane.key_flagged)
    return (pane.start_ms, pane.records, pane.flagged, pane.keys, *(a.tolist() for a in arrays))


@st.composite
def disordered(draw: st.DrawFn) -> list[ScoredRecord]:
    """Records whose event times run to and fro, and sometimes cannot be true."""
    records, ingest_ms = [], NOON_MS
    for offset in range(draw(st.integers(2, 10))):
        ingest_ms += draw(st.sampled_from([0, 30, 250]))
        event_ms = draw(
            st.integers(NOON_MS - 300, ingest_ms)
            | st.sampled_from([NOON_MS - 30 * DAY_MS, NOON_MS + DAY_MS])
        )
        where = replace(origin(offset, event_time_ms=event_ms), ingest_time_ms=ingest_ms)
        p_value, name = draw(st.sampled_from([(0.01, "cat"), (0.02, "dog"), (0.5, "cat")]))
        records.append(scored(where, p_value=p_value, class_name=name))
    return records


@given(
    records=disordered(),
    cuts=st.sets(st.integers(1, 9), max_size=4),
    shape=SHAPES,
    since=LIMITS,
    until=LIMITS,
)
def test_a_span_holds_the_panes_that_the_monitor_counted_in_it(
    records: list[ScoredRecord],
    cuts: set[int],
    shape: SummaryShape,
    since: int | None,
    until: int | None,
) -> None:
    store, span = MemoryStore(), EventSpan(since, until)
    publish(store, split(records, cuts))
    panes, classes = counted(list(summarise_chain(store, CARS, 0, ALL, shape)), shape)
    got, got_classes = counted(found(store, span, shape), shape)
    assert [comparable(pane) for pane in got] == [
        comparable(pane) for pane in panes if span.start_ms <= pane.start_ms < span.end_ms
    ]
    assert got_classes == {
        place: count for place, count in classes.items() if span.start_ms <= place[0] < span.end_ms
    }


def test_records_whose_event_time_cannot_be_true_are_found_where_they_were_counted() -> None:
    store = MemoryStore()
    records = [scored(origin(i, event_time_ms=NOON_MS - 30 * DAY_MS)) for i in range(6)]
    publish(store, split(records, {3}))
    for since_ms in (NOON_MS - DAY_MS, NOON_MS):
        summaries = found(store, EventSpan(since_ms), SHAPE)
        assert [int(each.panes.records.sum()) for each in summaries] == [3, 3]
    assert not found(store, EventSpan(NOON_MS + DAY_MS), SHAPE)


def test_what_comes_late_behind_a_record_of_the_span_lies_within() -> None:
    store = MemoryStore()
    first = [scored(origin(0, event_time_ms=NOON_MS)), scored(origin(1, event_time_ms=NOON_MS))]
    late = [
        scored(origin(2, event_time_ms=NOON_MS - 5_000), p_value=0.01),
        scored(origin(3, event_time_ms=NOON_MS + 100), p_value=0.02),
    ]
    publish(store, split([*first, *late], {2}))
    whole = list(summarise_chain(store, CARS, 0, ALL, SHAPE))
    assert found(store, EventSpan(NOON_MS), SHAPE) == whole
    assert len(whole[1].examples) == 2


def test_a_pane_that_the_span_cuts_is_before_it_whatever_segment_its_records_are_of() -> None:
    store = MemoryStore()
    records = [scored(origin(i, event_time_ms=NOON_MS + 50 + i)) for i in range(4)]
    publish(store, split(records, {2}))
    summaries = found(store, EventSpan(NOON_MS + 20), SHAPE)
    assert sum(int(each.panes.records.sum()) for each in summaries) == 0
    summaries = found(store, EventSpan(NOON_MS), SHAPE)
    assert sum(int(each.panes.records.sum()) for each in summaries) == 4


def test_a_pane_that_the_end_cuts_is_whole_whatever_segment_its_records_are_of() -> None:
    store = MemoryStore()
    times_ms = (NOON_MS, NOON_MS + 250, NOON_MS + 260, NOON_MS + 50, NOON_MS + 400)
    records = [scored(origin(i, event_time_ms=time_ms)) for i, time_ms in enumerate(times_ms)]
    publish(store, split(records, {2}))
    summaries = found(store, EventSpan(NOON_MS, NOON_MS + 201), SHAPE)
    assert sum(int(each.panes.records.sum()) for each in summaries) == 4


def test_nothing_is_found_of_a_segment_that_was_read_long_after_its_event_times() -> None:
    store = MemoryStore()
    early = [scored(origin(i, event_time_ms=NOON_MS - 2 * DAY_MS)) for i in range(3)]
    now = [scored(origin(i, event_time_ms=NOON_MS)) for i in range(3, 6)]
    publish(store, split([*early, *now], {3}))
    summaries = found(store, EventSpan(NOON_MS - DAY_MS), SHAPE)
    assert [int(each.panes.records.sum()) for each in summaries] == [0, 3]


def test_runs_of_another_calibration_are_named() -> None:
    store = MemoryStore()
    ends = (10, 20, 30, 40, 50)
    segments = [(end, [scored(origin(end - 1))]) for end in ends]
    other = "d" * 64
    publish(store, segments, (other, other, CALIBRATION))
    part = find_range(store, CARS, EventSpan(), CALIBRATION)
    assert part == PartitionRange(CARS, 0, 5, (OffsetRange(CARS, 0, 20), OffsetRange(CARS, 30, 50)))
    assert [part.is_foreign(end - 10) for end in ends] == [True, True, False, True, True]


def test_footers_before_a_span_are_passed_over() -> None:
    store = MemoryStore()
    times_ms = (NOON_MS, NOON_MS + 1_000, NOON_MS + 2_000)
    origins = [origin(i, event_time_ms=time_ms) for i, time_ms in enumerate(times_ms)]
    records = [scored(replace(each, ingest_time_ms=each.event_time_ms + 5)) for each in origins]
    publish(store, split(records, {1, 2}))
    part = find_range(store, CARS, EventSpan(NOON_MS + 1_500), CALIBRATION)
    assert part == PartitionRange(CARS, 2, 1, ())
