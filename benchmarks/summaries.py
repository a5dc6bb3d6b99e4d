"""How many rows a second become summaries: of records in flight, and of files.

    python -m benchmarks.summaries [--rows 400000] [--segments 10000 250] [--rounds 5]

A chain is published by the writer itself into memory, in segments of so many rows, and then
compacted where segments are small. One row in twenty is flagged; there are 1,000 keys, in the
message key and in a header. Beside `summarise_chain` stand what every reader must do, which is to
decode the columns, and counting alone (no examples, classes or p-values) with the rows as Python
objects. All are run in turn; medians of the rounds.
"""

import argparse
import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial

import numpy as np
import pyarrow as pa

from nap_stream.clock import SystemClock
from nap_stream.records import PublishedSegment
from nap_stream.scored_log.compact import compact
from nap_stream.scored_log.read import walk
from nap_stream.scored_log.segment import divide
from nap_stream.scored_log.summary import SummaryShape, rows_schema, summarise_chain
from nap_stream.settings.drift import KeySettings
from tests.scored_log.builders import CARS, NOON_MS, memory_log, origin, scored
from tests.support.log_files import paths_in
from tests.support.memory_store import MemoryStore
from tests.support.scored_records import ScoredRecord, summarise_records

KEYS = 1_000
SMALL_ROWS = 1_000
ROWS_PER_S = 50
EVERYTHING = 2**62
Published = list[tuple[PublishedSegment, Sequence[ScoredRecord]]]
SHAPES = {
    "no keys": SummaryShape(1_000, 5),
    "message key": SummaryShape(1_000, 5, KeySettings(by="key")),
    "header": SummaryShape(1_000, 5, KeySettings(by="header:camera")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--segments", type=int, nargs="+", default=[10_000, 250])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for size in arguments.segments:
        store = MemoryStore()
        published = publish(store, arguments.rows, size)
        if size < SMALL_ROWS:
            compact(store, clock=SystemClock(), today=date.max)
        files = len(paths_in(store, CARS))
        print(f"\n{arguments.rows:,} rows in segments of {size:,}, in {files} files; rows/s")
        for name, shape in SHAPES.items():
            runs: dict[str, Callable[[], int]] = {
                "decode columns": partial(decode, store, shape),
                "row by row": partial(row_by_row, store, shape),
                "summarise_chain": partial(from_files, store, shape),
                "summarise": partial(from_records, published, shape),
            }
            report(name, runs, arguments.rows, arguments.rounds)


def publish(store: MemoryStore, rows: int, size: int) -> Published:
    """Make and publish the chain."""
    p_values = np.random.default_rng(0).random(rows).tolist()
    log = memory_log(store)
    position = log.begin(CARS, 0)
    published: Published = []
    for base in range(0, rows, size):
        records = [record(offset, p_values[offset]) for offset in range(base, base + size)]
        segment = log.publish(CARS, position, base + size, records)
        position = segment.position
        published.append((segment, records))
    return published


def record(offset: int, p_value: float) -> ScoredRecord:
    """One row, of one of the keys."""
    key = b"camera-%d" % (offset % KEYS)
    event_time_ms = NOON_MS + offset * 1_000 // ROWS_PER_S
    where = origin(offset, event_time_ms=event_time_ms, key=key, headers=(("camera", key),))
    read = dataclasses.replace(where, ingest_time_ms=event_time_ms + 5)
    return scored(read, p_value=p_value, class_name=f"class-{offset % 10}")


def decode(store: MemoryStore, shape: SummaryShape) -> int:
    """Read the columns that a summary needs, and count the rows."""
    names = rows_schema(shape.key_by).names
    return sum(b.num_rows for file, _ in walk(store, CARS) for b in file.batches(names))


def row_by_row(store: MemoryStore, shape: SummaryShape) -> int:
    """Count the records of each pane and key as Python objects."""
    schema, rows = rows_schema(shape.key_by), 0
    for file, _ in walk(store, CARS):
        for _, table in divide(file.parts(), file.batches(schema.names), schema):
            times = table.column("event_time").cast(pa.int64())
            plain = table.set_column(schema.names.index("event_time"), "event_time", times)
            counts: Counter[tuple[int, bytes | None]] = Counter()
            for row in plain.drop_columns(["ingest_time"]).to_pylist():
                pane = row["event_time"] - row["event_time"] % shape.pane_ms
                counts[pane, row.get("key")] += row["status"] == "ok"
            rows += counts.total()
    return rows


def from_files(store: MemoryStore, shape: SummaryShape) -> int:
    """Summarise the files."""
    summaries = summarise_chain(store, CARS, 0, EVERYTHING, shape)
    return sum(int(summary.panes.records.sum()) for summary in summaries)


def from_records(published: Published, shape: SummaryShape) -> int:
    """Summarise the records, as a worker does."""
    return sum(
        int(summarise_records(segment, records, shape).panes.records.sum())
        for segment, records in published
    )


def report(name: str, runs: dict[str, Callable[[], int]], rows: int, rounds: int) -> None:
    """Time them in turn, and print rows a second and how often that is the row-by-row rate."""
    seconds: dict[str, list[float]] = {run: [] for run in runs}
    for _ in range(rounds):
        for run, call in runs.items():
            start = time.perf_counter()
            if call() != rows:
                raise SystemExit(f"{run} has not seen all rows")
            seconds[run].append(time.perf_counter() - start)
    medians = {run: statistics.median(found) for run, found in seconds.items()}
    slow = medians["row by row"]
    print(f"  {name}")
    for run, median in medians.items():
        print(f"    {run:16} {rows / median:12,.0f}   {slow / median:5.1f} times row by row")


if __name__ == "__main__":
    main()
