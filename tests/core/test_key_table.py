import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core.key_monitors import ActiveKeys, KeyTable, oldest

KEYS = st.sampled_from("abcdefgh")


def make_table() -> KeyTable:
    return KeyTable({"count": np.zeros(0, dtype=np.int64), "pair": np.zeros((0, 2))})


def put(table: KeyTable, key: str, value: int) -> None:
    if table.slots((key,))[0] < 0:
        table.add((key,))
    slots = table.slots((key,))
    table.write(slots, {"count": value, "pair": np.array([[value, -value]])})


@given(st.lists(st.tuples(KEYS, st.none() | st.integers(-9, 9))))
def test_it_holds_what_a_dictionary_holds(steps: list[tuple[str, int | None]]) -> None:
    """Keys are written, or go (None)."""
    table, expected = make_table(), dict[str, int]()
    for key, value in steps:
        if value is not None:
            put(table, key, value)
            expected[key] = value
        elif key in expected:
            table.remove((key,))
            del expected[key]
    assert (table.names, len(table)) == (tuple(expected), len(expected))
    for of in (table, restored(table)):
        rows = of.rows()
        assert rows["count"].tolist() == list(expected.values())
        assert rows["pair"].tolist() == [[value, -value] for value in expected.values()]
        assert of["count"][of.slots(expected)].tolist() == list(expected.values())
        assert of.slots(["-"]).tolist() == [-1]


def restored(table: KeyTable) -> KeyTable:
    other = make_table()
    put(other, "x", 5)
    other.restore(table.names, table.rows())
    return other


def nbytes(table: KeyTable) -> int:
    return sum(table[column].nbytes for column in ("count", "pair"))


def test_room_is_used_again() -> None:
    table = make_table()
    table.add(("a", "b", "c"))
    room = nbytes(table)
    for number in range(100):
        table.remove(table.names[:2])
        table.add((f"{number}-a", f"{number}-b"))
    assert nbytes(table) == room == 3 * 3 * 8


def test_a_restored_table_is_a_copy() -> None:
    table = make_table()
    put(table, "a", 1)
    rows = table.rows()
    other = make_table()
    other.restore(table.names, rows)
    rows["count"][:] = 2
    assert other["count"].tolist() == [1]


@pytest.mark.parametrize("names", [("a", "a"), ("a",)])
def test_damaged_rows_are_refused(names: tuple[str, ...]) -> None:
    table, other = make_table(), make_table()
    table.add(("a", "b"))
    with pytest.raises(ValueError, match="damaged"):
        other.restore(names, table.rows())
    assert len(other) == 0


NAMES = "abcdef"


@given(
    st.lists(st.tuples(st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES)))),
    st.integers(1, 5),
)
def test_a_key_is_silent_after_its_last_pane(
    panes: list[tuple[set[str], set[str]]], silence: int
) -> None:
    """Each pane has keys that are active after it, and others that end; a dictionary tells."""
    keys, last = ActiveKeys(), dict[str, int]()
    for number, (active, ended) in enumerate(panes):
        going = sorted((ended - active) & last.keys())
        keys.remove(going)
        for key in going:
            del last[key]
        keys.see(sorted(active), number)
        last |= dict.fromkeys(active, number)
        expected = {key for key, seen in last.items() if seen <= number - silence}
        if number % 3 == 0:
            keys = ActiveKeys(last.items())
        assert set(keys.remove_silent(number - silence)) == expected
        last = {key: seen for key, seen in last.items() if key not in expected}
        assert (set(keys._last_ms), len(keys)) == (set(last), len(last))


@given(st.dictionaries(st.sampled_from(NAMES), st.integers(0, 3)), st.integers(-1, 8))
def test_the_oldest_are_found(last: dict[str, int], count: int) -> None:
    names = np.array(list(last), dtype=object)
    found = oldest(names, np.array(list(last.values()), dtype=np.int64), count)
    by_age = sorted(last, key=lambda key: (last[key], key))
    assert sorted(found) == sorted(by_age[: max(0, count)])
