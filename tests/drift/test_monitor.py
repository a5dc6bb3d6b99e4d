import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.clock import ManualClock
from nap_stream.core.alert_state import AlertState, Transition
from nap_stream.core.bounds import flag_limit
from nap_stream.core.windows import RollingWindow, panes_of
from nap_stream.drift.monitor import MAX_CLOCK_SKEW_MS, DriftMonitor
from nap_stream.records import DriftVerdict, OffsetRange, SegmentSummary
from tests.support.summaries import FACTS, PANE_MS, Row, partition, segments, settings, summary

NOW_MS = 1_000_000
LIMIT = flag_limit(40, 10, 199, 1e-3)
RESOLVE_LIMIT = flag_limit(40, 10, 199, 0.05)


def make_monitor(clock: ManualClock | None = None, examples: int = 3) -> DriftMonitor:
    clock = clock or ManualClock(NOW_MS)
    return DriftMonitor(settings().drift, FACTS, examples=examples, clock=clock)


def stream(start_ms: int, records: int, flagged: int) -> list[Row]:
    """One record a millisecond; the flagged ones come first."""
    return [(start_ms + i, i < flagged) for i in range(records)]


def verdicts(monitor: DriftMonitor, summaries: Iterable[SegmentSummary]) -> list[DriftVerdict]:
    return [verdict for each in summaries for verdict in monitor.add(each).verdicts]


def test_fires_and_resolves_at_the_limits() -> None:
    monitor = make_monitor()
    calm, drifted = stream(0, 40, LIMIT - 1), stream(40, 40, LIMIT)
    middling, back = stream(80, 40, RESOLVE_LIMIT), stream(120, 40, RESOLVE_LIMIT - 1)
    chain = segments(0, [*calm, *drifted, *middling, *back, (200, False)], [40, 40, 40, 40])

    found = verdicts(monitor, chain)

    by_end = {verdict.window_end_ms: verdict for verdict in found}
    assert by_end[40].state is AlertState.INACTIVE
    assert by_end[40].flagged == LIMIT - 1
    assert by_end[80].flagged == LIMIT
    assert by_end[120].state is AlertState.FIRING
    assert by_end[120].flagged == RESOLVE_LIMIT
    assert by_end[160].state is AlertState.INACTIVE
    transitions = [verdict for verdict in found if verdict.transition]
    assert [verdict.transition for verdict in transitions] == [
        Transition.FIRING,
        Transition.RESOLVED,
    ]
    assert transitions[0].window_end_ms <= 80
    assert transitions[0].flagged >= LIMIT
    assert transitions[1].flagged < RESOLVE_LIMIT
    assert (transitions[0].firing_limit, transitions[0].resolve_limit) == (LIMIT, RESOLVE_LIMIT)
    assert transitions[0].fraction == transitions[0].flagged / 40
    assert transitions[0].bound == LIMIT / 40


def test_no_verdict_before_the_window_is_full() -> None:
    monitor = make_monitor()
    assert verdicts(monitor, [summary(0, 0, stream(0, 39, 39)), summary(0, 39, [(95, True)])]) == []
    assert monitor.snapshot().firing_limit is None
    assert monitor.snapshot().window_records == 39
    assert [v.records for v in monitor.flush().verdicts] == [40]
    assert monitor.snapshot().bound == LIMIT / 40
    assert monitor.snapshot().fraction == 1.0


def test_evidence_is_that_of_the_window() -> None:
    monitor = make_monitor()
    first, second = stream(0, 40, 0), stream(40, 40, 40)
    other = [(45, True), (99, False)]
    monitor.hold(partition(1))
    chain = segments(0, [*first, *second, (99, False)], [20, 20, 40])

    found = verdicts(monitor, [*chain, summary(1, 500, other)])

    alert = next(verdict for verdict in found if verdict.transition)
    assert alert.flagged >= LIMIT
    assert alert.offsets[-1] == OffsetRange(partition(1), 500, 502)
    assert alert.offsets[0].partition == partition(0)
    assert alert.offsets[0].start <= 40
    assert alert.offsets[0].end == 80
    # Partition 0 at 40 ms and partition 1 at 45 ms have the same p-value; at most 3 are shown.
    shown = [(e.partition.partition, e.offset, e.ood_p_value) for e in alert.examples]
    assert shown == [(0, 40, 0.005), (1, 500, 0.005), (0, 41, 0.0051)]
    quiet = [verdict for verdict in found if not verdict.transition]
    assert quiet
    assert not any(verdict.offsets or verdict.examples for verdict in quiet)


def test_a_summary_counts_once() -> None:
    monitor = make_monitor()
    chain = segments(0, stream(0, 100, 5), [30, 30, 30])
    assert len(monitor.add(chain[0]).accepted) == 1
    again = monitor.add(chain[0])
    assert again.accepted == ()
    assert again.verdicts == ()
    assert monitor.snapshot().duplicates == 1
    once = make_monitor()
    expected = verdicts(once, chain)
    assert verdicts(monitor, [*chain, *chain]) == expected
    assert monitor.snapshot().window_records == once.snapshot().window_records


def test_holes_are_told_filled_and_skipped() -> None:
    monitor = make_monitor()
    first, second, third = segments(0, stream(0, 90, 0), [30, 30])
    monitor.add(first)
    assert monitor.add(third).accepted == ()
    assert monitor.end(partition(0)) == 30
    assert monitor.holes() == (OffsetRange(partition(0), 30, 60),)
    assert monitor.add(second).accepted == (second, third)
    assert monitor.holes() == ()

    late = make_monitor()
    late.add(first)
    late.add(third)
    assert late.skip_hole(partition(0)).accepted == (third,)
    assert late.end(partition(0)) == 90


def test_a_gap_has_no_records_and_moves_on() -> None:
    monitor = make_monitor()
    monitor.add(summary(0, 0, stream(0, 10, 0)))
    gap = summary(0, 10, [], end=1_000, gap="retention")
    assert monitor.add(gap).accepted == (gap,)
    assert monitor.end(partition(0)) == 1_000


def test_a_partition_that_is_expected_holds_the_watermark_back() -> None:
    clock = ManualClock(NOW_MS)
    monitor = make_monitor(clock)
    monitor.hold(partition(1))
    assert verdicts(monitor, [summary(0, 0, stream(0, 100, 0))]) == []
    clock.advance(9.9)
    assert monitor.advance().verdicts == ()
    monitor.hold(partition(1))
    clock.advance(9.9)
    assert monitor.advance().verdicts == ()
    assert verdicts(monitor, [summary(1, 0, [(85, True), (200, True)])]) != []
    assert monitor.snapshot().late_records == 0


def test_an_idle_partition_lets_the_watermark_go() -> None:
    clock = ManualClock(NOW_MS)
    monitor = make_monitor(clock)
    monitor.hold(partition(1))
    clock.advance(5)
    assert verdicts(monitor, [summary(0, 0, stream(0, 100, 0))]) == []
    clock.advance(5)
    assert monitor.advance().verdicts[-1].window_end_ms == 90


def test_where_all_are_idle_the_newest_watermark_counts() -> None:
    clock = ManualClock(NOW_MS)
    monitor = make_monitor(clock)
    monitor.hold(partition(1))
    monitor.add(summary(0, 0, stream(0, 100, 0)))
    monitor.add(summary(1, 0, stream(0, 15, 0)))
    assert monitor.snapshot().window_records == 20
    clock.advance(10)
    assert monitor.advance().verdicts[-1].window_end_ms == 90


def test_late_records_are_counted_and_judged() -> None:
    clock = ManualClock(NOW_MS)
    monitor = make_monitor(clock)
    monitor.add(summary(0, 0, stream(0, 100, 0)))
    assert monitor.snapshot().window_records < 100
    backlog = summary(1, 0, stream(0, 50, 50))
    found = verdicts(
        monitor, [backlog, summary(0, 100, [(150, False)]), summary(1, 50, [(150, False)])]
    )
    assert monitor.snapshot().late_records == 50
    alert = next(verdict for verdict in found if verdict.transition)
    assert alert.flagged == 50
    assert partition(1) in [r.partition for r in alert.offsets]
    assert [e.offset for e in alert.examples] == [0, 1, 2]


def test_a_source_whose_clock_lags_is_not_overlooked() -> None:
    """Two producers in one partition, one of them an hour behind: all records are judged."""
    hour_ms = 3_600_000
    rows = [(hour_ms + i if i % 2 else i, i % 2 == 0) for i in range(200)]
    monitor = make_monitor(ManualClock(2 * hour_ms))
    chain = segments(0, rows, [20] * 9)
    found = verdicts(monitor, chain)
    found += monitor.flush().verdicts
    assert monitor.snapshot().late_records > 0
    assert found[-1].flagged / found[-1].records == pytest.approx(0.5, abs=0.1)


def test_an_event_time_in_the_future_does_not_stop_the_monitor() -> None:
    monitor = make_monitor(ManualClock(NOW_MS))
    year_ms = 365 * 24 * 3_600_000
    spoilt = [(NOW_MS - 5, False), (NOW_MS + year_ms, True)]
    found = verdicts(monitor, [summary(0, 0, spoilt), summary(0, 2, stream(NOW_MS, 60, 0))])
    assert monitor.snapshot().future_records == 1
    assert [v.window_end_ms for v in found] == [NOW_MS + 40, NOW_MS + 50]
    assert [(v.records, v.flagged) for v in found] == [(41, 1), (40, 0)]


def test_the_future_ends_where_the_clock_skew_does() -> None:
    monitor = make_monitor(ManualClock(NOW_MS))
    monitor.add(summary(0, 0, [(NOW_MS + MAX_CLOCK_SKEW_MS, False)]))
    assert monitor.snapshot().future_records == 0


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[list[list[Row]], list[SegmentSummary]]:
    """Rows of some partitions, times ascending, cut anywhere; summaries of all in any order."""
    times = st.lists(st.tuples(st.integers(0, 400), st.booleans()), min_size=1, max_size=40)
    rows = [sorted(part) for part in draw(st.lists(times, min_size=1, max_size=4))]
    chains = [
        segments(number, part, draw(st.lists(st.integers(1, 15), max_size=6)))
        for number, part in enumerate(rows)
    ]
    shuffled = [each for chain in chains for each in chain]
    draw(st.randoms(use_true_random=False)).shuffle(shuffled)
    # A partition's first summary tells where its chain starts; all others may come in any order.
    firsts = [chain[0] for chain in chains]
    rest = [each for each in shuffled if each not in firsts]
    return rows, [*(each for each in shuffled if each in firsts), *rest]


@given(arrivals(), st.integers(15, 40))
def test_verdicts_do_not_depend_on_workers_or_arrival(
    problem: tuple[list[list[Row]], list[SegmentSummary]], size: int
) -> None:
    """However rows are cut into segments and whatever comes first: the same verdicts."""
    rows, summaries = problem
    window = RollingWindow(size, PANE_MS)
    for part in rows:
        window.add(panes_of((t for t, _ in part), (f for _, f in part), PANE_MS))
    expected = [
        (state.start_ms, state.end_ms, state.records, state.flagged)
        for state in window.close_all()
        if state.records >= size
    ]

    small = settings(drift={"window_records": size}).drift
    monitor = DriftMonitor(small, FACTS, examples=2, clock=ManualClock(NOW_MS))
    for number in range(len(rows)):
        monitor.hold(partition(number))
    found = [*verdicts(monitor, summaries), *monitor.flush().verdicts]

    assert [(v.window_start_ms, v.window_end_ms, v.records, v.flagged) for v in found] == expected
    assert monitor.holes() == ()
    assert monitor.snapshot().late_records == 0


@pytest.mark.parametrize("seed", range(5))
def test_disorder_within_partitions_does_not_make_arrival_matter(seed: int) -> None:
    """Event times out of order within a partition: still the same for any interleaving."""
    rng = random.Random(seed)
    chains = []
    for number in range(3):
        rows = [(i + rng.randrange(60), rng.random() < 0.2) for i in range(300)]
        chains.append(segments(number, rows, [rng.randrange(5, 40) for _ in range(12)]))

    def run() -> list[DriftVerdict]:
        monitor = make_monitor()
        for number in range(3):
            monitor.hold(partition(number))
        order = [number for number, chain in enumerate(chains) for _ in chain]
        rng.shuffle(order)
        queues = [iter(chain) for chain in chains]
        found = verdicts(monitor, (next(queues[number]) for number in order))
        return [*found, *monitor.flush().verdicts]

    first, second = run(), run()
    assert any(verdict.transition for verdict in first)
    assert first == second


def test_a_rebuilt_monitor_goes_on_as_the_old_one() -> None:
    chain = segments(0, [*stream(0, 100, 0), *stream(100, 100, 90), *stream(200, 100, 0)], [7] * 40)
    old, new = make_monitor(), make_monitor()
    verdicts(old, chain[:25])
    verdicts(new, chain[15:25])
    assert verdicts(new, chain[25:]) == verdicts(old, chain[25:])
