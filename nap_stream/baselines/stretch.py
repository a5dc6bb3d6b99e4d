"""Reading a stretch of the scored log: its scored records, and all that is odd about it.

A record's time is that of the drift monitor: within its partition the largest credible event time
up to it. So a stretch holds what the monitor would count in it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nap_stream.baselines.spool import RECORD, RecordSpool
from nap_stream.calibration.baseline import ChainPart
from nap_stream.calibration.calibration import Calibration
from nap_stream.clock import Progress
from nap_stream.core.hidden_keys import CLEAR, HiddenKeys
from nap_stream.core.panes import NO_KEY, changes, key_text
from nap_stream.errors import CalibrationError, ConfigError
from nap_stream.records import STATUSES, Status, TopicPartition
from nap_stream.scored_log.footer import SegmentFooter, segment_sha256
from nap_stream.scored_log.format import SCHEMA
from nap_stream.scored_log.read import stream_partitions, walk
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.summary import (
    MAX_CLOCK_SKEW_MS,
    credible_times,
    rows_of_table,
    rows_schema,
)
from nap_stream.settings.drift import KeySettings
from nap_stream.settings.topics import TopicSelection
from nap_stream.text import bounded, listed

MAX_RECORDS = 200_000_000
"""Some 5 GB of a temporary file."""
MAX_JUMPING_SHARE = 0.05
"""Of the records, those whose clocks jump: beyond it nothing tells when they were."""
_GATHERED_ROWS = 65_536
_GATHERED_PARTS = 1_000
SHOWN = 5
"""So many keys, blocks or gaps are named."""
_LAST_MS = np.iinfo(np.int64).max
_OWN = ("fused", "class_id", "calibration_fingerprint", "model_fingerprint", "calibration_p_value")


@dataclass(frozen=True, slots=True)
class StretchQuery:
    """Which records are meant, and how they are counted.

    Event times in ``[since_ms, until_ms)`` of a topic, in milliseconds since the epoch; of a
    monitor, that is the name of all that it ``reads``, as one stream. ``keys`` says what names a
    key, null where they are not told apart; panes are ``pane_ms`` wide.
    """

    topic: str
    since_ms: int
    until_ms: int
    keys: KeySettings | None
    pane_ms: int
    max_records: int = MAX_RECORDS
    hidden: HiddenKeys = CLEAR
    reads: TopicSelection | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """Offsets that the log says are lost, among those of the stretch; ``reason`` says why."""

    partition: TopicPartition
    start: int
    end: int
    reason: str

    def __str__(self) -> str:
        return f"{self.partition} [{self.start}, {self.end}): {self.reason}"


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """The scored records of a stretch, and what was found on the way.

    ``spool`` holds them, with numbers of ``keys``, which are in order of appearance and may hold
    `NO_KEY`. Of each key, int64 (K,): ``key_records``, ``first_ms`` and ``last_ms``, its first and
    last record. ``jumping`` images have an event time that cannot be true, or lies long before
    one that came earlier; ``first_jump`` says where the first stands. ``judged_by`` are the
    fingerprints of the calibrations that judged them. ``split_keys`` stand in several partitions.
    ``unscored`` of the ``images`` of the stretch have no scores, and are not among the records; nor
    are those of which another one of the same key and pane counts.
    """

    spool: RecordSpool
    keys: tuple[str, ...]
    key_records: NDArray[np.int64]
    first_ms: NDArray[np.int64]
    last_ms: NDArray[np.int64]
    chains: tuple[ChainPart, ...]
    gaps: tuple[Gap, ...]
    jumping: int
    first_jump: str
    judged_by: tuple[str, ...]
    split_keys: int
    unscored: int
    images: int

    @property
    def records(self) -> int:
        """How many there are."""
        return len(self.spool)

    @property
    def scored(self) -> int:
        """How many images have scores, also where one of a key counts in a pane."""
        return self.images - self.unscored


def read_stretch(
    store: SegmentStore,
    query: StretchQuery,
    calibration: Calibration,
    spool: RecordSpool,
    advance: Progress,
) -> Stretch:
    """Read the scored records of a stretch into a spool.

    All must have scores of the method and the model of ``calibration``: they were judged by it, by
    the calibration that its baseline was made from, or by another baseline of the same calibration
    images, which their p-values show. ``advance`` is told how many records were found.

    Raises:
        ConfigError: The stretch is empty or too long, has too many keys or none, or the topic
            cannot have that name.
        LogRootError: The log has nothing of the topic.
        CalibrationError: Records were scored by another model or another method, their p-values
            contradict their scores, offsets are missing, or clocks jump.
        ScoredLogError: The log or the temporary file cannot be used.
    """
    reading = _Reading(query, calibration, spool)
    for partition in stream_partitions(store, query.topic, query.reads):
        reading.read(store, partition, advance)
    found = reading.found()
    where = f"{store.root}, topic {query.topic}"
    if not found.records:
        none = f": none of its {found.unscored:,} images has scores" if found.unscored else ""
        if found.gaps:
            none += f": lost are {listed([str(gap) for gap in found.gaps], SHOWN, '; ')}"
        raise ConfigError(
            f"the stretch holds no scored records{none}",
            where,
            "Choose another --since and --until",
        )
    if query.keys is not None and set(found.keys) <= {NO_KEY}:
        raise ConfigError(
            f"none of the {found.records:,} records has a key by {query.keys.by!r}",
            "drift.keys.by",
            "Name what tells cameras apart (key, or header:NAME of a logged header)",
        )
    if found.jumping > MAX_JUMPING_SHARE * found.scored:
        raise CalibrationError(
            f"the clocks of the stretch jump: {found.jumping:,} of {found.scored:,} images have "
            f"an event time that cannot be true or runs back, the first at {found.first_jump}",
            where,
            "Set the clocks right and choose a stretch after that",
        )
    return found


class _Keys:
    """The numbers of keys, in order of appearance, and what is counted of each."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self._split: set[int] = set()
        self._counts = np.zeros((0, 4), np.int64)

    def number(self, name: str) -> int:
        """The number of a key, a new one where it has none."""
        return self.numbers.setdefault(name, len(self.numbers))

    def count(self, key: NDArray[np.int32], times: NDArray[np.int64], partition: int) -> None:
        """Count records of a partition, whose times, int64 (N,), ascend."""
        missing = len(self.numbers) - len(self._counts)
        if missing > 0:
            new = np.tile(np.array([0, _LAST_MS, -_LAST_MS, -1], np.int64), (missing, 1))
            self._counts = np.concatenate((self._counts, new))
        own, first, records = np.unique(key, return_index=True, return_counts=True)
        last = len(key) - 1 - np.unique(key[::-1], return_index=True)[1]
        counts = self._counts[own]
        self._split.update(own[(counts[:, 3] >= 0) & (counts[:, 3] != partition)].tolist())
        self._counts[own] = np.column_stack(
            (
                counts[:, 0] + records,
                np.minimum(counts[:, 1], times[first]),
                np.maximum(counts[:, 2], times[last]),
                np.full(len(own), partition),
            )
        )

    def columns(self) -> tuple[NDArray[np.int64], ...]:
        """Records of each key, and when the first and the last came, int64 (K,) each."""
        return self._counts[:, 0], self._counts[:, 1], self._counts[:, 2]

    @property
    def split(self) -> int:
        """How many keys stand in several partitions."""
        return len(self._split - {self.numbers.get(NO_KEY, -1)})


class _Reading:
    """What has been read so far."""

    def __init__(self, query: StretchQuery, calibration: Calibration, spool: RecordSpool) -> None:
        self._query, self._calibration, self._spool = query, calibration, spool
        self._by = None if query.keys is None else query.keys.by
        names = dict.fromkeys((*rows_schema(self._by).names, *_OWN))
        self._schema = pa.schema([SCHEMA.field(name) for name in names])
        self._keys = _Keys()
        self._judged_by: set[str] = set()
        self._known = _known_fingerprints(calibration)
        self._chains: list[ChainPart] = []
        self._gaps: list[Gap] = []
        self._jumping, self._first_jump = 0, ""
        self._unscored, self._images = 0, 0
        self._newest_ms = np.iinfo(np.int64).min
        self._last_pane: dict[int, int] = {}

    def found(self) -> Stretch:
        """All of it."""
        records, first_ms, last_ms = self._keys.columns()
        return Stretch(
            spool=self._spool,
            keys=tuple(self._keys.numbers),
            key_records=records,
            first_ms=first_ms,
            last_ms=last_ms,
            chains=tuple(self._chains),
            gaps=tuple(self._gaps),
            jumping=self._jumping,
            first_jump=self._first_jump,
            judged_by=tuple(sorted(self._judged_by)),
            split_keys=self._keys.split,
            unscored=self._unscored,
            images=self._images,
        )

    def read(self, store: SegmentStore, partition: TopicPartition, advance: Progress) -> None:
        """Read a partition's part of the stretch."""
        self._spool.begin_partition()
        self._newest_ms = np.iinfo(np.int64).min
        self._last_pane = {}
        chain = _Chain(partition)
        for parts, rows in self._gathered(store, partition):
            chain.follow(parts, self._take(partition, rows))
            advance(len(self._spool), None)
            if self._newest_ms >= self._query.until_ms:
                break
        if chain.part is not None:
            self._chains.append(chain.part)
        self._gaps += chain.gaps or chain.all_lost
        for start, end in chain.holes:
            raise CalibrationError(
                f"offsets [{start}, {end}) of {partition} are missing from the log",
                store.root,
                "`nap-stream verify` names all that is wrong; choose a stretch without it",
            )

    def _gathered(
        self, store: SegmentStore, partition: TopicPartition
    ) -> Iterator[tuple[list[SegmentFooter], pa.Table]]:
        """Rows of a partition from where the stretch may begin, with the footers they stand in."""
        parts: list[SegmentFooter] = []
        batches: list[pa.RecordBatch] = []
        rows = 0
        for file, wanted in walk(store, partition):
            own = [part for part in file.parts() if part.base_offset >= wanted]
            parts += own
            later = [part for part in own if not _is_before(part, self._query.since_ms)]
            if not later:
                if len(parts) > _GATHERED_PARTS:
                    yield parts, pa.Table.from_batches(batches, self._schema)
                    parts, batches, rows = [], [], 0
                continue
            for batch in file.batches(self._schema.names, start=later[0].base_offset):
                batches.append(batch)
                rows += batch.num_rows
                if rows >= _GATHERED_ROWS:
                    yield parts, pa.Table.from_batches(batches, self._schema)
                    # The last part may go on in the next batch of the file.
                    parts, batches, rows = own, [], 0
        if parts:
            yield parts, pa.Table.from_batches(batches, self._schema)

    def _take(self, partition: TopicPartition, table: pa.Table) -> tuple[int, int] | None:
        """Spool the rows of the stretch; give the first and the last of their offsets."""
        if not table.num_rows:
            return None
        rows = rows_of_table(table, self._by, self._query.hidden)
        times = credible_times(rows.event_time_ms, rows.ingest_time_ms)
        newest = np.maximum(np.maximum.accumulate(times), self._newest_ms)
        self._newest_ms = int(newest[-1])
        is_within = (newest >= self._query.since_ms) & (newest < self._query.until_ms)
        is_wanted = is_within & rows.is_scored
        is_image = rows.status != STATUSES.index(Status.TOMBSTONE)
        self._images += int((is_within & is_image).sum())
        self._unscored += int((is_within & ~rows.is_scored & is_image).sum())
        if not is_wanted.any():
            return None
        jumps = (times != rows.event_time_ms) | (newest - times > MAX_CLOCK_SKEW_MS)
        self._note_jumps(partition, rows.offset[jumps & is_wanted])
        own = table.select(_OWN).filter(pa.array(is_wanted))
        self._check(partition, own, rows.offset[is_wanted], rows.p_value[is_within[rows.is_scored]])
        records = np.zeros(int(is_wanted.sum()), RECORD)
        records["time_ms"] = newest[is_wanted]
        records["fused"] = own.column("fused").to_numpy()
        records["class_id"] = own.column("class_id").to_numpy()
        if rows.key is not None and rows.keys is not None:
            numbers = self._numbers(rows.key[is_wanted], rows.keys)
            records["key"] = numbers[rows.key[is_wanted]]
        else:
            self._keys.number(NO_KEY)
        kept = self._first_of_panes(records)
        self._keys.count(kept["key"], kept["time_ms"], partition.partition)
        self._spool.append(kept)
        if len(self._spool) > self._query.max_records:
            raise ConfigError(
                f"the stretch holds more than {self._query.max_records:,} scored records",
                str(partition),
                "Choose a shorter one with --since and --until",
            )
        offsets = rows.offset[is_wanted]
        return int(offsets[0]), int(offsets[-1])

    def _numbers(self, key: NDArray[np.int64], keys: Sequence[bytes | None]) -> NDArray[np.int32]:
        """The number of each of a table's keys, int32 (K,); -1 for those that are not needed."""
        numbers = np.full(len(keys), -1, np.int32)
        for place in np.unique(key).tolist():
            numbers[place] = self._keys.number(key_text(keys[place]))
        settings = self._query.keys
        if settings is not None and len(self._keys.numbers) > settings.max_keys + 1:
            raise ConfigError(
                f"there are more than {settings.max_keys:,} keys by {settings.by!r}",
                "drift.keys",
                "Does that name cameras, and not images? Then raise drift.keys.max_keys",
            )
        return numbers

    def _first_of_panes(self, records: NDArray[np.void]) -> NDArray[np.void]:
        """The records that count: where asked for, one a key in each pane."""
        settings = self._query.keys
        if settings is None or not settings.one_per_pane:
            return records
        key = records["key"].astype(np.int64)
        pane = records["time_ms"] // self._query.pane_ms
        order = np.lexsort((pane, key))
        is_kept = np.zeros(len(records), np.bool_)
        is_kept[order] = changes(key[order], pane[order])
        for row in np.flatnonzero(is_kept).tolist():
            number = int(key[row])
            is_kept[row] = self._last_pane.get(number) != pane[row]
            self._last_pane[number] = int(pane[row])
        is_kept |= key == self._keys.numbers.get(NO_KEY, -1)
        return records[is_kept]

    def _note_jumps(self, partition: TopicPartition, offsets: NDArray[np.int64]) -> None:
        if len(offsets) and not self._jumping:
            self._first_jump = f"{partition} offset {offsets[0]}"
        self._jumping += len(offsets)

    def _check(
        self,
        partition: TopicPartition,
        own: pa.Table,
        offsets: NDArray[np.int64],
        p_values: NDArray[np.float64],
    ) -> None:
        """Refuse records whose scores may not mean what those of the calibration mean."""
        document = self._calibration.document
        models = pc.unique(own.column("model_fingerprint")).to_pylist()
        others = [model for model in models if model != document.model.fingerprint]
        if others:
            wrong = pc.equal(own.column("model_fingerprint"), others[0]).to_numpy()
            raise CalibrationError(
                f"the stretch holds records of another model than the calibration's: from offset "
                f"{offsets[int(wrong.argmax())]} of {partition} on those of {others[0][:16]}, not "
                f"{document.model.fingerprint[:16]}",
                f"calibration {self._calibration.fingerprint[:16]}",
                "Choose a stretch of one model, or name its calibration",
            )
        judged = self._calibration.judge_fused(
            own.column("fused").to_numpy(), own.column("class_id").to_numpy()
        )
        by_images = judged.calibration_p_value
        by_images = judged.ood_p_value if by_images is None else by_images
        logged = own.column("calibration_p_value").to_numpy()
        for fingerprint in pc.unique(own.column("calibration_fingerprint")).to_pylist():
            is_own = pc.equal(own.column("calibration_fingerprint"), fingerprint).to_numpy()
            is_equal = logged == by_images
            if fingerprint in self._known:
                is_equal |= np.isnan(logged)
            if fingerprint == self._calibration.fingerprint:
                is_equal &= p_values == judged.ood_p_value
            if not is_equal[is_own].all():
                first = offsets[int((is_own & ~is_equal).argmax())]
                raise self._foreign(partition, int(first), fingerprint)
            self._judged_by.add(fingerprint)

    def _foreign(self, partition: TopicPartition, offset: int, judged_by: str) -> CalibrationError:
        calibration = self._calibration
        document = calibration.document
        if judged_by in self._known:
            what = "their p-values contradict their scores"
        else:
            what = (
                f"they were judged by the calibration {judged_by[:16]}, whose method or images may"
            )
            what += " be others"
        return CalibrationError(
            f"the stretch holds records that are not comparable: {what}; the first at "
            f"{partition} offset {offset}",
            f"calibration {calibration.fingerprint[:16]}, method {document.method}",
            "Choose a stretch that this calibration or a baseline of it has judged, or name "
            "another one with --calibration",
        )


class _Chain:
    """What the footers of a partition say of its part of the stretch.

    ``part`` is null while nothing of it was found. ``hole`` are offsets that no segment has.
    """

    def __init__(self, partition: TopicPartition) -> None:
        self._partition = partition
        self._end: int | None = None
        self._start: int | None = None
        self._waiting: tuple[list[Gap], list[tuple[int, int]]] = ([], [])
        self.part: ChainPart | None = None
        self._has_rows = False
        self.gaps: list[Gap] = []
        self.holes: list[tuple[int, int]] = []

    @property
    def all_lost(self) -> list[Gap]:
        """The gaps of a partition that has nothing else: nothing tells when they were."""
        return [] if self._has_rows else self._waiting[0]

    def follow(self, parts: list[SegmentFooter], kept: tuple[int, int] | None) -> None:
        """Take the footers of some rows, of which those at offsets ``kept`` are of the stretch.

        A footer may come again.
        """
        gaps, holes = self._waiting
        for part in parts:
            self._has_rows |= part.gap is None
            if self._end is None or part.base_offset >= self._end:
                if self._end is not None and part.base_offset > self._end:
                    holes.append((self._end, part.base_offset))
                if part.gap is not None:
                    span = part.base_offset, part.end_offset
                    gaps.append(Gap(self._partition, *span, bounded(part.gap)))
                self._end = part.end_offset
            if kept is None or part.base_offset > kept[1] or part.end_offset <= kept[0]:
                continue
            if self._start is None:
                # What is missing before the stretch does not matter to it.
                self._start = part.base_offset
                gaps.clear()
                holes.clear()
            self.gaps += gaps
            self.holes += holes
            gaps.clear()
            holes.clear()
            if kept[1] < part.end_offset:
                self.part = ChainPart(
                    partition=self._partition.partition,
                    start=self._start,
                    end=part.end_offset,
                    head_sha256=segment_sha256(part),
                )


def _known_fingerprints(calibration: Calibration) -> frozenset[str]:
    """The calibrations whose scores are those of this one."""
    baseline = calibration.document.baseline
    more = () if baseline is None else (baseline.parent, *baseline.judged_by)
    return frozenset((calibration.fingerprint, *more))


def _is_before(part: SegmentFooter, since_ms: int) -> bool:
    """Whether all records of a segment count before the stretch.

    One with an event time that cannot be true counts when it was read, which was before the segment
    was made.
    """
    newest_ms = max(part.created_time_ms, part.max_event_time_ms or part.created_time_ms)
    return newest_ms < since_ms
