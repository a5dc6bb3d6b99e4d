"""Alerts of single keys: which fire, and how many at once."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.alert_state import Change, Detector, Firing, Reason, Severity, step
from nap_stream.core.detection import DetectionPlan
from nap_stream.core.key_monitors import KeyMonitors
from nap_stream.core.panes import ClosedPane
from nap_stream.core.sequential import RESOLVE_RATIO, Onset, bets_against
from nap_stream.drift.records import Decision, DetectorReading
from nap_stream.settings.schema import AlertSettings, KeySettings


class FiringKey(NamedTuple):
    """A key, its firing alert, and the end of the last pane that had a record of it."""

    key: str
    alert: Firing
    seen_ms: int


@dataclass(frozen=True, slots=True, eq=False)
class KeyAlertsState:
    """All that `KeyAlerts` know: the alerts that fire, the keys, and exact arrays by name."""

    firing: list[FiringKey]
    keys: tuple[str, ...]
    arrays: Mapping[str, NDArray[Any]]


class KeyAlerts:
    """The monitors of all keys, and the alerts of those that fire.

    Where more keys are active than may fire, the others wait for a place; keys of one pane get
    places in order of their names. A key that brings no record for the repeat interval loses its
    place, and its monitor begins anew, also if it was still waiting: nothing tells whether the key
    has recovered. The same holds for a key that is forgotten for want of room.

    They go on from the state of others with the same plan and settings, if given.

    Raises:
        ValueError: The parts of the state do not belong together.
        KeyError: It lacks an array.
    """

    def __init__(
        self,
        plan: DetectionPlan,
        keys: KeySettings,
        alerts: AlertSettings,
        state: KeyAlertsState | None = None,
    ) -> None:
        bets = bets_against(np.array([plan.flag_rate]))
        self._repeat_interval_ms = round(alerts.repeat_interval_s * 1000)
        self.monitors = KeyMonitors(
            bets, plan.log_threshold, keys.max_keys, self._repeat_interval_ms
        )
        self.firing: dict[str, FiringKey] = {}
        self._threshold = plan.detector_run_length
        self._max_firing = keys.max_firing
        self._critical_fraction = alerts.critical_fraction
        if state is not None:
            self.monitors.restore(state.keys, state.arrays)
            self.firing = {firing.key: firing for firing in state.firing}

    def state(self) -> KeyAlertsState:
        """Give all that they know."""
        firing, monitors = list(self.firing.values()), self.monitors
        return KeyAlertsState(firing, monitors.names(), monitors.arrays())

    def push(self, pane: ClosedPane, end_ms: int) -> list[Decision]:
        """Take the next pane, which ends at ``end_ms``; give what is to be sent, by key."""
        # Before the pane is taken, as the monitors of silent keys begin anew with it.
        decisions = self._close_silent(pane, end_ms)
        readings = self.monitors.update(pane)
        active = [readings.keys[place] for place in np.flatnonzero(readings.active)]
        waiting = [key for key in active if key not in self.firing]
        for key, firing in sorted(self.firing.items()):
            if key in self.monitors:
                decisions += self._step(key, firing, end_ms)
            else:
                del self.firing[key]
                decisions.append(self._decision(key, Change(Reason.FORGOTTEN, firing.alert)))
        places = max(0, self._max_firing - len(self.firing))
        for key in waiting[:places]:
            decisions += self._step(key, None, end_ms)
        return sorted(decisions, key=lambda decision: decision.key or "")

    def _close_silent(self, pane: ClosedPane, end_ms: int) -> list[Decision]:
        """Note which firing keys the pane has; close the alerts of those that are silent."""
        closed = []
        for key, firing in list(self.firing.items()):
            place = bisect_left(pane.keys, key)
            if place < len(pane.keys) and pane.keys[place] == key:
                self.firing[key] = FiringKey(key, firing.alert, end_ms)
            elif end_ms - firing.seen_ms >= self._repeat_interval_ms:
                del self.firing[key]
                closed.append(self._decision(key, Change(Reason.SILENT, firing.alert)))
        return closed

    def _step(self, key: str, firing: FiringKey | None, end_ms: int) -> Iterator[Decision]:
        _, is_active, since = self.monitors.reading(key)
        is_critical = since.share >= self._critical_fraction
        alert, change = step(
            None if firing is None else firing.alert,
            (Detector.OOD_SEQUENTIAL,) if is_active else (),
            severity=Severity.CRITICAL if is_critical else Severity.WARNING,
            onset_ms=since.start_ms,
            now_ms=end_ms,
            repeat_interval_ms=self._repeat_interval_ms,
        )
        if alert is None:
            self.firing.pop(key, None)
        else:
            self.firing[key] = FiringKey(key, alert, end_ms if firing is None else firing.seen_ms)
        if change is not None:
            yield self._decision(key, change)

    def _decision(self, key: str, change: Change) -> Decision:
        log_statistic, is_active, since = self.monitors.reading(key)
        if not since.records:
            since = Onset(event=0, start_ms=change.alert.onset_ms, records=0, hits=0)
        values = (float(np.exp(log_statistic)), self._threshold, self._threshold * RESOLVE_RATIO)
        reading = DetectorReading(Detector.OOD_SEQUENTIAL, is_active, *values)
        return Decision(key, change, since, (reading,))
