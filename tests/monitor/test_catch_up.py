"""What is told of a past that a monitor judges late."""

from dataclasses import replace

from nap_stream.core.alert_state import Change, Reason
from nap_stream.drift.records import DriftAlert
from nap_stream.monitor.alerts import CatchUpFilter
from tests.alert.samples import BEGAN


def drift_alert(time_ms: int, reason: Reason, key: str | None = None) -> DriftAlert:
    return replace(BEGAN, key=key, time_ms=time_ms, change=Change(reason, BEGAN.change.alert))


def test_nothing_is_told_while_the_past_goes_on() -> None:
    past = CatchUpFilter(100)
    assert past.take([drift_alert(50, Reason.BEGAN)], 50) is None
    assert past.take([], None) is None
    assert past.take([], 99) is None


def test_what_fires_at_its_end_is_told_once_and_as_it_is_then() -> None:
    past = CatchUpFilter(100)
    past.take([drift_alert(10, Reason.BEGAN), drift_alert(20, Reason.BEGAN, "cam-1")], 20)
    past.take([drift_alert(30, Reason.ENDED), drift_alert(40, Reason.BEGAN, "cam-2")], 40)
    newest = drift_alert(100, Reason.ESCALATED, "cam-1")
    assert past.take([newest], 100) == (drift_alert(40, Reason.BEGAN, "cam-2"), newest)


def test_what_comes_after_is_told_after_it() -> None:
    past = CatchUpFilter(100)
    before, after = drift_alert(90, Reason.BEGAN), drift_alert(110, Reason.ENDED)
    assert past.take([before, after], 120) == (before, after)


def test_a_past_without_alerts() -> None:
    assert CatchUpFilter(100).take([], 100) == ()
