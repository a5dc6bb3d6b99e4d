"""What the detectors are set to: one promise about false alarms, and what follows for each.

The promise is: while the stream is in-distribution, the probability of any false alarm within T
records is at most T / A, for every T, with A the run length that is asked for; and that holds for
a share of ``confidence`` of all calibrations that could have been drawn.

Each of D detectors gets an equal share: a run length of D A. The probabilities of a false alarm
within T records are at most T / (D A) each (see `nap_stream.core.bounds` and
`nap_stream.core.sequential`), so that of any of them is at most T / A. Monitors of single keys
share one such D A, however many keys there are: a key with t_i records of its own raises a false
alarm with a probability of at most t_i / (D A), and the t_i sum up to T.

The confidence is shared in the same way (Bonferroni): half of what is left of 1 goes to the rate of
flags, which the rolling window, the e-detector and the keys have in common; the other half to the
tails of the p-values, equally; each share to the groups of calibration images (one, or one for each
class) equally. With every group's rate bounded, so is that of any mix of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nap_stream.core.bounds import highest_flag_limit, scan_limit
from nap_stream.core.conformal import upper_flag_rate
from nap_stream.core.tails import FlagRateLaw, TailEvent

WINDOW_STEP = 1.05
"""A window holds whole panes: its limit is that of the next larger size on this grid."""
USUAL_SHARE = 0.45
"""Of the window's budget of false alarms, for each of the first two sizes of the grid."""


@dataclass(frozen=True, slots=True)
class DetectionPlan:
    """The settings of all detectors.

    ``run_length`` is A, ``detector_run_length`` D A, both in records. ``flag_rate`` is the highest
    in-distribution rate of flags, p_U, at its share of the confidence; ``tail_rates`` are those of
    the tail events. ``resolve_laws`` and ``resolve_probability`` are for
    `nap_stream.core.bounds.highest_flag_limit`. ``calibration_fingerprint`` names where all of it
    comes from.
    """

    run_length: float
    detector_run_length: float
    confidence: float
    flag_rate: float
    tail_rates: tuple[tuple[TailEvent, float], ...]
    window_records: int
    resolve_laws: tuple[FlagRateLaw, ...]
    resolve_probability: float
    calibration_fingerprint: str = ""

    @property
    def log_threshold(self) -> float:
        """The logarithm of the threshold of every e-detector: its run length."""
        return math.log(self.detector_run_length)


def plan_detection(
    *,
    run_length: float,
    confidence: float,
    window_records: int,
    resolve_probability: float,
    flag_laws: Sequence[FlagRateLaw],
    tail_laws: Sequence[tuple[TailEvent, Sequence[FlagRateLaw]]],
    groups: int,
    with_keys: bool,
    calibration_fingerprint: str = "",
) -> DetectionPlan:
    """Share the promise out among the detectors.

    Args:
        run_length: A, in records.
        confidence: In (0, 1).
        window_records: Of the rolling window.
        resolve_probability: See `DetectionPlan`.
        flag_laws: Laws of the flag rates, over the groups of calibration images.
        tail_laws: The tail events that can be tested, with the laws of their rates.
        groups: How many groups there are, equal laws counted as often as they are there.
        with_keys: Whether keys have monitors of their own.
        calibration_fingerprint: See `DetectionPlan`.
    """
    left = (1 - confidence) / 2
    detectors = 2 + bool(tail_laws) + with_keys
    return DetectionPlan(
        run_length=run_length,
        detector_run_length=run_length * detectors,
        confidence=confidence,
        flag_rate=_highest_rate(flag_laws, 1 - left / groups),
        tail_rates=tuple(
            (event, _highest_rate(laws, 1 - left / (groups * len(tail_laws))))
            for event, laws in tail_laws
        ),
        window_records=window_records,
        resolve_laws=tuple(flag_laws),
        resolve_probability=resolve_probability,
        calibration_fingerprint=calibration_fingerprint,
    )


def window_step(plan: DetectionPlan, records: int) -> int:
    """Give the step of the grid, from 0, whose size is the smallest of at least ``records``."""
    step = 0
    while _window_size(plan, step) < records:
        step += 1
    return step


def step_limits(plan: DetectionPlan, step: int) -> tuple[int, int]:
    """Give the flags from which on a full window fires, and below which it no longer does.

    A window of n records lies in the last n' >= n, the next size on the grid, so that it fires
    only if those hold as many flags. The sizes of the grid share the window's run length: the
    first two, which are the usual ones, have `USUAL_SHARE` of the false alarms each, and each
    further one half of what is left. It resolves by the limit of the size before.

    Args:
        plan: The settings.
        step: From `window_step`.

    Returns:
        Firing and resolve limit, the second at most the first.
    """
    smaller = _window_size(plan, max(0, step - 1))
    firing = _firing_limit(plan, step)
    resolving, _ = highest_flag_limit(smaller, plan.resolve_laws, plan.resolve_probability)
    return firing, min(firing, resolving)


def window_limits(plan: DetectionPlan, records: int) -> tuple[int, int]:
    """Give `step_limits` of a window of so many records, at least ``plan.window_records``."""
    return step_limits(plan, window_step(plan, records))


def window_firing_limit(plan: DetectionPlan, records: int) -> int:
    """Give the first of `window_limits` alone, in time and memory that hardly grow with records."""
    return _firing_limit(plan, window_step(plan, records))


def _firing_limit(plan: DetectionPlan, step: int) -> int:
    share = USUAL_SHARE if step <= 1 else (1 - 2 * USUAL_SHARE) / 2 ** (step - 1)
    run_length = plan.detector_run_length / share
    return scan_limit(_window_size(plan, step), plan.flag_rate, run_length)


def _window_size(plan: DetectionPlan, step: int) -> int:
    return math.ceil(plan.window_records * WINDOW_STEP**step)


def _highest_rate(laws: Sequence[FlagRateLaw], confidence: float) -> float:
    return max(upper_flag_rate(law.flag_rank, law.size, confidence) for law in laws)
