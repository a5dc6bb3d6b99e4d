import re
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given

from nap_stream.errors import ConfigError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.format import (
    EARLIEST_ROW_MS,
    EARLIEST_TIME_MS,
    GENESIS_NAME,
    LATEST_TIME_MS,
    OPTIONAL_SCORES,
    SCHEMA,
    SCHEMAS,
    genesis_path,
    is_hidden,
    is_temporary,
    parse_partition_folder,
    parse_segment_name,
    parse_segment_path,
    parse_topic_folder,
    partition_folder,
    row_time_ms,
    rows_of,
    segment_path,
    storable_text,
    storable_time_ms,
    temporary_name,
)
from nap_stream.scored_log.segment import encode_segment, event_time_range, rows_sha256
from tests.scored_log.builders import (
    CALIBRATION,
    CARS,
    MODEL,
    NOON_MS,
    origin,
    record_lists,
    scored,
)
from tests.support.scored_records import ScoredRecord, file_table, table_of


def test_paths() -> None:
    partition = TopicPartition("road.cars-2_x", 12)
    path = "topic=road.cars-2_x/partition=12/00000000000000000345.parquet"
    assert segment_path(partition, 345) == path
    assert parse_segment_path(path) == (partition, 345)
    assert genesis_path(partition) == "topic=road.cars-2_x/partition=12/_genesis.json"


@pytest.mark.parametrize(
    "topic",
    ["", ".", "..", "a/b", "a=b", "a b", "ä", "x" * 250, "__HIVE_DEFAULT_PARTITION__", "a\n"],
)
def test_a_topic_that_cannot_be_a_folder_is_refused(topic: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a topic"):
        partition_folder(TopicPartition(topic, 0))
    assert parse_topic_folder(f"topic={topic}") is None


def test_marker_and_temporary_files_are_hidden_and_no_segments() -> None:
    for name in (GENESIS_NAME, temporary_name()):
        assert is_hidden(name)
        assert not name.endswith(".parquet")
    assert is_temporary(temporary_name())
    assert not is_temporary(GENESIS_NAME)


@pytest.mark.parametrize(
    "name",
    ["1.parquet", "0" * 21 + ".parquet", "9" * 20 + ".parquet", "0" * 20 + ".parquet.tmp", "x"],
)
def test_other_names_are_no_segments(name: str) -> None:
    assert parse_segment_name(name) is None


@pytest.mark.parametrize(
    "name", ["partition=01", "partition=-1", "partition=", "p=1", "partition=1x"]
)
def test_other_names_are_no_partitions(name: str) -> None:
    assert parse_partition_folder(name) is None


@pytest.mark.parametrize("path", ["x", "topic=a/partition=0/x", "/topic=a/partition=0/" + "0" * 20])
def test_other_paths_are_no_segments(path: str) -> None:
    with pytest.raises(ValueError, match="not the path of a segment"):
        parse_segment_path(path)


def _through_parquet(records: list[ScoredRecord]) -> pa.Table:
    low, high = event_time_range(table_of(records))
    table = file_table(records, MODEL, CALIBRATION)
    footer = SegmentFooter(
        CARS,
        0,
        100,
        MODEL,
        CALIBRATION,
        len(records),
        0,
        low,
        high,
        "worker-0",
        NOON_MS,
        "0" * 64,
        rows_sha256(table),
    )
    return pq.read_table(pa.BufferReader(encode_segment(footer, table)))


@given(records=record_lists)
def test_rows_come_back_from_parquet_as_they_were(records: list[ScoredRecord]) -> None:
    table = _through_parquet(records)
    assert table.schema.equals(SCHEMA)
    times = table.column("event_time").cast(pa.int64()).to_pylist()
    assert times == [row_time_ms(r.origin.event_time_ms) for r in records]
    for row, record in zip(table.drop_columns(["event_time"]).to_pylist(), records, strict=True):
        assert (row["offset"], row["index"]) == (record.origin.offset, record.origin.index)
        assert row["key"] == record.origin.key
        assert row["status"] == record.status
        assert row["error"] == (None if record.error is None else storable_text(record.error))
        assert (row["width"], row["height"]) == (record.width, record.height)
        assert (row["format"], row["sha256"]) == (record.format, record.sha256)
        assert (row["model_fingerprint"], row["calibration_fingerprint"]) == (MODEL, CALIBRATION)
        assert [(h["name"], h["value"]) for h in row["headers"]] == [
            (storable_text(name), value) for name, value in record.origin.headers
        ]
        for name in (
            *("class_id", "confidence", "max_logit", "energy", "nap", "fused"),
            *("ood_p_value", "is_ood", *OPTIONAL_SCORES),
        ):
            assert row[name] == (None if record.scores is None else getattr(record.scores, name))


def test_a_row_reads_as_an_auditor_expects() -> None:
    headers = (("source", b"gate"), ("source", None))
    record = scored(origin(7, 1, headers=headers), fused=-3.5, knn=1.25, fdbd=-0.5)
    row = file_table([record], "m", "c").to_pylist()[0]
    assert row == {
        "offset": 7,
        "index": 1,
        "key": b"camera-1",
        "event_time": datetime(2026, 1, 1, 12, tzinfo=UTC),
        "ingest_time": datetime(2026, 1, 1, 12, 0, 0, 5000, tzinfo=UTC),
        "scored_time": datetime(2026, 1, 1, 12, 0, 0, 9000, tzinfo=UTC),
        "model_fingerprint": "m",
        "calibration_fingerprint": "c",
        "status": "ok",
        "error": None,
        "class_id": 3,
        "class_name": "cat",
        "confidence": 0.75,
        "energy": 4.5,
        "nap": 2.25,
        "fused": -3.5,
        "ood_p_value": 0.5,
        "is_ood": False,
        "width": 32,
        "height": 24,
        "format": "png",
        "sha256": "c3" * 32,
        "headers": [{"name": "source", "value": b"gate"}, {"name": "source", "value": None}],
        "max_logit": 4.25,
        "react": None,
        "ash": None,
        "scale": None,
        "dice": None,
        "knn": 1.25,
        "fdbd": -0.5,
        "mahalanobis": None,
        "gen": None,
        "nci": None,
        "decode_warning": None,
        "source_uri": None,
        "calibration_p_value": None,
    }
    assert list(row)[-7:-3] == ["fdbd", "mahalanobis", "gen", "nci"]


def test_version_4_is_version_3_and_four_columns_at_its_end() -> None:
    before, now = SCHEMAS[3], SCHEMAS[4]
    assert pa.schema(list(now)[: len(before)]).equals(before, check_metadata=True)
    added = [(field.name, field.type, field.nullable) for field in list(now)[len(before) :]]
    assert added == [(name, pa.float64(), True) for name in ("fdbd", "mahalanobis", "gen", "nci")]


def test_version_5_is_version_4_and_two_columns_at_its_end() -> None:
    before, now = SCHEMAS[4], SCHEMAS[5]
    assert pa.schema(list(now)[: len(before)]).equals(before, check_metadata=True)
    added = [(field.name, field.type, field.nullable) for field in list(now)[len(before) :]]
    assert added == [(name, pa.string(), True) for name in ("decode_warning", "source_uri")]


def test_version_6_is_version_5_and_the_p_value_of_the_calibration_at_its_end() -> None:
    before, now = SCHEMAS[5], SCHEMAS[6]
    assert list(SCHEMAS) == [3, 4, 5, 6]
    assert now is SCHEMA
    assert pa.schema(list(now)[: len(before)]).equals(before, check_metadata=True)
    added = [(field.name, field.type, field.nullable) for field in list(now)[len(before) :]]
    assert added == [("calibration_p_value", pa.float64(), True)]
    assert set(OPTIONAL_SCORES) <= set(now.names)


def test_every_column_says_what_it_holds_also_in_the_documentation() -> None:
    docs = Path(__file__).parents[2] / "docs" / "scored-log.md"
    columns = docs.read_text("utf-8").split("## The columns\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", columns, re.MULTILINE)
    told = [(name, kind.endswith(", or null"), text) for name, kind, text in rows]
    assert told == [(f.name, f.nullable, f.metadata[b"doc"].decode()) for f in SCHEMA]


def test_times_that_no_calendar_shows_are_brought_to_its_ends() -> None:
    assert storable_time_ms(2**63 - 1) == LATEST_TIME_MS
    assert storable_time_ms(-(2**63)) == EARLIEST_TIME_MS
    assert storable_time_ms(NOON_MS) == NOON_MS
    assert datetime.fromtimestamp(LATEST_TIME_MS // 1000, UTC).year == 9999
    assert datetime(1, 1, 1, tzinfo=UTC).timestamp() * 1000 == EARLIEST_TIME_MS
    assert datetime(1900, 1, 1, tzinfo=UTC).timestamp() * 1000 == EARLIEST_ROW_MS


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0, 5], [0, 5]),
        ([7, 7], [7, 7]),
        ([EARLIEST_ROW_MS - 1] * 2, [EARLIEST_ROW_MS] * 2),
        ([5, -(2**63)], [5, EARLIEST_ROW_MS]),
        ([2**63 - 1, EARLIEST_ROW_MS], [LATEST_TIME_MS, EARLIEST_ROW_MS]),
    ],
)
def test_rows_have_times_that_every_reader_takes(times: list[int], expected: list[int]) -> None:
    arrow = pa.array(times, pa.int64()).cast(pa.timestamp("ms", tz="UTC"))
    names = ("event_time", "ingest_time", "scored_time")
    for values in (times, arrow):
        rows = rows_of({"headers": [(), ()], **dict.fromkeys(names, values)}, 2)
        for name in names:
            assert rows.column(name).cast(pa.int64()).to_pylist() == expected


def test_a_time_that_is_null_stays_null() -> None:
    times = pa.array([None, EARLIEST_ROW_MS - 1], pa.timestamp("ms", tz="UTC"))
    rows = rows_of({"headers": [(), ()], "event_time": times}, 2)
    assert rows.column("event_time").cast(pa.int64()).to_pylist() == [None, EARLIEST_ROW_MS]


def test_lone_surrogates_become_escapes() -> None:
    assert storable_text("bad \udcff byte") == "bad \\udcff byte"
    assert storable_text("größer") == "größer"
