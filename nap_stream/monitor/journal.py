"""What a coordinator writes into the chain of events: its run, and each alert before it is sent."""

import hashlib
import json
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import structlog

from nap_stream.alert.event import AlertEvent
from nap_stream.clock import Clock
from nap_stream.core.alert_state import Detector
from nap_stream.core.detection import DetectionPlan, window_bound
from nap_stream.drift.records import CalibrationFacts
from nap_stream.errors import EventError, WorkerGaveUpError
from nap_stream.process import user_name, writer_id
from nap_stream.records import Status, TopicPartition
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
PATIENCE_S = 3.0
"""How long alerts wait for their events to be written, at most: a store may hang for minutes."""
MAX_WAITING = 1_000
"""So many events wait at most; each checkpoint of the monitor holds their alerts."""
MAX_CAUSES = 10
READ_BACK = 1_000
"""How many events before the run are read, to write no alert a second time."""
RECENT = 20
"""The last alerts, for who looks at the run."""


class Journal:
    """Writes events in order; keeps what could not be written, and tries again.

    Whatever fails, it raises nothing: ``failure`` says why what waits was not written, ``loss``
    what the chain lacks for good, and ``lost`` counts those events. An alert that stands in the
    chain already, from before or by another coordinator, is not written again; two that write at
    the same moment can write it twice, with one id.

    A thread writes; callers wait for it for `PATIENCE_S` at most. Safe for several
    threads.
    """

    def __init__(self, store: SegmentStore, settings: Settings, clock: Clock) -> None:
        self._store, self._settings, self._clock = store, settings, clock
        self._patience_s = PATIENCE_S
        self.by = writer_id("coordinator")
        self.failure: str | None = None
        self.loss: str | None = None
        self.lost = 0
        self._starting = threading.Lock()
        self._writer: threading.Thread | None = None
        self._ended_by: BaseException | None = None
        self._retry_at_s = clock.monotonic()
        self._guard = threading.Lock()
        self._waiting: deque[tuple[Event, AlertEvent | None]] = deque()
        self._recent: dict[str, Mapping[str, Any]] = {}
        # These are for the thread that writes.
        self._written: set[str] = set()
        self._next: int | None = None
        self._seen = -1

    def __len__(self) -> int:
        """How many events wait to be written."""
        return len(self._waiting)

    def unwritten(self) -> tuple[AlertEvent, ...]:
        """The alerts that wait to be written: the last ones that were told, in order."""
        with self._guard:
            return tuple(alert for _, alert in self._waiting if alert is not None)

    def recent(self) -> tuple[Mapping[str, Any], ...]:
        """The last alerts of this monitor, the newest first: CloudEvents, also from before."""
        with self._guard:
            return tuple(reversed(self._recent.values()))

    def started(
        self, plan: DetectionPlan, calibration: CalibrationFacts, *, by_blocks: bool
    ) -> None:
        """Write that a run began, by what and how it judges. ``by_blocks`` is whether blocks do."""
        shown = masked_tree(self._settings)
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
            "user": user_name(),
            "settings": shown,
            "settings_sha256": digest.hexdigest(),
            "model_fingerprint": calibration.model_fingerprint,
            "calibration_fingerprint": calibration.fingerprint,
            "alpha": calibration.alpha,
            "flag_rate": plan.flag_rate,
            "window_records": plan.window_records,
            "bound": window_bound(plan),
            "detectors": [name for name, does in decides.items() if does],
        }
        self._add(EventKind.RUN_STARTED, data)
        self.write(at_once=True)

    def stopped(self, reason: str, rows: Mapping[Status, int], wait_s: float | None = None) -> None:
        """Write that the run is over, and why; wait as `write` does."""
        counts = {status.value: count for status, count in rows.items()}
        data = {"reason": one_line(reason[:MAX_FIELD]), "rows_by_status": counts}
        self._add(EventKind.RUN_STOPPED, data)
        self.write(at_once=True, wait_s=wait_s)

    def refused(self, by: str, cause: str) -> None:
        """Write that somebody wanted other settings in force, and they were refused."""
        data = {"asked_by": one_line(by[:MAX_FIELD]), "reason": one_line(cause[:MAX_FIELD])}
        self._add(EventKind.RELOAD_REFUSED, data)
        self.write(at_once=True)

    def left_out(self, refused: Sequence[tuple[TopicPartition, str]]) -> None:
        """Write of partitions, of several topics, why they are not read; ours are the words."""
        for partition, why in refused:
            reason = one_line(why[:MAX_FIELD])
            self._add(EventKind.LEFT_OUT, {"partition": str(partition), "reason": reason})
        if refused:
            self.write()

    def tell(self, alerts: Iterable[AlertEvent]) -> None:
        """Take alerts that are about to be sent, in order, for the next `write`."""
        for alert in alerts:
            self._remember(alert.id, alert.event)
            self._add(EventKind.ALERT, {"event": dict(alert.event)}, alert)

    def write(self, *, at_once: bool = False, wait_s: float | None = None) -> None:
        """Have what waits written, unless it failed a moment ago, which ``at_once`` disregards.

        Waits for that for ``wait_s`` seconds of the machine's time, or `PATIENCE_S`, at most. The
        thread goes on after that.
        """
        # One that is at work may end without having seen what came last.
        for is_first in (True, False):
            writer = self._begin(at_once=at_once and is_first)
            if writer is None:
                return
            writer.join(self._patience_s if wait_s is None else wait_s)
            if (ended_by := self._ended_by) is not None:
                raise ended_by
            if writer.is_alive():
                self._failed("the store has not answered yet")
                return

    def _begin(self, *, at_once: bool) -> threading.Thread | None:
        """The thread that writes what waits; None where nothing does, or it is to be left alone."""
        with self._starting:
            is_due = at_once or self._clock.monotonic() >= self._retry_at_s
            if not self._waiting or not is_due:
                return None
            if self._writer is None or not self._writer.is_alive():
                self._writer = threading.Thread(target=self._write_all, name="journal", daemon=True)
                self._writer.start()
            return self._writer

    def _failed(self, cause: str) -> None:
        self.failure, self._retry_at_s = cause, self._clock.monotonic() + RETRY_S
        structlog.get_logger().warning(
            "events_not_written", waiting=len(self), cause=cause, retry_in_s=RETRY_S
        )

    def _write_all(self) -> None:
        try:
            self._read_back()
            while (first := self._first()) is not None:
                self._write(*first)
                with self._guard:
                    # It may have been dropped meanwhile.
                    if self._waiting and self._waiting[0] is first:
                        self._waiting.popleft()
        except Exception as error:  # noqa: BLE001 - no fault of a store may keep alerts back
            self._failed(str(error) or type(error).__name__)
        except BaseException as error:  # noqa: BLE001 - what ends a program ends its caller
            self._ended_by = error
        else:
            self.failure, self._retry_at_s = None, self._clock.monotonic()

    def _first(self) -> tuple[Event, AlertEvent | None] | None:
        with self._guard:
            return self._waiting[0] if self._waiting else None

    def _add(self, kind: str, data: Mapping[str, Any], alert: AlertEvent | None = None) -> None:
        event = Event(
            time_ms=self._clock.now_ms(),
            kind=kind,
            by=self.by,
            topic=self._settings.kafka.topic,
            monitor=one_line(self._settings.alerts.monitor),
            data=data,
        )
        with self._guard:
            self._waiting.append((event, alert))
            dropped = self._waiting.popleft()[0] if len(self._waiting) > MAX_WAITING else None
        if dropped is not None:
            self._lose(dropped, f"more than {MAX_WAITING:,} events waited: {self.failure}")

    def _remember(self, name: str, alert: Mapping[str, Any]) -> None:
        with self._guard:
            self._recent.setdefault(name, alert)
            if len(self._recent) > RECENT:
                del self._recent[next(iter(self._recent))]

    def _lose(self, event: Event, cause: str) -> None:
        self.lost += 1
        self.loss = f"{self.lost:,} events are not in the log, and never will be: {cause}"
        structlog.get_logger().error(
            "event_lost", kind=event.kind, alert=alert_id(event) or None, cause=cause
        )

    def _read_back(self) -> None:
        """Learn of the alerts that the chain has got since the last look."""
        if self._next is None:
            self._store.remove_leftovers(FOLDER, self._clock.now_ms() - LEFTOVER_AGE_MS)
            last = max(event_numbers(self._store), default=-1)
            self._next = max(0, last + 1 - READ_BACK)
        # What is damaged is for `verify` to name.
        for event in read_events(self._store, self._next, defects=[]):
            self._next, self._seen = event.number + 1, event.number
            if (name := alert_id(event)) and self._is_our_alert(event):
                self._remember(name, event.data["event"])
            self._written.add(name)

    def _is_our_alert(self, event: Event) -> bool:
        ours = self._settings.kafka.topic, one_line(self._settings.alerts.monitor)
        return event.kind == EventKind.ALERT and (event.topic, event.monitor) == ours

    def _write(self, event: Event, alert: AlertEvent | None) -> None:
        if alert is not None and alert.id in self._written:
            return
        try:
            number = append_event(self._store, event, near=max(0, self._seen)).number
        except EventError as error:
            self._lose(event, str(error))
        else:
            if number <= self._seen:
                self.lost += self._seen + 1 - number
                self.loss = f"event {self._seen} was in the log and is gone: now {number} is next"
                structlog.get_logger().error("events_removed", cause=self.loss)
                self._next = number + 1
            self._seen = number
        if alert is not None:
            self._written.add(alert.id)


def failed_words(error: BaseException) -> str:
    """Why a run failed, without what others said: it may hold a secret, and an event stays.

    Only that a worker gave up is said in words. Any other error may quote a model or a server, so
    that it and its causes are named by their classes alone.
    """
    words = f"{error.where}: {error.problem}: " if isinstance(error, WorkerGaveUpError) else ""
    names: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(names) < MAX_CAUSES:
        names.append(type(cause).__name__)
        cause = cause.__cause__
    return one_line(f"failed: {words}{': '.join(names)}")
