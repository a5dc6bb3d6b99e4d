import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.core.alert_state import AlertState, Transition, step

QUIET, FIRING = AlertState.INACTIVE, AlertState.FIRING


@pytest.mark.parametrize(
    ("state", "flagged", "after", "transition"),
    [
        (QUIET, 9, QUIET, None),
        (QUIET, 10, FIRING, Transition.FIRING),
        (FIRING, 10, FIRING, None),
        (FIRING, 9, FIRING, None),
        (FIRING, 6, FIRING, None),
        (FIRING, 5, QUIET, Transition.RESOLVED),
        (QUIET, 5, QUIET, None),
    ],
)
def test_fires_at_the_limit_and_resolves_below_the_other(
    state: AlertState, flagged: int, after: AlertState, transition: Transition | None
) -> None:
    assert step(state, flagged, firing_limit=10, resolve_limit=6) == (after, transition)


@given(st.lists(st.integers(0, 20)), st.integers(1, 20), st.integers(1, 20))
def test_transitions_alternate_and_tell_the_state(
    counts: list[int], first: int, second: int
) -> None:
    resolve_limit, firing_limit = sorted((first, second))
    state, expected = QUIET, Transition.FIRING
    for flagged in counts:
        before = state
        state, transition = step(state, flagged, firing_limit, resolve_limit)
        assert (transition is None) == (state is before)
        if transition is not None:
            assert transition is expected
            expected = Transition.RESOLVED if transition is Transition.FIRING else Transition.FIRING


def test_limits_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ValueError, match="resolve_limit"):
        step(QUIET, 1, firing_limit=5, resolve_limit=6)
