import math
from statistics import mean, stdev

import numpy as np
import pytest

from nap_stream.core.alert_state import Detector
from nap_stream.core.detection import Delay, p_value_shares, unscored_delay
from nap_stream.core.panes import ClosedPane
from nap_stream.drift.detectors import EDetector, StreamDetectors
from nap_stream.planning.expected import DetectorDelays, Expectation, expect
from nap_stream.planning.render import bars, delay_words, detector_name, drift_name
from nap_stream.planning.request import PlanRequest, ask, count, factor, in_largest_unit
from nap_stream.settings.drift import MAX_WINDOW_RECORDS, DriftSettings
from nap_stream.text import percent
from tests.planning.streams import calibration

FACTS = calibration().facts
RATE_AFTER = 0.15
PANE = 10


@pytest.fixture(scope="module")
def asked() -> PlanRequest:
    return ask(DriftSettings(false_alarms="one per day at 10 images/s", window_records=300), FACTS)


@pytest.fixture(scope="module")
def expectation(asked: PlanRequest) -> Expectation:
    return expect(asked, (), streams=100, seed=0, advance=lambda _done, _total: None)


def real_delays(asked: PlanRequest, streams: int) -> dict[Detector, list[int]]:
    """Delays of the monitor's own detectors, pane by pane."""
    generator = np.random.default_rng(7)
    before, after = p_value_shares(0.05, 0.05), p_value_shares(0.05, RATE_AFTER)
    none = np.zeros(0, np.int64)
    found: dict[Detector, list[int]] = {}
    for _ in range(streams):
        detectors = StreamDetectors(asked.plan, 1_000)
        seen: dict[Detector, int] = {}
        for pane in range(-100, 500):
            bins = generator.multinomial(PANE, before if pane < 0 else after)
            flagged = int(bins[:2].sum())
            detectors.push(ClosedPane(1_000 * (pane + 100), PANE, flagged, bins, (), none, none))
            for detector in detectors.active:
                seen.setdefault(detector, PANE * (pane + 1))
            if len(seen) == 3:
                break
        for detector, delay in seen.items():
            found.setdefault(detector, []).append(delay)
    return found


def test_simulated_delays_are_those_of_the_monitor(
    asked: PlanRequest, expectation: Expectation
) -> None:
    real = real_delays(asked, 25)

    number = expectation.rates.index(pytest.approx(RATE_AFTER))
    for found in expectation.detectors:
        if found.window_records not in {None, 300}:
            continue
        simulated, seen = found.delays[number], real[found.detector]
        assert simulated.mean is not None
        assert simulated.standard_error is not None
        assert len(seen) == 25
        error = math.hypot(simulated.standard_error, stdev(seen) / 5)
        assert abs(simulated.mean - mean(seen)) < 4 * error


def test_all_is_looked_at(expectation: Expectation) -> None:
    assert expectation.rates == pytest.approx((0.075, 0.1, 0.15, 0.25))
    assert [(each.detector, each.window_records) for each in expectation.detectors] == [
        (Detector.OOD_WINDOW, 80),
        (Detector.OOD_WINDOW, 300),
        (Detector.OOD_WINDOW, 1_200),
        (Detector.OOD_SEQUENTIAL, None),
        (Detector.SCORE_SHIFT, None),
    ]
    assert [price.change for price in expectation.prices] == [
        "as asked for",
        "half as many false alarms",
        "twice as many calibration images",
    ]


def test_unreadable_images_are_seen_the_sooner_the_more_there_are(expectation: Expectation) -> None:
    assert [each.share for each in expectation.unscored] == [1.0, 0.5, 0.1]
    means = [each.delay.mean for each in expectation.unscored]
    # No sooner than the end of a pane.
    assert means[0] == PANE
    assert all(mean is not None for mean in means)
    assert means == sorted(means, key=lambda mean: mean or 0)


def test_the_delay_of_unreadable_images_is_that_of_the_monitor(asked: PlanRequest) -> None:
    """Of the monitor's own detector, image by image."""
    generator, delays = np.random.default_rng(3), []
    for _ in range(40):
        detector = EDetector(Detector.UNSCORED_IMAGES, [0.01], math.log(asked.plan.run_length))
        for pane in range(200):
            detector.push(50, np.array([0]), pane)
        seen = 0
        while not detector.active:
            seen += 1
            detector.push(1, np.array([int(generator.random() < 0.5)]), seen)
        delays.append(seen)
    simulated = unscored_delay(
        0.01, 0.5, asked.plan.run_length, pane_records=1, generator=generator, runs=200
    )
    assert simulated.mean is not None
    assert simulated.standard_error is not None
    error = math.hypot(simulated.standard_error, stdev(delays) / math.sqrt(len(delays)))
    assert abs(simulated.mean - mean(delays)) < 4 * error


def test_a_share_within_the_bound_is_never_seen() -> None:
    generator = np.random.default_rng(0)
    found = unscored_delay(0.1, 0.1, 1e6, pane_records=10, generator=generator, runs=2)
    assert found.blind


def test_certainty_costs_delay_and_images_save_it(expectation: Expectation) -> None:
    now, stricter, more_images = (price.sequential[1].mean for price in expectation.prices)

    assert now is not None
    assert stricter is not None
    assert more_images is not None
    assert more_images < now < stricter < 1.2 * now


def test_the_best_window_is_the_smaller_the_larger_the_drift(expectation: Expectation) -> None:
    sizes = [best.window_records or 0 for best in expectation.best_windows]

    assert sizes == sorted(sizes, reverse=True)
    for number, best in enumerate(expectation.best_windows):
        assert best.delay is not None
        for found in expectation.detectors[:3]:
            other = found.delays[number].typical
            assert other is None or (best.delay.typical or 0) <= 1.05 * other


def test_progress_ends_where_all_is_done(asked: PlanRequest) -> None:
    told: list[tuple[int, int | None]] = []

    expect(asked, (300,), streams=2, seed=0, advance=lambda done, total: told.append((done, total)))

    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_no_window_is_looked_at_that_cannot_be_configured() -> None:
    drift = DriftSettings(window_records=MAX_WINDOW_RECORDS)

    found = expect(ask(drift, FACTS), (), streams=2, seed=0, advance=lambda _done, _total: None)

    sizes = [each.asked_records for each in found.detectors if each.asked_records is not None]
    assert sizes == [MAX_WINDOW_RECORDS // 4, MAX_WINDOW_RECORDS]
    best = [each.window_records for each in found.best_windows if each.window_records is not None]
    assert max(best) <= MAX_WINDOW_RECORDS
    assert found.detectors[1].delays[1].detected == 2


@pytest.mark.parametrize(
    ("delay", "rate", "words"),
    [
        (Delay(10, 500, 10, 90.0, 100.0, 4.4), None, "100 ± 4"),
        (Delay(10, 500, 10, 90.0, 100.0, 4.4), 50.0, "100 ± 4\n2 s"),
        (Delay(10, 500, 6, 90.0, None, None), 10.0, "median 90\n60 % within 500\n9 s"),
        (Delay(10, 500, 2, None, None, None), 10.0, "20 % within 500"),
        (Delay(999, 50_000, 998, None, None, None), 10.0, "99.9 % within 50,000"),
        (Delay(400, 50_000, 399, 90.0, None, None), None, "median 90\n99.8 % within 50,000"),
        (Delay(10, 500, 0, None, None, None), 10.0, "not within 500"),
        (Delay(0, 0, 0, None, None, None, blind=True), 10.0, "never, by design"),
    ],
)
def test_delays_in_words(delay: Delay, rate: float | None, words: str) -> None:
    assert delay_words(delay, rate) == words


def test_bars_are_logarithmic() -> None:
    seen = [Delay(2, 500, 2, d, d, 0.0) for d in (100.0, 1_000.0)]
    unseen = Delay(2, 500, 0, None, None, None)
    expectation = Expectation(
        0.05,
        (2.0, 5.0),
        (0.1, 0.25),
        (
            DetectorDelays(Detector.OOD_WINDOW, 1_000, 1_000, 90, (seen[1], seen[0])),
            DetectorDelays(Detector.OOD_SEQUENTIAL, None, None, 1e6, (unseen, seen[0])),
        ),
        (),
        (),
    )

    lines = bars(expectation).plain.splitlines()

    assert lines[1] == drift_name(expectation, 0) == "2x, 10 %"
    assert lines[2] == "  rolling window, 1,000 " + "█" * 40 + " 1,000"
    assert lines[3] == "  e-detector of flags   not within 500"
    assert lines[6] == "  e-detector of flags   " + "█" * 20 + " 100"
    assert detector_name(expectation.detectors[0]) == "rolling window, 1,000"


def test_a_window_that_is_rounded_up_to_panes_shows_both_sizes() -> None:
    names = [detector_name(DetectorDelays(Detector.OOD_WINDOW, n, 50, 9, ())) for n in (3, 5)]

    assert names == [f"rolling window, {n} (50 in whole panes)" for n in (3, 5)]


def test_numbers_as_people_say_them() -> None:
    assert [count(n) for n in (7.6, 764.4, 7_648, 129_600_000)] == [
        "8",
        "764",
        "7,650",
        "130,000,000",
    ]
    assert [percent(share) for share in (0.0599, 0.05, 0.9999)] == ["5.99 %", "5 %", "100 %"]
    assert [in_largest_unit(s) for s in (1e-5, 0.2, 35.7, 153, 8_000, 300_000, 4e8)] == [
        "less than 1 ms",
        "0.2 s",
        "35.7 s",
        "2.55 min",
        "2.22 h",
        "3.47 days",
        "4,630 days",
    ]
    assert [factor(ratio) for ratio in (1.5, 0.5284, 999.4, 999.6, 73_612)] == [
        "1.5",
        "0.528",
        "999",
        "1,000",
        "73,600",
    ]
