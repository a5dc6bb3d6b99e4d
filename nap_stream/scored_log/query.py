r"""Counts of the log's rows by hour, class, status or partition; how rows and counts are written.

Auditors without nap-stream ask the same of the plain folder, in DuckDB for instance:

    SELECT class_name, count(*), avg(is_ood::int)
    FROM read_parquet('<root>/**/*.parquet', hive_partitioning = true, union_by_name = true)
    GROUP BY class_name

``union_by_name`` shows the columns of all versions of the log, null in files that lack them.

What comes out is a table for people, JSON lines, CSV or Parquet.

Keys, headers, errors and class names come from outside. In a table, whatever is not printable
is shown as an escape such as ``\x1b``, and nothing is taken for markup. In text formats bytes
are UTF-8 text as they are; bytes that are not UTF-8, or that begin with ``base64:``, are
``base64:`` and their base64. Times are ISO 8601, UTC, milliseconds. Values of CSV are written
as they are: import them into spreadsheets as text.
"""

import base64
import contextlib
import csv
import io
import json
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nap_stream.scored_log.format import OPTIONAL_SCORES
from nap_stream.scored_log.read import SCAN_SCHEMA, Query, scan
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.text import printable

_COUNTS = ("rows", "scored", "ood")
_COUNTED_ROWS = 65_536
_BASE64 = "base64:"
_WIDE = 100_000
_SHOWN_WHERE_SET = (*OPTIONAL_SCORES, "decode_warning", "source_uri")
"""Columns that a table leaves out where no row has a value."""
_NOT_IN_TABLES = {
    "key",
    "ingest_time",
    "scored_time",
    "model_fingerprint",
    "calibration_fingerprint",
    "class_id",
    "width",
    "height",
    "format",
    "sha256",
    "headers",
    "max_logit",
}


class GroupBy(StrEnum):
    """What to count by. Hours are of event time, UTC."""

    HOUR = "hour"
    CLASS = "class"
    STATUS = "status"
    PARTITION = "partition"


_SOURCE_COLUMNS: dict[GroupBy, tuple[str, ...]] = {
    GroupBy.HOUR: ("event_time",),
    GroupBy.CLASS: ("class_id", "class_name"),
    GroupBy.STATUS: ("status",),
    GroupBy.PARTITION: ("topic", "partition"),
}


def aggregate(store: SegmentStore, query: Query, by: GroupBy) -> pa.Table:
    """Count the rows that pass the filters.

    Returns:
        One row a group, ordered by its keys: ``hour`` (timestamp, UTC), ``class_id`` and
        ``class_name`` (null for rows without scores), ``status``, or ``topic`` and
        ``partition``; then ``rows``, ``scored`` (rows with scores), ``ood`` (those of them that
        are flagged), int64, and ``ood_fraction`` = ood / scored, null where scored is 0.

    Raises:
        LogRootError: There is no log at the root.
        ChainBrokenError: A segment cannot be read.
        ConfigError: No topic can have that name.
    """
    columns = [*_SOURCE_COLUMNS[by], "is_ood"]
    schema = pa.schema([SCAN_SCHEMA.field(name) for name in columns])
    merged = _counts(schema.empty_table(), by)
    for rows in _gathered(scan(store, query, columns)):
        merged = _merge(pa.concat_tables([merged, _counts(rows, by)]))
    keys = [name for name in merged.column_names if name not in _COUNTS]
    ordered = merged.sort_by([(name, "ascending") for name in keys])
    return ordered.append_column("ood_fraction", _fraction(ordered))


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of a useful size: segments, and so batches, can be small and many."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= _COUNTED_ROWS:
            yield pa.Table.from_batches(waiting)
            waiting, rows = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def _keys(rows: pa.Table, by: GroupBy) -> dict[str, Any]:
    if by is GroupBy.HOUR:
        return {"hour": pc.floor_temporal(rows.column("event_time"), unit="hour")}
    return {name: rows.column(name) for name in _SOURCE_COLUMNS[by]}


def _counts(rows: pa.Table, by: GroupBy) -> pa.Table:
    flags = rows.column("is_ood")
    columns = {
        **_keys(rows, by),
        "rows": pa.repeat(pa.scalar(1, pa.int64()), rows.num_rows),
        "scored": pc.is_valid(flags).cast(pa.int64()),
        "ood": pc.fill_null(flags, fill_value=False).cast(pa.int64()),
    }
    return _merge(pa.table(columns))


def _merge(counts: pa.Table) -> pa.Table:
    keys = [name for name in counts.column_names if name not in _COUNTS]
    summed = counts.group_by(keys).aggregate([(name, "sum") for name in _COUNTS])
    return summed.select([*keys, *(f"{name}_sum" for name in _COUNTS)]).rename_columns(
        [*keys, *_COUNTS]
    )


def _fraction(counts: pa.Table) -> Any:
    scored = counts.column("scored").cast(pa.float64())
    known = pc.if_else(pc.greater(scored, 0.0), scored, pa.scalar(None, pa.float64()))
    return pc.divide(counts.column("ood").cast(pa.float64()), known)


class OutputFormat(StrEnum):
    """How to write rows."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


def write_batches(
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    output_format: OutputFormat,
    output: BinaryIO,
    *,
    limit: int | None = None,
) -> None:
    """Write batches as they come, holding one at a time (a ``table`` holds its rows).

    A ``table`` leaves columns out that do not fit a screen, and scores that no row has; one that
    ``limit`` cuts says so below. ``output`` is flushed and stays open; for the terminal it is
    ``sys.stdout.buffer``.
    """
    if output_format is OutputFormat.PARQUET:
        _write_parquet(schema, _limited(batches, limit), output)
        output.flush()
        return
    text = io.TextIOWrapper(output, encoding="utf-8", newline="", write_through=True)
    try:
        if output_format is OutputFormat.JSON:
            _write_json(_limited(batches, limit), text)
        elif output_format is OutputFormat.CSV:
            _write_csv(schema, _limited(batches, limit), text)
        else:
            _write_table(schema, batches, text, limit)
    finally:
        text.detach()
    output.flush()


def _limited(batches: Iterable[pa.RecordBatch], limit: int | None) -> Iterator[pa.RecordBatch]:
    if limit is None:
        yield from batches
        return
    left = limit
    for batch in batches:
        yield batch.slice(0, left)
        left -= batch.num_rows
        if left <= 0:
            return


def _write_parquet(schema: pa.Schema, batches: Iterable[pa.RecordBatch], output: BinaryIO) -> None:
    # A pipe cannot tell its position, which the Parquet writer needs.
    with tempfile.TemporaryFile() as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
        file.seek(0)
        shutil.copyfileobj(file, output)


def _write_json(batches: Iterable[pa.RecordBatch], text: io.TextIOWrapper) -> None:
    for batch in batches:
        text.writelines(
            json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n"
            for row in batch.to_pylist()
        )


def _write_csv(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], text: io.TextIOWrapper
) -> None:
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(schema.names)
    for batch in batches:
        writer.writerows([_flat(value) for value in row.values()] for row in batch.to_pylist())


def _write_table(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], text: io.TextIOWrapper, limit: int | None
) -> None:
    shown = list(_limited(batches, None if limit is None else limit + 1))
    names = _names_in_table(pa.Table.from_batches(shown, schema=schema))
    rows = [row for batch in shown for row in batch.select(names).to_pylist()]
    table = Table(*names, show_edge=False, pad_edge=False)
    for row in rows[:limit]:
        table.add_row(*(Text(_cell(value), overflow="fold") for value in row.values()))
    console = Console(file=text, width=None if text.isatty() else _WIDE, highlight=False)
    console.print(table)
    if limit is not None and len(rows) > limit:
        console.print(f"Only the first {limit} rows are shown; there are more.", markup=False)


def _names_in_table(rows: pa.Table) -> list[str]:
    if "offset" not in rows.column_names:
        return list(rows.column_names)
    empty = {name for name in _SHOWN_WHERE_SET if rows.column(name).null_count == rows.num_rows}
    return [name for name in rows.column_names if name not in _NOT_IN_TABLES | empty]


def bytes_as_text(value: bytes) -> str:
    """Bytes as text that gives them back: UTF-8, or ``base64:`` and their base64."""
    with contextlib.suppress(UnicodeDecodeError):
        text = value.decode("utf-8")
        if not text.startswith(_BASE64):
            return text
    return _BASE64 + base64.b64encode(value).decode("ascii")


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return bytes_as_text(value)
    if isinstance(value, datetime):
        utc = value.astimezone(UTC).replace(tzinfo=None)
        return utc.isoformat(timespec="milliseconds") + "Z"
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _flat(value: Any) -> Any:
    plain = _plain(value)
    if isinstance(plain, bool):
        return "true" if plain else "false"
    if isinstance(plain, list):
        return json.dumps(plain, ensure_ascii=False)
    return plain


def _cell(value: Any) -> str:
    """A value for a table on a terminal: "" for null."""
    flat = _flat(value)
    if flat is None:
        return ""
    return printable(f"{flat:.4g}" if isinstance(flat, float) else str(flat))
