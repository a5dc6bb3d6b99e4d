"""The formats in which rows and counts are written."""

import base64
import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.scored_log import output as output_module
from nap_stream.scored_log.counting import GroupBy, aggregate
from nap_stream.scored_log.files import SCAN_SCHEMA
from nap_stream.scored_log.format import OPTIONAL_SCORES
from nap_stream.scored_log.output import OutputFormat, bytes_as_text, text_as_bytes, write_batches
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.stores.local import LocalStore
from tests.scored_log.builders import CARS, MODEL, NOON_MS, chain, failed, local_log, origin, scored
from tests.support.log_files import run_query

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
    assert (rows[2]["error"], rows[2]["nap"]) == (
        HOSTILE.replace("\x1b", r"\x1b")
        .replace("\x07", r"\x07")
        .replace("\u202e", r"\u202e")
        .replace("\x9b", r"\x9b"),
        "",
    )
    assert text_as_bytes(rows[2]["key"]) == HOSTILE.encode()


@pytest.mark.parametrize("output_format", [each for each in OutputFormat if each != "parquet"])
@given(text=st.text())
def test_no_terminal_finds_anything_to_obey(output_format: OutputFormat, text: str) -> None:
    name = text.encode(errors="replace").decode()
    key = name.encode()
    table = pa.table({"text": [name], "bytes": [key], "list": [[{"name": name, "value": key}]]})
    written = _written(table, output_format).decode()
    assert all(c.isprintable() or c in "\t\r\n" for c in written)
    if output_format == OutputFormat.JSON:
        (line,) = written.splitlines()
        assert json.loads(line)["text"] == name
        assert text_as_bytes(json.loads(line)["bytes"]) == key


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
    assert text.count(r"[bold red]x[/] \x1b[31m\x07 \u202e \x9b2J\n") == 3
    assert text.splitlines()[0].split()[:7] == [
        *("cars/", "event_time", "key", "class", "p_value", "verdict", "model"),
    ]


def test_a_table_shows_the_base_scores_that_some_row_has(
    tmp_path: Path,
) -> None:
    def header(where: Path) -> list[str]:
        text = _written(run_query(LocalStore(where), Query()), OutputFormat.TABLE).decode()
        return text.splitlines()[0].split()

    chain(tmp_path / "plain", [(1, [scored(origin(0))])])
    without = header(tmp_path / "plain")
    assert without[-3:] == ["energy", "nap", "fused"]
    assert not set(without) & {"max_logit", *OPTIONAL_SCORES}
    chain(tmp_path / "knn", [(2, [scored(origin(0), knn=1.5), failed(origin(1))])])
    assert header(tmp_path / "knn") == [*without, "knn", "error"]
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
    assert text.splitlines()[0].split() == [
        *("class_id", "class_name", "rows", "scored", "ood", "ood_fraction", "ood_low", "ood_high"),
    ]


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
    assert text_as_bytes(text) == value


def test_csv_has_no_formulas_and_tells_null_from_an_empty_key() -> None:
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "\uff1d1", "a=1", "", None]
    table = pa.table({"key": [t and t.encode() for t in texts], "x": [-1.5] * len(texts)})
    text = _written(table, OutputFormat.CSV).decode()
    cells = [row[0] for row in csv.reader(io.StringIO(text, newline=""))][1:]
    assert cells == [
        *("'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\t=1", "'\r=1", "''=1", "'\uff1d1", "a=1"),
        *("base64:", ""),
    ]
    assert {row["x"] for row in csv.DictReader(io.StringIO(text, newline=""))} == {"-1.5"}


_CELLS = (
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), st.floats()),
    (pa.bool_(), st.booleans()),
    (pa.string(), st.text() | st.sampled_from(["", "a b", "x\n", "=1", 'a"b,', "n01440764"])),
    (pa.binary(), st.binary() | st.sampled_from([b"", b"camera-1", b"base64:"])),
    (pa.timestamp("ms", "UTC"), st.integers(-62_135_596_800_000, 253_402_300_799_999)),
    (pa.timestamp("us", "Europe/Berlin"), st.integers(0, 2**51)),
    (pa.decimal128(20, 2), st.decimals(-(10**9), 10**9, places=2)),
    (
        SCAN_SCHEMA.field("headers").type,
        st.lists(st.fixed_dictionaries({"name": st.text(), "value": st.binary()}), max_size=2),
    ),
)


@st.composite
def _tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(0, 4))
    columns = draw(st.lists(st.sampled_from(_CELLS), min_size=1, max_size=4))
    arrays = [
        pa.array(draw(st.lists(st.none() | values, min_size=rows, max_size=rows)), kind)
        for kind, values in columns
    ]
    return pa.table(arrays, names=[f"c{n}" for n in range(len(columns))])


@given(table=_tables())
def test_csv_by_columns_is_what_it_is_cell_by_cell(table: pa.Table) -> None:
    lines = [table.schema.names, *([*row.values()] for row in table.to_pylist())]
    cells = [",".join(map(output_module._csv_cell, line)) or '""' for line in lines]
    assert _written(table, OutputFormat.CSV).decode() == "".join(f"{line}\n" for line in cells)


@pytest.mark.parametrize("width", [80, 100])
def test_a_table_fits_a_terminal_and_shows_key_and_model(tmp_path: Path, width: int) -> None:
    first = 123_456_789
    records = [
        scored(origin(first + n, event_time_ms=NOON_MS + n, key=b"gate-north-west-camera-17"),
               class_name="american alligator", p_value=0.0123)
        for n in range(3)
    ]  # fmt: skip
    log = local_log(tmp_path)
    log.publish(CARS, log.begin(CARS, first), first + 3, records)
    rows = run_query(LocalStore(tmp_path), Query())
    output = io.BytesIO()
    write_batches(rows.schema, rows.to_batches(), OutputFormat.TABLE, output, width=width)
    lines = output.getvalue().decode().splitlines()
    assert len(lines) == 2 + 3 + 1
    assert max(map(len, lines[:-1])) <= width
    wanted = ("cars/", "event_time", "key", "class", "p_value", "verdict", "model")
    assert tuple(lines[0].split()[:7]) == wanted
    for number, line in enumerate(lines[2:5]):
        place, day, time = line.split()[:3]
        assert (place, day, time) == (f"0/{first + number}", "2026-01-01", "12:00:00")
        assert "gate-no" in line
        assert line.split()[-1] == MODEL[:8]
    assert lines[-1].startswith("Not shown, for want of width: ")
    counts = aggregate(LocalStore(tmp_path), Query(), GroupBy.HOUR, GroupBy.KEY)
    output = io.BytesIO()
    write_batches(counts.schema, counts.to_batches(), OutputFormat.TABLE, output, width=width)
    assert max(map(len, output.getvalue().decode().splitlines())) <= width
