import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nap_stream.core.alert_state import Detector
from nap_stream.core.detection import DetectionPlan
from nap_stream.core.panes import ClosedPane
from nap_stream.core.tails import BIN_COUNT, TAIL_EVENTS, FlagRateLaw
from nap_stream.drift.detectors import StreamDetectors
from nap_stream.planning.question import with_run_length
from nap_stream.planning.rates import (
    AlarmCount,
    FirstAlarms,
    first_of_any,
    key_alarms,
    stream_alarms,
    window_alarms,
)

PLAN = DetectionPlan(
    run_length=100,
    detector_run_length=300,
    confidence=0.95,
    flag_rate=0.06,
    tail_rates=tuple((e, 1 - e.edge + 0.01 if e.upper else e.edge + 0.01) for e in TAIL_EVENTS),
    window_records=40,
    resolve_laws=(FlagRateLaw(100, 2_000),),
    resolve_probability=0.05,
)
PLANS = [PLAN, with_run_length(PLAN, 1e3), with_run_length(PLAN, 1e9)]
Counts = NDArray[np.int64]


def streams(seed: int, *, count: int, panes: int, rate: float) -> tuple[Counts, Counts, Counts]:
    """Records, flagged (count, panes) and bins (count, panes, BIN_COUNT) of random streams."""
    generator = np.random.default_rng(seed)
    records = generator.integers(1, 15, size=(count, panes))
    shares = np.full(BIN_COUNT, (1 - rate) / (BIN_COUNT - 2))
    shares[:2] = rate / 2
    bins = generator.multinomial(records, shares)
    return records, bins[..., :2].sum(axis=-1), bins


def of_the_monitor(plan: DetectionPlan, stream: tuple[Counts, ...]) -> dict[Detector, float]:
    """When each of the monitor's own detectors fires first, in records; infinity for never."""
    detectors = StreamDetectors(plan, 10)
    seen = dict.fromkeys((d for d in Detector if d.value != "keys"), float("inf"))
    watched = 0
    none = np.zeros(0, np.int64)
    for number, (n, x, bins) in enumerate(zip(*stream, strict=True)):
        detectors.push(ClosedPane(10 * number, int(n), int(x), bins, (), none, none))
        watched += int(n)
        for detector in detectors.active:
            seen[detector] = min(seen[detector], watched)
    return seen


@pytest.mark.parametrize("rate", [0.06, 0.2, 0.6])
def test_first_alarms_are_those_of_the_monitor(rate: float) -> None:
    records, flagged, bins = streams(2, count=3, panes=60, rate=rate)
    panes = ((records[:, i], flagged[:, i], bins[:, i]) for i in range(60))
    ticks: list[int] = []

    found = stream_alarms(PLANS, panes, lambda: ticks.append(1))

    assert len(ticks) == 60
    assert found.scores is not None
    fired = 0
    for number, plan in enumerate(PLANS):
        for stream in range(3):
            expected = of_the_monitor(plan, (records[stream], flagged[stream], bins[stream]))
            assert found.window.at[number, stream] == expected[Detector.OOD_WINDOW]
            assert found.flags.at[number, stream] == expected[Detector.OOD_SEQUENTIAL]
            assert found.scores.at[number, stream] == expected[Detector.SCORE_SHIFT]
            assert found.any.at[number, stream] == min(expected.values())
            fired += np.isfinite(found.any.at[number, stream])
    assert fired >= 3
    assert found.flags.watched.tolist() == records.sum(axis=1).tolist()


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 70), st.floats(0, 1)), min_size=1, max_size=30),
    st.integers(1, 60),
)
def test_the_window_rolls_as_the_monitors_does(
    panes: list[tuple[int, float]], window_records: int
) -> None:
    plan = dataclasses.replace(PLAN, window_records=window_records, tail_rates=())
    records = np.array([n for n, _ in panes])
    flagged = np.array([round(n * share) for n, share in panes])
    bins = np.zeros((len(panes), BIN_COUNT), np.int64)

    found = window_alarms([plan], records[np.newaxis], flagged[np.newaxis])

    assert found.at[0, 0] == of_the_monitor(plan, (records, flagged, bins))[Detector.OOD_WINDOW]


def test_a_large_window_takes_little_memory() -> None:
    plan = dataclasses.replace(PLAN, window_records=3_000_000)
    records = np.full((1, 20), 200_000)
    flagged = np.linspace(0, 100_000, 20).astype(np.int64)[np.newaxis]

    tracemalloc.start()
    found = window_alarms([plan], records, flagged)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert found.at[0, 0] == plan.window_records
    assert peak < plan.window_records


def test_without_tails_only_flags_are_watched() -> None:
    plan = dataclasses.replace(PLAN, tail_rates=())
    records, flagged, bins = streams(2, count=2, panes=30, rate=0.6)
    panes = [(records[:, i], flagged[:, i], bins[:, i]) for i in range(30)]

    found = stream_alarms([plan], iter(panes), lambda: None)
    keyed = key_alarms([plan], iter(panes), lambda: None)

    assert found.scores is None
    assert found.any.at.tolist() == np.minimum(found.window.at, found.flags.at).tolist()
    assert (keyed.at <= found.flags.at).all()


def test_alarms_are_counted_until_the_first_of_each_stream() -> None:
    at = np.array([[3.0, np.inf, 10.0], [np.inf, np.inf, np.inf]])
    alarms = FirstAlarms(at, np.array([20, 20, 15]))

    assert alarms.counts() == (AlarmCount(2, 33), AlarmCount(0, 55))


def test_the_first_of_any_is_the_earliest() -> None:
    watched = np.array([9, 9])
    found = first_of_any(
        [
            FirstAlarms(np.array([[3.0, np.inf]]), watched),
            FirstAlarms(np.array([[5.0, 4.0]]), watched),
        ]
    )

    assert found.at.tolist() == [[3.0, 4.0]]


def test_intervals_of_rates_are_exact() -> None:
    # Poisson: 0 events, one-sided, -ln 0.05; 1 event 0.0253 to 5.572; 10 events 4.795 to 18.39.
    assert AlarmCount(0, 100).interval == pytest.approx((0, 0.029957), abs=1e-6)
    assert AlarmCount(1, 1).interval == pytest.approx((0.025318, 5.571643), abs=1e-5)
    assert AlarmCount(10, 1).interval == pytest.approx((4.795389, 18.390356), abs=1e-5)
    assert AlarmCount(10, 4).rate == 2.5
