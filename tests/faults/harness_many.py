"""Runs beside each other."""

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from tests.faults.harness import Outcome, run_seed
from tests.faults.harness_broker import Broker


def run_seeds(
    seeds: Iterable[int], bootstrap: str, folder: Path, *, parallel: int, root: str | None = None
) -> Iterator[Outcome]:
    """Run seeds in order, ``parallel`` at a time, and yield what they come to as they end.

    Their logs lie in ``folder``, or below ``root`` in an object store.

    Raises:
        RunFailedError: Of the first run that did not end as it should; those beside it end first.
    """
    waiting = iter(seeds)
    running: dict[Future[Outcome], Broker] = {}
    with ExitStack() as stack:
        free = [stack.enter_context(Broker(bootstrap)) for _ in range(parallel)]
        pool = stack.enter_context(ThreadPoolExecutor(parallel))
        while True:
            for seed in islice(waiting, len(free)):
                broker = free.pop()
                name = f"run-{seed}"
                log_root = None if root is None else f"{root}/{name}"
                run = pool.submit(run_seed, seed, broker, folder / name, log_root)
                running[run] = broker
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                free.append(running.pop(future))
                yield future.result()
