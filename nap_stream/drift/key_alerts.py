"""The alerts of single keys: which fire, which wait for a place, and how each of them ends."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.alert_state import Change, Detector, Reason, Severity, step
from nap_stream.core.detection import DetectionPlan
from nap_stream.core.key_monitors import KeyMonitors
from nap_stream.core.panes import ClosedPane
from nap_stream.core.sequential import RESOLVE_RATIO, Onset, bets_against
from nap_stream.drift.records import Decision, DetectorReading, FiringKey, Verdict
from nap_stream.records import Acceptance
from nap_stream.settings.alerts import AlertSettings
from nap_stream.settings.drift import KeySettings


class KeyAlertsState(NamedTuple):
    """All that `KeyAlerts` know: the alerts that fire, the keys, and exact arrays by name."""

    firing: Sequence[FiringKey]
    keys: tuple[str, ...]
    arrays: Mapping[str, NDArray[Any]]


class KeyJudge(Protocol):
    """The monitors of all keys, whatever they look at."""

    @property
    def detector(self) -> Detector:
        """What an alert says that has fired."""

    def knows(self, key: str) -> bool:
        """Whether a key is remembered."""

    def verdict(self, key: str) -> Verdict:
        """Say where the monitor of a key stands; one that is not remembered has seen nothing."""


class FiringKeys:
    """The alerts of the keys that fire, at most ``max_firing``.

    Where more keys are active than may fire, the others wait for a place; keys of one pane get
    places in order of their names. A key that brings no record for ``silence_ms`` loses its place.
    ``by_key`` are those that fire.
    """

    def __init__(
        self,
        judge: KeyJudge,
        *,
        max_firing: int,
        silence_ms: int,
        alerts: AlertSettings,
        firing: Iterable[FiringKey] = (),
    ) -> None:
        self._judge, self._max_firing, self._silence_ms = judge, max_firing, silence_ms
        self._repeat_interval_ms = round(alerts.repeat_interval_s * 1000)
        self._critical_fraction = alerts.critical_fraction
        self.by_key = {each.key: each for each in firing}
        self._last: dict[str, Verdict] = {}

    def note_last(self) -> None:
        """Note the verdicts of keys that fire, as the next pane may make the monitors forget them.

        To be called before the monitors take it: the alerts of those that go then say why they
        fired. `step` drops the notes.
        """
        self._last = {key: self._judge.verdict(key) for key in self.by_key}

    def close_silent(self, pane: ClosedPane, end_ms: int) -> list[Decision]:
        """Note which firing keys the pane has; close the alerts of those that are silent.

        To be called before the monitors take the pane, as those of silent keys begin anew with it.
        """
        closed = []
        for key, firing in list(self.by_key.items()):
            place = bisect_left(pane.keys, key)
            if place < len(pane.keys) and pane.keys[place] == key:
                self.by_key[key] = FiringKey(key, firing.alert, end_ms)
            elif end_ms - firing.seen_ms >= self._silence_ms:
                closed.append(self._close(key, Reason.SILENT))
        return closed

    def accept(self, acceptance: Acceptance) -> list[Decision]:
        """Close the alert of a key whose change is accepted, before its monitor begins anew."""
        if acceptance.key not in self.by_key:
            return []
        return [self._close(acceptance.key, Reason.ACCEPTED, acceptance)]

    def step(
        self, active: Iterable[str], end_ms: int, before: Iterable[Decision]
    ) -> list[Decision]:
        """Go on at the end of a pane, which has found these keys active; give what is to be sent.

        That is by key, with what was decided ``before`` of the same pane.
        """
        decisions = list(before)
        waiting = sorted(set(active) - self.by_key.keys())
        for key, firing in sorted(self.by_key.items()):
            if self._judge.knows(key):
                decisions += self._step(key, firing, end_ms)
            else:
                decisions.append(self._close(key, Reason.FORGOTTEN))
        places = max(0, self._max_firing - len(self.by_key))
        for key in waiting[:places]:
            decisions += self._step(key, None, end_ms)
        self._last = {}
        return sorted(decisions, key=lambda decision: decision.key or "")

    def _step(self, key: str, firing: FiringKey | None, end_ms: int) -> Iterator[Decision]:
        found = self._judge.verdict(key)
        is_critical = found.since.share >= self._critical_fraction
        alert, change = step(
            None if firing is None else firing.alert,
            (self._judge.detector,) if found.active else (),
            severity=Severity.CRITICAL if is_critical else Severity.WARNING,
            onset_ms=found.since.start_ms,
            now_ms=end_ms,
            repeat_interval_ms=self._repeat_interval_ms,
        )
        if alert is None:
            self.by_key.pop(key, None)
        else:
            self.by_key[key] = FiringKey(key, alert, end_ms if firing is None else firing.seen_ms)
        if change is not None:
            yield self._decision(key, change)

    def _close(self, key: str, reason: Reason, acceptance: Acceptance | None = None) -> Decision:
        return self._decision(key, Change(reason, self.by_key.pop(key).alert), acceptance)

    def _decision(self, key: str, change: Change, acceptance: Acceptance | None = None) -> Decision:
        found = self._last.get(key) if change.reason is Reason.FORGOTTEN else None
        found = found or self._judge.verdict(key)
        if not found.since.records:
            since = Onset(event=0, start_ms=change.alert.onset_ms, records=0, hits=0)
            found = replace(found, since=since)
        return Decision(key, change, found, acceptance)


class KeyAlerts:
    """The e-detectors of flags of all keys, and the alerts of those that fire.

    A key that brings no record for the repeat interval loses its place, and its monitor begins
    anew, also if it was still waiting: nothing tells whether the key has recovered. The same holds
    for a key that is forgotten for want of room.

    They go on from the state of others with the same plan and settings, if given.

    Raises:
        ValueError: The parts of the state do not belong together.
        KeyError: It lacks an array.
    """

    detector = Detector.OOD_SEQUENTIAL

    def __init__(
        self,
        plan: DetectionPlan,
        keys: KeySettings,
        alerts: AlertSettings,
        state: KeyAlertsState | None = None,
    ) -> None:
        bets = bets_against(np.array([plan.flag_rate]))
        silence_ms = round(alerts.repeat_interval_s * 1000)
        self.monitors = KeyMonitors(bets, plan.log_threshold, keys.max_keys, silence_ms)
        self._threshold = plan.detector_run_length
        if state is not None:
            self.monitors.restore(state.keys, state.arrays)
        self._firing = FiringKeys(
            self,
            max_firing=keys.max_firing,
            silence_ms=silence_ms,
            alerts=alerts,
            firing=() if state is None else state.firing,
        )

    def state(self) -> KeyAlertsState:
        """Give all that they know."""
        monitors = self.monitors
        return KeyAlertsState([*self.firing.values()], monitors.names(), monitors.arrays())

    @property
    def firing(self) -> Mapping[str, FiringKey]:
        """The keys that fire."""
        return self._firing.by_key

    def push(self, pane: ClosedPane, end_ms: int) -> list[Decision]:
        """Take the next pane, which ends at ``end_ms``; give what is to be sent, by key."""
        decisions = self._firing.close_silent(pane, end_ms)
        readings = self.monitors.update(pane)
        active = [readings.keys[place] for place in np.flatnonzero(readings.active)]
        return self._firing.step(active, end_ms, decisions)

    def knows(self, key: str) -> bool:
        """Whether a key is remembered."""
        return key in self.monitors

    def verdict(self, key: str) -> Verdict:
        """Say where the e-detector of a key stands."""
        log_statistic, is_active, since = self.monitors.reading(key)
        values = (float(np.exp(log_statistic)), self._threshold, self._threshold * RESOLVE_RATIO)
        return Verdict(is_active, since, (DetectorReading(self.detector, is_active, *values),))
