from nap_stream.core.panes import closed_pane
from nap_stream.drift.evidence import MAX_SEGMENTS, Span, WindowEvidence
from nap_stream.drift.records import Contribution
from nap_stream.records import OffsetRange
from tests.support.summaries import PANE_MS, Row, partition, summary

ALL = Span(0, 10_000)


def rows(start_ms: int, count: int, key: str = "") -> list[Row]:
    return [
        Row(start_ms + i, flagged=True, p_value=0.01 + i / 1_000, key=key) for i in range(count)
    ]


def test_segments_that_reach_into_the_span() -> None:
    evidence = WindowEvidence(examples=2, contributors=2)
    evidence.add(summary(0, 0, rows(0, 5)), None)
    evidence.add(summary(0, 5, rows(100, 5)), None)
    evidence.add(summary(1, 7, rows(100, 1)), None)
    evidence.add(summary(1, 8, [], end=9, gap="retention"), None)
    assert evidence.offsets(Span(50, 200)) == (
        OffsetRange(partition(0), 5, 10),
        OffsetRange(partition(1), 7, 8),
    )
    assert evidence.offsets(ALL)[0] == OffsetRange(partition(0), 0, 10)
    found = [(e.partition.partition, e.offset) for e in evidence.examples(Span(50, 200))]
    assert found == [(0, 5), (1, 7)]


def test_a_segment_that_came_late_is_where_it_was_counted() -> None:
    evidence = WindowEvidence(examples=2, contributors=2)
    evidence.add(summary(0, 0, rows(0, 2)), 500)
    assert evidence.offsets(Span(0, 100)) == ()
    assert len(evidence.examples(Span(500, 510))) == 2
    assert evidence.class_contributions(Span(500, 510)) == (Contribution("cat", 2),)


def test_keys_and_classes_that_contribute_most() -> None:
    evidence = WindowEvidence(examples=2, contributors=2)
    mixed = [*rows(0, 2, "b"), *rows(2, 3, "a"), *rows(5, 2, "c"), Row(8, flagged=False, key="d")]
    made = summary(0, 0, mixed)
    evidence.add(made, None)
    evidence.close(closed_pane(0, [made.panes], one_per_pane=False))
    assert evidence.key_contributions(ALL) == (Contribution("a", 3), Contribution("b", 2))
    assert evidence.key_contributions(Span(PANE_MS, 10_000)) == ()
    assert evidence.class_contributions(ALL) == (Contribution("cat", 7),)
    only_c = evidence.examples(Span(0, 10_000, key="c"))
    assert [example.key for example in only_c] == ["c"] * len(only_c)
    assert only_c


def test_what_has_left_the_window_is_forgotten() -> None:
    evidence = WindowEvidence(examples=2, contributors=2)
    for base in range(3):
        made = summary(0, base, rows(base * 100, 1, "a"))
        evidence.add(made, None)
        evidence.close(closed_pane(base * 100, [made.panes], one_per_pane=False))
    evidence.forget_before(100)
    assert [segment.first_ms for segment in evidence.state().segments] == [100, 200]
    assert sorted(start for start, _ in evidence.state().classes) == [100, 200]
    assert sorted(start for start, _ in evidence.state().keys) == [100, 200]


def test_memory_is_bounded() -> None:
    evidence = WindowEvidence(examples=1, contributors=1)
    for base in range(MAX_SEGMENTS + 5):
        evidence.add(summary(0, base, rows(0, 1)), None)
    evidence.forget_before(0)
    assert len(evidence.state().segments) == MAX_SEGMENTS
    assert evidence.state().segments[-1].offsets.start == MAX_SEGMENTS + 4
