import pytest

from nap_stream.core.bounds import upper_flag_rate
from nap_stream.core.tails import TAIL_EVENTS
from nap_stream.drift.detectors import detection_plan
from nap_stream.errors import ConfigError
from nap_stream.settings.drift import DriftSettings
from tests.support.summaries import FACTS, PER_CLASS_FACTS


def test_the_promise_is_shared_out() -> None:
    plan = detection_plan(DriftSettings(expected_run_length=1e5, confidence=0.9), FACTS)
    assert plan.run_length == 1e5
    assert plan.detector_run_length == 3e5
    assert plan.flag_rate == upper_flag_rate(10, 199, 0.95)
    assert plan.calibration_fingerprint == FACTS.fingerprint
    assert [event for event, _ in plan.tail_rates] == list(TAIL_EVENTS)
    first_event, first_rate = plan.tail_rates[0]
    assert first_event.edge == 0.02
    assert first_rate == upper_flag_rate(4, 199, 1 - 0.05 / len(TAIL_EVENTS))


def test_keys_take_a_share() -> None:
    plan = detection_plan(DriftSettings(expected_run_length=1e5, keys={}), FACTS)
    assert plan.detector_run_length == 4e5


def test_per_class_the_highest_rate_of_all_counts() -> None:
    plan = detection_plan(DriftSettings(confidence=0.9), PER_CLASS_FACTS)
    assert plan.flag_rate == max(
        upper_flag_rate(1, 38, 1 - 0.05 / 2), upper_flag_rate(10, 200, 1 - 0.05 / 2)
    )
    events = [event for event, _ in plan.tail_rates]
    assert TAIL_EVENTS[0] not in events


def test_the_default_is_one_in_thirty_days_at_fifty_images_a_second() -> None:
    assert detection_plan(DriftSettings(), FACTS).run_length == 30 * 86_400 * 50


def test_a_window_that_can_never_fire_is_refused() -> None:
    with pytest.raises(ConfigError, match="window_records") as caught:
        detection_plan(DriftSettings(window_records=3), FACTS)
    assert "larger" in str(caught.value)
