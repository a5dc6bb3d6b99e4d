"""A worker that dies while it hands partitions over."""

from pathlib import Path

import pytest

from tests.faults.failpoints import Action, Failpoint, Fault
from tests.faults.harness_broker import Broker
from tests.faults.harness_fleet import Fleet
from tests.faults.harness_site import new_site
from tests.faults.harness_stream import Stream, draw_bursts
from tests.support.apache_kafka import ApacheKafka
from tests.support.waiting import wait_until

PARTITIONS = 4
SESSION_S = 3.0


@pytest.mark.kafka
@pytest.mark.slow
def test_partitions_that_a_dead_worker_has_given_up_find_an_owner(
    apache_kafka: ApacheKafka, tmp_path: Path
) -> None:
    """It gives two up and dies before it asks for the rebalance that hands them on.

    The newcomer that takes its place is given the other two without a rebalance.
    """
    fleet = Fleet()
    with Broker(apache_kafka.bootstrap) as broker:
        site = new_site(
            broker, tmp_path / "site", partitions=PARTITIONS, session_timeout_s=SESSION_S
        )
        stream = Stream(site.kafka, draw_bursts(0, 60, PARTITIONS))

        def all_have(partitions: dict[str, int]) -> bool:
            fleet.look_after()
            return broker.members(site.kafka.group_id) == partitions

        def logged() -> bool:
            fleet.look_after()
            ends = site.ends()
            return site.logged() == ends and site.committed() == ends

        try:
            dying = fleet.add(site.worker(0, [Fault(Failpoint.REVOKED_AFTER, 1, Action.KILL)]))
            wait_until(lambda: all_have({"worker-0": 4}), "all partitions for one")
            fleet.add(site.worker(1))
            wait_until(
                lambda: all_have({"worker-0": 2, "worker-1": 2}),
                "an owner for every partition",
            )
            assert [fired.point for fired in dying.fired] == [Failpoint.REVOKED_AFTER]
            stream.start()
            wait_until(stream.finished, "everything to be sent")
            wait_until(logged, "everything in the log, and committed")
            fleet.end()
        finally:
            fleet.kill()
            print(site.worker_logs())  # noqa: T201  pytest shows it where the test fails
        site.check(stream)
