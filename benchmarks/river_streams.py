"""river's change detectors on streams of flags, one after the other. Needs river."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import drift  # type: ignore[import-not-found,unused-ignore]  # peers.txt

from benchmarks.run_lengths import NEVER

Make = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Tunable:
    """A detector and the parameter that sets how often it alarms.

    ``make`` builds it with a value of that parameter; ``value`` where it stands at its default,
    None where there is no such thing as the rest of it is not at its defaults. The run length
    grows from ``often`` to ``rarely``.
    """

    name: str
    parameter: str
    make: Callable[[float], Any]
    value: float | None
    often: float
    rarely: float


TUNABLE = (
    Tunable("ADWIN", "delta", lambda v: drift.ADWIN(delta=v), 0.002, 1.0, 1e-4),
    Tunable("ADWIN, clock 8", "delta", lambda v: drift.ADWIN(delta=v, clock=8), None, 1.0, 1e-4),
    Tunable("PageHinkley", "threshold", lambda v: drift.PageHinkley(threshold=v), 50.0, 2.0, 100.0),
    Tunable(
        "PageHinkley, upwards, delta 0.02",
        "threshold",
        lambda v: drift.PageHinkley(threshold=v, delta=0.02, mode="up"),
        None,
        2.0,
        100.0,
    ),
    Tunable(
        "DDM",
        "drift_threshold",
        lambda v: drift.binary.DDM(drift_threshold=v),
        3.0,
        0.5,
        6.0,
    ),
)


def run_length(detector: Any, rate: float, limit: int, rng: np.random.Generator) -> int:
    """Records until the detector's next alarm on flags of one rate, or `NEVER`."""
    update, seen = detector.update, 0
    while seen < limit:
        flags = (rng.random(min(4_096, limit - seen)) < rate).tolist()
        for number, flag in enumerate(flags, start=1):
            update(int(flag))
            if detector.drift_detected:
                return seen + number
        seen += len(flags)
    return NEVER


def run_lengths(
    make: Make, rate: float, horizon: int, records: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Run lengths of new detectors, censored at the horizon, until so many records are used."""
    lengths = []
    for _ in count():
        lengths.append(run_length(make(), rate, horizon, rng))
        records -= min(lengths[-1], horizon)
        if records <= 0:
            break
    return np.array(lengths, dtype=np.int64)


def tuned(tunable: Tunable, rate: float, target: int, rng: np.random.Generator) -> float:
    """The value of the parameter at which the average run length is the target.

    Bisection on a logarithmic scale, each step on 100 run lengths or so.
    """
    often, rarely = np.log(tunable.often), np.log(tunable.rarely)
    for _ in range(8):
        middle = (often + rarely) / 2
        value = float(np.exp(middle))
        lengths = run_lengths(partial(tunable.make, value), rate, 10 * target, 100 * target, rng)
        alarms = int((lengths < NEVER).sum())
        if np.minimum(lengths, 10 * target).sum() < alarms * target:
            often = middle
        else:
            rarely = middle
    return float(np.exp((often + rarely) / 2))


def delays(
    make: Make,
    rates: tuple[float, float],
    *,
    streams: int,
    prefix: int,
    limit: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Records from the change of the rate to the alarm, see `run_lengths.detection_delays`."""
    found = []
    for _ in range(streams):
        detector = make()
        if run_length(detector, rates[0], prefix, rng) == NEVER:
            found.append(run_length(detector, rates[1], limit, rng))
    return np.array(found, dtype=np.int64)
