import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from nap_stream.core.windows import Pane
from nap_stream.records import Example, ScoredRecord, SegmentSummary, Status
from nap_stream.scored_log.local_store import LocalStore
from nap_stream.scored_log.reader import read_footer
from nap_stream.scored_log.summary import summarise, summarise_chain
from tests.scored_log.builders import (
    CARS,
    NOON_MS,
    encode_old_version,
    failed,
    local_log,
    origin,
    record_lists,
    scored,
)


def _from_files(root: Path, pane_ms: int, example_count: int) -> SegmentSummary:
    (summary,) = summarise_chain(
        LocalStore(root), CARS, 0, 2**63 - 1, pane_ms=pane_ms, example_count=example_count
    )
    return summary


@settings(max_examples=50, deadline=None)
@given(
    records=record_lists,
    pane_ms=st.sampled_from([1, 100, 60_000]),
    examples=st.integers(0, 4),
)
def test_a_summary_from_records_is_that_from_the_file_of_either_version(
    records: list[ScoredRecord], pane_ms: int, examples: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        log = local_log(root)
        published = log.publish(CARS, log.begin(CARS, 0), 60, records)
        ours = summarise(published, records, pane_ms=pane_ms, example_count=examples)
        again = _from_files(root, pane_ms, examples)
        footer = read_footer(LocalStore(root), published.path)
        (root / published.path).write_bytes(encode_old_version(footer, records))
        old = _from_files(root, pane_ms, examples)
    assert ours == again == old


def test_a_summary_by_hand(tmp_path: Path) -> None:
    records = [
        scored(origin(4, 0, event_time_ms=NOON_MS + 50), p_value=0.03),
        scored(origin(4, 1, event_time_ms=NOON_MS + 99), p_value=0.5),
        failed(origin(5, event_time_ms=NOON_MS + 900)),
        scored(origin(6, event_time_ms=NOON_MS + 100), p_value=0.01, class_name="dog"),
        scored(origin(7, event_time_ms=NOON_MS + 120), p_value=0.01),
        failed(origin(8), Status.TOMBSTONE),
    ]
    log = local_log(tmp_path)
    published = log.publish(CARS, log.begin(CARS, 4), 11, records)
    summary = summarise(published, records, pane_ms=100, example_count=2)
    assert (summary.base_offset, summary.end_offset, summary.gap) == (4, 11, None)
    assert summary.rows_by_status == {Status.OK: 4, Status.CORRUPT: 1, Status.TOMBSTONE: 1}
    assert summary.panes == (Pane(NOON_MS, 2, 1), Pane(NOON_MS + 100, 2, 2))
    assert summary.max_event_time_ms == NOON_MS + 900
    path = "topic=cars/partition=0/00000000000000000004.parquet"
    assert summary.path == path
    assert summary.examples == (
        Example(CARS, 6, 0, NOON_MS + 100, "dog", 0.01, path),
        Example(CARS, 7, 0, NOON_MS + 120, "cat", 0.01, path),
    )


def test_a_gap_is_told(tmp_path: Path) -> None:
    log = local_log(tmp_path)
    published = log.publish(CARS, log.begin(CARS, 0), 9, [], gap="retention")
    ours = summarise(published, [], pane_ms=100, example_count=2, gap="retention")
    assert (ours.gap, ours.panes, ours.max_event_time_ms) == ("retention", (), None)
    assert _from_files(tmp_path, 100, 2) == ours
