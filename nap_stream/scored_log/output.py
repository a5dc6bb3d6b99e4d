r"""How rows and counts are written: a table for people, JSON lines, CSV or Parquet.

Keys, headers, errors and class names come from outside. In a table, whatever is not printable
is shown as an escape such as ``\x1b``, and nothing is taken for markup. In text formats bytes
are UTF-8 text; bytes that are not UTF-8, or that begin with ``base64:``, are ``base64:`` and their
base64. Times are ISO 8601, UTC, milliseconds.

No terminal finds anything to obey: in JSON what is not printable is an escape of JSON's, in CSV one
as in a table, but for tabs and line ends; a key in CSV is in base64 then. In CSV and tables nothing
stands for null, and ``base64:`` for empty bytes. A text in CSV that a spreadsheet would take for a
formula, or that begins with an apostrophe, has one before it.
"""

import base64
import contextlib
import io
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.cells import cell_len, set_cell_size

from nap_stream.text import for_any_terminal, json_text, printable

_BASE64 = "base64:"
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20", "'")
"""How a text begins that spreadsheets take for a formula, also in full width; and the escape."""
_HARMLESS = r"^[A-Za-z0-9_./:][A-Za-z0-9_./: -]*\z"
"""Texts that are cells as they are, in a regular expression of RE2."""
_NO_CELL = '""'
"""A line of one cell that is empty: readers pass over an empty line."""
_CELLS = pa.large_string()
_SPACE = 2
_NARROW = 8
"""Characters that are left at least of a key or class that has to give way."""
_WIDE = 40
"""Characters of a cell that are shown at most where the width is bounded."""
_FURTHER = (
    *("calibration_fingerprint", "confidence", "energy", "nap", "fused", "calibration_p_value"),
    *("react", "ash", "scale", "dice", "knn", "fdbd", "mahalanobis", "gen", "nci"),
    *("error", "decode_warning", "source_uri"),
)
"""Columns that a table shows beside the first ones, where some row has a value and they fit."""


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
    width: int | None = None,
) -> None:
    """Write batches as they come, holding one at a time (a ``table`` holds its rows).

    A ``table`` fits the terminal, or ``width`` characters; elsewhere no line is broken and nothing
    cut. It says below which columns did not fit, and where ``limit`` has cut it. Of the log's rows
    it shows what people look for, and no score that no row has. ``output`` is flushed and stays
    open; for the terminal it is ``sys.stdout.buffer``.
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
            if width is None and output.isatty():
                width = shutil.get_terminal_size().columns
            _write_table(schema, batches, text, limit, width)
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
        text.writelines(json_text(plain_value(row)) + "\n" for row in batch.to_pylist())


def _write_csv(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], text: io.TextIOWrapper
) -> None:
    text.write((",".join(map(_csv_cell, schema.names)) or _NO_CELL) + "\n")
    for batch in batches:
        if batch.num_rows:
            text.write("\n".join(_csv_lines(batch)) + "\n")


def _csv_lines(batch: pa.RecordBatch) -> list[str]:
    """The lines of rows, made column by column: what Python does of each cell takes the time."""
    if not batch.num_columns:
        return [_NO_CELL] * batch.num_rows
    columns = [_csv_column(column).cast(_CELLS) for column in batch.columns]
    lines: list[str] = pc.binary_join_element_wise(*columns, pa.scalar(",", _CELLS)).to_pylist()
    return lines if len(columns) > 1 else [line or _NO_CELL for line in lines]


def _csv_column(column: pa.Array) -> pa.Array:
    """The cells of a column, as `_csv_cell` makes each of them."""
    plain = _plain_cells(column)
    if plain is not None:
        return plain
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_boolean(kind):
        coded = column.dictionary_encode()
        cells = pa.array(map(_csv_cell, coded.dictionary.to_pylist()), _CELLS)
        return cells.take(coded.indices).fill_null("")
    values = column.to_pylist()
    names = [*map(repr, values)]
    made = {name: _csv_cell(value) for name, value in dict(zip(names, values, strict=True)).items()}
    return pa.array(map(made.__getitem__, names), _CELLS)


def _plain_cells(column: pa.Array) -> pa.Array | None:
    """The cells of a column without a text that may need anything; None for others."""
    kind = column.type
    if column.null_count == len(column):
        return pa.repeat(pa.scalar(""), len(column))
    if pa.types.is_integer(kind):
        return column.cast(pa.string()).fill_null("")
    if pa.types.is_timestamp(kind) and (kind.unit, kind.tz) in {("ms", "UTC"), ("ms", None)}:
        return pc.strftime(column, format="%Y-%m-%dT%H:%M:%SZ").fill_null("")
    if pa.types.is_string(kind) and pc.all(pc.match_substring_regex(column, _HARMLESS)).as_py():
        return column.fill_null("")
    if pa.types.is_float32(kind) or pa.types.is_float64(kind):
        values = column.to_pylist()
        is_number = (value is not None and math.isfinite(value) for value in values)
        each = (repr(v) if is_one else "" for v, is_one in zip(values, is_number, strict=True))
        return pa.array(each, _CELLS)
    return None


def _csv_cell(value: Any) -> str:
    cell = _unread(_unobeyed(value))
    return "" if cell is None else _quoted(str(cell))


def _quoted(cell: str) -> str:
    # Python's own writer leaves a carriage return as it is, which ends a line for readers.
    needs = any(mark in cell for mark in ',"\r\n')
    return f'"{cell.replace(chr(34), chr(34) * 2)}"' if needs else cell


def _unobeyed(value: Any) -> Any:
    """Keep a terminal from obeying a value; bytes can be had back from what stands for them."""
    flat = _flat(value)
    if not isinstance(flat, str) or (harmless := for_any_terminal(flat)) == flat:
        return flat
    return _BASE64 + base64.b64encode(value).decode() if isinstance(value, bytes) else harmless


def _unread(cell: Any) -> Any:
    """Keep a spreadsheet from taking a text for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _write_table(
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    text: io.TextIOWrapper,
    limit: int | None,
    width: int | None,
) -> None:
    shown = list(_limited(batches, None if limit is None else limit + 1))
    rows = pa.Table.from_batches(shown, schema=schema).to_pylist()
    is_log = {"topic", "offset", "model_fingerprint"} <= set(schema.names)
    columns = _log_columns(rows[:limit]) if is_log else _plain_columns(schema.names, rows[:limit])
    if width is not None:
        columns, left_out = _fitting(columns, width)
    for number in range(-1, min(len(rows), len(rows) if limit is None else limit)):
        cells = (column.head if number < 0 else column.cells[number] for column in columns)
        line = (" " * _SPACE).join(
            set_cell_size(cell, column.width)
            if not column.is_number
            else " " * (column.width - cell_len(cell)) + cell
            for cell, column in zip(cells, columns, strict=True)
        )
        text.write(line.rstrip() + "\n")
        if number < 0:
            text.write((" " * _SPACE).join("─" * column.width for column in columns) + "\n")
    if limit is not None and len(rows) > limit:
        text.write(f"Only the first {limit} rows are shown; there are more.\n")
    if width is not None and left_out:
        text.write(f"Not shown, for want of width: {', '.join(left_out)}.\n")


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of a table as text. One that may shrink is cut rather than left out."""

    head: str
    cells: Sequence[str]
    may_shrink: bool = False
    is_number: bool = False
    most: int | None = None

    @property
    def width(self) -> int:
        wide = max(map(cell_len, (self.head, *self.cells)))
        return wide if self.most is None else min(wide, self.most)

    def cut(self, most: int) -> "_Column":
        if self.width <= most:
            return self
        cells = [
            cell if cell_len(cell) <= most else set_cell_size(cell, most - 1).rstrip() + "…"
            for cell in self.cells
        ]
        return _Column(self.head[:most], cells, self.may_shrink, self.is_number, most)


def _plain_columns(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[_Column]:
    return [
        _Column(
            printable(name),
            [_cell(row[name]) for row in rows],
            may_shrink=any(isinstance(row[name], str | bytes) for row in rows),
            is_number=all(isinstance(row[name], int | float | None) for row in rows),
        )
        for name in names
    ]


def _log_columns(rows: Sequence[Mapping[str, Any]]) -> list[_Column]:
    """What a person looks for in the log's rows, the most wanted first."""
    topics = {row["topic"] for row in rows}
    place = f"{printable(topics.pop())}/" if len(topics) == 1 else "row"
    columns = [
        _Column(place, [_place(row, with_topic=place == "row") for row in rows]),
        _Column("event_time", [_cell(row["event_time"])[:19] for row in rows]),
        _Column("key", [_cell(row["key"]) for row in rows], may_shrink=True),
        _Column("class", [_cell(row["class_name"]) for row in rows], may_shrink=True),
        _Column("p_value", [_cell(row["ood_p_value"]) for row in rows]),
        _Column("verdict", [_verdict(row) for row in rows]),
        _Column("model", [row["model_fingerprint"][:8] for row in rows]),
    ]
    further = [name for name in _FURTHER if any(row[name] is not None for row in rows)]
    for column in _plain_columns(further, rows):
        is_digest = column.head == "calibration_fingerprint"
        cells = [cell[:8] for cell in column.cells] if is_digest else column.cells
        columns.append(_Column("calibration" if is_digest else column.head, cells))
    return columns


def _place(row: Mapping[str, Any], *, with_topic: bool) -> str:
    index = f"/{row['index']}" if row["index"] else ""
    topic = f"{row['topic']}/" if with_topic else ""
    return printable(f"{topic}{row['partition']}/{row['offset']}{index}")


def _verdict(row: Mapping[str, Any]) -> str:
    return "OOD" if row["is_ood"] else printable(row["status"])


def _fitting(columns: Sequence[_Column], width: int) -> tuple[list[_Column], list[str]]:
    """The columns that fit, from the first on, and the names of the others."""
    kept: list[_Column] = []
    left_out: list[str] = []
    first = 7
    for number, column in enumerate(columns):
        kept.append(column.cut(_WIDE))
        excess = sum(each.width + _SPACE for each in kept) - _SPACE - width
        for place, each in enumerate(kept if number < first else ()):
            if excess > 0 and each.may_shrink:
                most = max(min(_NARROW, each.width), each.width - excess)
                excess -= each.width - most
                kept[place] = each.cut(most)
        if excess > 0 and len(kept) > 1:
            left_out.append(kept.pop().head)
    return kept, left_out


def bytes_as_text(value: bytes) -> str:
    """Bytes as text that gives them back: UTF-8, or ``base64:`` and their base64."""
    with contextlib.suppress(UnicodeDecodeError):
        text = value.decode("utf-8")
        if not text.startswith(_BASE64):
            return text
    return _BASE64 + base64.b64encode(value).decode("ascii")


def plain_value(value: Any) -> Any:
    """A row, or a value of one, as JSON can hold it: see the module."""
    if isinstance(value, bytes):
        return bytes_as_text(value)
    if isinstance(value, datetime):
        utc = value if value.tzinfo is None else value.astimezone(UTC)
        return utc.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if isinstance(value, dict):
        return {name: plain_value(item) for name, item in value.items()}
    return value


def _flat(value: Any) -> Any:
    if value == b"":
        return _BASE64
    plain = plain_value(value)
    if isinstance(plain, bool):
        return "true" if plain else "false"
    if isinstance(plain, list | dict):
        return json_text(plain)
    return plain


def _cell(value: Any) -> str:
    """A value for a table: "" for null, times without T and Z, milliseconds where there are any."""
    flat = _flat(value)
    if isinstance(value, datetime):
        return str(flat).removesuffix("Z").removesuffix(".000").replace("T", " ")
    if flat is None:
        return ""
    return printable(f"{flat:.4g}" if isinstance(flat, float) else str(flat))


def text_as_bytes(text: str) -> bytes:
    """The bytes of a text of `bytes_as_text`.

    Raises:
        ValueError: No base64 follows ``base64:``.
    """
    if not text.startswith(_BASE64):
        return text.encode("utf-8", "surrogateescape")
    return base64.b64decode(text.removeprefix(_BASE64), validate=True)
