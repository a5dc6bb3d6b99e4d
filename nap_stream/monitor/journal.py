"""What a coordinator writes into the chain of events: its run, and each alert before it is sent."""

import getpass
import hashlib
import json
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import structlog

from nap_stream.alert.event import AlertEvent
from nap_stream.clock import Clock
from nap_stream.core.alert_state import Detector
from nap_stream.core.detection import DetectionPlan, window_firing_limit
from nap_stream.drift.records import CalibrationFacts
from nap_stream.errors import EventError, NapStreamError
from nap_stream.process import writer_id
from nap_stream.records import Status
from nap_stream.scored_log.events import (
    FOLDER,
    Event,
    EventKind,
    alert_id,
    append_event,
    event_numbers,
    read_events,
)
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LEFTOVER_AGE_MS
from nap_stream.settings.load import masked_tree
from nap_stream.settings.schema import Settings
from nap_stream.text import MAX_FIELD, one_line

RETRY_S = 10.0
"""How long a store that failed is left alone: alerts must not wait for it one by one."""
READ_BACK = 1_000
"""How many events before the run are read, to write no alert a second time."""


class Journal:
    """Writes events in order; keeps what could not be written, and tries again.

    Whatever fails, it raises nothing: ``failure`` says why the last attempt failed. An alert that
    stands in the chain already, from before or by another coordinator, is not written again; two
    that write at the same moment can write it twice, with one id.

    Safe for several threads.
    """

    def __init__(self, store: SegmentStore, settings: Settings, clock: Clock) -> None:
        self._store, self._settings, self._clock = store, settings, clock
        self.by = writer_id("coordinator")
        self.failure: str | None = None
        self._writing = threading.Lock()
        self._waiting: deque[tuple[Event, AlertEvent | None]] = deque()
        self._written: set[str] = set()
        self._next: int | None = None
        self._retry_at_s = clock.monotonic()

    def __len__(self) -> int:
        """How many events wait to be written."""
        return len(self._waiting)

    def unwritten(self) -> tuple[AlertEvent, ...]:
        """The alerts that wait to be written: the last ones that were told, in order."""
        return tuple(alert for _, alert in self._waiting.copy() if alert is not None)

    def started(
        self, plan: DetectionPlan, calibration: CalibrationFacts, *, by_blocks: bool
    ) -> None:
        """Write that a run began, by what and how it judges. ``by_blocks`` is whether blocks do."""
        shown, size = masked_tree(self._settings), plan.window_records
        decides = {
            Detector.BLOCKS: by_blocks,
            Detector.OOD_WINDOW: not by_blocks,
            Detector.OOD_SEQUENTIAL: not by_blocks,
            Detector.SCORE_SHIFT: not by_blocks and bool(plan.tail_rates),
            Detector.UNSCORED_IMAGES: self._settings.drift.unscored is not None,
        }
        digest = hashlib.sha256(json.dumps(shown, sort_keys=True, separators=(",", ":")).encode())
        data: dict[str, Any] = {
            "version": version("nap-stream"),
            "user": _user(),
            "settings": shown,
            "settings_sha256": digest.hexdigest(),
            "model_fingerprint": calibration.model_fingerprint,
            "calibration_fingerprint": calibration.fingerprint,
            "alpha": calibration.alpha,
            "flag_rate": plan.flag_rate,
            "window_records": size,
            "bound": window_firing_limit(plan, size) / size,
            "detectors": [name for name, does in decides.items() if does],
        }
        self._add(EventKind.RUN_STARTED, data)
        self.write(at_once=True)

    def stopped(self, reason: str, rows: Mapping[Status, int]) -> None:
        """Write that the run is over, and why."""
        counts = {status.value: count for status, count in rows.items()}
        data = {"reason": one_line(reason[:MAX_FIELD]), "rows_by_status": counts}
        self._add(EventKind.RUN_STOPPED, data)
        self.write(at_once=True)

    def tell(self, alerts: Iterable[AlertEvent]) -> None:
        """Take alerts that are about to be sent, in order, for the next `write`."""
        for alert in alerts:
            self._add(EventKind.ALERT, {"event": dict(alert.event)}, alert)

    def write(self, *, at_once: bool = False) -> None:
        """Write what waits, unless it failed a moment ago, which ``at_once`` does not regard."""
        with self._writing:
            is_due = at_once or self._clock.monotonic() >= self._retry_at_s
            if not self._waiting or not is_due:
                return
            try:
                self._read_back()
                while self._waiting:
                    self._write(*self._waiting[0])
                    self._waiting.popleft()
            except Exception as error:  # noqa: BLE001 - no fault of a store may keep alerts back
                self.failure = str(error) or type(error).__name__
                self._retry_at_s = self._clock.monotonic() + RETRY_S
                structlog.get_logger().warning(
                    "events_not_written", waiting=len(self), cause=self.failure, retry_in_s=RETRY_S
                )
            else:
                self.failure = None

    def _add(self, kind: str, data: Mapping[str, Any], alert: AlertEvent | None = None) -> None:
        event = Event(
            time_ms=self._clock.now_ms(),
            kind=kind,
            by=self.by,
            topic=self._settings.kafka.topic,
            monitor=one_line(self._settings.alerts.monitor),
            data=data,
        )
        self._waiting.append((event, alert))

    def _read_back(self) -> None:
        """Learn of the alerts that the chain has got since the last look."""
        if self._next is None:
            self._store.remove_leftovers(FOLDER, self._clock.now_ms() - LEFTOVER_AGE_MS)
            last = max(event_numbers(self._store), default=-1)
            self._next = max(0, last + 1 - READ_BACK)
        # What is damaged is for `verify` to name.
        for event in read_events(self._store, self._next, defects=[]):
            self._next = event.number + 1
            self._written.add(alert_id(event))

    def _write(self, event: Event, alert: AlertEvent | None) -> None:
        if alert is not None and alert.id in self._written:
            return
        try:
            append_event(self._store, event, near=max(0, (self._next or 0) - 1))
        except EventError as error:
            structlog.get_logger().error("event_lost", kind=event.kind, cause=str(error))
        if alert is not None:
            self._written.add(alert.id)


def failed_words(error: BaseException) -> str:
    """Why a run failed. The text of an error that nobody expected may hold anything."""
    words = str(error) if isinstance(error, NapStreamError) else type(error).__name__
    return f"failed: {words}"


def _user() -> str | None:
    with suppress(OSError, KeyError, ImportError):
        return getpass.getuser()
    return None
