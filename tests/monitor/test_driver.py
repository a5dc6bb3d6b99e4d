import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from nap_stream.clock import ManualClock
from nap_stream.core.alert_state import AlertState
from nap_stream.drift.records import DriftSnapshot
from nap_stream.errors import (
    BrokerError,
    BrokerUnavailableError,
    DeviceMemoryError,
    GpuUnavailableError,
    WorkerError,
    WorkerGaveUpError,
)
from nap_stream.monitor.driver import (
    LOOK_EVERY_S,
    UNWANTED_S,
    Driver,
    Ending,
    RunLimits,
    RunResult,
)
from nap_stream.monitor.fleet import Fleet
from nap_stream.monitor.status import CoordinatorStatus
from nap_stream.records import PartitionProgress, Status, WorkerReport
from nap_stream.settings.run import DriverSettings
from tests.support import summaries
from tests.support.summaries import partition

SETTINGS = DriverSettings(
    max_restarts=2,
    backoff_initial_s=1,
    backoff_max_s=60,
    stall_timeout_s=30,
    start_timeout_s=100,
    shutdown_deadline_s=10,
)
FOREVER = RunLimits()
CALM = DriftSnapshot(
    state=AlertState.INACTIVE,
    severity=None,
    window_records=0,
    window_flagged=0,
    firing_limit=None,
    readings=(),
    open_panes=0,
    late_records=0,
    implausible_timestamps=0,
    duplicates=0,
    watermark_ms=None,
    partition_watermarks_ms={},
    keys=0,
    keys_active=0,
    keys_firing=0,
    keys_forgotten=0,
)


def report(**values: Any) -> WorkerReport:
    """A report of the worker that has the one partition."""
    mine = (PartitionProgress(partition(0), 0, 0, None),)
    return summaries.report(**{"partitions": mine, **values})


def status(*reports: WorkerReport, rows: int = 0, started_ms: int = 0) -> CoordinatorStatus:
    return CoordinatorStatus(
        rows_by_status={Status.OK: rows},
        drift=CALM,
        images_scored=0,
        images_per_second=0.0,
        window_size=100,
        alerts_fired=0,
        alerts_resolved=0,
        alerts_waiting=0,
        max_lag=None,
        dead_letters=0,
        worker_restarts=0,
        workers={r.worker: r for r in reports},
        started_ms=started_ms,
    )


@dataclass
class FakeWorker:
    """Ends with ``failure`` at once, or when stopped, or never."""

    failure: Exception | None = None
    obeys: bool = True
    is_placed: bool = True
    is_evicted: bool = False
    stopped: bool = False
    killed: bool = False

    def placed(self) -> bool:
        return self.is_placed

    def evicted(self) -> bool:
        return self.is_evicted

    def ended(self) -> bool:
        return self.killed or self.failure is not None or (self.stopped and self.obeys)

    def error(self) -> Exception | None:
        return self.failure

    def stop(self) -> None:
        self.stopped = True

    def kill(self) -> None:
        self.killed = True


@dataclass
class FakeCluster:
    """Gives out prepared workers and asks ``view`` for the status at each look."""

    clock: ManualClock
    workers: list[FakeWorker]
    view: Callable[[float], CoordinatorStatus | None] = lambda _now: status()
    started: list[tuple[str, int, float]] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    finished_with_s: float | None = None
    input_ended: bool | None = None
    reason: str = ""
    may_wait: bool = False
    workers_wanted: int = 1
    count: int = 1
    fleet: Fleet | None = None

    def wanted(self) -> int:
        return self.workers_wanted

    def at_least(self) -> int:
        return 1

    def partitions(self) -> int:
        return self.count

    def start_worker(self, name: str, incarnation: int) -> FakeWorker:
        self.started.append((name, incarnation, self.clock.monotonic()))
        return self.workers[len(self.started) - 1]

    def worker_restarted(self, name: str) -> None:
        self.restarted.append(name)

    def replace_coordinator(self) -> None:
        self.calls.append("replace_coordinator")

    def tick(self, fleet: Fleet) -> None:
        self.calls.append("tick")
        self.fleet = fleet

    def status(self) -> CoordinatorStatus | None:
        self.calls.append("status")
        return self.view(self.clock.monotonic())

    def finish(
        self, timeout_s: float, *, input_ended: bool, reason: str
    ) -> CoordinatorStatus | None:
        self.finished_with_s, self.input_ended, self.reason = timeout_s, input_ended, reason
        return self.status()


def run(
    cluster: FakeCluster,
    limits: RunLimits = FOREVER,
    *,
    stop_at: float | None = None,
    settings: DriverSettings = SETTINGS,
) -> RunResult:
    stop = threading.Event()

    def look(_status: CoordinatorStatus) -> None:
        assert cluster.clock.monotonic() < 10_000, "the driver goes on for ever"
        if stop_at is not None and cluster.clock.monotonic() >= stop_at:
            stop.set()

    driver = Driver(cluster, settings, limits, clock=cluster.clock, on_status=look)
    return driver.run(stop, lambda: None)


def test_stop_asks_workers_to_leave_and_closes_the_coordinator() -> None:
    cluster = FakeCluster(ManualClock(), [FakeWorker()])

    result = run(cluster, stop_at=5)

    assert result.ending is Ending.STOPPED
    assert (cluster.input_ended, cluster.reason) == (False, "stopped")
    assert result.unclean == ()
    assert cluster.workers[0].stopped
    assert not cluster.workers[0].killed
    assert cluster.finished_with_s == SETTINGS.shutdown_deadline_s


def test_a_reload_ends_a_run_in_good_order_and_says_who_asked() -> None:
    cluster = FakeCluster(ManualClock(), [FakeWorker()])
    driver = Driver(
        *(cluster, SETTINGS, RunLimits(max_records=10)),
        clock=cluster.clock,
        on_status=lambda _status: None,
        reloads=lambda: "ann@a" if cluster.clock.monotonic() >= 5 else None,
    )
    cluster.view = lambda _now: status(rows=4)

    result = driver.run(threading.Event(), lambda: None)

    assert result.ending is Ending.RELOAD
    assert (cluster.input_ended, cluster.reason) == (False, "reload, asked for by ann@a")
    assert cluster.workers[0].stopped


def test_workers_can_be_started_before_the_coordinator_and_end_where_that_does_not_start() -> None:
    cluster, stop = FakeCluster(ManualClock(), [FakeWorker(), FakeWorker()]), threading.Event()
    cluster.workers_wanted = 2
    seen = []

    def begin() -> None:
        seen.append([name for name, _, _ in cluster.started])
        raise WorkerError("the coordinator did not start")

    driver = Driver(
        *(cluster, SETTINGS, FOREVER), clock=cluster.clock, on_status=lambda _status: stop.set()
    )
    with pytest.raises(WorkerError, match="did not start"):
        driver.run(stop, begin)
    assert seen == [["worker-0", "worker-1"]]
    assert all(worker.killed for worker in cluster.workers)
    assert cluster.clock.monotonic() == 0, "nobody was waited for"
    assert cluster.reason == "failed: WorkerError"

    begun = FakeCluster(ManualClock(), [FakeWorker()])
    driver = Driver(
        *(begun, SETTINGS, FOREVER), clock=begun.clock, on_status=lambda _status: stop.set()
    )
    assert driver.run(stop, lambda: None).ending is Ending.STOPPED
    assert len(begun.started) == 1


def loads(cluster: FakeCluster) -> None:
    """Run what another run can take the place of."""
    driver = Driver(
        *(cluster, SETTINGS.model_copy(update={"max_restarts": 20}), FOREVER),
        clock=cluster.clock,
        on_status=lambda _status: None,
        is_loading=lambda: True,
    )
    driver.run(threading.Event(), lambda: None)


def test_what_fails_while_it_loads_fails_soon() -> None:
    cluster = FakeCluster(ManualClock(), [FakeWorker(DeviceMemoryError("no room"))] * 21)
    with pytest.raises(WorkerGaveUpError, match="failed 3 times in a row"):
        loads(cluster)
    assert cluster.clock.monotonic() < 10
    hang = FakeWorker(obeys=False)
    cluster.workers, cluster.workers_wanted, cluster.started = [cluster.workers[0], hang], 2, []
    cluster.workers += [cluster.workers[0]] * 5
    start_s = cluster.clock.monotonic()
    with pytest.raises(WorkerGaveUpError, match="failed 3 times in a row"):
        loads(cluster)
    assert hang.killed
    assert cluster.clock.monotonic() - start_s < 10, "what still loads is not waited for"
    with pytest.raises(WorkerGaveUpError, match="died 3 times in a row"):
        loads(FakeCluster(ManualClock(), [FakeWorker()], coordinator_dies_at(1, 2, 3, 4, 5)))


def test_one_deadline_is_that_of_all_that_loads() -> None:
    """Workers that hang one after the other, and one that comes late, take no longer."""
    for worker in (FakeWorker(), FakeWorker(is_placed=False)):
        cluster = FakeCluster(ManualClock(), [worker] * 3, may_wait=not worker.is_placed)
        with pytest.raises(WorkerGaveUpError, match=r"within driver.start_timeout_s, 100 s"):
            loads(cluster)
        patience_s = SETTINGS.start_timeout_s + SETTINGS.shutdown_deadline_s
        assert cluster.clock.monotonic() <= patience_s + LOOK_EVERY_S


def test_a_stop_that_comes_while_workers_leave_for_a_reload_is_why_the_run_ended() -> None:
    cluster, stop = FakeCluster(ManualClock(), [FakeWorker()]), threading.Event()

    def obey() -> None:
        stop.set()
        cluster.workers[0].stopped = True

    cluster.workers[0].stop = obey  # type: ignore[method-assign]
    driver = Driver(
        *(cluster, SETTINGS, FOREVER),
        clock=cluster.clock,
        on_status=lambda _status: None,
        reloads=lambda: "ann@a",
    )
    assert driver.run(stop, lambda: None).ending is Ending.STOPPED
    assert cluster.reason == "stopped"


def test_a_run_that_is_stopped_before_it_begins_starts_nothing() -> None:
    cluster, stop = FakeCluster(ManualClock(), []), threading.Event()
    stop.set()
    driver = Driver(
        *(cluster, SETTINGS, FOREVER), clock=cluster.clock, on_status=lambda _status: None
    )
    assert driver.run(stop, lambda: pytest.fail("it began")).ending is Ending.STOPPED
    assert (cluster.started, cluster.reason) == ([], "stopped")


def test_a_stop_comes_before_a_reload() -> None:
    cluster, stop = FakeCluster(ManualClock(), []), threading.Event()
    stop.set()
    driver = Driver(
        *(cluster, SETTINGS, FOREVER),
        clock=cluster.clock,
        on_status=lambda _status: None,
        reloads=lambda: "ann@a",
    )
    assert driver.run(stop, lambda: None).ending is Ending.STOPPED


def test_the_coordinator_ticks_before_each_look_and_not_when_it_is_only_asked() -> None:
    cluster = FakeCluster(ManualClock(), [FakeWorker()])

    run(cluster, stop_at=5)

    *looks, last = cluster.calls
    assert looks == ["tick", "status"] * (len(looks) // 2)
    assert len(looks) // 2 == 5 / LOOK_EVERY_S + 1
    assert last == "status", "its last view, after the end"


def test_a_worker_that_does_not_leave_is_killed_within_the_deadline_and_named() -> None:
    clock = ManualClock()
    cluster = FakeCluster(
        clock, [FakeWorker(obeys=False)], lambda now: status(_sent(report(idle=True), now))
    )

    result = run(cluster, stop_at=5)

    assert result.unclean == ("worker-0",)
    assert cluster.reason == "stopped; did not leave in time: worker-0"
    assert cluster.workers[0].killed
    assert clock.monotonic() <= 5 + SETTINGS.shutdown_deadline_s + 1


def test_a_failed_worker_is_restarted_with_growing_backoff() -> None:
    failed = [FakeWorker(failure=WorkerError("its process died")) for _ in range(2)]
    cluster = FakeCluster(ManualClock(), [*failed, FakeWorker()])

    run(cluster, stop_at=20)

    names, incarnations, times = zip(*cluster.started, strict=True)
    assert set(names) == {"worker-0"}
    assert incarnations == (0, 1, 2)
    assert 1.0 <= times[1] - times[0] <= 2.0
    assert 2.0 <= times[2] - times[1] <= 3.0
    assert cluster.restarted == ["worker-0", "worker-0"]


def test_gives_up_after_the_set_number_of_restarts_with_the_last_cause() -> None:
    cause = WorkerError("OSError: 401 for url: https://hub/x?token=SECRET")
    cause.__cause__ = OSError("401 for url: https://hub/x?token=SECRET")
    cluster = FakeCluster(ManualClock(), [FakeWorker(failure=cause) for _ in range(3)])

    with pytest.raises(WorkerGaveUpError, match=r"failed 3 times.*token=SECRET"):
        run(cluster)

    assert len(cluster.started) == SETTINGS.max_restarts + 1
    assert cluster.finished_with_s is not None
    # It is written for good, so nothing that others said is in it.
    assert cluster.reason == (
        "failed: worker-0: the worker failed 3 times in a row: "
        "WorkerGaveUpError: WorkerError: OSError"
    )


def test_an_error_that_cannot_mend_itself_ends_the_run_at_once() -> None:
    cluster = FakeCluster(ManualClock(), [FakeWorker(failure=GpuUnavailableError("no GPU"))])

    with pytest.raises(GpuUnavailableError, match="no GPU"):
        run(cluster)

    assert len(cluster.started) == 1


def test_a_broker_that_is_away_is_tried_again() -> None:
    away = FakeWorker(failure=BrokerUnavailableError("nobody answers"))
    cluster = FakeCluster(ManualClock(), [away, FakeWorker()])

    run(cluster, stop_at=20)

    assert len(cluster.started) == 2


def test_an_unexpected_error_is_tried_again() -> None:
    cluster = FakeCluster(ManualClock(), [FakeWorker(failure=RuntimeError("CUDA")), FakeWorker()])

    run(cluster, stop_at=20)

    assert len(cluster.started) == 2


def test_a_worker_that_stays_up_earns_its_restarts_back() -> None:
    clock = ManualClock()

    @dataclass
    class DiesAfterAMinute(FakeWorker):
        born: float = field(default_factory=clock.monotonic)

        def ended(self) -> bool:
            return super().ended() or clock.monotonic() - self.born > 60

        def error(self) -> Exception | None:
            return None if self.stopped else WorkerError("its process died")

    class Cluster(FakeCluster):
        def start_worker(self, name: str, incarnation: int) -> FakeWorker:
            self.workers.append(DiesAfterAMinute())
            return super().start_worker(name, incarnation)

    def busy(now: float) -> CoordinatorStatus:
        return status(report(incarnation=len(cluster.started) - 1, work_done=int(now * 4)))

    cluster = Cluster(clock, [], busy)
    run(cluster, stop_at=400)

    assert len(cluster.started) > SETTINGS.max_restarts + 1


def test_a_worker_that_makes_no_progress_is_replaced() -> None:
    wedged = report(work_done=7, idle=False)
    cluster = FakeCluster(
        ManualClock(), [FakeWorker(), FakeWorker()], lambda now: status(_sent(wedged, now))
    )

    run(cluster, stop_at=40)

    assert cluster.workers[0].killed
    assert [incarnation for _, incarnation, _ in cluster.started] == [0, 1]
    assert SETTINGS.stall_timeout_s <= cluster.started[1][2] <= SETTINGS.stall_timeout_s + 5


def test_a_worker_that_stays_wedged_is_given_up_in_the_end() -> None:
    def view(now: float) -> CoordinatorStatus:
        wedged = report(work_done=7, incarnation=len(cluster.started) - 1)
        return status(_sent(wedged, now))

    cluster = FakeCluster(ManualClock(), [FakeWorker() for _ in range(3)], view)

    with pytest.raises(WorkerGaveUpError, match="no progress for 30 s"):
        run(cluster)

    assert len(cluster.started) == SETTINGS.max_restarts + 1
    assert all(worker.killed for worker in cluster.workers)


WAITING = "the scored log: the disk is full"


def test_a_worker_that_says_what_it_waits_for_is_left_alone() -> None:
    waiting = report(work_done=7, waiting_for=WAITING)
    cluster = FakeCluster(ManualClock(), [FakeWorker()], lambda now: status(_sent(waiting, now)))

    run(cluster, stop_at=500)

    assert len(cluster.started) == 1
    assert not cluster.workers[0].killed


def test_time_waited_does_not_count_and_time_wedged_before_and_after_does() -> None:
    """20 s without progress, 100 s of waiting, and then 30 s - 20 s more are enough."""

    def view(now: float) -> CoordinatorStatus:
        waits = 20 < now <= 120
        wedged = report(work_done=7, waiting_for=WAITING if waits else None)
        return status(_sent(wedged, int(now)))

    cluster = FakeCluster(ManualClock(), [FakeWorker(), FakeWorker()], view)

    run(cluster, stop_at=140)

    assert cluster.workers[0].killed
    restarted_at = cluster.started[1][2]
    assert 130 <= restarted_at <= 135


def test_a_worker_whose_last_words_were_that_it_waits_is_replaced_when_it_falls_silent() -> None:
    """A thread that polls and hangs sends no reports."""
    hung = report(work_done=7, waiting_for=WAITING, number=1)
    cluster = FakeCluster(ManualClock(), [FakeWorker(), FakeWorker()], lambda _now: status(hung))

    run(cluster, stop_at=40)

    assert cluster.workers[0].killed


def test_a_worker_that_waits_is_not_idle() -> None:
    def view(now: float) -> CoordinatorStatus:
        waits = now < 50
        told = report(idle=not waits, waiting_for="the broker" if waits else None)
        return status(_sent(told, now))

    cluster = FakeCluster(ManualClock(), [FakeWorker()], view)

    result = run(cluster, RunLimits(until_idle_s=5))

    assert result.ending is Ending.IDLE
    assert (cluster.input_ended, cluster.reason) == (True, "idle")
    assert cluster.clock.monotonic() >= 55


def test_a_worker_that_falls_silent_is_replaced() -> None:
    silent = report(idle=True, number=0)
    cluster = FakeCluster(ManualClock(), [FakeWorker(), FakeWorker()], lambda _now: status(silent))

    run(cluster, stop_at=40)

    assert cluster.workers[0].killed


def test_a_worker_may_take_longer_to_start_than_to_stall() -> None:
    cluster = FakeCluster(ManualClock(), [FakeWorker(), FakeWorker()])

    run(cluster, stop_at=90)
    assert len(cluster.started) == 1

    cluster = FakeCluster(ManualClock(), [FakeWorker(), FakeWorker()])
    run(cluster, stop_at=110)
    assert len(cluster.started) == 2


def test_a_worker_that_had_not_started_yet_is_not_unclean() -> None:
    cluster = FakeCluster(ManualClock(), [FakeWorker(obeys=False)])

    result = run(cluster, stop_at=5)

    assert cluster.workers[0].killed
    assert result.unclean == ()


def test_an_idle_worker_that_reports_is_left_alone() -> None:
    idle = report(idle=True)
    cluster = FakeCluster(ManualClock(), [FakeWorker()], lambda now: status(_sent(idle, now)))

    run(cluster, stop_at=100)

    assert len(cluster.started) == 1


def test_a_coordinator_that_is_silent_for_a_while_is_no_reason_to_kill_workers() -> None:
    def view(now: float) -> CoordinatorStatus | None:
        return None if 10 < now < 35 else status(_sent(report(idle=True), now))

    cluster = FakeCluster(ManualClock(), [FakeWorker()], view)

    run(cluster, stop_at=100)

    assert len(cluster.started) == 1
    assert not cluster.workers[0].killed


def coordinator_dies_at(*moments: float) -> Callable[[float], CoordinatorStatus]:
    """The view of coordinators that start at 0 and at each moment, in seconds."""

    def view(now: float) -> CoordinatorStatus:
        return status(
            report(idle=True, number=int(now * 1000)),
            rows=int(now),
            started_ms=max((int(at * 1000) for at in moments if at <= now), default=0),
        )

    return view


def test_a_coordinator_that_dies_now_and_then_earns_its_restarts_back() -> None:
    moments = [40.0 * number for number in range(1, 20)]
    cluster = FakeCluster(ManualClock(), [FakeWorker()], coordinator_dies_at(*moments))

    with capture_logs() as log:
        result = run(cluster, RunLimits(max_records=900))

    assert result.ending is Ending.ENOUGH_RECORDS
    told = [event["rows"] for event in log if event["event"] == "coordinator_restarted"]
    assert told == [int(moment) for moment in moments]


def test_a_coordinator_that_dies_again_and_again_ends_the_run() -> None:
    cluster = FakeCluster(ManualClock(), [FakeWorker()], coordinator_dies_at(5, 10, 15, 20))

    with pytest.raises(WorkerGaveUpError, match="the coordinator died 3 times in a row"):
        run(cluster, RunLimits(max_records=900))


def silent_between(*spans: tuple[float, float]) -> Callable[[float], CoordinatorStatus | None]:
    """A view of a coordinator that answers nothing in these spans, and is another one after."""

    def view(now: float) -> CoordinatorStatus | None:
        if any(start <= now < end for start, end in spans):
            return None
        ended = sum(end <= now for _, end in spans)
        return status(report(idle=True, number=int(now * 1000)), started_ms=ended)

    return view


def test_a_coordinator_that_hangs_is_replaced_once_for_each_time_that_it_does() -> None:
    cluster = FakeCluster(
        ManualClock(), [FakeWorker()], silent_between((10, 45), (100, 135), (300, 329))
    )

    result = run(cluster, stop_at=400)

    assert result.ending is Ending.STOPPED
    assert cluster.calls.count("replace_coordinator") == 2  # 29 s are within its patience of 30
    assert not cluster.workers[0].killed


@pytest.mark.parametrize(("max_restarts", "replaced"), [(2, 1), (0, 0)])
def test_a_coordinator_that_stays_silent_ends_the_run(max_restarts: int, replaced: int) -> None:
    cluster = FakeCluster(ManualClock(), [FakeWorker()], lambda _now: None)
    settings = SETTINGS.model_copy(update={"max_restarts": max_restarts})

    with pytest.raises(WorkerGaveUpError, match="coordinator has not answered for 30 s"):
        run(cluster, settings=settings)

    assert cluster.calls.count("replace_coordinator") == replaced
    assert cluster.workers[0].stopped


def test_an_unexpected_error_of_the_cluster_still_stops_the_workers() -> None:
    def broken(now: float) -> CoordinatorStatus:
        if now > 5:
            raise RuntimeError("a defect")
        return status()

    cluster = FakeCluster(ManualClock(), [FakeWorker()], broken)

    with pytest.raises(RuntimeError, match="a defect"):
        run(cluster)

    assert cluster.workers[0].stopped


def test_ends_when_nothing_has_come_for_so_long() -> None:
    clock = ManualClock()
    cluster = FakeCluster(
        clock, [FakeWorker()], lambda now: status(_sent(report(idle=now > 20), now))
    )

    result = run(cluster, RunLimits(until_idle_s=5))

    assert result.ending is Ending.IDLE
    assert 25 <= clock.monotonic() <= 27


def test_a_partition_that_is_left_out_keeps_no_run_from_its_end() -> None:
    def view(now: float) -> CoordinatorStatus:
        left_out = {partition(0): "it was replaced"} if now > 20 else {}
        return status(_sent(report(idle=True, partitions=(), left_out=left_out), now))

    cluster = FakeCluster(ManualClock(), [FakeWorker()], view)
    assert run(cluster, RunLimits(until_idle_s=5)).ending is Ending.IDLE
    assert cluster.clock.monotonic() >= 25


def test_a_partition_that_moves_while_it_is_left_out_counts_once() -> None:
    """One worker has it, and another's report of before still says that it is left out."""

    def view(now: float) -> CoordinatorStatus:
        has = report(idle=True)
        others = report(
            worker="worker-1", idle=True, partitions=(), left_out={partition(0): "replaced"}
        )
        if now > 20:
            others = replace(others, left_out={partition(1): "replaced"})
        return status(*(_sent(one, now) for one in (has, others)))

    cluster = FakeCluster(
        ManualClock(), [FakeWorker(), FakeWorker()], view, workers_wanted=2, count=2
    )
    assert run(cluster, RunLimits(until_idle_s=5)).ending is Ending.IDLE
    assert cluster.clock.monotonic() >= 25


def test_a_run_without_a_topic_that_can_be_read_ends_with_what_is_wrong_of_each() -> None:
    def view(now: float) -> CoordinatorStatus:
        told = {"a": "topic a is left out: replaced", "b": "topic b is left out: forbidden"}
        nothing_left = now > 20
        left_out = told if nothing_left else {"a": told["a"]}
        found = status(_sent(report(), now))
        return replace(found, topics_left_out=left_out, nothing_left=nothing_left)

    cluster = FakeCluster(ManualClock(), [FakeWorker()], view)
    with pytest.raises(BrokerError, match=r"no topic is left to read: .* a .*; .* b .*forbidden"):
        run(cluster, FOREVER)
    assert cluster.clock.monotonic() > 20


def test_is_not_idle_before_every_partition_is_owned() -> None:
    clock = ManualClock()

    def view(now: float) -> CoordinatorStatus:
        partitions = report().partitions if now > 20 else ()
        return status(_sent(report(idle=True, partitions=partitions), now))

    result = run(FakeCluster(clock, [FakeWorker()], view), RunLimits(until_idle_s=5))

    assert result.ending is Ending.IDLE
    assert clock.monotonic() >= 25


def test_ends_when_enough_records_are_logged() -> None:
    cluster = FakeCluster(
        ManualClock(), [FakeWorker()], lambda now: status(report(), rows=int(now * 10))
    )

    result = run(cluster, RunLimits(max_records=100))

    assert result.ending is Ending.ENOUGH_RECORDS
    assert result.status is not None
    assert result.status.rows >= 100


def _sent(given: WorkerReport, now: float) -> WorkerReport:
    return replace(given, number=int(now * 1000))


def test_as_many_workers_as_are_wanted_come_and_go_without_a_restart_counted() -> None:
    cluster = FakeCluster(ManualClock(), [FakeWorker() for _ in range(5)], may_wait=True)
    stopped: dict[int, list[bool]] = {}

    def wants(now: float) -> CoordinatorStatus:
        # Fewer are wanted for a moment, and then for good.
        cluster.workers_wanted = 2 if now < 5 or 10 <= now < 15 or now >= 20 else 4
        stopped[int(now)] = [worker.stopped for worker in cluster.workers]
        return status()

    cluster.view = wants
    run(cluster, stop_at=60)

    assert [name for name, _, _ in cluster.started] == [f"worker-{n}" for n in range(4)]
    assert not any(stopped[int(19 + UNWANTED_S)])
    assert stopped[59] == [False, False, True, True, False]
    assert not any(worker.killed for worker in cluster.workers)
    assert cluster.restarted == []
    assert cluster.fleet == Fleet(2, ("worker-0", "worker-1"))


def test_a_worker_of_a_drained_node_leaves_in_good_order_and_another_comes_at_once() -> None:
    cluster = FakeCluster(ManualClock(), [FakeWorker(), FakeWorker()])

    def drains(now: float) -> CoordinatorStatus:
        cluster.workers[0].is_evicted = now >= 5
        return status()

    cluster.view = drains
    run(cluster, stop_at=20)

    (_, first, _), (_, second, at) = cluster.started
    assert (first, second) == (0, 1)
    assert 5 <= at <= 6, "no backoff"
    assert cluster.workers[0].stopped
    assert not cluster.workers[0].killed
    assert cluster.restarted == []


@pytest.mark.parametrize("obeys", [False, True])
def test_a_worker_that_its_node_takes_along_is_no_failure(obeys: bool) -> None:
    worker = FakeWorker(obeys=obeys, is_evicted=True)
    worker.failure = WorkerError("its process died") if obeys else None
    cluster = FakeCluster(ManualClock(), [worker, *(FakeWorker() for _ in range(3))])

    run(cluster, stop_at=20)

    assert worker.killed is not obeys
    assert [incarnation for _, incarnation, _ in cluster.started] == [0, 1]
    assert cluster.restarted == []


def test_of_more_workers_than_are_wanted_those_go_that_must_or_wait() -> None:
    workers = [FakeWorker() for _ in range(4)]
    cluster = FakeCluster(ManualClock(), workers, may_wait=True, workers_wanted=4)

    def shrinks(now: float) -> CoordinatorStatus:
        if now >= 5:
            cluster.workers_wanted = 2
            cluster.workers[0].is_evicted, cluster.workers[1].is_placed = True, False
        return status()

    cluster.view = shrinks
    run(cluster, stop_at=9)

    assert cluster.fleet == Fleet(2, ("worker-2", "worker-3"))
    assert len(cluster.started) == 4


def test_a_worker_that_may_wait_for_a_place_is_not_taken_for_stuck() -> None:
    cluster = FakeCluster(ManualClock(), [FakeWorker(is_placed=False)], may_wait=True)
    run(cluster, stop_at=10 * SETTINGS.start_timeout_s)
    assert len(cluster.started) == 1
    assert cluster.fleet == Fleet(1, ("worker-0",)), "one is missed"


def test_a_name_that_is_given_again_has_a_later_incarnation() -> None:
    cluster = FakeCluster(ManualClock(), [FakeWorker() for _ in range(3)], may_wait=True)

    def wants(now: float) -> CoordinatorStatus:
        cluster.workers_wanted = 1 if 5 <= now < 50 else 2
        return status()

    cluster.view = wants
    run(cluster, stop_at=60)
    assert [(name, number) for name, number, _ in cluster.started] == [
        *(("worker-0", 0), ("worker-1", 0)),
        ("worker-1", 1),
    ]
