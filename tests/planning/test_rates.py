from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from nap_stream.core.panes import NO_KEY, count_panes
from nap_stream.core.tails import BIN_COUNT, bins_of
from nap_stream.planning.findings import find
from nap_stream.planning.question import Question, ask, with_run_length
from nap_stream.planning.rates import (
    ANY,
    KEYS,
    AlarmCount,
    Panes,
    RealRate,
    cell_shares,
    real_rates,
    stream_alarms,
)
from nap_stream.planning.recorded import Recorded, Stretch, merged
from nap_stream.settings.schema import DriftSettings, KeySettings
from tests.planning.streams import CAMERAS, SPACING_MS, calibration, independent, sticky

RECORDS = 20_000
FACTS = calibration().facts


def question(keys: KeySettings | None = None) -> Question:
    return ask(DriftSettings(expected_run_length=1e3, keys=keys), FACTS)


def stretch_of(p_values: NDArray[np.float64], *, by_key: bool = False) -> Stretch:
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


def rates_of(stretch: Stretch, asked: Question, block: int) -> dict[tuple[str, float], RealRate]:
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
    asked = question(KeySettings())
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
    found = rates_of(stretch_of(independent(RECORDS)), question(), block=2)

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
    assert rates_of(stretch, question(), block=2)[ANY, 1e3].independent.records > 0


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
