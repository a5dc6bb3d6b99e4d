"""Seeded faults, on disk or on an object store that fails, too: nothing lost, nothing twice.

    python -m benchmarks.seeded_faults --store folder|s3|gcs|azure [--seeds 200] [--first 5000]
        [--at-once 2]

Each seed is a stream on Apache Kafka and two workers, which are killed, stopped and failed between
poll and commit as in tests/faults/test_seeded_kills.py; in a third of them segments are merged all
the time. Their log is a folder, or lies on SeaweedFS, or on an emulator of Google's or Microsoft's
store (fake-gcs-server, Azurite), behind a proxy that loses answers, refuses and throttles. In the
end the log is compared with what was produced, and verified deeply. Needs Java and Maven, and with
s3 and gcs Go, with azure Node: their servers are built the first time. Exit code 1 at the first
seed that was not as it must be.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import forkserver
from pathlib import Path

from tests.faults.harness import RunFailedError, Totals
from tests.faults.harness_many import run_seeds
from tests.support.apache_kafka import ApacheKafka, resolve_jars
from tests.support.clouds import RUNNING
from tests.support.leftovers import watch_over_this_process
from tests.support.s3 import Fault, fault_proxy
from tests.support.seaweedfs import resolve_weed, running_seaweed

SHARES = {
    "PUT": ({Fault.LOSE_ANSWER, Fault.SLOW_DOWN, Fault.INTERNAL, Fault.CONFLICT}, 0.1),
    "GET": ({Fault.LOSE_ANSWER, Fault.SLOW_DOWN, Fault.INTERNAL, Fault.CUT_BODY}, 0.02),
}
"""Of requests with a method: what may happen to them, and to how many of them."""


def main() -> int:
    """Run the seeds, and say what they came to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--store", choices=("folder", "s3", *RUNNING), required=True)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=5_000)
    parser.add_argument("--at-once", type=int, default=2)
    given = parser.parse_args()
    watch_over_this_process()
    seeds = range(given.first, given.first + given.seeds)
    totals, met, started = Totals(), Counter[str](), time.monotonic()
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        kafka = stack.enter_context(ApacheKafka(resolve_jars(), _made(scratch, "kafka")))
        root = None
        if given.store != "folder":
            folder = _made(scratch, "store")
            root = stack.enter_context(_failing(given.store, folder, given.first, met))
        runs = run_seeds(
            *(seeds, kafka.bootstrap, _made(scratch, "runs")), parallel=given.at_once, root=root
        )
        try:
            for outcome in runs:
                totals.add(outcome)
                sys.stdout.write(f"{time.monotonic() - started:6.0f} s  {totals}\n")
                sys.stdout.flush()
        except RunFailedError as error:
            sys.stdout.write(f"{error}\n")
            return 1
    store = ", ".join(f"{count} {name}" for name, count in sorted(met.items()))
    sys.stdout.write(f"0 lost, 0 twice, all verified deeply; of the store: {store or 'nothing'}\n")
    never = ", ".join(point.name for point in totals.never_killed())
    sys.stdout.write(f"failpoints at which no worker was killed: {never or 'none'}\n")
    return 0


@contextmanager
def _failing(store: str, folder: Path, seed: int, met: Counter[str]) -> Iterator[str]:
    """A root on an object store that fails for workers; ``met`` counts how."""
    draw = random.Random(seed)  # noqa: S311  no secret depends on it

    def fate(method: str) -> Fault | None:
        kinds, share = SHARES.get(method, (frozenset[Fault](), 0.0))
        if draw.random() >= share:
            return None
        fault = draw.choice(sorted(kinds, key=lambda kind: kind.name))
        met[f"{method} {fault.name}"] += 1
        return fault

    running = running_seaweed(resolve_weed(build=True), folder) if store == "s3" else None
    with running or RUNNING[store](folder) as server, fault_proxy(server.port) as proxy:
        # The workers are forked from a server that has the proxy in its environment; who judges
        # them asks the store itself.
        os.environ.update(server.environment(proxy.endpoint))
        forkserver.ensure_running()
        os.environ.update(server.environment())
        proxy.draw = fate
        yield server.new_root()


def _made(scratch: str, name: str) -> Path:
    folder = Path(scratch) / name
    folder.mkdir()
    return folder


if __name__ == "__main__":
    sys.exit(main())
