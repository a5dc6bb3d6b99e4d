import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from nap_stream.errors import ChainBrokenError, LogRootError
from nap_stream.records import Status, TopicPartition
from nap_stream.scored_log import read
from nap_stream.scored_log.files import SCAN_SCHEMA
from nap_stream.scored_log.format import segment_name, segment_path, temporary_name
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.stores.local import LocalStore
from tests.scored_log.builders import CARS, NOON_MS, chain, failed, local_log, origin, scored
from tests.support.log_files import read_footer, read_table, tail

OTHER = TopicPartition("cars", 10)
DIGITS = TopicPartition("2024", 2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three partitions of two topics, one of which is named like a number."""
    chain(
        tmp_path,
        [
            (3, [scored(origin(0), p_value=0.01), failed(origin(2))]),
            (9, []),
            (
                12,
                [
                    scored(origin(9, 0, event_time_ms=NOON_MS + 50), p_value=0.2, class_id=7),
                    scored(origin(9, 1, event_time_ms=NOON_MS + 99), class_name="7"),
                ],
            ),
        ],
    )
    chain(tmp_path, [(1, [scored(origin(0, partition=OTHER), class_name="dog")])], OTHER)
    chain(tmp_path, [(1, [scored(origin(0, partition=DIGITS))])], DIGITS)
    return tmp_path


def _found(root: Path, query: Query) -> list[tuple[str, int, int, int]]:
    batches = list(scan(LocalStore(root), query, ["topic", "partition", "offset", "index"]))
    rows = [row for batch in batches for row in batch.to_pylist()]
    return [(row["topic"], row["partition"], row["offset"], row["index"]) for row in rows]


A, B, C, D = ("cars", 0, 0, 0), ("cars", 0, 2, 0), ("cars", 0, 9, 0), ("cars", 0, 9, 1)
E, F = ("cars", 10, 0, 0), ("2024", 2, 0, 0)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(), [F, A, B, C, D, E]),
        (Query(topic="cars"), [A, B, C, D, E]),
        (Query(topic="2024"), [F]),
        (Query(topic="none"), []),
        (Query(topic="cars", partitions=(10,)), [E]),
        (Query(partitions=(0, 2)), [F, A, B, C, D]),
        (Query(since_ms=NOON_MS + 50), [C, D]),
        (Query(since_ms=NOON_MS + 1, until_ms=NOON_MS + 99), [C]),
        (Query(until_ms=NOON_MS + 1, topic="cars"), [A, B, E]),
        (Query(classes=("dog",)), [E]),
        (Query(classes=("7",)), [C, D]),
        (Query(classes=("dog", "7")), [C, D, E]),
        (Query(classes=("3",), topic="cars"), [A, D, E]),
        (Query(classes=("9" * 30,)), []),
        (Query(is_ood=True), [A]),
        (Query(is_ood=False, topic="cars"), [C, D, E]),
        (Query(max_p_value=0.2), [A, C]),
        (Query(min_p_value=0.2, max_p_value=0.2), [C]),
        (Query(statuses=(Status.CORRUPT,)), [B]),
        (Query(statuses=(Status.CORRUPT, Status.OK), is_ood=True), [A]),
    ],
)
def test_filters(root: Path, query: Query, expected: list[tuple[str, int, int, int]]) -> None:
    assert _found(root, query) == expected


def test_a_scan_has_topic_and_partition_once_and_then_the_files_columns(root: Path) -> None:
    batch = next(scan(LocalStore(root), Query()))
    assert batch.schema.equals(SCAN_SCHEMA)
    assert len(set(batch.schema.names)) == len(batch.schema.names) == 38


def test_a_plain_reader_sees_topic_and_partition_once_beside_files_in_the_making(
    root: Path,
) -> None:
    (root / "topic=cars/partition=0" / temporary_name()).write_bytes(b"half a segment")
    plain = ds.dataset(root, format="parquet", partitioning="hive").to_table()
    assert plain.num_rows == 6
    assert sorted(plain.column_names) == sorted(SCAN_SCHEMA.names)
    keys = zip(
        *(plain.column(n).to_pylist() for n in ("topic", "partition", "offset", "index")),
        strict=True,
    )
    assert sorted(keys) == sorted([A, B, C, D, E, F])
    assert pq.read_table(root).num_rows == 6


def test_readers_beside_a_writer_see_a_prefix_of_its_chain(tmp_path: Path) -> None:
    log = local_log(tmp_path)
    position = log.begin(CARS, 0)
    position = log.publish(CARS, position, 1, [scored(origin(0))]).position
    stop = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        at = position
        try:
            while not stop.is_set():
                at = log.publish(CARS, at, at.offset + 1, [scored(origin(at.offset))]).position
        except BaseException as error:  # noqa: BLE001 (the test's thread raises it)
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(8):
            ours = [row[2] for row in _found(tmp_path, Query())]
            plain = ds.dataset(tmp_path, format="parquet", partitioning="hive")
            offsets = sorted(plain.to_table(columns=["offset"]).column("offset").to_pylist())
            assert ours == list(range(len(ours)))
            assert len(set(offsets)) == len(offsets) >= len(ours)
    finally:
        stop.set()
        thread.join()
    assert not failures


class _Listings(LocalStore):
    """A store whose listings of a chain are given, then true."""

    def __init__(self, root: Path, listings: list[list[int]]) -> None:
        super().__init__(root)
        self._listings = listings

    def names(self, folder: str, first: str = "") -> list[str]:
        if not folder.endswith("partition=0") or not self._listings:
            return super().names(folder, first)
        return [name for base in self._listings.pop(0) if (name := segment_name(base)) >= first]


def test_a_listing_that_missed_a_segment_is_made_whole(root: Path) -> None:
    store = _Listings(root, [[9, 0], [3, 9, 12, 0]])
    assert read.segments(store, CARS) == tuple(segment_path(CARS, base) for base in (0, 3, 9))


@pytest.mark.parametrize("listings", [[[9, 0]], [[9, 3]], [[9]], [[9, 0], [9, 0, 3]]])
def test_a_scan_makes_a_listing_whole_that_missed_a_segment(
    root: Path, listings: list[list[int]]
) -> None:
    found = list(scan(_Listings(root, listings), Query(topic="cars", partitions=(0,))))
    assert [o for batch in found for o in batch.column("offset").to_pylist()] == [0, 2, 9, 9]


def test_the_tail_makes_a_listing_whole_that_missed_a_segment(root: Path) -> None:
    assert tail(_Listings(root, [[9, 0]]), CARS, 99) == 0


def test_partitions_are_found_in_order(root: Path) -> None:
    (root / "topic=cars" / "notes").mkdir()
    (root / "topic=cars" / "partition=x").mkdir()
    (root / "README").write_text("")
    assert read.partitions(LocalStore(root)) == (DIGITS, CARS, OTHER)
    assert read.partitions(LocalStore(root), "cars") == (CARS, OTHER)
    assert read.partitions(LocalStore(root), "dogs") == ()


@pytest.mark.parametrize(
    ("records", "start"), [(0, None), (1, 9), (2, 9), (3, 0), (4, 0), (100, 0)]
)
def test_the_tail_counts_scored_rows(root: Path, records: int, start: int | None) -> None:
    assert tail(LocalStore(root), CARS, records) == start


def test_the_tail_of_nothing_is_empty(root: Path) -> None:
    assert tail(LocalStore(root), TopicPartition("dogs", 0), 5) is None


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogRootError, match="there is no scored log"):
        next(scan(LocalStore(tmp_path / "none"), Query()))


def test_an_empty_root_has_no_rows(tmp_path: Path) -> None:
    assert list(scan(LocalStore(tmp_path), Query())) == []


def test_a_corrupt_segment_is_named(root: Path) -> None:
    path = segment_path(CARS, 9)
    (root / path).write_bytes(b"PAR1 not parquet PAR1")
    with pytest.raises(ChainBrokenError, match=path):
        list(scan(LocalStore(root), Query()))
    with pytest.raises(ChainBrokenError, match=path):
        read_footer(LocalStore(root), path)
    with pytest.raises(ChainBrokenError, match=path):
        read_table(LocalStore(root), path)


def test_times_are_typed(root: Path) -> None:
    batch = next(scan(LocalStore(root), Query(), ["event_time"]))
    assert batch.column("event_time").type == pa.timestamp("ms", tz="UTC")
