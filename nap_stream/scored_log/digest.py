"""What the chain of segments is hashed by: values, not bytes of files.

A file's bytes do not survive compaction, and to hash them a whole file must be read. So a
segment's footer holds a digest of its rows, and the next segment names the digest of that
footer. An auditor recomputes both from any Parquet reader.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def rows_sha256(table: pa.Table) -> str:
    """Digest of rows, the same however Parquet encodes them.

    Hashed are, column by column: the name in UTF-8 and a zero byte, then the values (`_feed`).
    All integers are 8 bytes, signed, little-endian.

    Args:
        table: Rows with the columns of their version, in its order. May be empty.

    Returns:
        SHA-256, 64 lower-case hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(name.encode() + b"\0")
        _feed(digest, table.column(name).combine_chunks())
    return digest.hexdigest()


def metadata_sha256(metadata: Mapping[str, str]) -> str:
    """Digest of a footer's own keys and values: of their JSON, sorted, ASCII, without spaces.

    Returns:
        SHA-256, 64 lower-case hexadecimal digits.
    """
    text = json.dumps(dict(metadata), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _feed(digest: Any, values: pa.Array) -> None:
    """Hash the count, a byte a value (1, or 0 for null), then the values, 0 or empty for null.

    Numbers, booleans and times (milliseconds) are 8 bytes each, text and bytes their lengths and
    then all of them joined, lists their lengths and then their elements' values, structs their
    fields as if they were columns.
    """
    digest.update(np.int64(len(values)).astype("<i8").tobytes())
    digest.update(values.is_valid().cast(pa.uint8()).to_numpy(zero_copy_only=False).tobytes())
    kind = values.type
    if pa.types.is_struct(kind):
        for field, child in zip(kind, values.flatten(), strict=True):
            digest.update(field.name.encode() + b"\0")
            _feed(digest, child)
    elif pa.types.is_list(kind):
        digest.update(_lengths(pc.list_value_length(values)))
        _feed(digest, values.flatten())
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        digest.update(_lengths(pc.binary_length(values)))
        digest.update(_joined(values))
    elif pa.types.is_float64(kind):
        digest.update(pc.fill_null(values, 0.0).to_numpy().astype("<f8").tobytes())
    else:
        digest.update(pc.fill_null(_as_int64(values), 0).to_numpy().astype("<i8").tobytes())


def _as_int64(values: pa.Array) -> pa.Array:
    return (values.cast(pa.uint8()) if values.type == pa.bool_() else values).cast(pa.int64())


def _lengths(lengths: pa.Array) -> bytes:
    filled: Any = pc.fill_null(lengths.cast(pa.int64()), 0).to_numpy()
    return bytes(filled.astype("<i8").tobytes())


def _joined(values: pa.Array) -> bytes:
    """The bytes of all values, one after another."""
    present = values.drop_null()
    if not len(present):
        return b""
    _, offsets, data = present.buffers()
    ends = np.frombuffer(offsets, np.int32)[present.offset : present.offset + len(present) + 1]
    return bytes(data[int(ends[0]) : int(ends[-1])]) if data is not None else b""
