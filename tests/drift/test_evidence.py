from nap_stream.core.windows import WindowState
from nap_stream.drift import evidence
from nap_stream.drift.evidence import Evidence
from nap_stream.records import OffsetRange, SegmentSummary
from tests.support.summaries import partition, summary


def keep(found: Evidence, each: SegmentSummary) -> None:
    found.add(each, each.panes, lambda time_ms: time_ms)


def test_ranges_of_a_partition_become_one() -> None:
    found = Evidence(5)
    for base, time_ms in ((0, 5), (1, 15), (2, 25), (3, 35)):
        keep(found, summary(0, base, [(time_ms, True)]))
    window = WindowState(start_ms=10, end_ms=30, records=2, flagged=2)
    assert found.offsets(window) == (OffsetRange(partition(0), 1, 3),)
    assert [example.offset for example in found.examples(window)] == [1, 2]


def test_what_has_left_the_window_is_forgotten() -> None:
    found = Evidence(5)
    for base in range(10):
        keep(found, summary(0, base, [(base * 10, True)]))
    found.forget_before(50)
    everything = WindowState(start_ms=0, end_ms=100, records=10, flagged=10)
    assert found.offsets(everything) == (OffsetRange(partition(0), 5, 10),)


def test_the_newest_are_kept_where_there_are_too_many() -> None:
    found = Evidence(5)
    count = evidence.MAX_SEGMENTS + 5
    for base in range(count):
        keep(found, summary(0, base, [(0, False)]))
    found.forget_before(0)
    window = WindowState(start_ms=0, end_ms=10, records=count, flagged=0)
    assert found.offsets(window) == (OffsetRange(partition(0), 5, count),)


def test_a_segment_without_scored_records_is_no_evidence() -> None:
    found = Evidence(5)
    keep(found, summary(0, 0, [], end=10, gap="retention"))
    assert found.offsets(WindowState(0, 10, 1, 0)) == ()
