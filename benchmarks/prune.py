"""How long a prune of 1,000 segments takes, beside a verification of every value in them.

    python -m benchmarks.prune

Seconds of all cores' time, and of the clock, of a log of 500 rows a segment in a temporary folder.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.query import DAY_MS, FIRST_MS, day_rows
from nap_stream.clock import ManualClock
from nap_stream.records import TopicPartition
from nap_stream.scored_log.chain import ScoredLog, WriterIdentity
from nap_stream.scored_log.format import seal_path
from nap_stream.scored_log.prune import Request, prune
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.run import verify

SEGMENTS, ROWS = 1_000, 500
FRAMES = TopicPartition("frames", 0)


def main() -> None:
    """Write a log, verify it, prune all but its newest segment, and print how long that took."""
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(Path(folder))
        writer = WriterIdentity("benchmark", "a1" * 32, "b1" * 32)
        log = ScoredLog(store, writer, ManualClock(FIRST_MS + DAY_MS))
        position = log.begin(FRAMES, 0)
        rows = day_rows(0, 0, (SEGMENTS + 1) * ROWS)
        for start in range(0, rows.num_rows, ROWS):
            part = rows.slice(start, ROWS)
            position = log.publish(FRAMES, position, start + ROWS, part).position
        clock = ManualClock(FIRST_MS + 30 * DAY_MS)
        request = Request(FIRST_MS + 2 * DAY_MS, "benchmark", "benchmark")
        _timed("verify --deep", lambda: verify(store, deep=True, clock=clock))
        _timed("prune", lambda: prune(store, request, clock=clock))
        _timed("verify --deep of what is left", lambda: verify(store, deep=True, clock=clock))
        print(f"the seal has {len(store.read(seal_path(FRAMES, 0)) or b''):,} bytes")


def _timed(what: str, run: Callable[[], object]) -> None:
    cores, clock = time.process_time(), time.monotonic()
    run()
    seconds = time.process_time() - cores, time.monotonic() - clock
    print(f"{what}: {seconds[0]:.1f} s of cores, {seconds[1]:.1f} s of the clock")


if __name__ == "__main__":
    main()
