"""Other settings, calibration or model for a monitor that runs: asked for, checked, told.

Whoever asks leaves a request with the coordinator, whose driver looks there, and waits for the
answer there. Knows no Ray: `nap_stream.monitor.session` finds the coordinator.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import structlog

from nap_stream.clock import Clock, Deadline
from nap_stream.drift.records import CalibrationFacts
from nap_stream.errors import ConfigError, NapStreamError, ReloadError
from nap_stream.monitor.status import CoordinatorStatus
from nap_stream.records import PartitionOffsets
from nap_stream.scored_log.history import differences
from nap_stream.settings.load import masked_tree
from nap_stream.settings.schema import Settings
from nap_stream.settings.values import Section
from nap_stream.text import bounded, one_line

FIXED = {
    "kafka.bootstrap_servers": "the log has the offsets of one Kafka cluster",
    "kafka.topic": "it names the stream in alerts, checkpoints and metrics",
    "kafka.topics": "what is judged as one stream stays one",
    "kafka.topic_pattern": "what is judged as one stream stays one",
    "kafka.group_id": "by it the monitor is found, and others are kept from what it has",
    "log.root": "a chain goes on where it began",
    "alerts.monitor": "alerts that fire are ended under the name that they have",
    "alerts.topic": "alerts that fire are ended where they were told",
    "metrics.host": "whoever watches would lose sight of it",
    "metrics.port": "whoever watches would lose sight of it",
    "metrics.discovery_file": "whoever watches would lose sight of it",
}
"""What makes a monitor the one that it is, and why: another takes a stop and a start."""
MAX_FILE_BYTES = 2**20
"""Of a file that settings name, for its content to be compared. Fingerprints cover larger ones."""
KEPT = 32
"""Answers, for those who have not heard them yet."""
POLL_S = 0.5
SEEN_WITHIN_S = 3.0
"""So long a monitor may be away when it is first looked for: it may just be replaced."""
BACK_WITHIN_S = 30.0
"""And so long later, before it is said to have ended."""
NOT_SHOWN = "(not shown)"

Change = tuple[str, str, str]
"""Its name, and the value before and after, as people read them."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run is by, once that is checked. ``files`` are digests of small files, by key."""

    settings: Settings
    calibration: CalibrationFacts
    offsets: Sequence[PartitionOffsets]
    files: Mapping[str, str]


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


OVER = frozenset({Stage.IN_FORCE, Stage.UNCHANGED, Stage.REFUSED})


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

    def require_startable(self, setup: Setup) -> None:
        """Raise where a run by this could not start, as far as can be told. Takes its time."""

    def reload_refused(self, by: str, error: Exception) -> None:
        """Have it written that a reload was refused; returns at once."""


class Reloader:
    """Reads the settings again when asked, and says when a run by them is to begin.

    What is asked while it checks waits for another check: the file may have been written since. A
    run by new settings that ends badly before all its workers have reported gives way to the one of
    before, where its calibration is still there. For one thread; it checks in another.

    Args:
        setup: What the first run is by.
        reread: Reads the settings again.
        preflight: Checks them as for a start.
        source: Where the settings are read from, for people.
        hangup: Is set by a signal that asks, too.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        reread: Callable[[], Settings],
        preflight: Callable[[Settings], Setup],
        source: str,
        hangup: threading.Event,
    ) -> None:
        self._running, self._source, self._hangup = setup, source, hangup
        self._reread, self._preflight = reread, preflight
        self._cluster: Counterpart | None = None
        self._waiting: dict[str, ReloadRequest] = {}
        self._served: tuple[ReloadRequest, ...] = ()
        self._answers: dict[str, Answer] = {}
        self._check: Future[Setup] | None = None
        self._next: Setup | None = None
        self._before: Setup | None = None
        self._changes: tuple[Change, ...] = ()
        self._since_ms: int | None = None
        self._signals = 0

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
            return ", ".join(dict.fromkeys(request.by for request in self._served))
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
        if self._before is None or len(status.workers) < status.workers_expected:
            return
        self._before = None
        self._answer(Stage.IN_FORCE, changes=self._changes, since_ms=self._since_ms)
        structlog.get_logger().info("reload_in_force", changes=_told(self._changes))

    def take(self) -> Setup:
        """What the next run is by."""
        assert self._next is not None
        self._before, self._running, self._next = self._running, self._next, None
        self._answer(Stage.LOADING, changes=self._changes)
        return self._running

    def back(self, error: NapStreamError) -> Setup | None:
        """What to go back to from a run that failed; None where that was in force, or cannot be."""
        before, self._before = self._before, None
        if before is None:
            return None
        structlog.get_logger().error("reload_failed", cause=str(error))
        try:
            found = self._preflight(before.settings)
        except NapStreamError as cause:
            structlog.get_logger().error("settings_of_before_not_usable", cause=str(cause))
            return None
        if found.calibration.fingerprint != before.calibration.fingerprint:
            structlog.get_logger().error("calibration_of_before_not_there")
            return None
        problem = f"a run by the new settings failed: {error.problem}"
        self._answer(Stage.REFUSED, error=(problem, error.where, error.action))
        self._running = found
        return found

    def _take(self, request: ReloadRequest) -> None:
        self._waiting[request.id] = request
        self._put(request.id, Answer(Stage.ASKED, self._source))
        structlog.get_logger().info("reload_asked", by=request.by)

    def _begin_check(self) -> None:
        self._served, self._waiting = tuple(self._waiting.values()), {}
        self._answer(Stage.CHECKING)
        check = self._check = Future()

        def work() -> None:
            try:
                check.set_result(self._checked())
            except BaseException as error:  # noqa: BLE001  whatever it is, the run goes on
                check.set_exception(error)

        # Nobody waits for it at the end of a run.
        threading.Thread(target=work, name="reload", daemon=True).start()

    def _checked(self) -> Setup:
        """The settings as they are now, if a run by them could take the place of this one."""
        settings = self._reread()
        require_same_monitor(self._running.settings, settings, self._source)
        found = self._preflight(settings)
        assert self._cluster is not None
        self._cluster.require_startable(found)
        return found

    def _conclude(self, check: "Future[Setup]") -> None:
        log = structlog.get_logger()
        by = ", ".join(request.by for request in self._served)
        if (error := check.exception()) is not None:
            self._refuse(error, by)
            return
        found = check.result()
        self._changes = changes(self._running, found)
        if not self._changes:
            log.info("reload_unchanged", by=by)
            self._answer(Stage.UNCHANGED, since_ms=self._since_ms)
            return
        self._next = found
        log.info("reload_begins", by=by, changes=_told(self._changes))
        self._answer(Stage.REPLACING, changes=self._changes)

    def _refuse(self, error: BaseException, by: str) -> None:
        log = structlog.get_logger()
        if isinstance(error, NapStreamError):
            told = (error.problem, error.where, error.action)
            log.error("reload_refused", by=by, cause=str(error))
        else:
            told = (f"the check failed: {type(error).__name__}", "", "The driver's log says more")
            log.error("reload_refused", by=by, exc_info=error)
        self._answer(Stage.REFUSED, error=told)
        assert self._cluster is not None
        if isinstance(error, Exception):
            self._cluster.reload_refused(by, error)

    def _answer(self, stage: Stage, **more: Any) -> None:
        """Have those who are served told how far it is."""
        for request in self._served:
            self._put(request.id, Answer(stage, self._source, **more))

    def _put(self, name: str, answer: Answer) -> None:
        self._answers[name] = answer
        while len(self._answers) > KEPT:
            del self._answers[next(iter(self._answers))]


def require_same_monitor(old: Settings, new: Settings, source: str) -> None:
    """Refuse settings of another monitor.

    Raises:
        ConfigError: Naming what differs.
    """
    found = differences({"settings": masked_tree(old)}, {"settings": masked_tree(new)})
    told = [
        f"{name} is {now}, and {was} in the run: {FIXED[name]}"
        for name, was, now in found
        if name in FIXED
    ]
    if told:
        lines = "\n  ".join(("what makes it this monitor was changed", *told))
        raise ConfigError(
            told[0] if len(told) == 1 else lines,
            source,
            "Put it back; or stop the run, and start it anew by this file",
        )


def changes(old: Setup, new: Setup) -> tuple[Change, ...]:
    """What is another by a new setup; of what is secret, only that it is."""
    seen = tuple(differences(_shown(old), _shown(new)))
    names = {name for name, _, _ in seen}
    unseen = [
        key
        for key in _differing(old.settings, new.settings)
        if not any(name == key or name.startswith(f"{key}.") for name in names)
    ]
    files = [
        f"{key}, the file's content"
        for key in old.files.keys() & new.files.keys()
        if old.files[key] != new.files[key] and key not in names
    ]
    return (*seen, *((name, NOT_SHOWN, NOT_SHOWN) for name in (*unseen, *sorted(files))))


def file_digests(settings: Section) -> dict[str, str]:
    """SHA-256, in hexadecimal, of the small files that settings name, by key.

    Those that cannot be read are left out, and so is what the program itself writes.
    """
    found = {}
    for key, path in _paths(settings, ""):
        try:
            if path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
                found[key] = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:
            continue
    found.pop("metrics.discovery_file", None)
    return found


def await_answer(
    poll: Callable[[], Answer | None],
    clock: Clock,
    timeout_s: float,
    on_stage: Callable[[Stage], None],
) -> Answer:
    """Wait until a request is answered for good.

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
            if told is Stage.REFUSED:
                problem, where, action = answer.error
                raise ReloadError(f"the monitor goes on as before: {problem}", where, action)
            if told in OVER:
                return answer
            on_stage(told)
        if deadline.expired():
            raise ReloadError(
                f"no answer in {timeout_s:g} s, the last word was: {told or 'none'}",
                "",
                "It may still be done: the driver's log and `nap-stream history` tell",
            )
        clock.sleep(POLL_S)


def _shown(setup: Setup) -> dict[str, Any]:
    return {
        "calibration_fingerprint": setup.calibration.fingerprint,
        "model_fingerprint": setup.calibration.model_fingerprint,
        "settings": masked_tree(setup.settings),
    }


def _told(changed: Sequence[Change]) -> list[str]:
    return [f"{name}: {was} → {now}" for name, was, now in changed]


def _differing(old: Section, new: Section, above: str = "") -> Iterator[str]:
    """The keys of values that differ, secrets too."""
    for name in type(old).model_fields:
        was, now = getattr(old, name), getattr(new, name)
        if was == now:
            continue
        if isinstance(was, Section) and type(was) is type(now):
            yield from _differing(was, now, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def _paths(value: Any, key: str) -> Iterator[tuple[str, Path]]:
    """The paths within settings, by key."""
    if isinstance(value, Path):
        yield key, value
    elif isinstance(value, Section):
        for name in type(value).model_fields:
            yield from _paths(getattr(value, name), f"{key}.{name}".removeprefix("."))
    elif isinstance(value, tuple | list):
        for number, each in enumerate(value):
            yield from _paths(each, f"{key}.{number}")
