"""What readers see beside writers and compactions: nap-stream's own, pyarrow.dataset, DuckDB."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Self

import duckdb
import pyarrow.dataset as ds
import pytest

from nap_stream.clock import ManualClock, SystemClock
from nap_stream.records import TopicPartition
from nap_stream.scored_log.chain import chain_end
from nap_stream.scored_log.compact import LOCK_NAME, compact
from nap_stream.scored_log.compact_plan import FileLimits
from nap_stream.scored_log.format import partition_folder, temporary_name
from nap_stream.scored_log.prune import Request, prune
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.read import segments
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.summary import SummaryShape, summarise_chain
from nap_stream.scored_log.verify.run import verify
from tests.scored_log.builders import CARS, chain, local_log, origin, scored
from tests.scored_log.failing_store import DyingStore, Killed
from tests.support.log_files import read_footer, tail
from tests.support.waiting import wait_until

OTHER = TopicPartition("cars", 1)
NEVER = date.max
Offsets = Counter[tuple[int, int]]
"""How often each (partition, offset) was read."""


def _pyarrow(root: Path) -> Offsets:
    table = ds.dataset(root, format="parquet", partitioning="hive").to_table(
        columns=["partition", "offset"]
    )
    return Counter(zip(*(table.column(n).to_pylist() for n in table.column_names), strict=True))


def _duckdb(root: Path) -> Offsets:
    with duckdb.connect() as connection:
        rows = connection.execute(
            'SELECT partition, "offset" FROM read_parquet(?, hive_partitioning = true)',
            [f"{root}/topic=*/partition=*/*.parquet"],
        ).fetchall()
    return Counter((int(partition), int(offset)) for partition, offset in rows)


def _ours(root: Path) -> Offsets:
    batches = scan(LocalStore(root), Query(), ["partition", "offset"])
    rows = [row for batch in batches for row in batch.to_pylist()]
    named = [(row["partition"], row["offset"]) for row in rows]
    assert named == sorted(named)
    return Counter(named)


PAUSE_S = 0.01
"""Between two segments of a writer: readers are to have some beside whom they read."""

readers = pytest.mark.parametrize("read", [_ours, _pyarrow, _duckdb])


class Writer:
    """Publishes a segment after another of a partition, with one row each, in a thread."""

    def __init__(self, root: Path, partition: TopicPartition, pause_s: float) -> None:
        self.partition, self._pause_s = partition, pause_s
        self._log = local_log(root, f"writer-{partition.partition}")
        self._position = self._log.begin(partition, 0)
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"writer {partition}")

    @property
    def end(self) -> int:
        return self._position.offset

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._pause_s):
                base = self._position.offset
                record = scored(origin(base, partition=self.partition))
                published = self._log.publish(self.partition, self._position, base + 1, [record])
                self._position = published.position
        except BaseException as error:  # noqa: BLE001 (the test's thread raises it)
            self.failure = error


@contextmanager
def _writing(
    root: Path, *partitions: TopicPartition, pause_s: float = PAUSE_S
) -> Iterator[list[Writer]]:
    writers = [Writer(root, partition, pause_s) for partition in partitions]
    for writer in writers:
        writer.start()
    try:
        wait_until(lambda: all(writer.end > 3 for writer in writers), "the first segments")
        yield writers
    finally:
        for writer in writers:
            writer.stop()
    assert [writer.failure for writer in writers] == [None] * len(writers)


def _published(writers: list[Writer], under_way: int = 0) -> set[tuple[int, int]]:
    ends = {writer.partition.partition: writer.end + under_way for writer in writers}
    return {(partition, offset) for partition, end in ends.items() for offset in range(end)}


@readers
def test_every_reader_is_right_beside_writers(
    tmp_path: Path, read: Callable[[Path], Offsets]
) -> None:
    """All that was durable before, each row once, nothing that was not published."""
    (tmp_path / LOCK_NAME).write_text("{}")
    with _writing(tmp_path, CARS, OTHER) as writers:
        (tmp_path / partition_folder(CARS) / temporary_name()).write_bytes(b"half a segment")
        for _ in range(6):
            before = _published(writers)
            found = read(tmp_path)
            assert set(found.values()) == {1}
            assert before <= found.keys() <= _published(writers, under_way=1)


def test_our_reader_sees_a_prefix_of_each_chain_beside_writers(tmp_path: Path) -> None:
    with _writing(tmp_path, CARS, OTHER) as writers:
        for _ in range(10):
            ends = [writer.end for writer in writers]
            found = _ours(tmp_path)
            for writer, end in zip(writers, ends, strict=True):
                offsets = [o for p, o in found if p == writer.partition.partition]
                assert offsets == list(range(len(offsets)))
                assert len(offsets) >= end


class Compactor:
    """Compacts again and again, in a thread; every day is over."""

    def __init__(self, root: Path) -> None:
        self.files = 0
        self.failure: BaseException | None = None
        self._store = LocalStore(root)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="compactor")

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                limits = FileLimits(8, 2**30)
                report = compact(self._store, clock=SystemClock(), today=NEVER, limits=limits)
                assert report.clean, report.refusals
                self.files += report.files
        except BaseException as error:  # noqa: BLE001 (the test's thread raises it)
            self.failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self.failure is None, self.failure


def test_our_reader_is_exact_while_compaction_exchanges_files(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with _writing(tmp_path, CARS) as (writer,), Compactor(tmp_path) as compactor:
        reads = 0
        while compactor.files < 8 or reads < 6:
            assert compactor.failure is None
            end = writer.end
            found = _ours(tmp_path)
            assert set(found.values()) == {1}
            assert list(found) == [(0, offset) for offset in range(len(found))]
            assert len(found) >= end
            start = tail(store, CARS, 20)
            assert start is not None
            # A segment is there a moment before its writer knows.
            after = chain_end(store, CARS)
            assert after is not None
            assert start <= max(after.offset - 20, 0)
            summaries = summarise_chain(store, CARS, start, 2**62, SummaryShape(100, 1))
            bases = [summary.base_offset for summary in summaries]
            assert bases == list(range(start, start + len(bases)))
            reads += 1
    assert any(read_footer(store, path).merged for path in segments(store, CARS))


def test_prunes_beside_writers_readers_and_verification(tmp_path: Path) -> None:
    """Two days later by the clock of who prunes: all but the newest files may go.

    The writers are slow, so that what is to be done in each round does not grow.
    """
    store, clock = LocalStore(tmp_path), ManualClock(SystemClock().now_ms() + 2 * 86_400_000)
    request = Request(clock.now_ms(), "Ann", "90 days")
    pruned = 0
    with _writing(tmp_path, CARS, OTHER, pause_s=0.2) as writers:
        for number in range(4):
            before = _published(writers)
            done = prune(store, request, clock=clock)
            assert done.refusals == ()
            pruned += sum(span.rows for span in done.spans)
            if number % 2:
                assert compact(store, clock=clock).refusals == ()
            found = _ours(tmp_path)
            assert set(found.values()) == {1}
            assert len(found) + pruned >= len(before)
            assert verify(store).defects == ()
        ends = [writer.end for writer in writers]
    assert pruned > 0
    assert [head.end_offset for head in verify(store).heads] >= ends
    assert pruned + len(_ours(tmp_path)) == sum(writer.end for writer in writers)


@pytest.mark.parametrize("removed", [0, 1, 2])
@readers
def test_in_the_midst_of_an_exchange_no_reader_misses_a_row(
    tmp_path: Path, read: Callable[[Path], Offsets], removed: int
) -> None:
    """Steps: the lock, the merged file in place of the first, three indexes, then each removal."""
    chain(tmp_path, [(end, [scored(origin(end - 1))]) for end in range(1, 6)])
    with pytest.raises(Killed):
        compact(DyingStore(LocalStore(tmp_path), 5 + removed), clock=SystemClock(), today=NEVER)
    found = read(tmp_path)
    assert found.keys() == {(0, offset) for offset in range(5)}
    twice = {offset for (_, offset), count in found.items() if count == 2}
    assert set(found.values()) <= {1, 2}
    assert twice == (set() if read is _ours else set(range(removed + 1, 4)))
