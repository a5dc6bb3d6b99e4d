"""What can be wrong with one segment, whatever stands before and after it."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from nap_stream.errors import ChainBrokenError, ScoredLogError
from nap_stream.scored_log.chain_end import sha256_hex
from nap_stream.scored_log.defects import DeclaredGap, Defect, DefectKind
from nap_stream.scored_log.footer import PREFIX, SegmentFooter, segment_sha256
from nap_stream.scored_log.layout import parse_segment_path
from nap_stream.scored_log.metadata import from_metadata
from nap_stream.scored_log.row_check import (
    check_offset_statistics,
    check_row_count,
    check_rows,
)
from nap_stream.scored_log.store import SegmentStore
from nap_stream.scored_log.versions import SCHEMAS, check_version

_READ_ERRORS = (pa.ArrowException, OSError, ScoredLogError)


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

    Reads the footer alone: name, schema, row count and range of offsets by what Parquet says of
    the rows. Of a segment before version 3 the whole file is hashed.

    Args:
        store: Where the log lies.
        path: The segment, relative to the root.
        deep: Also read every value, with page checksums: `nap_stream.scored_log.row_check`.
    """
    try:
        file = store.open(path)
    except ScoredLogError as error:
        return _damaged(path, DefectKind.UNREADABLE, error.problem)
    if file is None:
        return None
    with file:
        try:
            return _inspect(file, path, deep=deep)
        except _READ_ERRORS as error:
            return _damaged(path, DefectKind.UNREADABLE, str(error))


def merged_parts(store: SegmentStore, path: str) -> tuple[SegmentFooter, ...]:
    """Footers of the segments that a compacted file holds; none where it cannot be read."""
    try:
        file = store.open(path)
        if file is None:
            return ()
        with file:
            return from_metadata(pq.read_metadata(file).metadata, path).merged
    except _READ_ERRORS:
        return ()


def _damaged(path: str, kind: DefectKind, detail: str) -> SegmentFindings:
    return SegmentFindings(path, None, None, (Defect(path, kind, detail),))


def _inspect(file: BinaryIO, path: str, *, deep: bool) -> SegmentFindings:
    metadata = pq.read_metadata(file)
    values = metadata.metadata or {}
    version = values.get(f"{PREFIX}schema_version".encode())
    if version is not None:
        try:
            check_version(version.decode(errors="replace"))
        except ValueError as error:
            return _damaged(path, DefectKind.SCHEMA_VERSION, str(error))
    try:
        footer = from_metadata(values, path)
    except ChainBrokenError as error:
        return _damaged(path, DefectKind.FOOTER, error.problem)
    name_defect = _check_name(footer, path)
    if name_defect is not None:
        return SegmentFindings(path, None, None, (name_defect,))
    defects = list(_check_columns(metadata, footer, path))
    if not defects:
        defects += check_row_count(metadata, footer, path)
        defects += (
            _check_values(file, metadata, footer, path)
            if deep
            else check_offset_statistics(metadata, footer, path)
        )
    return _findings(file, footer, path, tuple(defects))


def _check_name(footer: SegmentFooter, path: str) -> Defect | None:
    if parse_segment_path(path) == (footer.partition, footer.base_offset):
        return None
    detail = f"the footer says {footer.partition}@{footer.base_offset}"
    return Defect(path, DefectKind.NAME, detail)


def _check_columns(metadata: Any, footer: SegmentFooter, path: str) -> Iterator[Defect]:
    found, expected = metadata.schema.to_arrow_schema(), SCHEMAS[footer.schema_version]
    if not found.equals(expected):
        differing = sorted({field.name for field in set(found) ^ set(expected)}) or ["their order"]
        yield Defect(path, DefectKind.SCHEMA, f"columns differ: {', '.join(differing)}")


def _check_values(
    file: BinaryIO, metadata: Any, footer: SegmentFooter, path: str
) -> Iterator[Defect]:
    # Verification has threads of its own.
    with pq.ParquetFile(file, metadata=metadata, page_checksum_verification=True) as parquet:
        table = parquet.read(use_threads=False)
    table.validate(full=True)
    yield from check_rows(table, footer, path)


def _findings(
    file: BinaryIO, footer: SegmentFooter, path: str, defects: tuple[Defect, ...]
) -> SegmentFindings:
    last = footer.parts[-1]
    if last.rows_sha256 is None:
        file.seek(0)
        sha256 = sha256_hex(file.read())
    else:
        sha256 = segment_sha256(last)
    return SegmentFindings(
        path,
        dataclasses.replace(footer, merged=()),
        sha256,
        defects,
        len(footer.parts),
        tuple(
            DeclaredGap(path, part.base_offset, part.end_offset, part.gap)
            for part in footer.parts
            if part.gap is not None
        ),
        tuple(dict.fromkeys(part.topic_id for part in footer.parts if part.topic_id is not None)),
    )
