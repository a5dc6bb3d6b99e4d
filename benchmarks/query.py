"""How long an auditor waits: seconds for each kind of question to a large scored log.

    python -m benchmarks.query [--rows 10000000] [--rounds 3] [--log FOLDER] [--no-index] [--alike]
        [--shell]

The log is made once in the folder by the writer that workers have, in chains of 10 partitions over
30 days, more where a file had above 250,000 rows else, a file a partition and day as compaction
leaves them, with their index: 100 cameras in the message key and in a header, 10 classes, one row
in twenty flagged, one in a thousand without scores, two models and calibrations, one after the
other. Without ``--log`` it lies in a temporary folder, and goes. With ``--alike`` the writer writes
partitions 0 and 1 alone, and the others have the rows of 0: their files are copies of which the
footers are exchanged, segments and indexes like any, made five times as fast. In one process, or
with ``--shell`` as ``nap-stream query`` each time. Medians of the rounds, and the least, in seconds
of the clock and of all cores' time, which other programs disturb less.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nap_stream.clock import ManualClock
from nap_stream.records import TopicPartition
from nap_stream.scored_log.chain import ScoredLog, WriterIdentity
from nap_stream.scored_log.compact import DEFAULT_LIMITS, compact
from nap_stream.scored_log.counting import GroupBy, aggregate
from nap_stream.scored_log.footer import segment_sha256
from nap_stream.scored_log.format import ROWS, rows_of, segment_path
from nap_stream.scored_log.index import TAIL_BYTES, IndexUse, index_path, mark_of
from nap_stream.scored_log.query import Query, listed, most_anomalous, scan
from nap_stream.scored_log.read import segments
from nap_stream.scored_log.segment import read_footer
from nap_stream.scored_log.stores.local import LocalStore

PARTITIONS = 10
DAYS = 30
CAMERAS = 100
CLASSES = ("bolt", "cap", "clip", "gear", "nut", "pin", "ring", "seal", "spring", "washer")
FIRST_MS = 1_777_593_600_000  # 2026-05-01T00:00:00Z
DAY_MS = 86_400_000
FAILED = 0.001


def make_log(root: Path, rows: int, *, alike: bool = False) -> None:
    """Publish the log, or go on with one that was begun."""
    days = max(DAYS, -(-rows // (PARTITIONS * DEFAULT_LIMITS.max_rows)))
    each = rows // (PARTITIONS * days)
    store = LocalStore(root)
    for number in range(2 if alike else PARTITIONS):
        partition = TopicPartition("frames", number)
        for day in range(days):
            half = "1" if day < days // 2 else "2"
            writer = WriterIdentity("benchmark", f"a{half}" * 32, f"b{half}" * 32)
            log = ScoredLog(store, writer, ManualClock(FIRST_MS + (day + 1) * DAY_MS))
            position = log.begin(partition, 0)
            if position.offset == day * each:
                table = day_rows(number, day, each)
                log.publish(partition, position, (day + 1) * each, table)
    # There is nothing to merge, but each file gets its index.
    compact(store, clock=ManualClock(FIRST_MS + (days + 9) * DAY_MS))
    for number in range(2, PARTITIONS if alike else 2):
        copy_first(store, number)


def copy_first(store: LocalStore, number: int) -> None:
    """Make a partition of the rows of partition 0, with footers and indexes of its own."""
    partition = TopicPartition("frames", number)
    writer = WriterIdentity("benchmark", "a1" * 32, "b1" * 32)
    position = ScoredLog(store, writer, ManualClock(FIRST_MS)).begin(partition, 0)
    if position.offset:
        return
    previous = position.previous_sha256
    for path in segments(store, TopicPartition("frames", 0)):
        content, footer = store.read(path), read_footer(store, path)
        index = store.read(index_path(path))
        assert content is not None
        assert footer is not None
        assert index is not None
        own = replace(footer, partition=partition, previous_sha256=previous)
        where = segment_path(partition, footer.base_offset)
        renamed = {footer.previous_sha256: previous}
        of_file = {"nap_stream.partition\x18\x010": f"nap_stream.partition\x18\x01{number}"}
        copied = _exchanged(content, renamed | of_file)
        store.create(where, copied)
        was, mark = (mark_of(each[-TAIL_BYTES:], len(each)).hex() for each in (content, copied))
        of_index = {'"partition": "0"': f'"partition": "{number}"'}
        store.prepare(index_path(where).rpartition("/")[0])
        own_index = _exchanged(index, renamed | of_index | {was: mark})
        store.replace(index_path(where), own_index)
        previous = segment_sha256(own)


def _exchanged(content: bytes, texts: dict[str, str]) -> bytes:
    """Bytes in whose end each of some texts, which stands there once, is another as long."""
    body, end = content[:-TAIL_BYTES], content[-TAIL_BYTES:]
    for text, other in texts.items():
        assert end.count(text.encode()) == 1
        assert len(text) == len(other)
        end = end.replace(text.encode(), other.encode())
    return body + end


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
    digits = random.bytes(32 * count).hex()
    digests = [digits[place : place + 64] for place in range(0, 64 * count, 64)]
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
    sha256 = digest_of(store)
    month = (FIRST_MS, FIRST_MS + 31 * DAY_MS)
    camera = Query(keys=(b"camera-0",), is_ood=True, since_ms=month[0], until_ms=month[1])

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
            next(scan(store, Query(keys=(b"camera-0",)), use=use)).num_rows
        ),
        "--sort p-value --limit 10": lambda: most_anomalous(store, Query(), 10, use=use).num_rows,
    }


def digest_of(store: LocalStore) -> str:
    """The SHA-256 of an image that is in one row of the log."""
    place = Query(partitions=(1,), offsets=(50, 50))
    found: str = next(scan(store, place)).column("sha256")[0].as_py()
    return found


def shell_questions(root: Path, *, with_index: bool) -> dict[str, Callable[[], object]]:
    """Some of them as commands."""
    options = (
        *("--by day,class", "--by key", "--partition 3 --offset 50"),
        *(f"--sha256 {digest_of(LocalStore(root))}", "--sort p-value --limit 10"),
    )

    def ask(words: str) -> Callable[[], object]:
        command = ["nap-stream", "query", "--log", str(root), "--format", "json", *words.split()]
        program = f"import sys; sys.argv = {command}; from nap_stream.cli import main; main()"
        return lambda: subprocess.run(  # noqa: S603  our own words
            [sys.executable, "-c", program],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    rest = "" if with_index else " --no-index"
    return {words[:30]: ask(words + rest) for words in options}


def used_s() -> float:
    """Seconds of cores that this process and those that it started took."""
    return sum(os.times()[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--no-index", action="store_true")
    parser.add_argument("--alike", action="store_true")
    parser.add_argument("--shell", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.log or Path(folder)
        make_log(root, arguments.rows, alike=arguments.alike)
        asked = shell_questions if arguments.shell else questions
        for name, ask in asked(root, with_index=not arguments.no_index).items():
            clock, cores = [], []
            for _ in range(arguments.rounds):
                began, used = time.perf_counter(), used_s()
                ask()
                clock.append(time.perf_counter() - began)
                cores.append(used_s() - used)
            took, spent = statistics.median(clock), statistics.median(cores)
            least = f"least {min(clock):8.2f} {min(cores):8.2f}"
            print(f"{name:30} {took:8.2f} s {spent:8.2f} s of cores, {least}", flush=True)


if __name__ == "__main__":
    main()
