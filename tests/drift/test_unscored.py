"""Streams that turn unreadable: the alert comes, says why, ends, and hangs on the rows alone."""

import random
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from nap_stream.clock import ManualClock
from nap_stream.core.alert_state import AlertState, Detector, Reason, Severity
from nap_stream.core.detection import unscored_delay
from nap_stream.drift.detectors import detection_plan
from nap_stream.drift.monitor import DriftMonitor
from nap_stream.drift.records import UnscoredAlert
from nap_stream.records import SegmentSummary, Status
from nap_stream.settings.schema import Settings
from tests.support.summaries import FACTS, PANE_MS, Row, partition, segments, settings, summary

NOW_MS = 1_000_000
RUN_LENGTH = 1e7
BOUND = 0.01
CORRUPT, EMPTY, TOMBSTONE = Status.CORRUPT, Status.EMPTY, Status.TOMBSTONE


def used_with(alerts: dict[str, Any] | None = None, **drift: Any) -> Settings:
    return settings(
        drift={"expected_run_length": RUN_LENGTH, "window_records": 100} | drift,
        alerts={"examples": 3} | (alerts or {}),
    )


def make_monitor(used: Settings | None = None) -> DriftMonitor:
    used = used or used_with()
    return DriftMonitor(detection_plan(used.drift, FACTS), used, ManualClock(NOW_MS))


def good(start_ms: int, count: int, key: str = "") -> list[Row]:
    """One a millisecond; each twentieth is flagged."""
    return [Row(start_ms + i, i % 20 == 0, key=key) for i in range(count)]


def bad(start_ms: int, count: int, status: Status = CORRUPT, key: str = "") -> list[Row]:
    return [Row(start_ms + i, flagged=False, key=key, status=status) for i in range(count)]


def mixed(start_ms: int, count: int, every: int, status: Status = CORRUPT) -> list[Row]:
    """One a millisecond, of which each so many cannot be read."""
    rows = good(start_ms, count)
    return [
        row._replace(status=status, flagged=False) if i % every == every - 1 else row
        for i, row in enumerate(rows)
    ]


def found_by(monitor: DriftMonitor, summaries: Iterable[SegmentSummary]) -> list[UnscoredAlert]:
    return [alert for each in summaries for alert in monitor.add(each).unscored]


def judged(rows: Sequence[Row], used: Settings | None = None) -> list[UnscoredAlert]:
    monitor = make_monitor(used)
    found = found_by(monitor, segments(0, rows, [40] * (len(rows) // 40)))
    return found + list(monitor.flush().unscored)


def reasons(found: Sequence[UnscoredAlert]) -> list[Reason]:
    return [alert.change.reason for alert in found]


def stated_delay(share: float, run_length: float = RUN_LENGTH) -> float:
    """Images until the alert, as a plan states it for panes of as many images as here."""
    found = unscored_delay(
        BOUND, share, run_length, pane_records=PANE_MS, generator=np.random.default_rng(0)
    )
    assert found.mean is not None
    return found.mean


def test_a_stream_that_turns_unreadable_alarms_within_the_delay_that_is_stated() -> None:
    (began,) = judged([*good(0, 600), *bad(600, 600)])
    assert began.change.reason is Reason.BEGAN
    assert began.change.alert.severity is Severity.CRITICAL
    assert began.time_ms - 600 <= stated_delay(1.0) == PANE_MS
    assert began.change.alert.onset_ms == 600
    assert (began.since.hits, began.since.records) == (10, 10)
    assert began.share.by_status == ((CORRUPT, 10),)
    assert began.window is not None
    assert (began.window.end_ms, began.time_ms) == (600, 610)


def test_the_verdict_on_drift_stays_as_of_its_newest_image() -> None:
    monitor = make_monitor()
    found_by(monitor, segments(0, [*good(0, 600), *bad(600, 600)], [40] * 30))
    monitor.flush()
    shown = monitor.snapshot()
    assert shown.state is AlertState.INACTIVE
    assert shown.window_end_ms == 600
    assert shown.watermark_ms == 1_199
    assert shown.unscored is not None
    assert (shown.unscored.end_ms, shown.unscored.share) == (1_200, 1.0)
    assert shown.unscored.severity is Severity.CRITICAL
    assert shown.unscored_since_ms == 610


@pytest.mark.parametrize(("every", "severity"), [(2, Severity.CRITICAL), (10, Severity.WARNING)])
def test_a_part_of_the_images_takes_longer(every: int, severity: Severity) -> None:
    found = judged([*good(0, 600), *mixed(600, 2_000, every)])
    assert reasons(found) == [Reason.BEGAN]
    assert found[0].change.alert.severity is severity
    # The mean delay, and what panes of ten images with a part in order add to it at most.
    assert found[0].time_ms - 600 <= stated_delay(1 / every) + 2 * PANE_MS
    assert abs(found[0].change.alert.onset_ms - 600) <= every


def test_it_is_over_once_images_can_be_read_again() -> None:
    began, ended = judged([*good(0, 600), *bad(600, 300), *good(900, 600)])
    assert (began.change.reason, ended.change.reason) == (Reason.BEGAN, Reason.ENDED)
    assert 900 < ended.time_ms <= 960
    assert ended.change.alert.since_ms == began.time_ms
    assert ended.share.severity is None
    assert ended.window is not None
    assert ended.window.end_ms == ended.time_ms


def test_a_share_within_the_bound_is_in_order() -> None:
    assert judged(mixed(0, 20_000, 100)) == []


def test_unreadable_from_the_first_image_on() -> None:
    (began,) = judged(bad(0, 400))
    assert began.time_ms == PANE_MS
    assert began.window is None
    monitor = make_monitor()
    found_by(monitor, segments(0, bad(0, 400), [50] * 8))
    monitor.flush()
    assert monitor.snapshot().fraction is None
    assert monitor.snapshot().unscored is not None


def test_deletion_markers_are_no_images() -> None:
    assert judged([*good(0, 300), *bad(300, 600, TOMBSTONE)]) == []
    monitor = make_monitor()
    found_by(monitor, [summary(0, 0, [*bad(0, 50, TOMBSTONE), *good(50, 50)])])
    monitor.flush()
    share = monitor.snapshot().unscored
    assert share is not None
    assert (share.images, share.unscored) == (50, 0)


def test_what_is_ignored_can_be_told() -> None:
    rows = [*good(0, 300), *bad(300, 300, TOMBSTONE)]
    counted = used_with(unscored={"ignored": []})
    assert [alert.share.by_status for alert in judged(rows, counted)] == [((TOMBSTONE, 10),)]
    lenient = used_with(unscored={"ignored": ["tombstone", "empty"]})
    assert judged([*good(0, 300), *bad(300, 300, EMPTY)], lenient) == []
    assert judged(rows, used_with(unscored=None)) == []


@pytest.mark.parametrize(
    "status", [s for s in Status if s not in {Status.OK, Status.TOMBSTONE}], ids=str
)
def test_every_status_counts(status: Status) -> None:
    (began,) = judged([*good(0, 300), *bad(300, 100, status)])
    assert began.share.by_status == ((status, 10),)
    assert [each.status for each in began.reasons] == [status]


def test_one_camera_of_ten_is_named() -> None:
    used = used_with(keys={"by": "key"})
    rows = [
        Row(i, i % 97 == 0, key=f"camera-{i % 10}")
        if i < 600 or i % 10 != 7
        else Row(i, flagged=False, key="camera-7", status=CORRUPT)
        for i in range(2_600)
    ]
    (began,) = judged(rows, used)
    assert began.keys[0].name == "camera-7"
    assert {each.key for each in began.examples} == {"camera-7"}
    assert began.share.share < 0.3


def test_examples_and_reasons_are_those_since_the_onset() -> None:
    early, late = bad(10, 1), [*bad(600, 15), *bad(615, 25, Status.TOO_LARGE)]
    rows = [*good(0, 10), *early, *good(11, 589), *late]
    monitor = make_monitor()
    (began,) = found_by(monitor, segments(0, rows, [40] * 15)) + list(monitor.flush().unscored)
    assert [each.offset for each in began.examples] == [600, 601, 602]
    assert [(each.status, each.images) for each in began.reasons] == [(CORRUPT, 10)]
    assert all(each.segment.endswith(f"{600:020}.parquet") for each in began.examples)


def test_errors_that_differ_in_numbers_alone_are_one_reason() -> None:
    monitor = make_monitor()
    first = summary(0, 0, bad(0, 20))
    told = tuple(
        each.__class__(
            **{name: getattr(each, name) for name in each.__slots__}
            | {"error": f"starts with {i:02x} {255 - i:02x}, {i} bytes"}
        )
        for i, each in enumerate(first.unscored)
    )
    spoilt = summary(0, 0, bad(0, 20)).__class__(
        **{name: getattr(first, name) for name in first.__slots__} | {"unscored": told}
    )
    (began,) = found_by(monitor, [spoilt])
    assert [(each.error, each.images) for each in began.reasons] == [
        ("starts with 00 ff, 0 bytes", 10)
    ]


def test_it_repeats_and_escalates_in_event_time() -> None:
    used = used_with({"repeat_interval_s": 1.0, "critical_fraction": 0.6})
    rows = [*mixed(0, 1_500, 5), *bad(1_500, 3_000)]
    found = judged(rows, used)
    assert reasons(found)[0] is Reason.BEGAN
    assert reasons(found).count(Reason.ESCALATED) == 1
    escalated = found[reasons(found).index(Reason.ESCALATED)]
    assert escalated.change.previous_severity is Severity.WARNING
    assert 1_500 < escalated.time_ms <= 1_600
    sent = [alert.time_ms for alert in found]
    assert {b - a for a, b in pairwise(sent[reasons(found).index(Reason.ESCALATED) :])} == {1_000}


def test_beside_every_alert_of_drift_stands_the_share() -> None:
    rows = [*good(0, 400), *(Row(400 + i, flagged=i % 2 == 0) for i in range(100))]
    spoilt = [row._replace(status=CORRUPT) if i % 50 == 49 else row for i, row in enumerate(rows)]
    monitor = make_monitor(used_with(expected_run_length=1e4))
    alerts = [a for each in segments(0, spoilt, [50] * 9) for a in monitor.add(each).alerts]
    assert alerts
    for alert in alerts:
        assert alert.unscored is not None
        assert alert.unscored.end_ms == alert.time_ms
        assert alert.unscored.unscored == 2


def verdicts(
    chains: Sequence[Sequence[SegmentSummary]], used: Settings, order: random.Random
) -> list[UnscoredAlert]:
    monitor = make_monitor(used)
    for number in range(len(chains)):
        monitor.partitions.hold(partition(number))
    queues = [iter(chain) for chain in chains]
    turns = [number for number, chain in enumerate(chains) for _ in chain]
    order.shuffle(turns)
    found = found_by(monitor, [next(queues[number]) for number in turns])
    return found + list(monitor.flush().unscored)


@pytest.mark.parametrize("seed", range(3))
def test_it_depends_on_the_rows_alone(seed: int) -> None:
    """Any number of workers, any cut into segments, any order of arrival, times out of order."""
    rng = random.Random(seed)
    used = used_with(unscored={"bound": 0.05}, keys={"by": "key"})
    rows = [
        [
            Row(
                i + rng.randrange(60),
                flagged=False,
                key=str(i % 3),
                status=CORRUPT if rng.random() < (0.5 if 300 < i < 400 else 0.03) else Status.OK,
            )
            for i in range(800)
        ]
        for _ in range(3)
    ]

    def run() -> list[UnscoredAlert]:
        cut = [segments(n, part, rng.choices(range(5, 40), k=40)) for n, part in enumerate(rows)]
        return verdicts(cut, used, rng)

    def told(found: list[UnscoredAlert]) -> list[object]:
        return [
            (
                *(a.change, a.time_ms, a.share, a.since, a.reading, a.keys, a.window),
                *((r.status, r.images, r.partition, r.offset) for r in (*a.reasons, *a.examples)),
            )
            for a in found
        ]

    first, second = run(), run()
    assert Reason.BEGAN in reasons(first)
    assert Reason.ENDED in reasons(first)
    assert told(first) == told(second)


@pytest.mark.parametrize("stop", [0, 3, 15, 17, 22, 30])
def test_a_monitor_that_is_restored_goes_on_as_if_nothing_had_happened(stop: int) -> None:
    rows = [*good(0, 600), *mixed(600, 300, 3), *good(900, 300)]
    chain = segments(0, rows, [40] * 30)
    undisturbed, stopped, resumed = make_monitor(), make_monitor(), make_monitor()
    expected = found_by(undisturbed, chain)
    before = found_by(stopped, chain[:stop])
    assert resumed.restore(stopped.dump())
    assert resumed.dump() == stopped.dump()
    assert before + found_by(resumed, chain[stop:]) == expected
    assert reasons(expected) == [Reason.BEGAN, Reason.ENDED]
    assert resumed.dump() == undisturbed.dump()


def test_under_another_bound_it_begins_anew_and_drift_goes_on() -> None:
    monitor = make_monitor()
    found_by(monitor, segments(0, [*good(0, 600), *bad(600, 100)], [40] * 17))
    content = monitor.dump()
    other = make_monitor(used_with(unscored={"bound": 0.2}))
    assert other.restore(content)
    shown = other.snapshot()
    assert shown.window_records == monitor.snapshot().window_records
    assert shown.unscored is None
    without = make_monitor(used_with(unscored=None))
    assert without.restore(content)
    assert without.snapshot().unscored is None
    assert make_monitor().restore(without.dump())


def test_a_partition_that_lags_holds_it_back_and_what_comes_late_counts() -> None:
    monitor = make_monitor()
    monitor.partitions.hold(partition(1))
    assert found_by(monitor, [summary(0, 0, bad(0, 200))]) == []
    (began,) = found_by(monitor, [summary(1, 0, good(0, 200))])
    assert began.since.share == 0.5
    late = found_by(make_monitor(), [summary(0, 0, good(0, 200)), summary(1, 0, bad(0, 150))])
    assert late == []
    monitor = make_monitor()
    found_by(monitor, [summary(0, 0, good(0, 200)), summary(1, 0, bad(0, 150))])
    (told,) = monitor.flush().unscored
    assert told.share.unscored == 150
    assert told.examples[0].partition == partition(1)


def test_both_alerts_fire_side_by_side() -> None:
    rows = [*good(0, 400)]
    for i in range(300):
        status = CORRUPT if i % 2 else Status.OK
        rows.append(Row(400 + i, flagged=status is Status.OK, status=status))
    monitor = make_monitor()
    updates = [monitor.add(each) for each in segments(0, rows, [40] * 18)]
    decided = [alert for update in updates for alert in update.decided]
    kinds = {type(alert).__name__ for alert in decided}
    assert kinds == {"DriftAlert", "UnscoredAlert"}
    assert [alert.time_ms for alert in decided] == sorted(alert.time_ms for alert in decided)
    detectors = [r.detector for r in (monitor.snapshot().unscored_reading,) if r is not None]
    assert detectors == [Detector.UNSCORED_IMAGES]
