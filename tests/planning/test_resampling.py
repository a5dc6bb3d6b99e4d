import numpy as np
import pytest
from numpy.typing import NDArray

from nap_stream.planning.resampling import (
    autocovariances,
    block_places,
    dependence_of,
    resampled_shares,
)


def moving(size: int, kept: float, seed: int) -> NDArray[np.float64]:
    """An autoregressive series of the first order."""
    noise = np.random.default_rng(seed).normal(size=size)
    for number in range(1, size):
        noise[number] += kept * noise[number - 1]
    return noise


def test_autocovariances_by_hand() -> None:
    # Of 1, 2, 3, 6 with mean 3: deviations -2, -1, 0, 3.
    expected = [14 / 4, 2 / 4, -3 / 4, -6 / 4]

    np.testing.assert_allclose(autocovariances(np.array([1.0, 2, 3, 6])), expected)


def test_independent_members_have_no_lag_and_short_blocks() -> None:
    found = [dependence_of(moving(2_000, 0, seed)) for seed in range(20)]

    assert sum(each.lag for each in found) <= 4
    assert max(each.block for each in found) <= 10
    ratios = [each.long_run_variance / each.variance for each in found]
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)


def test_dependent_members_have_the_variance_of_theory() -> None:
    # A mean of an AR(1) series varies (1 + r) / (1 - r) times as much: 9 times at r = 0.8.
    found = [dependence_of(moving(5_000, 0.8, seed)) for seed in range(10)]

    ratios = [each.long_run_variance / each.variance for each in found]
    assert np.mean(ratios) == pytest.approx(9, rel=0.15)
    assert all(5 <= each.lag <= 25 for each in found)
    assert all(15 <= each.block <= 120 for each in found)


def test_a_constant_series_depends_on_nothing() -> None:
    found = dependence_of(np.ones(50))

    assert (found.lag, found.block, found.variance, found.long_run_variance) == (0, 1, 0, 0)


def test_blocks_are_circular_and_follow_each_other() -> None:
    places = block_places(5, 3, (4, 7), np.random.default_rng(0))

    assert places.shape == (4, 7)
    assert set(np.unique(places).tolist()) <= set(range(5))
    steps = np.diff(places, axis=1) % 5
    assert (steps[:, [0, 1, 3, 4]] == 1).all()


@pytest.mark.parametrize("kept", [0.0, 0.7])
def test_resampled_shares_vary_as_shares_of_new_streams_do(kept: float) -> None:
    generator = np.random.default_rng(3)
    records = np.full(1_500, 20)

    def hits(seed: int) -> NDArray[np.int64]:
        rates = np.clip(0.2 + 0.02 * moving(1_500, kept, seed), 0, 1)
        return generator.binomial(20, rates)

    anew = np.std([hits(seed).mean() / 20 for seed in range(300)])
    spreads = []
    for seed in range(300, 306):
        x = hits(seed)
        block = dependence_of((x - x.mean()).astype(np.float64)).block
        shares = resampled_shares(records, x[:, np.newaxis], block, generator, 300)
        assert shares.shape == (300, 1)
        spreads.append(shares.std())

    assert np.mean(spreads) == pytest.approx(anew, rel=0.15)


def test_shares_of_several_events_come_from_the_same_blocks() -> None:
    records = np.array([10, 20, 30])
    hits = np.column_stack((records // 2, records // 10))

    shares = resampled_shares(records, hits, 2, np.random.default_rng(0), 7)

    np.testing.assert_allclose(shares, np.tile([0.5, 0.1], (7, 1)))
