"""Whether what Parquet says of values, by which readers skip rows, is true of them.

Of each column of each row group, and of each page, Parquet can say the least and greatest value,
how many are null, and how many levels of each kind there are. Readers leave out what cannot hold
what they look for, and some answer counts and extremes from there alone. So all that is said must
be exactly right; what is not said does no harm.
"""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nap_stream.scored_log.verify.layout import Chunk, RowGroup, cut_off

_ENDS = frozenset({"min", "max", "min_value", "max_value"})


@dataclass(frozen=True, slots=True)
class Slots:
    """A column as Parquet stores it: a slot for each value, null and empty list, in order.

    ``definition`` and ``repetition`` count the slots at each level, and are empty where a column
    has but one.
    """

    values: pa.Array
    definition: tuple[int, ...] = ()
    repetition: tuple[int, ...] = ()


def statistics_problems(groups: Sequence[RowGroup], table: pa.Table) -> Iterator[str]:
    """What row groups say that is not true of the table's rows, which they hold in order."""
    first = 0
    for number, group in enumerate(groups):
        rows = table.slice(first, group.num_rows)
        first += group.num_rows
        slots = dict(_all_slots(rows))
        for chunk in group.chunks:
            for problem in _chunk_problems(chunk, slots[chunk.path]):
                yield f"row group {number}, {chunk.path}: {problem}"


def _all_slots(rows: pa.Table) -> Iterator[tuple[str, Slots]]:
    for field in rows.schema:
        values = rows.column(field.name).combine_chunks()
        if pa.types.is_list(field.type):
            yield from _list_slots(field, values)
        else:
            levels = (values.null_count, len(values) - values.null_count)
            yield field.name, Slots(values, levels if field.nullable else ())


def _list_slots(field: pa.Field, lists: pa.Array) -> Iterator[tuple[str, Slots]]:
    """The columns of a list of structs, neither of which is ever null."""
    lengths = pc.list_value_length(lists).to_numpy()
    elements = lists.flatten()
    empty, rows, count = int((lengths == 0).sum()), len(lists), len(elements)
    is_empty = np.zeros(empty + count, bool)
    places = np.maximum(lengths, 1)
    is_empty[(np.cumsum(places) - places)[lengths == 0]] = True
    order = pa.array(np.cumsum(~is_empty) - 1, mask=is_empty)
    for child, values in zip(field.type.value_type, elements.flatten(), strict=True):
        levels: tuple[int, ...] = (empty, count)
        if child.nullable:
            levels = (empty, values.null_count, count - values.null_count)
        path = f"{field.name}.list.{field.type.value_field.name}.{child.name}"
        yield path, Slots(values.take(order), levels, (rows, empty + count - rows))


def _chunk_problems(chunk: Chunk, slots: Slots) -> Iterator[str]:
    told, values = chunk.column, slots.values
    if told["num_values"] != len(values):
        yield f"num_values is {told['num_values']}, there are {len(values)}"
        return
    own_statistics = told.get("statistics", {})
    is_one_page = [page.num_values for page in chunk.pages] == [len(values)]
    noted = [own_statistics, *(page.statistics for page in chunk.pages[:1] if is_one_page)]
    ends = _extremes(values) if any(_ENDS & one.keys() for one in noted) else (None, None)
    yield from _problems(own_statistics, values, ends)
    sizes = told.get("size_statistics", {})
    expected = {
        "unencoded_byte_array_data_bytes": _byte_count(values),
        "definition_level_histogram": list(slots.definition),
        "repetition_level_histogram": list(slots.repetition),
    }
    for name, found in sizes.items():
        if found != expected[name]:
            yield f"{name} is {found}, it should be {expected[name]}"
    first = 0
    for number, page in enumerate(chunk.pages):
        own = values.slice(first, page.num_values)
        first += page.num_values
        if not is_one_page and _ENDS & page.statistics.keys():
            ends = _extremes(own)
        for problem in _problems(page.statistics, own, ends):
            yield f"page {number}: {problem}"


def _byte_count(values: pa.Array) -> int:
    if not (pa.types.is_string(values.type) or pa.types.is_binary(values.type)):
        return 0
    return int(pc.sum(pc.binary_length(values).cast(pa.int64()), min_count=0).as_py())


def _problems(told: Mapping[str, Any], values: pa.Array, ends: tuple[Any, Any]) -> Iterator[str]:
    """What statistics say of values that is not true; ``ends`` are least and greatest."""
    if told.get("null_count", values.null_count) != values.null_count:
        yield f"null_count is {told['null_count']}, there are {values.null_count}"
    for name in (name for name in told if name in _ENDS):
        expected = ends[name.startswith("max")]
        found = _decoded(told[name], values.type)
        if found is None or found != expected:
            yield f"{name} is {_shown(found)}, it should be {_shown(expected)}"
    for name in ("is_min_value_exact", "is_max_value_exact"):
        if not told.get(name, True):
            yield f"{name} is false"


def _shown(value: object) -> str:
    return cut_off(repr(value), 50)


def _extremes(values: pa.Array) -> tuple[Any, Any]:
    """Least and greatest value, None where there is none; no number is neither."""
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.int64())
    elif pa.types.is_string(values.type):
        values = values.cast(pa.binary())
    elif pa.types.is_float64(values.type):
        values = values.filter(pc.invert(pc.is_nan(values)), null_selection_behavior="drop")
    found = pc.min_max(values)
    return found["min"].as_py(), found["max"].as_py()


def _decoded(text: bytes, kind: pa.DataType) -> Any:
    """A value as statistics write it; None where it is no value of the type."""
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return text
    form = "<?" if kind == pa.bool_() else "<d" if kind == pa.float64() else "<q"
    if kind == pa.int32():
        form = "<i"
    if struct.calcsize(form) != len(text):
        return None
    (found,) = struct.unpack(form, text)
    return None if isinstance(found, float) and math.isnan(found) else found
