import tracemalloc

import pytest

from nap_stream.core.alert_state import records_per_second
from nap_stream.errors import ConfigError
from nap_stream.planning.request import (
    ask,
    firing_limit,
    of_half_the_false_alarms,
    searched_windows,
    usual_windows,
    with_changes,
    with_run_length,
)
from nap_stream.settings.drift import MAX_WINDOW_RECORDS, DriftSettings, KeySettings
from tests.planning.streams import calibration
from tests.support.limits import window_limits

FACTS = calibration().facts
NOTHING = {"false_alarms": None, "expected_run_length": None, "confidence": None}


def test_the_rate_is_that_of_the_sentence() -> None:
    assert records_per_second("one per 30 days at 50 images/s") == 50
    assert records_per_second("probability 0.01 in 7 days at 2.5 images/s") == 2.5
    with pytest.raises(ValueError, match="expected"):
        records_per_second("seldom")


def test_a_question_in_words_knows_the_records_of_a_pane() -> None:
    asked = ask(DriftSettings(false_alarms="one per day at 20 images/s", pane_ms=500), FACTS)

    assert (asked.words, asked.records_per_second) == ("one per day at 20 images/s", 20)
    assert (asked.pane_records, asked.detectors) == (10, 3)
    assert asked.plan.run_length == 20 * 86_400
    assert ask(DriftSettings(), FACTS).words == "one per 30 days at 50 images/s"


@pytest.mark.parametrize(
    "drift",
    [
        DriftSettings(expected_run_length=2e6),
        DriftSettings(keys=KeySettings(one_per_pane=True), pane_ms=60_000),
    ],
)
def test_without_a_rate_of_records_panes_are_taken_to_be_small(drift: DriftSettings) -> None:
    asked = ask(drift, FACTS)

    assert (asked.records_per_second, asked.pane_records) == (None, 1)


def test_a_promise_in_records_is_said_in_records() -> None:
    assert ask(DriftSettings(expected_run_length=2e6), FACTS).words == "one in 2,000,000 records"


def test_the_command_line_wins_over_the_configuration() -> None:
    drift = DriftSettings(expected_run_length=1e6, window_records=77, keys=KeySettings(max_keys=9))
    asked = with_changes(drift, **NOTHING | {"false_alarms": "one per day at 1 image/s"})  # type: ignore[arg-type]  # one dict

    assert (asked.false_alarms, asked.expected_run_length) == ("one per day at 1 image/s", None)
    assert (asked.window_records, asked.keys) == (77, KeySettings(max_keys=9))
    assert with_changes(drift, **NOTHING) == drift


def test_a_wrong_value_names_its_option() -> None:
    with pytest.raises(ConfigError, match="--expected-run-length"):
        with_changes(DriftSettings(), **NOTHING | {"expected_run_length": 1.0})  # type: ignore[arg-type]  # one dict


def test_half_the_false_alarms_are_twice_the_run_length() -> None:
    asked = ask(DriftSettings(expected_run_length=1e6), FACTS)
    halved = of_half_the_false_alarms(asked).plan

    assert (halved.run_length, halved.detector_run_length) == (2e6, 6e6)
    assert with_run_length(halved, 1e6) == asked.plan


def test_a_full_window_holds_whole_panes() -> None:
    plan = ask(DriftSettings(window_records=1_000), FACTS).plan

    assert firing_limit(plan, 300) == (1_200, window_limits(plan, 1_200)[0])
    assert firing_limit(plan, 1) == (1_000, window_limits(plan, 1_000)[0])


def test_the_largest_window_is_asked_for_in_little_memory() -> None:
    drift = DriftSettings(window_records=MAX_WINDOW_RECORDS)

    tracemalloc.start()
    records, limit = firing_limit(ask(drift, FACTS).plan, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert records == MAX_WINDOW_RECORDS
    assert FACTS.alpha * records < limit < 2 * FACTS.alpha * records
    assert peak < MAX_WINDOW_RECORDS


def test_usual_windows_are_around_the_configured_one() -> None:
    assert usual_windows(1_000) == (250, 1_000, 4_000)
    assert usual_windows(40) == (20, 40, 160)


def test_searched_windows_are_smaller_and_larger() -> None:
    assert searched_windows(1_000) == (125, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000)
    assert searched_windows(60) == (20, 30, 60, 120, 240, 480, 960)


def test_none_is_larger_than_can_be_configured() -> None:
    assert usual_windows(3_000_000) == (750_000, 3_000_000, MAX_WINDOW_RECORDS)
    assert usual_windows(MAX_WINDOW_RECORDS) == (2_500_000, MAX_WINDOW_RECORDS)
    assert searched_windows(MAX_WINDOW_RECORDS)[-2:] == (5_000_000, MAX_WINDOW_RECORDS)
