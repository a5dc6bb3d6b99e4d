import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core.panes import NO_KEY, PaneBuffer, PaneCounts, count_panes
from nap_stream.planning.recorded import merged

KEYS = (NO_KEY, "a", "b")
rows = st.lists(st.tuples(st.integers(0, 60), st.floats(0, 1), st.integers(0, 2)), max_size=12)


def counted(part: list[tuple[int, float, int]], *, one_per_pane: bool) -> PaneCounts:
    p_values = np.array([p for _, p, _ in part], np.float64)
    return count_panes(
        np.array([time for time, _, _ in part], np.int64),
        p_values,
        p_values <= 0.05,
        pane_ms=10,
        keys=KEYS,
        key=np.array([key for _, _, key in part], np.int64),
        one_per_pane=one_per_pane,
    )


@given(st.lists(rows, min_size=1, max_size=3), st.booleans())
def test_panes_are_those_that_the_monitor_closes(
    parts: list[list[tuple[int, float, int]]], one_per_pane: bool
) -> None:
    counts = [counted(part, one_per_pane=one_per_pane) for part in parts]
    buffer = PaneBuffer(10, one_per_pane=one_per_pane)
    for number, part in enumerate(counts):
        buffer.add(part, number, None)
    closed = buffer.close_all()

    stretch = merged(counts, 10, one_per_pane=one_per_pane)

    assert stretch.panes.start_ms.tolist() == [pane.start_ms for pane in closed]
    assert stretch.panes.records.tolist() == [pane.records for pane in closed]
    assert stretch.panes.flagged.tolist() == [pane.flagged for pane in closed]
    assert stretch.panes.bins.tolist() == [pane.bins.tolist() for pane in closed]
    for number, key in enumerate(stretch.keys):
        of_key = slice(*stretch.key_start[number : number + 2].tolist())
        assert list(
            zip(
                stretch.by_key.start_ms[of_key].tolist(),
                stretch.by_key.records[of_key].tolist(),
                stretch.by_key.flagged[of_key].tolist(),
                strict=True,
            )
        ) == [
            (pane.start_ms, pane.key_records[at], pane.key_flagged[at])
            for pane in closed
            if key in pane.keys and (at := pane.keys.index(key)) >= 0
        ]
    assert set(stretch.keys) == {key for pane in closed for key in pane.keys}


def test_keys_and_the_span_are_counted() -> None:
    part = [(0, 0.01, 1), (5, 0.5, 1), (31, 0.02, 2), (33, 0.9, 0)]
    stretch = merged([counted(part, one_per_pane=False)], 10, one_per_pane=False)

    assert (stretch.records, stretch.flagged, stretch.first_ms, stretch.last_ms) == (4, 2, 0, 40)
    assert stretch.keys == ("a", "b")
    assert [counts.tolist() for counts in stretch.key_counts()] == [[2, 1], [1, 1]]


@pytest.mark.parametrize("one_per_pane", [False, True])
def test_without_keys_there_are_none(one_per_pane: bool) -> None:
    p_values = np.array([0.5, 0.01])
    part = count_panes(np.array([3, 4]), p_values, p_values < 0.05, pane_ms=10)
    stretch = merged([part], 10, one_per_pane=one_per_pane)

    assert (stretch.keys, len(stretch.by_key), stretch.key_start.tolist()) == ((), 0, [0])
    assert stretch.panes.records.tolist() == [2]
