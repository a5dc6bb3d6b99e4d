import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta, kstest

from nap_stream.core.bounds import upper_flag_rate
from nap_stream.core.conformal import ConformalTest, Rule, tail_law
from nap_stream.core.tails import (
    BIN_COUNT,
    EDGES,
    TAIL_EVENTS,
    FlagRateLaw,
    Sides,
    TailEvent,
    bins_of,
    tail_counts,
)


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


LOW, HIGH = TailEvent(0.2, upper=False), TailEvent(0.8, upper=True)
NINETEEN = np.arange(1.0, 20.0)


def tied(*runs: tuple[float, int]) -> NDArray[np.float64]:
    """Each value so many times."""
    return np.repeat([value for value, _ in runs], [count for _, count in runs])


@pytest.mark.parametrize(
    ("event", "two_sided", "law"),
    [
        (LOW, False, FlagRateLaw(4, 19)),
        (LOW, True, FlagRateLaw(4, 19)),
        (HIGH, False, FlagRateLaw(4, 19)),
        (HIGH, True, FlagRateLaw(4, 19)),
        (TailEvent(0.05, upper=False), False, FlagRateLaw(1, 19)),
        (TailEvent(0.05, upper=False), True, None),
        (TailEvent(0.95, upper=True), False, FlagRateLaw(1, 19)),
        (TailEvent(0.95, upper=True), True, FlagRateLaw(2, 19)),
        (TailEvent(0.02, upper=False), False, None),
    ],
)
def test_laws_by_hand(event: TailEvent, *, two_sided: bool, law: FlagRateLaw | None) -> None:
    assert tail_law(event, NINETEEN, two_sided=two_sided) == law


@pytest.mark.parametrize(
    ("scores", "two_sided", "law"),
    [
        # The 16th of 19 is the edge: 13 scores are below its tie, or all but itself.
        (tied((1, 10), (2, 3), (3, 4), (4, 2)), False, FlagRateLaw(7, 19)),
        (tied((1, 15), (2, 4)), False, FlagRateLaw(5, 19)),
        (tied((1, 15), (2, 1), (3, 3)), False, FlagRateLaw(4, 19)),
        (tied((1, 19)), False, None),
        # The 8th from either end: 5 are below the lower tie, 6 above the upper.
        (tied((1, 5), (2, 3), (3, 3), (4, 2), (5, 6)), True, FlagRateLaw(9, 19)),
        (tied((1, 7), (2, 1), (3, 11)), True, FlagRateLaw(12, 19)),
        (tied((1, 19)), True, None),
    ],
)
def test_ties_make_the_high_tail_larger(
    scores: NDArray[np.float64], *, two_sided: bool, law: FlagRateLaw | None
) -> None:
    assert tail_law(HIGH, scores, two_sided=two_sided) == law


def test_a_conformal_test_has_the_laws_of_its_groups() -> None:
    """Of 19 images each, and of 39; one that is tied, and one that cannot have p <= 0.02."""
    scores = np.concatenate([NINETEEN, NINETEEN, tied((1, 31), (2, 8)), np.arange(99.0)])
    class_id = np.repeat([0, 1, 2, 3], [19, 19, 39, 99])
    laws = ConformalTest(Rule(0.1, per_class=True), scores, class_id, 4).tail_laws()
    by_event = dict(zip(map(str, TAIL_EVENTS), laws, strict=True))
    assert by_event["p-value at most 0.02"] == ()
    assert by_event["p-value at most 0.2"] == (
        FlagRateLaw(4, 19),
        FlagRateLaw(8, 39),
        FlagRateLaw(20, 99),
    )
    assert by_event["p-value above 0.9"] == (
        FlagRateLaw(2, 19),
        FlagRateLaw(9, 39),
        FlagRateLaw(10, 99),
    )
    assert by_event["p-value above 0.5"] == ()


def draws(
    population: NDArray[np.float64], size: int, sides: Sides, count: int
) -> tuple[NDArray[np.float64], list[tuple[tuple[FlagRateLaw, ...], ...]]]:
    """Calibrations of a population: each with the true rates of all events, and their laws.

    Args:
        population: float64 (n,), scores that are equally likely.
        size: Of a calibration set.
        sides: Of the rule.
        count: Calibrations.

    Returns:
        float64 (count, len(TAIL_EVENTS)), and the laws of each.
    """
    rng = np.random.default_rng(5)
    rates, laws = [], []
    for _ in range(count):
        scores = rng.choice(population, size)
        test = ConformalTest(Rule(0.1, sides), scores, np.zeros(size, dtype=np.int64), 1)
        p = test.p_values(population, np.zeros(len(population), dtype=np.int64))
        bins = np.bincount(bins_of(p), minlength=BIN_COUNT)
        rates.append(tail_counts(bins, TAIL_EVENTS) / len(population))
        laws.append(test.tail_laws())
    return np.array(rates), laws


@pytest.mark.parametrize("sides", Sides)
def test_rates_of_continuous_scores_have_these_laws(sides: Sides) -> None:
    population = np.linspace(-1, 1, 20_001)
    rates, all_laws = draws(population, 199, sides, 500)
    for column, (law,) in enumerate(all_laws[0]):
        k, m = law.flag_rank, law.size
        assert kstest(rates[:, column], beta(k, m + 1 - k).cdf).pvalue > 0.01
        assert rates[:, column].mean() == pytest.approx(k / (m + 1), rel=0.1)


POPULATIONS = {
    "few values": np.arange(5.0),
    "rounded": np.round(np.random.default_rng(0).normal(size=2_000), 1),
    "saturated": np.minimum(np.linspace(0, 1.6, 2_000), 1.0),
    "both ends": np.clip(np.linspace(-0.3, 1.2, 2_000), 0.0, 1.0),
}


@pytest.mark.parametrize("sides", Sides)
@pytest.mark.parametrize("population", POPULATIONS.values(), ids=POPULATIONS)
def test_rates_of_tied_scores_stay_below_the_quantile_of_their_law(
    population: NDArray[np.float64], sides: Sides
) -> None:
    count, confidence = 1_000, 0.9
    rates, all_laws = draws(population, 99, sides, count)
    exceeded = np.zeros(len(TAIL_EVENTS))
    for found, laws in zip(rates, all_laws, strict=True):
        for event, of_event in enumerate(laws):
            highest = [upper_flag_rate(law.flag_rank, law.size, confidence) for law in of_event]
            exceeded[event] += found[event] > max(highest, default=1)
    # Three standard errors.
    allowed = (1 - confidence) + 3 * np.sqrt(confidence * (1 - confidence) / count)
    assert (exceeded / count).max() <= allowed


@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=150),
    st.sampled_from(TAIL_EVENTS),
    st.booleans(),
)
def test_ties_leave_low_tails_as_they_are_and_raise_high_ones(
    values: list[int], event: TailEvent, two_sided: bool
) -> None:
    ascending = np.sort(np.array(values, dtype=np.float64))
    apart = np.arange(float(len(values)))
    law, without_ties = (tail_law(event, s, two_sided=two_sided) for s in (ascending, apart))
    if not event.upper or without_ties is None:
        assert law == without_ties
    elif law is not None:
        assert law >= without_ties
