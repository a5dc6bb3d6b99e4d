"""What `benchmarks.false_alarms` asks of `benchmarks.peers`, and a row of its answer."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.horizons import law
from benchmarks.run_lengths import average_run_length, mean_delay


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked for; see `benchmarks.false_alarms` for the words.

    ``flags`` and ``rates`` are by size of the calibration set: how many of its images are flagged,
    and the true flag rate of each calibration drawn.
    """

    seed: int
    target: int
    windows: list[int]
    configurations: int
    flags: dict[str, int]
    rates: dict[str, list[float]]
    replicas: int
    base_rate: float
    drifted_rates: list[float]
    streams: int
    prefix: int
    limit: int


def row(
    label: tuple[str, str, str | None],
    lengths: NDArray[np.int64],
    horizon: int,
    found: list[NDArray[np.int64]],
    task: Task,
) -> dict[str, Any]:
    """A line of the tables, for JSON.

    Args:
        label: Name, parameter, size of the calibration set or None.
        lengths: int64 (S,), first alarms on in-distribution flags, `NEVER` beyond the horizon.
        horizon: In records.
        found: For each drifted rate the delays, int64 (S',).
        task: What was asked for.
    """
    name, parameter, size = label
    return {
        "name": name,
        "parameter": parameter,
        "size": size,
        "run_length": asdict(average_run_length(lengths, horizon)),
        "law": asdict(law(lengths, horizon, task.target // 10)),
        "delays": [asdict(mean_delay(values, task.limit)) for values in found],
        "missed": [float((values > task.limit).mean()) for values in found],
    }
