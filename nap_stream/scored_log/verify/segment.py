"""What can be wrong with one segment, whatever stands before and after it."""

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nap_stream.errors import ChainBrokenError, ConfigError, ScoredLogError
from nap_stream.records import Status
from nap_stream.scored_log.footer import PREFIX, SegmentFooter, from_metadata, segment_sha256
from nap_stream.scored_log.format import (
    FINGERPRINTS,
    OPTIONAL_SCORES,
    SCHEMA,
    SCHEMA_VERSION,
    SCHEMAS,
    SCORE_COLUMNS,
    parse_segment_path,
    parse_version,
)
from nap_stream.scored_log.index import index_path, index_problem
from nap_stream.scored_log.segment import check_name, encode_rows, read_footer, rows_sha256
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.verify.layout import read_layout
from nap_stream.scored_log.verify.report import DeclaredGap, Defect, DefectKind
from nap_stream.scored_log.verify.statistics import statistics_problems
from nap_stream.scored_log.verify.thrift import NEWEST_PYARROW

_READ_ERRORS = (pa.ArrowException, OSError, ScoredLogError, UnicodeDecodeError)
_SPARE_BYTES = 2**20
"""A file that is longer by more than what it says of itself is not read whole."""


@dataclass(frozen=True, slots=True)
class SegmentFindings:
    """What one file holds.

    ``footer`` is without the footers that the file merged, None where it is not valid or is that
    of another place. ``sha256`` is what the next segment must name, None without a footer.
    ``segments`` counts those that the file holds; ``topic_ids`` are theirs, each once.
    """

    path: str
    footer: SegmentFooter | None
    sha256: str | None
    defects: tuple[Defect, ...]
    segments: int = 1
    gaps: tuple[DeclaredGap, ...] = ()
    topic_ids: tuple[str, ...] = ()

    @property
    def base_offset(self) -> int:
        """As the file's name has it."""
        return parse_segment_path(self.path)[1]


def inspect_segment(store: SegmentStore, path: str, *, deep: bool) -> SegmentFindings | None:
    """Check one segment on its own; None where its file is gone.

    Reads the footer alone, unless ``deep``: name, schema, row count and range of offsets, by what
    Parquet says of the rows.

    ``deep`` also reads every value, with page checksums, and compares the file's index with it.
    """
    try:
        file = store.open(path)
    except ScoredLogError as error:
        return _damaged(path, DefectKind.UNREADABLE, error.problem)
    if file is None:
        return None
    with file:
        try:
            found = _inspect(file, path, deep=deep)
            # What is wrong with the rows is told; what the index says of them would be no news.
            if deep and not found.defects and (problem := index_problem(store, path)):
                defect = Defect(index_path(path), DefectKind.INDEX, f"{problem}: {_REMEDY}")
                found = dataclasses.replace(found, defects=(defect,))
        except _READ_ERRORS as error:
            return _damaged(path, DefectKind.UNREADABLE, str(error))
    return found


_REMEDY = "`nap-stream compact --rebuild-index` makes it anew"


def merged_parts(store: SegmentStore, path: str) -> tuple[SegmentFooter, ...]:
    """Footers of the segments that a compacted file holds; none where it cannot be read."""
    try:
        footer = read_footer(store, path)
    except ScoredLogError:
        return ()
    return () if footer is None else footer.merged


def _damaged(path: str, kind: DefectKind, detail: str) -> SegmentFindings:
    return SegmentFindings(path, None, None, (Defect(path, kind, detail),))


def _inspect(file: BinaryIO, path: str, *, deep: bool) -> SegmentFindings:
    metadata = pq.read_metadata(file)
    values = metadata.metadata or {}
    version = values.get(f"{PREFIX}schema_version".encode())
    if version is not None:
        try:
            parse_version(version.decode(errors="replace"))
        except ValueError as error:
            return _damaged(path, DefectKind.SCHEMA_VERSION, str(error))
    try:
        footer = from_metadata(values, path)
    except ChainBrokenError as error:
        return _damaged(path, DefectKind.FOOTER, error.problem)
    try:
        check_name(path, footer)
    except ChainBrokenError as error:
        return _damaged(path, DefectKind.NAME, error.problem)
    defects = list(_check_columns(metadata, footer, path))
    if not defects:
        if metadata.num_rows != footer.rows:
            detail = f"{metadata.num_rows} rows, the footer says {footer.rows}"
            defects.append(Defect(path, DefectKind.ROW_COUNT, detail))
        defects += (
            _check_values(file, metadata, footer, path)
            if deep
            else _check_offset_statistics(metadata, footer, path)
        )
    return _findings(footer, path, tuple(defects))


def _check_columns(metadata: Any, footer: SegmentFooter, path: str) -> Iterator[Defect]:
    found, expected = metadata.schema.to_arrow_schema(), SCHEMAS[footer.schema_version]
    if not found.equals(expected):
        differing = sorted({field.name for field in set(found) ^ set(expected)}) or ["their order"]
        yield Defect(path, DefectKind.SCHEMA, f"columns differ: {', '.join(differing)}")


def _check_values(
    file: BinaryIO, metadata: Any, footer: SegmentFooter, path: str
) -> Iterator[Defect]:
    """Every value: order, range, digests of the file and of each segment in it, content.

    And all that the file says of them: another reader may go by what this one passes over.
    """
    size, told = file.seek(0, os.SEEK_END), _told_bytes(metadata)
    if size - told > _SPARE_BYTES:
        detail = f"not as nap-stream writes files: it has {size} bytes, its columns say {told}"
        yield Defect(path, DefectKind.LAYOUT, detail)
        return
    file.seek(0)
    content = file.read()
    source = pa.BufferReader(content)
    # Verification has threads of its own.
    with pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True) as parquet:
        table = parquet.read(use_threads=False)
    table.validate(full=True)
    yield from _check_layout(content, table, footer.schema_version, path)
    offsets = table.column("offset").to_numpy()
    yield from _check_range(offsets, footer, path)
    yield from _check_order(offsets, table.column("index").to_numpy(), path)
    yield from _check_digests(table, footer, path)
    yield from _check_content(table, footer, path)


def _told_bytes(metadata: Any) -> int:
    """How long a file is by what it says of its columns: marks, their pages, its description."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    pages = (
        group.column(i).total_compressed_size for group in groups for i in range(group.num_columns)
    )
    return int(sum(pages) + metadata.serialized_size) + 12


def require_known_pyarrow() -> None:
    """Refuse a pyarrow here whose files would be taken for changed ones.

    Raises:
        ConfigError: What it writes is not what `read_layout` knows.
    """
    table = pa.table([_sample(field) for field in SCHEMA], SCHEMA)
    content = encode_rows(table, {})
    for defect in _check_layout(content, table, SCHEMA_VERSION, ""):
        raise ConfigError(
            f"pyarrow {pa.__version__} writes what this nap-stream does not know: {defect.detail}",
            "verify --deep",
            f"Install pyarrow<{NEWEST_PYARROW + 1} or a newer nap-stream",
        )


def _sample(field: pa.Field) -> pa.Array:
    if pa.types.is_list(field.type):
        return pa.array([[{"name": "a", "value": b"b"}], []], field.type)
    values = pa.array([0, None if field.nullable else 1], pa.int64())
    is_text = pa.types.is_string(field.type) or pa.types.is_binary(field.type)
    return (values.cast(pa.string()) if is_text else values).cast(field.type)


def _check_layout(content: bytes, table: pa.Table, version: int, path: str) -> Iterator[Defect]:
    try:
        groups = read_layout(content, version)
    except (ValueError, KeyError, pa.ArrowException) as error:
        yield Defect(path, DefectKind.LAYOUT, f"not as nap-stream writes files: {error}")
        return
    problems = list(statistics_problems(groups, table))
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        yield Defect(path, DefectKind.STATISTICS, f"{problems[0]}{more}: readers skip rows by it")


def _findings(footer: SegmentFooter, path: str, defects: tuple[Defect, ...]) -> SegmentFindings:
    return SegmentFindings(
        path,
        dataclasses.replace(footer, merged=()),
        segment_sha256(footer.parts[-1]),
        defects,
        len(footer.parts),
        tuple(
            DeclaredGap(path, part.base_offset, part.end_offset, part.gap)
            for part in footer.parts
            if part.gap is not None
        ),
        tuple(dict.fromkeys(part.topic_id for part in footer.parts if part.topic_id is not None)),
    )


def _check_offset_statistics(metadata: Any, footer: SegmentFooter, path: str) -> Iterator[Defect]:
    """The range of the rows' offsets, by Parquet's own footer. Offsets are the first column."""
    for index in range(metadata.num_row_groups):
        offsets = metadata.row_group(index).column(0).statistics
        if offsets is None or not offsets.has_min_max:
            continue
        if offsets.min < footer.base_offset or offsets.max >= footer.end_offset:
            yield _outside(footer, path, f"offsets {offsets.min} to {offsets.max}")
            return


def _outside(footer: SegmentFooter, path: str, what: str) -> Defect:
    detail = f"{what} outside [{footer.base_offset}, {footer.end_offset})"
    return Defect(path, DefectKind.ROW_OUTSIDE_RANGE, detail)


def _check_range(offsets: Any, footer: SegmentFooter, path: str) -> Iterator[Defect]:
    first = 0
    for part in footer.parts:
        own = offsets[first : first + part.rows]
        first += part.rows
        outside = own[(own < part.base_offset) | (own >= part.end_offset)]
        if outside.size:
            yield _outside(part, path, f"{outside.size} rows, the first at offset {outside[0]},")
            return


def _check_order(offsets: Any, indices: Any, path: str) -> Iterator[Defect]:
    order = np.lexsort((indices, offsets))
    if not np.array_equal(order, np.arange(order.size)):
        yield Defect(path, DefectKind.ROW_ORDER, "rows are not ordered by (offset, index)")
    pairs = np.column_stack((offsets, indices))[order]
    twice = pairs[1:][(pairs[1:] == pairs[:-1]).all(axis=1)]
    if len(twice):
        detail = f"{len(twice)} rows stand twice, the first is {twice[0][0]}[{twice[0][1]}]"
        yield Defect(path, DefectKind.DUPLICATE_ROW, detail)


def _check_digests(table: pa.Table, footer: SegmentFooter, path: str) -> Iterator[Defect]:
    first = 0
    for part in footer.parts:
        rows = table.slice(first, part.rows)
        first += part.rows
        if rows_sha256(rows) != part.rows_sha256:
            where = f"segment [{part.base_offset}, {part.end_offset})"
            detail = f"the rows of {where} are not those that were published"
            yield Defect(path, DefectKind.ROWS_HASH, detail)
    if footer.merged and rows_sha256(table) != footer.rows_sha256:
        detail = "the rows are not those that the footer's rows_sha256 is of"
        yield Defect(path, DefectKind.ROWS_HASH, detail)


def _check_content(table: pa.Table, footer: SegmentFooter, path: str) -> Iterator[Defect]:
    scored = pc.equal(table.column("status"), Status.OK.value)
    count = pc.sum(scored, min_count=0).as_py()
    if count != footer.scored_rows:
        detail = f"{count} rows with status ok, the footer says {footer.scored_rows}"
        yield Defect(path, DefectKind.CONTENT, detail)
    yield from _check_scores(table, scored, path)
    times = pc.min_max(table.column("event_time").cast(pa.int64())).as_py()
    if (times["min"], times["max"]) != (footer.min_event_time_ms, footer.max_event_time_ms):
        detail = f"event times {times['min']} to {times['max']} ms, the footer says otherwise"
        yield Defect(path, DefectKind.CONTENT, detail)
    first = 0
    for part in footer.parts:
        rows = table.slice(first, part.rows)
        first += part.rows
        for name in FINGERPRINTS:
            if set(rows.column(name).unique().to_pylist()) - {getattr(part, name)}:
                yield Defect(path, DefectKind.CONTENT, f"{name} differs from the footer's")


def _check_scores(table: pa.Table, scored: Any, path: str) -> Iterator[Defect]:
    for name in (name for name in table.column_names if name in SCORE_COLUMNS):
        found = pc.is_valid(table.column(name))
        allowed = pc.less_equal if name in OPTIONAL_SCORES else pc.equal
        if not pc.all(allowed(found, scored), min_count=0).as_py():
            yield Defect(path, DefectKind.CONTENT, f"{name} contradicts status")
