"""Seeded fault runs for as long as wanted: real workers, Apache Kafka, nothing lost, nothing twice.

    python -m benchmarks.soak --runs 200
    python -m benchmarks.soak --seconds 3600 --seed 1000

Ends with exit code 1 at the first run that lost or doubled something, and prints its seed, its
plan and its workers' logs. ``--runs 1 --seed N`` runs that one again.
"""

import argparse
import itertools
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.harness import Outcome, RunFailedError, Totals
from tests.faults.harness_many import run_seeds
from tests.support.apache_kafka import ApacheKafka, resolve_jars


def main() -> int:
    arguments = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the broker must not outlive this
    started = time.monotonic()
    totals = Totals()
    with tempfile.TemporaryDirectory(prefix="nap-stream-soak-") as name:
        folder = Path(name)
        (folder / "kafka").mkdir()
        with ApacheKafka(resolve_jars(), folder / "kafka") as kafka:
            try:
                seeds = _seeds(arguments, started)
                for outcome in run_seeds(
                    seeds, kafka.bootstrap, folder, parallel=arguments.parallel
                ):
                    totals.add(outcome)
                    if arguments.verbose or totals.runs % 10 == 0:
                        _progress(outcome, totals, time.monotonic() - started)
            except RunFailedError as error:
                print(f"FAILED after {totals}\n{error}", file=sys.stderr)
                return 1
    print(f"nothing lost, nothing twice: {totals}; {time.monotonic() - started:.0f} s in all")
    unmet = totals.never_killed()
    kills = ", ".join(f"{point} {count}" for point, count in sorted(totals.killed_at.items()))
    print(f"killed at: {kills}; never at: {', '.join(unmet) or 'none'}")
    return 0


def _seeds(arguments: argparse.Namespace, started: float) -> Iterator[int]:
    for seed in itertools.count(arguments.seed):
        seconds = time.monotonic() - started
        done = seed - arguments.seed
        if seconds >= arguments.seconds if arguments.seconds else done >= arguments.runs:
            return
        yield seed


def _progress(outcome: Outcome, totals: Totals, seconds: float) -> None:
    print(
        f"{seconds:6.0f} s  {totals}; last: seed {outcome.plan.seed}, {outcome.seconds:.1f} s, "
        f"{len(outcome.fired)} faults",
        flush=True,
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Seeded fault runs.")
    parser.add_argument("--runs", type=int, default=200, help="how many; default 200")
    parser.add_argument("--seconds", type=float, default=0.0, help="instead: for how long")
    parser.add_argument("--seed", type=int, default=0, help="of the first run; default 0")
    parser.add_argument("--parallel", type=int, default=4, help="runs at once; default 4")
    parser.add_argument("--verbose", action="store_true", help="a line for each run")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
