"""How long an auditor waits: seconds for each kind of question to a large scored log.

    python -m benchmarks.query [--rows 10000000] [--rounds 3] [--log FOLDER] [--no-index]

The log is made once in the folder, in chains of 10 partitions over 30 days, a file a partition and
day as compaction leaves them, with their index: 100 cameras in the message key and in a header, 10
classes, one row in twenty flagged, one in a thousand without scores, two models and calibrations,
one after the other. Without ``--log`` it lies in a temporary folder, and goes. Medians of the
rounds, in seconds of the clock and of all cores' time, which other programs disturb less.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nap_stream.clock import ManualClock
from nap_stream.records import TopicPartition
from nap_stream.scored_log.chain import ScoredLog, WriterIdentity
from nap_stream.scored_log.compact import compact
from nap_stream.scored_log.counting import GroupBy, aggregate
from nap_stream.scored_log.format import ROWS, rows_of
from nap_stream.scored_log.index import IndexUse
from nap_stream.scored_log.query import Query, listed, most_anomalous, scan
from nap_stream.scored_log.stores.local import LocalStore

PARTITIONS = 10
DAYS = 30
CAMERAS = 100
CLASSES = ("bolt", "cap", "clip", "gear", "nut", "pin", "ring", "seal", "spring", "washer")
FIRST_MS = 1_777_593_600_000  # 2026-05-01T00:00:00Z
DAY_MS = 86_400_000
FAILED = 0.001


def make_log(root: Path, rows: int) -> None:
    """Publish the log, or go on with one that was begun."""
    each = rows // (PARTITIONS * DAYS)
    for number in range(PARTITIONS):
        partition = TopicPartition("frames", number)
        for day in range(DAYS):
            half = "1" if day < DAYS // 2 else "2"
            writer = WriterIdentity("benchmark", f"a{half}" * 32, f"b{half}" * 32)
            log = ScoredLog(LocalStore(root), writer, ManualClock(FIRST_MS + (day + 1) * DAY_MS))
            position = log.begin(partition, 0)
            if position.offset == day * each:
                table = day_rows(number, day, each)
                log.publish(partition, position, (day + 1) * each, table)
    # There is nothing to merge, but each file gets its index.
    compact(LocalStore(root), clock=ManualClock(FIRST_MS + (DAYS + 9) * DAY_MS))


def day_rows(partition: int, day: int, count: int) -> pa.Table:
    """A day of a partition, in order of event time."""
    random = np.random.default_rng((partition, day))
    camera = random.integers(0, CAMERAS // PARTITIONS, count) * PARTITIONS + partition
    names = pa.array([f"camera-{number}" for number in range(CAMERAS)])
    key = names.take(pa.array(camera)).cast(pa.binary())
    failed = pa.array(random.random(count) < FAILED)
    kind = pa.array(random.integers(0, len(CLASSES), count))
    p_value = random.random(count)
    time = pa.array(FIRST_MS + day * DAY_MS + np.arange(count) * DAY_MS // count)
    stamp = time.cast(pa.timestamp("ms", tz="UTC"))
    scores: dict[str, pa.Array] = {
        "class_id": kind,
        "class_name": pa.array(CLASSES).take(kind),
        "ood_p_value": pa.array(p_value),
        "is_ood": pa.array(p_value <= 0.05),
        **{
            name: pa.array(random.normal(10, 3, count))
            for name in ("confidence", "energy", "nap", "fused", "max_logit", "fdbd", "mahalanobis")
        },
    }
    digests = [random.bytes(32).hex() for _ in range(count)]
    headers = pa.ListArray.from_arrays(
        pa.array(np.arange(count + 1), pa.int32()),
        pa.StructArray.from_arrays(
            [pa.repeat("camera", count), key], fields=list(ROWS.field("headers").type.value_type)
        ),
    ).cast(ROWS.field("headers").type)
    columns = {
        "offset": pa.array(np.arange(day * count, (day + 1) * count)),
        "index": pa.repeat(pa.scalar(0, pa.int32()), count),
        "key": key,
        **dict.fromkeys(("event_time", "ingest_time", "scored_time"), stamp),
        "status": pa.array(["ok", "corrupt"]).take(failed.cast(pa.int8())),
        "error": pa.array([None, "cannot decode"]).take(failed.cast(pa.int8())),
        **{name: pc.if_else(failed, pa.scalar(None), each) for name, each in scores.items()},
        "width": pa.repeat(pa.scalar(640, pa.int64()), count),
        "height": pa.repeat(pa.scalar(480, pa.int64()), count),
        "format": pa.repeat("jpeg", count),
        "sha256": pa.array(digests),
        "headers": headers,
    }
    return pa.Table.from_batches([rows_of(columns, count)])


def questions(root: Path, *, with_index: bool) -> dict[str, Callable[[], object]]:
    """What an auditor asks, by the options of ``nap-stream query``."""
    store = LocalStore(root)
    use = IndexUse() if with_index else None
    by = (GroupBy.DAY, GroupBy.CLASS)
    place = Query(partitions=(3,), offsets=(50, 50))
    sha256 = next(scan(store, place)).column("sha256")[0].as_py()
    month = (FIRST_MS, FIRST_MS + 31 * DAY_MS)
    camera = Query(keys=(b"camera-3",), is_ood=True, since_ms=month[0], until_ms=month[1])

    def rows(query: Query) -> Callable[[], object]:
        return lambda: sum(batch.num_rows for batch in scan(store, query, use=use))

    return {
        "(list the files)": lambda: len(list(listed(store, Query(), None, use))),
        "--by day,class": lambda: aggregate(store, Query(), *by, use=use).num_rows,
        "--by key": lambda: aggregate(store, Query(), GroupBy.KEY, use=use).num_rows,
        "--key K --ood, a month": rows(camera),
        "--partition P --offset N": rows(place),
        "--sha256 S": rows(Query(sha256=(sha256,))),
        "--sha256 S, a day": rows(
            Query(sha256=(sha256,), since_ms=FIRST_MS, until_ms=FIRST_MS + DAY_MS)
        ),
        "--key K, the first row": lambda: (
            next(scan(store, Query(keys=(b"camera-3",)), use=use)).num_rows
        ),
        "--sort p-value --limit 10": lambda: most_anomalous(store, Query(), 10, use=use).num_rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--no-index", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.log or Path(folder)
        make_log(root, arguments.rows)
        for name, ask in questions(root, with_index=not arguments.no_index).items():
            clock, cores = [], []
            for _ in range(arguments.rounds):
                began, used = time.perf_counter(), time.process_time()
                ask()
                clock.append(time.perf_counter() - began)
                cores.append(time.process_time() - used)
            took, spent = statistics.median(clock), statistics.median(cores)
            print(f"{name:28} {took:8.2f} s {spent:8.2f} s of cores", flush=True)


if __name__ == "__main__":
    main()
