from hypothesis import given
from hypothesis import strategies as st

from nap_stream.drift.partitions import OffsetLedger


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
