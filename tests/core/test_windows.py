from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core.panes import PaneBuffer, PaneCounts, RollingWindow, WindowState
from tests.support.closed_panes import KEYS, PANE_MS, ROWS, PlainPane, ScoredRow, counts_of, plain

Push = tuple[int, int, int]
PUSHES = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(0, 5)).map(
        lambda push: (push[0], push[1], min(push[1:]))
    ),
    max_size=20,
)


def rows_at(*times_ms: int) -> PaneCounts:
    return counts_of([ScoredRow(time, 0.5, False, 1) for time in times_ms], one_per_pane=False)


def starts_and_records(panes: list[PlainPane]) -> list[tuple[int, int]]:
    return [(pane.start_ms, pane.records) for pane in panes]


def closed(buffer: PaneBuffer, watermark_ms: int | None) -> list[tuple[int, int]]:
    return starts_and_records([plain(pane) for pane in buffer.close(watermark_ms)])


def test_the_watermark_closes_panes_that_end_by_it() -> None:
    buffer = PaneBuffer(PANE_MS, one_per_pane=False)
    buffer.add(rows_at(0, 10, 19, 20, 21, 29), 0, None)
    assert closed(buffer, None) == []
    assert closed(buffer, 9) == []
    assert closed(buffer, 20) == [(0, 1), (10, 2)]
    assert len(buffer) == 1
    assert closed(buffer, 29) == []
    assert closed(buffer, 30) == [(20, 3)]


def test_the_watermark_never_goes_back() -> None:
    buffer = PaneBuffer(PANE_MS, one_per_pane=False)
    buffer.close(55)
    assert buffer.closed_until_ms == 50
    buffer.close(20)
    buffer.close(None)
    assert buffer.closed_until_ms == 50


def test_late_records_count_in_the_oldest_pane_that_can_be_open() -> None:
    buffer = PaneBuffer(PANE_MS, one_per_pane=False)
    buffer.add(rows_at(5), 0, None)
    assert closed(buffer, 25) == [(0, 1)]
    assert buffer.closed_until_ms == 20
    buffer.add(rows_at(0, 12, 19, 20, 31), 1, None)
    assert buffer.late_records == 3
    assert closed(buffer, 40) == [(20, 4), (30, 1)]


def test_out_of_order_within_a_partition_is_not_late() -> None:
    buffer = PaneBuffer(PANE_MS, one_per_pane=False)
    buffer.add(rows_at(35), 0, None)
    buffer.close(35)
    buffer.add(rows_at(4, 38), 0, 35)
    assert buffer.late_records == 0
    assert closed(buffer, 40) == [(30, 3)]


def test_memory_is_bounded_where_the_watermark_is_held_back() -> None:
    buffer = PaneBuffer(PANE_MS, one_per_pane=False, max_open_entries=3)
    found = []
    for start in range(0, 1_000, PANE_MS):
        buffer.add(rows_at(start), 0, None)
        found += closed(buffer, 0)
        assert len(buffer) <= 3
    assert found == [(start, 1) for start in range(0, 970, PANE_MS)]
    assert buffer.closed_until_ms == 970
    buffer.add(rows_at(0), 1, None)
    assert buffer.late_records == 1
    assert closed(buffer, None) == [(970, 2)]


def test_a_pane_of_many_parts_counts_with_all_its_entries() -> None:
    buffer = PaneBuffer(PANE_MS, one_per_pane=False, max_open_entries=3)
    for partition in range(3):
        buffer.add(rows_at(1), partition, None)
    assert closed(buffer, None) == []
    buffer.add(rows_at(2), 3, None)
    assert closed(buffer, None) == [(0, 4)]
    assert len(buffer) == 0


@st.composite
def interleavings(draw: st.DrawFn) -> tuple[list[list[list[ScoredRow]]], list[int]]:
    """Partitions of segments of rows, in order of offset, and an order over partitions."""
    partitions = []
    for _ in range(draw(st.integers(1, 4))):
        rows = draw(ROWS.filter(bool))
        inner = draw(st.sets(st.integers(1, 29), max_size=4))
        edges = sorted({0, len(rows), *(edge for edge in inner if edge < len(rows))})
        partitions.append([rows[start:end] for start, end in pairwise(edges)])
    turns = [number for number, chain in enumerate(partitions) for _ in chain]
    return partitions, draw(st.permutations(turns))


def whole(partitions: list[list[list[ScoredRow]]], *, one_per_pane: bool) -> list[PlainPane]:
    """What closes when every partition is one segment and nothing is closed before the end."""
    buffer = PaneBuffer(PANE_MS, one_per_pane=one_per_pane)
    for number, chain in enumerate(partitions):
        rows = [row for segment in chain for row in segment]
        buffer.add(counts_of(rows, one_per_pane=one_per_pane), number, None)
    return [plain(pane) for pane in buffer.close_all()]


def latest(rows: list[ScoredRow], before: int | None) -> int:
    return max([row.time_ms for row in rows] + ([] if before is None else [before]))


@given(interleavings(), st.booleans())
def test_any_interleaving_closes_the_same_panes(
    problem: tuple[list[list[list[ScoredRow]]], list[int]], one_per_pane: bool
) -> None:
    partitions, turns = problem
    buffer = PaneBuffer(PANE_MS, one_per_pane=one_per_pane)
    marks: dict[int, int] = {}
    chains = [iter(chain) for chain in partitions]
    panes = []
    for number in turns:
        segment = next(chains[number])
        before = marks.get(number)
        buffer.add(counts_of(segment, one_per_pane=one_per_pane), number, before)
        marks[number] = latest(segment, before)
        known = len(marks) == len(partitions)
        panes += buffer.close(min(marks.values()) if known else None)
    panes += buffer.close_all()

    assert [plain(pane) for pane in panes] == whole(partitions, one_per_pane=one_per_pane)
    assert buffer.late_records == 0


@given(interleavings(), st.lists(st.none() | st.integers(-60, 160), min_size=20, max_size=20))
def test_whatever_the_watermark_nothing_is_lost_and_time_goes_on(
    problem: tuple[list[list[list[ScoredRow]]], list[int]], watermarks: list[int | None]
) -> None:
    partitions, turns = problem
    buffer = PaneBuffer(PANE_MS, one_per_pane=False)
    chains = [iter(chain) for chain in partitions]
    panes = []
    for number, watermark in zip(turns, watermarks, strict=False):
        buffer.add(counts_of(next(chains[number]), one_per_pane=False), number, None)
        panes += buffer.close(watermark)
    for chain in chains:
        for segment in chain:
            buffer.add(counts_of(segment, one_per_pane=False), 0, None)
    panes += buffer.close_all()

    rows = [row for chain in partitions for segment in chain for row in segment]
    assert sum(pane.records for pane in panes) == len(rows)
    assert sum(pane.flagged for pane in panes) == sum(row.flagged for row in rows)
    for key, name in enumerate(KEYS[1:], start=1):
        by_pane = [dict(zip(p.keys, p.key_records.tolist(), strict=True)) for p in panes]
        found = sum(counts.get(name, 0) for counts in by_pane)
        assert found == sum(row.key == key for row in rows)
    starts = [pane.start_ms for pane in panes]
    assert starts == sorted(set(starts))


@given(interleavings(), st.integers(0, 19), st.booleans())
def test_a_restored_buffer_goes_on_as_the_first_one(
    problem: tuple[list[list[list[ScoredRow]]], list[int]], stop: int, one_per_pane: bool
) -> None:
    partitions, turns = problem
    first = PaneBuffer(PANE_MS, one_per_pane=one_per_pane, max_open_entries=6)
    other = PaneBuffer(PANE_MS, one_per_pane=one_per_pane, max_open_entries=6)
    chains = [iter(chain) for chain in partitions]
    for turn, number in enumerate(turns):
        counts = counts_of(next(chains[number]), one_per_pane=one_per_pane)
        if turn == min(stop, len(turns) - 1):
            other.restore(first.open_parts(), first.closed_until_ms, first.late_records)
            assert len(other) == len(first)
        first.add(counts, number, None)
        found = first.close(turn)
        if turn >= min(stop, len(turns) - 1):
            other.add(counts, number, None)
            assert [plain(p) for p in other.close(turn)] == [plain(p) for p in found]
    assert [plain(p) for p in other.close_all()] == [plain(p) for p in first.close_all()]
    assert other.late_records == first.late_records
    assert other.closed_until_ms == first.closed_until_ms


def test_the_oldest_leave_while_the_rest_is_full() -> None:
    window = RollingWindow(size=3, pane_ms=10)
    assert window.state is None
    assert window.push(0, 2, 2) == WindowState(0, 10, 2, 2)
    assert not window.is_full
    assert window.push(10, 1, 0) == WindowState(0, 20, 3, 2)
    assert window.is_full
    assert window.push(20, 2, 1) == WindowState(10, 30, 3, 1)
    assert window.push(90, 9, 9) == WindowState(90, 100, 9, 9)
    assert window.state == WindowState(90, 100, 9, 9)
    assert window.state.fraction == 1.0
    assert window.panes == ((90, 9, 9),)


@given(PUSHES, st.integers(1, 12))
def test_the_window_is_the_shortest_full_tail(steps: list[tuple[int, int, int]], size: int) -> None:
    window = RollingWindow(size, 10)
    pushed: list[Push] = []
    for gap, records, flagged in steps:
        start = (pushed[-1][0] if pushed else 0) + gap * 10
        pushed.append((start, records, flagged))
        state = window.push(start, records, flagged)
        tails = [pushed[first:] for first in range(len(pushed))]
        full = [tail for tail in tails if sum(pane[1] for pane in tail) >= size]
        expected = full[-1] if full else pushed
        assert window.panes == tuple(expected)
        assert window.is_full == bool(full)
        assert state == window.state
        assert state == WindowState(
            expected[0][0],
            start + 10,
            sum(pane[1] for pane in expected),
            sum(pane[2] for pane in expected),
        )


@pytest.mark.parametrize(("records", "flagged"), [(0, 0), (1, 2), (1, -1)])
def test_a_pane_holds_records(records: int, flagged: int) -> None:
    window = RollingWindow(3, 10)
    with pytest.raises(ValueError, match="expected 0 <= flagged"):
        window.push(0, records, flagged)
    assert window.state is None


@pytest.mark.parametrize("arguments", [(0, 10), (10, 0)])
def test_a_window_refuses_nonsense(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RollingWindow(*arguments)


@pytest.mark.parametrize(("pane_ms", "entries"), [(0, 10), (10, 0)])
def test_a_buffer_refuses_nonsense(pane_ms: int, entries: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        PaneBuffer(pane_ms, one_per_pane=False, max_open_entries=entries)
