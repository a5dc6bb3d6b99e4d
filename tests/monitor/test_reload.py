"""A reload that is asked for: checked beside the run, told to those who asked, taken or not."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nap_stream.clock import ManualClock
from nap_stream.core.alert_state import AlertState
from nap_stream.errors import (
    BrokerUnavailableError,
    FingerprintMismatchError,
    ScoredLogError,
    WorkerGaveUpError,
)
from nap_stream.monitor.mailbox import KEPT, Answer, Mailbox, ReloadRequest, Stage
from nap_stream.monitor.reload import CHECK_MARGIN_S, Reloader
from nap_stream.monitor.setup import Setup, file_digests
from nap_stream.monitor.status import CoordinatorStatus
from nap_stream.settings.schema import Settings
from tests.monitor.test_driver import CALM, report, status
from tests.support.summaries import FACTS, settings
from tests.support.waiting import PATIENCE_S, wait_until


def defect(_setup: Setup) -> None:
    raise ZeroDivisionError


ANN, BOB = ReloadRequest("1", "ann@a"), ReloadRequest("2", "bob@b")
OLD, NEW = settings(), settings(drift={"window_records": 50})
GONE_WRONG = WorkerGaveUpError("the worker failed 21 times in a row", "worker-0", "See its log")


@dataclass
class FakeCluster:
    """Has a coordinator's mailbox, and refuses what ``refuse`` does."""

    refuse: Callable[[Setup], None] = lambda _setup: None
    mailbox: Mailbox = field(default_factory=Mailbox)
    refusals: list[tuple[str, BaseException]] = field(default_factory=list)
    with_model: bool | None = None

    def exchange(self, answers: Mapping[str, Answer]) -> Sequence[ReloadRequest]:
        return self.mailbox.exchange(answers)

    def require_startable(self, setup: Setup, *, with_model: bool) -> None:
        self.with_model = with_model
        self.refuse(setup)

    def reload_refused(self, by: str, error: BaseException) -> None:
        self.refusals.append((by, error))


@dataclass
class Run:
    """A driver's reloader, beside a run; ``now`` is what the file says."""

    now: Settings = OLD
    first: Settings = OLD
    cluster: FakeCluster = field(default_factory=FakeCluster)
    hangup: threading.Event = field(default_factory=threading.Event)
    fingerprint: str = FACTS.fingerprint
    clock: ManualClock = field(default_factory=ManualClock)
    away: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.reloader = Reloader(
            self.preflight(self.first),
            reread=lambda: self.now,
            preflight=self.preflight,
            fingerprint=self.read_fingerprint,
            source="x.yaml",
            hangup=self.hangup,
            clock=self.clock,
            retry_s=0,
        )
        self.reloader.follow(self.cluster)

    def preflight(self, given: Settings) -> Setup:
        calibration = replace(FACTS, fingerprint=self.fingerprint)
        return Setup(given, calibration, (), file_digests(given))

    def read_fingerprint(self, _settings: Settings) -> str:
        if self.away:
            self.away -= 1
            raise ScoredLogError("no store answers")
        return self.fingerprint

    def back(self) -> Setup | None:
        return self.reloader.back(GONE_WRONG, self.stop)

    def ask(self, request: ReloadRequest) -> Stage | None:
        """What the one who asks is told now."""
        answer = self.cluster.mailbox.ask(request)
        return None if answer is None else answer.stage

    def look_until(self, request: ReloadRequest, stage: Stage) -> Answer:
        """Look until the one who asked is told that."""

        def told() -> bool:
            self.ask(request)
            ends, now = self.reloader.look() is not None, self.ask(request)
            assert not ends or now is Stage.REPLACING, "whoever asked has heard it before"
            return now is stage

        wait_until(told, lambda: f"{stage}, not {self.ask(request)}")
        answer = self.cluster.mailbox.ask(request)
        assert answer is not None
        return answer

    def begin_other(self) -> Setup:
        """End the run for the one that is to begin, as the driver does, and begin that."""
        assert self.reloader.look() is not None
        setup = self.reloader.take()
        self.cluster = FakeCluster(self.cluster.refuse)
        self.reloader.follow(self.cluster)
        return setup


def firing(keys: int) -> CoordinatorStatus:
    drift = replace(CALM, state=AlertState.FIRING, keys_firing=keys)
    return replace(working(), drift=drift)


def told_to(run: Run, request: ReloadRequest) -> Answer:
    run.ask(request)
    run.reloader.look()
    answer = run.cluster.mailbox.ask(request)
    assert answer is not None
    return answer


def working(started_ms: int = 0, count: int = 1) -> CoordinatorStatus:
    reports = [report(worker=f"worker-{number}") for number in range(count)]
    return status(*reports, started_ms=started_ms)


def test_new_settings_are_in_force_once_the_workers_of_a_new_run_report() -> None:
    run = Run(now=NEW)
    run.look_until(ANN, Stage.REPLACING)
    assert run.reloader.look() == '"ann@a"'
    assert run.begin_other().settings == NEW
    assert told_to(run, ANN).stage is Stage.LOADING
    run.reloader.note(working(started_ms=7, count=0))
    assert told_to(run, ANN).stage is Stage.LOADING
    run.reloader.note(working(started_ms=7))
    changed = (("drift.window_records", "40", "50"),)
    assert told_to(run, ANN) == Answer(Stage.IN_FORCE, "x.yaml", changed, 7)


def test_where_nothing_differs_nothing_is_done() -> None:
    run = Run()
    run.reloader.note(working(started_ms=5))
    assert run.look_until(ANN, Stage.UNCHANGED) == Answer(Stage.UNCHANGED, "x.yaml", since_ms=5)
    assert run.reloader.look() is None
    assert run.cluster.with_model is None, "nothing was tried on the cluster"


@pytest.mark.parametrize(
    ("now", "with_model"), [(NEW, False), (settings(model={"precision": "float16"}), True)]
)
def test_the_model_is_loaded_only_where_another_one_may_be(now: Settings, with_model: bool) -> None:
    run = Run(now=now)
    run.look_until(ANN, Stage.REPLACING)
    assert run.cluster.with_model is with_model


def test_another_calibration_at_the_same_place_is_a_change() -> None:
    run = Run()
    run.fingerprint = "d" * 64
    (change,) = run.look_until(ANN, Stage.REPLACING).changes
    assert run.cluster.with_model
    assert change[0] == "calibration_fingerprint"


def test_a_refusal_says_why_and_changes_nothing() -> None:
    def refuse(_setup: Setup) -> None:
        raise FingerprintMismatchError("of another model", "calibration c", "Calibrate")

    run = Run(now=NEW, cluster=FakeCluster(refuse))
    with capture_logs() as events:
        answer = run.look_until(ANN, Stage.REFUSED)
    assert answer.error == ("of another model", "calibration c", "Calibrate")
    assert [e["log_level"] for e in events if e["event"] == "reload_refused"] == ["error"]
    ((by, error),) = run.cluster.refusals
    assert (by, type(error)) == ('"ann@a"', FingerprintMismatchError)
    assert run.reloader.look() is None
    run.cluster.refuse = lambda _setup: None
    run.look_until(BOB, Stage.REPLACING)


def test_another_monitor_is_refused_before_anything_is_asked() -> None:
    run = Run(now=settings(kafka={"group_id": "other"}), cluster=FakeCluster(defect))
    assert "kafka.group_id" in run.look_until(ANN, Stage.REFUSED).error[0]


def test_a_defect_of_the_check_does_not_end_the_run() -> None:
    run = Run(now=NEW, cluster=FakeCluster(defect))
    problem, _, action = run.look_until(ANN, Stage.REFUSED).error
    assert problem == "the check failed: ZeroDivisionError"
    assert "log" in action


def test_who_asks_while_another_is_checked_has_a_check_of_their_own() -> None:
    """The file may have been written in between."""
    begun, go_on, seen = threading.Event(), threading.Event(), list[Setup]()

    def slow(setup: Setup) -> None:
        seen.append(setup)
        begun.set()
        go_on.wait()

    run = Run(now=NEW, cluster=FakeCluster(slow))
    run.look_until(ANN, Stage.CHECKING)
    assert begun.wait(PATIENCE_S)
    run.look_until(BOB, Stage.ASKED)
    later = run.now = settings(drift={"window_records": 60})
    go_on.set()
    run.look_until(ANN, Stage.REPLACING)
    run.begin_other()
    run.reloader.note(working())
    run.look_until(BOB, Stage.REPLACING)
    assert run.begin_other().settings == later
    assert [setup.settings for setup in seen] == [NEW, later]


def test_who_asks_for_what_begins_already_waits_for_it() -> None:
    run = Run(now=NEW)
    run.look_until(ANN, Stage.REPLACING)
    run.begin_other()
    run.look_until(BOB, Stage.LOADING)
    run.reloader.note(working())
    assert {told_to(run, each).stage for each in (ANN, BOB)} == {Stage.IN_FORCE}


def test_two_who_ask_at_once_have_one_answer() -> None:
    run = Run(now=NEW)
    run.ask(ANN)
    run.look_until(BOB, Stage.REPLACING)
    assert run.ask(ANN) is Stage.REPLACING
    assert run.reloader.look() == '"ann@a", "bob@b"'


def test_a_request_outlives_a_coordinator() -> None:
    """Whoever asks leaves it again with the one that took the place."""
    run = Run(now=NEW)
    run.ask(ANN)
    run.cluster.mailbox = Mailbox()
    run.look_until(ANN, Stage.CHECKING)
    run.cluster.mailbox = Mailbox()
    assert run.ask(ANN) is None
    run.look_until(ANN, Stage.REPLACING)


def test_a_signal_asks_too() -> None:
    run = Run(now=NEW)
    run.hangup.set()
    wait_until(lambda: run.reloader.look() == "a signal", "the end of the run")
    assert not run.hangup.is_set()


def test_a_run_by_new_settings_that_fails_gives_way_to_the_one_of_before() -> None:
    run = Run(now=NEW)
    run.look_until(ANN, Stage.REPLACING)
    run.begin_other()
    back = run.back()
    assert back is not None
    assert back.settings == OLD
    answer = told_to(run, ANN)
    assert answer.stage is Stage.REFUSED
    assert "the worker failed 21 times in a row" in answer.error[0]
    assert run.back() is None, "it was in force"


def test_settings_that_mend_others_that_fail_leave_the_way_back_to_what_was_in_force() -> None:
    run = Run(now=NEW)
    run.look_until(ANN, Stage.REPLACING)
    run.begin_other()
    run.now = settings(drift={"window_records": 60})
    run.look_until(BOB, Stage.REPLACING)
    assert run.ask(ANN) is Stage.OVERTAKEN
    run.begin_other()
    back = run.back()
    assert back is not None
    assert back.settings == OLD


def test_a_run_that_was_in_force_does_not_give_way() -> None:
    run = Run(now=NEW)
    run.look_until(ANN, Stage.REPLACING)
    run.begin_other()
    run.reloader.note(working())
    assert run.back() is None


def begin_new() -> Run:
    run = Run(now=NEW)
    run.look_until(ANN, Stage.REPLACING)
    run.begin_other()
    return run


def test_a_calibration_that_was_overwritten_is_not_gone_back_to() -> None:
    run = begin_new()
    run.fingerprint = "d" * 64
    assert run.back() is None


def test_what_is_away_is_waited_for_until_somebody_stops_the_run() -> None:
    run = begin_new()
    run.away = 3
    back = run.back()
    assert back is not None
    assert back.settings == OLD
    run = begin_new()
    run.away = 3
    run.stop.set()
    assert run.back() is None
    assert run.away == 2


def test_the_way_back_needs_no_broker() -> None:
    run = begin_new()

    def away(_settings: Settings) -> Setup:
        raise BrokerUnavailableError("no broker answers")

    run.reloader._preflight = away
    assert run.back() is not None


def test_a_file_that_was_overwritten_meanwhile_is_told_on_the_way_back(tmp_path: Path) -> None:
    certificate = tmp_path / "ca.pem"
    certificate.write_text("old")
    kafka = {"security_protocol": "SSL", "ssl_cafile": certificate}
    run = Run(now=NEW, first=settings(kafka=kafka))
    run.look_until(ANN, Stage.REPLACING)
    run.begin_other()
    certificate.write_text("new")
    with capture_logs() as events:
        assert run.back() is not None
    told = [e["files"] for e in events if e["event"] == "files_of_before_were_changed"]
    assert told == [["kafka.ssl_cafile"]]


def test_where_a_later_reload_is_to_begin_that_is_what_follows_one_that_fails() -> None:
    """And whoever asked for it is told no other word."""
    run = begin_new()
    run.now = settings(drift={"window_records": 60})
    run.look_until(BOB, Stage.REPLACING)
    following = run.back()
    assert following is not None
    assert following.settings == run.now
    assert told_to(run, BOB).stage is Stage.LOADING
    back = run.back()
    assert back is not None
    assert back.settings == OLD
    assert told_to(run, BOB).stage is Stage.REFUSED


def test_who_asks_is_quoted_in_one_line_and_answers_are_not_kept_for_ever() -> None:
    run = Run(now=NEW)
    with capture_logs() as events:
        run.look_until(replace(ANN, by='a\n"; did not leave in time: b'), Stage.REPLACING)
    (by,) = {e["by"] for e in events if e["event"] == "reload_asked"}
    assert by == '"a \\"; did not leave in time: b"'
    run = Run()
    for number in range(KEPT + 5):
        run.look_until(ReloadRequest(f"r{number}", "ann"), Stage.UNCHANGED)
    assert len(run.reloader._answers) == KEPT


def test_who_waits_is_not_forgotten_for_others() -> None:
    go_on = threading.Event()

    def slow(_setup: Setup) -> None:
        go_on.wait()

    run = Run(now=NEW, cluster=FakeCluster(slow))
    run.look_until(ANN, Stage.CHECKING)
    for batch in "abc":
        for number in range(KEPT):
            run.ask(ReloadRequest(f"{batch}{number}", "x"))
        run.look_until(
            ReloadRequest(f"{batch}0", "x"), Stage.ASKED if batch == "a" else Stage.REFUSED
        )
    assert run.ask(ANN) is Stage.CHECKING
    assert len(run.reloader._answers) == 2 * KEPT + 1
    go_on.set()
    run.look_until(ANN, Stage.REPLACING)


@dataclass
class Broken(FakeCluster):
    """Hands on what no mailbox takes, ``left`` times."""

    left: int = 1

    def exchange(self, answers: Mapping[str, Answer]) -> Sequence[ReloadRequest]:
        if self.left:
            self.left -= 1
            return (ReloadRequest("a", None),)  # type: ignore[arg-type]
        return super().exchange(answers)


def test_whatever_is_left_there_the_run_goes_on() -> None:
    run = Run(cluster=Broken())
    with capture_logs() as events:
        assert run.reloader.look() is None
    assert [e["event"] for e in events] == ["reload_requests_not_read"]
    run.look_until(ANN, Stage.UNCHANGED)


def test_a_check_that_hangs_is_refused_and_holds_up_no_other() -> None:
    hangs, seen = threading.Event(), list[Setup]()

    def check(setup: Setup) -> None:
        seen.append(setup)
        if len(seen) == 1:
            hangs.wait()

    run = Run(now=NEW, cluster=FakeCluster(check))
    run.look_until(ANN, Stage.CHECKING)
    run.clock.advance(OLD.driver.start_timeout_s + CHECK_MARGIN_S)
    assert "did not end within 720 s" in run.look_until(ANN, Stage.REFUSED).error[0]
    assert len(run.cluster.refusals) == 1
    run.look_until(BOB, Stage.REPLACING)
    hangs.set()


@pytest.mark.parametrize(("now", "count"), [(NEW, 1), (settings(worker={"count": 2}), 0)])
def test_alerts_that_end_without_a_word_are_told(now: Settings, count: int) -> None:
    run = Run(now=now)
    run.reloader.note(firing(keys=2))
    with capture_logs() as events:
        warnings = run.look_until(ANN, Stage.REPLACING).warnings
    assert len(warnings) == count
    assert all(each.startswith("3 alerts fire, and the window begins anew") for each in warnings)
    assert [e["event"] for e in events].count("reload_ends_alerts") == count
    run.begin_other()
    run.reloader.note(working())
    assert told_to(run, ANN).warnings == warnings
