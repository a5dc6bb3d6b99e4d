"""The versions of the log's columns that this program reads; it writes the newest alone.

Version 2 added ``max_logit`` and the columns after it, version 3 changed the footer alone. A chain
may go from one version to the next between two segments.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pyarrow as pa

from nap_stream.scored_log.schema import OPTIONAL_SCORES, SCHEMA

_ADDED_IN_2 = frozenset({"max_logit", *OPTIONAL_SCORES})

SCHEMAS: Mapping[int, pa.Schema] = MappingProxyType(
    {
        1: pa.schema([field for field in SCHEMA if field.name not in _ADDED_IN_2]),
        2: SCHEMA,
        3: SCHEMA,
    }
)
"""The columns of each version's files."""


def check_version(version: str) -> None:
    """Refuse a version that is not among `SCHEMAS`.

    Args:
        version: As a segment's footer has it.

    Raises:
        ValueError: Files of this version cannot be read.
    """
    readable = [str(number) for number in SCHEMAS]
    if version not in readable:
        raise ValueError(f"schema version {version!r}; this program reads {', '.join(readable)}")


def with_columns(table: pa.Table, names: Sequence[str] | None = None) -> pa.Table:
    """Bring rows of any version to the columns of `SCHEMA`.

    Args:
        table: Rows of one segment.
        names: Which columns of `SCHEMA`, in the order wanted; None for all.

    Returns:
        Those columns, null where the rows' version has none.

    Raises:
        pyarrow.ArrowInvalid: A column is missing that every version has.
    """
    schema = SCHEMA if names is None else pa.schema([SCHEMA.field(name) for name in names])
    added = _ADDED_IN_2 - set(table.column_names)
    missing = set(schema.names) - set(table.column_names) - added
    if missing:
        raise pa.ArrowInvalid(f"columns are missing: {', '.join(sorted(missing))}")
    columns = [
        pa.nulls(table.num_rows, field.type) if field.name in added else table.column(field.name)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
