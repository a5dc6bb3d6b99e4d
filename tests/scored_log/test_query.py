"""Rows and counts of the log, and the formats in which they are written."""

import base64
import csv
import io
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.errors import LogRootError
from nap_stream.records import Status, TopicPartition
from nap_stream.scored_log.format import OPTIONAL_SCORES
from nap_stream.scored_log.query import (
    GroupBy,
    OutputFormat,
    aggregate,
    bytes_as_text,
    write_batches,
)
from nap_stream.scored_log.read import SCAN_SCHEMA, Query, scan
from nap_stream.scored_log.stores.local import LocalStore
from tests.scored_log.builders import CARS, NOON_MS, chain, failed, origin, scored
from tests.support.log_files import run_query

OTHER = TopicPartition("cars", 1)
HOUR_MS = 3_600_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    chain(
        tmp_path,
        [
            (
                2,
                [
                    scored(origin(0, event_time_ms=NOON_MS - 1), p_value=0.01),
                    scored(origin(1, event_time_ms=NOON_MS)),
                ],
            ),
            (
                5,
                [
                    scored(origin(2, event_time_ms=NOON_MS + HOUR_MS - 1), p_value=0.02),
                    failed(origin(3, event_time_ms=NOON_MS + HOUR_MS)),
                ],
            ),
        ],
    )
    record = scored(origin(0, partition=OTHER), class_id=5, class_name="dog")
    chain(tmp_path, [(1, [record])], OTHER)
    return tmp_path


def _rows(root: Path, by: GroupBy, query: Query | None = None) -> list[tuple[Any, ...]]:
    table = aggregate(LocalStore(root), query or Query(), by)
    assert table.column_names[-4:] == ["rows", "scored", "ood", "ood_fraction"]
    return [tuple(row.values()) for row in table.to_pylist()]


def test_counts_by_hour(root: Path) -> None:
    assert _rows(root, GroupBy.HOUR) == [
        (datetime(2026, 1, 1, 11, tzinfo=UTC), 1, 1, 1, 1.0),
        (datetime(2026, 1, 1, 12, tzinfo=UTC), 3, 3, 1, 1 / 3),
        (datetime(2026, 1, 1, 13, tzinfo=UTC), 1, 0, 0, None),
    ]


def test_counts_by_class(root: Path) -> None:
    assert _rows(root, GroupBy.CLASS) == [
        (3, "cat", 3, 3, 2, 2 / 3),
        (5, "dog", 1, 1, 0, 0.0),
        (None, None, 1, 0, 0, None),
    ]


def test_counts_by_status(root: Path) -> None:
    assert _rows(root, GroupBy.STATUS) == [("corrupt", 1, 0, 0, None), ("ok", 4, 4, 2, 0.5)]


def test_counts_by_partition_of_filtered_rows(root: Path) -> None:
    query = Query(statuses=(Status.OK,))
    assert _rows(root, GroupBy.PARTITION, query) == [
        ("cars", 0, 3, 3, 2, 2 / 3),
        ("cars", 1, 1, 1, 0, 0.0),
    ]


@pytest.mark.parametrize("by", list(GroupBy))
def test_counts_of_nothing_have_the_same_columns(root: Path, by: GroupBy) -> None:
    nothing = aggregate(LocalStore(root), Query(topic="dogs"), by)
    assert nothing.num_rows == 0
    assert nothing.schema.equals(aggregate(LocalStore(root), Query(), by).schema)


def test_rows_come_in_order_and_a_limit_stops(root: Path) -> None:
    whole = run_query(LocalStore(root), Query())
    assert whole.schema.equals(SCAN_SCHEMA)
    assert whole.column("partition").to_pylist() == [0, 0, 0, 0, 1]
    assert whole.column("offset").to_pylist() == [0, 1, 2, 3, 0]
    for limit in range(7):
        assert run_query(LocalStore(root), Query(), limit=limit).equals(whole.slice(0, limit))


def test_no_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LogRootError):
        run_query(LocalStore(tmp_path / "none"), Query())
    with pytest.raises(LogRootError):
        aggregate(LocalStore(tmp_path / "none"), Query(), GroupBy.HOUR)


def test_an_empty_log_is_no_rows(tmp_path: Path) -> None:
    assert run_query(LocalStore(tmp_path), Query()).num_rows == 0
    assert run_query(LocalStore(tmp_path), Query(topic=CARS.topic)).schema.equals(SCAN_SCHEMA)


HOSTILE = "[bold red]x[/] \x1b[31m\x07 \u202e \x9b2J\n"


@pytest.fixture
def hostile_root(tmp_path: Path) -> Path:
    chain(
        tmp_path,
        [
            (
                3,
                [
                    scored(origin(0, key=b"\xff\x00", headers=(("n", b"v"),)), p_value=0.01),
                    scored(origin(1, key=None), class_name=HOSTILE),
                    failed(origin(2, key=HOSTILE.encode()), error=HOSTILE),
                ],
            )
        ],
    )
    return tmp_path


def _written(table: pa.Table, output_format: OutputFormat, limit: int | None = None) -> bytes:
    output = io.BytesIO()
    write_batches(table.schema, table.to_batches(), output_format, output, limit=limit)
    assert not output.closed
    return output.getvalue()


def test_json_lines(hostile_root: Path) -> None:
    text = _written(run_query(LocalStore(hostile_root), Query()), OutputFormat.JSON).decode()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [list(row) for row in rows] == [SCAN_SCHEMA.names] * 3
    assert rows[0]["key"] == "base64:/wA="
    assert rows[0]["event_time"] == "2026-01-01T12:00:00.000Z"
    assert rows[0]["headers"] == [{"name": "n", "value": "v"}]
    assert (rows[0]["topic"], rows[0]["is_ood"], rows[0]["ood_p_value"]) == ("cars", True, 0.01)
    assert (rows[1]["key"], rows[1]["class_name"]) == (None, HOSTILE)
    assert (rows[2]["key"], rows[2]["error"], rows[2]["nap"]) == (HOSTILE, HOSTILE, None)


def test_json_has_no_literals_that_are_not_json() -> None:
    table = pa.table({"x": [float("nan"), float("inf"), 1.5]})
    assert _written(table, OutputFormat.JSON) == b'{"x": null}\n{"x": null}\n{"x": 1.5}\n'


def test_csv(hostile_root: Path) -> None:
    text = _written(run_query(LocalStore(hostile_root), Query()), OutputFormat.CSV).decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert list(rows[0]) == SCAN_SCHEMA.names
    assert (rows[0]["key"], rows[0]["is_ood"], rows[0]["ood_p_value"]) == (
        "base64:/wA=",
        "true",
        "0.01",
    )
    assert json.loads(rows[0]["headers"]) == [{"name": "n", "value": "v"}]
    assert (rows[2]["error"], rows[2]["nap"]) == (HOSTILE, "")


def test_parquet(hostile_root: Path) -> None:
    table = run_query(LocalStore(hostile_root), Query())
    assert pq.read_table(pa.BufferReader(_written(table, OutputFormat.PARQUET))).equals(table)


def test_parquet_into_a_pipe(hostile_root: Path) -> None:
    table = run_query(LocalStore(hostile_root), Query())
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source:
        with os.fdopen(writing, "wb") as sink:
            write_batches(table.schema, table.to_batches(), OutputFormat.PARQUET, sink)
        assert pq.read_table(pa.BufferReader(source.read())).equals(table)


def test_a_table_shows_hostile_text_as_escapes(hostile_root: Path) -> None:
    text = _written(run_query(LocalStore(hostile_root), Query()), OutputFormat.TABLE).decode()
    assert all(c.isprintable() or c == "\n" for c in text)
    assert text.count(r"[bold red]x[/] \x1b[31m\x07 \u202e \x9b2J\n") == 2
    assert "ood_p_value" in text
    assert "model_fingerprint" not in text


def test_a_table_shows_the_base_scores_that_some_row_has(
    hostile_root: Path, tmp_path: Path
) -> None:
    def header(where: Path) -> list[str]:
        text = _written(run_query(LocalStore(where), Query()), OutputFormat.TABLE).decode()
        return text.splitlines()[0].replace("┃", " ").split()

    without = header(hostile_root)
    assert {"energy", "nap", "fused"} <= set(without)
    assert not set(without) & {"max_logit", *OPTIONAL_SCORES}
    chain(tmp_path / "knn", [(2, [scored(origin(0), knn=1.5), failed(origin(1))])])
    assert header(tmp_path / "knn") == [*without, "knn"]
    chain(tmp_path / "later", [(1, [scored(origin(0), nci=1.5, fdbd=0.5)])])
    assert header(tmp_path / "later") == [*without, "fdbd", "nci"]
    chain(tmp_path / "odd", [(1, [replace(scored(origin(0)), decode_warning="cut off")])])
    assert header(tmp_path / "odd") == [*without, "decode_warning"]


def test_a_table_that_is_cut_says_so(hostile_root: Path) -> None:
    table = run_query(LocalStore(hostile_root), Query())
    assert "there are more" not in _written(table, OutputFormat.TABLE, 3).decode()
    cut = _written(table, OutputFormat.TABLE, 1).decode()
    assert cut.endswith("Only the first 1 rows are shown; there are more.\n")
    assert "bold red" not in cut


def test_counts_are_shown_whole(hostile_root: Path) -> None:
    counts = aggregate(LocalStore(hostile_root), Query(), GroupBy.CLASS)
    text = _written(counts, OutputFormat.TABLE).decode()
    assert text.splitlines()[0].replace("┃", " ").split() == [
        "class_id", "class_name", "rows", "scored", "ood", "ood_fraction",
    ]  # fmt: skip


@pytest.mark.parametrize("output_format", [OutputFormat.JSON, OutputFormat.CSV])
def test_a_limit_cuts_text(hostile_root: Path, output_format: OutputFormat) -> None:
    cut = _written(run_query(LocalStore(hostile_root), Query()), output_format, 1)
    assert cut == _written(run_query(LocalStore(hostile_root), Query(), limit=1), output_format)


@pytest.mark.parametrize("output_format", list(OutputFormat))
def test_batches_as_they_come_are_the_same_as_a_table(
    hostile_root: Path, output_format: OutputFormat
) -> None:
    output = io.BytesIO()
    write_batches(SCAN_SCHEMA, scan(LocalStore(hostile_root), Query()), output_format, output)
    if output_format is OutputFormat.PARQUET:
        assert pq.read_table(pa.BufferReader(output.getvalue())).num_rows == 3
    else:
        assert output.getvalue() == _written(
            run_query(LocalStore(hostile_root), Query()), output_format
        )


@pytest.mark.parametrize("output_format", list(OutputFormat))
def test_no_rows_can_be_written(output_format: OutputFormat) -> None:
    written = _written(SCAN_SCHEMA.empty_table(), output_format)
    assert bool(written) == (output_format is not OutputFormat.JSON)


@given(value=st.binary() | st.text().map(str.encode) | st.just(b"base64:AA=="))
def test_bytes_come_back_from_their_text(value: bytes) -> None:
    text = bytes_as_text(value)
    if text.startswith("base64:"):
        assert base64.b64decode(text.removeprefix("base64:"), validate=True) == value
    else:
        assert text.encode() == value
