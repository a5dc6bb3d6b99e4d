"""Blocks that decide: the stream and its cameras, beside a baseline."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nap_stream.clock import ManualClock
from nap_stream.core.alert_state import Detector, Reason, Severity, Transition
from nap_stream.core.block_readings import JudgedBy
from nap_stream.core.hidden_keys import CLEAR, HiddenKeys, Stored
from nap_stream.core.panes import NO_KEY, key_text
from nap_stream.core.time_kinds import TimeKinds
from nap_stream.drift.block_alerts import block_watch, keys_stored_otherwise
from nap_stream.drift.detectors import detection_plan
from nap_stream.drift.monitor import DriftMonitor
from nap_stream.drift.records import CalibrationFacts, DriftAlert
from nap_stream.errors import ConfigError
from nap_stream.records import Acceptance, SegmentSummary
from nap_stream.settings.schema import Settings
from tests.support.baselines import (
    BASELINE_MS,
    BLOCK_MS,
    USUAL,
    cameras,
    with_baseline,
)
from tests.support.summaries import FACTS, PANE_MS, Row, partition, segments, settings

FACTS_OF = with_baseline()
BAD = "camera-2"
START_MS = BASELINE_MS
TURNS_MS, BACK_MS, END_MS = (START_MS + blocks * BLOCK_MS for blocks in (10, 40, 80))
KEYED: dict[str, Any] = {"window_records": 60, "keys": {"by": "key"}, "unscored": None}


def used(**drift: Any) -> Settings:
    return settings(drift=KEYED | drift, alerts={"repeat_interval_s": 100.0})


def make_monitor(given: Settings | None = None, facts: CalibrationFacts = FACTS_OF) -> DriftMonitor:
    given = used() if given is None else given
    plan, watch = detection_plan(given.drift, facts), block_watch(given.drift, facts)
    return DriftMonitor(plan, given, ManualClock(), watch=watch)


def broken(bad_until_ms: int = BACK_MS, rate: float = 0.7, end_ms: int = END_MS) -> list[Row]:
    """One of three cameras turns bad for a while."""
    bad = {**USUAL, BAD: rate}
    return [
        *cameras(START_MS, TURNS_MS, seed=1),
        *cameras(TURNS_MS, bad_until_ms, bad, seed=2),
        *(cameras(bad_until_ms, end_ms, seed=3) if bad_until_ms < end_ms else []),
    ]


def chain(rows: Sequence[Row], size: int = 50) -> list[SegmentSummary]:
    return segments(0, rows, [size] * (len(rows) // size))


def fed(monitor: DriftMonitor, summaries: Iterable[SegmentSummary]) -> list[DriftAlert]:
    return [alert for each in summaries for alert in monitor.add(each).alerts]


def told(alerts: Iterable[DriftAlert]) -> list[tuple[str | None, Reason]]:
    return [(alert.key, alert.change.reason) for alert in alerts]


def accepted(
    number: int, effective_ms: int, key: str = BAD, made_ms: int = 1, from_ms: int = TURNS_MS
) -> Acceptance:
    by = ("Ann", "line 2 was retooled")
    return Acceptance(number, "images", key, from_ms, effective_ms, made_ms, *by)


def test_runs_of_flags_as_in_the_baseline_raise_no_alarm() -> None:
    """They do where single records decide, whose promise needs independence."""
    rows = chain(cameras(START_MS, START_MS + 100 * BLOCK_MS, seed=7))
    of_records = fed(make_monitor(facts=FACTS), rows)
    assert {alert.change.reason for alert in of_records} >= {Reason.BEGAN}
    monitor = make_monitor()
    assert fed(monitor, rows) == []
    found = monitor.snapshot()
    assert [each.deciding for each in found.readings] == [False] * 3
    assert found.blocks is not None
    assert found.blocks.judged_until_ms == START_MS + 99 * BLOCK_MS
    assert (found.blocks.known_keys, found.keys) == (3, 3)
    assert "blocks of less than 1 s decide" in found.blocks.words


def test_a_camera_that_turns_bad_and_comes_back() -> None:
    monitor = make_monitor(used(expected_run_length=1e6))
    found = [a for a in fed(monitor, chain(broken())) if a.key is not None]
    assert told(found) == [(BAD, Reason.BEGAN), (BAD, Reason.ENDED)]
    began, ended = found
    assert began.change.alert.detectors == (Detector.BLOCKS,)
    assert began.change.alert.severity is Severity.CRITICAL
    assert TURNS_MS < began.time_ms <= TURNS_MS + 15 * BLOCK_MS
    assert began.time_ms % BLOCK_MS == 0, "at the end of a block"
    assert abs(began.change.alert.onset_ms - TURNS_MS) <= 2 * BLOCK_MS
    assert BACK_MS < ended.time_ms <= BACK_MS + 5 * BLOCK_MS
    block = began.block
    assert block is not None
    assert (block.reading.judged_by, block.block_ms) == (JudgedBy.OWN, BLOCK_MS)
    assert block.reading.share == pytest.approx(0.7, abs=0.3)
    assert block.reading.baseline_share == pytest.approx(USUAL[BAD], abs=0.05)
    assert block.baseline_blocks in range(50, 61)
    assert (block.since_ms, block.until_ms) == (0, BASELINE_MS)
    assert [(each.detector, each.deciding) for each in began.readings] == [(Detector.BLOCKS, True)]
    assert began.since.records == block.reading.records


def test_the_whole_stream_without_keys() -> None:
    given = used(keys=None)
    bad = dict.fromkeys(USUAL, 0.5)
    rows = [*cameras(START_MS, TURNS_MS, seed=1), *cameras(TURNS_MS, BACK_MS, bad, seed=2)]
    monitor = make_monitor(given)
    found = fed(monitor, chain([row._replace(key="") for row in rows]))
    assert told(found) == [(None, Reason.BEGAN)]
    names = [each.detector for each in found[0].readings if not each.deciding]
    assert names == [Detector.OOD_WINDOW, Detector.OOD_SEQUENTIAL, Detector.SCORE_SHIFT]
    blocks = monitor.snapshot().blocks
    assert blocks is not None
    assert blocks.known_keys == 0


def test_blocks_may_be_switched_off() -> None:
    given = used(blocks="off")
    assert block_watch(given.drift, FACTS_OF) is None
    rows = chain(broken())
    assert fed(make_monitor(given), rows) == fed(make_monitor(facts=FACTS), rows)


@pytest.mark.parametrize(
    ("by", "said"),
    [
        ("header:camera", "Set it to header:camera, or make another baseline"),
        (None, "Make a baseline with keys, or set drift.keys to null"),
    ],
)
def test_the_keys_must_be_those_of_the_baseline(by: str | None, said: str) -> None:
    assert FACTS_OF.baseline is not None
    facts = replace(FACTS_OF, baseline=replace(FACTS_OF.baseline, by=by))
    with pytest.raises(ConfigError, match=r"drift\.keys\.by") as caught:
        block_watch(used().drift, facts)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("one_per_pane", "theirs_ms", "said"),
    [
        (False, 10, "count one record of a key in 10 ms, the monitor all records"),
        (True, None, "count all records, the monitor one record of a key in 10 ms"),
        (True, 20, "in 20 ms, the monitor one record of a key in 10 ms"),
    ],
)
def test_records_must_be_counted_as_in_the_baseline(
    one_per_pane: bool, theirs_ms: int | None, said: str
) -> None:
    assert FACTS_OF.baseline is not None
    facts = replace(FACTS_OF, baseline=replace(FACTS_OF.baseline, one_per_pane_ms=theirs_ms))
    given = used(keys={"by": "key", "one_per_pane": one_per_pane})
    with pytest.raises(ConfigError, match=said):
        block_watch(given.drift, facts)
    without = used(keys=None).drift
    if theirs_ms is None:
        assert block_watch(without, facts) is not None
    else:
        with pytest.raises(
            ConfigError, match=r"drift\.keys: .*count one record of a key in"
        ) as bad:
            block_watch(without, facts)
        assert "Set it as it was, or make another baseline without keys" in str(bad.value)


@pytest.mark.parametrize("pane_ms", [30, 100])
def test_a_block_must_be_whole_panes(pane_ms: int) -> None:
    with pytest.raises(ConfigError, match=r"drift\.pane_ms: blocks of 50 ms are no whole number"):
        block_watch(used(pane_ms=pane_ms).drift, FACTS_OF)


@pytest.mark.parametrize("keys", [None, {"by": "key"}])
def test_a_kind_of_time_without_blocks_is_refused(keys: dict[str, str] | None) -> None:
    assert FACTS_OF.baseline is not None
    # All blocks of the baseline are of the first three seconds of the day.
    kinds = TimeKinds((0, 12))
    facts = replace(FACTS_OF, baseline=replace(FACTS_OF.baseline, kinds=kinds))
    with pytest.raises(ConfigError, match="whole stream at 12:00-00:00: nothing watches it"):
        block_watch(used(keys=keys).drift, facts)


def test_a_promise_shorter_than_a_block_is_refused() -> None:
    # A baseline of ten times as many records a block.
    facts = with_baseline([each for row in cameras(0, BASELINE_MS) for each in [row] * 10])
    with pytest.raises(ConfigError, match="cannot be promised in blocks"):
        block_watch(used(expected_run_length=400).drift, facts)


def test_the_time_is_the_one_that_was_asked_for() -> None:
    given = used(expected_run_length=None, false_alarms="probability 0.1 in 2 hours at 7 images/s")
    watch = block_watch(given.drift, FACTS_OF)
    assert watch is not None
    assert watch.plan.run_time_ms == 20 * 3_600_000
    in_records = block_watch(used(expected_run_length=1e4).drift, FACTS_OF)
    assert in_records is not None
    # A record a millisecond.
    assert in_records.plan.run_time_ms == 10_000


@pytest.mark.parametrize("late", [0, 1])
def test_an_accepted_change_ends_the_alert_at_its_time(late: int) -> None:
    rows, effective_ms = chain(broken(END_MS)), TURNS_MS + 25 * BLOCK_MS + 5
    monitor = make_monitor()
    early = [acc for acc in (accepted(0, effective_ms),) if not late]
    monitor.accept(early)
    found = fed(monitor, rows[:20])
    monitor.accept([accepted(0, effective_ms)])
    monitor.accept([accepted(0, effective_ms)])
    found += fed(monitor, rows[20:])
    of_key = [alert for alert in found if alert.key == BAD]
    assert told(of_key) == [(BAD, Reason.BEGAN), (BAD, Reason.ACCEPTED)]
    ended = of_key[1]
    assert ended.change.transition is Transition.RESOLVED
    assert ended.time_ms == effective_ms - effective_ms % PANE_MS + PANE_MS
    assert ended.acceptance == accepted(0, effective_ms)
    blocks = monitor.snapshot().blocks
    assert blocks is not None
    assert (blocks.accepted, blocks.new_keys) == (1, 1)


def test_an_acceptance_that_comes_too_late_is_told() -> None:
    monitor, rows = make_monitor(), chain(broken())
    with capture_logs() as logs:
        monitor.accept([accepted(0, TURNS_MS + 25 * BLOCK_MS)])
        fed(monitor, rows[:45])
        monitor.accept([accepted(0, TURNS_MS + 25 * BLOCK_MS)])
        assert logs == [], "it was known in time"
        monitor.accept([accepted(1, TURNS_MS + 26 * BLOCK_MS, "camera-1")])
    assert [(line["event"], line["number"]) for line in logs] == [("acceptance_late", 1)]


@pytest.mark.parametrize(
    ("made_ms", "from_ms", "ends"),
    [(9, BASELINE_MS - 1, []), (10, BASELINE_MS - 1, [0]), (9, BASELINE_MS, [0])],
)
def test_acceptances_of_before_the_baseline_are_part_of_it(
    made_ms: int, from_ms: int, ends: list[int]
) -> None:
    """Unless what they accept came after its stretch."""
    monitor = make_monitor(facts=with_baseline(made_ms=10))
    effective_ms = TURNS_MS + 25 * BLOCK_MS
    monitor.accept([accepted(0, effective_ms, made_ms=made_ms, from_ms=from_ms)])
    found = fed(monitor, chain(broken(TURNS_MS + 28 * BLOCK_MS, end_ms=0)))
    assert (BAD, Reason.BEGAN) in told(found)
    assert [each.acceptance.number for each in found if each.acceptance] == ends


def test_what_was_accepted_is_learned_and_watched_again() -> None:
    """It stays at 70 %, then goes up: the first is accepted, the second is not."""
    bad, worse = {**USUAL, BAD: 0.4}, {**USUAL, BAD: 0.97}
    again_ms = TURNS_MS + 90 * BLOCK_MS
    rows = [
        *cameras(START_MS, TURNS_MS, seed=1),
        *cameras(TURNS_MS, again_ms, bad, seed=2),
        *cameras(again_ms, again_ms + 25 * BLOCK_MS, worse, seed=3),
    ]
    monitor = make_monitor()
    monitor.accept([accepted(0, TURNS_MS + 25 * BLOCK_MS)])
    found = [alert for alert in fed(monitor, chain(rows)) if alert.key == BAD]
    assert told(found) == [(BAD, Reason.BEGAN), (BAD, Reason.ACCEPTED), (BAD, Reason.BEGAN)]
    assert found[2].time_ms > again_ms
    assert found[2].block is not None
    assert found[2].block.reading.judged_by is JudgedBy.LEARNED
    assert found[2].block.reading.baseline_share == pytest.approx(0.4, abs=0.15)


def test_a_camera_that_the_baseline_does_not_know() -> None:
    rates = {**USUAL, "camera-9": 0.06}
    bad = {**rates, "camera-9": 0.9}
    rows = [
        *cameras(START_MS, TURNS_MS, rates, seed=4),
        *cameras(TURNS_MS, BACK_MS, bad, seed=5),
    ]
    monitor = make_monitor()
    found = [alert for alert in fed(monitor, chain(rows)) if alert.key is not None]
    assert told(found) == [("camera-9", Reason.BEGAN)]
    assert found[0].block is not None
    assert found[0].block.reading.judged_by is JudgedBy.LEARNING
    blocks = monitor.snapshot().blocks
    assert blocks is not None
    assert (blocks.new_keys, blocks.known_keys, blocks.waiting_keys) == (1, 3, 0)


def test_only_so_many_fire_and_what_falls_silent_gives_up_its_place() -> None:
    given = used(keys={"by": "key", "max_firing": 1})
    bad = {**USUAL, "camera-1": 0.8, "camera-2": 0.8}
    alone = {"camera-2": 0.8, "camera-3": 0.1}
    silence_ms = 20 * BLOCK_MS
    given = given.model_copy(
        update={"alerts": given.alerts.model_copy(update={"repeat_interval_s": silence_ms / 1000})}
    )
    rows = [
        *cameras(START_MS, START_MS + 25 * BLOCK_MS, bad, seed=2),
        *cameras(START_MS + 25 * BLOCK_MS, START_MS + 55 * BLOCK_MS, alone, seed=3),
    ]
    monitor = make_monitor(given)
    found = [alert for alert in fed(monitor, chain(rows)) if alert.key is not None]
    kept = [each for each in told(found) if each[1] is not Reason.REPEATED]
    assert kept == [
        ("camera-1", Reason.BEGAN),
        ("camera-1", Reason.SILENT),
        ("camera-2", Reason.BEGAN),
    ]
    assert monitor.snapshot().keys_active == 1


def test_the_month_is_compared_with_the_baseline() -> None:
    monitor = make_monitor()
    fed(monitor, chain(cameras(START_MS, START_MS + 9 * BLOCK_MS, seed=1)))
    blocks = monitor.snapshot().blocks
    assert blocks is not None
    assert blocks.month is None, "few blocks say little"
    fed(monitor, [segments(0, [Row(0, flagged=False)] * 450 + broken(END_MS), [450])[1]])
    blocks = monitor.snapshot().blocks
    assert blocks is not None
    assert blocks.month is not None
    month = blocks.month
    assert month.month_ms == 0
    assert month.baseline_share == pytest.approx(0.06, abs=0.03)
    assert month.low < month.change < month.high
    assert month.change == pytest.approx(month.share - month.baseline_share)
    assert month.low > 0.05, "one camera of three is at 70 %"


ACCEPTANCES = [
    accepted(0, TURNS_MS + 20 * BLOCK_MS),
    accepted(2, TURNS_MS + 20 * BLOCK_MS, "camera-3"),
    accepted(1, TURNS_MS + 28 * BLOCK_MS, "camera-unknown"),
]


def turns_and_is_accepted(seed: int) -> list[list[Row]]:
    """Three partitions, with records a little out of order; a camera that goes, and a new one."""
    rng = random.Random(seed)
    bad = {**USUAL, BAD: 0.8, "camera-8": 0.3}
    gone = {name: rate for name, rate in bad.items() if name != "camera-1"}
    rows = [
        *cameras(START_MS, TURNS_MS, seed=seed),
        *cameras(TURNS_MS, BACK_MS, bad, seed=seed + 1),
        *cameras(BACK_MS, BACK_MS + 20 * BLOCK_MS, gone, seed=seed + 2),
    ]
    parts: list[list[Row]] = [[], [], []]
    for row in rows:
        parts[rng.randrange(3)].append(row._replace(time_ms=row.time_ms - rng.randrange(15)))
    return parts


def story(
    queues: Sequence[Sequence[SegmentSummary]], rng: random.Random, restarts: int
) -> list[object]:
    """What a monitor tells, of summaries that come in any order, with restarts in between."""
    given = used()
    monitor = make_monitor(given)
    monitor.accept(ACCEPTANCES)
    for number in range(len(queues)):
        monitor.partitions.hold(partition(number))
    order = [number for number, queue in enumerate(queues) for _ in queue]
    rng.shuffle(order)
    stops = {rng.randrange(len(order)) for _ in range(restarts)}
    left = [iter(queue) for queue in queues]
    found: list[DriftAlert] = []
    for turn, number in enumerate(order):
        if turn in stops:
            content, monitor = monitor.dump(), make_monitor(given)
            monitor.accept(ACCEPTANCES[::-1])
            assert monitor.restore(content)
            assert monitor.dump() == content
            for each in range(len(queues)):
                monitor.partitions.hold(partition(each))
        found += monitor.add(next(left[number])).alerts
    found += monitor.flush().alerts
    now = monitor.snapshot()
    assert now.late_records == 0
    assert now.blocks is not None
    parts = [
        (a.key, a.change, a.time_ms, a.since, a.readings, a.block, a.acceptance) for a in found
    ]
    return [parts, now.blocks, now.keys, now.keys_active, now.keys_firing]


def test_alerts_of_blocks_are_those_of_any_other_cut_and_restart() -> None:
    require_one_story(0, 0)


@pytest.mark.slow
@settings_of_hypothesis(max_examples=10, deadline=None)
@given(st.integers(0, 2), st.integers(0, 2**32))
def test_alerts_do_not_depend_on_segments_arrival_or_restarts(seed: int, shuffle: int) -> None:
    require_one_story(seed, shuffle)


def require_one_story(seed: int, shuffle: int) -> None:
    rows, rng = turns_and_is_accepted(seed), random.Random(shuffle)
    whole = [segments(number, part, [100] * 60) for number, part in enumerate(rows)]
    expected = story(whole, random.Random(0), 0)
    cut = [
        segments(number, part, [rng.randrange(20, 200) for _ in range(60)])
        for number, part in enumerate(rows)
    ]
    assert story(cut, rng, 3) == expected
    reasons = {parts[1].reason for parts in expected[0]}  # type: ignore[attr-defined]
    assert {Reason.BEGAN, Reason.ACCEPTED} <= reasons


def test_a_checkpoint_is_of_its_baseline() -> None:
    rows = chain(broken())[:30]
    monitor = make_monitor()
    fed(monitor, rows)
    content = monitor.dump()
    other = replace(with_baseline(cameras(0, BASELINE_MS, seed=9)), fingerprint="d" * 64)
    for another in (
        make_monitor(facts=other),
        make_monitor(facts=FACTS),
        make_monitor(used(blocks="off")),
    ):
        assert not another.restore(content)
    off = make_monitor(used(blocks="off"))
    assert off.restore(make_monitor(facts=FACTS).dump()), "as before there were blocks"
    assert not make_monitor().restore(off.dump())


@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        (CLEAR, ""),
        (HiddenKeys(key=Stored.HASHED, secret=b"s" * 16), "in clear, and those of the log are"),
        (HiddenKeys(key=Stored.DROPPED), "in clear, and those of the log are"),
        (HiddenKeys(headers=(("camera", Stored.DROPPED),)), ""),
    ],
)
def test_keys_that_the_log_stores_otherwise_than_the_baseline_are_told(
    hidden: HiddenKeys, said: str
) -> None:
    told = " ".join(keys_stored_otherwise(FACTS_OF, hidden))
    assert (said in told, bool(told)) == (True, bool(said))


def test_hashes_in_a_baseline_are_told_where_the_log_has_keys_in_clear() -> None:
    assert FACTS_OF.baseline is not None
    hidden = HiddenKeys(key=Stored.HASHED, secret=b"s" * 16)
    blocks = FACTS_OF.baseline.blocks
    names = (NO_KEY, *(key_text(hidden.of_key(name.encode())) for name in blocks.keys[1:]))
    baseline = replace(FACTS_OF.baseline, blocks=replace(blocks, keys=tuple(sorted(names))))
    facts = replace(FACTS_OF, baseline=baseline)
    assert keys_stored_otherwise(facts, hidden) == ()
    assert "as hashes, and those of the log are in clear" in keys_stored_otherwise(facts, CLEAR)[0]
