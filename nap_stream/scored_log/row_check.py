"""What can be wrong with the rows of one file, by its footer and by the rows themselves."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nap_stream.records import Status
from nap_stream.scored_log.defects import Defect, DefectKind
from nap_stream.scored_log.digest import rows_sha256
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.schema import OPTIONAL_SCORES

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
_OFFSET_COLUMN = 0


def check_row_count(metadata: Any, footer: SegmentFooter, path: str) -> Iterator[Defect]:
    """How many rows Parquet's own footer has; see `check_offset_statistics`."""
    if metadata.num_rows != footer.rows:
        detail = f"{metadata.num_rows} rows, the footer says {footer.rows}"
        yield Defect(path, DefectKind.ROW_COUNT, detail)


def check_offset_statistics(metadata: Any, footer: SegmentFooter, path: str) -> Iterator[Defect]:
    """The range of the rows' offsets, by Parquet's own footer.

    Args:
        metadata: A ``pyarrow.parquet.FileMetaData`` with the columns of the footer's version.
        footer: What the file says of itself.
        path: The file, for the defects.
    """
    for index in range(metadata.num_row_groups):
        offsets = metadata.row_group(index).column(_OFFSET_COLUMN).statistics
        if offsets is None or not offsets.has_min_max:
            continue
        if offsets.min < footer.base_offset or offsets.max >= footer.end_offset:
            yield _outside(footer, path, f"offsets {offsets.min} to {offsets.max}")
            return


def check_rows(table: pa.Table, footer: SegmentFooter, path: str) -> Iterator[Defect]:
    """Every value: order, range, digests of the file and of each segment in it, content.

    Args:
        table: All rows, with the columns of the footer's version.
        footer: With the footers that the file merged.
        path: The file, for the defects.
    """
    offsets = table.column("offset").to_numpy()
    indices = table.column("index").to_numpy()
    yield from _check_range(offsets, footer, path)
    yield from _check_order(offsets, indices, path)
    yield from _check_digests(table, footer, path)
    yield from _check_content(table, footer, path)


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
        if part.rows_sha256 is not None and rows_sha256(rows) != part.rows_sha256:
            where = f"segment [{part.base_offset}, {part.end_offset})"
            yield _other_rows(path, f"the rows of {where} are not those that were published")
    if footer.merged and rows_sha256(table) != footer.rows_sha256:
        yield _other_rows(path, "the rows are not those that the footer's rows_sha256 is of")


def _other_rows(path: str, detail: str) -> Defect:
    return Defect(path, DefectKind.ROWS_HASH, detail)


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
