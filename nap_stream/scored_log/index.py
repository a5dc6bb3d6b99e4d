"""What large files of the log hold, noted beside it: so that a question reads few of them.

    <root>/_index/topic=<topic>/partition=<p>/<base offset, 20 digits>.index

Nothing proves an index: no digest of the chain is of it. It is made from the rows by compaction,
may be removed at any time, and counts only while its file is the one that it was made of. Whoever
uses it says so (`IndexUse`); `nap-stream verify --deep` compares it with the rows.

Its file has, one after another: the first 4 bytes of the SHA-256 of each different key, ascending;
those of each image's SHA-256, ascending; rows counted by hour of event time, class, status, model,
calibration, flag and key; the same without key. Then a JSON object that says where each of them
lies and has the file's footer, how long that is (4 bytes), and `_MAGIC`. Numbers are little-endian.
Counts are an Arrow stream, compressed with zstd. They are left out where they would save little.
"""

import hashlib
import io
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nap_stream.errors import ScoredLogError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.footer import (
    SegmentFooter,
    own_values,
    parse_values,
    span_from_metadata,
)
from nap_stream.scored_log.format import (
    SCHEMA,
    parse_segment_name,
    partition_folder,
    segment_path,
)
from nap_stream.scored_log.segment import typed_errors
from nap_stream.scored_log.stores import SegmentStore

FOLDER = "_index"
LEAST_ROWS = 4_096
"""Rows of a file from which on it has an index, whether it is a compacted one or not."""
HOUR_MS = 3_600_000
TAIL_BYTES = 65_536
"""Of a file of the log: by them it is told from another one."""
_END_BYTES = 16_384
"""Of an index: as a rule they hold its description and the counts without key."""
_SUFFIX = ".index"
_MAGIC = b"NAPINDX1"
_MOST_COUNTS_BYTES = 256 * 2**20
_SAVES = 8
"""So many times fewer counts than rows there are at least."""
_COUNTED = (
    *("event_time", "class_id", "class_name", "status"),
    *("model_fingerprint", "calibration_fingerprint", "is_ood"),
)
_REPEATED = ("class_name", "status", "model_fingerprint", "calibration_fingerprint", "key")
_NONE = 255
_DIGITS = np.full(256, _NONE, np.uint8)
_DIGITS[list(b"0123456789abcdef")] = range(16)
_HEX_DIGITS = 64
_MOST_ROWS = 2**40
_DICTIONARY, _BATCH = 2, 3
"""Kinds of Arrow's messages."""


@dataclass(slots=True)
class IndexUse:
    """How many files of the log the index has listed for an answer.

    ``counted`` of them were not read because their counts were there, and ``passed_over`` because
    the index does not name what is looked for.
    """

    files: int = 0
    counted: int = 0
    passed_over: int = 0


class IndexEntry:
    """The index of one file; see `entry_at`.

    ``footer`` is that of the file, without those that it has merged, and ``mark`` is its
    `mark_of`. Methods raise ValueError of what is no index, and ScoredLogError where the store
    fails.
    """

    def __init__(
        self, footer: SegmentFooter, tree: Mapping[str, Any], read: Callable[[int, int], bytes]
    ) -> None:
        self.footer, self.mark = footer, bytes.fromhex(tree["mark"])
        self._tree, self._read = tree, read

    def may_hold(self, keys: Sequence[bytes], sha256: Sequence[str]) -> bool:
        """Whether the file can have a row of one of the keys and one of the digests, if given."""
        of_keys = [_key_prefix(key) for key in keys]
        of_images = [_image_prefix(digest) for digest in sha256]
        return self._has_one("keys", of_keys) and self._has_one("sha256", of_images)

    def _has_one(self, part: str, prefixes: Sequence[int | None]) -> bool:
        if not prefixes or self._tree[part] is None or None in prefixes:
            return True
        return any(self._has(part, prefix) for prefix in prefixes if prefix is not None)

    def _has(self, part: str, prefix: int) -> bool:
        start, size = self._tree[part]
        count = size // 4
        # Digests are spread evenly: so it is clear about where one stands.
        reach = 64 + 4 * int(count**0.5)
        middle = prefix * count >> 32
        first, last = max(0, middle - reach), min(count, middle + reach)
        near = self._prefixes(start + 4 * first, last - first)
        is_around = len(near) > 0 and (first == 0 or near[0] < prefix)
        if not (is_around and (last == count or prefix < near[-1])):
            near = self._prefixes(start, count)
        place = int(np.searchsorted(near, prefix))
        return place < len(near) and int(near[place]) == prefix

    def _prefixes(self, start: int, count: int) -> NDArray[np.uint32]:
        found = np.frombuffer(self._read(start, 4 * count), "<u4")
        if (found[1:] < found[:-1]).any():
            raise ValueError("its prefixes do not ascend")
        return found

    def has_counts(self, *, by_key: bool) -> bool:
        """Whether there are counts, of each key where that is asked for."""
        return self._tree["key_counts" if by_key else "counts"] is not None

    def counts(self, *, by_key: bool) -> pa.Table:
        """Rows counted: columns of `SCHEMA`, event times as the hours' starts, and ``n``."""
        start, size, whole = self._tree["key_counts" if by_key else "counts"]
        names = (*_COUNTED, "key") if by_key else _COUNTED
        packed = self._read(start, size)
        try:
            table = _unpacked(pa.decompress(packed, whole, "zstd"), _counts_schema(names))
        except (OSError, struct.error, pa.ArrowException) as error:
            raise ValueError(f"no counts: {error}") from error
        counts = table.column("n")
        is_true = counts.null_count == 0 and pc.all(pc.greater(counts, 0), min_count=0).as_py()
        # Compared one by one first: what is hostile could add up to the right number.
        is_true = is_true and pc.all(pc.less_equal(counts, self.footer.rows), min_count=0).as_py()
        if not is_true or pc.sum(counts, min_count=0).as_py() != self.footer.rows:
            raise ValueError("its counts are not those of so many rows")
        return table

    def problem(self, true: Self) -> str | None:
        """What it says that is not so, by one that was just made of the rows; None where all is."""
        if self.footer != true.footer:
            return "it is not the file's footer that it has"
        for name in ("keys", "sha256"):
            own, other = self._tree[name], true._tree[name]
            if own is not None and (other is None or self._read(*own) != true._read(*other)):
                return f"its {name} are not those of the rows"
        for by_key in (False, True):
            if self.has_counts(by_key=by_key) and (
                not true.has_counts(by_key=by_key)
                or _plain(self.counts(by_key=by_key)) != _plain(true.counts(by_key=by_key))
            ):
                return "its counts are not those of the rows"
        return None


def _unpacked(content: bytes, schema: pa.Schema) -> pa.Table:
    """A table of a stream of Arrow, of that schema and not larger than its bytes."""
    messages = pa.ipc.MessageReader.open_stream(content)
    if any(_is_compressed(memoryview(each.metadata)) for each in messages):
        raise ValueError("its counts are compressed twice")
    with pa.ipc.open_stream(content) as stream:
        if not stream.schema.equals(schema):
            raise ValueError("the columns of its counts are others")
        table = stream.read_all()
    table.validate(full=True)
    names = [name for name in _REPEATED if name in schema.names]
    chunks = [chunk for name in names for chunk in table[name].chunks]
    # No value is longer than all of them: as a rule that is enough to know, and soon known.
    if sum(len(each) * each.dictionary.nbytes for each in chunks) > _MOST_COUNTS_BYTES:
        sizes = (pc.binary_length(each.dictionary).take(each.indices) for each in chunks)
        if sum(pc.sum(size, min_count=0).as_py() for size in sizes) > _MOST_COUNTS_BYTES:
            raise ValueError("its counts are too large")
    return table


def _is_compressed(message: memoryview) -> bool:
    """Whether the buffers of a message are; pyarrow would unpack them without a bound.

    It is a flatbuffer: https://github.com/apache/arrow/blob/main/format/Message.fbs
    """

    def table(at: int) -> int:
        return at + int(struct.unpack_from("<I", message, at)[0])

    def field(of: int, slot: int) -> int | None:
        slots = of - struct.unpack_from("<i", message, of)[0]
        (size,) = struct.unpack_from("<H", message, slots)
        at = 4 + 2 * slot
        (offset,) = struct.unpack_from("<H", message, slots + at) if at < size else (0,)
        return of + offset if offset else None

    root = table(0)
    kind, header = field(root, 1), field(root, 2)
    if kind is None or header is None or message[kind] not in {_DICTIONARY, _BATCH}:
        return False
    batch: int | None = table(header)
    if message[kind] == _DICTIONARY:
        data = field(table(header), 1)
        batch = None if data is None else table(data)
    return batch is not None and field(batch, 3) is not None


def _plain(counts: pa.Table) -> pa.Table:
    """Counts in one order and one encoding, of those that say the same."""
    columns = {
        name: column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for name, column in zip(counts.column_names, counts.columns, strict=True)
    }
    order = [(name, "ascending") for name in counts.column_names]
    return pa.table(columns).sort_by(order).combine_chunks()


def _key_prefix(key: bytes) -> int:
    return int.from_bytes(hashlib.sha256(key).digest()[:4])


def _image_prefix(digest: str) -> int | None:
    if len(digest) != _HEX_DIGITS or set(digest) - set("0123456789abcdef"):
        return None
    return int(digest[:8], 16)


def index_path(path: str) -> str:
    """Where the index of the file at a path lies."""
    return f"{FOLDER}/{path.removesuffix('.parquet')}{_SUFFIX}"


def mark_of(tail: bytes, size: int) -> bytes:
    """What tells a file from another one of its name, by its size and last `TAIL_BYTES`."""
    # The end of a file has the digest of its rows, or the end of the footers that it merged.
    return hashlib.sha256(b"%d:" % size + tail).digest()


def indexed(store: SegmentStore, partition: TopicPartition) -> set[int]:
    """Base offsets of the files of a partition that have an index, valid or not."""
    names = store.names(f"{FOLDER}/{partition_folder(partition)}")
    bases = (
        parse_segment_name(name.removesuffix(_SUFFIX) + ".parquet")
        for name in names
        if name.endswith(_SUFFIX)
    )
    return {base for base in bases if base is not None}


def entry_at(store: SegmentStore, path: str, mark: bytes) -> IndexEntry | None:
    """The index of a file; None where there is none of this very file, or none that can be read.

    ``mark`` is that of the file at the path.
    """
    where = index_path(path)
    try:
        found = store.read_part(where, -_END_BYTES, _END_BYTES)
        if found is None:
            return None
        entry = _parsed(*found, partial(_read_from, store, where, found))
    except (ScoredLogError, ValueError, KeyError, TypeError, RecursionError, struct.error):
        return None
    footer = entry.footer
    is_own = segment_path(footer.partition, footer.base_offset) == path
    return entry if is_own and entry.mark == mark else None


def _read_from(
    store: SegmentStore, where: str, end: tuple[bytes, int], start: int, count: int
) -> bytes:
    """A part of a file of which the last bytes and the size are at hand."""
    if not count:
        # A store may refuse to read nothing.
        return b""
    tail, size = end
    begin = size - len(tail)
    if start >= begin:
        return tail[start - begin : start - begin + count]
    found = store.read_part(where, start, count)
    if found is None or found[1] != size:
        raise ValueError("it was replaced meanwhile")
    if len(found[0]) != count:
        raise ValueError("it is shorter than it says")
    return found[0]


def _parsed(tail: bytes, size: int, read: Callable[[int, int], bytes]) -> IndexEntry:
    """The entry of which a file's last bytes and its size are at hand."""
    if tail[-len(_MAGIC) :] != _MAGIC:
        raise ValueError("no index")
    end = len(tail) - len(_MAGIC) - 4
    (length,) = struct.unpack_from("<I", tail, end)
    if length > end:
        raise ValueError("its description is too long")
    tree = json.loads(tail[end - length : end])
    for name, numbers in _PARTS.items():
        place = tree[name]
        if place is None:
            continue
        is_whole = len(place) == numbers and all(type(n) is int and n >= 0 for n in place)
        if not is_whole or place[0] + place[1] > size or place[-1] > _MOST_COUNTS_BYTES:
            raise ValueError(f"{name} is not in it")
    footer = parse_values(tree["footer"])
    if footer.rows > _MOST_ROWS:
        raise ValueError("no file has so many rows")
    return IndexEntry(footer, tree, read)


_PARTS = {"keys": 2, "sha256": 2, "counts": 3, "key_counts": 3}
"""How many numbers say where a part lies: its start, its bytes, and of counts those unpacked."""


def made_of(content: bytes, path: str) -> bytes:
    """The index of a file, from all its bytes.

    Raises:
        ChainBrokenError: The file cannot be read.
    """
    with typed_errors(path), pq.ParquetFile(io.BytesIO(content)) as parquet:
        footer = span_from_metadata(parquet.metadata.metadata, path)
        rows = parquet.read(columns=[*_COUNTED, "key", "sha256"]).combine_chunks()
    parts = _parts(rows)
    packed = b""
    places: dict[str, list[int] | None] = {}
    for name, part in parts.items():
        if part is None:
            places[name] = None
            continue
        kept = part if _PARTS[name] == 2 else pa.compress(part, "zstd", asbytes=True)  # noqa: PLR2004
        places[name] = [len(packed), len(kept), *([len(part)] if kept is not part else [])]
        packed += kept
    mark = mark_of(content[-TAIL_BYTES:], len(content)).hex()
    text = json.dumps({"mark": mark, "footer": own_values(footer), **places}).encode("ascii")
    return packed + text + struct.pack("<I", len(text)) + _MAGIC


def _parts(rows: pa.Table) -> dict[str, bytes | None]:
    keys = rows.column("key").unique().drop_null().to_pylist()
    of_keys = np.array([_key_prefix(key) for key in keys], "<u4")
    of_images = _image_prefixes(rows.column("sha256").drop_null())
    return {
        "keys": np.sort(of_keys).tobytes(),
        "sha256": None if of_images is None else np.sort(of_images).astype("<u4").tobytes(),
        "key_counts": _counts(rows, (*_COUNTED, "key")),
        "counts": _counts(rows, _COUNTED),
    }


def _image_prefixes(digests: pa.ChunkedArray) -> NDArray[np.uint32] | None:
    """None where one is not as all digests are written: nothing is left out by them then."""
    if not pc.all(pc.equal(pc.binary_length(digests), _HEX_DIGITS), min_count=0).as_py():
        return None
    texts = b"".join(memoryview(text.encode()) for text in digests.to_pylist())
    digits = _DIGITS[np.frombuffer(texts, np.uint8)]
    if (digits > 15).any():  # noqa: PLR2004
        return None
    first = digits.reshape(-1, _HEX_DIGITS)[:, :8].astype(np.uint32)
    powers = np.uint32(16) ** np.arange(7, -1, -1, dtype=np.uint32)
    return np.asarray(first @ powers, np.uint32)


def _counts(rows: pa.Table, names: Sequence[str]) -> bytes | None:
    time_ms = rows.column("event_time").cast(pa.int64()).to_numpy()
    start = pa.array(time_ms // HOUR_MS * HOUR_MS).cast(rows.column("event_time").type)
    own = rows.set_column(rows.column_names.index("event_time"), "event_time", start).select(names)
    counted = own.group_by(list(names), use_threads=False).aggregate([([], "count_all")])
    if counted.num_rows * _SAVES > rows.num_rows or counted.nbytes > _MOST_COUNTS_BYTES:
        return None
    counted = counted.rename_columns([*names, "n"]).combine_chunks()
    columns = [
        column.combine_chunks().dictionary_encode() if name in _REPEATED else column
        for name, column in zip(counted.column_names, counted.columns, strict=True)
    ]
    counted = pa.Table.from_arrays(columns, schema=_counts_schema(names))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, counted.schema) as stream:
        stream.write_table(counted)
    return bytes(sink.getvalue())


def _counts_schema(names: Sequence[str]) -> pa.Schema:
    kinds = {name: SCHEMA.field(name).type for name in names}
    return pa.schema(
        [
            *((n, pa.dictionary(pa.int32(), k) if n in _REPEATED else k) for n, k in kinds.items()),
            ("n", pa.int64()),
        ]
    )


def write_index(store: SegmentStore, path: str, content: bytes) -> None:
    """Put the index of a file beside the log. ``content`` are all bytes of the file at ``path``.

    Raises:
        ChainBrokenError: The file cannot be read.
        ScoredLogError: The store failed.
    """
    where = index_path(path)
    store.prepare(where.rpartition("/")[0])
    store.replace(where, made_of(content, path))


def index_problem(store: SegmentStore, path: str) -> str | None:
    """What the index of a file says that is not true of its rows; None where there is none.

    Raises:
        ChainBrokenError: The file cannot be read.
        ScoredLogError: The store failed.
    """
    tail = store.read_part(path, -TAIL_BYTES, TAIL_BYTES)
    entry = None if tail is None else entry_at(store, path, mark_of(*tail))
    content = None if entry is None else store.read(path)
    if (
        entry is None
        or content is None
        or mark_of(content[-TAIL_BYTES:], len(content)) != entry.mark
    ):
        return None
    made = made_of(content, path)
    true = _parsed(made, len(made), partial(_read_from, store, path, (made, len(made))))
    try:
        return entry.problem(true)
    except (ScoredLogError, ValueError) as error:
        is_replaced = entry_at(store, path, entry.mark) is None
        return None if is_replaced else f"it cannot be read: {error}"
