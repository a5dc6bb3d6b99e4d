import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core.key_monitors import ActiveKeys, oldest

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
