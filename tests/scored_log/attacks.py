"""Ways to tamper with a scored log, each of them tried, and what finds it.

    .venv/bin/python -m tests.scored_log.attacks

prints the table that stands in docs/scored-log.md.
"""

import dataclasses
import re
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nap_stream.clock import ManualClock
from nap_stream.errors import ConfigError
from nap_stream.records import PartitionOffsets, TopicPartition
from nap_stream.scored_log.chain import chain_start, sha256_hex
from nap_stream.scored_log.events import FOLDER, Event, append_event, event_path, read_events
from nap_stream.scored_log.footer import segment_sha256
from nap_stream.scored_log.format import (
    genesis_path,
    partition_folder,
    seal_path,
    segment_path,
)
from nap_stream.scored_log.index import index_path, made_of
from nap_stream.scored_log.proof.checkpoint import FOLDER as CHECKPOINTS
from nap_stream.scored_log.proof.checkpoint import (
    LOG_FILE,
    last_signed,
    read_checkpoints,
    take_checkpoint,
    write_checkpoint,
)
from nap_stream.scored_log.proof.note import Signer, parse_signer
from nap_stream.scored_log.prune import Request, prune
from nap_stream.scored_log.read import segments
from nap_stream.scored_log.seals import encode_seal, span_of
from nap_stream.scored_log.segment import encode_segment, rows_sha256
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.anchored import compare_with_checkpoints
from nap_stream.scored_log.verify.compared import compare_with_broker, compare_with_kept
from nap_stream.scored_log.verify.report import Head, VerifyReport
from nap_stream.scored_log.verify.run import verify
from nap_stream.scored_log.verify.sealed import unsigned_seals
from tests.scored_log.builders import (
    CALIBRATION,
    CARS,
    MODEL,
    NOON_MS,
    failed,
    footer_of,
    local_log,
    merged_segments,
    origin,
    scored,
)
from tests.scored_log.forged_parquet import (
    BINARY,
    FALSE,
    I32,
    I64,
    LIST,
    STRUCT,
    Tree,
    chunk,
    column,
    element,
    pair,
    row_group,
    statistics,
    with_data,
    with_footer,
)
from tests.support.scored_records import ScoredRecord, file_table

OTHER = TopicPartition("cars", 1)
FIRST, SECOND, LAST = (segment_path(CARS, base) for base in (0, 10, 20))
ID = "id-of-the-topic"
SIGNED_MS = NOON_MS + 86_400_000
BEGIN, END = "<!-- attacks -->\n", "<!-- end of attacks -->\n"
NEWER = "what came after the kept report and the last checkpoint is removed"
"""Of all that is tried here, no copy of the past can show this alone."""
PUT_BACK = "the log is put back to an earlier state, with its checkpoints"
REPLACED = "the log is replaced by another one that the same key signs"
INVENTED = "the same, with an honest date"
WITH_KEY = "the same, with the key that signs"
UNPROVED = {NEWER, PUT_BACK, REPLACED, INVENTED, WITH_KEY}
"""What a log and public keys do not show without anything else."""
SIGNER = parse_signer(
    "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
)
"""The key of the examples of golang.org/x/mod/sumdb/note."""
_MARK = "found"
HEADER = (
    "| what is done | `verify` | `--deep` | `--kept` | `--checkpoints` | `--checkpoint` "
    "| `--against-broker` | `--deep --checkpoints` |\n|---|---|---|---|---|---|---|---|\n"
)


def rows_from(base: int, p_value: float = 0.5) -> list[ScoredRecord]:
    """Ten rows: nine with scores, of two classes and several p-values, and one without."""
    rows = [
        scored(
            origin(base + n, key=b"camera-%d" % (n % 3)),
            p_value=p_value / (n + 1),
            class_id=n % 2,
            class_name=("cat", "dog")[n % 2],
            fused=float(n),
        )
        for n in range(9)
    ]
    return [*rows, failed(origin(base + 9))]


def _write_on(
    root: Path, first: int, ends: int, writer_id: str = "worker-0", made_ms: int = NOON_MS
) -> None:
    log = local_log(root, writer_id, ManualClock(made_ms))
    for number in range(first, ends):
        end = log.end(CARS)
        assert end is not None
        log.publish(CARS, end, end.offset + 10, rows_from(end.offset))
        _append_event(root, made_ms, f"number {number}")


def write_log(root: Path, ends: int = 3, writer_id: str = "worker-0") -> None:
    """Partition 0 of so many segments of ten rows, as many events, partition 1 without rows."""
    log = local_log(root, writer_id)
    log.begin(CARS, 0, ID)
    _write_on(root, 0, ends, writer_id)
    log.publish(OTHER, log.begin(OTHER, 0, ID), 5, [])


def _append_event(root: Path, time_ms: int, comment: str) -> None:
    event = Event(time_ms=time_ms, kind="acknowledged", by="Ann", data={"comment": comment})
    append_event(LocalStore(root), event)


Attack = Callable[[Path], None]


def _in_footer(change: Callable[[Tree], None]) -> Attack:
    """Change what the second segment's file says of itself; its rows and footer keys stay."""

    def attack(root: Path) -> None:
        path = root / SECOND
        path.write_bytes(with_footer(path.read_bytes(), change))

    return attack


def _in_pages(old: bytes, new: bytes) -> Attack:
    def attack(root: Path) -> None:
        path = root / SECOND
        path.write_bytes(with_data(path.read_bytes(), lambda data: data.replace(old, new, 1)))

    return attack


def _rewritten(path: str, records: Callable[[int], list[ScoredRecord]], *, honest: bool) -> Attack:
    """Put other rows into a segment, with a footer of them if ``honest``, else with the old one."""

    def attack(root: Path) -> None:
        rows = file_rows(records(footer_of((root / path).read_bytes()).base_offset))
        footer = footer_of((root / path).read_bytes())
        if honest:
            scores = rows.num_rows - rows.column("class_id").null_count
            footer = dataclasses.replace(
                footer, rows=rows.num_rows, scored_rows=scores, rows_sha256=rows_sha256(rows)
            )
        (root / path).write_bytes(encode_segment(footer, rows))

    return attack


def file_rows(records: list[ScoredRecord]) -> pa.Table:
    """Rows as a file has them."""
    return file_table(records, MODEL, CALIBRATION)


def _relink(root: Path) -> None:
    """Make all segments of the chain name what stands before them now."""
    store = LocalStore(root)
    start = chain_start(store, CARS)
    assert start is not None
    previous = start.previous_sha256
    for path in segments(store, CARS):
        content = (root / path).read_bytes()
        footer = dataclasses.replace(footer_of(content), previous_sha256=previous)
        rows = pq.read_table(pa.BufferReader(content)).replace_schema_metadata(None)
        (root / path).write_bytes(encode_segment(footer, rows))
        previous = segment_sha256(footer)


def _statistic(name: str, **changes: object) -> Attack:
    """Overwrite statistics of a column: min_value, max_value, null_count, distinct_count."""
    fields = {"null_count": 3, "distinct_count": 4, "max_value": 5, "min_value": 6}

    def change(footer: Tree) -> None:
        found = statistics(footer, name)
        for field, value in changes.items():
            number = fields[field]
            found[number] = (BINARY if isinstance(value, bytes) else I64, value)
            if number > 4:
                found.pop(number - 4 if number == 5 else 2, None)
        statistics_in_order = dict(sorted(found.items()))
        found.clear()
        found.update(statistics_in_order)

    return _in_footer(change)


def _set(where: Callable[[Tree], Tree], number: int, wire: int, value: object) -> Attack:
    def change(footer: Tree) -> None:
        tree = where(footer)
        tree[number] = (wire, value)
        ordered = dict(sorted(tree.items()))
        tree.clear()
        tree.update(ordered)

    return _in_footer(change)


def _add_key(key: bytes, value: bytes) -> Attack:
    return _in_footer(lambda footer: footer[5][1][1].append(pair(key, value)))


def _exchange_rows(base: int) -> list[ScoredRecord]:
    rows = rows_from(base)
    return [rows[1], rows[0], *rows[2:]]


def _gap_for_a_segment(root: Path) -> None:
    footer = footer_of((root / SECOND).read_bytes())
    rows = file_rows([])
    gap = dataclasses.replace(
        footer,
        rows=0,
        scored_rows=0,
        min_event_time_ms=None,
        max_event_time_ms=None,
        rows_sha256=rows_sha256(rows),
        gap="retention deleted them before they were read",
    )
    (root / SECOND).write_bytes(encode_segment(gap, rows))
    _relink(root)


def _later_genesis(root: Path) -> None:
    marker = root / genesis_path(CARS)
    marker.write_bytes(marker.read_bytes().replace(b'"offset": 0', b'"offset": 10'))
    (root / FIRST).unlink()
    _relink(root)


def _rewrite_all(root: Path) -> None:
    for base in (0, 10, 20):
        path = segment_path(CARS, base)
        _rewritten(path, lambda base: rows_from(base, 0.4), honest=True)(root)
    _relink(root)


def _invent_partition(made_ms: int) -> Attack:
    def attack(root: Path) -> None:
        log = local_log(root, clock=ManualClock(made_ms))
        where = TopicPartition("cars", 7)
        log.publish(where, log.begin(where, 0, ID), 5, [scored(origin(2, partition=where))])

    return attack


def _put_back(root: Path) -> None:
    """As it was when the first checkpoint was signed."""
    for path in (SECOND, LAST, event_path(1), event_path(2)):
        (root / path).unlink()
    _notes(root)[-1].unlink()


def _replace_log(root: Path) -> None:
    shutil.rmtree(root)
    write_log(root, writer_id="another")
    _sign(root, SIGNED_MS)


def _notes(root: Path) -> list[Path]:
    return sorted((root / CHECKPOINTS).iterdir())


def _sign(root: Path, time_ms: int) -> bytes:
    store = LocalStore(root)
    before = last_signed(store, SIGNER.public)
    return write_checkpoint(store, take_checkpoint(store, time_ms, before), SIGNER, before)[1]


def _append_backdated(root: Path) -> None:
    log = local_log(root)
    end = log.end(CARS)
    assert end is not None
    log.publish(CARS, end, end.offset + 10, rows_from(end.offset))


def _rewrite_with_marker(root: Path) -> None:
    shutil.rmtree(root / partition_folder(CARS))
    log = local_log(root, "another")
    position = log.begin(CARS, 0, ID)
    for base in (0, 10, 20):
        position = log.publish(CARS, position, base + 10, rows_from(base, 0.4)).position


def _without_checkpoints(attack: Attack) -> Attack:
    def both(root: Path) -> None:
        attack(root)
        shutil.rmtree(root / CHECKPOINTS)

    return both


def _change_checkpoint(root: Path) -> None:
    path = _notes(root)[-1]
    path.write_bytes(path.read_bytes().replace(b"chain cars 0 0 30 ", b"chain cars 0 0 20 "))


def _foreign_partition(root: Path) -> None:
    log = local_log(root)
    where = TopicPartition("cars", 7)
    log.begin(where, 0, "id-of-another")


def _in_compacted(root: Path) -> None:
    store = LocalStore(root)
    (root / FIRST).write_bytes(merged_segments(store, [FIRST, SECOND]))
    (root / SECOND).unlink()
    content = (root / FIRST).read_bytes()
    footer = footer_of(content)
    first = dataclasses.replace(footer.merged[0], writer_id="nobody")
    second = dataclasses.replace(footer.merged[1], previous_sha256=segment_sha256(first))
    rows = pq.read_table(pa.BufferReader(content)).replace_schema_metadata(None)
    forged = dataclasses.replace(footer, merged=(first, second))
    (root / FIRST).write_bytes(encode_segment(forged, rows))


def _swap_pages(footer: Tree) -> None:
    """Let two columns of one type and length each name the other's pages."""
    one, other = (column(footer, name) for name in ("energy", "nap"))
    for number in (6, 7, 9):
        one[number], other[number] = other[number], one[number]


def _swap_names(footer: Tree) -> None:
    one, other = element(footer, "energy"), element(footer, "nap")
    one[4], other[4] = other[4], one[4]


def _only_dictionary(footer: Tree) -> None:
    """Say that all pages of a column are dictionary-encoded, which none is."""
    column(footer, "fused")[13][1][1][0][2] = (I32, 8)


def _hide_group(footer: Tree) -> None:
    row_group(footer)[3] = (I64, 4)


def _double(value: float) -> bytes:
    return struct.pack("<d", value)


def _write(path: str, content: bytes = b"PAR1") -> Attack:
    def attack(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)

    return attack


def _copy(old: str, new: str) -> Attack:
    def attack(root: Path) -> None:
        shutil.copy(root / old, root / new)

    return attack


def _behind_the_pages(root: Path) -> None:
    content = (root / SECOND).read_bytes()
    (size,) = struct.unpack("<I", content[-8:-4])
    start = len(content) - 8 - size
    (root / SECOND).write_bytes(content[:start] + b"hidden" + content[start:])


def _in_event(old: bytes, new: bytes, number: int = 2) -> Attack:
    def attack(root: Path) -> None:
        path = root / event_path(number)
        path.write_bytes(path.read_bytes().replace(old, new, 1))

    return attack


def _relink_events(root: Path) -> None:
    """Write all events anew, as if the first had been another one."""
    events = [dataclasses.replace(event, by="Eve") for event in read_events(LocalStore(root))]
    shutil.rmtree(root / FOLDER)
    for event in events:
        append_event(LocalStore(root), event)


def _exchange_events(root: Path) -> None:
    one, other = (root / event_path(number) for number in (0, 1))
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])


PRUNED_MS = SIGNED_MS + 3 * 86_400_000
SEAL = seal_path(CARS, 0)


def _prune(signer: Signer | None = SIGNER) -> Attack:
    """Remove the first two segments of three as `nap-stream prune` does."""

    def attack(root: Path) -> None:
        asked = Request(PRUNED_MS, "Ann", "retention", signer=signer)
        prune(LocalStore(root), asked, clock=ManualClock(PRUNED_MS))

    return attack


def _after_prune(attack: Attack) -> Attack:
    """Attack a log whose oldest rows were pruned, and their seal signed."""

    def both(root: Path) -> None:
        _prune()(root)
        attack(root)

    return both


def _change_seal(root: Path) -> None:
    (root / SEAL).write_bytes((root / SEAL).read_bytes().replace(b'"Ann"', b'"Bob"'))


def _change_seal_and_events(root: Path) -> None:
    """Another name and no signature, and events that say so."""
    _change_seal(root)
    text = (root / SEAL).read_bytes().partition(b"\n\n")[0] + b"\n"
    old = read_events(LocalStore(root))
    events = [dataclasses.replace(event, by=event.by.replace("Ann", "Bob")) for event in old]
    (root / SEAL).write_bytes(text)
    shutil.rmtree(root / FOLDER)
    for event in events:
        seals = event.data.get("seals", [])
        named = [{**each, "seal_sha256": sha256_hex(text)} for each in seals]
        data = {**event.data, "seals": named} if named else event.data
        append_event(LocalStore(root), dataclasses.replace(event, data=data))


def _seal_another_past(root: Path) -> None:
    """Seal other rows than there were, and write anew what stands behind them."""
    for path in (FIRST, SECOND):
        _rewritten(path, lambda base: rows_from(base, 0.4), honest=True)(root)
    _relink(root)
    _prune(None)(root)


def _start_behind_seal(root: Path) -> None:
    marker = root / genesis_path(CARS)
    marker.write_bytes(marker.read_bytes().replace(b'"offset": 0', b'"offset": 20'))
    (root / SEAL).unlink()
    _relink(root)


def _put_back_beside_seal(root: Path) -> None:
    content = (root / FIRST).read_bytes()
    _prune()(root)
    (root / FIRST).write_bytes(content)


def _seal_more(root: Path) -> None:
    """Seal the whole chain, and nothing stands behind it."""
    store = LocalStore(root)
    parts = [footer_of((root / path).read_bytes()) for path in (FIRST, SECOND, LAST)]
    counts = {"corrupt": 3, "ok": 27}
    words = {"by": "Ann", "reason": "retention", "program_version": ""}
    span = span_of(parts, counts, 0, before_ms=PRUNED_MS, pruned_ms=PRUNED_MS, **words)
    content = encode_seal(span, parts, None)
    place = {"topic": "cars", "partition": 0, "start_offset": span.start_offset}
    named = {"file": SEAL, "seal_sha256": sha256_hex(content), **place}
    event = Event(time_ms=PRUNED_MS, kind="pruning", by="Ann", data={"seals": [named]})
    append_event(store, event)
    store.create(SEAL, content)
    store.remove([FIRST, SECOND, LAST])


def _flip(root: Path) -> None:
    content = bytearray((root / LAST).read_bytes())
    found = pq.ParquetFile(root / LAST).metadata.row_group(0).column(15)
    content[found.data_page_offset + found.total_compressed_size - 1] ^= 1
    (root / LAST).write_bytes(content)


def _lying_index(root: Path) -> None:
    made = made_of((root / FIRST).read_bytes(), FIRST)
    without = re.sub(rb'("sha256": \[\d+, )(\d+)', lambda m: m[1] + b"0".rjust(len(m[2])), made)
    _write(index_path(FIRST), without)(root)


_SPARK = b"org.apache.spark.sql.parquet.row.metadata"
_ARROW = b"ARROW:schema"
ATTACKS: dict[str, Attack] = {
    "a value is changed": _rewritten(SECOND, lambda base: rows_from(base, 0.4), honest=False),
    "a value is changed, and its segment's digest": _rewritten(
        SECOND, lambda base: rows_from(base, 0.4), honest=True
    ),
    "the same in the last segment": _rewritten(
        LAST, lambda base: rows_from(base, 0.4), honest=True
    ),
    "a row is taken out": _rewritten(SECOND, lambda base: rows_from(base)[1:], honest=False),
    "the same, with count and digest": _rewritten(
        SECOND, lambda base: rows_from(base)[1:], honest=True
    ),
    "two rows change places": _rewritten(SECOND, _exchange_rows, honest=False),
    "a row stands twice": _rewritten(
        SECOND, lambda base: [*rows_from(base)[:2], *rows_from(base)[1:9]], honest=False
    ),
    "a bit is flipped": _flip,
    "a segment is removed": lambda root: (root / SECOND).unlink(),
    "the same, with a declared gap for it": _gap_for_a_segment,
    "the first segment is removed, and the start moved": _later_genesis,
    "the last segment is removed": lambda root: (root / LAST).unlink(),
    "a whole chain is removed": lambda root: shutil.rmtree(root / partition_folder(OTHER)),
    "a whole chain is written anew": _rewrite_all,
    "the same, with its marker": _rewrite_with_marker,
    "the same, and the checkpoints in the log are removed": _without_checkpoints(
        _rewrite_with_marker
    ),
    PUT_BACK: _put_back,
    REPLACED: _replace_log,
    "rows are put in behind the end, dated before": _append_backdated,
    "a checkpoint in the log is changed": _change_checkpoint,
    "a checkpoint in the log is removed, and there is a later one": lambda root: _notes(root)[
        0
    ].unlink(),
    "the log's id is removed": lambda root: (root / LOG_FILE).unlink(),
    "the genesis marker is removed": lambda root: (root / genesis_path(CARS)).unlink(),
    "a footer within a compacted file is changed": _in_compacted,
    "an index lies of its file": _lying_index,
    "a segment is copied to another partition": _copy(SECOND, segment_path(OTHER, 10)),
    "a segment is copied under another name": _copy(SECOND, segment_path(CARS, 15)),
    "a partition is invented, dated before": _invent_partition(NOON_MS),
    INVENTED: _invent_partition(SIGNED_MS + 1),
    "a partition of another topic is put in": _foreign_partition,
    "a partition's folder is empty": lambda root: (root / "topic=cars/partition=7").mkdir(),
    "`x.json` beside the checkpoints": _write(f"{CHECKPOINTS}/x.json", b"{}"),
    "`_checkpoints/x.note/x.parquet`": _write(f"{CHECKPOINTS}/x.note/x.parquet"),
    "`_x.parquet` beside the segments": _write(f"{partition_folder(CARS)}/_x.parquet"),
    "`.old/x.PARQUET` at the root": _write(".old/x.PARQUET"),
    "a minimum is raised": _statistic("ood_p_value", min_value=_double(0.3)),
    "a maximum of text is lowered": _statistic("class_name", max_value=b"cat"),
    "a count of nulls is raised": _statistic("ood_p_value", null_count=10),
    "a count of distinct values is given": _statistic("class_id", distinct_count=1),
    "statistics of a page are changed": _in_pages(_double(0.5), _double(0.4)),
    "a histogram of levels is changed": _in_footer(
        lambda footer: column(footer, "ood_p_value")[16][1][3][1][1].reverse()
    ),
    "a bloom filter is named": _set(lambda f: column(f, "key"), 14, I64, 4),
    "a column index is named": _set(lambda f: chunk(f, "key"), 6, I64, 4),
    "an offset index is named": _set(lambda f: chunk(f, "key"), 4, I64, 4),
    "columns are said to be sorted": _set(
        row_group, 4, LIST, (STRUCT, [{1: (I32, 15), 2: (FALSE, None), 3: (FALSE, None)}])
    ),
    "pages are said to be all of a dictionary": _in_footer(_only_dictionary),
    "the row group lies elsewhere (Spark)": _set(row_group, 5, I64, 10**9),
    "a column lies in another file": _set(lambda f: chunk(f, "nap"), 1, BINARY, b"x.parquet"),
    "a row group has fewer rows": _in_footer(_hide_group),
    "a column has fewer values": _set(lambda f: column(f, "nap"), 5, I64, 4),
    "the file has fewer rows": _set(lambda f: f, 3, I64, 4),
    "two columns name each other's pages": _in_footer(_swap_pages),
    "two columns exchange their names": _in_footer(_swap_names),
    "a time is said to be in another unit": _in_footer(
        lambda f: element(f, "event_time").update({6: (I32, 10)})
    ),
    "the order of the columns' values is left out": _in_footer(lambda f: f.pop(7) and None),
    "a schema for Spark is put in": _add_key(_SPARK, b'{"type":"struct","fields":[]}'),
    "a schema for Arrow is put in": _add_key(_ARROW, b"AAAA"),
    "a key of the footer stands twice": _add_key(b"nap_stream.rows", b"4"),
    "an unknown field is put in": _set(lambda f: f, 99, I64, 1),
    "another program is named": _set(lambda f: f, 6, BINARY, b"parquet-mr version 1.7.0"),
    "bytes are hidden behind the pages": _behind_the_pages,
    "an event is changed": _in_event(b"Ann", b"Eve", 1),
    "the last event is changed": _in_event(b"Ann", b"Eve"),
    "all events are written anew": _relink_events,
    "two events change places": _exchange_events,
    "an event is removed": lambda root: (root / event_path(1)).unlink(),
    "the last event is removed": lambda root: (root / event_path(2)).unlink(),
    "all events are removed": lambda root: shutil.rmtree(root / FOLDER),
    "an event is put in at the end, dated before": lambda root: _append_event(
        root, NOON_MS, "late"
    ),
    "a key stands twice in an event": _in_event(b'"by": ', b'"by": "Eve", "by": '),
    "an event is put in under a later number": _copy(event_path(2), event_path(7)),
    "`x.json` beside the events": _write(f"{FOLDER}/x.json", b"{}"),
    "the first segment is removed": lambda root: (root / FIRST).unlink(),
    "rows are pruned, without a key": _prune(None),
    WITH_KEY: _prune(),
    "rows are pruned, and the seal is removed": _after_prune(lambda root: (root / SEAL).unlink()),
    "the same, and the start moved": _after_prune(_start_behind_seal),
    "a seal is changed": _after_prune(_change_seal),
    "the same, unsigned, and all events are written anew": _after_prune(_change_seal_and_events),
    "other rows are sealed than there were": _seal_another_past,
    "a whole chain is sealed": _seal_more,
    "a segment is put back beside its seal": _put_back_beside_seal,
}


@dataclass(frozen=True, slots=True)
class Findings:
    """What found an attack."""

    footers: bool
    deep: bool
    kept: bool
    checkpoints: bool
    copy: bool
    broker: bool

    @property
    def proved(self) -> bool:
        """Whether `verify --deep --checkpoints` finds it, without anything else."""
        return self.deep or self.checkpoints

    def row(self, name: str) -> str:
        """Its row in the table."""
        cells = [
            _MARK if is_found else ""
            for is_found in (
                *(self.footers, self.deep, self.kept, self.checkpoints, self.copy, self.broker),
                self.proved,
            )
        ]
        return f"| {' | '.join([name, *cells])} |\n"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A log to attack, in ``folder``, and the report that was kept of its first segments."""

    folder: Path
    kept: tuple[Head, ...]


def prepare(folder: Path, kept_segments: int = 3, signed_segments: int = 3) -> Prepared:
    """Write a log, keep a report of it and sign it after so many segments.

    The checkpoint stands in the log, behind an earlier one, and a copy of it elsewhere.
    """
    before, log, copy = (folder / name for name in ("before", "log", "copy"))
    write_log(before, kept_segments)
    kept = verify(LocalStore(before), clock=ManualClock()).ends
    write_log(log, 1)
    _sign(log, SIGNED_MS - 1)
    _write_on(log, 1, signed_segments)
    copy.write_bytes(_sign(log, SIGNED_MS))
    _write_on(log, signed_segments, 3, made_ms=SIGNED_MS)
    return Prepared(folder, kept)


def tried(attack: Attack, root: Path, prepared: Prepared) -> Findings:
    """Attack a copy of the log, below the root, and look."""
    log, copy = root / "log", prepared.folder / "copy"
    shutil.copytree(prepared.folder / "log", log)
    attack(log)
    store = LocalStore(log)
    report = verify(store, clock=ManualClock())
    return Findings(
        not report.clean,
        not verify(store, deep=True, clock=ManualClock()).clean,
        any(compare_with_kept(store, prepared.kept)),
        _is_found_by_checkpoints(store, report),
        _is_found_by_checkpoints(store, report, copy),
        _is_found_by_broker(report),
    )


def _is_found_by_checkpoints(store: LocalStore, report: VerifyReport, *copies: Path) -> bool:
    """A defect, or the error that no checkpoint counts."""
    try:
        found = read_checkpoints(store, [SIGNER.public], copies)
        defects = compare_with_checkpoints(store, report.heads, found).defects
        return bool(defects) or any(unsigned_seals(store, report.pruned, [SIGNER.public]))
    except ConfigError:
        return True


def _is_found_by_broker(report: VerifyReport) -> bool:
    """Beside a topic of which nothing was deleted, and a group that has committed all."""
    offsets = [
        PartitionOffsets(partition, 0, end, end, ID) for partition, end in ((CARS, 30), (OTHER, 5))
    ]
    return bool(compare_with_broker(report, offsets, topic="cars", group_id="g").defects)


def all_attacks() -> Iterator[tuple[str, Attack, int, int]]:
    """Name, attack, and how many segments the kept report and the checkpoint have seen."""
    for name, attack in ATTACKS.items():
        yield name, attack, 3, 3
    yield "what came after the kept report is removed", lambda root: (root / LAST).unlink(), 2, 3
    yield "the same of events", lambda root: (root / event_path(2)).unlink(), 2, 3
    yield NEWER, lambda root: (root / LAST).unlink(), 2, 2


def table() -> Iterator[str]:
    """The lines of the table."""
    yield BEGIN + HEADER
    for name, attack, kept_segments, signed_segments in all_attacks():
        with tempfile.TemporaryDirectory() as folder:
            prepared = prepare(Path(folder) / "prepared", kept_segments, signed_segments)
            yield tried(attack, Path(folder), prepared).row(name)
    yield END


if __name__ == "__main__":
    sys.stdout.writelines(table())
