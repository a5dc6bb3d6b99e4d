from hypothesis import given
from hypothesis import strategies as st

from nap_stream.clock import ManualClock
from nap_stream.drift.partitions import OffsetLedger, Partitions
from nap_stream.records import TopicPartition


def test_takes_ranges_in_order() -> None:
    ledger = OffsetLedger[str]()
    assert ledger.end is None
    assert ledger.hole is None
    assert ledger.add(10, 20, "a") == ["a"]
    assert ledger.add(20, 25, "b") == ["b"]
    assert ledger.end == 25


def test_a_range_waits_for_the_hole_before_it() -> None:
    ledger = OffsetLedger[str]()
    ledger.add(0, 10, "a")
    assert ledger.add(30, 40, "d") == []
    assert ledger.add(20, 30, "c") == []
    assert ledger.hole == (10, 20)
    assert ledger.add(10, 20, "b") == ["b", "c", "d"]
    assert ledger.hole is None
    assert ledger.end == 40


def test_holes_can_be_skipped_one_by_one() -> None:
    ledger = OffsetLedger[str]()
    ledger.add(0, 10, "a")
    ledger.add(20, 30, "c")
    ledger.add(40, 50, "e")
    assert ledger.skip_hole() == ["c"]
    assert ledger.hole == (30, 40)
    assert ledger.skip_hole() == ["e"]
    assert ledger.hole is None
    assert ledger.skip_hole() == []
    assert ledger.add(10, 20, "b") == []
    assert ledger.duplicates == 1


def test_duplicates_are_counted_and_change_nothing() -> None:
    ledger = OffsetLedger[str]()
    ledger.add(0, 10, "a")
    ledger.add(20, 30, "c")
    assert ledger.add(0, 10, "again") == []
    assert ledger.add(3, 7, "within") == []
    assert ledger.add(20, 30, "again") == []
    assert ledger.duplicates == 3
    assert ledger.add(10, 20, "b") == ["b", "c"]


def test_the_rest_of_an_overlapping_range_becomes_a_hole() -> None:
    ledger = OffsetLedger[str]()
    ledger.add(0, 10, "a")
    assert ledger.add(5, 20, "compacted") == []
    assert ledger.hole == (10, 20)
    assert ledger.add(10, 20, "b") == ["b"]
    assert ledger.hole is None


def test_a_waiting_range_that_was_overtaken_leaves_its_rest_as_a_hole() -> None:
    ledger = OffsetLedger[str]()
    ledger.add(0, 10, "a")
    ledger.add(15, 30, "c")
    assert ledger.add(10, 20, "b") == ["b"]
    assert ledger.hole == (20, 30)


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """A chain of segments, and the order in which they come: the first first, some twice."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    base, chain = draw(st.integers(0, 5)), []
    for length in lengths:
        chain.append((base, base + length))
        base += length
    repeated = draw(st.lists(st.sampled_from(chain), max_size=5))
    return chain, [chain[0], *draw(st.permutations(chain + repeated))]


@given(chains())
def test_any_order_gives_the_chain_once(
    problem: tuple[list[tuple[int, int]], list[tuple[int, int]]],
) -> None:
    chain, arrivals = problem
    ledger = OffsetLedger[tuple[int, int]]()
    taken = [item for base, end in arrivals for item in ledger.add(base, end, (base, end))]
    assert taken == chain
    assert ledger.hole is None
    assert ledger.duplicates == len(arrivals) - len(chain)


IDLE_S = 30
NAMES = [TopicPartition("images", number) for number in range(4)]
_NAMED = st.sampled_from(NAMES)
STEPS = st.one_of(
    st.tuples(st.just("hold"), _NAMED, st.just(0)),
    st.tuples(st.just("release"), _NAMED, st.just(0)),
    st.tuples(st.just("bring"), _NAMED, st.integers(0, 50)),
    st.tuples(st.just("wait"), _NAMED, st.integers(1, IDLE_S)),
)


@given(st.lists(STEPS, max_size=60))
def test_the_watermark_is_the_least_of_those_that_are_not_idle(
    steps: list[tuple[str, TopicPartition, int]],
) -> None:
    clock = ManualClock(0)
    partitions = Partitions(clock, IDLE_S)
    heard: dict[TopicPartition, float] = {}
    marks: dict[TopicPartition, int] = {}
    for what, name, by in steps:
        if what == "wait":
            clock.advance(by)
        elif what == "release" and name in heard:
            partitions.release(name)
            heard[name] = -IDLE_S
        elif what in {"hold", "bring"}:
            partitions.hold(name)
            heard[name] = clock.monotonic()
        if what == "bring":
            marks[name] = marks.get(name, 0) + by
            partitions[name].watermark_ms = marks[name]
        active = [name for name, at in heard.items() if clock.monotonic() - at < IDLE_S]
        expected = max(marks.values(), default=None)
        if active:
            told = [marks.get(name) for name in active]
            expected = None if None in told else min(mark for mark in told if mark is not None)
        assert partitions.watermark_ms() == expected
        anew = Partitions(clock, IDLE_S)
        anew.restore(partitions.state())
        all_told = heard and marks.keys() == heard.keys()
        assert anew.watermark_ms() == (min(marks.values()) if all_told else None)
