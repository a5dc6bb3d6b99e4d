"""A worker that is stopped until its place is taken, and goes on as if nothing had happened."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nap_stream.records import TopicPartition
from nap_stream.scored_log.read import segments
from nap_stream.scored_log.stores import store_at
from tests.faults.failpoints import Action, Failpoint, Fault
from tests.faults.harness_broker import Broker
from tests.faults.harness_compaction import Compaction
from tests.faults.harness_fleet import Fleet, Member
from tests.faults.harness_site import Site, new_site
from tests.faults.harness_stream import Stream, draw_bursts
from tests.support.apache_kafka import ApacheKafka
from tests.support.log_files import read_footer
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.kafka]

PARTITIONS = 2
SESSION_S = 1.5
NEVER_S = float("inf")

SLOW = pytest.mark.slow
HOLDING_ROWS = Fault(Failpoint.PUBLISH_BEFORE, 2, Action.STOP_EXPIRED)
BEFORE_THE_LINK = Fault(Failpoint.TEMPORARY_FSYNCED, 4, Action.STOP_EXPIRED)  # 1 and 2 are markers
BEFORE_THE_COMMIT = Fault(Failpoint.COMMIT_BEFORE, 2, Action.STOP_EXPIRED)


@pytest.fixture
def site(apache_kafka: ApacheKafka, tmp_path: Path) -> Iterator[Site]:
    with Broker(apache_kafka.bootstrap) as broker:
        yield new_site(
            broker, tmp_path / "site", partitions=PARTITIONS, session_timeout_s=SESSION_S
        )


@pytest.fixture
def fleet(site: Site) -> Iterator[Fleet]:
    fleet = Fleet()
    try:
        yield fleet
    finally:
        fleet.kill()
        print(site.worker_logs())  # noqa: T201  pytest shows it where the test fails


def _produce(site: Site, seed: int, messages: int = 60) -> Stream:
    stream = Stream(site.kafka, draw_bursts(seed, messages, PARTITIONS))
    stream.start()
    wait_until(stream.finished, "everything to be sent")
    return stream


def _wait_until_logged(site: Site, fleet: Fleet) -> None:
    ends = site.ends()

    def logged() -> bool:
        fleet.look_after()
        return site.logged() == ends and site.committed() == ends

    wait_until(logged, f"a log up to {ends}\n{site.worker_logs()}")


def _stop(site: Site, fleet: Fleet, fault: Fault) -> Member:
    zombie = fleet.add(site.worker(0, (fault,)), sleep_s=NEVER_S)

    def stopped() -> bool:
        fleet.look_after()
        return bool(zombie.fired)

    wait_until(stopped, f"{fault}\n{site.worker_logs()}")
    return zombie


def _writers(site: Site) -> list[str]:
    store = store_at(site.root)
    return [
        read_footer(store, path).writer_id.partition("@")[0]
        for number in range(PARTITIONS)
        for path in segments(store, TopicPartition(site.kafka.topic, number))
    ]


def _both_have_partitions(site: Site) -> bool:
    return site.broker.members(site.kafka.group_id) == {"worker-0": 1, "worker-1": 1}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(HOLDING_ROWS, id="holding rows", marks=SLOW),
        pytest.param(BEFORE_THE_LINK, id="before the link"),
        pytest.param(BEFORE_THE_COMMIT, id="before the commit", marks=SLOW),
    ],
)
def test_one_that_wakes_after_its_session_has_expired_does_no_harm(
    site: Site, fleet: Fleet, fault: Fault
) -> None:
    first = _produce(site, 1)
    zombie = _stop(site, fleet, fault)
    # It may have logged all of the first: whoever takes over is to have something to log.
    meanwhile = _produce(site, 3)
    fleet.add(site.worker(1))
    _wait_until_logged(site, fleet)
    taken_over = _writers(site)
    zombie.wake()
    second = _produce(site, 2)
    _wait_until_logged(site, fleet)

    wait_until(lambda: _both_have_partitions(site), "the zombie to work again")
    fleet.end()

    site.check(first, meanwhile, second)
    assert taken_over.count("worker-1.0") > 0
    assert zombie.starts == 1, "it should have gone on, not been started again"


@pytest.mark.parametrize(
    "fault",
    [HOLDING_ROWS, BEFORE_THE_LINK, BEFORE_THE_COMMIT],
    ids=["holding rows", "before the link", "before the commit"],
)
@pytest.mark.slow
def test_one_whose_place_a_newcomer_has_taken_ends_when_it_wakes(
    site: Site, fleet: Fleet, fault: Fault
) -> None:
    replaced = Fault(fault.point, fault.hit, Action.STOP_REPLACED)
    first = _produce(site, 1)
    zombie = _stop(site, fleet, replaced)
    _wait_until_logged(site, fleet)
    zombie.wake()
    second = _produce(site, 2)
    _wait_until_logged(site, fleet)
    wait_until(lambda: zombie.replaced_are_gone, "the zombie to notice and end")
    fleet.end()

    site.check(first, second)
    assert zombie.starts == 2
    assert "worker-0.1" in _writers(site)


@pytest.mark.slow
def test_one_that_takes_a_name_that_compaction_has_freed_gives_it_back(
    site: Site, fleet: Fleet
) -> None:
    first = _produce(site, 1, messages=400)
    zombie = _stop(site, fleet, Fault(Failpoint.TEMPORARY_FSYNCED, 6, Action.STOP_EXPIRED))
    fleet.add(site.worker(1))
    _wait_until_logged(site, fleet)
    compaction = Compaction(site.root)
    compaction.start()
    compaction.stop()
    zombie.wake()

    wait_until(
        lambda: "is in a compacted file" in site.worker_logs(),
        "the zombie to find that its base offset is in a compacted file",
    )
    second = _produce(site, 2)
    _wait_until_logged(site, fleet)
    fleet.end()

    assert compaction.segments > 0
    site.check(first, second)
