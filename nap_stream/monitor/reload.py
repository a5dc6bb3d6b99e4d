"""Other settings, calibration or model for a monitor that runs: asked for, checked, told.

Knows no Ray: `nap_stream.monitor.cluster` has the coordinator where requests wait.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol

import structlog

from nap_stream.clock import Clock, Deadline
from nap_stream.errors import NapStreamError, ReloadError
from nap_stream.monitor.mailbox import KEPT, OVER, Answer, ReloadRequest, Stage
from nap_stream.monitor.setup import (
    Change,
    Setup,
    begins_anew,
    change_words,
    changes,
    file_digests,
    of_model,
    other_files,
    require_same_monitor,
)
from nap_stream.monitor.status import CoordinatorStatus
from nap_stream.settings.schema import Settings
from nap_stream.text import described, json_text, one_line

CHECK_MARGIN_S = 120.0
"""Of a check, for all but the model, which has driver.start_timeout_s."""
RETRY_S = 5.0
"""How long what is away is left alone on the way back to what was in force."""


class Counterpart(Protocol):
    """The cluster of the run that goes on."""

    def exchange(self, answers: Mapping[str, Answer]) -> Sequence[ReloadRequest]:
        """Take answers to those who asked, give new requests; returns at once."""

    def require_startable(self, setup: Setup, *, with_model: bool) -> None:
        """Raise where a run by this could not start, as far as can be told. Takes its time.

        ``with_model`` is whether the model is to be loaded for it.
        """

    def reload_refused(self, by: str, error: BaseException) -> None:
        """Have it written that a reload was refused; returns at once."""


class Reloader:
    """Reads the settings again when asked, and says when a run by them is to begin.

    What is asked while it checks waits for another check: the file may have been written since. A
    run by new settings that ends badly before all its workers have reported gives way to the last
    one that was in force, where that can still be had. For one thread; it checks in another.

    Args:
        setup: What the first run is by.
        reread: Reads the settings again.
        preflight: Checks them as for a start.
        fingerprint: Reads that of the calibration that settings name.
        source: Where the settings are read from, for people.
        hangup: Is set by a signal that asks, too.
        retry_s: How long what is away is left alone on the way back.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        reread: Callable[[], Settings],
        preflight: Callable[[Settings], Setup],
        fingerprint: Callable[[Settings], str],
        source: str,
        hangup: threading.Event,
        clock: Clock,
        retry_s: float = RETRY_S,
    ) -> None:
        self._running, self._source, self._hangup = setup, source, hangup
        self._reread, self._preflight, self._fingerprint = reread, preflight, fingerprint
        self._cluster: Counterpart | None = None
        self._answers: dict[str, Answer] = {}
        self._signals = 0
        # Those who wait for a check, for the one that goes on, and for a run that begins.
        self._waiting: list[ReloadRequest] = []
        self._checking: list[ReloadRequest] = []
        self._beginning: list[ReloadRequest] = []
        self._check: Future[Setup] | None = None
        self._clock, self._check_by = clock, Deadline(clock, 0)
        self._next: Setup | None = None
        self._changes: tuple[Change, ...] = ()
        self._warnings: tuple[str, ...] = ()
        self._before: Setup | None = None
        """What was in force last, while another run begins."""
        self._returns, self._retry_s = False, retry_s
        """Whether what was in force last begins again."""
        self._since_ms: int | None = None
        self._firing = 0
        self.metrics_url: str | None = None
        """Where the last coordinator served metrics, as far as it was heard of."""

    @property
    def is_loading(self) -> bool:
        """Whether a run by new settings begins, whose workers have not all reported."""
        return self._before is not None

    def follow(self, cluster: Counterpart) -> None:
        """Take note of the cluster of a run that begins."""
        self._cluster, self._since_ms = cluster, None

    def look(self) -> str | None:
        """Look for requests, and for what became of the check. Says who a run is to end for."""
        try:
            self._take_asked()
        except Exception as error:  # noqa: BLE001  whatever somebody leaves there, the run goes on
            structlog.get_logger().error("reload_requests_not_read", cause=described(error))
        if self._hangup.is_set():
            self._hangup.clear()
            self._signals += 1
            self._take(ReloadRequest(f"signal-{self._signals}", "a signal"))
        if self._next is not None:
            # At the look after the check's: so those who asked have been told.
            return _names(self._beginning)
        if self._check is not None and self._check.done():
            self._conclude(self._check)
            self._check = None
        elif self._check is not None and self._check_by.expired():
            self._check = None
            self._abandon()
        elif self._check is None and self._waiting:
            self._begin_check()
        return None

    def note(self, status: CoordinatorStatus) -> None:
        """Take note of how the run is: what it is by is in force once its workers report."""
        if self._since_ms is None:
            self._since_ms = status.started_ms
        self._firing = status.alerts_firing
        self.metrics_url = status.metrics_url or self.metrics_url
        if len(status.workers) < status.workers_expected:
            return
        self._returns = False
        if self._before is None:
            return
        self._before = None
        structlog.get_logger().info("reload_in_force", changes=change_words(self._changes))
        self._answer(self._beginning, self._on_its_way(Stage.IN_FORCE, self._since_ms))

    def take(self) -> Setup:
        """What the next run is by."""
        assert self._next is not None
        self._before = self._before or self._running
        self._running, self._next = self._next, None
        self._answer(self._beginning, self._on_its_way(Stage.LOADING))
        return self._running

    def back(self, error: Exception, stop: threading.Event) -> Setup | None:
        """What follows a run that failed; None for nothing, so that the monitor ends.

        That is what was in force, where the run did not get so far, or what somebody has asked for
        meanwhile. Going back, what is away is waited for until ``stop``.
        """
        log, before = structlog.get_logger(), self._before
        if before is None:
            is_away = isinstance(error, NapStreamError) and error.retriable
            if not (self._returns and is_away):
                return None
            log.error("run_of_before_not_begun", cause=described(error), again_in_s=self._retry_s)
            return None if stop.wait(self._retry_s) else self._running
        log.error("reload_failed", cause=described(error))
        if self._next is not None:
            return self.take()
        self._before = None
        if not self._still_there(before, stop):
            return None
        told = (f"a run by the new settings failed: {described(error)}", "", "")
        if isinstance(error, NapStreamError):
            problem = f"a run by the new settings failed: {error.problem}"
            told = (problem, error.where, error.action)
        self._answer(self._beginning, Answer(Stage.REFUSED, self._source, error=told))
        self._running, self._returns = before, True
        return before

    def _still_there(self, before: Setup, stop: threading.Event) -> bool:
        """Whether what was in force can be had. All but the calibration is in memory, or a file."""
        log = structlog.get_logger()
        while True:
            try:
                now = self._fingerprint(before.settings)
                break
            except NapStreamError as error:
                cause = error
            log.error("calibration_of_before_not_read", cause=str(cause))
            if not cause.retriable or stop.wait(self._retry_s):
                return False
        if now != before.calibration.fingerprint:
            log.error("calibration_of_before_not_there", now=now)
            return False
        if others := other_files(before.files, file_digests(before.settings)):
            log.error("files_of_before_were_changed", files=others)
        return True

    def _take_asked(self) -> None:
        assert self._cluster is not None
        for request in self._cluster.exchange(dict(self._answers)):
            request.require_sound()
            if request.id not in self._answers:
                # In quotes, which it cannot end: it is told beside the driver's own words.
                self._take(replace(request, by=json_text(one_line(request.by))))

    def _take(self, request: ReloadRequest) -> None:
        if len(self._waiting) >= KEPT:
            full = Answer(Stage.REFUSED, self._source, error=(f"{KEPT} requests wait", "", ""))
            self._answer([request], full)
            return
        structlog.get_logger().info("reload_asked", by=request.by)
        self._waiting.append(request)
        self._answer([request], Answer(Stage.ASKED, self._source))

    def _begin_check(self) -> None:
        self._checking, self._waiting = self._waiting, []
        self._answer(self._checking, Answer(Stage.CHECKING, self._source))
        check = self._check = Future[Setup]()
        self._check_by = Deadline(self._clock, self._check_within_s())

        def work() -> None:
            try:
                check.set_result(self._checked())
            except BaseException as error:  # noqa: BLE001  whatever it is, the run goes on
                check.set_exception(error)

        # A daemon: nobody waits for it at the end of a run.
        threading.Thread(target=work, name="reload", daemon=True).start()

    def _check_within_s(self) -> float:
        return self._running.settings.driver.start_timeout_s + CHECK_MARGIN_S

    def _abandon(self) -> None:
        """Refuse by a check that hangs, and leave its thread to itself: others can be made."""
        problem = (
            f"the check did not end within {self._check_within_s():g} s, and is left to itself"
        )
        action = "It hangs on a model's code, a file or a service: the driver's log may say which"
        self._refuse(ReloadError(problem, action=action), _names(self._checking))

    def _checked(self) -> Setup:
        """The settings as they are now, if a run by them could take the place of this one."""
        assert self._cluster is not None
        settings = self._reread()
        require_same_monitor(self._running.settings, settings, self._source)
        found = self._preflight(settings)
        if changed := changes(self._running, found):
            self._cluster.require_startable(found, with_model=of_model(changed))
        return found

    def _conclude(self, check: Future[Setup]) -> None:
        log, by = structlog.get_logger(), _names(self._checking)
        if (error := check.exception()) is not None:
            self._refuse(error, by)
            return
        found = check.result()
        changed = changes(self._running, found)
        if changed:
            log.info("reload_begins", by=by, changes=change_words(changed))
            other = ("another reload took the place of this one", "", "See `nap-stream history`")
            self._answer(self._beginning, Answer(Stage.OVERTAKEN, self._source, error=other))
            self._next, self._changes, self._beginning = found, changed, self._checking
            self._warnings = self._ended_alerts(changed)
            self._answer(self._beginning, self._on_its_way(Stage.REPLACING))
        elif self._before is not None:
            # What they want begins already.
            self._answer(self._checking, self._on_its_way(Stage.LOADING))
            self._beginning = [*self._beginning, *self._checking]
        else:
            log.info("reload_unchanged", by=by)
            unchanged = Answer(Stage.UNCHANGED, self._source, since_ms=self._since_ms)
            self._answer(self._checking, unchanged)

    def _on_its_way(self, stage: Stage, since_ms: int | None = None) -> Answer:
        """What those are told whose reload is taken: who misses one answer has all in the next."""
        return Answer(stage, self._source, self._changes, since_ms, warnings=self._warnings)

    def _ended_alerts(self, changed: Sequence[Change]) -> tuple[str, ...]:
        if not self._firing or not begins_anew(changed):
            return ()
        problem = f"{self._firing} alerts fire, and the window begins anew: they end without "
        warning = f"{problem}`resolved`, and what still fires is sent as a new alert"
        structlog.get_logger().warning("reload_ends_alerts", cause=warning)
        return (warning,)

    def _refuse(self, error: BaseException, by: str) -> None:
        log = structlog.get_logger()
        if isinstance(error, NapStreamError):
            told = (error.problem, error.where, error.action)
            log.error("reload_refused", by=by, cause=str(error))
        else:
            told = (f"the check failed: {type(error).__name__}", "", "The driver's log says more")
            log.error("reload_refused", by=by, exc_info=error)
        self._answer(self._checking, Answer(Stage.REFUSED, self._source, error=told))
        assert self._cluster is not None
        self._cluster.reload_refused(by, error)

    def _answer(self, requests: Sequence[ReloadRequest], answer: Answer) -> None:
        """Have requests answered; an answer that was the last word stays that."""
        for request in requests:
            known = self._answers.get(request.id)
            if known is None or known.stage not in OVER:
                self._answers[request.id] = answer
        over = [name for name, each in self._answers.items() if each.stage in OVER]
        for name in over[: max(0, len(over) - KEPT)]:
            del self._answers[name]


def _names(requests: Sequence[ReloadRequest]) -> str:
    return ", ".join(dict.fromkeys(request.by for request in requests))
