import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from nap_stream.core.blocks import (
    Blocks,
    added_up,
    block_means,
    blocks_of,
    coarser,
    effect,
    shift,
    stream_blocks,
)
from nap_stream.core.panes import NO_KEY
from nap_stream.core.tails import BIN_COUNT, bins_of
from tests.support.blocks import block_statistics
from tests.support.closed_panes import ROWS, ScoredRow, counts_of

BLOCK_MS = 100
DAY_MS = 86_400_000


def bins(*places: int) -> NDArray[np.int64]:
    return np.bincount(places, minlength=BIN_COUNT).astype(np.int64)


def entries(blocks: Blocks) -> list[tuple[str, int, int, int, list[int]]]:
    rows = zip(
        blocks.key.tolist(),
        blocks.start_ms.tolist(),
        blocks.records.tolist(),
        blocks.flagged.tolist(),
        blocks.bins.tolist(),
        strict=True,
    )
    return [(blocks.keys[key], *rest) for key, *rest in rows]


def stretch(shares: list[tuple[int, int]], block_ms: int = BLOCK_MS) -> Blocks:
    """Blocks of the whole stream, from (records, flagged) of each."""
    counts = np.zeros((len(shares), 2 + BIN_COUNT), dtype=np.int64)
    counts[:, :2] = shares
    counts[:, 2], counts[:, -1] = counts[:, 1], counts[:, 0] - counts[:, 1]
    times = np.arange(len(shares)) * block_ms
    return added_up(np.zeros(len(shares), np.int64), times, counts, (NO_KEY,), block_ms)


def test_records_count_for_their_key_and_for_the_stream() -> None:
    first = counts_of(
        [ScoredRow(10, 0.01, flagged=True, key=1), ScoredRow(20, 0.3, flagged=False, key=0)],
        one_per_pane=False,
    )
    second = counts_of(
        [ScoredRow(90, 0.3, flagged=False, key=1), ScoredRow(110, 0.99, flagged=False, key=2)],
        one_per_pane=False,
    )
    assert entries(blocks_of([first, second], BLOCK_MS)) == [
        (NO_KEY, 0, 3, 1, bins(0, 4, 4).tolist()),
        (NO_KEY, 100, 1, 0, bins(9).tolist()),
        ("left", 0, 2, 1, bins(0, 4).tolist()),
        ("right", 100, 1, 0, bins(9).tolist()),
    ]


def test_without_records_there_are_no_blocks() -> None:
    none = blocks_of([], BLOCK_MS)
    assert (len(none), none.keys) == (0, (NO_KEY,))
    assert block_means(none).shape == (0, 3)


@given(st.lists(ROWS, max_size=3), st.integers(1, 4))
def test_longer_blocks_are_sums_of_shorter_ones(parts: list[list[ScoredRow]], times: int) -> None:
    counts = [counts_of(rows, one_per_pane=False) for rows in parts]
    short = blocks_of(counts, 20)
    assert short.records[short.key == 0].sum() == sum(int(c.records.sum()) for c in counts)
    assert entries(coarser(short, 20 * times)) == entries(blocks_of(counts, 20 * times))


def test_a_length_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 100 ms, got 150"):
        coarser(stretch([(10, 1)]), 150)


@pytest.mark.parametrize("keys", [(), ("a",), (NO_KEY, "b", "a")])
def test_the_stream_comes_first_among_sorted_keys(keys: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="sorted keys, the stream's first"):
        added_up(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 12), int), keys, 1)


def test_blocks_stand_once_and_in_order() -> None:
    one = stretch([(10, 1), (10, 1)])
    with pytest.raises(ValueError, match="by key and time, each once"):
        Blocks(one.key, one.start_ms[::-1], one.records, one.flagged, one.bins, one.keys, BLOCK_MS)


def test_statistics_by_hand() -> None:
    # Two records at p = 0.01, one at 0.99 (the middle of its bin): n = 3, b = 6, m = 3.
    found = block_statistics(
        np.array([3]),
        np.array([2]),
        bins(0, 0, 9)[np.newaxis],
        np.array([[0.1, 1.0, 1.0]]),
        np.array([6.0]),
    )
    low = -2 * np.log(0.01) - np.log(0.99)
    high = -2 * np.log(0.99) - np.log(0.01)
    np.testing.assert_allclose(found, [[1.7 / 9, (low - 3) / 9, (high - 3) / 9]])


def test_a_block_of_one_record_is_not_extreme() -> None:
    # Against blocks of 100 records with 5 % flagged, of which 9 % would be far out.
    center, prior = np.array([[0.05, 1.0, 1.0]]), np.array([100.0])
    one = block_statistics(np.array([1]), np.array([1]), bins(0)[np.newaxis], center, prior)
    full = np.array([100]), np.array([9]), bins(*[0] * 9, *[4] * 91)[np.newaxis]
    assert one[0, 0] == pytest.approx(0.95 / 101)
    assert one[0, 0] < block_statistics(*full, center, prior)[0, 0]


@given(
    st.lists(st.integers(0, 50), min_size=BIN_COUNT, max_size=BIN_COUNT).filter(any),
    st.integers(0, 50),
    st.floats(1, 1_000),
)
def test_more_records_than_usual_do_not_weigh_more(
    counts: list[int], flagged: int, prior: float
) -> None:
    center = np.array([[0.1, 1.0, 1.0]])

    def statistics(times: int) -> NDArray[np.float64]:
        one = np.array([counts]) * times
        flags = np.array([min(flagged, sum(counts)) * times])
        return block_statistics(one.sum(axis=1), flags, one, center, np.array([prior]))

    beyond = int(np.ceil(prior / sum(counts)))
    np.testing.assert_allclose(statistics(10 * beyond), statistics(beyond), rtol=1e-9, atol=1e-12)


def test_the_effect_by_hand() -> None:
    # Shares 0.1 and 0.3, then 0.4 and 0.6, of equal blocks: errors sqrt(0.02 / 2) each.
    found = effect(stretch([(10, 1), (10, 3)]), stretch([(10, 4), (10, 6)]))
    assert found.share == pytest.approx(0.5)
    assert found.baseline_share == pytest.approx(0.2)
    assert found.difference == pytest.approx(0.3)
    # Welch: 2 degrees of freedom, t = 4.3027.
    assert found.high - found.difference == pytest.approx(4.302653 * np.sqrt(0.02), rel=1e-6)
    assert found.difference - found.low == pytest.approx(found.high - found.difference)
    assert (found.units, found.baseline_units, found.unit_ms) == (2, 2, BLOCK_MS)


def test_the_effect_is_of_days_where_there_are_a_week_of_them() -> None:
    hour = DAY_MS // 24
    week = stretch([(10, 1 + day % 2) for day in range(7) for _ in range(24)], hour)
    found = effect(week, week)
    assert (found.units, found.unit_ms) == (7, DAY_MS)
    # The 24 blocks of a day are alike: as blocks, the interval would be some 5 times shorter.
    shares = np.array([0.1 + 0.1 * (day % 2) for day in range(7)])
    error = np.sqrt(2 * shares.var(ddof=1) / 7)
    assert found.high == pytest.approx(2.178813 * error, rel=1e-4)


def test_one_block_has_no_spread_and_none_no_share() -> None:
    one = stretch([(10, 1)])
    assert (effect(one, one).low, effect(one, one).high) == (-np.inf, np.inf)
    with pytest.raises(ValueError, match="no blocks of 'a'"):
        effect(one, one, "a")


def test_a_stretch_without_a_flag_may_have_some() -> None:
    # No flag in 12 blocks, then in 3: the rule of three, -ln 0.05 / 12 and / 3.
    none, few = stretch([(10, 0)] * 12), stretch([(10, 0)] * 3)
    found = effect(none, few)
    assert (found.low, found.high) == pytest.approx((-2.995732 / 12, 2.995732 / 3))
    every = effect(stretch([(10, 10)] * 12), stretch([(10, 10)] * 3))
    assert (every.low, every.high) == pytest.approx((-2.995732 / 3, 2.995732 / 12))
    # Flags in some blocks have a spread, which speaks for them.
    mixed = effect(stretch([(10, 1), (10, 3)]), few)
    assert mixed.high > mixed.difference + 0.9


def shares(*rows: list[int]) -> Blocks:
    """Blocks of the stream, from the records in the first bins of each."""
    whole = [row + [0] * (BIN_COUNT - len(row)) for row in rows]
    counts = np.array(whole, dtype=np.int64).reshape(-1, BIN_COUNT)
    records, times = counts.sum(axis=1), np.arange(len(rows)) * BLOCK_MS
    return stream_blocks(times, records, counts[:, 0], BLOCK_MS, counts)


def test_the_shift_by_hand() -> None:
    # Three of four pairs have a smaller p-value in the later stretch, the fourth is a tie: 7/8.
    found = shift(shares([0, 1], [0, 0, 1]), shares([1], [0, 1]))
    assert found.probability == pytest.approx(0.875)
    assert (found.units, found.baseline_units, found.unit_ms) == (2, 2, BLOCK_MS)
    # Placements of the later records are 1 and 0.75, of the others 0.75 and 1.
    half = 4.302653 * np.sqrt(2 * np.var([0.75, 1], ddof=1) / 2)
    assert (found.low, found.high) == pytest.approx((0.875 - half, 1.0), rel=1e-6)


def test_a_shift_of_one_unit_is_unsure_and_of_one_side_too() -> None:
    one = shares([1, 2, 3])
    assert (shift(one, one).probability, shift(one, one).low, shift(one, one).high) == (0.5, 0, 1)
    least = shift(shares(*[[0, 5]] * 10), shares(*[[5]] * 10))
    assert (least.probability, least.high) == (1, 1)
    assert least.low == pytest.approx(1 - 2.995732 / 10)
    with pytest.raises(ValueError, match="no blocks"):
        shift(one, shares())


BINNED = st.lists(
    st.lists(st.integers(0, 9), min_size=BIN_COUNT, max_size=BIN_COUNT).filter(any),
    min_size=1,
    max_size=4,
)


@given(BINNED, BINNED)
def test_the_shift_is_that_of_scipy_and_its_opposite(
    first: list[list[int]], second: list[list[int]]
) -> None:
    values = [np.repeat(np.arange(BIN_COUNT), np.sum(part, axis=0)) for part in (first, second)]
    found = shift(shares(*first), shares(*second))
    pairs = len(values[0]) * len(values[1])
    assert found.probability == pytest.approx(mannwhitneyu(values[0], values[1]).statistic / pairs)
    back = shift(shares(*second), shares(*first))
    assert back.probability == pytest.approx(1 - found.probability)
    assert (back.low, back.high) == pytest.approx((1 - found.high, 1 - found.low))


def test_the_intervals_of_dependent_days_hold_what_they_say() -> None:
    """Days of one camera each differ: 95 % intervals of no change hold 0 and 0.5 so often."""
    random = np.random.default_rng(5)
    held, runs, days = np.zeros(2), 400, 10

    def some_days() -> Blocks:
        level = random.normal(0, 0.5, days)
        p = 1 / (1 + np.exp(-(level[:, np.newaxis] + random.logistic(size=(days, 200)))))
        counts = np.array([np.bincount(bins_of(row), minlength=BIN_COUNT) for row in p])
        times = np.arange(days) * DAY_MS
        return stream_blocks(times, counts.sum(axis=1), counts[:, 0], DAY_MS, counts)

    for _ in range(runs):
        first, second = some_days(), some_days()
        share, order = effect(first, second), shift(first, second)
        held += share.low <= 0 <= share.high, order.low <= 0.5 <= order.high
    assert held.min() / runs > 0.92
