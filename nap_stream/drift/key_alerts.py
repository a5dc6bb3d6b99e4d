"""Alerts of single keys: which fire, and how many at once."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nap_stream.core.alert_state import Change, Detector, Firing, Severity, step
from nap_stream.core.detection import DetectionPlan
from nap_stream.core.key_monitors import KeyMonitors
from nap_stream.core.panes import ClosedPane
from nap_stream.core.sequential import RESOLVE_RATIO, Onset, bets_against
from nap_stream.records import DetectorReading
from nap_stream.settings import AlertSettings, KeySettings


@dataclass(frozen=True, slots=True)
class KeyChange:
    """What is sent of a key."""

    key: str
    change: Change
    since: Onset
    reading: DetectorReading


class KeyAlerts:
    """The monitors of all keys, and the alerts of those that fire.

    Where more keys are active than may fire, the others wait for a place, in order of their names.

    Args:
        plan: What the detectors are set to.
        keys: How many keys are remembered, and how many may fire.
        alerts: Repeat interval and severity.
    """

    def __init__(self, plan: DetectionPlan, keys: KeySettings, alerts: AlertSettings) -> None:
        bets = bets_against(np.array([plan.flag_rate]))
        self.monitors = KeyMonitors(bets, plan.log_threshold, keys.max_keys)
        self.firing: dict[str, Firing] = {}
        self._threshold = plan.detector_run_length
        self._max_firing = keys.max_firing
        self._alerts = alerts

    def push(self, pane: ClosedPane, end_ms: int) -> list[KeyChange]:
        """Take the next pane, which ends at ``end_ms``; give what is to be sent, by key."""
        if pane.keys:
            self.monitors.update(pane)
        return [change for key in sorted(self._concerned()) for change in self._step(key, end_ms)]

    def _concerned(self) -> set[str]:
        """The keys that fire, and active ones that there is room for."""
        waiting = [key for key in self.monitors.active if key not in self.firing]
        return {*self.firing, *waiting[: max(0, self._max_firing - len(self.firing))]}

    def _step(self, key: str, end_ms: int) -> Iterator[KeyChange]:
        log_statistic, is_active, since = self.monitors.reading(key)
        fraction = since.hits / since.records if since.records else 0.0
        is_critical = fraction >= self._alerts.critical_fraction
        firing, change = step(
            self.firing.get(key),
            (Detector.OOD_SEQUENTIAL,) if is_active else (),
            severity=Severity.CRITICAL if is_critical else Severity.WARNING,
            onset_ms=since.start_ms,
            now_ms=end_ms,
            repeat_interval_ms=round(self._alerts.repeat_interval_s * 1000),
        )
        if firing is None:
            self.firing.pop(key, None)
        else:
            self.firing[key] = firing
        if change is not None:
            yield KeyChange(key, change, since, self._reading(log_statistic, is_active=is_active))

    def _reading(self, log_statistic: float, *, is_active: bool) -> DetectorReading:
        return DetectorReading(
            Detector.OOD_SEQUENTIAL,
            is_active,
            float(np.exp(log_statistic)),
            self._threshold,
            self._threshold * RESOLVE_RATIO,
        )
