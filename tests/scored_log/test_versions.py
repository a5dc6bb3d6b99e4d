"""Chains that begin in one version and go on in a later one."""

import copy
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_stream.clock import ManualClock
from nap_stream.errors import ChainBrokenError
from nap_stream.scored_log import segment as segments_of_files
from nap_stream.scored_log.compact import compact
from nap_stream.scored_log.counting import GroupBy, aggregate
from nap_stream.scored_log.files import SCAN_SCHEMA
from nap_stream.scored_log.footer import segment_sha256, to_metadata
from nap_stream.scored_log.format import (
    SCHEMA,
    SCHEMAS,
    parse_segment_path,
    segment_path,
    storable_text,
)
from nap_stream.scored_log.output import OutputFormat, write_batches
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.read import parts_backwards, segments
from nap_stream.scored_log.segment import encode_segment, rows_sha256
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.summary import SummaryShape, summarise_chain
from nap_stream.scored_log.verify.compared import compare_with_kept
from nap_stream.scored_log.verify.report import DefectKind, VerifyReport
from nap_stream.scored_log.verify.run import verify as verify_log
from tests.scored_log.builders import (
    CARS,
    NOON_MS,
    failed,
    make_version,
    memory_log,
    of_version,
    origin,
    record_lists,
    scored,
    without_path,
)
from tests.support.log_files import read_footer, run_query
from tests.support.memory_store import MemoryStore
from tests.support.scored_records import ScoredRecord

LATER = (
    *("fdbd", "mahalanobis", "gen", "nci"),
    *("decode_warning", "source_uri"),
    "calibration_p_value",
)
OF_SCORES = (*LATER[:4], *LATER[6:])
BEFORE, COUNT = 3, 6
"""Segments in version 3, and segments at all; each has two offsets and a row for each."""
TOMORROW = ManualClock(NOON_MS + 86_400_000)


def _rows(base: int) -> list[ScoredRecord]:
    fdbd, nci = (float(base), -1.5) if base >= 2 * BEFORE else (None, None)
    first = scored(origin(base), p_value=0.01, knn=1.25, fdbd=fdbd, nci=nci)
    return [first, failed(origin(base + 1))]


def _publish(store: MemoryStore) -> None:
    log = memory_log(store)
    position = log.begin(CARS, 0)
    for base in range(0, 2 * COUNT, 2):
        position = log.publish(CARS, position, base + 2, _rows(base)).position


Logs = tuple[MemoryStore, MemoryStore]


@pytest.fixture(scope="module")
def made() -> Logs:
    new = MemoryStore()
    _publish(new)
    mixed = copy.copy(new)
    make_version(mixed, CARS, BEFORE)
    return mixed, new


@pytest.fixture
def logs(made: Logs) -> Logs:
    """The same log twice: the first half of the one is in version 3, nothing of the other."""
    mixed, new = made
    return copy.copy(mixed), copy.copy(new)


@pytest.fixture
def mixed(logs: Logs) -> MemoryStore:
    return logs[0]


def _verified(store: SegmentStore, *, deep: bool = True) -> VerifyReport:
    return verify_log(store, deep=deep, clock=ManualClock())


def _files(store: SegmentStore) -> list[tuple[int, int, int]]:
    """Base offset, version and segments of each file."""
    footers = [(path, read_footer(store, path)) for path in segments(store, CARS)]
    return [
        (parse_segment_path(path)[1], footer.schema_version, len(footer.parts))
        for path, footer in footers
    ]


def _digests(store: SegmentStore) -> list[str]:
    return [segment_sha256(part) for part in parts_backwards(store, CARS)][::-1]


def _copied(store: SegmentStore, folder: Path) -> Path:
    for path in segments(store, CARS):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(store.read(path) or b"")
    return folder


def test_the_chain_goes_on_in_version_6() -> None:
    store = MemoryStore()
    log = memory_log(store)
    log.publish(CARS, log.begin(CARS, 0), 2, _rows(0))
    make_version(store, CARS, 1)
    position = log.end(CARS)
    assert position is not None
    assert position.previous_sha256 == segment_sha256(read_footer(store, segment_path(CARS, 0)))
    log.publish(CARS, position, 4, _rows(2))
    assert _files(store) == [(0, 3, 1), (2, 6, 1)]
    assert _verified(store).clean


@pytest.mark.parametrize("deep", [False, True])
def test_it_is_whole_before_and_after_a_compaction(mixed: MemoryStore, deep: bool) -> None:
    before, digests = _verified(mixed, deep=deep), _digests(mixed)
    assert before.clean
    assert (before.segments, before.rows, before.offsets) == (COUNT, 2 * COUNT, 2 * COUNT)
    assert compact(mixed, clock=TOMORROW).clean
    after = _verified(mixed, deep=deep)
    assert after.clean
    assert (after.segments, after.rows, after.heads) == (COUNT, 2 * COUNT, before.heads)
    assert _digests(mixed) == digests
    assert list(compare_with_kept(mixed, before.heads)) == []


def test_a_compacted_file_is_of_one_version(mixed: MemoryStore) -> None:
    report = compact(mixed, clock=TOMORROW)
    assert (report.clean, report.segments, report.files) == (True, COUNT - 1, 2)
    assert _files(mixed) == [(0, 3, BEFORE), (2 * BEFORE, 6, COUNT - BEFORE - 1), (10, 6, 1)]
    assert compact(mixed, clock=TOMORROW).files == 0


def test_rows_of_version_3_have_null_in_the_columns_that_came_later(logs: Logs) -> None:
    mixed, new = logs
    rows = run_query(mixed, Query())
    assert rows.schema.equals(SCAN_SCHEMA, check_metadata=True)
    assert rows.column("fdbd").to_pylist() == [*[None] * 6, 6, None, 8, None, 10, None]
    assert rows.column("knn").to_pylist() == [1.25, None] * COUNT
    assert rows.equals(run_query(new, Query()))
    compact(mixed, clock=TOMORROW)
    assert run_query(mixed, Query()).equals(rows)


def _scanned(store: SegmentStore, query: Query, columns: list[str] | None) -> pa.Table:
    schema = SCAN_SCHEMA if columns is None else pa.schema([SCAN_SCHEMA.field(n) for n in columns])
    return pa.Table.from_batches(list(scan(store, query, columns)), schema=schema)


COLUMNS = [
    None,
    ["fdbd"],
    ["topic", "nci"],
    ["partition"],
    ["nci", "offset", "knn", "fdbd"],
    ["status", "event_time"],
]


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize(
    ("query", "rows"),
    [
        (Query(), 2 * COUNT),
        (Query(is_ood=True), COUNT),
        (Query(until_ms=NOON_MS + 1, classes=("cat",)), COUNT),
        (Query(max_p_value=0.5, topic="cars", partitions=(0,)), COUNT),
        (Query(until_ms=NOON_MS), 0),
    ],
)
def test_any_scan_finds_the_same_in_both(
    logs: Logs, query: Query, rows: int, compacted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed, new = logs
    if compacted:
        # Several row groups: such files are filtered as they are read.
        monkeypatch.setattr(segments_of_files, "ROW_GROUP_ROWS", 2)
        compact(mixed, clock=TOMORROW)
    whole = _scanned(new, query, None)
    assert whole.num_rows == rows
    for columns in COLUMNS:
        found, expected = (
            _scanned(mixed, query, columns),
            whole.select(columns or whole.schema.names),
        )
        assert found.schema.equals(expected.schema, check_metadata=True)
        assert found.equals(expected)


@pytest.mark.parametrize("by", list(GroupBy))
def test_counts_are_the_same_in_both(logs: Logs, by: GroupBy) -> None:
    mixed, new = logs
    assert aggregate(mixed, Query(), by).equals(aggregate(new, Query(), by))


@pytest.mark.parametrize("shape", list(OutputFormat))
def test_what_is_written_of_both_is_the_same(logs: Logs, shape: OutputFormat) -> None:
    mixed, new = logs

    def written(store: SegmentStore) -> bytes:
        output = io.BytesIO()
        write_batches(SCAN_SCHEMA, scan(store, Query()), shape, output)
        return output.getvalue()

    assert written(mixed) == written(new)


@pytest.mark.parametrize("compacted", [False, True])
def test_summaries_are_the_same_of_both(logs: Logs, compacted: bool) -> None:
    mixed, new = logs

    def summaries(store: SegmentStore) -> Iterator[Any]:
        for summary in summarise_chain(store, CARS, 0, 2 * COUNT, SummaryShape(100, 2)):
            yield without_path(summary)

    expected = list(summaries(new))
    if compacted:
        compact(mixed, clock=TOMORROW)
    assert list(summaries(mixed)) == expected
    assert len(expected) == COUNT


def test_plain_readers_read_a_mixed_folder(mixed: MemoryStore, tmp_path: Path) -> None:
    compact(mixed, clock=TOMORROW)
    root = _copied(mixed, tmp_path)
    # A dataset takes its columns from the first file, unless it is told which to show.
    plain = ds.dataset(root, format="parquet", partitioning="hive").to_table()
    assert plain.num_rows == pq.read_table(root).num_rows == 2 * COUNT
    assert plain.column_names == [*SCHEMAS[3].names, "topic", "partition"]
    log = ds.dataset(root, format="parquet", partitioning="hive")
    columns = [file.physical_schema for file in log.get_fragments()]
    whole = log.replace_schema(pa.unify_schemas([*columns, log.schema]))
    by_offset = whole.to_table().sort_by([("offset", "ascending"), ("index", "ascending")])
    assert by_offset.select(SCHEMA.names).equals(run_query(mixed, Query()).select(SCHEMA.names))
    flagged = whole.to_table(columns=["fdbd"], filter=pc.field("nci") < 0)
    assert flagged.column("fdbd").to_pylist() == [6, 8, 10]
    assert sorted(whole.schema.names) == sorted(SCAN_SCHEMA.names)
    source = f"read_parquet('{root}/**/*.parquet', hive_partitioning = true, union_by_name = true)"
    with duckdb.connect() as connection:
        found = connection.sql(f'SELECT fdbd, knn FROM {source} ORDER BY "offset"').fetchall()
    assert found == list(
        zip(*(by_offset.column(n).to_pylist() for n in ("fdbd", "knn")), strict=True)
    )


@pytest.mark.parametrize(
    ("base", "version", "differing"),
    [
        (4, "6", LATER),
        (6, "3", LATER),
        (4, "4", LATER[:4]),
        (6, "4", LATER[4:]),
        (6, "5", LATER[6:]),
    ],
    ids=["3 as 6", "6 as 3", "3 as 4", "6 as 4", "6 as 5"],
)
def test_a_file_has_the_columns_of_its_own_version(
    mixed: MemoryStore, base: int, version: str, differing: tuple[str, ...]
) -> None:
    path = segment_path(CARS, base)
    mixed.replace(path, of_version(mixed.read(path) or b"", version))
    for deep in (False, True):
        defects = [defect for defect in _verified(mixed, deep=deep).defects if defect.file == path]
        assert [defect.kind for defect in defects] == [DefectKind.SCHEMA]
        assert defects[0].detail == f"columns differ: {', '.join(sorted(differing))}"


@pytest.mark.parametrize(
    ("query", "missing"),
    [
        (Query(), f"columns are missing: {', '.join(sorted(LATER))}"),
        (Query(is_ood=True), f'column "{LATER[0]}" not found'),
    ],
    ids=["all rows", "flagged ones"],
)
def test_a_column_that_its_version_has_is_missed(
    mixed: MemoryStore, query: Query, missing: str
) -> None:
    path = segment_path(CARS, 4)
    mixed.replace(path, of_version(mixed.read(path) or b"", "6"))
    with pytest.raises(ChainBrokenError, match=missing):
        run_query(mixed, query)


def test_nothing_is_merged_where_the_columns_are_of_another_version(mixed: MemoryStore) -> None:
    before = _files(mixed)
    path = segment_path(CARS, 0)
    table = pq.read_table(pa.BufferReader(mixed.read(path) or b""))
    widened = pa.Table.from_arrays(
        [*table.columns, *(pa.nulls(table.num_rows, SCHEMA.field(name).type) for name in LATER)],
        schema=SCHEMA,
    )
    mixed.replace(path, encode_segment(read_footer(mixed, path), widened))
    report = compact(mixed, clock=TOMORROW)
    assert "its columns are not those of the log" in report.refusals[0].reason
    assert _files(mixed) == before


def test_a_changed_value_in_a_compacted_file_of_version_3_shows(mixed: MemoryStore) -> None:
    compact(mixed, clock=TOMORROW)
    path = segment_path(CARS, 0)
    table = pq.read_table(pa.BufferReader(mixed.read(path) or b""))
    index = table.schema.get_field_index("knn")
    values = [*table.column(index).to_pylist()[:-2], 1.5, None]
    field = table.schema.field(index)
    changed = table.set_column(index, field, pa.array(values, pa.float64()))
    mixed.replace(path, encode_segment(read_footer(mixed, path), changed))
    defects = _verified(mixed).defects
    assert [(defect.file, defect.kind) for defect in defects] == [(path, DefectKind.ROWS_HASH)] * 2
    assert "segment [4, 6)" in defects[0].detail


def test_a_compacted_file_that_says_version_6_of_segments_of_version_3_is_refused(
    mixed: MemoryStore,
) -> None:
    compact(mixed, clock=TOMORROW)
    path = segment_path(CARS, 0)
    footer = read_footer(mixed, path)
    table = pq.read_table(pa.BufferReader(mixed.read(path) or b""))
    widened = pa.Table.from_arrays(
        [*table.columns, *(pa.nulls(table.num_rows, SCHEMA.field(name).type) for name in LATER)],
        schema=SCHEMA,
    )
    told = dataclasses.replace(footer, schema_version=6, rows_sha256=rows_sha256(widened))
    mixed.replace(path, encode_segment(told, widened))
    assert to_metadata(told)["nap_stream.schema_version"] == "6"
    first = _verified(mixed).defects[0]
    assert (first.file, first.kind) == (path, DefectKind.FOOTER)
    assert "contradicts the footers that it merged in schema_version" in first.detail


def _as_read(record: ScoredRecord, before: bool) -> tuple[float | str | None, ...]:
    *of_scores, knn = [getattr(record.scores, name, None) for name in (*OF_SCORES, "knn")]
    texts = [record.decode_warning, record.source_uri]
    stored = [text if text is None else storable_text(text) for text in texts]
    later = [*of_scores[:4], *stored, *of_scores[4:]]
    return (*([None] * len(LATER) if before else later), knn)


@settings(max_examples=10)
@given(
    records=record_lists,
    cuts=st.lists(st.integers(1, 50), max_size=5, unique=True).map(sorted),
    count=st.integers(0, 6),
)
def test_any_chain_is_read_compacted_and_verified(
    records: list[ScoredRecord], cuts: list[int], count: int
) -> None:
    store = MemoryStore()
    log = memory_log(store)
    position = log.begin(CARS, 0)
    ends = [*cuts, 51]
    for end in ends:
        own = [record for record in records if position.offset <= record.origin.offset < end]
        position = log.publish(CARS, position, end, own).position
    make_version(store, CARS, count)
    change = 0 if not count else ends[min(count, len(ends)) - 1]
    expected = [_as_read(record, record.origin.offset < change) for record in records]

    def found() -> list[tuple[float | str | None, ...]]:
        rows = [row for batch in scan(store, Query()) for row in batch.to_pylist()]
        return [tuple(row[name] for name in (*LATER, "knn")) for row in rows]

    assert found() == expected
    heads = _verified(store).heads
    compact(store, clock=TOMORROW)
    assert found() == expected
    report = _verified(store)
    assert report.clean
    assert report.heads == heads


def test_a_chain_of_four_versions_is_read_verified_and_compacted() -> None:
    store, new = MemoryStore(), MemoryStore()
    _publish(store)
    _publish(new)
    make_version(store, CARS, 5, 5)
    make_version(store, CARS, 4, 4)
    make_version(store, CARS, 2, 3)
    before = _verified(store)
    assert before.clean
    assert run_query(store, Query()).column("knn").equals(run_query(new, Query()).column("knn"))
    assert run_query(store, Query()).column("fdbd").to_pylist()[8::2] == [8, 10]
    compact(store, clock=TOMORROW)
    assert _files(store) == [(0, 3, 2), (4, 4, 2), (8, 5, 1), (10, 6, 1)]
    assert _verified(store).heads == before.heads
