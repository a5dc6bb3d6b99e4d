"""What happens in one run: drawn from a seed, and from nothing else."""

import random
from dataclasses import dataclass

from tests.faults.failpoints import ERRORS, FILE_STEPS, Action, Failpoint, Fault

WORKERS = 2
STOP_SHARE = 0.25
TERM_SHARE = 0.15
ERROR_SHARE = 0.5
"""Of the faults at a step of the file system."""
SESSION_S = 3.0
SHORT_SESSION_S = 1.5
"""Where a run waits for a session to expire."""

_OFTEN = {Failpoint.POLL_BEFORE, Failpoint.DECODE_BEFORE, Failpoint.DECODE_AFTER}
_ONCE = {
    Failpoint.ASSIGNED_BEFORE,
    Failpoint.ASSIGNED_AFTER,
    Failpoint.BEGIN_BEFORE,
    Failpoint.BEGIN_AFTER,
    Failpoint.END_BEFORE,
    Failpoint.END_AFTER,
    Failpoint.REVOKED_BEFORE,
    Failpoint.COMMIT_SOON_AFTER,
    Failpoint.REVOKED_AFTER,
    Failpoint.LOST_BEFORE,
    Failpoint.SOURCE_CLOSED,
}
_RARE = {
    Failpoint.BEGIN_BEFORE,
    Failpoint.BEGIN_AFTER,
    Failpoint.REVOKED_BEFORE,
    Failpoint.COMMIT_SOON_AFTER,
    Failpoint.REVOKED_AFTER,
    Failpoint.LOST_BEFORE,
    Failpoint.SOURCE_CLOSED,
}
"""A stream alone may never bring a worker there, and the faults after it would wait in vain."""
_CLOSING = {Failpoint.REVOKED_BEFORE, Failpoint.REVOKED_AFTER, Failpoint.SOURCE_CLOSED}


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. ``faults`` holds, for each worker, what happens to it, in order.

    ``joins_late`` says that the second worker joins when the first is at work, so that
    partitions are revoked. ``compacts`` says that segments are merged all the time.
    """

    seed: int
    partitions: int
    messages: int
    session_timeout_s: float
    segment_max_age_s: float
    joins_late: bool
    compacts: bool
    faults: tuple[tuple[Fault, ...], ...]

    def __str__(self) -> str:
        workers = "; ".join(
            f"worker-{number}: {', '.join(map(str, faults)) or 'none'}"
            for number, faults in enumerate(self.faults)
        )
        return (
            f"seed {self.seed}: {self.messages} messages in {self.partitions} partitions, "
            f"session {self.session_timeout_s:g} s, segments of {self.segment_max_age_s:g} s, "
            f"joins late {self.joins_late}, compacts {self.compacts}; {workers}"
        )


def draw_plan(seed: int) -> Plan:
    """The plan of a seed. The seeds of a row of ``len(Failpoint)`` kill at every failpoint."""
    draw = random.Random(seed)
    led = list(Failpoint)[seed % len(Failpoint)]
    first = (*_leading_to(led, draw), *_faults(draw, draw.randint(0, 2)))
    others = [_faults(draw, draw.randint(0, 2)) for _ in range(WORKERS - 1)]
    faults = (first, *others)
    expires = any(fault.action is Action.STOP_EXPIRED for each in faults for fault in each)
    revokes = led is Failpoint.COMMIT_SOON_AFTER
    return Plan(
        seed=seed,
        partitions=draw.randint(2, 4),
        messages=draw.randint(80, 200),
        session_timeout_s=SHORT_SESSION_S if expires else SESSION_S,
        segment_max_age_s=1.0 if revokes else draw.choice((0.05, 0.1, 0.3)),
        joins_late=revokes or draw.random() < 0.4,
        compacts=draw.random() < 0.35,
        faults=faults,
    )


def _leading_to(point: Failpoint, draw: random.Random) -> tuple[Fault, ...]:
    """What kills a worker at a point that a plain stream may not bring it to."""
    kill = Fault(point, _hit(point, draw), Action.KILL)
    if point in _CLOSING:
        return Fault(Failpoint.POLL_AFTER, draw.randint(1, 3), Action.TERM), kill
    if point is Failpoint.LOST_BEFORE:
        return Fault(Failpoint.POLL_AFTER, draw.randint(1, 3), Action.STOP_EXPIRED), kill
    return (kill,)


def _faults(draw: random.Random, count: int) -> tuple[Fault, ...]:
    points = [point for point in Failpoint if point not in _RARE]
    return tuple(_fault(draw.choice(points), draw) for _ in range(count))


def _fault(point: Failpoint, draw: random.Random) -> Fault:
    return Fault(point, _hit(point, draw), _action(point, draw))


def _hit(point: Failpoint, draw: random.Random) -> int:
    if point in _ONCE:
        return 1
    return draw.randint(1, 12) if point in _OFTEN else draw.randint(1, 5)


def _action(point: Failpoint, draw: random.Random) -> Action:
    kind = draw.random()
    if point in FILE_STEPS and kind < ERROR_SHARE:
        return draw.choice(list(ERRORS))
    if kind > 1 - STOP_SHARE:
        return draw.choice((Action.STOP_REPLACED, Action.STOP_REPLACED, Action.STOP_EXPIRED))
    return Action.TERM if kind > 1 - STOP_SHARE - TERM_SHARE else Action.KILL
