import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core.windows import Pane, RollingWindow, WindowState, merge_panes, panes_of

PANES = st.builds(
    lambda start, records, flagged: Pane(start * 10, records, min(flagged, records)),
    st.integers(0, 20),
    st.integers(1, 5),
    st.integers(0, 5),
)
GROUPS = st.lists(PANES, max_size=8).map(tuple)


def test_panes_of_by_hand() -> None:
    panes = panes_of([100, 205, 199, 250], [True, False, False, True], 100)
    assert panes == (Pane(100, 2, 1), Pane(200, 2, 1))


@pytest.mark.parametrize(("records", "flagged"), [(0, 0), (1, 2), (1, -1)])
def test_a_pane_holds_records(records: int, flagged: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= flagged"):
        Pane(0, records, flagged)


def test_merge_by_hand() -> None:
    merged = merge_panes([Pane(20, 1, 1), Pane(10, 3, 0)], [Pane(20, 2, 0)])
    assert merged == (Pane(10, 3, 0), Pane(20, 3, 1))


@given(GROUPS, GROUPS)
def test_merge_is_commutative(first: tuple[Pane, ...], second: tuple[Pane, ...]) -> None:
    assert merge_panes(first, second) == merge_panes(second, first)


@given(GROUPS, GROUPS, GROUPS)
def test_merge_is_associative(
    first: tuple[Pane, ...], second: tuple[Pane, ...], third: tuple[Pane, ...]
) -> None:
    left = merge_panes(merge_panes(first, second), third)
    assert left == merge_panes(first, merge_panes(second, third))
    assert left == merge_panes(first, second, third)


@given(st.lists(st.tuples(st.integers(0, 500), st.booleans()), max_size=40), st.integers(0, 40))
def test_merge_of_parts_is_the_whole(rows: list[tuple[int, bool]], cut: int) -> None:
    def panes(part: list[tuple[int, bool]]) -> tuple[Pane, ...]:
        return panes_of((time for time, _ in part), (flag for _, flag in part), 10)

    assert merge_panes(panes(rows[:cut]), panes(rows[cut:])) == panes(rows)


def test_the_watermark_closes_panes_that_end_by_it() -> None:
    window = RollingWindow(size=100, pane_ms=10)
    window.add([Pane(0, 1, 0), Pane(10, 2, 1), Pane(20, 4, 0)])
    assert window.close(None) == []
    assert window.close(9) == []
    assert window.close(20) == [WindowState(0, 10, 1, 0), WindowState(0, 20, 3, 1)]
    assert window.open_panes == 1
    assert window.state == WindowState(0, 20, 3, 1)
    assert window.close(20) == []


def test_the_oldest_leave_while_the_rest_is_full() -> None:
    window = RollingWindow(size=3, pane_ms=10)
    window.add([Pane(0, 2, 2), Pane(10, 1, 0), Pane(20, 2, 1), Pane(30, 9, 9)])
    assert window.close_all() == [
        WindowState(0, 10, 2, 2),
        WindowState(0, 20, 3, 2),
        WindowState(10, 30, 3, 1),
        WindowState(30, 40, 9, 9),
    ]


def test_open_panes_take_more_and_closed_ones_do_not() -> None:
    window = RollingWindow(size=10, pane_ms=10)
    window.add([Pane(0, 1, 0)])
    window.add([Pane(20, 1, 0), Pane(0, 1, 1)])
    assert window.close(20) == [WindowState(0, 10, 2, 1)]
    assert window.late_records == 0
    window.add([Pane(0, 3, 2), Pane(10, 1, 0)])
    assert window.late_records == 4
    assert window.close(30) == [WindowState(0, 30, 7, 3)]


def test_a_watermark_without_records_makes_late_ones_too() -> None:
    window = RollingWindow(size=10, pane_ms=10)
    window.close(55)
    assert window.closed_until_ms == 50
    window.add([Pane(40, 1, 0), Pane(50, 1, 0)])
    assert window.late_records == 1
    assert window.close(60) == [WindowState(50, 60, 2, 0)]


def test_the_watermark_never_goes_back() -> None:
    window = RollingWindow(size=10, pane_ms=10)
    window.close(50)
    window.close(20)
    assert window.closed_until_ms == 50


def test_memory_is_bounded_where_the_watermark_is_held_back() -> None:
    window = RollingWindow(size=5, pane_ms=10, max_open_panes=3)
    states = []
    for start in range(0, 1_000, 10):
        window.add([Pane(start, 1, 0)])
        states += window.close(0)
        assert window.open_panes <= 3
    assert len(states) == 97
    assert states[-1] == WindowState(920, 970, 5, 0)


@given(GROUPS, st.integers(1, 12))
def test_the_window_is_the_shortest_full_tail(panes: tuple[Pane, ...], size: int) -> None:
    window = RollingWindow(size, 10)
    window.add(panes)
    merged = merge_panes(panes)
    states = window.close_all()
    assert len(states) == len(merged)
    for closed, state in enumerate(states, start=1):
        tails = [merged[start:closed] for start in range(closed)]
        full = [tail for tail in tails if sum(pane.records for pane in tail) >= size]
        expected = full[-1] if full else tails[0]
        assert state == WindowState(
            expected[0].start_ms,
            expected[-1].start_ms + 10,
            sum(pane.records for pane in expected),
            sum(pane.flagged for pane in expected),
        )


@st.composite
def interleavings(draw: st.DrawFn) -> tuple[list[list[Pane]], list[int]]:
    """Panes of some partitions, each in order of time, and an order over partitions."""
    partitions = draw(st.lists(st.lists(PANES, min_size=1, max_size=8), min_size=1, max_size=4))
    ordered = [sorted(panes, key=lambda pane: pane.start_ms) for panes in partitions]
    turns = [number for number, panes in enumerate(ordered) for _ in panes]
    return ordered, draw(st.permutations(turns))


@given(interleavings(), st.integers(1, 12))
def test_any_interleaving_gives_the_same_states(
    problem: tuple[list[list[Pane]], list[int]], size: int
) -> None:
    partitions, turns = problem
    whole = RollingWindow(size, 10)
    whole.add(pane for panes in partitions for pane in panes)
    expected = whole.close_all()

    window = RollingWindow(size, 10)
    marks: list[int | None] = [None] * len(partitions)
    taken = [iter(panes) for panes in partitions]
    states = []
    for number in turns:
        pane = next(taken[number])
        window.add([pane])
        marks[number] = pane.start_ms
        known = [mark for mark in marks if mark is not None]
        states += window.close(min(known) if len(known) == len(marks) else None)
    states += window.close_all()

    assert states == expected
    assert window.late_records == 0


@pytest.mark.parametrize("arguments", [(0, 10, 10), (10, 0, 10), (10, 10, 0)])
def test_refuses_nonsense(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RollingWindow(*arguments)
