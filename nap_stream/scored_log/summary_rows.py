"""What a summary takes from the rows of a segment, as columns: of records in hand, or of a file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nap_stream.records import Origin, ScoredRecord, Status
from nap_stream.scored_log.schema import SCHEMA, storable_text, storable_time_ms

_SCORES = ("class_name", "ood_p_value", "is_ood")
_COLUMNS = ("offset", "index", "event_time", "ingest_time", "status", *_SCORES)
_MESSAGE_KEY = "key"


@dataclass(frozen=True, slots=True, eq=False)
class SummaryRows:
    """N rows, in order of (offset, index).

    ``offset``, ``index``, ``event_time_ms`` and ``ingest_time_ms`` are int64 (N,); ``is_scored``
    bool (N,). ``key`` is int64 (N,), an index into ``keys``, the different keys as they came;
    both None where keys are not told apart. Of the M scored rows alone: ``p_value`` float64 (M,),
    ``is_ood`` bool (M,), and ``flagged_class``, the predicted classes of the flagged ones.
    """

    rows_by_status: Mapping[Status, int]
    offset: NDArray[np.int64]
    index: NDArray[np.int64]
    event_time_ms: NDArray[np.int64]
    ingest_time_ms: NDArray[np.int64]
    is_scored: NDArray[np.bool_]
    p_value: NDArray[np.float64]
    is_ood: NDArray[np.bool_]
    flagged_class: Sequence[str]
    key: NDArray[np.int64] | None
    keys: Sequence[bytes | None] | None


def rows_of_records(records: Sequence[ScoredRecord], key_by: str | None) -> SummaryRows:
    """Take what is needed from records.

    Args:
        records: The rows.
        key_by: See `nap_stream.settings.KeySettings`; None not to tell keys apart.
    """
    origins = [record.origin for record in records]
    scored = [record.scores for record in records if record.scores is not None]
    key, keys = (None, None) if key_by is None else _numbered(_origin_keys(origins, key_by))
    return SummaryRows(
        rows_by_status=Counter(record.status for record in records),
        offset=_integers([origin.offset for origin in origins]),
        index=_integers([origin.index for origin in origins]),
        event_time_ms=_storable_times([origin.event_time_ms for origin in origins]),
        ingest_time_ms=_storable_times([origin.ingest_time_ms for origin in origins]),
        is_scored=np.array([record.scores is not None for record in records], dtype=np.bool_),
        p_value=np.array([scores.ood_p_value for scores in scored], dtype=np.float64),
        is_ood=np.array([scores.is_ood for scores in scored], dtype=np.bool_),
        flagged_class=[storable_text(scores.class_name) for scores in scored if scores.is_ood],
        key=key,
        keys=keys,
    )


def rows_schema(key_by: str | None) -> pa.Schema:
    """Give the columns that `rows_of_table` needs."""
    key_columns = [] if key_by is None else [_MESSAGE_KEY if _is_message_key(key_by) else "headers"]
    return pa.schema([SCHEMA.field(name) for name in (*_COLUMNS, *key_columns)])


def rows_of_table(table: pa.Table, key_by: str | None) -> SummaryRows:
    """Take what is needed from rows of a file.

    Args:
        table: With the columns of `rows_schema`.
        key_by: See `rows_of_records`.

    Raises:
        ValueError: A status is unknown, or a scored row lacks scores.
    """
    table = table.combine_chunks()
    rows_by_status = _rows_by_status(table.column("status"))
    scored = table.select(_SCORES).filter(pc.equal(table.column("status"), Status.OK.value))
    if any(column.null_count for column in scored.columns):
        raise ValueError("rows with status ok lack scores")
    key, keys = (None, None) if key_by is None else _table_keys(table, key_by)
    return SummaryRows(
        rows_by_status=rows_by_status,
        offset=table.column("offset").to_numpy(),
        index=table.column("index").to_numpy(),
        event_time_ms=table.column("event_time").cast(pa.int64()).to_numpy(),
        ingest_time_ms=table.column("ingest_time").cast(pa.int64()).to_numpy(),
        is_scored=pc.equal(table.column("status"), Status.OK.value).to_numpy(),
        p_value=scored.column("ood_p_value").to_numpy(),
        is_ood=scored.column("is_ood").to_numpy(),
        flagged_class=scored.filter(scored.column("is_ood")).column("class_name").to_pylist(),
        key=key,
        keys=keys,
    )


def _rows_by_status(statuses: pa.ChunkedArray) -> dict[Status, int]:
    counts = {each["values"]: each["counts"] for each in pc.value_counts(statuses).to_pylist()}
    unknown = sorted(counts.keys() - set(Status))
    if unknown:
        raise ValueError(f"rows have a status that this program does not know: {unknown[0]!r}")
    return {Status(name): count for name, count in counts.items()}


def _is_message_key(key_by: str) -> bool:
    return key_by == _MESSAGE_KEY


def _header_name(key_by: str) -> str:
    return storable_text(key_by.partition(":")[2])


def _origin_keys(origins: Sequence[Origin], key_by: str) -> list[bytes | None]:
    if _is_message_key(key_by):
        return [origin.key for origin in origins]
    name = _header_name(key_by)
    return [
        next((value for found, value in reversed(o.headers) if storable_text(found) == name), None)
        for o in origins
    ]


def _numbered(keys: Sequence[bytes | None]) -> tuple[NDArray[np.int64], list[bytes | None]]:
    numbers: dict[bytes | None, int] = {}
    return _integers([numbers.setdefault(key, len(numbers)) for key in keys]), list(numbers)


def _table_keys(table: pa.Table, key_by: str) -> tuple[NDArray[np.int64], list[bytes | None]]:
    keys = (
        table.column(_MESSAGE_KEY)
        if _is_message_key(key_by)
        else _last_values(table.column("headers"), _header_name(key_by))
    )
    encoded = pc.dictionary_encode(keys, null_encoding="encode")
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _last_values(headers: pa.ChunkedArray, name: str) -> pa.Array:
    """The value of each row's last header of a name, null where there is none."""
    lists = headers.combine_chunks()
    entries = pc.list_flatten(lists)
    named = pc.equal(pc.struct_field(entries, "name"), name)
    rows = pc.list_parent_indices(lists).filter(named).to_numpy()
    chosen = np.full(len(lists), -1, dtype=np.int64)
    # Of a row's headers, which follow each other, the last one's place stays.
    chosen[rows] = np.flatnonzero(named.to_numpy(zero_copy_only=False))
    return pc.struct_field(entries, "value").take(pa.array(chosen, mask=chosen < 0))


def _storable_times(times_ms: Sequence[int]) -> NDArray[np.int64]:
    return _integers([storable_time_ms(time_ms) for time_ms in times_ms])


def _integers(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)
