"""How many records after a drift a detector fires: simulated, from a typical quiet state.

Flags are independent, with one rate before the drift and another after it. A delay counts from the
first record after the drift to the end of the pane at which the detector fires. The rolling window
is full of records from before; for e-detectors see `nap_stream.core.sequential_delays`.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.detection import DetectionPlan, window_firing_limit

RUNS = 200
LEAST_HORIZON = 50_000
_PANES_A_WINDOW = 100
_HORIZON_IN_WINDOWS = 20
_CHUNK_PANES = 1_000


@dataclass(frozen=True, slots=True)
class Delay:
    """Records from a drift to the alarm, over ``runs`` simulated streams.

    ``horizon`` records after the drift were simulated; ``detected`` streams had their alarm
    within them. ``median`` is null where less than half had. ``mean`` and its standard error are
    null unless all had. ``blind`` says that the detector is not made to see the drift: what it
    looks at stays below what the calibration allows for, or hardly above it, or the window is too
    small to fire at all. Nothing was simulated then.
    """

    runs: int
    horizon: int
    detected: int
    median: float | None
    mean: float | None
    standard_error: float | None
    blind: bool = False

    @property
    def typical(self) -> float | None:
        """The mean, or else the median; None where neither is known."""
        return self.mean if self.mean is not None else self.median


BLIND = Delay(0, 0, 0, None, None, None, blind=True)


def window_delay(
    plan: DetectionPlan,
    before: float,
    after: float,
    *,
    pane_records: int,
    generator: np.random.Generator,
    runs: int = RUNS,
) -> Delay:
    """Simulate the delay of the rolling window of ``plan.window_records``.

    Args:
        plan: The settings.
        before: The flag rate until the drift.
        after: The flag rate from then on.
        pane_records: Records of a pane, at least 1. Where a window is of more than
            some 100 panes, larger ones are simulated.
        generator: Where chance comes from.
        runs: Streams to simulate.
    """
    size = max(pane_records, plan.window_records // _PANES_A_WINDOW)
    panes = math.ceil(plan.window_records / size)
    horizon = max(LEAST_HORIZON, _HORIZON_IN_WINDOWS * plan.window_records)
    limit = window_firing_limit(plan, panes * size)
    if after <= plan.flag_rate or limit > panes * size:
        return BLIND
    alarms = np.full(runs, -1, dtype=np.int64)
    waiting = np.arange(runs)
    recent = generator.binomial(size, before, (runs, panes))
    done, last = 0, math.ceil(horizon / size)
    while done < last and len(waiting):
        new = generator.binomial(size, after, (len(waiting), min(_CHUNK_PANES, last - done)))
        counts = np.concatenate((recent, new), axis=1)
        total = np.cumsum(counts, axis=1)
        reached = total[:, panes:] - total[:, :-panes] >= limit
        fired = reached.any(axis=1)
        alarms[waiting[fired]] = (done + 1 + reached[fired].argmax(axis=1)) * size
        waiting, recent = waiting[~fired], counts[~fired, -panes:]
        done += new.shape[1]
    return delay_of(alarms, last * size)


def delay_of(alarms: NDArray[np.int64], horizon: int) -> Delay:
    """Sum simulated streams up.

    Args:
        alarms: int64 (R,), records until each stream's alarm, -1 where it had none.
        horizon: Records that were simulated.
    """
    runs, seen = len(alarms), alarms[alarms >= 0]
    ordered = np.sort(np.where(alarms >= 0, alarms.astype(np.float64), np.inf))
    median = float(ordered[(runs - 1) // 2] / 2 + ordered[runs // 2] / 2)
    mean = float(seen.mean()) if len(seen) == runs else None
    error = float(seen.std(ddof=1)) / math.sqrt(runs) if mean is not None and runs > 1 else None
    return Delay(runs, horizon, len(seen), median if math.isfinite(median) else None, mean, error)
