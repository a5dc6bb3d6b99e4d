"""The index: answers are the same with it and without, and one that lies is found."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_stream.clock import ManualClock
from nap_stream.errors import ConfigError, ScoredLogError
from nap_stream.objects import ObjectStore, RequestLimits
from nap_stream.records import Status, TopicPartition
from nap_stream.scored_log import files, index, names
from nap_stream.scored_log.compact import compact
from nap_stream.scored_log.counting import GroupBy, aggregate
from nap_stream.scored_log.files import SCAN_SCHEMA
from nap_stream.scored_log.index import IndexUse, index_path, write_index
from nap_stream.scored_log.query import Query, most_anomalous, scan
from nap_stream.scored_log.read import segments
from nap_stream.scored_log.sql import run_sql
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.verify.report import DefectKind
from nap_stream.scored_log.verify.run import verify
from tests.scored_log.builders import CARS, MODEL, NOON_MS, failed, memory_log, origin, scored
from tests.support.memory_store import MemoryStore

OTHER = TopicPartition("cars", 1)
HOUR_MS = 3_600_000
ROWS = 200
TOMORROW = ManualClock(NOON_MS + 24 * HOUR_MS)


def _record(offset: int, partition: TopicPartition) -> Any:
    """Few classes, keys and hours, so that there are counts; each image once."""
    number = 2 * offset + partition.partition
    where = origin(
        offset,
        partition=partition,
        event_time_ms=NOON_MS + offset * 2 * HOUR_MS // ROWS,
        key=b"a" if number % 3 else None,
    )
    if number % 40 == 0:
        return failed(where, Status.CORRUPT)
    kind = (3, "cat") if number % 5 else (5, "d\u00f6g")
    made = scored(where, p_value=0.01 if number % 5 else 0.5, class_id=kind[0], class_name=kind[1])
    return replace(made, sha256=f"{number * 0x9E3779B97F4A7C15 % 2**64:064x}"[::-1])


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    """Two partitions of two compacted files each, and a segment."""
    store = MemoryStore()
    for partition in (CARS, OTHER):
        log = memory_log(store)
        position = log.begin(partition, 0)
        for base in range(0, ROWS, 20):
            rows = [_record(offset, partition) for offset in range(base, base + 20)]
            position = log.publish(partition, position, base + 20, rows).position
            if base == ROWS // 2:
                compact(store, clock=TOMORROW)
    assert compact(store, clock=TOMORROW).clean
    assert [len(segments(store, each)) for each in (CARS, OTHER)] == [3, 3]
    return store


def _rows(store: SegmentStore, query: Query, use: IndexUse | None) -> pa.Table:
    return pa.Table.from_batches(scan(store, query, use=use), SCAN_SCHEMA)


_digests = st.sampled_from(
    [digest for offset in range(1, 30) if (digest := _record(offset, CARS).sha256) is not None]
)


def _some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.just(()) | st.lists(values, min_size=1, max_size=2).map(tuple)


_times = st.none() | st.sampled_from(
    [NOON_MS + quarter * HOUR_MS // 4 + odd for quarter in range(-1, 10) for odd in (0, 1)]
)
QUERIES = st.builds(
    Query,
    partitions=_some(st.integers(0, 1)),
    since_ms=_times,
    until_ms=_times,
    classes=_some(st.sampled_from(["cat", "d\u00f6g", "3"])),
    is_ood=st.none() | st.booleans(),
    max_p_value=st.none() | st.none() | st.just(0.1),
    statuses=_some(st.sampled_from([Status.OK, Status.CORRUPT])),
    keys=_some(st.sampled_from([b"a", b"b"])),
    offsets=st.none() | st.none() | st.tuples(st.integers(0, 90), st.integers(90, 200)),
    sha256=_some(_digests | st.just("f" * 64)) | st.just(()),
    models=_some(st.sampled_from([MODEL[:6], "ff"])),
)


@settings(max_examples=40, deadline=None)
@given(query=QUERIES, by=st.permutations(list(GroupBy)).map(lambda order: order[:2]))
def test_answers_with_the_index_are_those_without(
    store: MemoryStore, query: Query, by: list[GroupBy]
) -> None:
    assert _rows(store, query, IndexUse()).equals(_rows(store, query, None))
    counts = aggregate(store, query, *by)
    assert aggregate(store, query, *by, use=IndexUse()).equals(counts)
    assert aggregate(store, query, *by, use=IndexUse(), held_counts=1).equals(counts)
    assert most_anomalous(store, query, 5, use=IndexUse()).equals(most_anomalous(store, query, 5))


def _asked(ask: Callable[[IndexUse], object]) -> tuple[int, int, int]:
    use = IndexUse()
    ask(use)
    return use.files, use.counted, use.passed_over


def test_an_answer_says_what_it_took_from_the_index(store: MemoryStore) -> None:
    by = (GroupBy.DAY, GroupBy.CLASS)
    digest = next(iter(_rows(store, Query(offsets=(7, 7)), None)["sha256"].to_pylist()))
    assert _asked(lambda use: aggregate(store, Query(), *by, use=use)) == (4, 4, 0)
    assert _asked(lambda use: aggregate(store, Query(), GroupBy.KEY, use=use)) == (4, 4, 0)
    assert _asked(lambda use: aggregate(store, Query(max_p_value=1), *by, use=use)) == (4, 0, 0)
    hour = Query(since_ms=NOON_MS + 1, until_ms=NOON_MS + HOUR_MS)
    assert _asked(lambda use: aggregate(store, hour, *by, use=use)) == (4, 0, 0)
    assert _asked(lambda use: _rows(store, Query(sha256=(digest,)), use)) == (4, 0, 3)
    assert _asked(lambda use: _rows(store, Query(keys=(b"b",)), use)) == (4, 0, 4)


def _indexes(store: MemoryStore) -> list[str]:
    paths = [path for each in (CARS, OTHER) for path in segments(store, each)]
    return [index_path(path) for path in paths if store.read(index_path(path)) is not None]


def _copy(store: MemoryStore) -> MemoryStore:
    copy = MemoryStore()
    copy._files = dict(store._files)
    return copy


def _tree(content: bytes) -> tuple[bytes, dict[str, Any]]:
    (length,) = struct.unpack("<I", content[-12:-8])
    return content[: -12 - length], json.loads(content[-12 - length : -12])


def _with_tree(parts: bytes, tree: dict[str, Any]) -> bytes:
    text = json.dumps(tree).encode()
    return parts + text + struct.pack("<I", len(text)) + b"NAPINDX1"


def _without_an_image(content: bytes) -> bytes:
    parts, tree = _tree(content)
    start, size = tree["sha256"]
    return _with_tree(parts, {**tree, "sha256": [start, size - 4]})


def _of_another_time(content: bytes) -> bytes:
    parts, tree = _tree(content)
    return _with_tree(parts, {**tree, "footer": {**tree["footer"], "max_event_time_ms": "0"}})


def _with_the_counts_of(other: bytes) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        parts, tree = _tree(content)
        start, size, whole = _tree(other)[1]["counts"]
        return _with_tree(
            parts + _tree(other)[0][start : start + size],
            {**tree, "counts": [len(parts), size, whole]},
        )

    return change


def test_an_index_that_lies_is_a_defect_and_made_anew(store: MemoryStore) -> None:
    paths = _indexes(store)
    assert len(paths) == 4
    assert verify(store, deep=True).clean
    other = store.read(paths[1])
    assert other is not None
    changes = (_without_an_image, _with_the_counts_of(other))
    for change, said in zip(changes, ("sha256", "counts"), strict=True):
        lying = _copy(store)
        content = lying.read(paths[0])
        assert content is not None
        lying.replace(paths[0], change(content))
        assert verify(lying).clean
        (defect,) = verify(lying, deep=True).defects
        assert (defect.file, defect.kind) == (paths[0], DefectKind.INDEX)
        assert said in defect.detail
        assert compact(lying, clock=TOMORROW).indexed == 0
        assert compact(lying, clock=TOMORROW, rebuild_index=True).indexed == 4
        assert lying.read(paths[0]) == content


def test_an_index_whose_footer_is_no_footer_of_its_file_is_a_defect(store: MemoryStore) -> None:
    lying, path = _copy(store), _indexes(store)[0]
    content = lying.read(path)
    assert content is not None
    parts, tree = _tree(content)
    tree["footer"]["end_offset"] = str(ROWS)
    lying.replace(path, _with_tree(parts, tree))
    assert [defect.file for defect in verify(lying, deep=True).defects] == [path]


def test_an_index_of_another_file_does_not_count_and_is_made_again(store: MemoryStore) -> None:
    changed, paths = _copy(store), _indexes(store)
    for path, other in ((paths[0], paths[1]), (paths[2], paths[3])):
        content = changed.read(other)
        assert content is not None
        changed.replace(path, content)
    changed.replace(index_path("topic=cars/partition=0/00000000000000000777.parquet"), b"")
    query = Query(keys=(b"a",))
    assert _rows(changed, query, IndexUse()).equals(_rows(store, query, None))
    assert _asked(lambda use: _rows(changed, query, use))[0] == 2
    assert verify(changed, deep=True).clean
    assert compact(changed, clock=TOMORROW).indexed == 2
    assert changed._files == store._files


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_bytes_in_place_of_an_index_do_no_harm(store: MemoryStore, data: st.DataObject) -> None:
    hostile, path = _copy(store), _indexes(store)[0]
    content = bytearray(hostile.read(path) or b"")
    for _ in range(data.draw(st.integers(1, 8))):
        content[-1 - data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 20))
    hostile.replace(path, bytes(content[cut:]))
    assert aggregate(hostile, Query(), GroupBy.CLASS, use=IndexUse()).num_rows
    _rows(hostile, Query(sha256=("ab" * 32,), keys=(b"a",)), IndexUse())
    verify(hostile, deep=True)


def test_a_log_whose_digests_are_no_digests_is_answered() -> None:
    odd = MemoryStore()
    log = memory_log(odd)
    position = log.begin(CARS, 0)
    for offset, digest in enumerate(("short", "\u00e9" * 32, None, "A" * 64, "0" * 64)):
        record = replace(_record(offset + 1, CARS), origin=origin(offset), sha256=digest)
        position = log.publish(CARS, position, offset + 1, [record]).position
    compact(odd, clock=TOMORROW)
    assert len(_indexes(odd)) == 1
    for digest in ("A" * 64, "short", "0" * 64):
        assert _rows(odd, Query(sha256=(digest,)), IndexUse()).num_rows == 1
    assert verify(odd, deep=True).clean


def test_a_file_without_rows_has_an_index_too() -> None:
    empty = MemoryStore()
    log = memory_log(empty)
    position = log.begin(CARS, 0)
    for end in (1, 2, 3):
        position = log.publish(CARS, position, end, [], gap="retention").position
    compact(empty, clock=TOMORROW)
    assert len(_indexes(empty)) == 1
    assert verify(empty, deep=True).clean
    assert not aggregate(empty, Query(), GroupBy.KEY, use=IndexUse()).num_rows


def test_an_object_store_is_asked_as_memory_is(store: MemoryStore, s3_root: str) -> None:
    """Small objects are read whole, larger ones in ranges."""
    objects = ObjectStore(s3_root, limits=RequestLimits(max_whole_bytes=20_000))
    for path, content in store._files.items():
        assert objects.create(path, content)
    digest = _rows(store, Query(offsets=(7, 7)), None)["sha256"][0].as_py()
    for query in (
        Query(),
        Query(sha256=(digest,)),
        Query(keys=(b"a",), is_ood=True),
        Query(offsets=(95, 130), partitions=(1,)),
        Query(since_ms=NOON_MS + HOUR_MS, statuses=(Status.CORRUPT,)),
    ):
        expected = _rows(store, query, None)
        assert expected.num_rows
        for use in (None, IndexUse()):
            assert _rows(objects, query, use).equals(expected)
            by = (GroupBy.HOUR, GroupBy.CLASS)
            assert aggregate(objects, query, *by, use=use).equals(aggregate(store, query, *by))
            best = most_anomalous(objects, query, 5, use=use)
            assert best.equals(most_anomalous(store, query, 5))
    assert _asked(lambda use: _rows(objects, Query(sha256=(digest,)), use)) == (4, 0, 3)
    assert verify(objects, deep=True).clean
    asked = "SELECT class_name, count(*) AS n FROM records GROUP BY ALL ORDER BY ALL"
    answers = [
        run_sql(each, asked, Query(), limit=9, seconds=60, memory_bytes=2**28, unread=[])
        for each in (store, objects)
    ]
    assert answers[0].equals(answers[1])
    assert answers[0].num_rows == 3


class _CompactedMeanwhile(MemoryStore):
    """A log that is compacted when one of its files is opened to be read, and not to be listed."""

    def __init__(self) -> None:
        super().__init__()
        self._opened: set[str] | None = None

    def arm(self) -> None:
        """From now on."""
        self._opened = set()

    def open(self, path: str) -> Any:
        if self._opened is not None and path in self._opened:
            self._opened = None
            assert compact(self, clock=TOMORROW).files == 1
        elif self._opened is not None:
            self._opened.add(path)
        return super().open(path)


def test_what_the_index_counted_is_not_read_too_where_files_are_exchanged() -> None:
    store = _CompactedMeanwhile()
    log = memory_log(store)
    position = log.begin(CARS, 0)
    paths = []
    for base in range(0, 80, 20):
        rows = [scored(origin(offset)) for offset in range(base, base + 20)]
        published = log.publish(CARS, position, base + 20, rows)
        position = published.position
        paths.append(published.path)
    write_index(store, paths[1], store.read(paths[1]) or b"")
    store.arm()
    use = IndexUse()
    counts = aggregate(store, Query(), GroupBy.CLASS, use=use)
    assert (use.counted, segments(store, CARS)) == (1, (paths[0], paths[3]))
    assert counts.column("rows").to_pylist() == [80]


class _RefusesNothing(MemoryStore):
    """As an object store that refuses a range of no bytes."""

    def read_part(self, path: str, start: int, count: int) -> tuple[bytes, int] | None:
        if not count:
            raise ScoredLogError("416 Range Not Satisfiable", path)
        return super().read_part(path, start, count)


class _LosesParts(MemoryStore):
    """Gives the end of an index alone."""

    def read_part(self, path: str, start: int, count: int) -> tuple[bytes, int] | None:
        if path.startswith("_index") and start >= 0:
            raise ScoredLogError("503 Slow Down", path)
        return super().read_part(path, start, count)


def _segments_with_indexes(store: MemoryStore, key: Callable[[int], bytes | None]) -> list[str]:
    """Three segments, of which the first two have an index."""
    log = memory_log(store)
    position = log.begin(CARS, 0)
    paths = []
    for base in range(0, 60, 20):
        rows = [scored(origin(offset, key=key(offset))) for offset in range(base, base + 20)]
        published = log.publish(CARS, position, base + 20, rows)
        position = published.position
        paths.append(published.path)
    for path in paths[:2]:
        write_index(store, path, store.read(path) or b"")
    return paths


def test_a_file_without_keys_asks_no_store_for_nothing() -> None:
    store = _RefusesNothing()
    _segments_with_indexes(store, lambda offset: None if offset < 20 else b"a")
    use = IndexUse()
    assert _rows(store, Query(keys=(b"a",)), use).num_rows == 40
    assert (use.files, use.passed_over) == (2, 1)
    assert verify(store, deep=True).clean


def test_where_the_store_fails_for_the_index_the_files_are_read(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_END_BYTES", 1_500)
    failing = _LosesParts()
    failing._files = dict(store._files)
    for query in (Query(), Query(keys=(b"a",))):
        expected = aggregate(store, query, GroupBy.KEY)
        assert aggregate(failing, query, GroupBy.KEY, use=IndexUse()).equals(expected)
    assert {defect.kind for defect in verify(failing, deep=True).defects} == {DefectKind.INDEX}


def test_an_index_that_lies_about_where_its_file_ends_is_not_believed() -> None:
    store = MemoryStore()
    paths = _segments_with_indexes(store, lambda _: b"a")
    for end, tail in ((40, index.TAIL_BYTES), (10, index.TAIL_BYTES), (40, 100), (10, 100)):
        with pytest.MonkeyPatch.context() as patch:
            # A file whose footer is longer than what is read of its end.
            patch.setattr(index, "TAIL_BYTES", tail)
            patch.setattr(files, "TAIL_BYTES", tail)
            write_index(store, paths[0], store.read(paths[0]) or b"")
            parts, tree = _tree(store.read(index_path(paths[0])) or b"")
            tree["footer"]["end_offset"] = str(end)
            store.replace(index_path(paths[0]), _with_tree(parts, tree))
            use = IndexUse()
            assert _rows(store, Query(), use).num_rows == 60
            assert use.files == (tail > 100)


@pytest.mark.parametrize(
    "lie", [{"min_event_time_ms": "0", "max_event_time_ms": "0"}, {"schema_version": "5"}]
)
def test_an_index_is_not_believed_of_a_footer_longer_than_what_is_read_of_each_file(
    lie: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (index, files):
        monkeypatch.setattr(module, "TAIL_BYTES", 100)
    store = MemoryStore()
    paths = _segments_with_indexes(store, lambda _: b"a")
    query = Query(since_ms=NOON_MS - HOUR_MS, classes=("cat",))
    whole = _rows(store, query, None)
    assert _asked(lambda use: _rows(store, query, use))[0] == 2
    parts, tree = _tree(store.read(index_path(paths[0])) or b"")
    tree["footer"] |= lie
    store.replace(index_path(paths[0]), _with_tree(parts, tree))
    assert whole.num_rows
    assert _rows(store, query, IndexUse()).equals(whole)
    assert _asked(lambda use: _rows(store, query, use))[0] == 1


def test_an_index_is_told_of_also_where_it_only_listed_a_file(store: MemoryStore) -> None:
    assert _asked(lambda use: _rows(store, Query(offsets=(150, 200)), use))[0] == 4


def _with_counts(content: bytes, made: bytes) -> bytes:
    parts, tree = _tree(content)
    packed = pa.compress(made, "zstd", asbytes=True)
    tree["counts"] = [len(parts), len(packed), len(made)]
    return _with_tree(parts + packed, tree)


def _ipc(table: pa.Table, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def _counts_of(content: bytes) -> pa.Table:
    parts, tree = _tree(content)
    start, size, whole = tree["counts"]
    with pa.ipc.open_stream(pa.decompress(parts[start : start + size], whole, "zstd")) as stream:
        return stream.read_all()


def test_counts_are_not_unpacked_without_a_bound_and_odd_ones_give_the_rows(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_MOST_COUNTS_BYTES", 2**16)
    path = _indexes(store)[0]
    content = store.read(path) or b""
    true = _counts_of(content)
    place = true.column_names.index("event_time")
    late = pa.array([2**63 - 1] + [-(2**63)] * (true.num_rows - 1)).cast(true["event_time"].type)
    large = pa.DictionaryArray.from_arrays(
        pa.array([0] * true.num_rows, pa.int32()), pa.array(["x" * 2**15])
    )
    status = true.column_names.index("status")
    expected = aggregate(store, Query(), GroupBy.HOUR)
    for made in (
        _ipc(true, "zstd"),
        _ipc(true, "lz4"),
        _ipc(true.set_column(place, true.schema.field(place), late)),
        _ipc(true.set_column(status, true.schema.field(status), large)),
    ):
        odd = _copy(store)
        odd.replace(path, _with_counts(content, made))
        use = IndexUse()
        assert aggregate(odd, Query(), GroupBy.HOUR, use=use).equals(expected)
        assert use.counted in {0, 3}
        assert [defect.kind for defect in verify(odd, deep=True).defects] == [DefectKind.INDEX]


def test_prefixes_that_do_not_ascend_pass_over_no_file(store: MemoryStore) -> None:
    odd, path = _copy(store), _indexes(store)[0]
    parts, tree = _tree(odd.read(path) or b"")
    start, size = tree["sha256"]
    own = parts[start : start + size]
    turned = b"".join(own[at : at + 4] for at in range(size - 4, -1, -4))
    odd.replace(path, _with_tree(parts[:start] + turned + parts[start + size :], tree))
    for digest in _rows(store, Query(offsets=(0, 9)), None)["sha256"].drop_null().to_pylist():
        query = Query(sha256=(digest,))
        assert _rows(odd, query, IndexUse()).equals(_rows(store, query, None))


class _ExchangesIndexes(MemoryStore):
    """Another index has taken the name when a part is read."""

    def read_part(self, path: str, start: int, count: int) -> tuple[bytes, int] | None:
        found = super().read_part(path, start, count)
        if found is None or start < 0 or not path.startswith("_index"):
            return found
        return bytes(len(found[0])), found[1] + 1


def test_an_index_that_is_exchanged_while_it_is_read_hides_no_row(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_END_BYTES", 1_500)
    exchanged = _ExchangesIndexes()
    exchanged._files = dict(store._files)
    query = Query(keys=(b"a",))
    assert _rows(exchanged, query, IndexUse()).equals(_rows(store, query, None))


def test_digests_of_other_lengths_are_not_taken_for_such() -> None:
    odd = pa.chunked_array([["a" * 63, "b" * 65]])
    assert index._image_prefixes(odd) is None


@pytest.mark.parametrize(
    "query",
    [
        Query(keys=(b"b",)),
        Query(classes=("dog",)),
        Query(models=("ff",)),
        Query(calibrations=("f",)),
    ],
)
def test_a_mistyped_name_is_looked_for_where_no_index_tells(
    store: MemoryStore, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "TOLD_ROWS", 1)
    said: dict[bool, list[str]] = {True: [], False: []}
    errors = []
    for with_index, told in said.items():
        with pytest.raises(ConfigError) as caught:
            names.require_names(
                store, query, use=IndexUse() if with_index else None, tell=told.append
            )
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert "40 rows in 2 files are looked through" in said[True][0]
    assert "4 files hold is by their index" in said[True][1]
    assert "400 rows in 6 files are looked through" in said[False][0]
