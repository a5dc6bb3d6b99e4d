"""From verdicts to alerts: a state machine with hysteresis."""

from enum import StrEnum


class AlertState(StrEnum):
    """What the monitor says now, in Prometheus' words."""

    INACTIVE = "inactive"
    FIRING = "firing"


class Transition(StrEnum):
    """A change of state: what is published."""

    FIRING = "firing"
    RESOLVED = "resolved"


def step(
    state: AlertState, flagged: int, firing_limit: int, resolve_limit: int
) -> tuple[AlertState, Transition | None]:
    """Take one full window into account.

    An inactive alert fires at ``flagged >= firing_limit``; a firing one resolves at
    ``flagged < resolve_limit``. Between the limits nothing changes, so that a count that
    wavers about one limit does not send an alert a pane.

    Args:
        state: The state before.
        flagged: Flagged records in the window.
        firing_limit: See above; from `nap_stream.core.bounds.flag_limit`.
        resolve_limit: See above; at most ``firing_limit``.

    Returns:
        The state after, and the transition, if there was one.

    Raises:
        ValueError: The limits are the wrong way round.
    """
    if resolve_limit > firing_limit:
        raise ValueError(
            f"expected resolve_limit <= firing_limit, got {resolve_limit = }, {firing_limit = }"
        )
    if state is AlertState.INACTIVE and flagged >= firing_limit:
        return AlertState.FIRING, Transition.FIRING
    if state is AlertState.FIRING and flagged < resolve_limit:
        return AlertState.INACTIVE, Transition.RESOLVED
    return state, None
