"""Runs drawn from seeds: nothing lost, nothing twice, wherever a worker dies, stops or fails.

Two hundred of them: ``python -m benchmarks.seeded_faults --store folder --seeds 200``.
"""

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.faults.failpoints import Failpoint
from tests.faults.harness import Totals
from tests.faults.harness_many import run_seeds
from tests.faults.harness_plan import draw_plan
from tests.support.apache_kafka import ApacheKafka

FEW = 4
MANY = 2 * len(Failpoint)
AT_ONCE = 4


def _totals(seeds: Iterable[int], kafka: ApacheKafka, folder: Path) -> Totals:
    """Run seeds; one that loses or doubles a row fails with its plan and its workers' logs."""
    totals = Totals()
    for outcome in run_seeds(seeds, kafka.bootstrap, folder, parallel=AT_ONCE):
        totals.add(outcome)
    return totals


@pytest.mark.kafka
def test_a_few_runs_lose_nothing_and_double_nothing(
    apache_kafka: ApacheKafka, tmp_path: Path
) -> None:
    totals = _totals(range(FEW), apache_kafka, tmp_path)

    assert totals.runs == FEW
    assert sum(totals.actions.values()) >= FEW


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.timeout(3600)
def test_many_runs_lose_nothing_double_nothing_and_kill_at_every_failpoint(
    apache_kafka: ApacheKafka, tmp_path: Path
) -> None:
    totals = _totals(range(1000, 1000 + MANY), apache_kafka, tmp_path)

    print(totals)  # noqa: T201  the figures, with -s
    assert totals.runs == MANY
    assert totals.never_killed() == []
    assert totals.merged > 0


def test_a_plan_depends_on_its_seed_alone_and_a_row_of_seeds_leads_to_every_failpoint() -> None:
    plans = [draw_plan(seed) for seed in range(len(Failpoint))]

    assert plans == [draw_plan(seed) for seed in range(len(Failpoint))]
    assert {fault.point for plan in plans for fault in plan.faults[0]} == set(Failpoint)
