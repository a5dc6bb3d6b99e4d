"""From the drift monitor's alerts to the sinks: a checkpoint and an event of each come first.

The checkpoint says where the monitor stands, and which alerts are on their way. It saves reading
the log again and keeps the story straight; the log stays the truth. What a checkpoint lacks is
judged again from the log, with the same alerts and ids, and a sink that knows what it has received
leaves those out. So a zombie that puts an older checkpoint in place of a newer one does no harm:
more of the log is read again, that is all. The same goes for one that is lost.
"""

import hashlib
import json
import struct
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

import structlog

from nap_stream.alert.event import AlertEvent, gap_event
from nap_stream.alert.sinks import LAST_ATTEMPT_S, AlertSink, Outboxes
from nap_stream.alert.unscored import event_of
from nap_stream.clock import Clock, Deadline
from nap_stream.core.alert_state import Reason, Transition
from nap_stream.core.detection import DetectionPlan
from nap_stream.drift.records import CalibrationFacts, DriftAlert, UnscoredAlert
from nap_stream.metrics import Metrics
from nap_stream.monitor.journal import PATIENCE_S, Journal
from nap_stream.records import SegmentSummary
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.stores.local import LEFTOVER_AGE_MS
from nap_stream.settings.schema import Settings

CHECKPOINT_EVERY_S = 30.0
"""While nothing is decided. The log's segments of so long are read again after a crash."""
FOLDER = "_monitors"
"""Hidden from Parquet readers, as all names that begin with an underscore."""
MAX_CHECKPOINT_BYTES = 2**31
"""A million keys take half of it."""
_MAGIC = b"nap-stream checkpoint 1\n"
_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = hashlib.sha256().digest_size
_MAX_NAME = 120
"""Characters of a quoted name; longer ones would not fit into a file's name."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a coordinator that takes over must know.

    ``monitor`` is the drift monitor's own state. ``pending`` are the alerts that were decided and
    that any of the sinks had not taken, each once, in the order of decision. All sinks get them
    again, but for those that say that they have them: to Alertmanager a repeat is the same alert,
    and the log repeats a line. ``unwritten`` are those that the chain of events lacked.
    """

    monitor: bytes
    pending: tuple[AlertEvent, ...] = ()
    unwritten: tuple[AlertEvent, ...] = ()


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Write a checkpoint as bytes, with their digest."""
    lists = {"pending": checkpoint.pending, "unwritten": checkpoint.unwritten}
    tree = {
        name: [{"key": each.key, "event": each.event} for each in alerts]
        for name, alerts in lists.items()
    }
    document = json.dumps(tree, separators=(",", ":"), allow_nan=False).encode()
    parts = (_LENGTH.pack(len(document)), document, checkpoint.monitor)
    return b"".join((_MAGIC, _digest(*parts), *parts))


def decode_checkpoint(content: bytes) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ValueError: It is none, or not as it was written.
    """
    if not content.startswith(_MAGIC):
        raise ValueError("not a checkpoint of this version")
    start = len(_MAGIC) + _DIGEST_BYTES
    body = memoryview(content)[start:]
    if _digest(body) != content[len(_MAGIC) : start]:
        raise ValueError("damaged: its bytes do not have its digest")
    try:
        (length,) = _LENGTH.unpack_from(body)
        end = _LENGTH.size + length
        document = json.loads(bytes(body[_LENGTH.size : end]))
        pending = tuple(_event(tree) for tree in document["pending"])
        # Versions before there were events wrote none.
        unwritten = tuple(_event(tree) for tree in document.get("unwritten", document["pending"]))
    except (struct.error, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a checkpoint: {error!r}") from error
    return Checkpoint(bytes(body[end:]), pending, unwritten)


class CheckpointStore:
    """The one checkpoint of a monitor of a topic, beside the scored log in ``store``."""

    def __init__(self, store: SegmentStore, monitor: str, topic: str) -> None:
        self.store = store
        self._folder = f"{FOLDER}/{_file_name(monitor)}"
        self.path = f"{self._folder}/{_file_name(topic)}.checkpoint"

    def read(self) -> Checkpoint | None:
        """Read it; None where there is none, or none that can be read, which the log tells.

        Raises:
            ScoredLogError: The store cannot be read.
        """
        file = self.store.open(self.path)
        if file is None:
            return None
        with file:
            # What is longer is cut, and so has not its digest.
            content = file.read(MAX_CHECKPOINT_BYTES)
        try:
            return decode_checkpoint(content)
        except ValueError as error:
            where = f"{self.store.root}/{self.path}"
            structlog.get_logger().warning("checkpoint_unreadable", file=where, cause=str(error))
            return None

    def write(self, checkpoint: Checkpoint) -> None:
        """Put it in place of the one before, durably: at every moment there is a whole one.

        Raises:
            ScoredLogError: It could not be made durable; the one before, or it, is in place.
        """
        self.store.prepare(self._folder)
        self.store.replace(self.path, encode_checkpoint(checkpoint))

    def remove_leftovers(self, now_ms: int) -> None:
        """Remove what a coordinator left that died while it wrote."""
        self.store.remove_leftovers(self._folder, now_ms - LEFTOVER_AGE_MS)


def _file_name(name: str) -> str:
    """A name as one part of a path, different for different names."""
    quoted = quote(name, safe="")
    if len(quoted) <= _MAX_NAME and not quoted.startswith("."):
        return quoted
    # Quoted text has no equals sign, so that no other name is like it.
    return f"sha256={hashlib.sha256(name.encode()).hexdigest()}"


def _digest(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def _event(tree: Mapping[str, Any]) -> AlertEvent:
    key, event = tree["key"], tree["event"]
    if not isinstance(key, str) or not {"id", "type"} <= event.keys():
        raise TypeError("not an alert")
    return AlertEvent(key, event)


@dataclass(frozen=True, slots=True)
class MonitorSnapshot:
    """The drift monitor's state for a checkpoint. ``revision`` differs after every change."""

    revision: int
    content: bytes


class AlertDispatcher:
    """Sends an alert once a checkpoint has it, so that what was sent stays decided.

    A verdict can depend on what the log does not tell: which partition was idle, which offsets
    were given up. Once an alert of it is out, whoever takes over must go on from there. Where the
    checkpoint cannot be written, or that takes longer than `journal.PATIENCE_S`, the alert goes out
    all the same, and the next write is due later.

    Of the drift monitor it knows the state alone, as bytes. One thread at a time may `decide`, and
    one at a time may ask `needs_state` and `send`; these two may be different ones. ``outboxes``
    deliver what was let out; ``reasons`` counts the alerts that were decided here.
    """

    def __init__(
        self,
        plan: DetectionPlan,
        settings: Settings,
        calibration: CalibrationFacts,
        sinks: Sequence[AlertSink],
        checkpoints: CheckpointStore,
        *,
        journal: Journal,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._plan, self._settings, self._calibration = plan, settings, calibration
        self._version = version("nap-stream")
        self._checkpoints, self._metrics, self._clock = checkpoints, metrics, clock
        self.outboxes = Outboxes(sinks, metrics, clock)
        self._journal = journal
        self._lock = threading.Lock()
        self._decided: list[AlertEvent] = []
        self._restored: frozenset[str] = frozenset()
        self._kept: tuple[int, tuple[str, ...], tuple[str, ...]] | None = None
        self._keeper: threading.Thread | None = None
        self._ended_by: BaseException | None = None
        self._patience_s = PATIENCE_S
        self._due_s = clock.monotonic() + CHECKPOINT_EVERY_S
        self._lost = 0
        self.reasons = Counter[Reason]()

    def __len__(self) -> int:
        """How many alerts wait, here or for the sink for which the most do."""
        with self._lock:
            return len(self._decided) + len(self.outboxes)

    def restore(self) -> bytes | None:
        """Queue what the last checkpoint has on its way; give its state of the monitor, if any.

        Its alerts go to the sinks also where the state does not fit: they were decided, whatever
        the settings and the calibration are now. They are not decided again. What a sink says that
        it has received does not go there again.

        Raises:
            ScoredLogError: The store cannot be read.
        """
        self.outboxes.read_back()
        self._checkpoints.remove_leftovers(self._clock.now_ms())
        checkpoint = self._checkpoints.read()
        if checkpoint is None:
            return None
        self._write(checkpoint.unwritten)
        for event in checkpoint.pending:
            self.outboxes.put(event)
        self._restored = frozenset(_ids((*checkpoint.pending, *checkpoint.unwritten)))
        return checkpoint.monitor

    def decide(
        self, accepted: Iterable[SegmentSummary], alerts: Iterable[DriftAlert | UnscoredAlert]
    ) -> None:
        """Take what is to go out with the next `send`: declared gaps, and what the monitor decided.

        ``accepted`` are summaries that it has taken for the first time.
        """
        for summary in accepted:
            if summary.gap is not None:
                self._hold(gap_event(summary, self._settings, self._version))
        for alert in alerts:
            event = event_of(alert, self._plan, self._settings, self._calibration, self._version)
            if self._hold(event):
                self.reasons[alert.change.reason] += 1
                self._log(alert, event)

    def decided(self) -> tuple[AlertEvent, ...]:
        """What `send` has not let out, in order."""
        with self._lock:
            return tuple(self._decided)

    def needs_state(self, revision: int, decided: Sequence[AlertEvent], *, at_once: bool) -> bool:
        """Whether a checkpoint is due that would say something new: with alerts to send, it is.

        ``at_once`` does not wait until `CHECKPOINT_EVERY_S` are over. None is due while the store
        has not answered for the one before: alerts go out without.
        """
        if self._keeper is not None and self._keeper.is_alive():
            return False
        is_due = at_once or bool(decided) or self._clock.monotonic() >= self._due_s
        pending, unwritten = self._lacking(decided)
        return is_due and (revision, _ids(pending), _ids(unwritten)) != self._kept

    def send(
        self,
        decided: Sequence[AlertEvent],
        state: MonitorSnapshot | None,
        last_wait_s: float | None = None,
    ) -> None:
        """Write a checkpoint with the state, where one is due, then let out what was decided.

        ``decided`` is what `decided` gave when the state was taken: both are of one moment.
        ``last_wait_s`` is how long the store may take where this is the last time.
        """
        deadline = None if last_wait_s is None else Deadline(self._clock, last_wait_s)
        if state is not None:
            self._keep(state, *self._lacking(decided), wait_s=last_wait_s)
        elif self._keeper is not None and last_wait_s is not None:
            self._keeper.join(last_wait_s)
        left_s = None if deadline is None else max(LAST_ATTEMPT_S, deadline.remaining_s())
        self._write(decided, left_s)
        with self._lock:
            del self._decided[: len(decided)]
            for event in decided:
                self.outboxes.put(event)

    def problems(self) -> tuple[str, ...]:
        """Say how many alerts and events have not gone out, and why."""
        found = []
        if (failure := self.outboxes.failure) is not None:
            found.append(f"{len(self.outboxes)} alerts not delivered: {failure}")
        if (failure := self._journal.failure) is not None and len(self._journal):
            found.append(f"{len(self._journal)} events not written to the log: {failure}")
        return tuple(found)

    def checkpoint_failed(self) -> None:
        """Count a checkpoint that could not be made or written. The next one is due later."""
        self._kept, self._due_s = None, self._clock.monotonic() + CHECKPOINT_EVERY_S
        self._metrics.checkpoint_failures.inc()

    def _hold(self, event: AlertEvent) -> bool:
        """Hold an event for `send`; False where the checkpoint had it on its way already."""
        if event.id in self._restored:
            return False
        with self._lock:
            self._decided.append(event)
        return True

    def _write(self, alerts: Sequence[AlertEvent], last_wait_s: float | None = None) -> None:
        """Have the chain of events hold alerts before they are sent, if that can be."""
        self._journal.tell(alerts)
        self._journal.write(at_once=last_wait_s is not None, wait_s=last_wait_s)
        lost, self._lost = self._journal.lost - self._lost, self._journal.lost
        self._metrics.events_lost.inc(lost)

    def _lacking(
        self, decided: Sequence[AlertEvent]
    ) -> tuple[tuple[AlertEvent, ...], tuple[AlertEvent, ...]]:
        """What any sink lacks, and what the chain of events does."""
        return (*self.outboxes.pending(), *decided), (*self._journal.unwritten(), *decided)

    def _keep(
        self,
        state: MonitorSnapshot,
        pending: tuple[AlertEvent, ...],
        unwritten: tuple[AlertEvent, ...],
        *,
        wait_s: float | None,
    ) -> None:
        """Write a checkpoint in a thread, and wait for it as long as alerts may wait."""
        self._due_s = self._clock.monotonic() + CHECKPOINT_EVERY_S
        checkpoint = Checkpoint(state.content, pending, unwritten)
        kept = (state.revision, _ids(pending), _ids(unwritten))
        self._keeper = threading.Thread(
            target=self._write_checkpoint, args=(checkpoint, kept), name="checkpoint", daemon=True
        )
        self._keeper.start()
        self._keeper.join(self._patience_s if wait_s is None else wait_s)
        if self._ended_by is not None:
            raise self._ended_by
        if self._keeper.is_alive():
            # It goes on, and counts once it is done.
            self._not_written("the store has not answered yet")

    def _write_checkpoint(
        self, checkpoint: Checkpoint, kept: tuple[int, tuple[str, ...], tuple[str, ...]]
    ) -> None:
        try:
            self._checkpoints.write(checkpoint)
        except Exception as error:  # noqa: BLE001 - not even a full disk may keep alerts back
            self._not_written(str(error))
            return
        except BaseException as error:  # noqa: BLE001  what ends a program ends its caller
            self._ended_by = error
            return
        self._kept = kept
        self._metrics.last_checkpoint.set(self._clock.now_ms() / 1000)

    def _not_written(self, cause: str) -> None:
        structlog.get_logger().warning(
            "checkpoint_not_written", file=self._checkpoints.path, cause=cause
        )
        self.checkpoint_failed()

    def _log(self, alert: DriftAlert | UnscoredAlert, event: AlertEvent) -> None:
        log, is_firing = structlog.get_logger(), alert.change.transition is Transition.FIRING
        key = {"key": alert.key} if isinstance(alert, DriftAlert) else {}
        (log.warning if is_firing else log.info)(
            "drift_alert" if key else "unscored_alert",
            monitor=self._settings.alerts.monitor,
            **key,
            state=alert.change.transition.value,
            reason=alert.change.reason.value,
            severity=alert.change.alert.severity.value,
            summary=event.event["data"]["summary"],
            id=event.id,
        )


def _ids(events: Iterable[AlertEvent]) -> tuple[str, ...]:
    return tuple(event.id for event in events)


class CatchUpFilter:
    """Holds back the alerts of the past that a new monitor judges; tells what fires at its end.

    The past ends at ``until_ms``, milliseconds since the epoch. Some of it may be judged late: it
    waits for a partition that lags, or that brings nothing more.
    """

    def __init__(self, until_ms: int) -> None:
        self._until_ms = until_ms
        self._firing: dict[tuple[bool, str | None], DriftAlert | UnscoredAlert] = {}

    def take(
        self, alerts: Sequence[DriftAlert | UnscoredAlert], judged_until_ms: int | None
    ) -> tuple[DriftAlert | UnscoredAlert, ...] | None:
        """Take alerts in order; give those to be told, or None while the past goes on.

        Those are the newest alert of the stream, of its images without scores and of each key that
        fires at the end of the past, and what came after. From then on the filter is of no more
        use. ``judged_until_ms`` is the end of the newest pane that was judged, None before the
        first.
        """
        past = [alert for alert in alerts if alert.time_ms <= self._until_ms]
        for alert in past:
            name = (True, alert.key) if isinstance(alert, DriftAlert) else (False, None)
            self._firing.pop(name, None)
            if alert.change.transition is Transition.FIRING:
                self._firing[name] = alert
        if judged_until_ms is None or judged_until_ms < self._until_ms:
            return None
        return (*self._firing.values(), *alerts[len(past) :])
