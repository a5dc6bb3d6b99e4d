"""How a segment's file is laid out: whether any reader can see in it what others do not.

A reader of Parquet follows what the file says of itself: where columns lie, how they are encoded,
what may be skipped. Readers follow different parts of it. So a file can be right for one of them
and hide rows from another. Here all of it is read, and must be as nap-stream writes it: the pages
of each column one after another without anything between, their counts and sizes added up right,
and none of what a reader could skip rows by but statistics, which
`nap_stream.scored_log.verify.statistics` compares with the values.
"""

import base64
import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nap_stream.scored_log.footer import PREFIX
from nap_stream.scored_log.format import SCHEMAS
from nap_stream.scored_log.verify.thrift import CompactReader, Fields, Wire, footer_struct

_EMPTY = Fields("an empty struct", {})
_TIME_UNIT = Fields(
    "TimeUnit", {1: ("millis", _EMPTY), 2: ("micros", _EMPTY), 3: ("nanos", _EMPTY)}
)
_TIMESTAMP = Fields("TimestampType", {1: ("is_utc", Wire.BOOL), 2: ("unit", _TIME_UNIT)})
_LOGICAL = Fields(
    "LogicalType", {1: ("string", _EMPTY), 3: ("list", _EMPTY), 8: ("timestamp", _TIMESTAMP)}
)
_SCHEMA_ELEMENT = Fields(
    "SchemaElement",
    {
        1: ("type", Wire.I32),
        3: ("repetition_type", Wire.I32),
        4: ("name", Wire.BINARY),
        5: ("num_children", Wire.I32),
        6: ("converted_type", Wire.I32),
        10: ("logicalType", _LOGICAL),
    },
)
_STATISTICS = Fields(
    "Statistics",
    {
        1: ("max", Wire.BINARY),
        2: ("min", Wire.BINARY),
        3: ("null_count", Wire.I64),
        4: ("distinct_count", None),
        5: ("max_value", Wire.BINARY),
        6: ("min_value", Wire.BINARY),
        7: ("is_max_value_exact", Wire.BOOL),
        8: ("is_min_value_exact", Wire.BOOL),
    },
)
_ENCODING_STATS = Fields(
    "PageEncodingStats",
    {1: ("page_type", Wire.I32), 2: ("encoding", Wire.I32), 3: ("count", Wire.I32)},
)
_SIZES = Fields(
    "SizeStatistics",
    {
        1: ("unencoded_byte_array_data_bytes", Wire.I64),
        2: ("repetition_level_histogram", [Wire.I64]),
        3: ("definition_level_histogram", [Wire.I64]),
    },
)
_KEY_VALUE = Fields("KeyValue", {1: ("key", Wire.BINARY), 2: ("value", Wire.BINARY)})
_COLUMN = Fields(
    "ColumnMetaData",
    {
        1: ("type", Wire.I32),
        2: ("encodings", [Wire.I32]),
        3: ("path_in_schema", [Wire.BINARY]),
        4: ("codec", Wire.I32),
        5: ("num_values", Wire.I64),
        6: ("total_uncompressed_size", Wire.I64),
        7: ("total_compressed_size", Wire.I64),
        8: ("key_value_metadata", None),
        9: ("data_page_offset", Wire.I64),
        10: ("index_page_offset", None),
        11: ("dictionary_page_offset", Wire.I64),
        12: ("statistics", _STATISTICS),
        13: ("encoding_stats", [_ENCODING_STATS]),
        14: ("bloom_filter_offset", None),
        15: ("bloom_filter_length", None),
        16: ("size_statistics", _SIZES),
        17: ("geospatial_statistics", None),
    },
)
_CHUNK = Fields(
    "ColumnChunk",
    {
        1: ("file_path", None),
        2: ("file_offset", Wire.I64),
        3: ("meta_data", _COLUMN),
        4: ("offset_index_offset", None),
        5: ("offset_index_length", None),
        6: ("column_index_offset", None),
        7: ("column_index_length", None),
        8: ("crypto_metadata", None),
        9: ("encrypted_column_metadata", None),
    },
)
_ROW_GROUP = Fields(
    "RowGroup",
    {
        1: ("columns", [_CHUNK]),
        2: ("total_byte_size", Wire.I64),
        3: ("num_rows", Wire.I64),
        4: ("sorting_columns", None),
        5: ("file_offset", Wire.I64),
        6: ("total_compressed_size", Wire.I64),
        7: ("ordinal", Wire.I16),
    },
)
_FILE = Fields(
    "FileMetaData",
    {
        1: ("version", Wire.I32),
        2: ("schema", [_SCHEMA_ELEMENT]),
        3: ("num_rows", Wire.I64),
        4: ("row_groups", [_ROW_GROUP]),
        5: ("key_value_metadata", [_KEY_VALUE]),
        6: ("created_by", Wire.BINARY),
        7: ("column_orders", [Fields("ColumnOrder", {1: ("type_order", _EMPTY)})]),
        8: ("encryption_algorithm", None),
        9: ("footer_signing_key_metadata", None),
    },
)
_DATA_PAGE = Fields(
    "DataPageHeader",
    {
        1: ("num_values", Wire.I32),
        2: ("encoding", Wire.I32),
        3: ("definition_level_encoding", Wire.I32),
        4: ("repetition_level_encoding", Wire.I32),
        5: ("statistics", _STATISTICS),
    },
)
_DICTIONARY_PAGE = Fields(
    "DictionaryPageHeader",
    {1: ("num_values", Wire.I32), 2: ("encoding", Wire.I32), 3: ("is_sorted", Wire.BOOL)},
)
_PAGE = Fields(
    "PageHeader",
    {
        1: ("type", Wire.I32),
        2: ("uncompressed_page_size", Wire.I32),
        3: ("compressed_page_size", Wire.I32),
        4: ("crc", Wire.I32),
        5: ("data_page_header", _DATA_PAGE),
        6: ("index_page_header", None),
        7: ("dictionary_page_header", _DICTIONARY_PAGE),
        8: ("data_page_header_v2", None),
    },
)
_DATA, _DICTIONARY, _RLE = 0, 2, 3
_ARROW_SCHEMA = b"ARROW:schema"
_WRITERS = re.compile(rb"parquet-cpp-arrow version [0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}[-.\w]{0,20}")


@dataclass(frozen=True, slots=True)
class DataPage:
    """A page of values: how many, nulls and empty lists among them, and its statistics."""

    num_values: int
    statistics: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One column of one row group. ``column`` is what the file's footer says of it."""

    path: str
    column: Mapping[str, Any]
    pages: tuple[DataPage, ...]


@dataclass(frozen=True, slots=True)
class RowGroup:
    """So many rows, and their columns in order."""

    num_rows: int
    chunks: tuple[Chunk, ...]


def read_layout(content: bytes, version: int) -> tuple[RowGroup, ...]:
    """Read how a whole file is laid out. ``version`` is that of its columns, in `SCHEMAS`.

    Raises:
        ValueError: It is not as nap-stream writes files, and where.
    """
    tree, end = footer_struct(content, _FILE)
    _check_file(tree, version)
    leaves = _leaves(tree["schema"])
    position, groups = 4, []
    for number, group in enumerate(tree["row_groups"]):
        where = f"row group {number}"
        columns = group["columns"]
        _expect(f"the columns of {where}", [_leaf(chunk) for chunk in columns], leaves)
        start, chunks = position, []
        for (path, _), chunk in zip(leaves, columns, strict=True):
            found, position = _read_chunk(content, chunk, path, position, f"{where}, {path}")
            chunks.append(found)
        told = [chunk["meta_data"] for chunk in columns]
        sizes = {
            "total_compressed_size": position - start,
            "total_byte_size": sum(one["total_uncompressed_size"] for one in told),
            # A column without values has no page to begin with.
            "file_offset": start if group["num_rows"] else 0,
            "ordinal": number,
        }
        for name, size in sizes.items():
            _expect(f"{name} of {where}", group.get(name, size), size)
        if group["num_rows"] < 0:
            raise ValueError(f"{where} has {group['num_rows']} rows")
        groups.append(RowGroup(group["num_rows"], tuple(chunks)))
    _expect("the place where the footer begins", end, position)
    _expect("num_rows", tree["num_rows"], sum(group.num_rows for group in groups))
    return tuple(groups)


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"{what}: {_short(found)} instead of {_short(expected)}")


def _short(value: object) -> str:
    return cut_off(str(value), 80)


def cut_off(text: str, most: int) -> str:
    """A text of at most so many characters, whose dots say where it was cut."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _check_file(tree: Mapping[str, Any], version: int) -> None:
    own = _written(version)
    for name in ("version", "schema", "column_orders"):
        _expect(name, tree.get(name), own[name])
    if _WRITERS.fullmatch(tree.get("created_by", b"")) is None:
        raise ValueError(f"created_by is {_short(tree.get('created_by'))}")
    pairs = [(pair["key"], pair.get("value", b"")) for pair in tree.get("key_value_metadata", ())]
    keys = Counter(key for key, _ in pairs)
    strange = [key for key, count in keys.items() if count > 1 or not _is_known_key(key)]
    if strange:
        raise ValueError(f"its metadata has the key {_short(strange[0])}, or has it twice")
    values = dict(pairs)
    stored = values.pop(_ARROW_SCHEMA, None)
    if stored is not None:
        _check_arrow_schema(stored, values, version)


def _is_known_key(key: bytes) -> bool:
    return key == _ARROW_SCHEMA or key.startswith(PREFIX.encode())


def _check_arrow_schema(stored: bytes, values: Mapping[bytes, bytes], version: int) -> None:
    """Arrow's own description of the columns, which earlier programs wrote too."""
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(stored, validate=True)))
    notes = {key for field in schema for key in field.metadata or ()}
    is_own = schema.equals(SCHEMAS[version]) and notes <= {b"doc"}
    if not is_own or (schema.metadata or {}) != values:
        raise ValueError("its ARROW:schema contradicts its columns or its footer")


@functools.cache
def _written(version: int) -> Mapping[str, Any]:
    """What the description of a file of a version says, as it is written here."""
    sink = pa.BufferOutputStream()
    pq.write_table(SCHEMAS[version].empty_table(), sink, store_schema=False)
    return footer_struct(bytes(sink.getvalue()), _FILE)[0]


def _leaves(elements: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Path and type of the columns that hold values; the first element is the root."""
    waiting = iter(elements[1:])

    def below(above: str, count: int) -> Iterator[tuple[str, int]]:
        for _ in range(count):
            element = next(waiting)
            path = above + element["name"].decode()
            children = element.get("num_children", 0)
            if children:
                yield from below(f"{path}.", children)
            else:
                yield path, element["type"]

    return list(below("", elements[0]["num_children"]))


def _leaf(chunk: Mapping[str, Any]) -> tuple[str, int]:
    told = chunk["meta_data"]
    return ".".join(name.decode() for name in told["path_in_schema"]), told["type"]


def _read_chunk(
    content: bytes, chunk: Mapping[str, Any], path: str, start: int, where: str
) -> tuple[Chunk, int]:
    """A column's pages, which begin at ``start``; and where they end."""
    told = chunk["meta_data"]
    end = start + told["total_compressed_size"]
    position, unpacked = start, 0
    pages: list[DataPage] = []
    kinds: Counter[tuple[int, int]] = Counter()
    first_data = None
    while position < end:
        reader = CompactReader(content, position)
        page = reader.struct(_PAGE)
        kind, encoding = _page_kind(page, is_first=position == start, where=where)
        kinds[kind, encoding] += 1
        if kind == _DATA:
            first_data = position if first_data is None else first_data
            header = page["data_page_header"]
            pages.append(DataPage(header["num_values"], header.get("statistics", {})))
        unpacked += reader.position - position + page["uncompressed_page_size"]
        if page["compressed_page_size"] < 0 or (pages and pages[-1].num_values < 0):
            raise ValueError(f"{where}: a page of negative size")
        position = reader.position + page["compressed_page_size"]
    _expect(f"{where}: the end of its pages", position, end)
    has_dictionary = any(kind == _DICTIONARY for kind, _ in kinds)
    expected = {
        "num_values": sum(page.num_values for page in pages),
        "total_uncompressed_size": unpacked,
        "data_page_offset": 0 if first_data is None else first_data,
        "dictionary_page_offset": start if has_dictionary else None,
    }
    for name, value in expected.items():
        _expect(f"{where}: {name}", told.get(name), value)
    _expect(
        f"{where}: encodings", set(told["encodings"]), {_RLE, *(encoding for _, encoding in kinds)}
    )
    stats = told.get("encoding_stats")
    if stats is not None:
        counts = {(one["page_type"], one["encoding"]): one["count"] for one in stats}
        _expect(f"{where}: encoding_stats", (counts, len(stats)), (dict(kinds), len(kinds)))
    if chunk["file_offset"] not in {0, start, end}:
        raise ValueError(f"{where}: file_offset is {chunk['file_offset']}")
    return Chunk(path, told, tuple(pages)), position


def _page_kind(page: Mapping[str, Any], *, is_first: bool, where: str) -> tuple[int, int]:
    """Whether a page holds values or a dictionary, and in which encoding."""
    kind, names = page["type"], {_DATA: "data_page_header", _DICTIONARY: "dictionary_page_header"}
    present = [number for number, name in names.items() if name in page]
    if present != [kind] or (kind == _DICTIONARY and not is_first):
        raise ValueError(f"{where}: a page that does not belong there")
    header = page[names[kind]]
    levels = {header.get(f"{name}_level_encoding", _RLE) for name in ("definition", "repetition")}
    if header.get("is_sorted") or levels != {_RLE}:
        raise ValueError(f"{where}: a page of levels or of an order that nap-stream does not write")
    return kind, header["encoding"]
