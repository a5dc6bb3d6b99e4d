import base64
import csv
import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.scored_log.query import (
    GroupBy,
    OutputFormat,
    aggregate,
    bytes_as_text,
    write_batches,
)
from nap_stream.scored_log.read import SCAN_SCHEMA, Query, scan
from nap_stream.scored_log.stores.local import LocalStore
from tests.scored_log.builders import chain, failed, origin, scored
from tests.support.log_files import run_query

HOSTILE = "[bold red]x[/] \x1b[31m\x07 \u202e \x9b2J\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
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


def test_json_lines(root: Path) -> None:
    text = _written(run_query(LocalStore(root), Query()), OutputFormat.JSON).decode()
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


def test_csv(root: Path) -> None:
    text = _written(run_query(LocalStore(root), Query()), OutputFormat.CSV).decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert list(rows[0]) == SCAN_SCHEMA.names
    assert (rows[0]["key"], rows[0]["is_ood"], rows[0]["ood_p_value"]) == (
        "base64:/wA=",
        "true",
        "0.01",
    )
    assert json.loads(rows[0]["headers"]) == [{"name": "n", "value": "v"}]
    assert (rows[2]["error"], rows[2]["nap"]) == (HOSTILE, "")


def test_parquet(root: Path) -> None:
    table = run_query(LocalStore(root), Query())
    assert pq.read_table(pa.BufferReader(_written(table, OutputFormat.PARQUET))).equals(table)


def test_parquet_into_a_pipe(root: Path) -> None:
    table = run_query(LocalStore(root), Query())
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source:
        with os.fdopen(writing, "wb") as sink:
            write_batches(table.schema, table.to_batches(), OutputFormat.PARQUET, sink)
        assert pq.read_table(pa.BufferReader(source.read())).equals(table)


def test_a_table_shows_hostile_text_as_escapes(root: Path) -> None:
    text = _written(run_query(LocalStore(root), Query()), OutputFormat.TABLE).decode()
    assert all(c.isprintable() or c == "\n" for c in text)
    assert text.count(r"[bold red]x[/] \x1b[31m\x07 \u202e \x9b2J\n") == 2
    assert "ood_p_value" in text
    assert "model_fingerprint" not in text


def test_a_table_shows_the_base_scores_that_some_row_has(root: Path, tmp_path: Path) -> None:
    def header(where: Path) -> list[str]:
        text = _written(run_query(LocalStore(where), Query()), OutputFormat.TABLE).decode()
        return text.splitlines()[0].replace("┃", " ").split()

    without = header(root)
    assert {"energy", "nap", "fused"} <= set(without)
    assert not set(without) & {"max_logit", "react", "ash", "scale", "dice", "knn"}
    chain(tmp_path / "knn", [(2, [scored(origin(0), knn=1.5), failed(origin(1))])])
    assert header(tmp_path / "knn") == [*without, "knn"]


def test_a_table_that_is_cut_says_so(root: Path) -> None:
    table = run_query(LocalStore(root), Query())
    assert "there are more" not in _written(table, OutputFormat.TABLE, 3).decode()
    cut = _written(table, OutputFormat.TABLE, 1).decode()
    assert cut.endswith("Only the first 1 rows are shown; there are more.\n")
    assert "bold red" not in cut


def test_counts_are_shown_whole(root: Path) -> None:
    counts = aggregate(LocalStore(root), Query(), GroupBy.CLASS)
    text = _written(counts, OutputFormat.TABLE).decode()
    assert text.splitlines()[0].replace("┃", " ").split() == [
        "class_id", "class_name", "rows", "scored", "ood", "ood_fraction",
    ]  # fmt: skip


@pytest.mark.parametrize("output_format", [OutputFormat.JSON, OutputFormat.CSV])
def test_a_limit_cuts_text(root: Path, output_format: OutputFormat) -> None:
    cut = _written(run_query(LocalStore(root), Query()), output_format, 1)
    assert cut == _written(run_query(LocalStore(root), Query(), limit=1), output_format)


@pytest.mark.parametrize("output_format", list(OutputFormat))
def test_batches_as_they_come_are_the_same_as_a_table(
    root: Path, output_format: OutputFormat
) -> None:
    output = io.BytesIO()
    write_batches(SCAN_SCHEMA, scan(LocalStore(root), Query()), output_format, output)
    if output_format is OutputFormat.PARQUET:
        assert pq.read_table(pa.BufferReader(output.getvalue())).num_rows == 3
    else:
        assert output.getvalue() == _written(run_query(LocalStore(root), Query()), output_format)


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
