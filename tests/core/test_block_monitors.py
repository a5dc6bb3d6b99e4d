import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_stream.core.block_detectors import block_bets, blocks_to_alarm, hits_of, judge_blocks
from nap_stream.core.block_monitors import BlockMonitors
from nap_stream.core.block_plan import BlockPlan, plan_blocks, references_of
from nap_stream.core.block_readings import BlockReadings, JudgedBy
from nap_stream.core.learned_references import CENTER_BLOCKS, LEARN_BLOCKS, NEEDED_BLOCKS
from nap_stream.core.panes import NO_KEY, ClosedPane
from nap_stream.core.sequential import initial_state, onset
from nap_stream.core.tails import BIN_COUNT
from nap_stream.core.time_kinds import TimeKinds
from tests.support.blocks import BLOCK_MS, block_statistics, key_blocks

PANE_MS = BLOCK_MS // 2
LONG_MS = 1_000_000 * BLOCK_MS

Counts = dict[str, tuple[int, int]]
"""Records and flagged ones of each key in a pane."""
USUAL = [(20, share) for share in (0, 1, 2, 3)] * 10
COUNTS = st.integers(1, 20).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))
PANES = st.lists(st.dictionaries(st.sampled_from(("", "a", "b")), COUNTS, min_size=1), max_size=40)


def plan_of(keys: str = "ab", new_keys: int = 20, run_blocks: int = 100) -> BlockPlan:
    references = references_of(key_blocks(dict.fromkeys(keys, USUAL)), TimeKinds())
    return plan_blocks(
        references, run_time_ms=run_blocks * BLOCK_MS, confidence=0.9, new_keys=new_keys
    )


def monitors(plan: BlockPlan | None = None, max_keys: int = 100) -> BlockMonitors:
    return BlockMonitors(plan or plan_of(), max_keys, LONG_MS)


def pane(start_ms: int, counts: Counts) -> ClosedPane:
    """Flagged records are in the lowest bin, others in the middle; ``""`` has no key."""
    keys = tuple(sorted(counts.keys() - {NO_KEY}))
    rows = {name: np.zeros(BIN_COUNT, dtype=np.int64) for name in counts}
    for name, (records, flagged) in counts.items():
        rows[name][0], rows[name][4] = flagged, records - flagged
    return ClosedPane(
        start_ms,
        sum(n for n, _ in counts.values()),
        sum(x for _, x in counts.values()),
        sum(rows.values(), np.zeros(BIN_COUNT, dtype=np.int64)),
        keys,
        np.array([counts[key][0] for key in keys], dtype=np.int64),
        np.array([counts[key][1] for key in keys], dtype=np.int64),
        np.array([rows[key] for key in keys], dtype=np.int64).reshape(-1, BIN_COUNT),
    )


def feed(of: BlockMonitors, blocks: Sequence[Counts], first: int = 0) -> list[BlockReadings]:
    """A pane a block; all of them are judged."""
    readings = [r for i, c in enumerate(blocks) for r in of.update(pane((first + i) * BLOCK_MS, c))]
    return [*readings, *of.advance((first + len(blocks)) * BLOCK_MS)]


def state_of(of: BlockMonitors) -> object:
    arrays = {name: (a.dtype, a.shape, a.tobytes()) for name, a in of.arrays().items()}
    return of.names(), arrays, of.active_count, of.new_count, of.waiting_count


class Alone:
    """One known key, built of nothing but the pure functions."""

    def __init__(self, plan: BlockPlan, row: int, log_threshold: float) -> None:
        self.rates, self.log_threshold = plan.rates[[row]], np.array([log_threshold])
        own = plan.references.own
        self.center, self.prior = own.center[[row]], own.prior[[row]]
        self.thresholds = own.thresholds[[row]]
        self.state = initial_state(block_bets(plan.rates[row]), (1,))
        self.active, self.log_value = np.array([False]), -math.inf

    def take(self, start_ms: int, records: int, flagged: int) -> None:
        bins = np.zeros((1, BIN_COUNT), dtype=np.int64)
        bins[0, 0], bins[0, 4] = flagged, records - flagged
        counts = np.array([records]), np.array([flagged]), bins
        after = judge_blocks(
            self.state,
            self.rates,
            hits_of(block_statistics(*counts, self.center, self.prior), self.thresholds),
            log_threshold=self.log_threshold,
            active=self.active,
            start_ms=start_ms,
        )
        self.state, self.active = after.state, after.active
        self.log_value = float(after.log_value[0])


@settings(max_examples=40)
@given(PANES)
def test_each_key_is_watched_as_if_it_were_alone(panes: list[Counts]) -> None:
    plan = plan_of(run_blocks=10)
    together = monitors(plan)
    group_of = plan.references.group_of[:, 0]
    alone = {k: Alone(plan, group_of[i + 1], plan.key_log_threshold) for i, k in enumerate("ab")}
    judged = 0
    for number, counts in enumerate(panes):
        for reading in together.update(pane(number * PANE_MS, counts)):
            judged += 1
            assert reading.end_ms == reading.start_ms + BLOCK_MS
    judged += len(together.advance(LONG_MS))
    assert judged == (len(panes) + 1) // 2
    for number in range(0, len(panes), 2):
        both = panes[number : number + 2]
        for key, one in alone.items():
            records, flagged = (sum(c.get(key, (0, 0))[i] for c in both) for i in (0, 1))
            if records:
                one.take(number * PANE_MS, records, flagged)
    for key, one in alone.items():
        found = together.reading(key)
        assert found.log_statistic == pytest.approx(one.log_value, rel=1e-4, abs=1e-4)
        assert found.active == bool(one.active[0])
        if math.isfinite(one.log_value):
            since = onset(type(one.state)(*(getattr(one.state, n)[0] for n in one.state.__slots__)))
            assert (found.onset_ms, found.blocks) == (since.start_ms, since.records)


@settings(max_examples=30)
@given(PANES, st.integers(0, 40))
def test_a_state_is_taken_up_where_it_was(panes: list[Counts], cut: int) -> None:
    whole, before, after = (monitors(plan_of("a", new_keys=1)) for _ in range(3))
    for number, counts in enumerate(panes):
        whole.update(pane(number * PANE_MS, counts))
        if number < cut:
            before.update(pane(number * PANE_MS, counts))
    after.restore(before.names(), before.arrays())
    for number, counts in enumerate(panes[cut:], start=cut):
        after.update(pane(number * PANE_MS, counts))
    assert state_of(after) == state_of(whole)


def test_a_fault_alarms_for_its_key_and_ends() -> None:
    one = monitors()
    feed(one, [{"a": (20, 1), "b": (20, 1)}] * 10)
    assert one.active_count == 0
    faulty = feed(one, [{"a": (20, 12), "b": (20, 1)}] * 12, first=10)
    found = one.reading("a")
    assert (found.active, one.reading("b").active, one.active_count) == (True, False, 2)
    assert found.onset_ms == 10 * BLOCK_MS
    assert (found.blocks, found.records, found.flagged, found.share) == (12, 240, 144, 0.6)
    assert (found.baseline_share, found.judged_by) == (0.075, JudgedBy.OWN)
    assert found.log_statistic == found.log_threshold
    assert faulty[-1].keys == (NO_KEY, "a", "b")
    assert faulty[-1].active.tolist() == [True, True, False]
    feed(one, [{"a": (20, 1), "b": (20, 1)}] * 12, first=22)
    assert one.active_count == 0
    # What it was about can still be told.
    assert (one.reading("a").onset_ms, one.reading("a").log_statistic) != (0, math.inf)


def test_the_largest_fault_takes_so_many_blocks() -> None:
    plan = plan_of()
    expected = blocks_to_alarm(plan.rates[:1], plan.key_log_threshold)
    one = monitors(plan)
    found = [r.active[1] for r in feed(one, [{"a": (20, 20), "b": (20, 1)}] * 20)]
    assert expected is not None
    assert found.index(True) + 1 == expected
    assert blocks_to_alarm(np.full((1, 6), 0.999), 1e3) is None
    # Where every other block says less, it takes longer, by when the fault begins.
    coarse = plan.rates_at(10, 2)
    mixed = blocks_to_alarm(np.stack((plan.rates[0], coarse)), plan.key_log_threshold)
    alone = blocks_to_alarm(coarse[np.newaxis], plan.key_log_threshold)
    assert mixed is not None
    assert alone is not None
    assert expected < mixed < alone


def test_scores_that_rise_are_seen_too() -> None:
    one = monitors()
    high = pane(0, {"a": (20, 0), "b": (20, 0)})
    high.key_bins[:] = 20 * np.eye(BIN_COUNT, dtype=np.int64)[9]
    for number in range(20):
        one.update(
            ClosedPane(
                number * BLOCK_MS,
                40,
                0,
                high.key_bins.sum(axis=0),
                high.keys,
                high.key_records,
                high.key_flagged,
                high.key_bins,
            )
        )
    assert one.reading("a").active
    assert one.reading("a").statistic == "high p-values"


def test_records_without_a_key_are_the_streams_alone() -> None:
    plain, mixed = monitors(), monitors()
    feed(plain, [{"a": (20, 1), "b": (20, 1)}] * 5)
    feed(mixed, [{"a": (20, 1), "b": (20, 1), "": (7, 7)}] * 5)
    assert mixed.reading("a") == plain.reading("a")
    assert mixed.reading(NO_KEY).records == 5 * 47
    assert mixed.reading(NO_KEY).log_statistic > plain.reading(NO_KEY).log_statistic


def test_the_stream_does_not_take_in_new_keys() -> None:
    plain, more = monitors(), monitors()
    feed(plain, [{"a": (20, 1), "b": (20, 1)}] * 5)
    feed(more, [{"a": (20, 1), "b": (20, 1), "new": (500, 500)}] * 5)
    assert more.reading(NO_KEY) == plain.reading(NO_KEY)


def test_a_new_key_learns_and_is_then_judged_by_itself() -> None:
    one = monitors()
    assert one.reading("new").judged_by == JudgedBy.WAITING
    quiet: list[Counts] = [{"new": (100, 4 + i % 2)} for i in range(NEEDED_BLOCKS)]
    feed(one, quiet[: CENTER_BLOCKS + 1])
    found = one.reading("new")
    assert (found.judged_by, found.learned) == (JudgedBy.LEARNING, CENTER_BLOCKS + 1)
    # Judged by the known keys, whose share is 0.075 and whose largest is 0.15.
    assert found.baseline_share == pytest.approx(0.075)
    feed(one, quiet[CENTER_BLOCKS + 1 :], first=CENTER_BLOCKS + 1)
    found = one.reading("new")
    assert (found.judged_by, found.learned) == (JudgedBy.LEARNED, NEEDED_BLOCKS)
    assert found.baseline_share == pytest.approx(0.045)
    # No more than the known keys show, and more than ever of its own.
    feed(one, [{"new": (100, 9)}] * 25, first=NEEDED_BLOCKS)
    assert one.reading("new").active
    assert NEEDED_BLOCKS == CENTER_BLOCKS + LEARN_BLOCKS


def test_what_was_learned_before_an_alarm_is_forgotten() -> None:
    one = monitors()
    feed(one, [{"new": (20, 1)}] * 20)
    assert one.reading("new").learned == 20
    feed(one, [{"new": (20, 20)}] * 20, first=20)
    assert (one.reading("new").active, one.reading("new").learned) == (True, 0)
    feed(one, [{"new": (20, 1)}] * 40, first=40)
    assert not one.reading("new").active
    assert 0 < one.reading("new").learned < 40


def test_new_keys_beyond_the_room_wait_until_others_are_silent() -> None:
    one = BlockMonitors(plan_of(new_keys=1), 100, 5 * BLOCK_MS)
    feed(one, [{"first": (20, 1), "second": (20, 1)}])
    assert (one.new_count, one.waiting_count) == (1, 1)
    assert one.reading("second").judged_by == JudgedBy.WAITING
    feed(one, [{"second": (20, 1)}] * 4, first=1)
    assert one.reading("second").judged_by == JudgedBy.WAITING
    readings = feed(one, [{"second": (20, 1)}], first=5)
    assert one.reading("second").judged_by == JudgedBy.LEARNING
    assert readings[-1].keys == ("second",)


def test_an_accepted_key_begins_as_a_new_one() -> None:
    one = monitors()
    changed: Counts = {"a": (20, 12), "b": (20, 1)}
    feed(one, [changed] * 10)
    assert one.active_count == 2
    one.accept("a", 12 * BLOCK_MS)
    assert (one.reading("a").active, one.active_count) == (False, 1)
    feed(one, [{"a": (20, 0), "b": (20, 1)}] * 2, first=10)
    assert (one.reading("a").judged_by, one.reading("a").learned) == (JudgedBy.ACCEPTED, 0)
    feed(one, [changed] * NEEDED_BLOCKS, first=12)
    # Nothing has fired: somebody vouched for it. The stream's alarm has ended, as it is without it.
    assert one.active_count == 0
    found = one.reading("a")
    assert found.judged_by == JudgedBy.LEARNED
    assert found.baseline_share == pytest.approx(0.6)
    feed(one, [{"a": (20, 20), "b": (20, 1)}] * 20, first=12 + NEEDED_BLOCKS)
    assert (one.reading("a").active, one.reading(NO_KEY).active) == (True, False)


def test_the_whole_stream_cannot_be_accepted() -> None:
    with pytest.raises(ValueError, match="make another baseline"):
        monitors().accept(NO_KEY, 0)


def test_the_oldest_keys_are_forgotten_but_not_the_stream_or_accepted_ones() -> None:
    one = monitors(plan_of(new_keys=100), max_keys=4)
    one.accept("b", 0)
    for number in range(12):
        feed(one, [{f"k{number:02}": (20, 1)}], first=number)
    assert len(one) <= 5
    assert {NO_KEY, "b", "k11"} <= set(one.names())
    assert one.evicted + len(one) == 13


def test_a_block_with_any_number_of_names_is_bounded() -> None:
    one = monitors(plan_of(new_keys=100), max_keys=10)
    for number in range(100):
        one.update(pane(number, {f"k{number:03}": (1, 0)}))
        assert len(one) <= 20


def test_the_alarm_of_a_silent_key_ends() -> None:
    one = BlockMonitors(plan_of(), 100, 3 * BLOCK_MS)
    feed(one, [{"a": (20, 12), "b": (20, 1)}] * 10)
    assert one.reading("a").active
    before = one.reading("a")
    feed(one, [{"b": (20, 1)}] * 3, first=10)
    found = one.reading("a")
    assert (found.active, found.log_statistic) == (False, -math.inf)
    assert (found.onset_ms, found.share) == (before.onset_ms, before.share)


def test_a_key_that_returns_after_silence_does_so_without_its_old_alarm() -> None:
    one = BlockMonitors(plan_of(), 100, 3 * BLOCK_MS)
    feed(one, [{"a": (20, 12), "b": (20, 1)}] * 10)
    feed(one, [{"b": (20, 1)}] * 2, first=10)
    assert one.reading("a").active
    # Its last block began three blocks before this one.
    readings = feed(one, [{"a": (20, 1), "b": (20, 1)}], first=12)
    assert dict(zip(readings[0].keys, readings[0].active.tolist(), strict=True))["a"] is False
    assert (one.reading("a").active, one.active_count) == (False, int(one.reading(NO_KEY).active))


def blind_plan() -> BlockPlan:
    """Key a in both hours; only the second has blocks enough for a reference."""
    blocks = key_blocks({"a": [(0, 0)] * 55 + [(20, 1)] * 5 + USUAL})
    references = references_of(blocks, TimeKinds((0, 1)))
    return plan_blocks(references, run_time_ms=100 * BLOCK_MS, confidence=0.9)


def test_where_a_kind_of_time_has_no_reference_nothing_judges_and_nothing_is_forgotten() -> None:
    plan = blind_plan()
    assert plan.references.blind_kinds == ("00:00-01:00",)
    one = BlockMonitors(plan, 100, 3 * BLOCK_MS)
    day = 24 * 60
    feed(one, [{"a": (20, 12)}] * 10, first=day - 10)
    assert one.reading("a").active
    readings = feed(one, [{"a": (20, 12)}] * 10, first=day)
    assert [each.keys for each in readings] == [()] * 10
    # It sends, so that it is not silent.
    assert (one.reading("a").active, one.active_count) == (True, 2)
    assert {one.reading(name).judged_by for name in ("a", NO_KEY)} == {JudgedBy.WAITING}


def test_a_key_is_told_its_share_of_the_kind_of_time() -> None:
    blocks = key_blocks({"a": [(20, 8)] * 60 + [(20, 2), (20, 0)] * 30})
    references = references_of(blocks, TimeKinds((0, 1)))
    one = monitors(plan_blocks(references, run_time_ms=100 * BLOCK_MS, confidence=0.9))
    for first, share in ((0, 0.4), (60, 0.05)):
        feed(one, [{"a": (20, 1)}], first=first)
        for name in ("a", NO_KEY):
            assert one.reading(name).baseline_share == pytest.approx(share)


def test_at_other_times_a_key_is_judged_by_the_pooled_reference() -> None:
    # The first hour has blocks of both keys, the rest of the day those of one.
    minutes = 60
    blocks = key_blocks(
        {"a": USUAL * 3, "b": [*USUAL, *[(20, 1)] * 20], "c": [(0, 0)] * minutes + USUAL}
    )
    plan = plan_blocks(
        references_of(blocks, TimeKinds((0, 1))), run_time_ms=LONG_MS, confidence=0.9
    )
    one = monitors(plan)
    readings = feed(one, [{"a": (20, 1), "b": (20, 1)}], first=minutes)
    assert one.reading("a").judged_by == JudgedBy.OWN
    assert one.reading("b").judged_by == JudgedBy.POOLED
    assert readings[0].keys == (NO_KEY, "a", "b")


def test_without_known_keys_the_stream_alone_is_watched() -> None:
    few = references_of(key_blocks({"a": USUAL[:9], "b": [(0, 0)] * 9 + USUAL[:9]}), TimeKinds())
    assert few.known == ()
    one = monitors(plan_blocks(few, run_time_ms=100 * BLOCK_MS, confidence=0.9))
    readings = feed(one, [{"a": (20, 20)}] * 30)
    assert (readings[-1].keys, readings[-1].active.tolist()) == ((NO_KEY,), [True])
    assert len(one) == 0


def test_a_block_without_records_is_not_judged() -> None:
    one = monitors()
    assert feed(one, [{}])[0].keys == ()
    # Of new keys alone the stream knows nothing.
    assert feed(one, [{"new": (20, 1)}], first=1)[0].keys == ("new",)


def test_a_pane_of_keys_needs_their_bins() -> None:
    some = pane(0, {"a": (1, 0)})
    without = ClosedPane(0, 1, 0, some.bins, some.keys, some.key_records, some.key_flagged)
    with pytest.raises(ValueError, match="bins of 1 keys"):
        monitors().update(without)


def test_a_state_that_does_not_fit_is_refused() -> None:
    one = monitors()
    feed(one, [{"a": (20, 1), "new": (20, 1)}])
    for name, wrong in (("has_place", np.zeros(1, bool)), ("block", np.zeros(2, int))):
        with pytest.raises(ValueError, match="damaged"):
            monitors().restore(one.names(), {**one.arrays(), name: wrong})
    with pytest.raises(ValueError, match="damaged"):
        monitors().restore(one.names()[1:], one.arrays())


def test_a_key_takes_a_kilobyte_at_most() -> None:
    plan = plan_of(new_keys=1_000)
    one = monitors(plan, max_keys=1_000)
    feed(one, [{f"key-{i:04}": (20, 1) for i in range(1_000)}])
    size = sum(column.nbytes for column in one.arrays().values())
    assert one.new_count == 1_000
    assert size / 1_001 <= 800
