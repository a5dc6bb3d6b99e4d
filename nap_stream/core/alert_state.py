"""From what detectors say to alerts: a state machine with hysteresis.

Detectors have their own hysteresis: they are active from one limit on and inactive below another.
Here they come together in one alert, which fires while any of them is active.
"""

from dataclasses import dataclass, replace
from enum import StrEnum


class AlertState(StrEnum):
    """What the monitor says now, in Prometheus' words."""

    INACTIVE = "inactive"
    FIRING = "firing"


class Transition(StrEnum):
    """The state that an alert which is sent tells of."""

    FIRING = "firing"
    RESOLVED = "resolved"


class Detector(StrEnum):
    """What can be active."""

    OOD_WINDOW = "ood-window"
    OOD_SEQUENTIAL = "ood-sequential"
    SCORE_SHIFT = "score-shift"


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
        """The state that it tells of."""
        is_over = self.reason in {Reason.ENDED, Reason.SILENT, Reason.FORGOTTEN}
        return Transition.RESOLVED if is_over else Transition.FIRING


def step(
    firing: Firing | None,
    active: tuple[Detector, ...],
    *,
    severity: Severity,
    onset_ms: int,
    now_ms: int,
    repeat_interval_ms: int,
) -> tuple[Firing | None, Change | None]:
    """Take the end of a pane into account.

    Args:
        firing: The alert before; None while nothing fires.
        active: The detectors that are active now.
        severity: Of what they see now.
        onset_ms: Where that is estimated to have begun.
        now_ms: The end of the pane.
        repeat_interval_ms: After so long a firing alert is sent again.

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
