import dataclasses
import random
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.clock import ManualClock
from nap_stream.core.alert_state import AlertState, Detector, Reason, Severity, Transition
from nap_stream.drift.detectors import detection_plan
from nap_stream.drift.monitor import DriftMonitor
from nap_stream.drift.records import DriftAlert
from nap_stream.records import OffsetRange, SegmentSummary
from nap_stream.settings.schema import Settings
from tests.support.summaries import FACTS, Row, partition, segments, settings, summary

NOW_MS = 1_000_000
Problem = tuple[list[list[Row]], list[SegmentSummary], list[SegmentSummary]]
KEYED = {"window_records": 40, "keys": {"by": "key", "max_firing": 2}}


def make_monitor(clock: ManualClock | None = None, used: Settings | None = None) -> DriftMonitor:
    used = used or settings(alerts={"examples": 3})
    plan = detection_plan(used.drift, FACTS)
    return DriftMonitor(plan, used, clock or ManualClock(NOW_MS))


def stream(start_ms: int, records: int, flagged: int) -> list[Row]:
    """One record a millisecond; the flagged ones come first."""
    return [Row(start_ms + i, i < flagged) for i in range(records)]


def spread(start_ms: int, records: int, every: int) -> list[Row]:
    """One record a millisecond; each so many is flagged."""
    return [Row(start_ms + i, i % every == 0) for i in range(records)]


def alerts(monitor: DriftMonitor, summaries: Iterable[SegmentSummary]) -> list[DriftAlert]:
    return [alert for each in summaries for alert in monitor.add(each).alerts]


def told(found: Sequence[DriftAlert]) -> list[tuple[str | None, Reason]]:
    return [(alert.key, alert.change.reason) for alert in found]


def test_fires_and_resolves() -> None:
    monitor = make_monitor()
    calm, drifted, back = spread(0, 400, 20), spread(400, 200, 2), spread(600, 1_000, 25)
    found = alerts(monitor, segments(0, [*calm, *drifted, *back], [40] * 39))
    found += monitor.flush().alerts

    assert told(found) == [(None, Reason.BEGAN), (None, Reason.ENDED)]
    began, ended = found
    assert began.change.transition is Transition.FIRING
    assert 400 < began.time_ms <= 480
    assert 380 <= began.change.alert.onset_ms <= 440
    assert began.change.alert.since_ms == began.time_ms
    assert began.since.hits / began.since.records == pytest.approx(0.5, abs=0.2)
    assert began.change.alert.severity is Severity.CRITICAL
    assert ended.change.transition is Transition.RESOLVED
    assert ended.time_ms > 600
    assert ended.change.alert.since_ms == began.time_ms
    assert monitor.snapshot().state is AlertState.INACTIVE


def test_a_stream_like_the_calibration_stays_silent() -> None:
    monitor = make_monitor()
    assert alerts(monitor, segments(0, spread(0, 5_000, 20), [97] * 50)) == []
    snapshot = monitor.snapshot()
    assert snapshot.state is AlertState.INACTIVE
    assert snapshot.fraction == pytest.approx(0.05, abs=0.02)
    assert not any(reading.active for reading in snapshot.readings)


def test_all_three_detectors_read() -> None:
    monitor = make_monitor()
    alerts(monitor, [summary(0, 0, spread(0, 35, 20))])
    names = [reading.detector for reading in monitor.snapshot().readings]
    assert names == [Detector.OOD_SEQUENTIAL, Detector.SCORE_SHIFT]
    assert monitor.snapshot().firing_limit is None
    alerts(monitor, [summary(0, 35, spread(35, 30, 20))])
    names = [reading.detector for reading in monitor.snapshot().readings]
    assert names == [Detector.OOD_WINDOW, Detector.OOD_SEQUENTIAL, Detector.SCORE_SHIFT]
    limit = monitor.snapshot().firing_limit
    assert limit is not None
    assert monitor.snapshot().bound == limit / monitor.snapshot().window_records


def test_scores_that_are_too_in_distribution_are_a_shift() -> None:
    """No record is flagged; the OOD fraction sees nothing."""
    monitor = make_monitor()
    usual = spread(0, 400, 20)
    frozen = [Row(400 + i, flagged=False, p_value=0.97) for i in range(200)]
    found = alerts(monitor, [summary(0, 0, usual), summary(0, 400, frozen)])
    found += monitor.flush().alerts
    assert told(found) == [(None, Reason.BEGAN)]
    alert = found[0]
    assert alert.change.alert.detectors == (Detector.SCORE_SHIFT,)
    assert alert.change.alert.severity is Severity.WARNING
    assert alert.tail is not None
    assert alert.tail.event.upper
    assert alert.tail.event.edge == 0.95
    assert alert.change.alert.onset_ms in range(380, 420)
    assert alert.tail.since.hits >= 0.9 * alert.tail.since.records


def test_a_shift_that_is_over_names_no_tail() -> None:
    """After it any tail leads by chance, as often as not on the other side."""
    monitor = make_monitor()
    frozen = [Row(400 + i, flagged=False, p_value=0.97) for i in range(200)]
    rows = [*spread(0, 400, 20), *frozen, *spread(600, 4_000, 20)]
    found = alerts(monitor, [summary(0, i, rows[i : i + 50]) for i in range(0, len(rows), 50)])
    assert told(found) == [(None, Reason.BEGAN), (None, Reason.ENDED)]
    began, ended = found
    assert began.tail is not None
    assert ended.tail is None


def test_severity_grows_once() -> None:
    used = settings(alerts={"critical_fraction": 0.6})
    monitor = make_monitor(used=used)
    rows = [*spread(0, 200, 20), *spread(200, 400, 3), *spread(600, 400, 1)]
    found = alerts(monitor, segments(0, rows, [50] * 20))
    assert told(found) == [(None, Reason.BEGAN), (None, Reason.ESCALATED)]
    assert [alert.change.alert.severity for alert in found] == list(Severity)
    assert found[1].change.previous_severity is Severity.WARNING
    assert found[1].change.alert.since_ms == found[0].time_ms


def test_a_firing_alert_repeats_in_event_time() -> None:
    monitor = make_monitor(
        used=settings(alerts={"repeat_interval_s": 1.0, "critical_fraction": 0.99})
    )
    rows = [Row(i * 10, i % 2 == 0) for i in range(400)]
    found = alerts(monitor, segments(0, rows, [50] * 8))
    assert {alert.change.reason for alert in found[1:]} == {Reason.REPEATED}
    assert [alert.change.alert.repeats for alert in found] == list(range(len(found)))
    gaps = [b.time_ms - a.time_ms for a, b in pairwise(found)]
    assert set(gaps) == {1_000}


def test_evidence_is_that_of_the_window() -> None:
    monitor = make_monitor()
    monitor.partitions.hold(partition(1))
    rows = [*stream(0, 40, 0), *stream(40, 40, 40), Row(99, flagged=False)]
    other = [Row(45, flagged=True, p_value=0.005), Row(99, flagged=False)]
    found = alerts(monitor, [*segments(0, rows, [20, 20, 40]), summary(1, 500, other)])

    alert = found[0]
    assert alert.change.reason is Reason.BEGAN
    assert alert.window is not None
    assert alert.window.end_ms == alert.time_ms
    assert alert.offsets[-1] == OffsetRange(partition(1), 500, 502)
    assert alert.offsets[0].partition == partition(0)
    assert alert.offsets[0].end == 80
    assert len(alert.examples) == 3
    assert [e.ood_p_value for e in alert.examples] == sorted(e.ood_p_value for e in alert.examples)
    assert all(e.event_time_ms >= 40 for e in alert.examples)
    assert sum(each.flagged for each in alert.classes) == alert.window.flagged


def keyed(start_ms: int, records: int, bad: Sequence[str]) -> list[Row]:
    """A record of each of ten cameras in turn; the bad ones are always flagged."""
    rows = []
    for i in range(records):
        key = f"camera-{i % 10}"
        rows.append(Row(start_ms + i, key in bad or i % 211 == 0, key=key))
    return rows


def test_a_broken_key_is_named() -> None:
    monitor = make_monitor(used=settings(drift=KEYED))
    rows = [*keyed(0, 1_000, ()), *keyed(1_000, 100, ("camera-3",)), *keyed(1_100, 1_000, ())]
    found = alerts(monitor, segments(0, rows, [30] * 70)) + list(monitor.flush().alerts)
    of_key = [alert for alert in found if alert.key is not None]
    assert told(of_key) == [("camera-3", Reason.BEGAN), ("camera-3", Reason.ENDED)]
    assert of_key[0].time_ms <= 1_100
    assert 950 <= of_key[0].change.alert.onset_ms <= 1_010
    assert {example.key for example in of_key[0].examples} == {"camera-3"}
    assert [reading.detector for reading in of_key[0].readings] == [Detector.OOD_SEQUENTIAL]
    stream_alerts = [alert for alert in found if alert.key is None]
    if stream_alerts:
        assert stream_alerts[0].keys[0].name == "camera-3"


def test_only_so_many_keys_fire_at_once() -> None:
    monitor = make_monitor(used=settings(drift=KEYED))
    bad = [f"camera-{i}" for i in range(4)]
    found = alerts(monitor, segments(0, keyed(0, 1_000, bad), [50] * 20))
    of_keys = told([alert for alert in found if alert.key is not None])
    assert of_keys == [("camera-0", Reason.BEGAN), ("camera-1", Reason.BEGAN)]
    snapshot = monitor.snapshot()
    assert (snapshot.keys, snapshot.keys_active, snapshot.keys_firing) == (10, 4, 2)
    repaired = keyed(1_000, 1_000, bad[1:])
    found = alerts(monitor, [summary(0, 1_000, repaired)])
    of_keys = told([alert for alert in found if alert.key is not None])
    assert of_keys == [("camera-0", Reason.ENDED), ("camera-2", Reason.BEGAN)]


def test_a_key_that_falls_silent_gives_up_its_place() -> None:
    """Two cameras break and are unplugged; a third that breaks later must be named."""
    used = settings(drift=KEYED, alerts={"repeat_interval_s": 5.0})
    monitor = make_monitor(used=used)
    broken = keyed(0, 1_000, ("camera-0", "camera-1"))
    later = [
        Row(1_000 + 10 * i, (i % 4 == 0 and i > 200) or i % 53 == 0, key=f"camera-{2 + i % 4}")
        for i in range(1_200)
    ]
    found = alerts(monitor, segments(0, [*broken, *later], [50] * 40))
    of_keys = [alert for alert in found if alert.key is not None]
    silent = [a for a in of_keys if a.change.reason is Reason.SILENT]
    assert [a.key for a in silent] == ["camera-0", "camera-1"]
    assert {a.change.transition for a in silent} == {Transition.RESOLVED}
    assert all(5_000 <= a.time_ms - 1_000 <= 5_010 for a in silent)
    began = [a.key for a in of_keys if a.change.reason is Reason.BEGAN]
    assert began == ["camera-0", "camera-1", "camera-2"]
    assert monitor.snapshot().keys_firing == 1


def test_one_record_of_a_key_a_pane() -> None:
    used = settings(drift={"window_records": 40, "keys": {"one_per_pane": True}})
    monitor = make_monitor(used=used)
    rows = [Row(i, flagged=True, key="camera-1") for i in range(100)]
    parts = [
        summary(0, base, rows[base : base + 7], one_per_pane=True) for base in range(0, 100, 7)
    ]
    alerts(monitor, parts)
    monitor.flush()
    assert monitor.snapshot().window_records == 10


def test_a_summary_counts_once() -> None:
    monitor = make_monitor()
    chain = segments(0, stream(0, 100, 30), [30, 30, 30])
    assert len(monitor.add(chain[0]).accepted) == 1
    again = monitor.add(chain[0])
    assert again.accepted == ()
    assert again.alerts == ()
    assert monitor.snapshot().duplicates == 1
    once = make_monitor()
    alerts(once, chain)
    alerts(monitor, [*chain, *chain])
    assert monitor.snapshot().readings == once.snapshot().readings
    assert monitor.snapshot().window_records == once.snapshot().window_records


def test_holes_are_told_filled_and_skipped() -> None:
    monitor = make_monitor()
    first, second, third = segments(0, stream(0, 90, 0), [30, 30])
    monitor.add(first)
    assert monitor.add(third).accepted == ()
    assert monitor.partitions.end(partition(0)) == 30
    assert monitor.partitions.holes() == (OffsetRange(partition(0), 30, 60),)
    assert monitor.add(second).accepted == (second, third)
    assert monitor.partitions.holes() == ()

    late = make_monitor()
    late.add(first)
    late.add(third)
    assert late.skip_hole(partition(0)).accepted == (third,)
    assert late.partitions.end(partition(0)) == 90


def test_a_gap_has_no_records_and_moves_on() -> None:
    monitor = make_monitor()
    monitor.add(summary(0, 0, stream(0, 10, 0)))
    gap = summary(0, 10, [], end=1_000, gap="retention")
    assert monitor.add(gap).accepted == (gap,)
    assert monitor.partitions.end(partition(0)) == 1_000


def test_a_partition_that_is_expected_holds_the_watermark_back() -> None:
    clock = ManualClock(NOW_MS)
    monitor = make_monitor(clock)
    monitor.partitions.hold(partition(1))
    monitor.add(summary(0, 0, stream(0, 100, 100)))
    assert monitor.partitions.watermark_ms() is None
    clock.advance(9.9)
    assert monitor.advance().alerts == ()
    monitor.partitions.hold(partition(1))
    clock.advance(9.9)
    assert monitor.advance().alerts == ()
    assert alerts(monitor, [summary(1, 0, [(85, True), (200, True)])]) != []
    assert monitor.partitions.watermark_ms() == 200
    assert monitor.snapshot().late_records == 0


def test_an_idle_partition_lets_the_watermark_go() -> None:
    clock = ManualClock(NOW_MS)
    monitor = make_monitor(clock)
    monitor.partitions.hold(partition(1))
    clock.advance(5)
    monitor.add(summary(0, 0, stream(0, 100, 0)))
    assert monitor.snapshot().window_records == 0
    clock.advance(5)
    monitor.advance()
    assert monitor.snapshot().window_records == 40
    assert monitor.snapshot().open_panes == 1


def test_where_all_are_idle_the_newest_watermark_counts() -> None:
    clock = ManualClock(NOW_MS)
    monitor = make_monitor(clock)
    monitor.partitions.hold(partition(1))
    monitor.add(summary(0, 0, stream(0, 100, 0)))
    monitor.add(summary(1, 0, stream(0, 15, 0)))
    assert monitor.snapshot().window_records == 20
    assert monitor.partitions.watermark_ms() == 14
    clock.advance(10)
    monitor.advance()
    assert monitor.partitions.watermark_ms() == 99
    assert monitor.snapshot().open_panes == 1


def test_late_records_are_counted_and_judged() -> None:
    monitor = make_monitor(used=settings(alerts={"examples": 3}))
    monitor.add(summary(0, 0, stream(0, 100, 0)))
    backlog = summary(1, 0, stream(0, 50, 50))
    found = alerts(
        monitor, [backlog, summary(0, 100, [(150, False)]), summary(1, 50, [(150, False)])]
    )
    assert monitor.snapshot().late_records == 50
    alert = found[0]
    assert alert.window is not None
    assert alert.window.flagged == 50
    assert partition(1) in [r.partition for r in alert.offsets]
    assert [e.offset for e in alert.examples] == [0, 1, 2]


def test_a_source_whose_clock_lags_is_not_overlooked() -> None:
    """Two producers in one partition, one of them an hour behind: all records are judged."""
    hour_ms = 3_600_000
    rows = [Row(hour_ms + i if i % 2 else i, i % 2 == 0) for i in range(200)]
    monitor = make_monitor()
    found = alerts(monitor, segments(0, rows, [20] * 9)) + list(monitor.flush().alerts)
    assert found[0].change.reason is Reason.BEGAN
    assert monitor.snapshot().fraction == pytest.approx(0.5, abs=0.1)


def test_implausible_timestamps_are_counted() -> None:
    monitor = make_monitor()
    spoilt = dataclasses.replace(summary(0, 0, stream(0, 5, 0)), implausible_timestamps=2)
    monitor.add(spoilt)
    assert monitor.snapshot().implausible_timestamps == 2


@st.composite
def arrivals(draw: st.DrawFn) -> Problem:
    """Rows of some partitions in any order of time, cut anywhere, twice; the second shuffled."""
    rows = draw(
        st.lists(
            st.lists(
                st.builds(
                    Row,
                    st.integers(0, 300),
                    st.booleans(),
                    st.none(),
                    st.sampled_from(["a", "b", "c"]),
                ),
                min_size=1,
                max_size=40,
            ),
            min_size=1,
            max_size=4,
        )
    )

    def cut() -> list[list[SegmentSummary]]:
        sizes = st.lists(st.integers(1, 15), max_size=6)
        return [segments(number, part, draw(sizes)) for number, part in enumerate(rows)]

    whole = [each for chain in cut() for each in chain]
    chains = cut()
    shuffled = [each for chain in chains for each in chain]
    draw(st.randoms(use_true_random=False)).shuffle(shuffled)
    # A partition's first summary tells where its chain starts; all others may come in any order.
    firsts = {chain[0].partition: chain[0] for chain in chains}
    rest = [each for each in shuffled if each is not firsts[each.partition]]
    return rows, whole, [*firsts.values(), *rest]


def verdicts_of(used: Settings, partitions: int, summaries: list[SegmentSummary]) -> list[object]:
    monitor = make_monitor(used=used)
    for number in range(partitions):
        monitor.partitions.hold(partition(number))
    found = [*alerts(monitor, summaries), *monitor.flush().alerts]
    assert monitor.partitions.holes() == ()
    assert monitor.snapshot().late_records == 0
    return [
        [(a.key, a.change, a.time_ms, a.window, a.since, a.readings, a.keys) for a in found],
        monitor.snapshot().readings,
        monitor.snapshot().window_flagged,
    ]


@given(arrivals(), st.integers(15, 40))
def test_alerts_do_not_depend_on_workers_or_arrival(problem: Problem, size: int) -> None:
    """However rows are cut into segments and whatever comes first: the same alerts."""
    rows, whole, shuffled = problem
    drift = {"window_records": size, "keys": {"by": "key"}, "expected_run_length": 150}
    used = settings(drift=drift)
    expected = verdicts_of(used, len(rows), whole)
    assert verdicts_of(used, len(rows), shuffled) == expected


@pytest.mark.parametrize("seed", range(3))
def test_alerts_of_long_streams_do_not_depend_on_arrival(seed: int) -> None:
    rng = random.Random(seed)
    rows = [
        [
            Row(i + rng.randrange(60), rng.random() < (0.5 if 300 < i < 400 else 0.05), key=f"{k}")
            for i, k in enumerate(rng.choices(range(5), k=800))
        ]
        for _ in range(3)
    ]
    used = settings(drift={"window_records": 40, "keys": {"by": "key"}})

    def run() -> list[object]:
        cut = [segments(n, part, rng.choices(range(5, 40), k=40)) for n, part in enumerate(rows)]
        order = [number for number, chain in enumerate(cut) for _ in chain]
        rng.shuffle(order)
        queues = [iter(chain) for chain in cut]
        return verdicts_of(used, 3, [next(queues[number]) for number in order])

    first, second = run(), run()
    assert first[0]
    assert first == second
