"""A worker with a model slower than its source and large images: what it holds, over time."""

import time
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from nap_stream.settings.load import load_settings
from tests.e2e.monitor import PARTITIONS, Monitor, metrics_url, scrape
from tests.e2e.processes import Program
from tests.support.faulty_net import slow_down, slow_down_once, slow_forwards
from tests.support.image_bytes import encoded
from tests.support.images import smooth_image
from tests.support.memory import MIB, large_jpeg, memory_bound_bytes, rss_bytes
from tests.support.topics import send
from tests.support.waiting import wait_until

FIRST = 2 * PARTITIONS
"""Small images, so that the worker has done everything once before its memory is measured."""
DIFFERENT = 4


@dataclass(frozen=True)
class Sample:
    """``in_flight`` are messages that the worker has read and whose rows it has not published."""

    at_s: float
    rss_bytes: int
    rows: int
    in_flight: int


@dataclass(frozen=True)
class MemoryTrace:
    """Resident memory of the one worker, from before the first large message to the last row."""

    base_bytes: int
    bound_bytes: int
    message_bytes: int
    samples: tuple[Sample, ...]

    @property
    def grown_bytes(self) -> int:
        """The most that it held beyond what it held before."""
        return max(sample.rss_bytes for sample in self.samples) - self.base_bytes


def sections(
    *, in_flight_bytes: int, fetch_bytes: int, max_poll_interval_s: float
) -> dict[str, dict[str, Any]]:
    """The configuration of a monitor with one worker whose memory is to be bounded."""
    return {
        "worker": {
            "count": 1,
            "max_in_hand_bytes": in_flight_bytes,
            "max_in_hand_images": 64,
            "revoke_deadline_s": 2.0,
        },
        "log": {"segment_max_bytes": 4 * MIB},
        "kafka": {
            "max_fetch_bytes": fetch_bytes,
            "max_poll_interval_s": max_poll_interval_s,
        },
    }


def watch(
    run: Program,
    monitor: Monitor,
    faults: Path,
    *,
    images: int,
    seconds_per_image: float,
    first_forward_s: float = 0.0,
) -> MemoryTrace:
    """Fill the topic of a running monitor with large images; measure until all are logged.

    The first forward of one of them takes ``first_forward_s`` longer. Fails where the run ends
    early.
    """
    url = metrics_url(run)
    wait_until(lambda: run.stderr.count("partition_assigned") >= PARTITIONS, "partitions")
    _send(monitor, [encoded(smooth_image(seed)) for seed in range(FIRST)])
    wait_until(lambda: len(monitor.rows()) == FIRST, "rows of the first images")
    (pid,) = monitor.pids().values()
    base = rss_bytes(pid)
    slow_down(faults, seconds_per_image)
    if first_forward_s:
        slow_down_once(faults, first_forward_s)
    different = [large_jpeg(seed) for seed in range(DIFFERENT)]
    _send(monitor, list(islice(cycle(different), images)))
    samples: list[Sample] = []
    started = time.monotonic()

    def more() -> bool:
        assert run.running, run.tail
        rows, lag = _rows_and_lag(url)
        in_flight = FIRST + images - lag - rows
        samples.append(Sample(time.monotonic() - started, rss_bytes(pid), rows, in_flight))
        return rows > seen

    seen = FIRST
    while seen < FIRST + images:
        wait_until(more, f"more rows than {seen}")
        seen = samples[-1].rows
    largest = max(map(len, different))
    bound = memory_bound_bytes(load_settings(monitor.config), PARTITIONS, largest)
    return MemoryTrace(base, bound, largest, tuple(samples))


def longest_forward_s(faults: Path) -> float:
    """How long the longest slow forward has taken so far."""
    return max((ended - began for began, ended in slow_forwards(faults)), default=0.0)


def _send(monitor: Monitor, values: list[bytes]) -> None:
    for partition in range(PARTITIONS):
        send(monitor.kafka, values[partition::PARTITIONS], partition=partition)


def _rows_and_lag(url: str) -> tuple[int, int]:
    samples = scrape(url)

    def total(name: str) -> int:
        return int(sum(value for (found, _), value in samples.items() if found == name))

    return total("nap_stream_records_total"), total("nap_stream_partition_lag_offsets")
