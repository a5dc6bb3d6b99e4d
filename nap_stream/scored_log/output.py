r"""Rows as a person's table, JSON lines, CSV or Parquet.

Keys, headers, errors and class names come from outside. In a table, whatever is not printable
is shown as an escape such as ``\x1b``, and nothing is taken for markup. In text formats bytes
are UTF-8 text as they are; bytes that are not UTF-8, or that begin with ``base64:``, are
``base64:`` and their base64. Times are ISO 8601, UTC, milliseconds. Values of CSV are written
as they are: import them into spreadsheets as text.
"""

import base64
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
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nap_stream.scored_log.schema import OPTIONAL_SCORES

_BASE64 = "base64:"
_WIDE = 100_000
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


class OutputFormat(StrEnum):
    """How to write rows."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


def write_result(
    result: pa.Table, output_format: OutputFormat, output: BinaryIO, *, limit: int | None = None
) -> None:
    """Write a table.

    Args:
        result: From `nap_stream.scored_log.query`.
        output_format: How. A ``table`` leaves columns out that do not fit a screen, and scores
            that no row has.
        output: Where; it is flushed and stays open. For the terminal: ``sys.stdout.buffer``.
        limit: The most rows to write; a ``table`` that is cut says so below.
    """
    write_batches(result.schema, result.to_batches(), output_format, output, limit=limit)


def write_batches(
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    output_format: OutputFormat,
    output: BinaryIO,
    *,
    limit: int | None = None,
) -> None:
    """Write batches as they come, holding one at a time (a ``table`` holds its rows).

    Args:
        schema: Of all the batches.
        batches: For instance from `nap_stream.scored_log.reader.scan`.
        output_format: As in `write_result`.
        output: As in `write_result`.
        limit: As in `write_result`.
    """
    if output_format is OutputFormat.PARQUET:
        _write_parquet(schema, _limited(batches, limit), output)
    else:
        text = io.TextIOWrapper(output, encoding="utf-8", newline="", write_through=True)
        try:
            _write_text(schema, batches, output_format, text, limit)
        finally:
            text.detach()
    output.flush()


def _write_text(
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    output_format: OutputFormat,
    text: io.TextIOWrapper,
    limit: int | None,
) -> None:
    if output_format is OutputFormat.JSON:
        _write_json(_limited(batches, limit), text)
    elif output_format is OutputFormat.CSV:
        _write_csv(schema, _limited(batches, limit), text)
    else:
        _write_table(schema, batches, text, limit)


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
        text.writelines(_json_line(row) for row in batch.to_pylist())


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n"


def _write_csv(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], text: io.TextIOWrapper
) -> None:
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(schema.names)
    for batch in batches:
        writer.writerows([_flat(value) for value in row.values()] for row in batch.to_pylist())


def _write_table(
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    text: io.TextIOWrapper,
    limit: int | None,
) -> None:
    shown = list(_limited(batches, None if limit is None else limit + 1))
    names = _names_in_table(pa.Table.from_batches(shown, schema=schema))
    rows = [row for batch in shown for row in batch.select(names).to_pylist()]
    table = Table(*names, show_edge=False, pad_edge=False)
    for row in rows[:limit]:
        table.add_row(*(Text(printable(_flat(value)), overflow="fold") for value in row.values()))
    console = Console(file=text, width=None if text.isatty() else _WIDE, highlight=False)
    console.print(table)
    if limit is not None and len(rows) > limit:
        console.print(f"Only the first {limit} rows are shown; there are more.", markup=False)


def _names_in_table(rows: pa.Table) -> list[str]:
    if "offset" not in rows.column_names:
        return list(rows.column_names)
    shown = [name for name in rows.column_names if name not in _NOT_IN_TABLES]
    return [
        name
        for name in shown
        if name not in OPTIONAL_SCORES or rows.column(name).null_count < rows.num_rows
    ]


def bytes_as_text(value: bytes) -> str:
    """Bytes as text that gives them back: UTF-8, or ``base64:`` and their base64."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return _BASE64 + base64.b64encode(value).decode("ascii")
    if text.startswith(_BASE64):
        return _BASE64 + base64.b64encode(value).decode("ascii")
    return text


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


def printable(value: Any) -> str:
    r"""A value for a terminal: escapes such as ``\x1b`` for what is not printable; "" for null."""
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
