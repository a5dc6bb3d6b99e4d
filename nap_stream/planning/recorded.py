"""A recorded part of the scored log in panes, counted as the drift monitor would count it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nap_stream.clock import Progress
from nap_stream.core.hidden_keys import CLEAR, HiddenKeys
from nap_stream.core.panes import NO_KEY, PaneCounts, changes, count_panes, key_text
from nap_stream.drift.records import CalibrationFacts
from nap_stream.errors import ConfigError, LogRootError
from nap_stream.records import Status
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.read import partitions, stream_partitions
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.summary import (
    SummaryRows,
    credible_times,
    rows_of_table,
    rows_schema,
)
from nap_stream.settings.drift import DriftSettings
from nap_stream.settings.topics import TopicSelection


@dataclass(frozen=True, slots=True, eq=False)
class PaneSeries:
    """P panes in order of time, each with a record at least.

    ``start_ms``, ``records`` and ``flagged`` are int64 (P,); ``bins`` is int64 (P, BIN_COUNT).
    """

    start_ms: NDArray[np.int64]
    records: NDArray[np.int64]
    flagged: NDArray[np.int64]
    bins: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start_ms)


@dataclass(frozen=True, slots=True, eq=False)
class RecordedSeries:
    """Scored records of one calibration, in panes of ``pane_ms``.

    ``panes`` are those of the stream. ``by_key`` are the panes of K keys, one key after the other,
    ``key_start`` int64 (K + 1,) where each begins and the last one ends, and ``keys`` their names;
    none of them where keys are not told apart.
    """

    pane_ms: int
    panes: PaneSeries
    keys: tuple[str, ...]
    by_key: PaneSeries
    key_start: NDArray[np.int64]

    @property
    def records(self) -> int:
        """How many records were counted."""
        return int(self.panes.records.sum())

    @property
    def flagged(self) -> int:
        """How many of them are flagged."""
        return int(self.panes.flagged.sum())

    @property
    def first_ms(self) -> int:
        """The start of the first pane, in milliseconds since the epoch."""
        return int(self.panes.start_ms[0])

    @property
    def last_ms(self) -> int:
        """The end of the last pane, in milliseconds since the epoch."""
        return int(self.panes.start_ms[-1]) + self.pane_ms

    def key_counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Records and flagged ones of each key, both int64 (K,)."""
        if not self.keys:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        starts = self.key_start[:-1]
        return (
            np.add.reduceat(self.by_key.records, starts),
            np.add.reduceat(self.by_key.flagged, starts),
        )


def merged(parts: list[PaneCounts], pane_ms: int, *, one_per_pane: bool) -> RecordedSeries:
    """Bring partitions' counts together, as `nap_stream.core.panes.closed_pane` does.

    ``parts`` are those of each partition, in order of their numbers, and of one partition in order
    of offset; at least one holds an entry.
    A pane is ``pane_ms`` milliseconds wide. For ``one_per_pane`` see
    `nap_stream.core.panes.count_panes`.
    """
    names = sorted({p.keys[number] for p in parts for number in np.unique(p.key).tolist()})
    slots = {name: slot for slot, name in enumerate(names)}
    slot = np.concatenate(
        [np.array([slots.get(name, -1) for name in p.keys], np.int64)[p.key] for p in parts]
    )
    entries = PaneSeries(
        *(
            np.concatenate([getattr(part, field) for part in parts])
            for field in ("start_ms", "records", "flagged", "bins")
        )
    )
    # Stable: of a key in several partitions the first partition's records come first.
    order = np.lexsort((slot, entries.start_ms))
    keyless = slots.get(NO_KEY, -1)
    if one_per_pane:
        is_first = changes(entries.start_ms[order], slot[order])
        order = order[is_first | (slot[order] == keyless)]
    start = entries.start_ms[order]
    panes = _added_up(entries, order, changes(start, start))
    order = order[slot[order] != keyless]
    order = order[np.argsort(slot[order], kind="stable")]
    is_first = changes(entries.start_ms[order], slot[order])
    key_of_group = slot[order][is_first]
    keys = tuple(name for name in names if name != NO_KEY)
    key_slots = [slots[name] for name in keys]
    begins = np.searchsorted(key_of_group, key_slots)
    return RecordedSeries(
        pane_ms,
        panes,
        keys,
        _added_up(entries, order, is_first),
        np.append(begins, len(key_of_group)).astype(np.int64),
    )


def _added_up(
    entries: PaneSeries, order: NDArray[np.int64], is_first: NDArray[np.bool_]
) -> PaneSeries:
    """Sum each run of entries, taken in ``order``; a run begins where ``is_first``."""
    cuts = np.flatnonzero(is_first)
    if not len(cuts):
        none = np.zeros(0, dtype=np.int64)
        return PaneSeries(none, none, none, entries.bins[:0])
    return PaneSeries(
        entries.start_ms[order][cuts],
        np.add.reduceat(entries.records[order], cuts),
        np.add.reduceat(entries.flagged[order], cuts),
        np.add.reduceat(entries.bins[order], cuts, axis=0),
    )


LEAST_RECORDS = 1_000
LEAST_PANES = 50
MAX_RECORDS = 20_000_000
"""The most scored records of a stretch: those of a partition are held in memory."""
_FINGERPRINT = "calibration_fingerprint"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A stretch, its topic, and how many scored records of other calibrations it leaves out.

    The flags of ``contradicting`` records contradict their p-value and the calibration's alpha;
    ``first_contradicting`` says where one of them lies. They are counted as they are flagged.
    ``by_status`` counts all rows of the stretch, whatever judged them.
    """

    series: RecordedSeries
    topic: str
    other_calibrations: int
    contradicting: int = 0
    first_contradicting: str = ""
    by_status: Mapping[Status, int] = field(default_factory=dict)

    def failures(self, drift: DriftSettings) -> list[tuple[Status, int]]:
        """The images without scores by status, the most first; without those ignored."""
        ignored = () if drift.unscored is None else drift.unscored.ignored
        kept = (each for each in self.by_status.items() if each[0] not in {Status.OK, *ignored})
        return sorted(kept, key=lambda item: (-item[1], item[0]))

    def unscored_share(self, drift: DriftSettings) -> float:
        """Their share of the images; 0 without an image."""
        failed = sum(count for _, count in self.failures(drift))
        return failed / max(1, failed + self.by_status.get(Status.OK, 0))


@dataclass(frozen=True, slots=True)
class Selection:
    """The stretch that is meant: ``since_ms <= event time < until_ms`` of a topic.

    Times are in milliseconds since the epoch; a null one sets no bound. A null topic is the only
    one in the log; of a monitor, it is the name of all that it ``reads``. The stretch may hold at
    most ``max_records`` scored records. Keys that were stored in clear are ``hidden`` now.
    """

    topic: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    max_records: int = MAX_RECORDS
    hidden: HiddenKeys = CLEAR
    reads: TopicSelection | None = None


def read_stretch(
    store: SegmentStore,
    selection: Selection,
    drift: DriftSettings,
    facts: CalibrationFacts,
    advance: Progress,
    *,
    held_records: int = 262_144,
) -> Recorded:
    """Count the scored records of a stretch of the log.

    ``facts`` are of the calibration whose records count, ``drift`` says how wide panes are and what
    the keys. Records are counted ``held_records`` at a time. Memory is some 450 bytes for each pane
    and key that holds a record, and 70 for each that is held: with many keys and short panes that
    is 450 for each record.

    Raises:
        ConfigError: The topic is not clear, or the stretch holds too little or too much.
        LogRootError: There is no log at the root, or it holds nothing of the topic.
        ChainBrokenError: A segment cannot be read.
    """
    topic = selection.topic or only_topic(store)
    found = stream_partitions(store, topic, selection.reads)
    parts: list[PaneCounts] = []
    others, left = 0, selection.max_records
    contradicting, first = 0, ""
    by_status = Counter[Status]()
    for number, partition in enumerate(found):
        query = Query(
            topic=partition.topic,
            partitions=(partition.partition,),
            since_ms=selection.since_ms,
            until_ms=selection.until_ms,
            statuses=(Status.OK,),
        )
        rows = _read(store, query, _Rows(drift, held_records, selection.hidden), facts, left)
        left -= rows.total
        if left < 0:
            raise ConfigError(
                f"the stretch holds more than {selection.max_records:,} scored records",
                store.root,
                "Choose a shorter one with --since and --until",
            )
        parts += rows.parts
        others += rows.others
        if rows.contradicting and not contradicting:
            first = f"{partition} offset {rows.first_contradicting}"
        contradicting += rows.contradicting
        by_status.update(_statuses(store, query))
        advance(number + 1, len(found))
    _require_enough(parts, store, facts.fingerprint, others)
    series = merged(parts, drift.pane_ms, one_per_pane=drift.one_per_pane)
    return Recorded(series, topic, others, contradicting, first, by_status)


def only_topic(store: SegmentStore) -> str:
    """The topic of a log that holds one.

    Raises:
        LogRootError: It holds none.
        ConfigError: It holds several.
    """
    topics = sorted({partition.topic for partition in partitions(store)})
    if not topics:
        raise LogRootError("the log holds no topics", store.root, "Name the root of another one")
    if len(topics) > 1:
        what = f"the log holds the topics {', '.join(topics)}"
        raise ConfigError(what, store.root, "Name one with --topic or --config")
    return topics[0]


@dataclass(slots=True)
class _Rows:
    """A partition's records, counted piece by piece, and how many: of other calibrations, and all.

    The columns are of the records that are not counted yet. ``newest_ms`` is the latest time of
    those that are. ``contradicting`` are flagged against their p-value, the first at
    ``first_contradicting``.
    """

    drift: DriftSettings
    most: int
    hidden: HiddenKeys
    parts: list[PaneCounts] = field(default_factory=list)
    newest_ms: int | None = None
    held: int = 0
    times_ms: list[NDArray[np.int64]] = field(default_factory=list)
    p_values: list[NDArray[np.float64]] = field(default_factory=list)
    flagged: list[NDArray[np.bool_]] = field(default_factory=list)
    key: list[NDArray[np.int64]] = field(default_factory=list)
    keys: dict[bytes | None, int] = field(default_factory=dict)
    others: int = 0
    total: int = 0
    contradicting: int = 0
    first_contradicting: int = -1

    def add(self, rows: SummaryRows) -> None:
        """Take the records that come next."""
        self.times_ms.append(credible_times(rows.event_time_ms, rows.ingest_time_ms))
        self.p_values.append(rows.p_value)
        self.flagged.append(rows.is_ood)
        if rows.key is not None and rows.keys is not None:
            numbers = [self.keys.setdefault(key, len(self.keys)) for key in rows.keys]
            self.key.append(np.array(numbers, dtype=np.int64)[rows.key])
        self.held += len(rows.p_value)
        if self.held >= self.most:
            self.count()

    def count(self) -> None:
        """Count what is held."""
        if not self.held:
            return
        times_ms = np.concatenate(self.times_ms)
        if self.newest_ms is not None:
            # As if all of the partition were counted at once: its time never runs backwards.
            times_ms = np.maximum(times_ms, self.newest_ms)
        by_key = self.drift.keys is not None
        self.parts.append(
            count_panes(
                times_ms,
                np.concatenate(self.p_values),
                np.concatenate(self.flagged),
                pane_ms=self.drift.pane_ms,
                keys=tuple(map(key_text, self.keys)) if by_key else (NO_KEY,),
                key=np.concatenate(self.key) if by_key else None,
                one_per_pane=self.drift.one_per_pane,
            )
        )
        self.newest_ms, self.held = int(times_ms.max()), 0
        for held in (self.times_ms, self.p_values, self.flagged, self.key, self.keys):
            held.clear()


def _read(
    store: SegmentStore, query: Query, read: _Rows, facts: CalibrationFacts, left: int
) -> _Rows:
    """Count a partition, of no more than ``left`` rows: the last batch may go beyond."""
    keys = read.drift.keys
    key_by = None if keys is None else keys.by
    for batch in scan(store, query, [*rows_schema(key_by).names, _FINGERPRINT]):
        table = pa.Table.from_batches([batch])
        own = table.filter(pc.equal(table.column(_FINGERPRINT), facts.fingerprint))
        read.others += table.num_rows - own.num_rows
        read.total += table.num_rows
        if read.total > left:
            break
        if not own.num_rows:
            continue
        rows = rows_of_table(own, key_by, read.hidden)
        wrong = rows.offset[rows.is_ood != (rows.p_value <= facts.alpha)]
        if len(wrong) and not read.contradicting:
            read.first_contradicting = int(wrong[0])
        read.contradicting += len(wrong)
        read.add(rows)
    read.count()
    return read


def _statuses(store: SegmentStore, query: Query) -> Counter[Status]:
    """How many rows of the stretch have each status."""
    counts = Counter[Status]()
    for batch in scan(store, replace(query, statuses=()), ["status"]):
        for each in pc.value_counts(batch.column("status")).to_pylist():
            counts[Status(each["values"])] += each["counts"]
    return counts


def _require_enough(
    parts: Sequence[PaneCounts], store: SegmentStore, fingerprint: str, others: int
) -> None:
    records = sum(int(part.records.sum()) for part in parts)
    if not records and others:
        raise ConfigError(
            f"all {others:,} scored records of the stretch are of other calibrations than "
            f"{fingerprint[:16]}",
            store.root,
            "Name the calibration that judged them with --calibration",
        )
    panes = len({start for part in parts for start in np.unique(part.start_ms).tolist()})
    if records < LEAST_RECORDS or panes < LEAST_PANES:
        raise ConfigError(
            f"the stretch holds {records:,} scored records in {panes:,} panes; "
            f"at least {LEAST_RECORDS:,} in {LEAST_PANES} are needed",
            store.root,
            "Choose a longer one with --since and --until",
        )
