"""The alert: how many false ones an operator tolerates, and how it begins, goes on and ends.

The tolerated number comes to the average run length A in records, in whichever of two ways it
is stated. A detector whose probability of a false alarm within T records is at most T / A, for
every T, has an average run length of at least A / 2 whatever its law, and of A where it is an
e-detector; and a probability of at most delta within T records where A = T / delta.
`nap_stream.core.sequential` and `nap_stream.core.bounds` say why theirs are of that kind.

Detectors have their own hysteresis: they are active from one limit on and inactive below
another. `step` brings them together in one alert, which fires while any of them is active.

Nothing here needs SciPy, which takes a second to import: settings state the tolerated number.
"""

import re
from dataclasses import dataclass, replace
from enum import StrEnum

DEFAULT_FALSE_ALARMS = "one per 30 days at 50 images/s"
EXAMPLES = f'"{DEFAULT_FALSE_ALARMS}" or "probability 0.01 in 7 days at 50 images/s"'

_UNITS = {"hour": 1, "day": 24, "week": 7 * 24, "year": 365 * 24}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_TIME = rf"(?P<count>{_NUMBER}\s+)?(?P<unit>hour|day|week|year)s?"
_RATE = rf"(?P<rate>{_NUMBER})\s*(?:image|record)s?\s*(?:/\s*s|per\s+second)"
_SHAPES = (
    re.compile(rf"one\s+(?:per|in|every)\s+{_TIME}\s+at\s+{_RATE}", re.IGNORECASE),
    re.compile(
        rf"probability\s+(?P<probability>{_NUMBER}(?:e-[0-9]+)?)\s+(?:in|over)\s+{_TIME}\s+at\s+{_RATE}",
        re.IGNORECASE,
    ),
)
_SHORTEST = 100.0
_LONGEST = 1e15


def parse_false_alarms(text: str) -> float:
    """Give the average run length in records that a sentence asks for.

    "one per 30 days at 50 images/s" is 30 * 86,400 * 50 records; "probability 0.01 in 7 days at
    50 images/s" is 7 * 86,400 * 50 / 0.01.

    Raises:
        ValueError: It is no such sentence, or out of range; says what is expected.
    """
    parts = _parts(text)
    hours = float(parts["count"] or 1) * _UNITS[parts["unit"].lower()]
    records = hours * 3_600 * float(parts["rate"])
    probability = float(parts.get("probability") or 1)
    if not 0 < probability <= 1:
        raise ValueError(f"expected a probability in (0, 1], got {probability:g}")
    run_length = records / probability
    if not _SHORTEST <= run_length <= _LONGEST:
        raise ValueError(f"expected {_SHORTEST:g} to {_LONGEST:g} records, got {run_length:g}")
    return run_length


def records_per_second(text: str) -> float:
    """Give the rate that a sentence for `parse_false_alarms` names.

    Raises:
        ValueError: It is no such sentence.
    """
    return float(_parts(text)["rate"])


def promised_hours(text: str) -> float:
    """Give the time T / probability that a sentence for `parse_false_alarms` names, in hours.

    A false alarm within t hours has a probability of at most t over this.

    Raises:
        ValueError: It is no such sentence.
    """
    parts = _parts(text)
    hours = float(parts["count"] or 1) * _UNITS[parts["unit"].lower()]
    return hours / float(parts.get("probability") or 1)


def _parts(text: str) -> dict[str, str]:
    for shape in _SHAPES:
        if found := shape.fullmatch(text.strip()):
            return found.groupdict()
    raise ValueError(f"expected {EXAMPLES}, got {text!r}")


class AlertState(StrEnum):
    """What the monitor says now, in Prometheus' words."""

    INACTIVE = "inactive"
    FIRING = "firing"


class Transition(StrEnum):
    """Which state an alert announces."""

    FIRING = "firing"
    RESOLVED = "resolved"


class Detector(StrEnum):
    """What can be active."""

    OOD_WINDOW = "ood-window"
    OOD_SEQUENTIAL = "ood-sequential"
    SCORE_SHIFT = "score-shift"
    UNSCORED_IMAGES = "unscored-images"
    BLOCKS = "blocks"


class Severity(StrEnum):
    """How urgent a firing alert is."""

    WARNING = "warning"
    CRITICAL = "critical"


class Reason(StrEnum):
    """Why an alert is sent."""

    BEGAN = "began"
    ESCALATED = "escalated"
    REPEATED = "repeated"
    ENDED = "ended"
    SILENT = "silent"
    FORGOTTEN = "forgotten"
    ACCEPTED = "accepted"


OVER = (Reason.ENDED, Reason.SILENT, Reason.FORGOTTEN, Reason.ACCEPTED)
"""The reasons of what is resolved."""


@dataclass(frozen=True, slots=True)
class Firing:
    """A firing alert. Times are of panes' ends, in milliseconds since the epoch.

    ``since_ms`` is when it began to fire, ``onset_ms`` where the change is estimated to have
    begun, ``sent_ms`` when it was last sent. ``detectors`` have been active since it began.
    ``repeats`` counts how often it was sent again. ``severity`` is the highest since it began.
    """

    since_ms: int
    onset_ms: int
    sent_ms: int
    detectors: tuple[Detector, ...]
    severity: Severity
    repeats: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """What is sent: the alert as it is now, or as it was when it ended, and why.

    ``previous_severity`` is null unless ``reason`` is escalated.
    """

    reason: Reason
    alert: Firing
    previous_severity: Severity | None = None

    @property
    def transition(self) -> Transition:
        """Which state it announces."""
        return Transition.RESOLVED if self.reason in OVER else Transition.FIRING


def step(
    firing: Firing | None,
    active: tuple[Detector, ...],
    *,
    severity: Severity,
    onset_ms: int,
    now_ms: int,
    repeat_interval_ms: int,
) -> tuple[Firing | None, Change | None]:
    """Take the end of a pane, ``now_ms``, into account.

    ``firing`` is the alert before; None while nothing fires. The detectors that are active see
    something of ``severity`` now, which is estimated to have begun at ``onset_ms``. A firing alert
    is sent again after ``repeat_interval_ms``.

    Returns:
        The alert after, and what is to be sent, if anything.
    """
    if firing is None:
        if not active:
            return None, None
        began = Firing(now_ms, onset_ms, now_ms, active, severity)
        return began, Change(Reason.BEGAN, began)
    if not active:
        return None, Change(Reason.ENDED, firing)
    joined = tuple(d for d in Detector if d in {*firing.detectors, *active})
    going_on = replace(firing, detectors=joined)
    if firing.severity is Severity.WARNING and severity is Severity.CRITICAL:
        worse = replace(going_on, severity=severity, sent_ms=now_ms, repeats=firing.repeats + 1)
        return worse, Change(Reason.ESCALATED, worse, firing.severity)
    if now_ms - firing.sent_ms >= repeat_interval_ms:
        again = replace(going_on, sent_ms=now_ms, repeats=firing.repeats + 1)
        return again, Change(Reason.REPEATED, again)
    return going_on, None
