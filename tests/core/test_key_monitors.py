import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core.key_monitors import SPARE_SHARE, KeyMonitors, KeyReadings
from nap_stream.core.panes import ClosedPane, PaneBuffer, count_panes
from nap_stream.core.sequential import (
    RESOLVE_RATIO,
    Onset,
    SequentialState,
    bets_against,
    capped,
    goes_on,
    initial_state,
    log_mixture,
    onset,
    renewed,
    update,
)
from nap_stream.core.tails import BIN_COUNT

P0 = 0.06
BETS = bets_against(np.array([P0]))
LOG_THRESHOLD = math.log(1e4)
LOG_RESOLVE = LOG_THRESHOLD + math.log(RESOLVE_RATIO)
PANE_MS = 1_000

Counts = dict[str, tuple[int, int]]
"""Records and flagged ones of each key in a pane."""
COUNTS = st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))
PANES = st.lists(st.dictionaries(st.sampled_from("abcdef"), COUNTS, min_size=1), max_size=30)


class SingleMonitor:
    """The monitor of one key, built of nothing but the pure functions."""

    def __init__(self) -> None:
        self.state = initial_state(BETS)
        self.log_statistic = -math.inf
        self.active = False
        self.last_ms = 0

    def miss(self, start_ms: int, silence_ms: int) -> None:
        """A pane without a record of the key."""
        if self.active and start_ms - self.last_ms >= silence_ms:
            self.active, self.log_statistic = False, -math.inf
            self.state = renewed(self.state)

    def update(self, start_ms: int, records: int, flagged: int) -> None:
        self.last_ms = start_ms
        after = update(self.state, BETS, np.array(records), np.array([flagged]), np.array(start_ms))
        self.log_statistic = min(float(log_mixture(after)), LOG_THRESHOLD)
        self.state = capped(after, log_mixture(after), LOG_THRESHOLD)
        if not self.active:
            self.active = self.log_statistic >= LOG_THRESHOLD
        elif not goes_on(self.state, np.array(self.log_statistic), LOG_THRESHOLD):
            self.active, self.state = False, renewed(self.state)


def monitors(max_keys: int = 1_000, silence_ms: int = 1_000 * PANE_MS) -> KeyMonitors:
    return KeyMonitors(BETS, LOG_THRESHOLD, max_keys, silence_ms)


def pane(number: int, counts: Counts) -> ClosedPane:
    keys = tuple(sorted(counts))
    records, flagged = (np.array([counts[k][i] for k in keys], dtype=np.int64) for i in (0, 1))
    return ClosedPane(
        number * PANE_MS,
        int(records.sum()),
        int(flagged.sum()),
        np.zeros(BIN_COUNT, dtype=np.int64),
        keys,
        records,
        flagged,
    )


def feed(of: KeyMonitors, panes: Sequence[Counts], first: int = 0) -> list[KeyReadings]:
    return [of.update(pane(first + i, counts)) for i, counts in enumerate(panes)]


def held(of: KeyMonitors) -> str:
    return "".join(sorted(of.names()))


def active(of: KeyMonitors) -> tuple[str, ...]:
    """The keys whose monitors are active, sorted."""
    names = np.array(of.names(), dtype=object)
    return tuple(sorted(names[of.arrays()["active"]].tolist()))


def state_of(of: KeyMonitors) -> tuple[object, ...]:
    arrays = {name: (a.dtype, a.shape, a.tobytes()) for name, a in of.arrays().items()}
    assert of.active_count == len(active(of))
    return of.names(), arrays, active(of), of.evicted, len(of)


@given(PANES, st.integers(1, 8))
def test_each_key_is_watched_as_if_it_were_alone(panes: list[Counts], silence: int) -> None:
    together = monitors(silence_ms=silence * PANE_MS)
    alone: dict[str, SingleMonitor] = {}
    for number, counts in enumerate(panes):
        readings = together.update(pane(number, counts))
        for key, (records, flagged) in counts.items():
            alone.setdefault(key, SingleMonitor()).update(number * PANE_MS, records, flagged)
        for key in alone.keys() - counts.keys():
            alone[key].miss(number * PANE_MS, silence * PANE_MS)
        assert readings.keys == tuple(sorted(counts))
        expected = [alone[key].log_statistic for key in readings.keys]
        np.testing.assert_allclose(readings.log_statistic, expected, rtol=1e-12, atol=1e-12)
        assert readings.active.tolist() == [alone[key].active for key in readings.keys]
        assert active(together) == tuple(sorted(k for k, one in alone.items() if one.active))
    assert len(together) == len(alone)
    for key, one in alone.items():
        log_statistic, is_active, since = together.reading(key)
        assert log_statistic == pytest.approx(one.log_statistic, rel=1e-12, abs=1e-12)
        assert (is_active, since) == (one.active, onset(one.state))


def test_one_record_by_hand() -> None:
    readings = monitors().update(pane(0, {"hit": (1, 1), "miss": (1, 0)}))
    bet = np.geomspace(0.01, 0.6, 8)
    factors = [np.mean(1 + bet * (1 / P0 - 1)), np.mean(1 - bet)]
    np.testing.assert_allclose(readings.log_statistic, np.log(factors))
    assert not readings.active.any()


def test_activity_has_hysteresis() -> None:
    one = monitors()
    healthy: Counts = {"a": (2, 0)}
    feed(one, [healthy] * 3)
    assert (active(one), one.reading("a")[1]) == ((), False)
    readings = feed(one, [{"a": (10, 10)}], first=3)[0]
    assert active(one) == ("a",)
    assert readings.log_statistic.tolist() == [LOG_THRESHOLD]
    assert one.reading("a") == (LOG_THRESHOLD, True, Onset(0, 3 * PANE_MS, 10, 10))
    values = [LOG_THRESHOLD]
    while active(one):
        readings = feed(one, [healthy], first=3 + len(values))[0]
        values.append(float(readings.log_statistic[0]))
    # Far below the threshold it was still active, and it ended at the first value below the other.
    assert min(values[:-1]) < LOG_THRESHOLD - 1
    assert values[-1] < LOG_RESOLVE <= min(values[:-1])
    assert all(after < before for before, after in pairwise(values))
    assert not readings.active.any()
    # An alarm after that has an onset of its own.
    at_ms = (3 + len(values)) * PANE_MS
    feed(one, [{"a": (10, 10)}], first=3 + len(values))
    assert one.reading("a")[1:] == (True, Onset(0, at_ms, 10, 10))


def test_a_key_that_is_not_known_has_no_evidence() -> None:
    assert monitors().reading("a") == (-math.inf, False, Onset(0, 0, 0, 0))


def test_the_key_that_was_silent_longest_is_forgotten_first() -> None:
    three = monitors(max_keys=3)
    feed(three, [{"c": (1, 0), "b": (1, 0)}, {"a": (1, 0)}])
    assert (held(three), three.evicted) == ("abc", 0)
    # Of two that are equally old the smaller one goes.
    feed(three, [{"d": (1, 0)}], first=2)
    assert (held(three), three.evicted, len(three)) == ("acd", 1, 3)
    assert three.reading("b")[0] == -math.inf
    # One that is heard of again is new.
    feed(three, [{"c": (1, 0)}, {"e": (1, 0), "f": (1, 0)}], first=3)
    assert (held(three), three.evicted) == ("cef", 3)
    # Which of them was known first does not count.
    feed(three, [{"c": (1, 0), "b": (1, 0)}, {"c": (1, 0), "b": (1, 0)}, {"g": (1, 0)}], first=5)
    assert (held(three), three.evicted) == ("bcg", 5)
    feed(three, [{"h": (1, 0)}], first=8)
    assert (held(three), three.evicted) == ("cgh", 6)


def test_room_for_more_is_made_at_once() -> None:
    many = monitors(max_keys=2 * SPARE_SHARE)
    feed(many, [{f"{i:02}": (1, 0)} for i in range(2 * SPARE_SHARE)])
    assert (len(many), many.evicted) == (2 * SPARE_SHARE, 0)
    feed(many, [{"00": (1, 0), "x": (1, 0)}], first=2 * SPARE_SHARE)
    assert (len(many), many.evicted) == (2 * SPARE_SHARE - 2, 3)
    assert set(many.names()) == {"00", "x", *(f"{i:02}" for i in range(4, 2 * SPARE_SHARE))}


def test_no_active_key_is_forgotten_to_make_room_for_more() -> None:
    many = monitors(max_keys=2 * SPARE_SHARE)
    keys = [f"{i:02}" for i in range(2 * SPARE_SHARE + 1)]
    feed(many, [{key: (20, 20)} for key in keys])
    assert active(many) == tuple(keys[1:])
    assert many.evicted == 1


def test_a_forgotten_key_begins_anew() -> None:
    one, fresh = monitors(max_keys=1), monitors()
    feed(one, [{"a": (5, 3)}, {"b": (5, 3)}])
    again = feed(one, [{"a": (4, 1)}], first=2)[0]
    np.testing.assert_array_equal(
        again.log_statistic, feed(fresh, [{"a": (4, 1)}], first=2)[0].log_statistic
    )
    assert one.reading("a") == fresh.reading("a")


def test_active_keys_are_forgotten_last() -> None:
    two = monitors(max_keys=2)
    feed(two, [{"z": (20, 20)}, {"a": (1, 0)}, {"b": (1, 0)}, {"c": (1, 0)}])
    assert (held(two), active(two)) == ("cz", ("z",))
    readings = feed(two, [{"x": (20, 20), "y": (20, 20)}], first=4)[0]
    assert readings.active.all()
    assert (held(two), active(two)) == ("xy", ("x", "y"))
    assert two.evicted == 4


def test_a_pane_with_more_keys_than_there_is_room_for() -> None:
    two = monitors(max_keys=2)
    readings = feed(two, [dict.fromkeys("abcd", (10, 10)), {"e": (1, 0)}])[0]
    assert readings.keys == ("a", "b", "c", "d")
    assert readings.active.all()
    assert (held(two), active(two), two.evicted) == ("cd", ("c", "d"), 3)


def test_the_monitor_of_a_silent_key_begins_anew() -> None:
    """A camera breaks, is unplugged and comes back repaired: it must not be active then."""
    two, fresh = monitors(silence_ms=5 * PANE_MS), monitors()
    feed(two, [{"a": (10, 10), "z": (1, 0)}, *[{"z": (1, 0)}] * 4])
    assert (active(two), two.active_count) == (("a",), 1)
    assert two.reading("a")[:2] == (LOG_THRESHOLD, True)
    feed(two, [{"z": (1, 0)}], first=5)
    assert (active(two), two.active_count) == ((), 0)
    assert two.reading("a") == (-math.inf, False, Onset(0, 0, 10, 10))
    # It is still remembered, and knows as much as a key that is new.
    assert (held(two), two.evicted) == ("az", 0)
    back = feed(two, [{"a": (4, 1)}], first=6)[0]
    expected = feed(fresh, [{"a": (4, 1)}], first=6)[0]
    np.testing.assert_array_equal(back.log_statistic, expected.log_statistic)
    assert two.reading("a") == fresh.reading("a")


def test_only_active_monitors_of_silent_keys_begin_anew() -> None:
    one = monitors(silence_ms=2 * PANE_MS)
    feed(one, [{"a": (5, 1)}])
    before = one.reading("a")
    feed(one, [{"z": (1, 0)}], first=100)
    assert one.reading("a") == before


def test_each_pane_with_a_key_ends_its_silence() -> None:
    three = monitors(silence_ms=3 * PANE_MS)
    broken = dict.fromkeys("abc", (20, 20))
    feed(three, [broken, {"b": (1, 1)}, {"a": (1, 1)}, {"z": (1, 0)}])
    assert active(three) == ("a", "b")
    feed(three, [{"z": (1, 0)}], first=4)
    assert active(three) == ("a",)
    # No pane found it silent, for however long there was none.
    feed(three, [{"a": (1, 1)}], first=1_000)
    assert active(three) == ("a",)


def test_a_pane_without_keys_finds_silent_ones() -> None:
    one = monitors(silence_ms=2 * PANE_MS)
    feed(one, [{"a": (20, 20)}, {}])
    assert active(one) == ("a",)
    readings = feed(one, [{}], first=2)[0]
    assert (readings.keys, len(readings.active), active(one)) == ((), 0, ())


def test_silent_keys_hold_no_room() -> None:
    """Short-lived keys, such as lots, were all active and filled it; cameras come after them."""
    few = monitors(max_keys=4, silence_ms=10 * PANE_MS)
    feed(few, [{f"lot-{i}": (20, 20)} for i in range(6)])
    cameras: Counts = {"camera-0": (1, 0), "camera-1": (1, 0)}
    feed(few, [cameras] * 20, first=6)
    assert active(few) == ()
    assert set(cameras) < set(few.names())
    # They are watched: evidence adds up over panes of a record each.
    feed(few, [{"camera-0": (1, 1), "camera-1": (1, 0)}] * 8, first=26)
    assert active(few) == ("camera-0",)


@given(PANES, st.integers(1, 4), st.integers(0, 30), st.integers(1, 8))
def test_a_restored_monitor_goes_on_exactly(
    panes: list[Counts], max_keys: int, cut: int, silence: int
) -> None:
    whole, before, after = (monitors(max_keys, silence * PANE_MS) for _ in range(3))
    feed(whole, panes)
    feed(before, panes[:cut])
    dumped = {name: np.copy(array) for name, array in before.arrays().items()}
    for array in dumped.values():
        array.flags.writeable = False
    after.restore(before.names(), dumped)
    assert state_of(after) == state_of(before)
    feed(after, panes[cut:], first=min(cut, len(panes)))
    assert state_of(after) == state_of(whole)


def test_a_monitor_that_has_seen_other_keys_is_replaced_as_a_whole() -> None:
    used, source = monitors(), monitors()
    feed(used, [{"x": (20, 20)}, {"y": (1, 0)}, {"z": (1, 0)}])
    feed(source, [{"a": (20, 20), "b": (3, 1)}])
    arrays = source.arrays()
    for array in arrays.values():
        array.flags.writeable = False
    used.restore(source.names(), arrays)
    assert state_of(used) == state_of(source)
    for of in (used, source):
        feed(of, [{"a": (20, 0)}, {"c": (1, 1)}], first=1)
    assert state_of(used) == state_of(source)


@pytest.mark.parametrize("names", [("a",), ("a", "a"), ("a", "b", "c")])
def test_damaged_state_is_refused(names: tuple[str, ...]) -> None:
    two = monitors()
    feed(two, [{"a": (1, 0), "b": (1, 0)}])
    with pytest.raises(ValueError, match="damaged"):
        monitors().restore(names, two.arrays())


def test_a_damaged_count_is_refused() -> None:
    one = monitors()
    feed(one, [{"a": (1, 0)}])
    with pytest.raises(ValueError, match="damaged"):
        monitors().restore(one.names(), {**one.arrays(), "evicted": np.zeros(2, dtype=np.int64)})


@pytest.mark.parametrize(
    ("rates", "max_keys", "silence_ms"), [([0.1, 0.2], 5, 1), ([0.1], 0, 1), ([0.1], 5, 0)]
)
def test_settings_are_checked(rates: list[float], max_keys: int, silence_ms: int) -> None:
    with pytest.raises(ValueError, match="expected one event"):
        KeyMonitors(bets_against(np.array(rates)), 5.0, max_keys, silence_ms)


def test_many_keys_and_few_slots() -> None:
    """Slots are used again: as many as may be remembered, and those that a pane brings."""
    few = monitors(max_keys=64)
    for number in range(200):
        feed(few, [{f"{number}-{i}": (1, 0) for i in range(16)}], first=number)
    assert len(few) + few.evicted == 200 * 16
    assert 60 <= len(few) <= 64
    row = sum(getattr(initial_state(BETS), name).nbytes for name in SequentialState.__slots__) + 17
    assert sum(column.nbytes for column in few._table._columns.values()) <= 2 * (64 + 16) * row


@given(st.permutations(range(6)), st.integers(1, 5))
def test_the_order_of_arrival_does_not_matter(order: list[int], max_keys: int) -> None:
    """Six partitions with records of the same keys and times."""
    rng = np.random.default_rng(6)
    parts = []
    for number in range(6):
        keys = tuple("abcdefgh"[number : number + 3])
        p_values = rng.random(40) * (0.1 if number == 2 else 1)
        times = np.sort(rng.integers(0, 8 * PANE_MS, 40))
        key = rng.integers(0, len(keys), 40)
        flagged = p_values <= 0.05
        parts.append(count_panes(times, p_values, flagged, pane_ms=PANE_MS, keys=keys, key=key))

    def fed(arrival: Sequence[int]) -> KeyMonitors:
        buffer, of = PaneBuffer(PANE_MS, one_per_pane=False), monitors(max_keys)
        for number in arrival:
            buffer.add(parts[number], number, None)
        for closed in buffer.close_all():
            of.update(closed)
        return of

    ordered = fed(range(6))
    assert len(ordered) == max_keys
    assert state_of(fed(order)) == state_of(ordered)


def random_pane(
    number: int, keys: tuple[str, ...], rates: np.ndarray, rng: np.random.Generator
) -> ClosedPane:
    """One to five records of about half of the keys."""
    chosen = np.flatnonzero(rng.random(len(keys)) < 0.5)
    records = rng.integers(1, 6, len(chosen))
    flagged = rng.binomial(records, rates[chosen])
    return ClosedPane(
        number * PANE_MS,
        int(records.sum()),
        int(flagged.sum()),
        np.zeros(BIN_COUNT, dtype=np.int64),
        tuple(keys[i] for i in chosen),
        records,
        flagged,
    )


def test_one_broken_key_of_a_thousand_is_named() -> None:
    rng = np.random.default_rng(20)
    keys = tuple(f"camera-{i:04}" for i in range(1_000))
    rates = np.full(len(keys), 0.05)
    rates[617] = 0.5
    # One alarm in 30 days at 50 records/s, shared by four detectors.
    run_length = 4 * 30 * 86_400 * 50.0
    all_keys = KeyMonitors(BETS, math.log(run_length), 1_000, 100 * PANE_MS)
    seen, number = 0, 0
    while not active(all_keys):
        found = random_pane(number, keys, rates, rng)
        all_keys.update(found)
        seen += dict(zip(found.keys, found.key_records.tolist(), strict=True)).get(keys[617], 0)
        number += 1
        assert seen <= 60
    assert active(all_keys) == (keys[617],)
    since = all_keys.reading(keys[617])[2]
    assert since.start_ms < 15 * PANE_MS
    assert since.hits / since.records == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize("rate", [P0, 2 * P0])
def test_all_keys_together_keep_the_run_length(rate: float) -> None:
    """P(false alarm within T records) <= T / A; at twice the rate the same count exceeds it."""
    rng = np.random.default_rng(3)
    keys = tuple(f"{i:04}" for i in range(4_000))
    rates = np.full(len(keys), rate)
    run_length = 2_000.0
    all_keys = KeyMonitors(BETS, math.log(run_length), len(keys), 100 * PANE_MS)
    records, alarmed = 0, set[str]()
    for number in range(60):
        found = random_pane(number, keys, rates, rng)
        readings = all_keys.update(found)
        records += found.records
        alarmed.update(np.array(found.keys)[readings.active])
    expected = records / run_length
    assert expected > 150
    if rate == P0:
        # Far from empty: some keys do raise a false alarm.
        assert 20 < len(alarmed) <= expected
    else:
        assert len(alarmed) > expected
