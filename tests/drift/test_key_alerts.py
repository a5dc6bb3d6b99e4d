"""Keys that fall silent or are forgotten, as alerts and metrics show them."""

from collections.abc import Iterable, Sequence

import pytest

from nap_stream.clock import ManualClock
from nap_stream.core.alert_state import Detector, Reason, Transition
from nap_stream.core.sequential import Onset
from nap_stream.drift.detectors import detection_plan
from nap_stream.drift.key_alerts import FiringKeys
from nap_stream.drift.monitor import DriftMonitor
from nap_stream.drift.records import DetectorReading, DriftAlert, Verdict
from nap_stream.records import SegmentSummary
from nap_stream.settings.schema import Settings
from tests.support.summaries import FACTS, PANE_MS, Row, segments, settings

SILENCE_MS = 1_000
ALERTS = {"repeat_interval_s": SILENCE_MS / 1_000}


def make_monitor(used: Settings) -> DriftMonitor:
    return DriftMonitor(detection_plan(used.drift, FACTS), used, ManualClock())


def with_keys(**keys: int) -> Settings:
    return settings(drift={"window_records": 40, "keys": keys}, alerts=ALERTS)


def rows_of(
    start_ms: int, records: int, keys: Sequence[str], broken: Iterable[str] = ()
) -> list[Row]:
    """A record a millisecond, of each key in turn; the broken ones are always flagged."""
    bad = set(broken)
    names = [keys[i % len(keys)] for i in range(records)]
    return [Row(start_ms + i, name in bad, key=name) for i, name in enumerate(names)]


def fed(monitor: DriftMonitor, summaries: Iterable[SegmentSummary]) -> list[DriftAlert]:
    return [alert for each in summaries for alert in monitor.add(each).alerts]


def chain(rows: Sequence[Row]) -> list[SegmentSummary]:
    return segments(0, rows, [50] * (len(rows) // 50))


def of_keys(alerts: Iterable[DriftAlert]) -> list[tuple[str, Reason]]:
    return [(alert.key, alert.change.reason) for alert in alerts if alert.key is not None]


def cameras(count: int) -> list[str]:
    return [f"camera-{i:02}" for i in range(count)]


def repaired_camera() -> list[Row]:
    """One of four breaks, is unplugged for three seconds and comes back repaired."""
    names = cameras(4)
    return [
        *rows_of(0, 400, names),
        *rows_of(400, 400, names, ["camera-01"]),
        *rows_of(800, 3_000, [name for name in names if name != "camera-01"]),
        *rows_of(3_800, 1_000, names),
    ]


def test_a_repaired_camera_does_not_fire_when_it_comes_back() -> None:
    monitor = make_monitor(with_keys())
    found = fed(monitor, chain(repaired_camera()))
    assert of_keys(found) == [
        ("camera-01", Reason.BEGAN),
        ("camera-01", Reason.REPEATED),
        ("camera-01", Reason.SILENT),
    ]
    assert monitor.snapshot().keys_active == 0
    # What is told with the end is how the monitor was, of a key that nothing is known of now.
    silent = next(alert for alert in found if alert.change.reason is Reason.SILENT)
    assert (silent.readings[0].active, silent.firing_keys) == (True, 0)
    assert silent.since.hits == silent.since.records == 100


def test_a_camera_that_comes_back_broken_fires_again() -> None:
    rows = [*repaired_camera(), *rows_of(4_800, 200, cameras(4), ["camera-01"])]
    found = fed(make_monitor(with_keys()), chain(rows))
    began = [alert for alert in found if alert.key and alert.change.reason is Reason.BEGAN]
    assert [alert.key for alert in began] == ["camera-01"] * 2
    assert began[1].change.alert.onset_ms in range(4_790, 4_820)


def unplugged_site() -> list[Row]:
    """Six cameras of thirty break and are unplugged; two of them fire, four wait for a place."""
    names = cameras(30)
    return [
        *rows_of(0, 900, names, names[:6]),
        *rows_of(900, SILENCE_MS + 10 * PANE_MS, names[6:]),
    ]


def test_keys_that_fell_silent_are_no_longer_counted() -> None:
    rows = unplugged_site()
    monitor = make_monitor(with_keys(max_firing=2))
    fed(monitor, chain(rows[:1_000]))
    now = monitor.snapshot()
    assert (now.keys, now.keys_active, now.keys_firing) == (30, 6, 2)
    found = fed(monitor, chain(rows)[20:])
    now = monitor.snapshot()
    assert (now.keys, now.keys_active, now.keys_firing) == (30, 0, 0)
    silent = [alert for alert in found if alert.change.reason is Reason.SILENT]
    assert [alert.key for alert in silent] == ["camera-00", "camera-01"]
    # The last pane with each of the six began at 870.
    assert {alert.time_ms for alert in silent} == {870 + SILENCE_MS + PANE_MS}
    assert {alert.firing_keys for alert in silent} == {0}


def test_a_pane_of_records_without_keys_closes_alerts() -> None:
    monitor = make_monitor(with_keys())
    rows = [*rows_of(0, 100, ["camera-00"], ["camera-00"]), *rows_of(100, 1_100, [""])]
    assert of_keys(fed(monitor, chain(rows))) == [
        ("camera-00", Reason.BEGAN),
        ("camera-00", Reason.REPEATED),
        ("camera-00", Reason.SILENT),
    ]
    assert monitor.snapshot().keys_active == 0


def test_a_standstill_of_the_stream_is_no_silence_of_a_key() -> None:
    """No pane finds the key silent; its alert goes on, and ends as its images are clean again."""
    monitor = make_monitor(with_keys())
    rows = [
        *rows_of(0, 100, ["camera-00"], ["camera-00"]),
        *rows_of(100 + 5 * SILENCE_MS, 900, ["camera-00"]),
    ]
    assert of_keys(fed(monitor, chain(rows))) == [
        ("camera-00", Reason.BEGAN),
        ("camera-00", Reason.ENDED),
    ]


def test_short_lived_keys_do_not_blind_the_monitor() -> None:
    """Sixty lots are flagged and over, where fifty keys are remembered; then a camera breaks."""
    monitor = make_monitor(with_keys(max_keys=50, max_firing=5))
    lots = [row for i in range(60) for row in rows_of(20 * i, 20, [f"lot-{i:02}"], [f"lot-{i:02}"])]
    names = cameras(8)
    calm, broken = rows_of(1_200, 2_000, names), rows_of(3_200, 400, names, ["camera-03"])
    summaries = chain([*lots, *calm, *broken])
    fed(monitor, summaries[:50])
    forgotten = monitor.snapshot().keys_forgotten
    found = fed(monitor, summaries[50:])
    began = [alert for alert in found if alert.key in names and alert.change.reason is Reason.BEGAN]
    assert [alert.key for alert in began] == ["camera-03"]
    assert 3_200 < began[0].time_ms <= 3_300
    now = monitor.snapshot()
    assert (now.keys_active, now.keys_firing, now.keys_forgotten) == (1, 1, forgotten)


@pytest.mark.parametrize("rows", [repaired_camera(), unplugged_site()], ids=["repaired", "site"])
def test_silence_lasts_over_a_restart(rows: list[Row]) -> None:
    used = with_keys(max_firing=2)
    summaries = chain(rows)
    undisturbed, resumed = make_monitor(used), make_monitor(used)
    expected = fed(undisturbed, summaries)
    found = []
    for each in summaries:
        found += fed(resumed, [each])
        content, resumed = resumed.dump(), make_monitor(used)
        assert resumed.restore(content)
    assert found == expected
    assert resumed.dump() == undisturbed.dump()
    assert Reason.SILENT in {alert.change.reason for alert in found}


def test_a_key_that_is_forgotten_while_it_fires_is_not_told_as_recovered() -> None:
    """Two others become active in one pane, and there is room for two."""
    first, *others = cameras(3)
    monitor = make_monitor(with_keys(max_keys=2))
    crowd = [Row(100, flagged=True, key=name) for name in others for _ in range(100)]
    rows = [*rows_of(0, 100, [first], [first]), *crowd, *rows_of(110, 100, others, others)]
    found = [alert for alert in fed(monitor, chain(rows)) if alert.key == first]
    assert of_keys(found) == [(first, Reason.BEGAN), (first, Reason.FORGOTTEN)]
    began, forgotten = found
    assert forgotten.change.transition is Transition.RESOLVED
    assert forgotten.since.start_ms == began.change.alert.onset_ms
    assert forgotten.readings[0].statistic == 0
    firing = monitor.state().document.keys_firing
    assert firing is not None
    assert first not in {each.key for each in firing}


def test_the_alert_of_a_forgotten_key_says_why_it_fired() -> None:
    reading = DetectorReading(Detector.BLOCKS, True, 9.0, 8.0, 1.0)
    fired = Verdict(True, Onset(0, 30, 20, 10), (reading,))
    nothing = Verdict(False, Onset(0, 0, 0, 0), ())

    class Judge:
        detector = Detector.BLOCKS
        known = True

        def knows(self, _key: str) -> bool:
            return self.known

        def verdict(self, _key: str) -> Verdict:
            return fired if self.known else nothing

    judge = Judge()
    keys = FiringKeys(judge, max_firing=2, silence_ms=1_000, alerts=settings().alerts)
    keys.step(["a"], 50, [])
    keys.note_last()
    judge.known = False
    (forgotten,) = keys.step([], 60, [])
    assert forgotten.change.reason is Reason.FORGOTTEN
    assert forgotten.verdict == fired
