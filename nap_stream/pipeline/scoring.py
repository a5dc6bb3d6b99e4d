"""The threads of a worker that decode and score, in the order of arrival.

What they do is given by `nap_stream.pipeline.rows`.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain

import pyarrow as pa

from nap_stream.clock import Clock, Timed
from nap_stream.records import (
    TIME_PARTS,
    DecodedRows,
    Fetched,
    Message,
    ScoredRows,
    TimePart,
    TopicPartition,
)

Decode = Callable[[Message], DecodedRows]
Score = Callable[[Sequence[DecodedRows]], pa.RecordBatch]
"""Decoded messages → their rows, in order, with the columns of `ROWS`."""
Observe = Callable[[str, float], None]

MAX_DECODED_BYTES = 128 * 2**20
PARCEL_MESSAGES = 8
PARCEL_BYTES = 2**16
"""Messages are decoded in parcels: to hand over each small one by itself costs more than it."""
_MOST_AHEAD = 2
"""Batches for each thread that may be under way, or wait for one that was gathered before them."""
_POLL_S = 0.1
"""How often a waiting thread looks whether it should end."""


@dataclass(slots=True, eq=False)
class _Parcel:
    """Some messages of a partition between poll and score. They are dropped when decoded.

    ``size_bytes`` is what they take: their values' bytes, then those of their pixels and of the
    payloads of their failed images. ``images`` counts each message as one until it is decoded.
    """

    partition: TopicPartition
    messages: tuple[Message, ...]
    epoch: int
    end: int
    size_bytes: int
    number: int
    images: int
    polled: Timed
    decoded: Timed | None = None
    decoding: Future[list[DecodedRows]] = field(default_factory=Future)


class _Times:
    """What scoring threads spend their time on. Its owner's lock guards it.

    One thread gathers at a time, and others wait for their turn to. What it waits for meanwhile is
    what they wait for. While the log is slow, messages are missing because of it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._parts: dict[TimePart, float] = dict.fromkeys(TIME_PARTS, 0.0)
        self._gatherer: dict[TimePart, float] = {"messages": 0.0, "decode": 0.0}
        self._log_s, self._log_since = 0.0, float("inf")

    def parts(self) -> dict[TimePart, float]:
        """Seconds so far."""
        return dict(self._parts)

    def add(self, part: TimePart, seconds: float) -> None:
        """Count what a thread has spent."""
        self._parts[part] += seconds

    def gatherer_waited(self, part: TimePart, seconds: float) -> None:
        """Note what the thread has waited for whose turn it is."""
        self._gatherer[part] += seconds

    def note_log(self, *, is_slow: bool) -> None:
        """Note from when to when the log is slow."""
        self._log_s = self._log_until_now()
        self._log_since = self._clock.monotonic() if is_slow else float("inf")

    def begin(self) -> tuple[float, float, float, float]:
        """What `waited` compares with at the end of a wait."""
        waits = self._gatherer["messages"], self._gatherer["decode"]
        return (self._clock.monotonic(), *waits, self._log_until_now())

    def waited(self, begin: tuple[float, float, float, float]) -> None:
        """Count a thread's wait, divided by what it was for."""
        since, messages, decode, log = (
            now - then for now, then in zip(self.begin(), begin, strict=True)
        )
        scale = since / (messages + decode) if messages + decode else 0.0
        for_log = min(log, messages * scale)
        self._parts["log"] += for_log
        self._parts["messages"] += messages * scale - for_log
        self._parts["decode"] += decode * scale

    def _log_until_now(self) -> float:
        return self._log_s + max(0.0, self._clock.monotonic() - self._log_since)


class ScoringStage:
    """Takes fetched messages, gives back scored rows, per partition in the order of offsets.

    One thread submits and takes. Decoding runs in a pool. Each of ``scores`` has a thread of its
    own, which forms batches by size or linger, and scores them; what is ready first waits for what
    came first. An error in any of them is raised by `take`.

    ``decode`` does not raise for bad input. A batch has at most ``batch_size`` images, unless one
    parcel alone has more; an image waits ``linger_s`` seconds for its batch to fill. Decoding
    pauses while ``max_decoded_images`` wait for scoring, or ``max_decoded_bytes`` of their pixels
    and of the payloads of failed images. Nothing waits for the images' own bytes: beyond
    ``max_decoded_bytes`` of them, until `take` has given them, those of further images are
    dropped. A thread decodes ``parcel_messages`` one after the other, a power of two: one where to
    decode is to wait. ``observe`` receives ("decode" | "score" | "batch", seconds).
    Where it is ``traced``, rows say when that was.
    """

    def __init__(
        self,
        decode: Decode,
        scores: Sequence[Score],
        *,
        batch_size: int,
        linger_s: float,
        decode_threads: int,
        max_decoded_images: int,
        clock: Clock,
        observe: Observe,
        max_decoded_bytes: int = MAX_DECODED_BYTES,
        parcel_messages: int = PARCEL_MESSAGES,
        traced: bool = False,
    ) -> None:
        self._decode, self._parcel_messages, self._traced = decode, parcel_messages, traced
        self._batch_size, self._linger_s = batch_size, linger_s
        self._max_decoded_images, self._max_decoded_bytes = max_decoded_images, max_decoded_bytes
        self._clock, self._observe = clock, observe
        self._pool = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        # A SimpleQueue that is to wait for a time waits for ever where a signal comes after it.
        self._submitted: queue.Queue[_Parcel] = queue.Queue()
        self._lock = threading.Lock()
        self._done: deque[ScoredRows] = deque()
        self._in_flight: dict[TopicPartition, int] = {}
        self._images = self._bytes = 0
        self._decoded_images = self._decoded_bytes = self._file_bytes = 0
        self._numbers = self._opening = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition(self._lock)
        self._ending = threading.Event()
        self._gathering = threading.Lock()
        self._gathered = self._handed_on = 0
        self._most_ahead = _MOST_AHEAD * len(scores)
        self._finished: dict[int, tuple[list[_Parcel], list[ScoredRows]]] = {}
        self._held: _Parcel | None = None
        self._times = _Times(clock)
        self._threads = [
            threading.Thread(target=self._run, args=(score,), name="score", daemon=True)
            for score in scores
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, fetched: Fetched, epoch: int, polled_s: float | None = None) -> None:
        """Take messages in flight, for which was polled since ``polled_s``; returns at once."""
        now = self._clock.monotonic()
        polled = ("poll", now if polled_s is None else polled_s, now)
        for messages in _parcels(fetched.messages, self._parcel_messages):
            is_last = messages[-1] is fetched.messages[-1]
            end = fetched.end if is_last else messages[-1].offset + 1
            size, images = _size(messages), len(messages)
            with self._lock:
                name = fetched.partition
                self._in_flight[name] = self._in_flight.get(name, 0) + 1
                self._images += images
                self._bytes += size
            parcel = _Parcel(name, messages, epoch, end, size, self._numbers, images, polled)
            self._numbers += 1
            parcel.decoding = self._pool.submit(self._decode_when_due, parcel)
            self._submitted.put(parcel)

    def take(self) -> list[ScoredRows]:
        """What has been scored since the last call, in order; never waits.

        Raises:
            Exception: Whatever ended a thread of the stage.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            done = list(self._done)
            self._done.clear()
            self._file_bytes -= sum(_bytes_in(rows.files) for rows in done)
        return done

    def in_flight(self) -> tuple[int, int]:
        """(images, bytes) between `submit` and score.

        A message counts as one image of its value's size until it is decoded; then its images
        count, with their pixels at the model's input size and the payloads of failed ones.
        """
        with self._lock:
            return self._images, self._bytes

    def wait_until_done(self, partitions: frozenset[TopicPartition], timeout_s: float) -> bool:
        """Wait until nothing of these partitions is in flight, or a thread has failed."""

        def done() -> bool:
            return self._error is not None or not any(self._in_flight.get(p) for p in partitions)

        with self._changed:
            return self._changed.wait_for(done, timeout_s)

    def has_in_flight(self, partition: TopicPartition) -> bool:
        """Whether messages of this partition are still to be scored or taken."""
        with self._lock:
            return bool(self._in_flight.get(partition)) or any(
                rows.partition == partition for rows in self._done
            )

    def wait_for_scored(self, timeout_s: float) -> None:
        """Wait until `take` has something to give, or a thread has failed."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._done) or self._error is not None, timeout_s)

    def time_parts(self) -> dict[TimePart, float]:
        """What the scoring threads have spent their time on so far: seconds, all together."""
        with self._lock:
            return self._times.parts()

    def note_log(self, *, is_slow: bool) -> None:
        """Say whether the thread that submits and takes is kept from it by the log."""
        with self._lock:
            self._times.note_log(is_slow=is_slow)

    def close(self) -> None:
        """End the threads; what is in flight is dropped. Safe to call twice."""
        with self._changed:
            self._ending.set()
            self._changed.notify_all()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for thread in self._threads:
            thread.join()

    def _decode_when_due(self, parcel: _Parcel) -> list[DecodedRows]:
        """Decode, but not far ahead of scoring: a batch message can hold a thousand images."""
        decoded, spent_s, began = [], 0.0, self._clock.monotonic()
        for message in parcel.messages:
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        (
                            self._decoded_images < self._max_decoded_images
                            and self._decoded_bytes < self._max_decoded_bytes
                        )
                        or parcel.number <= self._opening
                        or self._ending.is_set()
                    )
                )
            started = self._clock.monotonic()
            rows = self._decode(message)
            spent_s += self._clock.monotonic() - started
            size = _held_bytes(rows)
            with self._lock:
                rows = self._with_room_for_files(rows)
                self._decoded_images += len(rows)
                self._images += len(rows) - 1
                parcel.images += len(rows) - 1
                self._decoded_bytes += size
                change = size - len(message.value or b"")
                self._bytes += change
                parcel.size_bytes += change
            decoded.append(rows)
        # Once a parcel: each observation goes to the coordinator.
        self._observe("decode", spent_s)
        parcel.messages = ()
        parcel.decoded = ("decode", began, self._clock.monotonic())
        return decoded

    def _with_room_for_files(self, rows: DecodedRows) -> DecodedRows:
        """The rows with the files for which there is room, and empty ones for the others."""
        files = list(rows.files)
        for row, data in enumerate(files):
            size = len(data or b"")
            if self._file_bytes + size > self._max_decoded_bytes:
                files[row], size = b"", 0
            self._file_bytes += size
        return replace(rows, files=tuple(files)) if files else rows

    def _run(self, score: Score) -> None:
        try:
            while not self._ending.is_set() and self._error is None:
                self._one_batch(score)
        except BaseException as error:  # noqa: BLE001  handed to the thread that calls take()
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _one_batch(self, score: Score) -> None:
        """Gather a batch, in turn with the other threads, score it, hand on its rows."""
        with self._lock:
            waiting = self._times.begin()
        with self._gathering:
            self._wait_for_those_before()
            parcels, first_at = self._gather()
            number, self._gathered = self._gathered, self._gathered + bool(parcels)
        started = self._clock.monotonic()
        with self._lock:
            self._times.waited(waiting)
        if not parcels:
            return
        rows = score([rows for parcel in parcels for rows in parcel.decoding.result()])
        ended = self._clock.monotonic()
        self._observe("score", ended - started)
        with self._lock:
            self._times.add("model", ended - started)
        self._hand_on(number, parcels, rows, ("score", started, ended))
        self._observe("batch", self._clock.monotonic() - first_at)

    def _wait_for_those_before(self) -> None:
        """While one batch takes long, do not score more and more that has to wait for it."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._gathered - self._handed_on < self._most_ahead
                    or self._error is not None
                    or self._ending.is_set()
                )
            )

    def _gather(self) -> tuple[list[_Parcel], float]:
        """Wait for an image and then for its batch; say when it came, too.

        A parcel that is too large for what is left of a batch is held for the next one.
        """
        parcels: list[_Parcel] = []
        images, first_at = 0, 0.0
        while images < self._batch_size and not self._ending.is_set():
            timeout_s = _POLL_S
            if parcels:
                timeout_s = first_at + self._linger_s - self._clock.monotonic()
            since = self._clock.monotonic()
            parcel, self._held = self._held or self._next(timeout_s), None
            now = self._clock.monotonic()
            with self._lock:
                self._times.gatherer_waited("messages", now - since)
            if parcel is None:
                break
            first_at = first_at if parcels else now
            with self._changed:
                # Whatever else waits, the messages that scoring waits for may be decoded.
                self._opening = parcel.number
                self._changed.notify_all()
            more = sum(len(rows.pixels) for rows in parcel.decoding.result())
            with self._lock:
                self._times.gatherer_waited("decode", self._clock.monotonic() - now)
            if parcels and images + more > self._batch_size:
                self._held = parcel
                break
            images += more
            parcels.append(parcel)
        return parcels, first_at

    def _next(self, timeout_s: float) -> _Parcel | None:
        try:
            return self._submitted.get(block=timeout_s > 0, timeout=timeout_s)
        except queue.Empty:
            return None

    def _hand_on(
        self, number: int, parcels: list[_Parcel], rows: pa.RecordBatch, step: Timed
    ) -> None:
        """Give `take` the rows of a batch as soon as those before it are there."""
        scored = list(_by_partition(parcels, rows))
        if self._traced:
            scored = [replace(each, steps=_steps(parcels, each, step)) for each in scored]
        for parcel in parcels:
            # Its pixels are needed no more.
            parcel.decoding = Future()
        with self._changed:
            for parcel in parcels:
                self._images -= parcel.images
                self._decoded_images -= parcel.images
                self._decoded_bytes -= parcel.size_bytes
                self._bytes -= parcel.size_bytes
            self._finished[number] = parcels, scored
            while (finished := self._finished.pop(self._handed_on, None)) is not None:
                self._handed_on += 1
                self._done.extend(finished[1])
                for parcel in finished[0]:
                    self._in_flight[parcel.partition] -= 1
            self._changed.notify_all()


def _parcels(messages: Sequence[Message], most: int) -> Iterator[tuple[Message, ...]]:
    """Messages of up to so many bytes together; by eights, fours or twos, to fill batches."""
    start = 0
    while start < len(messages):
        count = most
        while count > 1 and _size(messages[start : start + count]) > PARCEL_BYTES:
            count //= 2
        yield tuple(messages[start : start + count])
        start += count


def _size(messages: Sequence[Message]) -> int:
    return sum(len(message.value or b"") for message in messages)


def _by_partition(parcels: Sequence[_Parcel], rows: pa.RecordBatch) -> Iterator[ScoredRows]:
    """Divide the rows of a batch among the placements of partitions that they are of."""
    found: dict[tuple[TopicPartition, int], list[tuple[_Parcel, range]]] = {}
    start = 0
    for parcel in parcels:
        own_rows = range(start, start + parcel.images)
        found.setdefault((parcel.partition, parcel.epoch), []).append((parcel, own_rows))
        start += parcel.images
    for (partition, epoch), placed in found.items():
        own = [parcel for parcel, _ in placed]
        part = _rows_of([own_rows for _, own_rows in placed], rows)
        decoded = [each for parcel in own for each in parcel.decoding.result()]
        files = tuple(chain.from_iterable(each.files for each in decoded))
        failed = tuple(image for each in decoded for image in each.failed)
        yield ScoredRows(partition, epoch, own[-1].end, part, failed, files)


def _steps(parcels: Sequence[_Parcel], rows: ScoredRows, step: Timed) -> tuple[Timed, ...]:
    """When those messages were polled and decoded, and their batch was scored."""
    own = [each for each in parcels if each.partition == rows.partition]
    decoded = [each.decoded for each in own if each.decoded is not None]
    begin, end = min(each[1] for each in decoded), max(each[2] for each in decoded)
    return (*dict.fromkeys(each.polled for each in own), ("decode", begin, end), step)


def _rows_of(own_rows: Sequence[range], rows: pa.RecordBatch) -> pa.RecordBatch:
    """Those rows, without a copy where they follow each other."""
    first, count = own_rows[0].start, sum(map(len, own_rows))
    if own_rows[-1].stop - first == count:
        return rows.slice(first, count)
    return rows.take(pa.array(chain.from_iterable(own_rows), pa.int64()))


def _held_bytes(rows: DecodedRows) -> int:
    """What decoded rows keep in memory, about, beside the images' own bytes."""
    payloads = sum(len(image.payload or b"") for image in rows.failed)
    return payloads + sum(image.nbytes for image in rows.pixels)


def _bytes_in(files: Sequence[bytes | None]) -> int:
    return sum(len(data or b"") for data in files)
