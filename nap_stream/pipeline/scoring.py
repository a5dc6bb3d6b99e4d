"""From messages to the rows of the log: decode, preprocess, score, judge.

Decoding and scoring have threads of their own, and keep the order of arrival.
"""

import dataclasses
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from nap_stream.calibration.calibration import Calibration
from nap_stream.clock import Clock
from nap_stream.core.score_specs import BaseScore
from nap_stream.decode import iter_decoded
from nap_stream.model.load import OnePassScorer
from nap_stream.model.preprocessing import preprocess
from nap_stream.records import (
    DecodedImage,
    FailedImage,
    Fetched,
    Message,
    ScoredRecord,
    Scores,
    Status,
    TopicPartition,
)
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings

_NOT_FINITE = "the model's activations or logits are not finite for this image"


class RecordScorer:
    """Decodes messages, in any number of threads, and turns images into rows, in one.

    ``class_names`` are in order of the logits, ``kept_headers`` the message headers that rows keep.
    """

    def __init__(
        self,
        *,
        scorer: OnePassScorer,
        class_names: Sequence[str],
        calibration: Calibration,
        preprocessing: PreprocessingSettings,
        limits: LimitSettings,
        kept_headers: tuple[str, ...],
        clock: Clock,
    ) -> None:
        self._scorer, self._class_names, self._calibration = scorer, class_names, calibration
        self._preprocessing, self._limits = preprocessing, limits
        self._kept_headers, self._clock = kept_headers, clock

    def decode(self, message: Message) -> list[DecodedImage | FailedImage]:
        """A message's images at the model's input size, one a row."""
        rows = iter_decoded(
            message,
            self._limits,
            kept_headers=self._kept_headers,
            ingest_time_ms=self._clock.now_ms(),
        )
        return [self._preprocessed(row) for row in rows]

    def score(self, images: Sequence[DecodedImage]) -> list[ScoredRecord]:
        """The rows of a batch, in order. Scores that are not finite make a row without scores."""
        found = self._scorer(torch.stack([image.pixels for image in images]))
        judged = self._calibration.judge(found.values, found.class_id)
        finite = found.is_finite() & np.isfinite(judged.fused)
        now_ms = self._clock.now_ms()
        records = []
        for row, image in enumerate(images):
            if not finite[row]:
                records.append(_row(image, Status.NOT_FINITE, _NOT_FINITE, now_ms, None))
                continue
            class_id = int(found.class_id[row])
            values = {name: float(column[row]) for name, column in found.values.items()}
            scores = Scores(
                class_id=class_id,
                class_name=self._class_names[class_id],
                confidence=values.pop(BaseScore.MSP),
                fused=float(judged.fused[row]),
                ood_p_value=float(judged.ood_p_value[row]),
                is_ood=bool(judged.is_ood[row]),
                **values,
            )
            records.append(_row(image, Status.OK, None, now_ms, scores))
        return records

    def _preprocessed(self, row: DecodedImage | FailedImage) -> DecodedImage | FailedImage:
        if isinstance(row, FailedImage):
            return row
        return dataclasses.replace(row, pixels=preprocess(row.pixels, self._preprocessing))

    def fail(self, image: FailedImage) -> ScoredRecord:
        """The row of an image that has no scores."""
        return _row(image, image.status, image.error, self._clock.now_ms(), None)


def _row(
    image: DecodedImage | FailedImage,
    status: Status,
    error: str | None,
    scored_time_ms: int,
    scores: Scores | None,
) -> ScoredRecord:
    return ScoredRecord(
        origin=image.origin,
        status=status,
        error=error,
        scored_time_ms=scored_time_ms,
        scores=scores,
        width=image.width,
        height=image.height,
        format=image.format,
        sha256=image.sha256,
    )


Decoded = DecodedImage | FailedImage
Decode = Callable[[Message], list[Decoded]]
Score = Callable[[Sequence[DecodedImage]], list[ScoredRecord]]
Fail = Callable[[FailedImage], ScoredRecord]
Observe = Callable[[str, float], None]

MAX_DECODED_BYTES = 128 * 2**20
_POLL_S = 0.1
"""How often a waiting thread looks whether it should end."""


@dataclass(frozen=True, slots=True)
class ScoredMessage:
    """The rows of one message, and where its partition stands after it.

    ``epoch`` is the assignment under which the message was read: rows of an earlier one are
    dropped. ``failed`` are the rows that go to the dead-letter topic.
    """

    partition: TopicPartition
    epoch: int
    end: int
    records: tuple[ScoredRecord, ...]
    failed: tuple[FailedImage, ...]


@dataclass(slots=True)
class _InFlight:
    """A message between poll and score. It is dropped when it is decoded.

    ``size_bytes`` is what it takes: its value's bytes, then those of its pixels and of the
    payloads of its failed images.
    """

    partition: TopicPartition
    message: Message | None
    epoch: int
    end: int
    size_bytes: int
    number: int
    decoding: Future[list[Decoded]] = field(default_factory=Future)
    records: list[ScoredRecord] = field(default_factory=list)
    failed: list[FailedImage] = field(default_factory=list)
    expected: int = -1


class ScoringStage:
    """Takes fetched messages, gives back scored ones, per partition in the order of offsets.

    One thread submits and takes. Decoding runs in a pool, scoring in one thread that forms
    batches by size or linger. An error in any of them is raised by `take`.

    ``decode`` does not raise for bad input. A batch has at most ``batch_size`` images; one waits
    ``linger_s`` seconds for its batch to fill. Decoding pauses while ``max_decoded_images`` wait
    for scoring, or ``max_decoded_bytes`` of their pixels and of the payloads of failed images.
    ``observe`` receives ("decode" | "score" | "batch", seconds).
    """

    def __init__(
        self,
        decode: Decode,
        score: Score,
        fail: Fail,
        *,
        batch_size: int,
        linger_s: float,
        decode_threads: int,
        max_decoded_images: int,
        clock: Clock,
        observe: Observe,
        max_decoded_bytes: int = MAX_DECODED_BYTES,
    ) -> None:
        self._decode, self._score, self._fail = decode, score, fail
        self._batch_size, self._linger_s = batch_size, linger_s
        self._max_decoded_images, self._max_decoded_bytes = max_decoded_images, max_decoded_bytes
        self._clock, self._observe = clock, observe
        self._pool = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        # A SimpleQueue that is to wait for a time waits for ever where a signal comes after it.
        self._submitted: queue.Queue[_InFlight] = queue.Queue()
        self._lock = threading.Lock()
        self._done: deque[ScoredMessage] = deque()
        self._in_flight: dict[TopicPartition, int] = {}
        self._images = self._bytes = 0
        self._decoded_images = self._decoded_bytes = 0
        self._numbers = self._opening = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition(self._lock)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="score", daemon=True)
        self._thread.start()

    def submit(self, fetched: Fetched, epoch: int) -> None:
        """Take messages in flight; returns at once."""
        for number, message in enumerate(fetched.messages, start=1):
            last = number == len(fetched.messages)
            end = fetched.end if last else message.offset + 1
            size = len(message.value or b"")
            with self._lock:
                self._in_flight[message.partition] = self._in_flight.get(message.partition, 0) + 1
                self._images += 1
                self._bytes += size
            item = _InFlight(message.partition, message, epoch, end, size, self._numbers)
            self._numbers += 1
            item.decoding = self._pool.submit(self._decode_when_due, item)
            self._submitted.put(item)

    def take(self) -> list[ScoredMessage]:
        """What has been scored since the last call, in order; never waits.

        Raises:
            Exception: Whatever ended a thread of the stage.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            done = list(self._done)
            self._done.clear()
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
                message.partition == partition for message in self._done
            )

    def wait_for_scored(self, timeout_s: float) -> None:
        """Wait until `take` has something to give, or a thread has failed."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._done) or self._error is not None, timeout_s)

    def close(self) -> None:
        """End the threads; what is in flight is dropped. Safe to call twice."""
        with self._changed:
            self._ending.set()
            self._changed.notify_all()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._thread.join()

    def _decode_when_due(self, item: _InFlight) -> list[Decoded]:
        """Decode, but not far ahead of scoring: a batch message can hold a thousand images."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    (
                        self._decoded_images < self._max_decoded_images
                        and self._decoded_bytes < self._max_decoded_bytes
                    )
                    or item.number <= self._opening
                    or self._ending.is_set()
                )
            )
        assert item.message is not None
        started = self._clock.monotonic()
        rows = self._decode(item.message)
        self._observe("decode", self._clock.monotonic() - started)
        decoded_bytes = sum(_held_bytes(row) for row in rows)
        with self._lock:
            self._decoded_images += len(rows)
            self._images += len(rows) - 1
            self._decoded_bytes += decoded_bytes
            self._bytes += decoded_bytes - item.size_bytes
            item.message, item.size_bytes = None, decoded_bytes
        return rows

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                self._one_batch()
        except BaseException as error:  # noqa: BLE001  handed to the thread that calls take()
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _one_batch(self) -> None:
        """Wait for an image, gather its batch, score it, hand on the messages it completes."""
        waiting: list[_InFlight] = []
        images: list[tuple[_InFlight, DecodedImage]] = []
        first_at: float | None = None
        while not self._ending.is_set():
            timeout = _POLL_S
            if first_at is not None:
                timeout = first_at + self._linger_s - self._clock.monotonic()
            item = self._next(timeout)
            if item is None and waiting:
                break
            if item is None:
                continue
            first_at = self._clock.monotonic() if first_at is None else first_at
            self._open(item, images)
            waiting.append(item)
            if len(images) >= self._batch_size:
                break
        self._score_all(images)
        self._hand_on(waiting)
        if first_at is not None:
            self._observe("batch", self._clock.monotonic() - first_at)

    def _next(self, timeout_s: float) -> _InFlight | None:
        try:
            return self._submitted.get(block=timeout_s > 0, timeout=timeout_s)
        except queue.Empty:
            return None

    def _open(self, item: _InFlight, images: list[tuple[_InFlight, DecodedImage]]) -> None:
        with self._changed:
            # Whatever else waits, the message that scoring waits for may be decoded.
            self._opening = item.number
            self._changed.notify_all()
        rows = item.decoding.result()
        item.expected = len(rows)
        for row in rows:
            if isinstance(row, FailedImage):
                item.failed.append(row)
                item.records.append(self._fail(row))
            else:
                images.append((item, row))

    def _score_all(self, images: list[tuple[_InFlight, DecodedImage]]) -> None:
        for start in range(0, len(images), self._batch_size):
            batch = images[start : start + self._batch_size]
            started = self._clock.monotonic()
            records = self._score([image for _, image in batch])
            self._observe("score", self._clock.monotonic() - started)
            for (item, _), record in zip(batch, records, strict=True):
                item.records.append(record)

    def _hand_on(self, items: Sequence[_InFlight]) -> None:
        with self._changed:
            for item in items:
                item.records.sort(key=lambda record: record.origin.index)
                rows, failed = tuple(item.records), tuple(item.failed)
                scored = ScoredMessage(item.partition, item.epoch, item.end, rows, failed)
                self._done.append(scored)
                self._in_flight[item.partition] -= 1
                self._images -= item.expected
                self._decoded_images -= item.expected
                self._decoded_bytes -= item.size_bytes
                self._bytes -= item.size_bytes
            self._changed.notify_all()


def _held_bytes(row: Decoded) -> int:
    """What a decoded row keeps in memory, about."""
    if isinstance(row, FailedImage):
        return len(row.payload or b"")
    return row.pixels.nbytes
