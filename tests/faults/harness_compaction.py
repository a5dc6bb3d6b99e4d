"""Compaction that goes on all the time, as if every day were over at once."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from nap_stream.clock import SystemClock
from nap_stream.scored_log.compact import compact
from nap_stream.scored_log.stores import store_at
from tests.support.waiting import PATIENCE_S

PAUSE_S = 0.3


class Compaction:
    """Merges what it finds, again and again, in a thread of its own, until it is stopped.

    ``segments`` is how many it has merged.

    Args:
        root: Of the log. It need not be there yet.
    """

    def __init__(self, root: Path | str) -> None:
        self.segments = 0
        self._root = root
        self._ending = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="compaction", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def check(self) -> None:
        """Raise what ended it."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End it, after a last time."""
        self._ending.set()
        self._thread.join(PATIENCE_S)
        self.check()

    def _run(self) -> None:
        try:
            while not self._ending.wait(PAUSE_S):
                self._once()
            self._once()
        except BaseException as error:  # noqa: BLE001  raised again by `check`
            self._error = error

    def _once(self) -> None:
        if not store_at(self._root).names(""):
            return
        tomorrow = datetime.now(UTC).date() + timedelta(days=1)
        report = compact(store_at(self._root), clock=SystemClock(), today=tomorrow)
        assert not report.refusals, report.refusals
        self.segments += report.segments
