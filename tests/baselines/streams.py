"""Logs of cameras whose scores, p-values and flags go together, written fast."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nap_stream.calibration.calibration import Calibration
from nap_stream.clock import ManualClock
from nap_stream.records import Status, TopicPartition
from nap_stream.scored_log.chain import ScoredLog, WriterIdentity
from nap_stream.scored_log.format import ROWS, rows_of
from nap_stream.scored_log.stores.local import LocalStore
from tests.support.small_calibration import calibration_of

START_MS = 1_767_225_600_000
"""2026-01-01T00:00:00Z."""
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
CARS = TopicPartition("cars", 0)


def images(count: int = 400, **changes: Any) -> Calibration:
    """A calibration whose images have normal scores, of a method that is the energy alone."""
    energy = np.random.default_rng(1).normal(size=count)
    fields = {"method": "energy", "weight": None, "alpha": 0.05} | changes
    return calibration_of(energy.tolist(), [1.0] * count, **fields)


@dataclass
class Stream:
    """Records of one partition: times in milliseconds, int64 (N,), keys and scores."""

    times_ms: NDArray[np.int64]
    keys: Sequence[str | None]
    fused: NDArray[np.float64]
    event_times_ms: NDArray[np.int64] | None = None
    status: Mapping[int, Status] = field(default_factory=dict)


def cameras(
    count: int,
    hours: float,
    *,
    every_ms: int = 10_000,
    kept: float = 0.0,
    seed: int = 0,
    shift: Mapping[str, float] | None = None,
    start_ms: int = START_MS,
) -> Stream:
    """Cameras in turn, ``every_ms`` an image of each, whose scores are AR(1) around a mean.

    ``kept`` is the correlation of an image's score with the one before; ``shift`` moves the mean of
    a camera.
    """
    rng = np.random.default_rng(seed)
    images_each = round(hours * HOUR_MS / every_ms)
    noise = rng.normal(size=(images_each, count))
    scores = noise.copy()
    for number in range(1, images_each):
        scores[number] = kept * scores[number - 1] + (1 - kept**2) ** 0.5 * noise[number]
    names = [f"camera-{number}" for number in range(count)]
    scores += np.array([(shift or {}).get(name, 0.0) for name in names])
    times = start_ms + np.arange(images_each)[:, np.newaxis] * every_ms + np.arange(count)
    return Stream(times.ravel(), names * images_each, scores.ravel())


def joined(*streams: Stream) -> Stream:
    """Streams one after another in time."""
    return Stream(
        np.concatenate([each.times_ms for each in streams]),
        [key for each in streams for key in each.keys],
        np.concatenate([each.fused for each in streams]),
    )


def within(stream: Stream, key: str, start_h: float, end_h: float) -> NDArray[np.bool_]:
    """Which records are of a key and some hours from `START_MS` on."""
    hours = (stream.times_ms - START_MS) / HOUR_MS
    return np.asarray((np.array(stream.keys) == key) & (hours >= start_h) & (hours < end_h))


class Writer:
    """Writes streams to a log as a run with a calibration would.

    Args:
        root: Of the log.
        calibration: Judges, and is named in the footers.
        model: Fingerprint; that of the calibration where null.
    """

    def __init__(self, root: Path, calibration: Calibration, model: str | None = None) -> None:
        self._calibration = calibration
        self._log = ScoredLog(
            LocalStore(root),
            WriterIdentity(
                "worker-0",
                model or calibration.document.model.fingerprint,
                calibration.fingerprint,
            ),
            ManualClock(START_MS),
        )

    def write(
        self, stream: Stream, partition: TopicPartition = CARS, *, segment: int = 20_000
    ) -> None:
        """Append a stream to the chain of a partition, in segments of so many records."""
        position = self._log.end(partition) or self._log.begin(partition, 0)
        for first in range(0, len(stream.times_ms), segment):
            rows = self._rows(stream, first, min(first + segment, len(stream.times_ms)), position)
            end = position.offset + rows.num_rows
            position = self._log.publish(partition, position, end, rows).position

    def gap(self, offsets: int, partition: TopicPartition = CARS) -> None:
        """Declare offsets as lost."""
        position = self._log.end(partition) or self._log.begin(partition, 0)
        end = position.offset + offsets
        empty = ROWS.empty_table()
        self._log.publish(partition, position, end, empty, gap="retention deleted them")

    def _rows(self, stream: Stream, first: int, end: int, position: Any) -> pa.Table:
        count, cut = end - first, slice(first, end)
        fused = stream.fused[cut]
        judged = self._calibration.judge_fused(fused, np.zeros(count, np.int64))
        failed = np.array([number in stream.status for number in range(first, end)])
        statuses = [str(stream.status.get(number, Status.OK)) for number in range(first, end)]
        times = stream.times_ms[cut]
        event_times = times if stream.event_times_ms is None else stream.event_times_ms[cut]
        scores: dict[str, Any] = {
            "class_id": np.zeros(count, np.int64),
            "confidence": np.full(count, 0.5),
            "energy": fused,
            "nap": np.ones(count),
            "max_logit": fused - 1,
            "fused": fused,
            "ood_p_value": judged.ood_p_value,
            "is_ood": judged.is_ood,
        }
        if judged.calibration_p_value is not None:
            scores["calibration_p_value"] = judged.calibration_p_value
        columns: dict[str, Any] = {
            name: pa.array(column, mask=failed) for name, column in scores.items()
        }
        columns |= {
            "class_name": pa.array(np.full(count, "cat"), pa.string(), mask=failed),
            "offset": pa.array(position.offset + np.arange(count)),
            "index": pa.array(np.zeros(count, np.int32)),
            "key": [None if key is None else key.encode() for key in stream.keys[cut]],
            "event_time": event_times.tolist(),
            "ingest_time": (times + 5).tolist(),
            "scored_time": (times + 9).tolist(),
            "status": statuses,
            "error": ["cannot decode" if bad else None for bad in failed],
            "headers": [()] * count,
        }
        return pa.Table.from_batches([rows_of(columns, count)], ROWS)
