"""How many workers there are to be."""

import threading
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nap_stream.errors import BrokerUnavailableError, WorkerError
from nap_stream.monitor.fleet import (
    Needs,
    Node,
    PartitionCount,
    gpu_room,
    require_room,
    wanted,
)
from nap_stream.settings.run import WorkerSettings, cpus_a_worker
from tests.support.waiting import wait_until

SMALL, GPU = Node(cpus=4, gpus=0), Node(cpus=8, gpus=2)


def auto(**changes: int | bool) -> WorkerSettings:
    return WorkerSettings.model_validate({"count": "auto", **changes})


@pytest.mark.parametrize(
    ("needs", "room"),
    [
        (Needs(1, 0), 12),
        (Needs(3, 0), 3),
        (Needs(8, 0), 1),
        (Needs(1, 1), 2),
        (Needs(1, 2), 1),
        (Needs(1, 0.5), 4),
        (Needs(1, 0.1), 8),
        (Needs(1, 0.4), 4),
        (Needs(9, 0), 0),
    ],
)
def test_a_worker_has_one_node_and_one_gpu(needs: Needs, room: int) -> None:
    assert needs.room(SMALL) + needs.room(GPU) == room


@pytest.mark.parametrize(
    ("cpus", "gpus", "each", "settings", "share"),
    [
        (16, 0, 0, auto(), 8),
        (16, 4, 1, auto(), 4),
        (16, 4, 0.5, auto(), 2),
        (16, 4, 1, auto(max_count=2), 8),
        (16, 4, 2, auto(), 8),
        (16, 4, 1, WorkerSettings(count=1), 8),
        (4, 0, 0, auto(min_count=4), 1),
    ],
)
def test_the_workers_of_a_machine_of_their_own_have_all_of_its_gpus(
    cpus: int, gpus: float, each: float, settings: WorkerSettings, share: int
) -> None:
    assert cpus_a_worker(settings, cpus, gpu_room(each, gpus)) == share


@given(st.integers(1, 1_000), st.integers(0, 1_000), st.integers(1, 40), st.integers(0, 40))
def test_auto_is_between_its_bounds_and_has_no_worker_without_a_partition_or_room(
    partitions: int, room: int, least: int, more: int
) -> None:
    settings = auto(min_count=least, max_count=least + more)
    found = wanted(settings, partitions, room)
    assert least <= found <= least + more
    assert found == least or found <= min(partitions, room)
    assert found == least + more or found >= min(partitions, room)
    grows = auto(min_count=least, max_count=least + more, autoscaled=True, num_gpus=0)
    assert wanted(grows, partitions, room) == max(least, min(partitions, least + more))
    assert wanted(WorkerSettings(count=3), partitions, room) == 3


@pytest.mark.parametrize(
    ("settings", "needs", "problem", "where"),
    [
        (auto(), Needs(1, 1), "1 workers need 1 GPUs, the Ray cluster has 0", "min_count"),
        (auto(min_count=5), Needs(1, 0), "5 workers need 5 CPUs, the Ray cluster has 4", "min"),
        (
            WorkerSettings(count=2),
            Needs(3, 0),
            "2 workers need 6 CPUs, the Ray cluster has 4",
            "worker.count",
        ),
    ],
)
def test_what_the_cluster_can_never_meet_is_refused(
    settings: WorkerSettings, needs: Needs, problem: str, where: str
) -> None:
    with pytest.raises(WorkerError) as caught:
        require_room(settings, needs, [SMALL])
    assert caught.value.problem == problem
    assert where in caught.value.where
    assert "worker.autoscaled" in caught.value.action
    require_room(settings.model_copy(update={"autoscaled": True}), needs, [SMALL])


def test_room_in_pieces_is_no_room() -> None:
    with pytest.raises(WorkerError, match=r"5 CPUs of one node.*room for 0 of 1 workers"):
        require_room(auto(), Needs(5, 0), [SMALL, SMALL])


def test_partitions_are_counted_again_and_again_and_a_broker_that_is_away_changes_nothing() -> None:
    answers: list[int | Exception] = [
        8,
        BrokerUnavailableError("nobody answers"),
        RuntimeError("a defect"),
        9,
        ValueError("another"),
        0,
    ]
    asked = threading.Event()

    def count() -> dict[str, int]:
        if not answers:
            asked.set()
            return {"a": 0}
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"a": answer, "b": 1} if answer else {"a": 0}

    with capture_logs() as events, closing(PartitionCount({"a": 4}, count, 0.001)) as counted:
        wait_until(asked.is_set, "all answers")
        assert counted() == 10
        assert counted.topics == {"a": 9, "b": 1}
    failed = [one["cause"] for one in events if one["event"] == "partitions_not_counted"]
    assert [cause.partition(":")[0] for cause in failed] == ["BrokerUnavailableError", "ValueError"]
    changed = [one for one in events if one["event"] == "partitions_changed"]
    assert [(one["before"], one["now"], one["topics_new"]) for one in changed] == [
        (4, 9, ["b"]),
        (9, 10, []),
    ]
