import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.run_lengths import (
    NEVER,
    average_run_length,
    detection_delays,
    first_passages,
    mean_delay,
)


class _Sum:
    """A statistic that a test can follow: the sum of the counts."""

    def __init__(self, streams: int) -> None:
        self._sum = np.zeros(streams)

    def step(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        self._sum = self._sum + counts
        return self._sum

    def keep(self, kept: NDArray[np.bool_]) -> None:
        self._sum = self._sum[kept]


def _numbers(_: np.random.Generator, streams: NDArray[np.int64]) -> NDArray[np.int64]:
    return streams


def _ones(_: np.random.Generator, streams: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.ones(len(streams), dtype=np.int64)


def test_passages_are_counted_in_records_and_streams_keep_their_numbers() -> None:
    found = first_passages(
        _Sum(4),
        _numbers,
        streams=np.arange(4),
        thresholds=np.array([2.0, 6.0]),
        records=10,
        panes=4,
        rng=np.random.default_rng(1),
    )
    assert found.tolist() == [[NEVER, NEVER], [20, NEVER], [10, 30], [10, 20]]


def test_delays_count_from_the_change_and_leave_out_streams_that_alarmed_before_it() -> None:
    found = detection_delays(
        _Sum(3),
        _numbers,
        _ones,
        streams=3,
        thresholds=np.array([4.0, 2.0]),
        prefix=2,
        limit=3,
        rng=np.random.default_rng(1),
    )
    assert [delays.tolist() for delays in found] == [[NEVER, 2], [2]]


def test_an_average_run_length_is_records_by_alarms() -> None:
    found = average_run_length(np.array([50, 150, NEVER, NEVER]), 200)
    assert found.mean == 300
    assert found.low < 300 < found.high


def test_without_an_alarm_an_average_run_length_has_a_lower_bound_only() -> None:
    found = average_run_length(np.full(5, NEVER), 100)
    assert found.mean == found.high == np.inf
    assert 100 < found.low < 500


def test_a_missed_drift_counts_as_the_limit() -> None:
    found = mean_delay(np.array([10, NEVER]), 30)
    assert found.mean == 20
    assert found.high - found.mean == pytest.approx(1.96 * np.sqrt(200) / np.sqrt(2))
