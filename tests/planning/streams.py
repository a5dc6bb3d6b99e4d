"""Recorded logs of streams, for the tests of plans."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nap_stream.calibration.calibration import Calibration
from nap_stream.clock import ManualClock
from nap_stream.records import TopicPartition
from nap_stream.scored_log.chain import WriterIdentity
from nap_stream.scored_log.stores.local import LocalStore
from tests.scored_log.builders import CARS, MODEL, NOON_MS, origin, scored
from tests.support.scored_records import RecordLog, ScoredRecord
from tests.support.small_calibration import calibration_of

CAMERAS = 10
SPACING_MS = 20


def calibration(images: int = 2_000) -> Calibration:
    """A calibration of continuous scores at an alpha of 0.05."""
    generator = np.random.default_rng(1)
    energy, nap = np.exp(generator.normal(size=(2, images)))
    return calibration_of(energy.tolist(), nap.tolist(), 0.05)


def independent(records: int, seed: int = 0) -> NDArray[np.float64]:
    """Uniform p-values."""
    return np.random.default_rng(seed).uniform(size=records)


def sticky(records: int, kept: float, seed: int = 0) -> NDArray[np.float64]:
    """Uniform p-values of cameras in turn, each of which keeps its last one with a probability."""
    generator = np.random.default_rng(seed)
    p_values = generator.uniform(size=records)
    keeps = generator.uniform(size=records) < kept
    for number in range(CAMERAS, records):
        if keeps[number]:
            p_values[number] = p_values[number - CAMERAS]
    return p_values


def rows(
    p_values: Sequence[float], *, first: int = 0, partition: TopicPartition = CARS
) -> list[ScoredRecord]:
    """A row each `SPACING_MS`, of cameras in turn."""
    made = []
    for number, p_value in enumerate(p_values, start=first):
        time_ms = NOON_MS + number * SPACING_MS
        key = f"camera-{number % CAMERAS}".encode()
        where = origin(number, partition=partition, event_time_ms=time_ms, key=key)
        made.append(scored(dataclasses.replace(where, ingest_time_ms=time_ms), p_value=p_value))
    return made


def write_log(
    root: Path,
    records: Sequence[ScoredRecord],
    fingerprint: str,
    partition: TopicPartition = CARS,
) -> Path:
    """Publish records as a chain of segments."""
    log = RecordLog(
        LocalStore(root), WriterIdentity("worker-0", MODEL, fingerprint), ManualClock(NOON_MS)
    )
    position = log.begin(partition, 0)
    for start in range(0, len(records), 2_000):
        part = records[start : start + 2_000]
        position = log.publish(partition, position, part[-1].origin.offset + 1, part).position
    return root
