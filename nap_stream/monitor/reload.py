"""Other settings, calibration or model for a monitor that runs: asked for, checked, told.

Whoever asks leaves a request with the coordinator, whose driver looks there, and waits for the
answer there. Knows no Ray: `nap_stream.monitor.session` finds the coordinator.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

import structlog

from nap_stream.clock import Clock, Deadline
from nap_stream.errors import NapStreamError, ReloadError
from nap_stream.monitor.setup import (
    Change,
    Setup,
    change_words,
    changes,
    file_digests,
    of_model,
    other_files,
    require_same_monitor,
)
from nap_stream.monitor.status import CoordinatorStatus
from nap_stream.settings.schema import Settings
from nap_stream.text import bounded, described, one_line

RETRY_S = 5.0
"""How long what is away is left alone on the way back to what was in force."""
KEPT = 32
"""Answers, for those who have not heard them yet."""
POLL_S = 0.5
SEEN_WITHIN_S = 3.0
"""So long a monitor may be away when it is first looked for: it may just be replaced."""
BACK_WITHIN_S = 30.0
"""And so long later, before it is said to have ended."""


@dataclass(frozen=True, slots=True)
class ReloadRequest:
    """That somebody wants the settings read again: an id of its own, and who."""

    id: str
    by: str


class Stage(StrEnum):
    """How far a reload is."""

    ASKED = "asked"
    CHECKING = "checking"
    REPLACING = "replacing"
    LOADING = "loading"
    IN_FORCE = "in force"
    UNCHANGED = "unchanged"
    REFUSED = "refused"
    OVERTAKEN = "overtaken"
    """A reload that somebody asked for later took the place of the run that began."""


OVER = frozenset({Stage.IN_FORCE, Stage.UNCHANGED, Stage.REFUSED, Stage.OVERTAKEN})


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request. ``source`` is the configuration that the driver reads.

    ``since_ms`` is when what is in force began, milliseconds since the epoch. ``error`` has the
    arguments of a `NapStreamError`.
    """

    stage: Stage
    source: str
    changes: tuple[Change, ...] = ()
    since_ms: int | None = None
    error: tuple[str, str, str] = ("", "", "")


class Mailbox:
    """Where requests wait for the driver, and answers for those who asked. For one thread."""

    def __init__(self) -> None:
        self._asked: dict[str, ReloadRequest] = {}
        self._answers: Mapping[str, Answer] = {}

    def ask(self, request: ReloadRequest) -> Answer | None:
        """Leave a request, unless it was; give the answer so far, None before the driver looks."""
        answer = self._answers.get(request.id)
        if answer is None:
            self._asked[request.id] = request
        return answer

    def exchange(self, answers: Mapping[str, Answer]) -> tuple[ReloadRequest, ...]:
        """Take the driver's answers, and give it what it has not answered."""
        self._answers = answers
        for known in self._asked.keys() & answers.keys():
            del self._asked[known]
        return tuple(self._asked.values())


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
        self._next: Setup | None = None
        self._changes: tuple[Change, ...] = ()
        self._before: Setup | None = None
        """What was in force last, while another run begins."""
        self._returns, self._retry_s = False, retry_s
        """Whether what was in force last begins again."""
        self._since_ms: int | None = None

    @property
    def is_loading(self) -> bool:
        """Whether a run by new settings begins, whose workers have not all reported."""
        return self._before is not None

    def follow(self, cluster: Counterpart) -> None:
        """Take note of the cluster of a run that begins."""
        self._cluster, self._since_ms = cluster, None

    def look(self) -> str | None:
        """Look for requests, and for what became of the check. Says who a run is to end for."""
        assert self._cluster is not None
        for request in self._cluster.exchange(dict(self._answers)):
            if request.id not in self._answers:
                self._take(replace(request, by=bounded(one_line(request.by))))
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
        elif self._check is None and self._waiting:
            self._begin_check()
        return None

    def note(self, status: CoordinatorStatus) -> None:
        """Take note of how the run is: what it is by is in force once its workers report."""
        if self._since_ms is None:
            self._since_ms = status.started_ms
        if len(status.workers) < status.workers_expected:
            return
        self._returns = False
        if self._before is None:
            return
        self._before = None
        structlog.get_logger().info("reload_in_force", changes=change_words(self._changes))
        in_force = Answer(Stage.IN_FORCE, self._source, self._changes, self._since_ms)
        self._answer(self._beginning, in_force)

    def take(self) -> Setup:
        """What the next run is by."""
        assert self._next is not None
        self._before = self._before or self._running
        self._running, self._next = self._next, None
        self._answer(self._beginning, Answer(Stage.LOADING, self._source, self._changes))
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

    def _take(self, request: ReloadRequest) -> None:
        structlog.get_logger().info("reload_asked", by=request.by)
        self._waiting.append(request)
        self._answer([request], Answer(Stage.ASKED, self._source))

    def _begin_check(self) -> None:
        self._checking, self._waiting = self._waiting, []
        self._answer(self._checking, Answer(Stage.CHECKING, self._source))
        check = self._check = Future[Setup]()

        def work() -> None:
            try:
                check.set_result(self._checked())
            except BaseException as error:  # noqa: BLE001  whatever it is, the run goes on
                check.set_exception(error)

        # A daemon: nobody waits for it at the end of a run.
        threading.Thread(target=work, name="reload", daemon=True).start()

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
            self._answer(self._beginning, Answer(Stage.REPLACING, self._source, changed))
        elif self._before is not None:
            # What they want begins already.
            self._answer(self._checking, Answer(Stage.LOADING, self._source, self._changes))
            self._beginning = [*self._beginning, *self._checking]
        else:
            log.info("reload_unchanged", by=by)
            unchanged = Answer(Stage.UNCHANGED, self._source, since_ms=self._since_ms)
            self._answer(self._checking, unchanged)

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
        while len(self._answers) > KEPT:
            del self._answers[next(iter(self._answers))]


def await_answer(
    poll: Callable[[], Answer | None],
    clock: Clock,
    timeout_s: float,
    on_answer: Callable[[Answer], None],
) -> Answer:
    """Wait until a request is answered for good; ``on_answer`` is shown each word of it.

    ``poll`` leaves the request and gives the answer so far; None for none, also where the
    coordinator is silent. It raises `LookupError` where the monitor is not there.

    Raises:
        ReloadError: It was refused, or the monitor ended, or nobody answered in time.
        LookupError: The monitor was never there.
    """
    deadline, told, gone_s, seen = Deadline(clock, timeout_s), None, None, False
    while True:
        try:
            answer, gone_s, seen = poll(), None, True
        except LookupError:
            answer, now_s = None, clock.monotonic()
            gone_s = now_s if gone_s is None else gone_s
            if now_s - gone_s >= (BACK_WITHIN_S if seen else SEEN_WITHIN_S):
                if not seen:
                    raise
                raise ReloadError(
                    "the monitor ended before it answered", "", "Its driver's log says why"
                ) from None
        if answer is not None and answer.stage is not told:
            told = answer.stage
            on_answer(answer)
            if told is Stage.OVERTAKEN:
                raise ReloadError(*answer.error)
            if told is Stage.REFUSED:
                problem, where, action = answer.error
                raise ReloadError(f"the monitor goes on as before: {problem}", where, action)
            if told in OVER:
                return answer
        if deadline.expired():
            raise ReloadError(
                f"no answer in {timeout_s:g} s, the last word was: {told or 'none'}",
                "",
                "It may still be done: the driver's log and `nap-stream history` tell",
            )
        clock.sleep(POLL_S)


def _names(requests: Sequence[ReloadRequest]) -> str:
    return ", ".join(dict.fromkeys(request.by for request in requests))
