"""What is told of a past that a monitor judges late."""

from dataclasses import replace

from nap_stream.core.alert_state import Change, Reason
from nap_stream.drift.records import DriftAlert
from nap_stream.monitor.alerts import Hindsight
from tests.alert.samples import BEGAN


def alert(time_ms: int, reason: Reason, key: str | None = None) -> DriftAlert:
    return replace(BEGAN, key=key, time_ms=time_ms, change=Change(reason, BEGAN.change.alert))


def test_nothing_is_told_while_the_past_goes_on() -> None:
    hindsight = Hindsight(100)
    assert hindsight.sift([alert(50, Reason.BEGAN)], 50) is None
    assert hindsight.sift([], None) is None
    assert hindsight.sift([], 99) is None


def test_what_fires_at_its_end_is_told_once_and_as_it_is_then() -> None:
    hindsight = Hindsight(100)
    hindsight.sift([alert(10, Reason.BEGAN), alert(20, Reason.BEGAN, "cam-1")], 20)
    hindsight.sift([alert(30, Reason.ENDED), alert(40, Reason.BEGAN, "cam-2")], 40)
    newest = alert(100, Reason.ESCALATED, "cam-1")
    assert hindsight.sift([newest], 100) == (alert(40, Reason.BEGAN, "cam-2"), newest)


def test_what_comes_after_is_told_after_it() -> None:
    hindsight = Hindsight(100)
    past, after = alert(90, Reason.BEGAN), alert(110, Reason.ENDED)
    assert hindsight.sift([past, after], 120) == (past, after)


def test_a_past_without_alerts() -> None:
    assert Hindsight(100).sift([], 100) == ()
