"""Summaries of segments for the drift monitor: from rows in memory, or from the file.

Both give the same summary, so that a monitor that starts anew finds what it would have known.

Event times come from producers, whose clocks may be wrong. An event time is implausible that lies
more than `MAX_CLOCK_SKEW_MS` ahead of the time when its message was read, or more than `MAX_AGE_MS`
before it. The time of reading counts in its place, so that no clock stops the monitor for good. A
clock that lags by less holds its panes back by as much. Both times stand in the row, so that the
log alone tells.

`LogSummaries` has what no worker sent, or sent to a coordinator that is gone.
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog
from numpy.typing import NDArray

from nap_stream.core.hidden_keys import CLEAR, HiddenKeys
from nap_stream.core.panes import NO_KEY, count_images, count_panes, key_text
from nap_stream.errors import ChainBrokenError, NapStreamError
from nap_stream.records import (
    STATUSES,
    Example,
    FlaggedClass,
    OffsetRange,
    PublishedSegment,
    SegmentSummary,
    Status,
    TopicPartition,
    UnscoredImages,
)
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.format import SCHEMA, segment_path, storable_text
from nap_stream.scored_log.read import partitions_read, parts_backwards, walk
from nap_stream.scored_log.segment import divide
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.settings.drift import KeySettings
from nap_stream.settings.log import hidden_keys
from nap_stream.settings.schema import Settings
from nap_stream.text import without_numbers

MAX_CLOCK_SKEW_MS = 60_000
"""How far an event time may be ahead of the time when its message was read."""
MAX_AGE_MS = 7 * 86_400_000
"""How far it may be behind that: as long as Kafka keeps messages, unless told otherwise."""
_SCORES = ("class_name", "ood_p_value", "is_ood")
_STATUS_NAMES = pa.array([status.value for status in STATUSES], pa.string())
_COLUMNS = ("offset", "index", "event_time", "ingest_time", "status", "error", *_SCORES)
_MESSAGE_KEY = "key"
MAX_REASONS = 20
"""So many different reasons why images of a pane have no scores are told of a segment."""


@dataclass(frozen=True, slots=True, eq=False)
class SummaryRows:
    """N rows, in order of (offset, index).

    ``offset``, ``index``, ``event_time_ms`` and ``ingest_time_ms`` are int64 (N,), ``status`` too,
    an index into `STATUSES`; ``is_scored`` bool (N,). ``error`` has the texts of the rows without
    scores alone. ``key`` is int64 (N,), an index into ``keys``, the different keys as they came;
    both None where keys are not told apart. Of the M scored rows alone: ``p_value`` float64 (M,),
    ``is_ood`` bool (M,), and ``flagged_class``, the predicted classes of the flagged ones.
    """

    rows_by_status: Mapping[Status, int]
    status: NDArray[np.int64]
    error: Sequence[str | None]
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


def rows_schema(key_by: str | None) -> pa.Schema:
    """The columns that `rows_of_table` needs."""
    key_columns = [] if key_by is None else [_MESSAGE_KEY if key_by == _MESSAGE_KEY else "headers"]
    return pa.schema([SCHEMA.field(name) for name in (*_COLUMNS, *key_columns)])


def rows_of_table(table: pa.Table, key_by: str | None, hidden: HiddenKeys = CLEAR) -> SummaryRows:
    """Take what is needed from rows of a file.

    The columns are those of `rows_schema`. Keys that were stored in clear are ``hidden`` now.

    Raises:
        ValueError: A status is unknown, or a scored row lacks scores.
    """
    table = table.combine_chunks()
    rows_by_status = _rows_by_status(table.column("status"))
    scored = table.select(_SCORES).filter(pc.equal(table.column("status"), Status.OK.value))
    if any(column.null_count for column in scored.columns):
        raise ValueError("rows with status ok lack scores")
    key, keys = (None, None) if key_by is None else _table_keys(table, key_by, hidden)
    is_scored = pc.equal(table.column("status"), Status.OK.value)
    return SummaryRows(
        rows_by_status=rows_by_status,
        status=pc.index_in(table.column("status"), _STATUS_NAMES).to_numpy().astype(np.int64),
        error=table.column("error").filter(pc.invert(is_scored)).to_pylist(),
        offset=table.column("offset").to_numpy(),
        index=table.column("index").to_numpy(),
        event_time_ms=table.column("event_time").cast(pa.int64()).to_numpy(),
        ingest_time_ms=table.column("ingest_time").cast(pa.int64()).to_numpy(),
        is_scored=is_scored.to_numpy(),
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


def _header_name(key_by: str) -> str:
    return storable_text(key_by.partition(":")[2])


def _table_keys(
    table: pa.Table, key_by: str, hidden: HiddenKeys
) -> tuple[NDArray[np.int64], list[bytes | None]]:
    keys = (
        table.column(_MESSAGE_KEY)
        if key_by == _MESSAGE_KEY
        else _last_values(table.column("headers"), _header_name(key_by))
    )
    encoded = pc.dictionary_encode(keys, null_encoding="encode")
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    names = encoded.dictionary.to_pylist()
    if hidden.hides:
        names = [hidden.of_stored(key_by, name) for name in names]
    return encoded.indices.to_numpy().astype(np.int64), names


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


def credible_times(
    event_time_ms: NDArray[np.int64], ingest_time_ms: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The event times, int64 (N,), or the ingest times where those cannot be true."""
    age = ingest_time_ms - event_time_ms
    is_credible = (age >= -MAX_CLOCK_SKEW_MS) & (age <= MAX_AGE_MS)
    return np.where(is_credible, event_time_ms, ingest_time_ms)


@dataclass(frozen=True, slots=True)
class SummaryShape:
    """What a summary holds.

    ``pane_ms`` is the width of the event-time panes in milliseconds. ``example_count`` is how many
    flagged records to name at most: those with the smallest p-values, the earlier one of equals.
    ``keys`` says what is counted by key; null for nothing. ``hidden`` says how keys are stored:
    what an earlier run stored in clear is counted, and shown, as it would be stored now.
    """

    pane_ms: int
    example_count: int
    keys: KeySettings | None = None
    hidden: HiddenKeys = CLEAR

    @property
    def key_by(self) -> str | None:
        """See `KeySettings`; None where keys are not told apart."""
        return None if self.keys is None else self.keys.by


def summary_shape(settings: Settings) -> SummaryShape:
    """What the drift monitor of these settings needs.

    Raises:
        ConfigError: The secret of `log.keys` cannot be read.
    """
    drift, hidden = settings.drift, hidden_keys(settings.log.keys)
    return SummaryShape(drift.pane_ms, settings.alerts.examples, drift.keys, hidden)


def summarise(
    published: PublishedSegment,
    rows: pa.Table,
    shape: SummaryShape,
    gap: str | None = None,
) -> SegmentSummary:
    """Summarise a segment from the rows that were published in it.

    ``published`` is what `ScoredLog.publish` returned for these rows and this ``gap``.
    """
    end_offset = published.position.offset
    span = _Span(published.partition, published.base_offset, end_offset, published.path, gap)
    return _summary(span, rows_of_table(rows, shape.key_by, shape.hidden), shape)


def summarise_chain(
    store: SegmentStore, partition: TopicPartition, start: int, end: int, shape: SummaryShape
) -> Iterator[SegmentSummary]:
    """Summarise segments from their files; the same as `summarise` of their records.

    Of a compacted file each segment that it merged is summarised by itself. ``path`` is the file
    where a segment stands now.

    ``start`` is the first segment's base offset, or 0; segments that begin at ``end`` or after are
    left out.

    Raises:
        ChainBrokenError: A file cannot be read, its footer is not valid, or its rows have a
            status that is unknown or lack scores.
        ScoredLogError: The store cannot be read.
    """
    schema = rows_schema(shape.key_by)
    for file, wanted in walk(store, partition, start):
        if file.footer.base_offset >= end:
            return
        parts = [part for part in file.parts() if wanted <= part.base_offset < end]
        first = parts[0].base_offset if parts else end
        for part, rows in divide(parts, file.batches(schema.names, start=first), schema):
            span = _Span(partition, part.base_offset, part.end_offset, file.path, part.gap)
            yield _summary(span, _rows_of_part(span, rows, shape), shape)


@dataclass(frozen=True, slots=True)
class _Span:
    partition: TopicPartition
    base_offset: int
    end_offset: int
    path: str
    gap: str | None


def _rows_of_part(span: _Span, rows: pa.Table, shape: SummaryShape) -> SummaryRows:
    try:
        return rows_of_table(rows, shape.key_by, shape.hidden)
    except ValueError as error:
        raise ChainBrokenError(
            f"segment [{span.base_offset}, {span.end_offset}) cannot be summarised: {error}",
            span.path,
            "Use the version of nap-stream that wrote it, or a newer one; `nap-stream verify "
            "--deep` says whether it was changed since",
        ) from error


def _summary(span: _Span, rows: SummaryRows, shape: SummaryShape) -> SegmentSummary:
    times = credible_times(rows.event_time_ms, rows.ingest_time_ms)
    # Over all rows, as the partition's watermark is: a row without scores moves it too, and
    # where a segment ends must not matter.
    newest = np.maximum.accumulate(times)
    placed = newest[rows.is_scored]
    keys, key = _scored_keys(rows)
    return SegmentSummary(
        partition=span.partition,
        base_offset=span.base_offset,
        end_offset=span.end_offset,
        rows_by_status=dict(rows.rows_by_status),
        panes=count_panes(
            placed,
            rows.p_value,
            rows.is_ood,
            pane_ms=shape.pane_ms,
            keys=keys,
            key=key,
            one_per_pane=shape.keys is not None and shape.keys.one_per_pane,
        ),
        images=count_images(newest, rows.status, pane_ms=shape.pane_ms, kinds=len(STATUSES)),
        unscored=_unscored(span, rows, times, newest - newest % shape.pane_ms),
        max_event_time_ms=int(newest[-1]) if len(newest) else None,
        path=span.path,
        flagged_classes=_flagged_classes(rows, placed - placed % shape.pane_ms),
        examples=_examples(span, rows, times, (keys, key), shape.example_count),
        implausible_timestamps=int((times != rows.event_time_ms).sum()),
        gap=span.gap,
    )


def _scored_keys(rows: SummaryRows) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """The keys of the scored rows as text, ascending, and the index of each row's."""
    if rows.keys is None or rows.key is None:
        return (NO_KEY,), None
    numbers, key = np.unique(rows.key[rows.is_scored], return_inverse=True)
    texts = [key_text(rows.keys[number]) for number in numbers.tolist()]
    keys = tuple(sorted(set(texts)))
    slots = {text: slot for slot, text in enumerate(keys)}
    slot = np.array([slots[text] for text in texts], dtype=np.int64)
    return keys, slot[key]


def _unscored(
    span: _Span,
    rows: SummaryRows,
    times_ms: NDArray[np.int64],
    starts_ms: NDArray[np.int64],
) -> tuple[UnscoredImages, ...]:
    """The rows without scores by pane, status, kind of error and key, the first one of each."""
    where = np.flatnonzero(~rows.is_scored)
    counts: Counter[tuple[int, int, str, int]] = Counter()
    firsts: dict[tuple[int, int, str, int], tuple[int, str]] = {}
    keys = where * 0 if rows.key is None else rows.key[where]
    columns = (starts_ms[where].tolist(), rows.status[where].tolist(), keys.tolist())
    for row, error, start_ms, status, key in zip(where.tolist(), rows.error, *columns, strict=True):
        text = error or ""
        name = (start_ms, status, without_numbers(text), key)
        counts[name] += 1
        firsts.setdefault(name, (row, text))
    # Stable, so that of equally common ones the earlier comes first.
    ordered = sorted(counts.items(), key=lambda item: (item[0][0], -item[1]))
    found, told = [], Counter[int]()
    for name, images in ordered:
        start_ms, status, _, key = name
        told[start_ms] += 1
        if told[start_ms] > MAX_REASONS:
            continue
        row, error = firsts[name]
        found.append(
            UnscoredImages(
                start_ms,
                STATUSES[status],
                error,
                NO_KEY if rows.keys is None else key_text(rows.keys[key]),
                images,
                span.partition,
                int(rows.offset[row]),
                int(rows.index[row]),
                int(times_ms[row]),
                span.path,
            )
        )
    return tuple(found)


def _flagged_classes(rows: SummaryRows, starts_ms: NDArray[np.int64]) -> tuple[FlaggedClass, ...]:
    starts = starts_ms[rows.is_ood].tolist()
    counts = Counter(zip(starts, rows.flagged_class, strict=True))
    return tuple(FlaggedClass(*pane, count) for pane, count in sorted(counts.items()))


def _examples(
    span: _Span,
    rows: SummaryRows,
    times_ms: NDArray[np.int64],
    keys: tuple[tuple[str, ...], NDArray[np.int64] | None],
    count: int,
) -> tuple[Example, ...]:
    names, key = keys
    # Stable, so that the earlier one of equals comes first.
    order = np.argsort(rows.p_value[rows.is_ood], kind="stable")[:count]
    scored = np.flatnonzero(rows.is_ood)[order]
    row = np.flatnonzero(rows.is_scored)[scored]
    slots = [0] * len(order) if key is None else key[scored].tolist()
    return tuple(
        Example(span.partition, offset, index, time_ms, names[slot], class_name, p, span.path)
        for offset, index, time_ms, slot, class_name, p in zip(
            rows.offset[row].tolist(),
            rows.index[row].tolist(),
            times_ms[row].tolist(),
            slots,
            (rows.flagged_class[number] for number in order.tolist()),
            rows.p_value[scored].tolist(),
            strict=True,
        )
    )


LogEnds = Mapping[TopicPartition, int]
"""The end offset of each chain of a topic; partitions without a segment are left out."""
Chains = Mapping[TopicPartition, Iterator[SegmentSummary]]
"""Summaries of each partition, in order of offset."""

LAST_OFFSET = 2**63 - 1
TAIL_WINDOWS = 10
"""How many windows' records a tail holds, over all partitions; each has one at least."""
_BEFORE_ALL_MS = -(2**63)


def in_event_time(chains: Chains) -> Iterator[tuple[TopicPartition, SegmentSummary | None]]:
    """Read several chains side by side: always the one that is furthest behind in event time.

    So the panes that wait for the slowest partition stay few, however long the chains are. No chain
    is read further than needed. Yields a partition and its next summary, or None once where its
    chain has ended.
    """
    reached = [(_BEFORE_ALL_MS, partition) for partition in chains]
    heapq.heapify(reached)
    while reached:
        time_ms, partition = heapq.heappop(reached)
        summary = next(chains[partition], None)
        yield partition, summary
        if summary is not None:
            newest_ms = summary.max_event_time_ms
            time_ms = time_ms if newest_ms is None else max(time_ms, newest_ms)
            heapq.heappush(reached, (time_ms, partition))


class LogSummaries:
    """The log of a monitor's topics, as summaries of its segments.

    Tails hold only what the calibration of ``calibration_fingerprint`` has judged.
    """

    def __init__(
        self, store: SegmentStore, settings: Settings, calibration_fingerprint: str
    ) -> None:
        self._store, self._reads = store, settings.reads
        self._window, self._pane_ms = settings.drift.window_records, settings.drift.pane_ms
        self._shape = summary_shape(settings)
        self._fingerprint = calibration_fingerprint

    def partitions(self) -> tuple[TopicPartition, ...]:
        """Give the partitions that the log has.

        Raises:
            ScoredLogError: The log cannot be read, here as in the other methods but `find`.
        """
        return partitions_read(self._store, self._reads)

    def ends(self) -> LogEnds:
        """Say where the chains end now."""
        return {
            partition: newest.end_offset
            for partition in self.partitions()
            if (newest := next(parts_backwards(self._store, partition), None)) is not None
        }

    def read(self, partition: TopicPartition, start: int, end: int) -> Iterator[SegmentSummary]:
        """Summaries of the segments that begin within ``[start, end)``, in order."""
        return summarise_chain(self._store, partition, start, end, self._shape)

    def find(self, wanted: OffsetRange) -> Sequence[SegmentSummary] | None:
        """What `read` gives; None where the log cannot be read now, which is logged.

        Nothing where a segment can never be read, so that it is given up as missing.
        """
        try:
            return tuple(self.read(wanted.partition, wanted.start, wanted.end))
        except NapStreamError as error:
            structlog.get_logger().warning("log_not_read", range=str(wanted), cause=str(error))
            return () if isinstance(error, ChainBrokenError) else None

    def tail(self, partition: TopicPartition) -> Iterator[SegmentSummary]:
        """Summaries of the newest segments: a window's records at least, more where it is cheap.

        It begins after what another calibration has judged: those p-values mean something else.
        """
        share = TAIL_WINDOWS * self._window // max(1, len(self.partitions()))
        wanted = max(self._window, share)
        start, found, newest = None, 0, None
        for part in parts_backwards(self._store, partition):
            newest = newest or part
            if found >= wanted or part.calibration_fingerprint != self._fingerprint:
                break
            start, found = part.base_offset, found + part.scored_rows
        if start is not None:
            return self.read(partition, start, LAST_OFFSET)
        return iter(()) if newest is None else iter((self._uncounted(newest),))

    def _uncounted(self, footer: SegmentFooter) -> SegmentSummary:
        """Where the chain ends, and nothing of what its last segment holds."""
        no_times, no_p_values, no_flags = np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.bool_)
        return SegmentSummary(
            partition=footer.partition,
            base_offset=footer.base_offset,
            end_offset=footer.end_offset,
            rows_by_status={},
            panes=count_panes(no_times, no_p_values, no_flags, pane_ms=self._pane_ms),
            images=count_images(no_times, no_times, pane_ms=self._pane_ms, kinds=len(STATUSES)),
            max_event_time_ms=None,
            path=segment_path(footer.partition, footer.base_offset),
        )
