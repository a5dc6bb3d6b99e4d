"""What can be wrong with one segment, whatever stands before and after it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nap_stream.errors import ChainBrokenError
from nap_stream.records import Status
from nap_stream.scored_log.defects import Defect, DefectKind
from nap_stream.scored_log.footer import PREFIX, SegmentFooter, from_metadata
from nap_stream.scored_log.layout import parse_segment_path
from nap_stream.scored_log.schema import OPTIONAL_SCORES
from nap_stream.scored_log.versions import SCHEMAS, check_version

_SCORES = [
    "class_id",
    "class_name",
    "confidence",
    "max_logit",
    "energy",
    "nap",
    "fused",
    "ood_p_value",
    "is_ood",
]


@dataclass(frozen=True, slots=True)
class SegmentFindings:
    """What one file holds.

    ``footer`` is None where it is not valid, ``sha256`` where the file cannot be read at all.
    """

    path: str
    sha256: str | None
    footer: SegmentFooter | None
    defects: tuple[Defect, ...]


def inspect_segment(root: Path, path: str, *, deep: bool) -> SegmentFindings:
    """Check one segment on its own: footer, name, schema, row count, order of rows.

    Args:
        root: The log's root.
        path: The segment, relative to the root.
        deep: Also decode every value, verify page checksums, and compare the rows with the
            footer and with themselves.
    """
    try:
        content = (root / path).read_bytes()
    except OSError as error:
        defect = Defect(path, DefectKind.UNREADABLE, error.strerror or str(error))
        return SegmentFindings(path, None, None, (defect,))
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=deep) as file:
            return _inspect(file, path, sha256, deep=deep)
    except (pa.ArrowException, OSError) as error:
        defect = Defect(path, DefectKind.UNREADABLE, str(error))
        return SegmentFindings(path, sha256, None, (defect,))


def _inspect(file: Any, path: str, sha256: str, *, deep: bool) -> SegmentFindings:
    metadata = file.metadata.metadata or {}
    version = metadata.get(f"{PREFIX}schema_version".encode())
    if version is not None:
        try:
            check_version(version.decode(errors="replace"))
        except ValueError as error:
            defect = Defect(path, DefectKind.SCHEMA_VERSION, str(error))
            return SegmentFindings(path, sha256, None, (defect,))
    try:
        footer = from_metadata(metadata, path)
    except ChainBrokenError as error:
        defect = Defect(path, DefectKind.FOOTER, error.problem)
        return SegmentFindings(path, sha256, None, (defect,))
    defects = [*_check_name(footer, path), *_check_columns(file, footer, path)]
    if not defects:
        defects += _check_rows(file, footer, path, deep=deep)
    return SegmentFindings(path, sha256, footer, tuple(defects))


def _check_name(footer: SegmentFooter, path: str) -> Iterator[Defect]:
    partition, base_offset = parse_segment_path(path)
    if (footer.partition, footer.base_offset) != (partition, base_offset):
        detail = f"the footer says {footer.partition}@{footer.base_offset}"
        yield Defect(path, DefectKind.NAME, detail)


def _check_columns(file: Any, footer: SegmentFooter, path: str) -> Iterator[Defect]:
    found, expected = file.schema_arrow, SCHEMAS[footer.schema_version]
    if not found.equals(expected):
        differing = sorted({field.name for field in set(found) ^ set(expected)}) or ["their order"]
        yield Defect(path, DefectKind.SCHEMA, f"columns differ: {', '.join(differing)}")


def _check_rows(file: Any, footer: SegmentFooter, path: str, *, deep: bool) -> Iterator[Defect]:
    table = file.read(columns=None if deep else ["offset", "index"])
    if table.num_rows != footer.rows:
        detail = f"{table.num_rows} rows, the footer says {footer.rows}"
        yield Defect(path, DefectKind.ROW_COUNT, detail)
    offsets = table.column("offset").to_numpy()
    indices = table.column("index").to_numpy()
    yield from _check_range(offsets, footer, path)
    yield from _check_order(offsets, indices, path)
    if deep:
        yield from _check_content(table, footer, path)


def _check_range(offsets: Any, footer: SegmentFooter, path: str) -> Iterator[Defect]:
    outside = offsets[(offsets < footer.base_offset) | (offsets >= footer.end_offset)]
    if outside.size:
        detail = (
            f"{outside.size} rows outside [{footer.base_offset}, {footer.end_offset}), "
            f"the first at offset {outside[0]}"
        )
        yield Defect(path, DefectKind.ROW_OUTSIDE_RANGE, detail)


def _check_order(offsets: Any, indices: Any, path: str) -> Iterator[Defect]:
    order = np.lexsort((indices, offsets))
    if not np.array_equal(order, np.arange(order.size)):
        yield Defect(path, DefectKind.ROW_ORDER, "rows are not ordered by (offset, index)")
    pairs = np.column_stack((offsets, indices))[order]
    twice = pairs[1:][(pairs[1:] == pairs[:-1]).all(axis=1)]
    if len(twice):
        detail = f"{len(twice)} rows stand twice, the first is {twice[0][0]}[{twice[0][1]}]"
        yield Defect(path, DefectKind.DUPLICATE_ROW, detail)


def _check_content(table: pa.Table, footer: SegmentFooter, path: str) -> Iterator[Defect]:
    table.validate(full=True)
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
    for name in ("model_fingerprint", "calibration_fingerprint"):
        values = set(table.column(name).unique().to_pylist())
        if values - {getattr(footer, name)}:
            yield Defect(path, DefectKind.CONTENT, f"{name} differs from the footer's")


def _check_scores(table: pa.Table, scored: Any, path: str) -> Iterator[Defect]:
    for name in (*_SCORES, *OPTIONAL_SCORES):
        if name not in table.column_names:
            continue
        found = pc.is_valid(table.column(name))
        allowed = pc.less_equal if name in OPTIONAL_SCORES else pc.equal
        if not pc.all(allowed(found, scored), min_count=0).as_py():
            yield Defect(path, DefectKind.CONTENT, f"{name} contradicts status")
