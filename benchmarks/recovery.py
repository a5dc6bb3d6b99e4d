"""How long a worker needs to find where a chain ends, with many segments behind it.

    python -m benchmarks.recovery [--segments 10000] [--offsets 50] [--rounds 21] [--no-s3]

A chain is published by the writer itself, one record and so many offsets a segment, and lies in a
folder and in a real S3 server (moto's, on this machine). `ScoredLog.end` is then asked with the
committed offset as the hint, and without any. Median of the rounds, and the worst of them.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from nap_stream.clock import SystemClock
from nap_stream.records import TopicPartition
from nap_stream.scored_log.chain import WriterIdentity, chain_end
from nap_stream.scored_log.format import partition_folder
from nap_stream.scored_log.stores import SegmentStore, store_at
from nap_stream.scored_log.stores.local import LocalStore
from tests.scored_log.builders import CALIBRATION, MODEL, origin, scored
from tests.support.memory_store import MemoryStore
from tests.support.s3 import BUCKET, HOST, FaultProxy, environment, fault_proxy, s3_server
from tests.support.scored_records import RecordLog

ALLOWED_MS = 100.0
CHAIN = TopicPartition("images", 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--segments", type=int, default=10_000)
    parser.add_argument("--offsets", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--no-s3", action="store_true")
    arguments = parser.parse_args()
    published = publish(arguments.segments, arguments.offsets)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stores: dict[str, SegmentStore] = {"local folder": LocalStore(folder / "log")}
        if not arguments.no_s3:
            port = stack.enter_context(s3_server(folder))
            os.environ.update(environment(f"http://{HOST}:{port}"))
            stores["S3 (moto)"] = store_at(f"s3://{BUCKET}/recovery")
        for store in stores.values():
            copy(published, store)
        print(f"{arguments.segments} segments of {arguments.offsets} offsets\n")
        committed = arguments.segments * arguments.offsets
        local_ms = report(stores, committed, arguments.rounds)
        if not arguments.no_s3:
            proxy = stack.enter_context(fault_proxy(port))
            os.environ.update(environment(proxy.endpoint))
            count_requests(store_at(f"s3://{BUCKET}/recovery"), proxy, committed)
    raise SystemExit(0 if local_ms < ALLOWED_MS else 1)


def publish(segments: int, offsets: int) -> MemoryStore:
    """A chain of so many segments, each of so many offsets."""
    store = MemoryStore()
    log = RecordLog(store, WriterIdentity("benchmark", MODEL, CALIBRATION), SystemClock())
    position = log.begin(CHAIN, 0)
    for base_offset in range(0, segments * offsets, offsets):
        row = scored(origin(base_offset, partition=CHAIN))
        position = log.publish(CHAIN, position, base_offset + offsets, [row]).position
    return store


def copy(source: MemoryStore, target: SegmentStore) -> None:
    """Put the same chain into another store."""
    folder = partition_folder(CHAIN)
    target.prepare(folder)
    paths = [f"{folder}/{name}" for name in source.names(folder)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda path: target.create(path, source.read(path) or b""), paths))
    assert all(made)


def report(stores: dict[str, SegmentStore], committed: int, rounds: int) -> float:
    """Print the table; give the first store's median with a hint, in milliseconds."""
    print("| store | with hint, ms (worst) | without, ms (worst) | ratio |")
    print("|---|---|---|---|")
    medians_ms = []
    for name, store in stores.items():
        hinted = measure(partial(chain_end, store, CHAIN, committed), rounds)
        whole = measure(partial(chain_end, store, CHAIN), rounds)
        median_ms = statistics.median(hinted)
        medians_ms.append(median_ms)
        print(
            f"| {name} | {median_ms:.1f} ({max(hinted):.1f}) "
            f"| {statistics.median(whole):.1f} ({max(whole):.1f}) "
            f"| {statistics.median(whole) / median_ms:.1f} |"
        )
    print(f"\nAllowed in a local folder with a hint: {ALLOWED_MS:g} ms.")
    return medians_ms[0]


def count_requests(store: SegmentStore, proxy: FaultProxy, committed: int) -> None:
    """Print what a real S3 would be asked; there each request takes some 10 to 50 ms."""
    counts = []
    for hint in (committed, None):
        before = len(proxy.requests)
        chain_end(store, CHAIN, hint)
        counts.append(len(proxy.requests) - before)
    print(f"Requests to S3: {counts[0]} with a hint, {counts[1]} without.")


def measure(call: Callable[[], object], rounds: int) -> list[float]:
    """Milliseconds of each round, after one that does not count."""
    call()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        assert call() is not None
        times.append(1000 * (time.perf_counter() - started))
    return times


if __name__ == "__main__":
    main()
