"""What watches: the rolling window and two e-detectors of the stream, an e-detector of each key.

`detection_plan` tells what they are set to.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.alert_state import Change, Detector, Firing, Reason, Severity, step
from nap_stream.core.detection import (
    DetectionPlan,
    plan_detection,
    step_limits,
    window_firing_limit,
    window_step,
)
from nap_stream.core.key_monitors import KeyMonitors
from nap_stream.core.panes import ClosedPane, RollingWindow, WindowState
from nap_stream.core.sequential import (
    RESOLVE_RATIO,
    STATE_ARRAYS,
    Onset,
    SequentialState,
    bets_against,
    bets_for_drift,
    initial_state,
    onset,
    step_alarm,
)
from nap_stream.core.tails import TAIL_EVENTS, tail_counts
from nap_stream.drift.records import CalibrationFacts, Decision, DetectorReading, TailShift
from nap_stream.errors import ConfigError
from nap_stream.settings.alerts import AlertSettings
from nap_stream.settings.drift import DriftSettings, KeySettings


def detection_plan(settings: DriftSettings, calibration: CalibrationFacts) -> DetectionPlan:
    """Share the promise of the settings out among the detectors.

    Raises:
        ConfigError: The window is too small to fire even if all its records were flagged.
    """
    tails = zip(TAIL_EVENTS, calibration.tail_laws, strict=True)
    plan = plan_detection(
        run_length=settings.run_length,
        confidence=settings.confidence,
        window_records=settings.window_records,
        resolve_probability=settings.resolve_probability,
        flag_laws=calibration.flag_rate_laws,
        tail_laws=[(event, laws) for event, laws in tails if laws],
        groups=calibration.groups,
        with_keys=settings.keys is not None,
        calibration_fingerprint=calibration.fingerprint,
    )
    if window_firing_limit(plan, settings.window_records) > settings.window_records:
        raise ConfigError(
            f"a window of {settings.window_records} records can never fire at a run length of "
            f"{settings.run_length:g} records between false alarms",
            "drift.window_records",
            "Make the window larger",
        )
    return plan


class EDetector:
    """One mixture Shiryaev-Roberts detector with hysteresis.

    ``rates`` are the highest in-distribution rates of its J events. It becomes active at
    ``log_threshold``, and goes on from the state of another one of the same kind, if given.

    Raises:
        ValueError: The state is of another kind.
        KeyError: It lacks an array.
    """

    def __init__(
        self,
        name: Detector,
        rates: list[float],
        log_threshold: float,
        state: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.name, self._log_threshold = name, log_threshold
        self._bets = bets_for_drift(np.array(rates))
        self._state = initial_state(self._bets)
        self._log_value, self.active = -math.inf, False
        if state is not None:
            if state["log_statistic"].shape != self._bets.hit.shape:
                raise ValueError(f"the state of another detector: {state['log_statistic'].shape}")
            self._state = SequentialState(**{name: state[name] for name in STATE_ARRAYS})
            self._log_value = float(state["log_value"][0])
            self.active = bool(state["active"][0])

    def state(self) -> dict[str, NDArray[Any]]:
        """Give all that it knows."""
        return {name: getattr(self._state, name) for name in STATE_ARRAYS} | {
            "log_value": np.array([self._log_value]),
            "active": np.array([self.active]),
        }

    @property
    def onset(self) -> Onset:
        """The most likely change."""
        return onset(self._state)

    def push(self, records: int, hits: NDArray[np.int64], start_ms: int) -> None:
        """Take a pane: its records, how many each event holds for, int64 (J,), and its start."""
        judged = step_alarm(
            self._state,
            self._bets,
            log_threshold=self._log_threshold,
            active=np.array(self.active),
            records=np.array(records),
            hits=hits,
            start_ms=np.array(start_ms),
        )
        self._state, self._log_value = judged.state, float(judged.log_value)
        self.active = bool(judged.active)

    def reading(self) -> DetectorReading:
        """Say where it stands."""
        threshold = math.exp(self._log_threshold)
        return DetectorReading(
            self.name, self.active, math.exp(self._log_value), threshold, threshold * RESOLVE_RATIO
        )


@dataclass(frozen=True, slots=True)
class WindowLimits:
    """What a full window fires at, and below what it no longer does; counts."""

    firing: int
    resolving: int


class StreamDetectors:
    """All that watch the stream as a whole, in panes of ``pane_ms`` milliseconds.

    They go on from the state of others with the same plan, if given: exact arrays by name.

    Raises:
        ValueError: The state is of another plan.
        KeyError: It lacks an array.
    """

    def __init__(
        self, plan: DetectionPlan, pane_ms: int, state: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        self._plan = plan
        self._window = RollingWindow(plan.window_records, pane_ms)
        self._window_active = False
        self._known_limits: dict[int, WindowLimits] = {}
        self._flags = self._e_detector(Detector.OOD_SEQUENTIAL, [plan.flag_rate], state)
        self._events = tuple(event for event, _ in plan.tail_rates)
        self._tails: EDetector | None = None
        if rates := [rate for _, rate in plan.tail_rates]:
            self._tails = self._e_detector(Detector.SCORE_SHIFT, rates, state)
        if state is not None:
            for pane in state["window.panes"].tolist():
                self._window.push(*pane)
            self._window_active = bool(state["window.active"][0])

    def state(self) -> dict[str, NDArray[Any]]:
        """Give all that they know."""
        arrays: dict[str, NDArray[Any]] = {
            "window.panes": np.array(self._window.panes, dtype=np.int64).reshape(-1, 3),
            "window.active": np.array([self._window_active]),
        }
        for detector in self._e_detectors():
            arrays |= {f"{detector.name}.{k}": array for k, array in detector.state().items()}
        return arrays

    def push(self, pane: ClosedPane) -> None:
        """Take the next pane."""
        window = self._window.push(pane.start_ms, pane.records, pane.flagged)
        if (limits := self.limits) is not None:
            limit = limits.resolving if self._window_active else limits.firing
            self._window_active = window.flagged >= limit
        self._flags.push(pane.records, np.array([pane.flagged]), pane.start_ms)
        if self._tails is not None:
            self._tails.push(pane.records, tail_counts(pane.bins, self._events), pane.start_ms)

    @property
    def window(self) -> WindowState | None:
        """The rolling window; None before the first pane."""
        return self._window.state

    @property
    def limits(self) -> WindowLimits | None:
        """Those of the window as it is; None before it is full."""
        window = self._window.state
        if window is None or not self._window.is_full:
            return None
        step = window_step(self._plan, window.records)
        if step not in self._known_limits:
            self._known_limits[step] = WindowLimits(*step_limits(self._plan, step))
        return self._known_limits[step]

    @property
    def active(self) -> tuple[Detector, ...]:
        """The detectors that are active."""
        window = (Detector.OOD_WINDOW,) if self._window_active else ()
        return (*window, *(each.name for each in self._e_detectors() if each.active))

    @property
    def fraction(self) -> float:
        """The OOD fraction that the active detectors of flags see: the highest; 0 without one."""
        seen = [0.0]
        if self._window_active and (window := self._window.state) is not None:
            seen.append(window.fraction)
        if self._flags.active:
            seen.append(self._flags.onset.share)
        return max(seen)

    def since(self) -> Onset:
        """The flagged records since the most likely change of the OOD fraction."""
        return self._flags.onset

    def tail(self) -> TailShift | None:
        """The tail that has grown most; None unless their detector is active.

        Before that a tail leads by chance, and as often as not one of the other side.
        """
        if self._tails is None or not self._tails.active:
            return None
        found = self._tails.onset
        event, rate = self._plan.tail_rates[found.event]
        return TailShift(event, rate, found)

    def onset_ms(self) -> int:
        """When the change is most likely to have begun, for what is active."""
        only_scores = self.active == (Detector.SCORE_SHIFT,)
        detector = self._tails if only_scores and self._tails is not None else self._flags
        return detector.onset.start_ms

    def readings(self) -> tuple[DetectorReading, ...]:
        """Say where each stands; the window only once it is full."""
        readings = tuple(each.reading() for each in self._e_detectors())
        window, limits = self._window.state, self.limits
        if window is None or limits is None:
            return readings
        counts = (float(window.flagged), float(limits.firing), float(limits.resolving))
        return (DetectorReading(Detector.OOD_WINDOW, self._window_active, *counts), *readings)

    def _e_detector(
        self, name: Detector, rates: list[float], state: Mapping[str, NDArray[Any]] | None
    ) -> EDetector:
        own = None if state is None else with_prefix(state, f"{name}.")
        return EDetector(name, rates, self._plan.log_threshold, own)

    def _e_detectors(self) -> tuple[EDetector, ...]:
        return (self._flags,) if self._tails is None else (self._flags, self._tails)


def with_prefix(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Give the arrays whose names begin with a prefix, under what follows it."""
    return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}


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
