"""alibi-detect's and river's detectors on the streams of `benchmarks.false_alarms`, which calls it.

    PEERS_PYTHON -m benchmarks.peers TASK.json RESULT.json

Runs under an interpreter that has benchmarks/peers.txt, and needs nothing of nap_stream.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.fisher import FisherStreams, configured, disagreements
from benchmarks.horizons import FEW_ALARMS
from benchmarks.peer_task import Task, row
from benchmarks.river_streams import TUNABLE, Tunable, delays, run_lengths, tuned
from benchmarks.run_lengths import (
    average_run_length,
    bernoulli,
    detection_delays,
    first_passages,
)

FISHER = "FETDriftOnline"
FISHER_STREAMS = 1_000
FISHER_STREAMS_TO_DRIFT = 4_000
RATES_ON_GRID = 9
HORIZON_OF_RIVER = 10
"""In run lengths asked for."""


def main() -> None:
    task = Task(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    fisher_lengths, fisher_rows, differ = fisher(task)
    river_lengths, river_rows = river(task)
    result = {
        "versions": {name: version(name) for name in ("alibi-detect", "river")},
        "disagreements": differ,
        "run_lengths": {_fisher_name(task): fisher_lengths, **river_lengths},
        "rows": fisher_rows + river_rows,
    }
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


def fisher(task: Task) -> tuple[dict[str, list[float]], list[dict[str, Any]], int]:
    """Average run length of each calibration by size; rows of delays; see `disagreements`."""
    rng = np.random.default_rng(task.seed)
    lengths: dict[str, list[float]] = {}
    rows = []
    differ = 0
    for size, flags in task.flags.items():
        detectors = [
            configured(flags, int(size), task.target, task.windows, task.seed + number)
            for number in range(task.configurations)
        ]
        differ += disagreements(detectors[0], (rng.random(2_000) < 0.06).astype(np.int64))
        shares = np.array_split(np.array(task.rates[size]), task.configurations)
        lengths[size] = [
            length
            for detector, rates in zip(detectors, shares, strict=True)
            for length in _fisher_run_lengths(detector, rates, task, rng)
        ]
        rows += [_fisher_row(size, number, d, task, rng) for number, d in enumerate(detectors)]
        _say(f"{FISHER}, {size} calibration images")
    return lengths, rows, differ


def river(task: Task) -> tuple[dict[str, dict[str, list[float]]], list[dict[str, Any]]]:
    """As `fisher`, for detectors that know no calibration, at their defaults and tuned.

    The average run lengths are those at the defaults, once for each horizon.
    """
    rng = np.random.default_rng(task.seed)
    lengths: dict[str, dict[str, list[float]]] = {}
    rows = []
    for tunable in TUNABLE:
        if tunable.value is not None:
            lengths |= _river_run_lengths(tunable, tunable.value, task, rng)
            rows.append(_river_row(tunable, tunable.value, "default", task, rng))
        value = tuned(tunable, task.base_rate, task.target, rng)
        rows.append(_river_row(tunable, value, "tuned", task, rng))
        _say(tunable.name)
    return lengths, rows


def _fisher_run_lengths(
    detector: Any, rates: NDArray[np.float64], task: Task, rng: np.random.Generator
) -> list[float]:
    each = np.repeat(rates, task.replicas)
    found = _fisher_passages(detector, each, 2 * task.target, rng).reshape(len(rates), -1)
    return [average_run_length(row, 2 * task.target).mean for row in found]


def _fisher_passages(
    detector: Any, rates: NDArray[np.float64], horizon: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    return first_passages(
        FisherStreams(detector, len(rates), rng),
        bernoulli(rates, 1),
        streams=np.arange(len(rates)),
        thresholds=np.array([1.0]),
        records=1,
        panes=horizon,
        rng=rng,
    )[:, 0]


def _fisher_row(
    size: str, number: int, detector: Any, task: Task, rng: np.random.Generator
) -> dict[str, Any]:
    horizon = 5 * task.target
    same = np.full(FISHER_STREAMS, task.base_rate)
    lengths = _fisher_passages(detector, same, horizon, rng)
    found = [
        detection_delays(
            FisherStreams(detector, FISHER_STREAMS_TO_DRIFT, rng),
            bernoulli(same[:1], 1),
            bernoulli(np.array([rate]), 1),
            streams=FISHER_STREAMS_TO_DRIFT,
            thresholds=np.array([1.0]),
            prefix=task.prefix,
            limit=task.limit,
            rng=rng,
        )[0]
        for rate in task.drifted_rates
    ]
    name = f"{_fisher_name(task)}, configured {number + 1} of {task.configurations}"
    return row((name, f"ert {task.target:,}", size), lengths, horizon, found, task)


def _fisher_name(task: Task) -> str:
    return f"{FISHER}, windows {' and '.join(map(str, task.windows))}"


def _river_run_lengths(
    tunable: Tunable, value: float, task: Task, rng: np.random.Generator
) -> dict[str, dict[str, list[float]]]:
    """Interpolated in the flag rate, which is all that its run length depends on.

    By the same runs read at two horizons, since for some detectors the answer is the horizon's.
    """
    every = np.concatenate([np.array(rates) for rates in task.rates.values()])
    grid = np.linspace(every.min(), every.max(), RATES_ON_GRID)
    longest = HORIZON_OF_RIVER * task.target
    runs = [
        run_lengths(lambda: tunable.make(value), rate, longest, 10 * longest, rng) for rate in grid
    ]
    found = {}
    for horizon in (task.target, longest):
        logs = [np.log(_records_by_alarms(lengths, horizon)) for lengths in runs]
        found[f"{tunable.name}, horizon {horizon:,}"] = {
            size: np.exp(np.interp(rates, grid, logs)).tolist()
            for size, rates in task.rates.items()
        }
    return found


def _records_by_alarms(lengths: NDArray[np.int64], horizon: int) -> float:
    """No alarm counts as half a one."""
    seen = float(np.minimum(lengths, horizon).sum())
    return seen / max(0.5, float((lengths <= horizon).sum()))


def _river_row(
    tunable: Tunable, value: float, how: str, task: Task, rng: np.random.Generator
) -> dict[str, Any]:
    horizon = HORIZON_OF_RIVER * task.target

    def make() -> Any:
        return tunable.make(value)

    lengths = run_lengths(make, task.base_rate, horizon, 300 * task.target, rng)
    if (lengths <= horizon).sum() < FEW_ALARMS:
        horizon *= 100
        lengths = run_lengths(make, task.base_rate, horizon, 3 * horizon, rng)
    found = [
        delays(
            make,
            (task.base_rate, rate),
            streams=task.streams,
            prefix=task.prefix,
            limit=task.limit,
            rng=rng,
        )
        for rate in task.drifted_rates
    ]
    parameter = f"{tunable.parameter} {value:.3g}, {how}"
    return row((tunable.name, parameter, None), lengths, horizon, found, task)


def _say(what: str) -> None:
    print(f"done: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
