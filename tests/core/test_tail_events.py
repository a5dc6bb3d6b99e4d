import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core.tails import BIN_COUNT, EDGES, TAIL_EVENTS, TailEvent, bins_of, tail_counts


def counted(p_values: list[float], events: tuple[TailEvent, ...]) -> list[int]:
    bins = np.bincount(bins_of(np.array(p_values)), minlength=BIN_COUNT)
    found: list[int] = tail_counts(bins, events).tolist()
    return found


def test_an_edge_belongs_to_the_bin_below_it() -> None:
    edges = np.array(EDGES)
    assert bins_of(edges).tolist() == list(range(BIN_COUNT - 1))
    assert bins_of(np.nextafter(edges, 1)).tolist() == list(range(1, BIN_COUNT))
    assert bins_of(np.array([[0.001, 1.0]])).tolist() == [[0, BIN_COUNT - 1]]
    assert bins_of(edges).dtype == np.int64


def test_counts_by_hand() -> None:
    p_values = [0.001, 0.02, 0.05, 0.051, 0.3, 0.5, 0.75, 0.81, 0.95, 0.99, 1.0]
    low = {0.02: 2, 0.05: 3, 0.1: 4, 0.2: 4, 0.5: 6}
    high = {0.5: 5, 0.8: 4, 0.9: 3, 0.95: 2, 0.98: 2}
    assert dict(zip(TAIL_EVENTS, counted(p_values, TAIL_EVENTS), strict=True)) == {
        **{TailEvent(edge, upper=False): count for edge, count in low.items()},
        **{TailEvent(edge, upper=True): count for edge, count in high.items()},
    }


@given(st.lists(st.sampled_from(EDGES) | st.floats(0.001, 1), max_size=30))
def test_counts_are_what_the_events_say(p_values: list[float]) -> None:
    expected = [
        sum(p > event.edge if event.upper else p <= event.edge for p in p_values)
        for event in TAIL_EVENTS
    ]
    assert counted(p_values, TAIL_EVENTS) == expected


@given(st.lists(st.integers(0, 9), min_size=BIN_COUNT, max_size=BIN_COUNT))
def test_the_tails_of_an_edge_are_complementary(bins: list[int]) -> None:
    lower = tuple(TailEvent(edge, upper=False) for edge in EDGES)
    upper = tuple(TailEvent(edge, upper=True) for edge in EDGES)
    total = tail_counts(np.array(bins), lower) + tail_counts(np.array(bins), upper)
    assert total.tolist() == [sum(bins)] * len(EDGES)


def test_leading_axes_are_kept() -> None:
    bins = np.arange(6 * BIN_COUNT).reshape(2, 3, BIN_COUNT)
    counts = tail_counts(bins, TAIL_EVENTS)
    assert counts.shape == (2, 3, len(TAIL_EVENTS))
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts[1, 2], tail_counts(bins[1, 2], TAIL_EVENTS))
    assert tail_counts(bins, ()).shape == (2, 3, 0)


def test_there_are_no_other_edges() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        tail_counts(np.zeros(BIN_COUNT, np.int64), (TailEvent(0.3, upper=True),))


def test_events_read_well() -> None:
    assert str(TailEvent(0.05, upper=False)) == "p-value at most 0.05"
    assert str(TailEvent(0.95, upper=True)) == "p-value above 0.95"
    assert {event.upper for event in TAIL_EVENTS if event.edge == 0.5} == {True, False}
