"""Logs of older versions, and chains that go from one version to the next.

``version_1`` beside this file is a log that the writer of version 1 wrote.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from nap_stream.clock import ManualClock
from nap_stream.core.panes import count_panes
from nap_stream.errors import ChainBrokenError
from nap_stream.records import ChainPosition, Example, ScoredRecord, Status, TopicPartition
from nap_stream.scored_log.footer import segment_sha256
from nap_stream.scored_log.format import (
    SCHEMA,
    SCHEMA_VERSION,
    SCHEMAS,
    segment_path,
    to_table,
    with_columns,
)
from nap_stream.scored_log.query import GroupBy, aggregate, run_query
from nap_stream.scored_log.read import (
    SCAN_SCHEMA,
    Query,
    read_footer,
    read_table,
    scan,
    segments,
    tail,
)
from nap_stream.scored_log.segment import encode_segment, may_merge, to_metadata
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.summary import SummaryShape, summarise_chain
from nap_stream.scored_log.verify.defects import ChainHead, DefectKind, VerifyReport
from nap_stream.scored_log.verify.run import verify as verify_log
from nap_stream.settings.schema import KeySettings
from tests.scored_log.builders import (
    CALIBRATION,
    CARS,
    MODEL,
    NOON_MS,
    chain,
    encode_old_version,
    failed,
    local_log,
    origin,
    publish_old_version,
    scored,
)

VERSION_1 = Path(__file__).with_name("version_1")
OLD, OLD_GAP, OLD_LAST, NEW, NEWEST = (segment_path(CARS, base) for base in (0, 3, 9, 12, 15))
NEW_ROWS = [scored(origin(12), p_value=0.02, fused=-7.25, knn=1.25), failed(origin(14))]
NEWEST_ROWS = [scored(origin(16), knn=0.5)]
ADDED = ["max_logit", "react", "ash", "scale", "dice", "knn"]
COLUMNS_OF_VERSION_1 = [
    *("offset", "index", "key", "event_time", "ingest_time", "scored_time"),
    *("model_fingerprint", "calibration_fingerprint", "status", "error"),
    *("class_id", "class_name", "confidence", "energy", "nap", "fused", "ood_p_value", "is_ood"),
    *("width", "height", "format", "sha256", "headers"),
]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Version 1: [0, 3) of two rows, a gap [3, 9), [9, 12) of two rows."""
    return Path(shutil.copytree(VERSION_1, tmp_path / "log"))


@pytest.fixture
def mixed(old: Path) -> Path:
    """The same, and [12, 15) of version 2, published after an upgrade."""
    assert publish_old_version(old, 15, NEW_ROWS, 2) == NEW
    return old


@pytest.fixture
def newest(mixed: Path) -> Path:
    """The same, and [15, 18) of version 3, published after another upgrade."""
    log = local_log(mixed, "upgraded")
    position = log.end(CARS)
    assert position is not None
    assert log.publish(CARS, position, 18, NEWEST_ROWS).path == NEWEST
    return mixed


def verify(root: Path, *, deep: bool = False) -> VerifyReport:
    return verify_log(LocalStore(root), deep=deep, clock=ManualClock())


def _kinds(root: Path) -> list[tuple[str, DefectKind]]:
    return [(defect.file, defect.kind) for defect in verify(root, deep=True).defects]


def test_the_newest_version_is_written() -> None:
    assert SCHEMA_VERSION == max(SCHEMAS) == 3
    assert SCHEMAS[2] is SCHEMAS[3] is SCHEMA


@pytest.mark.parametrize("path", [OLD, OLD_GAP, OLD_LAST])
def test_version_1_is_what_its_writer_wrote(path: str) -> None:
    assert pq.read_schema(VERSION_1 / path).equals(SCHEMAS[1])
    assert SCHEMAS[1].names == COLUMNS_OF_VERSION_1
    assert read_footer(LocalStore(VERSION_1), path).schema_version == 1


def test_version_2_adds_columns_at_the_end() -> None:
    assert SCHEMA.names == [*COLUMNS_OF_VERSION_1, *ADDED]
    assert {SCHEMA.field(name).type for name in ADDED} == {pa.float64()}
    assert all(SCHEMA.field(name).nullable for name in ADDED)


def test_a_log_of_version_1_is_whole() -> None:
    report = verify(VERSION_1, deep=True)
    assert report.clean, report.defects
    assert (report.segments, report.rows, report.gap_offsets) == (3, 4, 6)


def test_a_chain_goes_on_in_the_next_version(mixed: Path, request: pytest.FixtureRequest) -> None:
    report = verify(mixed, deep=True)
    assert report.clean, report.defects
    assert (report.segments, report.rows) == (4, 6)
    assert local_log(mixed).end(CARS) == ChainPosition(15, _file_sha256(mixed / NEW), 12)
    request.getfixturevalue("newest")
    report = verify(mixed, deep=True)
    assert report.clean, report.defects
    assert (report.segments, report.rows) == (5, 7)
    store = LocalStore(mixed)
    footers = [read_footer(store, path) for path in segments(store, CARS)]
    assert [footer.schema_version for footer in footers] == [1, 1, 1, 2, 3]
    assert footers[4].previous_sha256 == _file_sha256(mixed / NEW)
    end = local_log(mixed).end(CARS)
    assert end == ChainPosition(18, segment_sha256(footers[4]), 15)
    assert report.heads == (ChainHead(CARS, 0, 18, end.previous_sha256),)


def _file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_chain_of_version_2_alone_reads_on(tmp_path: Path) -> None:
    log = local_log(tmp_path)
    log.begin(CARS, 0)
    publish_old_version(tmp_path, 4, [scored(origin(1))], 2)
    publish_old_version(tmp_path, 9, [failed(origin(5))], 2)
    assert verify(tmp_path, deep=True).clean
    position = log.end(CARS)
    assert position is not None
    log.publish(CARS, position, 12, [scored(origin(9))])
    assert verify(tmp_path, deep=True).clean
    assert run_query(LocalStore(tmp_path), Query()).column("offset").to_pylist() == [1, 5, 9]


def test_a_change_in_version_2_breaks_the_chain_to_version_3(newest: Path) -> None:
    footer = read_footer(LocalStore(newest), NEW)
    rows = [scored(origin(12), p_value=0.03, fused=-7.25, knn=1.25), failed(origin(14))]
    (newest / NEW).write_bytes(encode_old_version(footer, rows, 2))
    assert _kinds(newest) == [(NEWEST, DefectKind.PREVIOUS_HASH)]


def test_segments_before_version_3_do_not_merge(newest: Path) -> None:
    store = LocalStore(newest)
    footers = [read_footer(store, path) for path in (OLD, OLD_GAP, OLD_LAST, NEW, NEWEST)]
    assert not any(may_merge(one, other) for one, other in pairwise(footers))


def test_a_scan_of_both_versions_has_null_where_there_was_no_column(mixed: Path) -> None:
    batches = list(scan(LocalStore(mixed), Query()))
    assert all(batch.schema.equals(SCAN_SCHEMA) for batch in batches)
    rows = run_query(LocalStore(mixed), Query())
    assert rows.column("offset").to_pylist() == [0, 2, 9, 9, 12, 14]
    assert rows.column("energy").to_pylist() == [4.5, None, 4.5, 4.5, 4.5, None]
    assert rows.column("fused").to_pylist() == [3.0, None, 3.0, 3.0, -7.25, None]
    assert rows.column("max_logit").to_pylist() == [None] * 4 + [4.25, None]
    assert rows.column("knn").to_pylist() == [None] * 4 + [1.25, None]
    assert all(rows.column(name).null_count == 6 for name in ("react", "ash", "scale", "dice"))
    assert rows.column("headers").to_pylist()[2] == [{"name": "source", "value": b"gate"}]


def test_a_scan_of_version_1_alone_has_all_columns(old: Path) -> None:
    rows = run_query(LocalStore(old), Query())
    assert rows.schema.equals(SCAN_SCHEMA)
    assert [rows.column(name).null_count for name in ADDED] == [4] * 6
    assert rows.column("class_name").to_pylist() == ["cat", None, "cat", "dog"]
    assert rows.column("ood_p_value").to_pylist() == [0.01, None, 0.2, 0.5]


def test_a_scan_of_some_columns_and_a_filter_span_versions(mixed: Path) -> None:
    batches = list(scan(LocalStore(mixed), Query(is_ood=True), ["knn", "offset"]))
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert rows == [{"knn": None, "offset": 0}, {"knn": 1.25, "offset": 12}]
    late = run_query(LocalStore(mixed), Query(since_ms=NOON_MS + 50, classes=("dog", "7")))
    assert late.column("index").to_pylist() == [0, 1]


def test_the_order_of_versions_does_not_matter_to_a_scan(mixed: Path) -> None:
    bikes = TopicPartition("bikes", 0)
    chain(mixed, [(1, [scored(origin(0, partition=bikes), knn=0.5)])], bikes)
    rows = run_query(LocalStore(mixed), Query())
    assert rows.column("topic").to_pylist() == ["bikes"] + ["cars"] * 6
    assert rows.column("knn").to_pylist() == [0.5, *[None] * 4, 1.25, None]


def test_counts_span_versions(mixed: Path) -> None:
    counts = aggregate(LocalStore(mixed), Query(), GroupBy.CLASS).to_pylist()
    assert [tuple(row.values()) for row in counts] == [
        (3, "cat", 2, 2, 2, 1.0),
        (3, "dog", 1, 1, 0, 0.0),
        (7, "cat", 1, 1, 0, 0.0),
        (None, None, 2, 0, 0, None),
    ]


def test_the_tail_spans_versions(mixed: Path) -> None:
    assert tail(LocalStore(mixed), CARS, 1) == 12
    assert tail(LocalStore(mixed), CARS, 2) == 9


def test_a_segment_of_version_1_is_read_with_todays_columns(mixed: Path) -> None:
    table = read_table(LocalStore(mixed), OLD)
    assert table.schema.equals(SCHEMA)
    assert table.column("confidence").to_pylist() == [0.75, None]
    assert [table.column(name).null_count for name in ADDED] == [2] * 6
    some = read_table(LocalStore(mixed), OLD, ["knn", "index", "nap"])
    assert some.to_pylist() == [
        {"knn": None, "index": 0, "nap": 2.25},
        {"knn": None, "index": 0, "nap": None},
    ]
    assert read_table(LocalStore(mixed), NEW, ["knn"]).column("knn").to_pylist() == [1.25, None]


@pytest.mark.parametrize("columns", [None, ["offset", "nap"]])
def test_a_column_that_every_version_has_cannot_be_missing(
    old: Path, columns: list[str] | None
) -> None:
    pq.write_table(pq.read_table(old / OLD).drop_columns(["nap"]), old / OLD)
    with pytest.raises(ChainBrokenError, match="columns are missing: nap") as caught:
        read_table(LocalStore(old), OLD, columns)
    assert caught.value.where == OLD


def test_rows_of_the_newest_version_stay_as_they_are() -> None:
    table = _table(NEW_ROWS)
    assert with_columns(table).equals(table)


def _table(records: Sequence[ScoredRecord]) -> pa.Table:
    return to_table(records, model_fingerprint=MODEL, calibration_fingerprint=CALIBRATION)


def test_segments_of_both_versions_are_summarised(mixed: Path) -> None:
    store = LocalStore(mixed)
    before, gap, _, after = summarise_chain(store, CARS, 0, 15, SummaryShape(100, 2, KeySettings()))
    assert before.rows_by_status == {Status.OK: 1, Status.CORRUPT: 1}
    assert before.panes == count_panes(
        np.array([NOON_MS]), np.array([0.01]), np.array([True]), pane_ms=100, keys=("camera-1",)
    )
    assert before.examples == (Example(CARS, 0, 0, NOON_MS, "camera-1", "cat", 0.01, OLD),)
    assert after.panes == before.panes
    assert after.examples == (Example(CARS, 12, 0, NOON_MS, "camera-1", "cat", 0.02, NEW),)
    assert (gap.gap, len(gap.panes)) == ("retention has deleted them", 0)


def test_a_change_in_the_old_part_breaks_the_chain(mixed: Path) -> None:
    footer = read_footer(LocalStore(mixed), OLD_LAST)
    rows = [scored(origin(9, n, event_time_ms=NOON_MS + ms)) for n, ms in ((0, 50), (1, 99))]
    (mixed / OLD_LAST).write_bytes(encode_old_version(footer, rows))
    assert _kinds(mixed) == [(NEW, DefectKind.PREVIOUS_HASH)]


def test_version_1_with_columns_of_version_2_is_a_defect(mixed: Path) -> None:
    footer = dataclasses.replace(read_footer(LocalStore(mixed), NEW), schema_version=1)
    (mixed / NEW).write_bytes(encode_segment(footer, _table(NEW_ROWS)))
    (defect,) = verify(mixed).defects
    assert (defect.file, defect.kind) == (NEW, DefectKind.SCHEMA)
    assert defect.detail == f"columns differ: {', '.join(sorted(ADDED))}"


def test_version_2_without_its_columns_is_a_defect(mixed: Path) -> None:
    table = pq.read_table(mixed / NEW).select(COLUMNS_OF_VERSION_1)
    metadata = to_metadata(read_footer(LocalStore(mixed), NEW))
    pq.write_table(table.replace_schema_metadata(metadata), mixed / NEW)
    assert _kinds(mixed) == [(NEW, DefectKind.SCHEMA)]


def test_content_of_version_1_is_checked(old: Path) -> None:
    footer = dataclasses.replace(read_footer(LocalStore(old), OLD_LAST), scored_rows=1)
    rows = [failed(origin(9, n, event_time_ms=NOON_MS + ms)) for n, ms in ((0, 50), (1, 99))]
    (old / OLD_LAST).write_bytes(encode_old_version(footer, rows))
    assert _kinds(old) == [(OLD_LAST, DefectKind.CONTENT)]


def test_a_chain_that_ends_in_an_unknown_version_is_not_continued(mixed: Path) -> None:
    footer = read_footer(LocalStore(mixed), NEW)
    unknown = dataclasses.replace(footer, schema_version=4, rows_sha256="0" * 64)
    (mixed / NEW).write_bytes(encode_segment(unknown, _table(NEW_ROWS)))
    assert _kinds(mixed) == [(NEW, DefectKind.SCHEMA_VERSION)]
    with pytest.raises(ChainBrokenError, match="schema version '4'; this program reads 1, 2, 3"):
        local_log(mixed).end(CARS)


def _plain(root: Path, **options: Any) -> pa.Table:
    return ds.dataset(root, format="parquet", partitioning="hive", **options).to_table()


def test_a_plain_reader_takes_the_columns_of_the_first_file(mixed: Path) -> None:
    plain = _plain(mixed)
    assert plain.num_rows == 6
    assert not set(ADDED) & set(plain.column_names)
    assert not set(ADDED) & set(pq.read_table(mixed).column_names)
    bikes = TopicPartition("bikes", 0)
    chain(mixed, [(1, [scored(origin(0, partition=bikes))])], bikes)
    assert _plain(mixed).sort_by("knn").column("knn").to_pylist() == [1.25, *[None] * 6]


def test_a_plain_reader_that_names_the_schema_sees_every_column(mixed: Path) -> None:
    keys = [pa.field("topic", pa.string()), pa.field("partition", pa.int32())]
    named = pa.schema([*pq.read_schema(mixed / NEW), *keys])
    plain = _plain(mixed, schema=named).sort_by([("offset", "ascending"), ("index", "ascending")])
    assert plain.select(SCAN_SCHEMA.names).equals(run_query(LocalStore(mixed), Query()))
