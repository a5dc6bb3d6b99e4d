"""The detectors of the whole stream: the rolling window and two e-detectors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.alert_state import Detector
from nap_stream.core.detection import DetectionPlan, step_limits, window_step
from nap_stream.core.panes import ClosedPane, RollingWindow, WindowState
from nap_stream.core.sequential import (
    RESOLVE_RATIO,
    STATE_ARRAYS,
    Bets,
    Onset,
    SequentialState,
    bets_for_drift,
    initial_state,
    onset,
    step_alarm,
)
from nap_stream.core.tails import tail_counts
from nap_stream.drift.records import DetectorReading, TailShift


class EDetector:
    """One mixture Shiryaev-Roberts detector with hysteresis.

    Args:
        detector: Its name.
        bets: Against the highest in-distribution rates of its events.
        log_threshold: It becomes active there.
    """

    def __init__(self, detector: Detector, bets: Bets, log_threshold: float) -> None:
        self.name, self._bets, self._log_threshold = detector, bets, log_threshold
        self._state = initial_state(bets)
        self._log_value = -math.inf
        self.active = False

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
            self.name,
            self.active,
            math.exp(self._log_value),
            threshold,
            threshold * RESOLVE_RATIO,
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give its state, to be exact."""
        state = {name: getattr(self._state, name) for name in STATE_ARRAYS}
        return {
            **state,
            "log_value": np.array([self._log_value]),
            "active": np.array([self.active]),
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up where another one of the same kind was.

        Raises:
            ValueError: It was of another kind.
        """
        if arrays["log_statistic"].shape != self._bets.hit.shape:
            raise ValueError(f"the state of another detector: {arrays['log_statistic'].shape}")
        self._state = SequentialState(**{name: arrays[name] for name in STATE_ARRAYS})
        self._log_value = float(arrays["log_value"][0])
        self.active = bool(arrays["active"][0])


@dataclass(frozen=True, slots=True)
class Limits:
    """What a full window fires at, and below what it no longer does; counts."""

    firing: int
    resolving: int


class StreamDetectors:
    """All that watch the stream as a whole.

    Args:
        plan: What they are set to.
        pane_ms: Width of a pane in milliseconds.
    """

    def __init__(self, plan: DetectionPlan, pane_ms: int) -> None:
        self._plan = plan
        self._window = RollingWindow(plan.window_records, pane_ms)
        self._window_active = False
        self._known_limits: dict[int, Limits] = {}
        flag_bets = bets_for_drift(np.array([plan.flag_rate]))
        self._flags = EDetector(Detector.OOD_SEQUENTIAL, flag_bets, plan.log_threshold)
        self._events = tuple(event for event, _ in plan.tail_rates)
        self._tails: EDetector | None = None
        if plan.tail_rates:
            tail_bets = bets_for_drift(np.array([rate for _, rate in plan.tail_rates]))
            self._tails = EDetector(Detector.SCORE_SHIFT, tail_bets, plan.log_threshold)

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
    def limits(self) -> Limits | None:
        """Those of the window as it is; None before it is full."""
        window = self._window.state
        if window is None or not self._window.is_full:
            return None
        step = window_step(self._plan, window.records)
        if step not in self._known_limits:
            self._known_limits[step] = Limits(*step_limits(self._plan, step))
        return self._known_limits[step]

    @property
    def active(self) -> tuple[Detector, ...]:
        """The detectors that are active."""
        return (
            *((Detector.OOD_WINDOW,) if self._window_active else ()),
            *(each.name for each in (self._flags, self._tails) if each is not None and each.active),
        )

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

        Without evidence the one that leads is any, and as often on the other side.
        """
        if self._tails is None or not self._tails.active:
            return None
        found = self._tails.onset
        event, rate = self._plan.tail_rates[found.event]
        return TailShift(event, rate, found)

    def onset_ms(self) -> int:
        """When the change is most likely to have begun, for what is active."""
        only_scores = self._tails is not None and self.active == (Detector.SCORE_SHIFT,)
        detector = self._tails if only_scores and self._tails else self._flags
        return detector.onset.start_ms

    def readings(self) -> tuple[DetectorReading, ...]:
        """Say where each stands; the window only once it is full."""
        readings = [self._flags.reading()]
        window, limits = self._window.state, self.limits
        if window is not None and limits is not None:
            counts = (float(window.flagged), float(limits.firing), float(limits.resolving))
            name = Detector.OOD_WINDOW
            readings.insert(0, DetectorReading(name, self._window_active, *counts))
        if self._tails is not None:
            readings.append(self._tails.reading())
        return tuple(readings)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give the state of all, to be exact."""
        arrays: dict[str, NDArray[Any]] = {
            "window.panes": np.array(self._window.panes, dtype=np.int64).reshape(-1, 3),
            "window.active": np.array([self._window_active]),
        }
        for detector in (self._flags, self._tails):
            if detector is not None:
                arrays |= {f"{detector.name}.{k}": a for k, a in detector.arrays().items()}
        return arrays

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up where others of the same plan were.

        Raises:
            ValueError: They were of another plan.
            KeyError: Something is missing.
        """
        for detector in (self._flags, self._tails):
            if detector is not None:
                prefix = f"{detector.name}."
                detector.restore(
                    {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}
                )
        for start_ms, records, flagged in arrays["window.panes"].tolist():
            self._window.push(start_ms, records, flagged)
        self._window_active = bool(arrays["window.active"][0])
