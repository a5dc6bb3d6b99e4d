import dataclasses
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nap_stream.core.alert_state import Detector
from nap_stream.core.detection import DetectionPlan
from nap_stream.core.panes import NO_KEY, ClosedPane, count_panes
from nap_stream.core.tails import BIN_COUNT, TAIL_EVENTS, FlagRateLaw, bins_of
from nap_stream.drift.detectors import StreamDetectors
from nap_stream.planning.findings import find
from nap_stream.planning.rates import (
    ANY,
    KEYS,
    AlarmCount,
    FirstAlarms,
    Panes,
    RealRate,
    cell_shares,
    first_of_any,
    key_alarms,
    real_rates,
    stream_alarms,
    window_alarms,
)
from nap_stream.planning.recorded import Recorded, RecordedSeries, merged
from nap_stream.planning.request import PlanRequest, ask, with_run_length
from nap_stream.settings.drift import DriftSettings, KeySettings
from tests.planning.streams import CAMERAS, SPACING_MS, calibration, independent, sticky

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
@example([(62, 0.1875)], 55)  # the grid is 55, 58, 61, 64: no step is of the one before, rounded
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


RECORDS = 20_000
FACTS = calibration().facts


def request(keys: KeySettings | None = None) -> PlanRequest:
    return ask(DriftSettings(expected_run_length=1e3, keys=keys), FACTS)


def stretch_of(p_values: NDArray[np.float64], *, by_key: bool = False) -> RecordedSeries:
    numbers = np.arange(len(p_values))
    part = count_panes(
        numbers * SPACING_MS,
        p_values,
        p_values <= 0.05,
        pane_ms=1_000,
        keys=tuple(f"camera-{n}" for n in range(CAMERAS)) if by_key else (NO_KEY,),
        key=numbers % CAMERAS if by_key else None,
    )
    return merged([part], 1_000, one_per_pane=False)


def rates_of(
    stretch: RecordedSeries, asked: PlanRequest, block: int
) -> dict[tuple[str, float], RealRate]:
    found = real_rates(
        stretch,
        asked.plan,
        block=block,
        streams=40,
        seed=0,
        advance=lambda _done, _total: None,
        panes=500,
    )
    return {(each.detector, each.run_length): each for each in found}


def test_dependent_records_have_many_times_the_false_alarms_of_independent_ones() -> None:
    asked = request(KeySettings())
    found = rates_of(stretch_of(sticky(RECORDS, 0.98), by_key=True), asked, block=60)

    for detector in (ANY, "ood-window", "ood-sequential", "score-shift", KEYS):
        rate = found[detector, 1e3]
        assert rate.resampled.interval[0] > rate.promised > rate.independent.interval[0]
    assert found[ANY, 1e3].promised == 1e-3
    assert found["ood-window", 1e4].promised == pytest.approx(1e-4 / 4)
    ratio = found[ANY, 1e3].ratio
    assert ratio is not None
    assert ratio[1] > 5


def test_independent_records_keep_the_promise() -> None:
    found = rates_of(stretch_of(independent(RECORDS)), request(), block=2)

    assert {detector for detector, _ in found} == {
        ANY,
        "ood-window",
        "ood-sequential",
        "score-shift",
    }
    assert sorted({run_length for _, run_length in found}) == [1e3, 1e4, 1e5]
    for rate in found.values():
        assert rate.resampled.interval[0] <= rate.promised
        assert rate.independent.interval[0] <= rate.promised
    assert found[ANY, 1e3].resampled.records > 5e5


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.07, 0.5, 0.99])
def test_cells_are_the_shares_of_flagged_and_unflagged_p_values(alpha: float) -> None:
    p_values = independent(2_000)
    part = count_panes(np.arange(2_000), p_values, p_values <= alpha, pane_ms=100)

    cells = cell_shares(merged([part], 100, one_per_pane=False).panes)

    flagged, bins = p_values <= alpha, bins_of(p_values)
    expected = [np.bincount(bins[of], minlength=BIN_COUNT) for of in (~flagged, flagged)]
    np.testing.assert_allclose(cells, np.concatenate(expected) / 2_000)


@pytest.mark.parametrize("rate", [0, 0.03, 0.2, 1])
def test_flags_that_contradict_p_values_leave_both_shares_as_they_are(rate: float) -> None:
    p_values = independent(RECORDS)
    flagged = np.arange(RECORDS) < rate * RECORDS
    part = count_panes(np.arange(RECORDS) * SPACING_MS, p_values, flagged, pane_ms=1_000)
    stretch = merged([part], 1_000, one_per_pane=False)

    cells = cell_shares(stretch.panes).reshape(2, BIN_COUNT)

    assert (cells >= 0).all()
    assert cells[1].sum() == pytest.approx(rate)
    shares = np.bincount(bins_of(p_values), minlength=BIN_COUNT) / RECORDS
    np.testing.assert_allclose(cells.sum(axis=0), shares)
    assert rates_of(stretch, request(), block=2)[ANY, 1e3].independent.records > 0


def test_ratios_of_rates_by_hand() -> None:
    # 8 in 100 against 2 in 100; exp(1.96 sqrt(1/8 + 1/2)) = 4.709.
    rate = RealRate(ANY, 1e3, 1e-3, AlarmCount(8, 100), AlarmCount(2, 100))

    assert rate.ratio == pytest.approx((4, 4 / 4.7092, 4 * 4.7092), rel=1e-4)
    assert RealRate(ANY, 1e3, 1e-3, AlarmCount(8, 100), AlarmCount(0, 100)).ratio is None


def sticky_panes(streams: int, panes: int, kept: float, seed: int) -> Iterator[Panes]:
    """Panes of streams of 20 cameras in turn, each of which keeps its last p-value at times."""
    generator = np.random.default_rng(seed)
    last, camera = generator.uniform(size=(streams, 20)), 0
    for _ in range(panes):
        bins = np.zeros((streams, BIN_COUNT), np.int64)
        for _ in range(50):
            new = generator.uniform(size=streams) >= kept
            last[new, camera] = generator.uniform(size=int(new.sum()))
            bins[np.arange(streams), bins_of(last[:, camera])] += 1
            camera = (camera + 1) % 20
        yield np.full(streams, 50), bins[:, :2].sum(axis=1), bins


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0.5, 0.8])
def test_a_stretch_tells_the_rate_of_new_streams_within_a_factor(kept: float) -> None:
    asked = ask(DriftSettings(expected_run_length=1e5), FACTS)
    plans = [with_run_length(asked.plan, run_length) for run_length in (1e3, 1e4)]
    true = stream_alarms(plans, sticky_panes(200, 1_500, kept, 1), lambda: None).any.counts()

    generator = np.random.default_rng(2)
    p_values = generator.uniform(size=100_000)
    keeps = generator.uniform(size=len(p_values)) < kept
    for number in np.flatnonzero(keeps[20:]) + 20:
        p_values[number] = p_values[number - 20]
    findings = find(
        asked,
        Recorded(stretch_of(p_values), "cars", 0),
        block_records=None,
        streams=100,
        seed=0,
        advance=lambda _done, _total: None,
    )

    assert findings.design_effect == pytest.approx((1 + kept) / (1 - kept), rel=0.3)
    rates = {r.run_length: r.resampled.rate for r in findings.rates if r.detector == ANY}
    for plan, known in zip(plans, true, strict=True):
        assert known.rate / 2.5 < rates[plan.run_length] < 2.5 * known.rate
