"""A segment's file: records and footer to Parquet bytes, and the footer back."""

from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from nap_stream.errors import ChainBrokenError
from nap_stream.records import ScoredRecord, Status
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.metadata import from_metadata, to_metadata
from nap_stream.scored_log.schema import DICTIONARY_COLUMNS, storable_time_ms

ROW_GROUP_ROWS = 32_768
"""Rows of a row group: what a reader holds in memory, and can leave out, of a compacted file."""


def event_time_range(records: Sequence[ScoredRecord]) -> tuple[int | None, int | None]:
    """Smallest and largest event time as stored, milliseconds UTC; None without records."""
    times = [storable_time_ms(record.origin.event_time_ms) for record in records]
    return (min(times), max(times)) if times else (None, None)


def count_scored(records: Sequence[ScoredRecord]) -> int:
    """How many records have scores."""
    return sum(record.status is Status.OK for record in records)


def encode_segment(footer: SegmentFooter, table: pa.Table) -> bytes:
    """A segment as the bytes of its file.

    Pages are checksummed and compressed with zstd; columns whose values repeat are
    dictionary-encoded.

    Args:
        footer: What the file says of itself.
        table: Its rows, with exactly `nap_stream.scored_log.schema.SCHEMA`.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(to_metadata(footer)),
        sink,
        compression="zstd",
        use_dictionary=DICTIONARY_COLUMNS,
        write_page_checksum=True,
        row_group_size=ROW_GROUP_ROWS,
    )
    return bytes(sink.getvalue())


def decode_footer(file: BinaryIO | pa.NativeFile, where: str) -> SegmentFooter:
    """The footer of a segment's file.

    Args:
        file: The open file.
        where: Its path, for errors.

    Raises:
        ChainBrokenError: It is not a Parquet file, or its footer is not valid.
    """
    try:
        metadata = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(where, error) from error
    return from_metadata(metadata.metadata, where)


def unreadable(where: str, error: Exception) -> ChainBrokenError:
    """The error for a segment that no Parquet reader can read."""
    return ChainBrokenError(
        f"the segment cannot be read: {error}",
        where,
        "Run `nap-stream verify`; restore the file from a backup",
    )
