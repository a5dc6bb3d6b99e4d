import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter

from nap_stream.core.blocks import Blocks, added_up, coarser
from nap_stream.core.decorrelation import (
    BLOCK_GRID_MS,
    DECORRELATION_TIMES,
    choose_block_ms,
    decorrelation_panes,
    neighbour_correlation,
    settle_blocks,
)
from nap_stream.core.panes import NO_KEY
from nap_stream.core.tails import BIN_COUNT
from nap_stream.core.time_kinds import DAY_MS, HOUR_MS, TimeKinds

SECOND_MS = 1_000


def autoregressive(phi: float, size: int, seed: int) -> NDArray[np.float64]:
    noise = np.random.default_rng(seed).standard_normal(size) * np.sqrt(1 - phi**2)
    noise[0] /= np.sqrt(1 - phi**2)
    values: NDArray[np.float64] = lfilter([1.0], [1.0, -phi], noise)
    return values


def cameras(flagged: NDArray[np.int64], records: int, pane_ms: int, every: int = 1) -> Blocks:
    """Blocks of a pane, from the flagged records int64 (K, P) of each key."""
    keys, size = flagged.shape
    table = np.zeros((keys + 1, size, 2 + BIN_COUNT), dtype=np.int64)
    table[1:, :, 0], table[1:, :, 1] = records, flagged
    table[1:, :, 2], table[1:, :, 6] = flagged, records - flagged
    table[0] = table[1:].sum(axis=0)
    names = (NO_KEY, *(f"key-{i:02}" for i in range(keys)))
    times = np.tile(np.arange(size) * pane_ms * every, keys + 1)
    return added_up(
        np.repeat(np.arange(keys + 1), size), times, table.reshape(-1, 12), names, pane_ms
    )


def independent(keys: int, panes: int, records: int, seed: int = 1) -> NDArray[np.int64]:
    return np.random.default_rng(seed).binomial(records, 0.1, (keys, panes))


def slow(keys: int, panes: int, records: int, phi: float, seed: int = 1) -> NDArray[np.int64]:
    rows = [autoregressive(phi, panes, seed + key) for key in range(keys)]
    return np.clip(np.rint(records * (0.5 + 0.15 * np.array(rows))), 0, records).astype(np.int64)


@pytest.mark.parametrize(("phi", "expected"), [(0.0, 1.0), (0.5, 3.0), (0.9, 19.0)])
def test_the_time_of_an_autoregression(phi: float, expected: float) -> None:
    """(1 + phi) / (1 - phi) panes."""
    series = [(np.arange(5_000), autoregressive(phi, 5_000, seed)) for seed in range(4)]
    assert decorrelation_panes(series) == pytest.approx(expected, rel=0.15)


def test_gaps_are_no_data() -> None:
    rng = np.random.default_rng(1)
    series = []
    for seed in range(4):
        kept = np.sort(rng.choice(10_000, 6_000, replace=False))
        series.append((kept + 77, autoregressive(0.9, 10_000, seed)[kept]))
    assert decorrelation_panes(series) == pytest.approx(19, rel=0.15)


def test_keys_count_by_their_variance() -> None:
    fast = [(np.arange(5_000), 0.1 * autoregressive(0.0, 5_000, seed)) for seed in range(20)]
    one = (np.arange(5_000), autoregressive(0.9, 5_000, 99))
    assert decorrelation_panes([*fast, one]) > 10
    assert decorrelation_panes(fast) < 1.5


def test_where_nothing_varies_the_time_is_one_pane() -> None:
    assert decorrelation_panes([]) == 1
    assert decorrelation_panes([(np.arange(9), np.full(9, 0.3)), (np.arange(1), np.ones(1))]) == 1
    # The mean of these is not quite the value.
    assert decorrelation_panes([(np.arange(777), np.full(777, 0.1))]) == 1


def test_independent_records_ask_for_short_blocks() -> None:
    blocks = cameras(independent(4, 5_000, 3), 3, SECOND_MS)
    found = choose_block_ms(blocks, TimeKinds())
    # 20 records are 7 s, ten panes 10 s, and a thousandth of the stretch 5 s.
    assert (found.block_ms, found.reason, found.settled) == (10_000, "decorrelation", True)
    assert (found.median_records, found.median_blocks) == (30, 500)
    assert found.decorrelation_ms == pytest.approx(SECOND_MS, rel=0.2)


def test_few_records_ask_for_longer_ones() -> None:
    blocks = cameras(independent(4, 3_000, 1), 1, SECOND_MS, every=10)
    found = choose_block_ms(blocks, TimeKinds())
    # One in 10 s: ten panes of 10 s hold 10 records, 20 take 200 s.
    assert (found.block_ms, found.reason) == (300_000, "records")
    assert found.median_records == 30


def test_a_long_stretch_asks_for_longer_ones() -> None:
    blocks = cameras(independent(1, 5_000, 100), 100, 60_000)
    found = choose_block_ms(blocks, TimeKinds())
    assert (found.block_ms, found.reason) == (600_000, "decorrelation")
    half = cameras(independent(1, 30_000, 100), 100, 60_000)
    assert choose_block_ms(half, TimeKinds()).reason == "blocks"
    assert choose_block_ms(half, TimeKinds()).block_ms == 1_800_000


def test_dependent_records_ask_for_ten_decorrelation_times() -> None:
    blocks = cameras(slow(4, 20_000, 10, 0.9), 10, SECOND_MS)
    found = choose_block_ms(blocks, TimeKinds())
    assert found.block_ms >= DECORRELATION_TIMES * found.decorrelation_ms
    assert found.decorrelation_ms == pytest.approx(19_000, rel=0.25)
    assert found.block_ms in BLOCK_GRID_MS
    assert found.correlation <= found.correlation_limit


def test_a_slow_component_under_noise_asks_for_more() -> None:
    """Of a pane it is a hundredth of the variance, and of a block of minutes nearly all."""
    rng = np.random.default_rng(3)
    slowly = np.array([autoregressive(0.999, 40_000, seed) for seed in range(4)])
    flagged = rng.binomial(10, np.clip(0.3 + 0.02 * slowly, 0, 1))
    found = choose_block_ms(cameras(flagged, 10, SECOND_MS), TimeKinds())
    # Its decorrelation time is 2000 s, and the sum sees 12 s.
    assert found.decorrelation_ms < 60_000
    assert (found.reason, found.block_ms >= 1_200_000) == ("correlation", True)


def test_one_slow_key_among_many_is_seen() -> None:
    flagged = independent(10, 20_000, 10)
    flagged[3] = slow(1, 20_000, 10, 0.99)[0] // 4
    blocks = cameras(flagged, 10, SECOND_MS)
    assert neighbour_correlation(coarser(blocks, 30_000), TimeKinds())[0] > 0.5
    found = choose_block_ms(blocks, TimeKinds())
    # Together they decorrelate within seconds, this one within 200 s.
    assert (found.reason, found.block_ms >= 300_000) == ("correlation", True)


def test_a_stretch_that_is_too_short_does_not_settle() -> None:
    """A random walk is correlated at any length."""
    walk = np.random.default_rng(5).standard_normal((1, 2_000)).cumsum(axis=1)
    flagged = np.clip(50 + walk, 0, 100).astype(np.int64)
    found = choose_block_ms(cameras(flagged, 100, SECOND_MS), TimeKinds())
    assert (found.settled, found.median_blocks) == (False, 1)


def test_the_time_of_day_is_taken_out_before() -> None:
    pane_ms, days = 5 * 60_000, 4
    size = days * DAY_MS // pane_ms
    is_night = TimeKinds((6, 18)).kind_of(np.arange(size) * pane_ms)
    flagged = np.random.default_rng(1).binomial(50, 0.1 + 0.2 * is_night, (3, size))
    found = settle_blocks(cameras(flagged, 50, pane_ms))
    assert found.kinds == TimeKinds((6, 18))
    assert found.choice.decorrelation_ms < 2 * pane_ms
    assert found.blocks.block_ms == found.choice.block_ms == HOUR_MS
    given = settle_blocks(cameras(flagged, 50, pane_ms), kinds=TimeKinds())
    assert given.kinds == TimeKinds()
    assert given.choice.block_ms > 2 * HOUR_MS


def test_blocks_must_fit_the_grid() -> None:
    with pytest.raises(ValueError, match="a length of the grid, got 7000 ms"):
        choose_block_ms(cameras(independent(1, 10, 5), 5, 7_000), TimeKinds())
