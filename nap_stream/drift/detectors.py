"""What watches the stream record by record: the rolling window and two e-detectors.

`detection_plan` tells what they are set to.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.alert_state import Detector
from nap_stream.core.detection import (
    DetectionPlan,
    plan_detection,
    step_limits,
    window_firing_limit,
    window_step,
)
from nap_stream.core.panes import ClosedPane, RollingWindow, WindowState
from nap_stream.core.sequential import (
    STATE_ARRAYS,
    Onset,
    SequentialState,
    bets_for_drift,
    initial_state,
    onset,
    step_alarm,
)
from nap_stream.core.tails import TAIL_EVENTS, tail_counts
from nap_stream.drift.records import CalibrationFacts, DetectorReading, TailShift
from nap_stream.errors import ConfigError
from nap_stream.settings.drift import DriftSettings


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
        return DetectorReading.of_e_detector(
            self.name, self._log_value, self._log_threshold, active=self.active
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
