"""The digest of rows: what is hashed, what may change without changing it, and what may not."""

import hashlib
import io
import struct
from datetime import UTC
from functools import cache
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nap_stream.scored_log.footer import SegmentFooter, from_metadata
from nap_stream.scored_log.format import DICTIONARY_COLUMNS, SCHEMA, segment_path
from nap_stream.scored_log.segment import (
    SMALL_BYTES,
    encode_segment,
    event_time_range,
    read_segment,
    rows_sha256,
)
from tests.scored_log.builders import (
    CALIBRATION,
    CARS,
    MODEL,
    NOON_MS,
    failed,
    origin,
    record_lists,
    scored,
)
from tests.support.scored_records import ScoredRecord, file_table

HEADERS = (("source", b"gate"), ("source", None), ("", b""))
RECORDS = [
    scored(origin(3, headers=HEADERS), knn=1.25),
    failed(origin(4, key=None)),
    scored(origin(4, 1, key=b"")),
    failed(origin(9, headers=(("ä", b"\0"),)), error=""),
]
_HEADER = pa.struct([pa.field("name", pa.string(), nullable=False), pa.field("value", pa.binary())])


def _table(records: list[ScoredRecord]) -> pa.Table:
    return file_table(records, MODEL, CALIBRATION)


def _integers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def _footer(table: pa.Table) -> SegmentFooter:
    """Of a table of rows that are all scored, each at the offset of its number."""
    rows, times = table.num_rows, event_time_range(table)
    return SegmentFooter(
        *(CARS, 0, rows, MODEL, CALIBRATION, rows, rows, *times, "worker-0", NOON_MS),
        *("0a" * 32, rows_sha256(table)),
    )


def test_a_small_segment_is_a_small_file() -> None:
    """Of the 18 rows of a slow topic, the file's description is half."""
    table = _table([scored(origin(n, key=b"camera-%d" % (n % 3))) for n in range(18)])
    footer = _footer(table)
    content = encode_segment(footer, table)
    assert len(content) < 8_500
    assert int.from_bytes(content[-8:-4], "little") < 5_000
    metadata = pq.read_metadata(pa.BufferReader(content)).metadata
    assert b"ARROW:schema" not in metadata
    assert from_metadata(metadata, "x") == footer
    assert pq.read_table(pa.BufferReader(content)).equals(table)


def test_of_a_large_segment_only_the_end_is_read_before_its_rows() -> None:
    read: list[int] = []

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            read.append(len(found))
            return found

    records = [scored(origin(n, key=Random(n).randbytes(2_000))) for n in range(600)]
    for count in (600, 300):
        table = _table(records[:count])
        content = encode_segment(_footer(table), table)
        is_small = len(content) <= SMALL_BYTES
        assert is_small == (count == 300)
        read.clear()
        segment = read_segment(Counted(content), segment_path(CARS, 0))
        assert segment.size_bytes == len(content)
        assert sum(read) == (len(content) if is_small else 2**16)
        assert sum(batch.num_rows for batch in segment.batches(["offset"])) == count


def test_the_digest_of_a_small_table_by_hand() -> None:
    table = pa.table(
        {
            "offset": pa.array([3, -4], pa.int64()),
            "index": pa.array([0, 7], pa.int32()),
            "key": pa.array([b"ab", None], pa.binary()),
            "time": pa.array([1_000, None], pa.timestamp("ms", tz="UTC")),
            "text": pa.array(["", "ä"], pa.string()),
            "flag": pa.array([True, None], pa.bool_()),
            "score": pa.array([None, -2.5], pa.float64()),
            "headers": pa.array(
                [[{"name": "a", "value": None}, {"name": "bc", "value": b"d"}], []],
                pa.list_(_HEADER),
            ),
        }
    )
    hashed = [
        *(b"offset\0", _integers(2), b"\1\1", _integers(3, -4)),
        *(b"index\0", _integers(2), b"\1\1", _integers(0, 7)),
        *(b"key\0", _integers(2), b"\1\0", _integers(2, 0), b"ab"),
        *(b"time\0", _integers(2), b"\1\0", _integers(1_000, 0)),
        *(b"text\0", _integers(2), b"\1\1", _integers(0, 2), b"\xc3\xa4"),
        *(b"flag\0", _integers(2), b"\1\0", _integers(1, 0)),
        *(b"score\0", _integers(2), b"\0\1", struct.pack("<2d", 0.0, -2.5)),
        *(b"headers\0", _integers(2), b"\1\1", _integers(2, 0)),
        *(_integers(2), b"\1\1"),
        *(b"name\0", _integers(2), b"\1\1", _integers(1, 2), b"abc"),
        *(b"value\0", _integers(2), b"\0\1", _integers(0, 1), b"d"),
    ]
    assert rows_sha256(table) == hashlib.sha256(b"".join(hashed)).hexdigest()


def test_the_digest_of_no_rows_by_hand() -> None:
    table = pa.table({"offset": pa.array([], pa.int64()), "key": pa.array([], pa.binary())})
    hashed = b"offset\0" + _integers(0) + b"key\0" + _integers(0)
    assert rows_sha256(table) == hashlib.sha256(hashed).hexdigest()
    assert rows_sha256(SCHEMA.empty_table()) == rows_sha256(_table([]))


@given(records=record_lists, cut=st.integers(0, 12), tail=st.integers(0, 12))
def test_slices_and_chunks_do_not_matter(records: list[ScoredRecord], cut: int, tail: int) -> None:
    table = _table(records)
    expected = rows_sha256(table)
    chunked = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    assert rows_sha256(chunked) == expected
    padded = pa.concat_tables([_table(RECORDS), table, _table(RECORDS[:tail])]).combine_chunks()
    assert rows_sha256(padded.slice(len(RECORDS), len(records))) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"use_dictionary": False, "compression": "none"},
        {"use_dictionary": DICTIONARY_COLUMNS, "compression": "zstd"},
        {"row_group_size": 1, "compression": "gzip"},
        {"data_page_version": "2.0", "compression": "snappy", "store_schema": False},
        {"data_page_size": 1, "column_encoding": {"fused": "BYTE_STREAM_SPLIT"}},
    ],
    ids=["plain", "dictionary", "row-groups", "pages-2.0", "small-pages"],
)
def test_parquet_encodings_do_not_matter(options: dict[str, Any]) -> None:
    table = _table(RECORDS)
    sink = pa.BufferOutputStream()
    if "column_encoding" in options:
        options = {**options, "use_dictionary": False}
    pq.write_table(table, sink, **options)
    again = pq.read_table(pa.BufferReader(sink.getvalue()))
    assert rows_sha256(again) == rows_sha256(table)


_headers = st.fixed_dictionaries(
    {"name": st.text("ab", max_size=2), "value": st.none() | st.binary(max_size=2)}
)
_times = st.datetimes(timezones=st.just(UTC)).map(
    lambda time: time.replace(microsecond=time.microsecond // 1000 * 1000)
)


@cache
def _some_rows() -> pa.Table:
    return _table(RECORDS)


def _values(kind: Any) -> st.SearchStrategy[Any]:
    if pa.types.is_integer(kind):
        return st.integers(-(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1)
    return {
        pa.timestamp("ms", tz="UTC"): _times,
        pa.bool_(): st.booleans(),
        pa.float64(): st.floats(allow_nan=False),
        pa.string(): st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
        pa.binary(): st.binary(max_size=3),
    }.get(kind, st.lists(_headers, max_size=3))


@settings(max_examples=75)
@given(data=st.data())
def test_a_change_of_any_one_value_changes_the_digest(data: st.DataObject) -> None:
    table = _some_rows()
    rows = table.to_pylist()
    field = data.draw(st.sampled_from(list(SCHEMA)))
    row = data.draw(st.sampled_from(rows))
    values = _values(field.type)
    value = data.draw(st.none() | values if field.nullable else values)
    assume(value != row[field.name])
    row[field.name] = value
    assert rows_sha256(pa.Table.from_pylist(rows, SCHEMA)) != rows_sha256(table)


@given(
    one=st.lists(st.none() | st.binary(max_size=3), max_size=4),
    other=st.lists(st.none() | st.binary(max_size=3), max_size=4),
)
def test_bytes_that_move_between_neighbours_change_the_digest(
    one: list[bytes | None], other: list[bytes | None]
) -> None:
    digests = [rows_sha256(pa.table({"key": pa.array(keys, pa.binary())})) for keys in (one, other)]
    assert (digests[0] == digests[1]) == (one == other)


@pytest.mark.parametrize(
    ("kind", "empty"),
    [
        (pa.int64(), 0),
        (pa.bool_(), False),
        (pa.float64(), 0.0),
        (pa.string(), ""),
        (pa.binary(), b""),
        (pa.list_(pa.string()), []),
        (_HEADER, {"name": "", "value": b""}),
    ],
    ids=str,
)
def test_null_is_not_zero_nor_empty(kind: Any, empty: Any) -> None:
    tables = [pa.table({"column": pa.array([value], kind)}) for value in (None, empty)]
    assert rows_sha256(tables[0]) != rows_sha256(tables[1])


def test_the_order_of_rows_and_the_names_of_columns_matter() -> None:
    table = _table(RECORDS)
    others = [
        table.take([1, 0, 2, 3]),
        table.slice(0, 3),
        table.rename_columns(["offsets", *table.column_names[1:]]),
        table.select(list(reversed(table.column_names))),
    ]
    assert len({rows_sha256(other) for other in (table, *others)}) == 5


def test_what_lies_under_a_null_does_not_matter() -> None:
    hidden = pa.StructArray.from_arrays(
        [pa.array(["a"]), pa.array([b"b"])], fields=list(_HEADER), mask=pa.array([True])
    )
    plain = pa.array([None], _HEADER)
    assert rows_sha256(pa.table({"h": hidden})) == rows_sha256(pa.table({"h": plain}))
