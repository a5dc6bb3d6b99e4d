"""Signs where the log's chains end, at times, beside the monitor's own work.

Nothing waits for it: each checkpoint is made in a thread of its own, and a failure is told and
tried again when the next one is due. The checkpoints of `nap_stream.monitor.alerts` are others.
"""

import threading

import structlog

from nap_stream.clock import Clock, Deadline, SystemClock
from nap_stream.errors import NapStreamError
from nap_stream.kafka.client import send_once
from nap_stream.metrics import Metrics
from nap_stream.scored_log.proof.checkpoint import (
    Signed,
    changed_words,
    last_signed,
    stamp_path,
    take_checkpoint,
    write_checkpoint,
)
from nap_stream.scored_log.proof.note import KEY, read_signer
from nap_stream.scored_log.proof.timestamps import request_timestamp
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.settings.log import SignedCheckpointSettings
from nap_stream.settings.schema import Settings

SEND_TIMEOUT_S = 30.0
LAST_WAIT_S = 5.0
"""So long the end of a run waits for the last checkpoint at most: a broker may be away."""


class LogSigner:
    """Writes signed checkpoints of a log; has them sent and stamped, where the settings say so.

    The first is made with the first `tick`. The key is read for each, so that it can be replaced.
    It remembers what was signed, from the log's own checkpoints at first: a chain that has it no
    longer is not signed anew, but named as changed, in each checkpoint from then on.
    """

    def __init__(
        self,
        store: SegmentStore,
        settings: Settings,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._store, self._settings, self._kafka = store, settings.log.checkpoints, settings.kafka
        self._metrics, self._clock = metrics, clock
        self._due_s = clock.monotonic()
        self._running: list[threading.Thread] = []
        # One checkpoint at a time is put into the log. It is sent and stamped without the lock: the
        # last one of a run does not wait for a broker that is away.
        self._lock = threading.Lock()
        self._signed: Signed | None = None
        self.failure: str | None = None
        """Why the newest checkpoint was not made, or not sent; None where it was."""

    def tick(self) -> None:
        """Begin to make a checkpoint, where one is due; return at once."""
        if self._settings is None or self._clock.monotonic() < self._due_s:
            return
        self._due_s = self._clock.monotonic() + self._settings.every_s
        self._running = [thread for thread in self._running if thread.is_alive()]
        if self._running:
            self._fail("the one before is still being made")
        else:
            self.begin()

    def begin(self) -> None:
        """Begin to make a checkpoint, if the settings want any; return at once."""
        if self._settings is not None:
            signing = (self._settings,)
            thread = threading.Thread(target=self._sign, args=signing, name="signer", daemon=True)
            self._running.append(thread)
            thread.start()

    def finish(self, timeout_s: float) -> None:
        """Wait for what was begun, for so long at most."""
        deadline = Deadline(SystemClock(), timeout_s)
        for thread in self._running:
            thread.join(deadline.remaining_s())
            if thread.is_alive():
                self._fail("it was not done when the run ended")

    def _sign(self, settings: SignedCheckpointSettings) -> None:
        failures: list[str] = []
        try:
            with self._lock:
                path, note = self._make(settings, failures)
            for step in (self._send, self._stamp):
                try:
                    step(settings, path, note)
                except NapStreamError as error:
                    failures.append(str(error))
        except NapStreamError as error:
            failures.append(str(error))
        except Exception as error:  # noqa: BLE001 - a thread has nobody else to tell
            structlog.get_logger().exception("signed_checkpoint_failed")
            failures.append(repr(error))
        if failures:
            self._fail("; ".join(failures))
        else:
            self.failure = None
            self._metrics.signed_checkpoint_failing.set(0)

    def _make(self, settings: SignedCheckpointSettings, failures: list[str]) -> tuple[str, bytes]:
        """Put a checkpoint into the log; give its path, and the note. Under the lock."""
        signer = read_signer(settings.key_file, KEY)
        before = self._signed or last_signed(self._store, signer.public)
        if before.last is not None and before.is_gone(self._store):
            failures.append(f"{before.last[0]} is gone or another one: it was signed here before")
        checkpoint = take_checkpoint(self._store, self._clock.now_ms(), before)
        self._signed, note = write_checkpoint(self._store, checkpoint, signer, before)
        path = "" if self._signed.last is None else self._signed.last[0]
        self._metrics.last_signed_checkpoint.set(checkpoint.time_ms / 1000)
        structlog.get_logger().info(
            "checkpoint_signed", file=path, chains=len(checkpoint.heads), key=signer.public.label
        )
        failures += [f"{each} cannot be read, and is not in it" for each in checkpoint.unread]
        failures += [f"{each.partition}: {changed_words(each)}" for each in checkpoint.changed]
        return path, note

    def _send(self, settings: SignedCheckpointSettings, _path: str, note: bytes) -> None:
        if settings.topic is not None:
            send_once(self._kafka, settings.topic, note, SEND_TIMEOUT_S)

    def _stamp(self, settings: SignedCheckpointSettings, path: str, note: bytes) -> None:
        if settings.timestamp_url is not None:
            token = request_timestamp(settings.timestamp_url, note)
            self._store.create(stamp_path(path), token)

    def _fail(self, problem: str) -> None:
        self._metrics.signed_checkpoint_failures.inc()
        self._metrics.signed_checkpoint_failing.set(1)
        structlog.get_logger().error("signed_checkpoint_failed", cause=problem)
        self.failure = problem
