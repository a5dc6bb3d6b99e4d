import dataclasses
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.clock import ManualClock
from nap_stream.core.panes import ClosedPane, ImageCounts, PaneBuffer, PaneCounts
from nap_stream.core.tails import BIN_COUNT
from nap_stream.errors import ChainBrokenError
from nap_stream.records import (
    STATUSES,
    Example,
    FlaggedClass,
    SegmentSummary,
    Status,
    UnscoredImages,
)
from nap_stream.scored_log.compact import compact
from nap_stream.scored_log.compact_plan import FileLimits
from nap_stream.scored_log.format import SCHEMA, segment_path
from nap_stream.scored_log.segment import encode_segment, rows_sha256
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.summary import (
    MAX_AGE_MS,
    MAX_CLOCK_SKEW_MS,
    SummaryShape,
    summarise_chain,
    summary_shape,
)
from nap_stream.settings.drift import KeySettings
from tests.scored_log.builders import (
    CALIBRATION,
    CARS,
    MODEL,
    NOON_MS,
    failed,
    local_log,
    memory_log,
    origin,
    record_lists,
    scored,
    without_path,
)
from tests.support.log_files import paths_in, read_footer
from tests.support.memory_store import MemoryStore
from tests.support.scored_records import ScoredRecord, file_table, summarise_records
from tests.support.summaries import settings

END = 60
ALL = 2**63 - 1
BY_KEY = KeySettings(by="key")
BY_CAMERA = KeySettings(by="header:camera")
SHAPES = st.builds(
    SummaryShape,
    pane_ms=st.sampled_from([1, 100, 60_000]),
    example_count=st.integers(0, 4),
    keys=st.none()
    | st.builds(
        KeySettings,
        by=st.sampled_from(["key", "header:camera", "header:none"]),
        one_per_pane=st.booleans(),
    ),
)
KEYS = st.sampled_from([None, b"", b"left", b"right", b"\xff", b"sha256:"])
HEADERS = st.lists(st.tuples(st.sampled_from(["camera", "site", "\udc80"]), KEYS), max_size=3)
CLOCK_SKEWS = st.sampled_from([0, -1, 1, -300_000, 300_000, 2**62]) | st.integers(-200, 200)


@st.composite
def rows(draw: st.DrawFn) -> list[ScoredRecord]:
    """Records with few different keys, headers and times, so that they meet."""
    found = []
    for record in draw(record_lists):
        ingest_ms = NOON_MS + draw(st.integers(0, 200))
        changed = dataclasses.replace(
            record.origin,
            key=draw(KEYS),
            headers=tuple(draw(HEADERS)),
            ingest_time_ms=ingest_ms,
            event_time_ms=ingest_ms + draw(CLOCK_SKEWS),
        )
        found.append(dataclasses.replace(record, origin=changed))
    return found


def split(records: Sequence[ScoredRecord], cuts: set[int]) -> list[tuple[int, list[ScoredRecord]]]:
    """The records of segments that end at the cuts, and at the end."""
    ends = sorted({*cuts, END})
    return [
        (end, [r for r in records if start <= r.origin.offset < end])
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def publish(
    store: MemoryStore, segments: Sequence[tuple[int, Sequence[ScoredRecord]]], shape: SummaryShape
) -> list[SegmentSummary]:
    log = memory_log(store)
    position = log.begin(CARS, 0)
    summaries = []
    for end, records in segments:
        published = log.publish(CARS, position, end, records)
        position = published.position
        summaries.append(summarise_records(published, records, shape))
    return summaries


def entries(panes: PaneCounts) -> list[tuple[int, str, int, int]]:
    """(start, key, records, flagged) of each entry."""
    names = [panes.keys[number] for number in panes.key.tolist()]
    counts = zip(panes.records.tolist(), panes.flagged.tolist(), strict=True)
    return [
        (start, name, *count)
        for start, name, count in zip(panes.start_ms.tolist(), names, counts, strict=True)
    ]


@given(records=rows() | record_lists, shape=SHAPES)
def test_a_summary_from_records_is_that_from_the_file(
    records: list[ScoredRecord], shape: SummaryShape
) -> None:
    store = MemoryStore()
    (ours,) = publish(store, [(END, records)], shape)
    (again,) = summarise_chain(store, CARS, 0, ALL, shape)
    assert ours == again


@given(records=rows(), cuts=st.sets(st.integers(1, END - 1), max_size=4), shape=SHAPES)
def test_compaction_changes_no_summary_but_for_the_path(
    records: list[ScoredRecord], cuts: set[int], shape: SummaryShape
) -> None:
    store = MemoryStore()
    # The newest segment stays as it is.
    ours = publish(store, [*split(records, cuts), (END + 1, [])], shape)
    assert list(summarise_chain(store, CARS, 0, ALL, shape)) == ours
    compact(store, clock=ManualClock(NOON_MS), limits=FileLimits(1_000, 2**30), today=date.max)
    merged = list(summarise_chain(store, CARS, 0, ALL, shape))
    assert {summary.path for summary in merged[:-1]} == {segment_path(CARS, 0)}
    assert list(map(without_path, merged)) == list(map(without_path, ours))


def closed_panes(summaries: Sequence[SegmentSummary], shape: SummaryShape) -> list[Any]:
    """What a monitor counts of a partition in the end."""
    buffer = PaneBuffer(
        shape.pane_ms, one_per_pane=shape.keys is not None and shape.keys.one_per_pane
    )
    newest_ms: list[int] = []
    for summary in summaries:
        newest = max(newest_ms, default=None)
        buffer.add(summary.panes, CARS.partition, newest, summary.images)
        if summary.max_event_time_ms is not None:
            newest_ms.append(summary.max_event_time_ms)
    return [_comparable(pane) for pane in buffer.close_all()]


def _comparable(pane: ClosedPane) -> tuple[Any, ...]:
    arrays = (pane.bins, pane.key_records, pane.key_flagged, pane.images)
    plain = tuple(array.tolist() for array in arrays)
    return (pane.start_ms, pane.records, pane.flagged, pane.keys, *plain)


@given(records=rows(), cuts=st.sets(st.integers(1, END - 1), max_size=4), shape=SHAPES)
def test_where_segments_end_does_not_matter(
    records: list[ScoredRecord], cuts: set[int], shape: SummaryShape
) -> None:
    whole = publish(MemoryStore(), [(END, records)], shape)
    parts = publish(MemoryStore(), split(records, cuts), shape)
    assert closed_panes(parts, shape) == closed_panes(whole, shape)
    assert sum(s.implausible_timestamps for s in parts) == sum(
        s.implausible_timestamps for s in whole
    )


def test_a_row_without_scores_moves_the_time_of_those_after_it() -> None:
    records = [
        scored(origin(0, event_time_ms=NOON_MS)),
        failed(origin(1, event_time_ms=NOON_MS + 150)),
        scored(origin(2, event_time_ms=NOON_MS + 10)),
    ]
    (summary,) = publish(MemoryStore(), [(3, records)], SummaryShape(100, 0))
    assert entries(summary.panes) == [(NOON_MS, "", 1, 0), (NOON_MS + 100, "", 1, 0)]


def test_a_summary_by_hand(tmp_path: Path) -> None:
    records = [
        scored(origin(4, 0, event_time_ms=NOON_MS + 50), p_value=0.03),
        scored(origin(4, 1, event_time_ms=NOON_MS + 99), p_value=0.5),
        failed(origin(5, event_time_ms=NOON_MS + 100)),
        scored(origin(6, event_time_ms=NOON_MS + 100), p_value=0.01, class_name="dog"),
        scored(origin(7, event_time_ms=NOON_MS + 120), p_value=0.01),
        scored(origin(8, event_time_ms=NOON_MS + 90), p_value=0.02),
        failed(origin(9, event_time_ms=NOON_MS + 900)),
        failed(origin(10), Status.TOMBSTONE),
    ]
    log = local_log(tmp_path)
    published = log.publish(CARS, log.begin(CARS, 4), 12, records)
    summary = summarise_records(published, records, SummaryShape(100, 2))
    path = "topic=cars/partition=0/00000000000000000004.parquet"
    bins = np.zeros((2, BIN_COUNT), dtype=np.int64)
    bins[0, [1, 4]], bins[1, 0] = 1, 3
    images = np.zeros((3, len(STATUSES)), dtype=np.int64)
    ok, tombstone, corrupt = map(STATUSES.index, (Status.OK, Status.TOMBSTONE, Status.CORRUPT))
    images[0, ok], images[1, ok], images[1:, corrupt], images[2, tombstone] = 2, 3, 1, 1
    assert summary == SegmentSummary(
        partition=CARS,
        base_offset=4,
        end_offset=12,
        rows_by_status={Status.OK: 5, Status.CORRUPT: 2, Status.TOMBSTONE: 1},
        panes=PaneCounts(
            start_ms=np.array([NOON_MS, NOON_MS + 100]),
            key=np.array([0, 0]),
            records=np.array([2, 3]),
            flagged=np.array([1, 3]),
            bins=bins,
            keys=("",),
        ),
        images=ImageCounts(np.array([NOON_MS, NOON_MS + 100, NOON_MS + 900]), images),
        unscored=(
            UnscoredImages(
                *(NOON_MS + 100, Status.CORRUPT, "cannot decode", "", 1),
                *(CARS, 5, 0, NOON_MS + 100, path),
            ),
            UnscoredImages(
                *(NOON_MS + 900, Status.CORRUPT, "cannot decode", "", 1),
                *(CARS, 9, 0, NOON_MS + 900, path),
            ),
            UnscoredImages(
                *(NOON_MS + 900, Status.TOMBSTONE, "cannot decode", "", 1),
                *(CARS, 10, 0, NOON_MS, path),
            ),
        ),
        max_event_time_ms=NOON_MS + 900,
        path=path,
        flagged_classes=(
            FlaggedClass(NOON_MS, "cat", 1),
            FlaggedClass(NOON_MS + 100, "cat", 2),
            FlaggedClass(NOON_MS + 100, "dog", 1),
        ),
        examples=(
            Example(CARS, 6, 0, NOON_MS + 100, "", "dog", 0.01, path),
            Example(CARS, 7, 0, NOON_MS + 120, "", "cat", 0.01, path),
        ),
    )


KEYED = [
    scored(origin(0, key=b"right", headers=(("camera", b"one"), ("camera", b"two"))), p_value=0.04),
    scored(origin(1, key=b"left", headers=(("camera", b"one"),)), p_value=0.03),
    scored(origin(2, key=None, headers=(("site", b"one"),)), p_value=0.02),
    scored(origin(3, key=b"left", headers=(("camera", b"one"), ("camera", None)))),
    scored(origin(4, key=None)),
    failed(origin(5, key=b"failed", headers=(("camera", b"failed"),))),
]


@pytest.mark.parametrize(
    ("keys", "counted", "of_examples"),
    [
        (None, [("", 5, 3)], ["", "", ""]),
        (BY_KEY, [("", 2, 1), ("left", 2, 1), ("right", 1, 1)], ["", "left", "right"]),
        (BY_CAMERA, [("", 3, 1), ("one", 1, 1), ("two", 1, 1)], ["", "one", "two"]),
        (
            KeySettings(by="key", one_per_pane=True),
            [("", 2, 1), ("left", 1, 1), ("right", 1, 1)],
            ["", "left", "right"],
        ),
        (KeySettings(by="header:left"), [("", 5, 3)], ["", "", ""]),
    ],
)
def test_keys_by_hand(
    keys: KeySettings | None,
    counted: list[tuple[str, int, int]],
    of_examples: list[str],
) -> None:
    shape = SummaryShape(100, 5, keys)
    store = MemoryStore()
    (summary,) = publish(store, [(6, KEYED)], shape)
    assert entries(summary.panes) == [(NOON_MS, *each) for each in counted]
    assert [example.key for example in summary.examples] == of_examples
    assert list(summarise_chain(store, CARS, 0, ALL, shape)) == [summary]


def test_a_key_that_cannot_be_shown_is_hashed() -> None:
    records = [scored(origin(0, key=b"\xff"), p_value=0.01), scored(origin(1, key=b"\xfe"))]
    (summary,) = publish(MemoryStore(), [(2, records)], SummaryShape(100, 1, BY_KEY))
    assert [key.startswith("sha256:") for key in summary.panes.keys] == [True, True]
    assert summary.examples[0].key in summary.panes.keys


def test_an_event_time_of_the_future_counts_as_that_of_the_reading() -> None:
    read_ms = origin(0).ingest_time_ms
    latest_ms = read_ms + MAX_CLOCK_SKEW_MS
    records = [
        scored(origin(0, event_time_ms=2**62), p_value=0.01),
        failed(origin(1, event_time_ms=latest_ms + 1)),
        scored(origin(2, event_time_ms=latest_ms)),
    ]
    (summary,) = publish(MemoryStore(), [(3, records)], SummaryShape(1, 1))
    assert entries(summary.panes) == [(read_ms, "", 1, 1), (latest_ms, "", 1, 0)]
    assert summary.implausible_timestamps == 2
    assert summary.max_event_time_ms == latest_ms
    assert summary.examples[0].event_time_ms == read_ms
    (early,) = publish(MemoryStore(), [(2, records[:2])], SummaryShape(1, 1))
    assert early.max_event_time_ms == read_ms


def test_an_event_time_of_long_ago_counts_as_that_of_the_reading() -> None:
    read_ms = origin(0).ingest_time_ms
    oldest_ms = read_ms - MAX_AGE_MS
    records = [scored(origin(0, event_time_ms=0)), scored(origin(1, event_time_ms=oldest_ms))]
    (first,) = publish(MemoryStore(), [(1, records[:1])], SummaryShape(1, 1))
    assert entries(first.panes) == [(read_ms, "", 1, 0)]
    assert first.implausible_timestamps == 1
    (second,) = publish(MemoryStore(), [(2, records[1:])], SummaryShape(1, 1))
    assert entries(second.panes) == [(oldest_ms, "", 1, 0)]
    assert second.implausible_timestamps == 0


def test_only_segments_of_the_range_are_summarised() -> None:
    segments = [(end, [scored(origin(end - 1))]) for end in (10, 20, 30)]
    store = MemoryStore()
    ours = publish(store, segments, SummaryShape(100, 1))
    found = summarise_chain(store, CARS, 10, 20, SummaryShape(100, 1))
    assert list(found) == ours[1:2]


@pytest.mark.parametrize("keys", [None, BY_KEY, BY_CAMERA])
def test_a_gap_is_told(tmp_path: Path, keys: KeySettings | None) -> None:
    shape = SummaryShape(100, 2, keys)
    log = local_log(tmp_path)
    published = log.publish(CARS, log.begin(CARS, 0), 9, [], gap="retention")
    ours = summarise_records(published, [], shape, "retention")
    assert (ours.gap, len(ours.panes), ours.max_event_time_ms) == ("retention", 0, None)
    assert list(summarise_chain(LocalStore(tmp_path), CARS, 0, ALL, shape)) == [ours]


def test_the_shape_is_that_of_the_settings() -> None:
    keys = {"by": "key", "one_per_pane": True}
    found = summary_shape(settings(drift={"pane_ms": 250, "keys": keys}, alerts={"examples": 7}))
    assert found == SummaryShape(250, 7, KeySettings(by="key", one_per_pane=True))
    assert summary_shape(settings()).keys is None


def _with_column(
    store: MemoryStore, end: int, records: Sequence[ScoredRecord], name: str, values: list[Any]
) -> str:
    """Put other values into a column of the chain's last segment; gives its path."""
    path = paths_in(store, CARS)[-1]
    table = file_table(records, MODEL, CALIBRATION)
    place = table.schema.get_field_index(name)
    table = table.set_column(place, SCHEMA.field(name), pa.array(values, SCHEMA.field(name).type))
    footer = dataclasses.replace(read_footer(store, path), rows_sha256=rows_sha256(table))
    assert footer.end_offset == end
    store.replace(path, encode_segment(footer, table))
    return path


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        (
            "status",
            ["ok", "blurred", "ok"],
            "rows have a status that this program does not know: 'blurred'",
        ),
        ("ood_p_value", [0.5, None, 0.5], "rows with status ok lack scores"),
        ("is_ood", [None, True, False], "rows with status ok lack scores"),
        ("class_name", ["cat", "cat", None], "rows with status ok lack scores"),
    ],
)
@pytest.mark.parametrize("is_compacted", [False, True])
def test_rows_that_cannot_be_summarised_are_named(
    name: str, values: list[Any], problem: str, is_compacted: bool
) -> None:
    store = MemoryStore()
    records = [scored(origin(offset)) for offset in range(10, 13)]
    publish(store, [(10, [scored(origin(0))]), (13, records)], SummaryShape(100, 1))
    path = _with_column(store, 13, records, name, values)
    if is_compacted:
        position = memory_log(store).end(CARS)
        assert position is not None
        memory_log(store).publish(CARS, position, 14, [])
        compact(store, clock=ManualClock(NOON_MS), limits=FileLimits(1_000, 2**30), today=date.max)
        path = segment_path(CARS, 0)
    chain = summarise_chain(store, CARS, 0, ALL, SummaryShape(100, 1))
    assert next(chain).end_offset == 10
    with pytest.raises(ChainBrokenError) as caught:
        list(chain)
    assert caught.value.problem == f"segment [10, 13) cannot be summarised: {problem}"
    assert caught.value.where == path
    assert "a newer one" in caught.value.action
