"""Keeps the images that somebody may ask for, beside the worker's line and never in its way.

They are handed over as soon as they are scored, before their segment is durable: so their bytes are
let go at once. What is handed over can be written before its row is, by another worker even, and
has its row in the end, because every offset has. After a crash, messages whose segment was not
durable are read again, and the same images chosen. Of the others, what still waited for the store
is lost: `MAX_WAITING_BYTES` at most.
"""

import queue
import threading
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog
from numpy.typing import NDArray

from nap_stream.clock import Clock
from nap_stream.records import EvidenceOutcome, ScoredRows, Status, TopicPartition
from nap_stream.scored_log.evidence import evidence_day, evidence_path
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.summary import credible_times
from nap_stream.settings.evidence import EvidenceSettings
from nap_stream.text import described

Reason = Literal["extreme", "flagged", "sample"]
_SHARES: dict[Reason, float] = {"extreme": 0.25, "flagged": 0.5, "sample": 0.25}
"""Of the budget. What is kept counts for the first of its reasons that has some left."""
MAX_WAITING_BYTES = 64 * 2**20
"""Of images that wait to be written."""
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
_REMEMBERED = 100_000
"""Images that are there already: what comes again and again is written once."""
_TELL_EVERY_S = 600.0
_LIST_EVERY_S = 600.0
"""What other workers have written of a day is learned so often, and after each failure."""
_NO_MEMORY = "half of worker.max_in_hand_bytes is full of images that wait for their scores"


NoteEvidence = Callable[[EvidenceOutcome, int], None]
"""Counts an image that was to be kept, and the bytes written of it; called by any thread."""


@dataclass(frozen=True, slots=True)
class _Image:
    data: bytes
    sha256: str
    scored_ms: int
    reasons: tuple[Reason, ...]


@dataclass(slots=True)
class _Hour:
    """The newest hour of a partition under one assignment, and its smallest p-values, ascending."""

    epoch: int
    hour: int
    smallest: list[float] = field(default_factory=list)


class EvidenceChoice:
    """Which images of scored rows are to be kept, and why. For one thread.

    It depends on the rows of a partition and their order alone: whoever scores them again from the
    beginning of an hour chooses the same. One that begins within it may choose more, and so does
    the same worker when the partition is placed anew.
    """

    def __init__(self, settings: EvidenceSettings) -> None:
        self._extremes = settings.extremes_per_hour
        self._below = int(settings.sample * 2**64)
        self._seed = int.from_bytes(blake2b(settings.seed.encode(), digest_size=8).digest())
        self._newest: dict[TopicPartition, _Hour] = {}

    def __call__(self, scored: ScoredRows) -> Iterator[tuple[int, tuple[Reason, ...]]]:
        """The rows of images to keep, in order, each with at least one reason.

        Flagged images and those whose activations were not finite are all chosen.
        """
        rows = scored.rows
        p = rows.column("ood_p_value").to_numpy(zero_copy_only=False)
        not_finite = pc.equal(rows.column("status"), Status.NOT_FINITE.value)
        is_flagged = pc.or_(rows.column("is_ood").fill_null(False), not_finite).to_pylist()
        extreme = self._extreme(scored, p) if self._extremes else set()
        sha256 = rows.column("sha256").to_pylist()
        known = zip(scored.files, sha256, is_flagged, np.isnan(p).tolist(), strict=True)
        for row, (data, digest, flagged, unscored) in enumerate(known):
            if data is None or digest is None:
                continue
            # A digest's bits are as good as drawn, and stay so where some are turned over.
            sampled = not unscored and int(digest[:16], 16) ^ self._seed < self._below
            second: Reason | None = "flagged" if flagged else "sample" if sampled else None
            if row in extreme or second:
                reasons: tuple[Reason | None, ...]
                reasons = "extreme" if row in extreme else None, second
                yield row, tuple(reason for reason in reasons if reason)

    def _extreme(self, scored: ScoredRows, p: NDArray[np.float64]) -> set[int]:
        """The rows whose p-values are among the smallest of their hour so far.

        As in panes, a row's time is the largest up to it: each hour comes once, so that times that
        jump do not make every row an extreme.
        """
        found: set[int] = set()
        newest = self._newest.get(scored.partition)
        if newest is None or newest.epoch != scored.epoch:
            newest = _Hour(scored.epoch, np.iinfo(np.int64).min)
        event_ms, ingest_ms = (
            scored.rows.column(name).cast(pa.int64()).to_numpy(zero_copy_only=False)
            for name in ("event_time", "ingest_time")
        )
        times = credible_times(event_ms, ingest_ms)
        hours = np.maximum(np.maximum.accumulate(times // HOUR_MS), newest.hour)
        for hour in np.unique(hours).tolist():
            if hour > newest.hour:
                newest = _Hour(scored.epoch, hour)
            smallest = newest.smallest
            bound = smallest[-1] if len(smallest) == self._extremes else np.inf
            for row in np.flatnonzero((hours == hour) & (p < bound)).tolist():
                if len(smallest) == self._extremes:
                    if p[row] >= smallest[-1]:
                        continue
                    smallest.pop()
                insort(smallest, float(p[row]))
                found.add(row)
        self._newest[scored.partition] = newest
        return found


class DayBudget:
    """What a worker may still write of images that were scored on one day.

    ``max_bytes`` is of all ``workers``; each has an equal part of it. ``used`` is what lay there
    when this one began: an equal part of it counts as its own, spent for all reasons alike. Of each
    reason's share so much is there to spend as of the day has passed, and an hour more; and so of
    the whole, whoever has written it.
    """

    def __init__(self, max_bytes: int, used: int, workers: int = 1) -> None:
        self._max_bytes, self._used = max_bytes, used
        self._shares = {reason: share * max_bytes / workers for reason, share in _SHARES.items()}
        self._spent = {reason: share * used / workers for reason, share in _SHARES.items()}

    def reason(self, reasons: tuple[Reason, ...], size: int, scored_ms: int) -> Reason | None:
        """The first reason that has so many bytes left; None where none has."""
        passed = (scored_ms % DAY_MS + HOUR_MS) / (DAY_MS + HOUR_MS)
        if self._used + size > self._max_bytes * passed:
            return None
        for reason in reasons:
            if self._spent[reason] + size <= self._shares[reason] * passed:
                return reason
        return None

    def spend(self, reason: Reason, size: int) -> None:
        """Take so many bytes off what is left."""
        self._spent[reason] += size
        self._used += size

    def found(self, used: int) -> None:
        """Note what lies there by now, of all workers."""
        self._used = used


class EvidenceKeeper:
    """Writes images in a thread of its own. Failures are counted and said, and never raised.

    ``workers`` is how many share the budget; ``note`` is told what becomes of each image.
    """

    def __init__(
        self,
        store: SegmentStore,
        settings: EvidenceSettings,
        *,
        workers: int,
        note: NoteEvidence,
        clock: Clock,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        self._store, self._settings, self._workers = store, settings, workers
        self._note, self._clock, self._max_waiting = note, clock, max_waiting_bytes
        self._choice = EvidenceChoice(settings)
        self._queue: queue.Queue[_Image | None] = queue.Queue()
        self._lock = threading.Lock()
        self._waiting = self._waiting_bytes = 0
        self._left_out: Counter[EvidenceOutcome] = Counter()
        self._tell_at: dict[EvidenceOutcome, float] = {}
        self._budgets: dict[str, DayBudget] = {}
        self._list_at: dict[str, float] = {}
        self._written: dict[str, None] = {}
        self._closed, self._hurry = False, threading.Event()
        self._thread = threading.Thread(target=self._run, name="evidence", daemon=True)
        self._thread.start()

    def offer(self, scored: ScoredRows) -> None:
        """Take what is to be kept of rows that have been scored; never waits. For one thread."""
        if not scored.files:
            return
        times = scored.rows.column("scored_time").cast(pa.int64())
        digests = scored.rows.column("sha256")
        for row, reasons in self._choice(scored):
            data = scored.files[row]
            if not data:
                self._leave_out("memory_full", _NO_MEMORY)
                continue
            with self._lock:
                fits = self._waiting_bytes + len(data) <= self._max_waiting
                self._waiting += fits
                self._waiting_bytes += len(data) * fits
            if fits:
                sha256 = digests[row].as_py()
                self._queue.put(_Image(data, sha256, times[row].as_py(), reasons))
            else:
                self._leave_out("queue_full", "the store is too slow for what is to be kept")

    def close(self, timeout_s: float) -> None:
        """Write what waits, for so many seconds, and end the thread. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join(timeout_s)
        self._hurry.set()
        if self._waiting:
            cause = "the worker ended before they were written"
            self._leave_out("failed", cause, self._waiting)
        if self._left_out:
            structlog.get_logger().warning(
                "evidence_left_out_in_all",
                **{str(name): images for name, images in self._left_out.items()},
            )

    def _run(self) -> None:
        while (image := self._queue.get()) is not None and not self._hurry.is_set():
            try:
                self._keep(image)
            # Whatever it is, a defect here too, it must not end the monitor.
            except Exception as error:  # noqa: BLE001
                # The folder of the day may be gone, and what was written of it. What was spent
                # stays spent.
                self._list_at.clear()
                self._written.clear()
                self._leave_out("failed", described(error))
            with self._lock:
                self._waiting -= 1
                self._waiting_bytes -= len(image.data)

    def _keep(self, image: _Image) -> None:
        path = evidence_path(image.scored_ms, image.sha256)
        budget, size = self._budget(evidence_day(image.scored_ms)), len(image.data)
        if path in self._written:
            return
        reason = budget.reason(image.reasons, size, image.scored_ms)
        if reason is None:
            whole = self._settings.max_bytes_per_day
            self._leave_out("over_budget", f"evidence.max_bytes_per_day = {whole}, of all workers")
            return
        is_new = self._store.create(path, image.data)
        self._remember(path)
        if is_new:
            budget.spend(reason, size)
            self._note("kept", size)

    def _remember(self, path: str) -> None:
        self._written[path] = None
        if len(self._written) > _REMEMBERED:
            del self._written[next(iter(self._written))]

    def _budget(self, day: str) -> DayBudget:
        """The budget of a day, with what lay there when it was listed."""
        now = self._clock.monotonic()
        if now >= self._list_at.get(day, now):
            self._store.prepare(day)
            held = self._store.sizes(day)
            for name in held:
                self._remember(f"{day}/{name}")
            used = sum(held.values())
            if day in self._budgets:
                self._budgets[day].found(used)
            else:
                whole = self._settings.max_bytes_per_day
                self._budgets[day] = DayBudget(whole, used, self._workers)
            self._list_at[day] = now + _LIST_EVERY_S
            while len(self._budgets) > 2:  # noqa: PLR2004  at midnight two days are written to
                oldest = min(self._budgets)
                del self._budgets[oldest]
                self._list_at.pop(oldest, None)
        return self._budgets[day]

    def _leave_out(self, outcome: EvidenceOutcome, cause: str, images: int = 1) -> None:
        """Count images that are not kept, and say now and then how many they are by now."""
        for _ in range(images):
            self._note(outcome, 0)
        now = self._clock.monotonic()
        with self._lock:
            self._left_out[outcome] += images
            if now < self._tell_at.get(outcome, now):
                return
            self._tell_at[outcome] = now + _TELL_EVERY_S
        structlog.get_logger().warning(
            "evidence_left_out", outcome=outcome, images=self._left_out[outcome], cause=cause
        )
