"""The page at the coordinator's /: how the run is, for a person with a browser.

Rows of its tables are bounded, whatever the number of keys, partitions and workers. It has no
form, no link that does anything and no script.
"""

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry

from nap_stream.core.alert_state import AlertState, Detector
from nap_stream.drift.records import DetectorReading, DriftSnapshot, FiringKey
from nap_stream.monitor.journal import Journal
from nap_stream.monitor.status import CoordinatorStatus, first_wait
from nap_stream.pages.axis import Axis, heights
from nap_stream.pages.html import write_page
from nap_stream.records import PartitionProgress, Status, TopicPartition
from nap_stream.settings.schema import Settings
from nap_stream.text import moment, number, percent, rfc3339

MOST = 100
"""Rows of one table."""
MOST_POINTS = 480
REFRESH_S = 10
_COARSEST_MS = 300_000
"""The last 40 hours: from then on what is older goes."""
_NOT_SEEN = {
    "gap_offsets": "offsets that the log or the monitor had to do without",
    "events_lost": "events that the log's chain of events lacks for good",
    "dead_letters": "messages in the dead-letter topic: nothing could be made of them",
    "late_records": "records counted later than their event time, as they came late",
    "untimely_records": "records whose event time cannot be true",
    "keys_forgotten": "keys forgotten for want of room, with what was known of their drift",
    "out_of_memory": "batches that did not fit the memory of their device, and were split",
    "decode_warnings": "images of which the decoder warned",
    "checkpoint_failures": "checkpoints of the monitor that were not written",
}
"""What is told of where it is not 0, by metric."""


class Point(NamedTuple):
    """The OOD fraction of the window and the one that fires, at a time; null where not known."""

    time_ms: int
    fraction: float | None
    bound: float | None


class Bar(NamedTuple):
    """A detector, and how far it is to its threshold, from 0 to 1."""

    reading: DetectorReading
    share: float


class Place(NamedTuple):
    """A partition, and the worker that reads it; null without one."""

    partition: TopicPartition
    worker: str | None
    progress: PartitionProgress | None


class LivePage:
    """Remembers how the OOD fraction was, and writes the page. Safe for several threads.

    ``registry`` holds the run's metrics, ``journal`` its last alerts. What it remembers begins with
    the coordinator, grows coarser with time, and is of `MOST_POINTS` at most.
    """

    def __init__(self, settings: Settings, registry: CollectorRegistry, journal: Journal) -> None:
        self._settings, self._registry, self._journal = settings, registry, journal
        self._lock = threading.Lock()
        self._points: list[Point] = []
        self._step_ms = 1_000

    def note(self, now_ms: int, drift: DriftSnapshot) -> None:
        """Remember where drift stands."""
        point = Point(now_ms, None if drift.bound is None else drift.fraction, drift.bound)
        with self._lock:
            # A clock that is set back must not stop it.
            if self._points and 0 <= now_ms - self._points[-1].time_ms < self._step_ms:
                return
            self._points.append(point)
            if len(self._points) > MOST_POINTS:
                if self._step_ms < _COARSEST_MS:
                    self._step_ms *= 2
                    self._points = self._points[::2]
                else:
                    del self._points[0]

    def write(self, status: CoordinatorStatus, problems: Sequence[str]) -> str:
        """Write the page. ``problems`` are the reasons of /healthz."""
        with self._lock:
            points = [point for point in self._points if point.time_ms <= status.now_ms]
        unseen = [
            (count, words) for name, words in _NOT_SEEN.items() if (count := self._count(name))
        ]
        values = {
            "s": status,
            "kafka": self._settings.kafka,
            "monitor": self._settings.alerts.monitor,
            "refresh_s": REFRESH_S,
            "most": MOST,
            "state": _state(status),
            "fraction": _fraction(status),
            "problems": problems,
            "degraded": status.degraded(),
            "unseen": unseen,
            "waits": [wait for wait in (first_wait(status),) if wait],
            "chart": _chart(points, status.now_ms),
            "bars": _bars(status.drift),
            "keys": _keys(status.drift),
            "by_keys": self._settings.drift.keys,
            "alerts": [_alert(event) for event in self._journal.recent()],
            "workers": sorted(status.workers.values(), key=lambda each: each.worker),
            "places": sorted(_places(status), key=_worst_first),
            "unscored": {
                name.value: count
                for name, count in sorted(status.rows_by_status.items())
                if name is not Status.OK and count
            },
        }
        return write_page(Path(__file__).with_name("page.html.j2"), values, {"when": _when})

    def _count(self, name: str) -> int:
        found = self._registry.get_sample_value(f"nap_stream_{name}_total")
        return 0 if found is None else round(found)


def _when(time_ms: int | None) -> str:
    return "not yet" if time_ms is None else moment(rfc3339(time_ms))


def _state(status: CoordinatorStatus) -> tuple[str, str, str]:
    """How good it is (as in `page.css`), the verdict, and a sentence."""
    drift = status.drift
    if drift.state is AlertState.FIRING:
        return "bad", f"Drift, {drift.severity}", "The alert of the stream fires."
    if drift.unscored is not None and drift.unscored.severity is not None:
        blind = "Images come that have no scores: of them nothing is known."
        return "bad", f"Images without scores, {drift.unscored.severity}", blind
    if drift.keys_firing:
        keys = f"Alerts of {number(drift.keys_firing)} keys fire, not that of the stream."
        return "bad", "Drift of single keys", keys
    if status.stale_since_ms is not None:
        return "unknown", "Not known of now", "The newest judged image is old."
    if status.ood_fraction is None and drift.blocks is None:
        return "unknown", "Not known yet", "The window of the newest images is not full."
    return "good", "No drift is seen", ""


def _fraction(status: CoordinatorStatus) -> tuple[str, str]:
    drift = status.drift
    if drift.fraction is None:
        return "Not known yet", "No image has been judged."
    window = f"{number(drift.window_flagged)} of the last {number(drift.window_records)} images"
    if drift.bound is None:
        return f"{percent(drift.fraction)}", f"{window} are flagged. {first_wait(status)}."
    fires = "" if drift.blocks is None else "; but blocks decide, not single records"
    return (
        f"{percent(drift.fraction)}, and {percent(drift.bound)} fires",
        f"{window} are flagged{fires}.",
    )


class Chart(NamedTuple):
    """Paths in a box of 100 by 100, the lines of its grid, and its period."""

    axis: Axis
    line: str
    bound: str
    shares: tuple[tuple[float, str], ...]
    peak: float


def _chart(points: Sequence[Point], now_ms: int) -> Chart | None:
    known = [point for point in points if point.fraction is not None]
    if not known:
        return None
    axis = Axis(points[0].time_ms, max(now_ms, points[0].time_ms + 1_000))
    tops = [value for point in known for value in (point.fraction, point.bound) if value]
    up, shares = heights(tops)

    def path(values: Iterator[tuple[int, float | None]]) -> str:
        drawn, is_open = "", False
        for time_ms, value in values:
            if value is not None:
                drawn += f"{'L' if is_open else 'M'}{axis.at(time_ms)} {up(value)}"
            is_open = value is not None
        return drawn

    line = path((point.time_ms, point.fraction) for point in points)
    bound = path((point.time_ms, point.bound) for point in points)
    return Chart(axis, line, bound, shares, max(point.fraction or 0.0 for point in known))


def _bars(drift: DriftSnapshot) -> list[Bar]:
    readings = [*drift.readings]
    readings += [] if drift.unscored_reading is None else [drift.unscored_reading]
    readings += [] if drift.blocks is None else [drift.blocks.reading]
    return [Bar(reading, _share(reading)) for reading in readings]


def _share(reading: DetectorReading) -> float:
    now, full = reading.statistic, reading.threshold
    if not (math.isfinite(now) and math.isfinite(full)) or full <= 0:
        return float(reading.active)
    if reading.detector is not Detector.OOD_WINDOW:
        # Evidence multiplies; flags in the window add up.
        now, full = math.log1p(max(0.0, now)), math.log1p(full)
    return min(1.0, max(0.0, now / full))


def _keys(drift: DriftSnapshot) -> list[FiringKey]:
    """Critical ones first, then those that fire longest."""
    return sorted(
        drift.firing_keys,
        key=lambda each: (each.alert.severity != "critical", each.alert.since_ms, each.key),
    )


def _alert(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is told of an alert, which may come from a log that others can write."""
    data = event.get("data")
    data = data if isinstance(data, Mapping) else {}
    kind = str(event.get("type", ""))
    words = data.get("summary")
    if kind.endswith(".gap"):
        words = (
            f"offsets {data.get('base_offset')} to {data.get('end_offset')} of partition "
            f"{data.get('partition')} are not in the log: {data.get('reason')}"
        )
    return {
        "time": moment(event["time"]) if "time" in event else "",
        "about": kind.rpartition("nap-stream.")[2].replace(".", ", ").capitalize(),
        "severity": data.get("severity") or "",
        "key": data.get("key") or "",
        "words": words or "",
        "id": event.get("id", ""),
    }


def _places(status: CoordinatorStatus) -> Iterator[Place]:
    """Every known partition once, by the newest report of it."""
    newest: dict[TopicPartition, Place] = {}
    for report in sorted(status.workers.values(), key=lambda each: each.sent_at_ms):
        for progress in report.partitions:
            newest[progress.partition] = Place(progress.partition, report.worker, progress)
    yield from newest.values()
    for partition in status.drift.partition_watermarks_ms:
        if partition not in newest:
            yield Place(partition, None, None)


def _worst_first(place: Place) -> tuple[bool, int, TopicPartition]:
    lag = 0 if place.progress is None else place.progress.lag or 0
    return place.worker is not None, -lag, place.partition
