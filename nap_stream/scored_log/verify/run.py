"""Proof that the log is whole: every partition's chain, from its genesis marker to its end.

Reads footers alone, unless asked for every value. May run beside writers and beside a compaction:
it checks what was there when it listed a partition.

Where there is no chain at all, nothing can be proved, and that is an error: unless somebody knows
that there was one.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial

import structlog

from nap_stream.clock import Clock, Progress, SystemClock
from nap_stream.errors import ConfigError, LogRootError, ScoredLogError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.events import (
    FOLDER,
    event_number,
    event_numbers,
    events_end,
    walk_events,
)
from nap_stream.scored_log.format import (
    GENESIS_NAME,
    is_hidden,
    is_temporary,
    parse_partition_folder,
    parse_segment_name,
    parse_topic_folder,
    partition_folder,
    topic_folder,
)
from nap_stream.scored_log.proof.checkpoint import FOLDER as CHECKPOINTS
from nap_stream.scored_log.proof.checkpoint import SUFFIX as NOTE
from nap_stream.scored_log.proof.timestamps import SUFFIX as STAMP
from nap_stream.scored_log.read import partitions, segments, topic_partitions
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.verify.chain import ChainFindings, examine_chain
from nap_stream.scored_log.verify.report import (
    ChainHead,
    CompactedFile,
    Defect,
    DefectKind,
    EventsHead,
    PrunedFile,
    VerifyReport,
    sorted_defects,
)
from nap_stream.scored_log.verify.sealed import ToldSeals
from nap_stream.scored_log.verify.segment import (
    SegmentFindings,
    inspect_segment,
    require_known_pyarrow,
)
from nap_stream.text import listed

FOOTER_THREADS = 16
"""Footers wait for the disk or the network."""
DEEP_THREADS = 4
"""Each holds a whole file in memory: its bytes, and its rows."""
_LIKE_PARQUET = re.compile(r".*\.(parquet|parq|pq)", re.IGNORECASE | re.DOTALL)
_NAMES = 10
"""How many names of what lies at the root an error gives."""


def verify(
    store: SegmentStore,
    *,
    deep: bool = False,
    topic: str | None = None,
    clock: Clock | None = None,
    advance: Progress | None = None,
    may_be_empty: bool = False,
) -> VerifyReport:
    """Check the log and name every defect.

    Always: genesis markers, that segments follow each other without holes or overlaps, the digest
    of each one's predecessor, topic ids, footers, schema, row counts, the range of the rows'
    offsets, whether the partitions of a topic are of one topic, the chain of events, files that do
    not belong there and that a reader may read. What the last segment of a partition holds, or the
    last event, is covered by no other file: see `ChainHead`.

    ``deep`` also reads every value, with page checksums, and compares the rows with the digests
    that were taken when they were published, with the footer, and with each other. All that Parquet
    says of the values is compared with them too, since readers skip rows by it. The clock waits
    while files change. ``advance`` is told how many files have been read, of how many (None while
    unknown). ``may_be_empty`` is for who compares the report with what is known from elsewhere: a
    log without chains gives one of 0 partitions.

    Raises:
        LogRootError: There is no folder at the root.
        ConfigError: There is no chain, of the topic if given; or no topic can have that name; or
            ``deep``, and the pyarrow here writes what is not known.
        ScoredLogError: The store cannot be listed.
    """
    if deep:
        require_known_pyarrow()
    if not may_be_empty:
        require_chain(store, topic)
    names = partitions(store, topic)
    strays = [*_stray_checkpoints(store), *_strays(store, topic)]
    with ThreadPoolExecutor(DEEP_THREADS if deep else FOOTER_THREADS, "verify") as pool:
        total = sum(len(segments(store, name)) for name in names) if advance else 0
        reading = _Reading(store, pool, advance, total, deep=deep)
        clock = clock or SystemClock()
        chains = [examine_chain(store, name, reading.inspect, clock) for name in names]
    # After the chains: an event tells of a seal before that is there.
    pruned = [found for chain in chains for found in chain.pruned]
    events, own = _examine_events(store, pruned, topic)
    return replace(_report(chains, [*strays, *own], deep=deep), events=events)


class _Reading:
    """Inspects files in threads, and tells how far that is."""

    def __init__(
        self,
        store: SegmentStore,
        pool: ThreadPoolExecutor,
        advance: Progress | None,
        total: int,
        *,
        deep: bool,
    ) -> None:
        self._store, self._pool, self._deep = store, pool, deep
        self._advance, self._done, self._total = advance, 0, total

    def inspect(self, paths: Sequence[str]) -> Iterator[SegmentFindings | None]:
        """What each file holds, in order."""
        inspect_one = partial(inspect_segment, self._store, deep=self._deep)
        for found in self._pool.map(inspect_one, paths):
            self._done += 1
            if self._advance is not None:
                self._advance(self._done, max(self._done, self._total))
            yield found


def _report(
    chains: Sequence[ChainFindings], strays: Sequence[Defect], *, deep: bool
) -> VerifyReport:
    files = [found for chain in chains for found in chain.segments]
    footers = [found.footer for found in files if found.footer is not None]
    gaps = tuple(gap for found in files for gap in found.gaps)
    gap_offsets = sum(gap.end_offset - gap.base_offset for gap in gaps)
    pruned = tuple(found for chain in chains for found in chain.pruned)
    heads = tuple(chain.head for chain in chains if chain.head is not None)
    own = [defect for chain in chains for defect in chain.defects]
    defects = [*strays, *own, *_foreign_partitions(heads)]
    return VerifyReport(
        partitions=len(chains),
        segments=sum(found.segments for found in files),
        rows=sum(footer.rows for footer in footers),
        offsets=sum(footer.end_offset - footer.base_offset for footer in footers) - gap_offsets,
        gap_offsets=gap_offsets + sum(found.span.gap_offsets for found in pruned),
        gaps=(*(gap for chain in chains for gap in chain.gaps), *gaps),
        heads=heads,
        defects=sorted_defects(defects),
        compacted=tuple(_compacted(files)),
        deep=deep,
        pruned=pruned,
    )


def _compacted(files: Iterable[SegmentFindings]) -> Iterator[CompactedFile]:
    for found in files:
        if found.segments > 1 and found.footer is not None:
            footer = found.footer
            yield CompactedFile(found.path, footer.base_offset, footer.end_offset, found.segments)


def _foreign_partitions(heads: Sequence[ChainHead]) -> Iterator[Defect]:
    """Chains of a topic that is not that of the chain before, although it has its name."""
    known: dict[str, ChainHead] = {}
    for head in heads:
        if head.topic_id is None:
            continue
        first = known.setdefault(head.partition.topic, head)
        if head.topic_id != first.topic_id:
            detail = (
                f"its topic's id is {head.topic_id}, that of {first.partition} {first.topic_id}"
            )
            yield Defect(partition_folder(head.partition), DefectKind.TOPIC_ID, detail)


def _examine_events(
    store: SegmentStore, pruned: Sequence[PrunedFile], topic: str | None
) -> tuple[EventsHead | None, list[Defect]]:
    """Where the chain of events ends, and what is wrong in its folder, or with what it tells."""
    # Listed first: what is written meanwhile is no stray.
    names = store.names(FOLDER)
    numbers = set(event_numbers(store))
    defects: list[Defect] = []
    told = ToldSeals()
    for found in walk_events(store):
        if isinstance(found, Defect):
            defects.append(found)
        else:
            told.take(found)
    defects += told.contradictions(store, pruned, topic)
    defects += [
        Defect(f"{FOLDER}/{name}", DefectKind.STRAY_FILE, "it is no event of the chain")
        for name in names
        if event_number(name) not in numbers and not is_temporary(name)
    ]
    # A last one that cannot be read now is among the defects.
    with suppress(ScoredLogError):
        if (end := events_end(store)) is not None:
            return EventsHead(end[0] + 1, end[1]), defects
    return None, defects


def _stray_checkpoints(store: SegmentStore) -> Iterator[Defect]:
    for name in store.names(CHECKPOINTS):
        if not name.endswith((NOTE, STAMP)) and not is_temporary(name):
            detail = "it is no checkpoint and no time stamp"
            yield Defect(f"{CHECKPOINTS}/{name}", DefectKind.STRAY_FILE, detail)


def require_chain(store: SegmentStore, topic: str | None) -> None:
    """Refuse a log, or a topic of it, of which there is nothing to verify.

    Raises:
        LogRootError: There is no folder at the root, and no topic is given.
        ConfigError: There is no chain, of the topic if given; or no topic can have that name.
        ScoredLogError: The store cannot be listed.
    """
    if topic is not None:
        try:
            topic_partitions(store, topic)
        except LogRootError as error:
            raise ConfigError(error.problem, error.where, error.action) from error
        return
    if partitions(store):
        return
    names = sorted(store.names(""))
    raise ConfigError(
        f"there is no chain here; the root holds {listed(names, _NAMES) or 'nothing'}",
        store.root,
        "Name the folder of log.root",
    )


def _strays(store: SegmentStore, topic: str | None) -> Iterator[Defect]:
    """Files that do not belong to the log, and that a Parquet reader may read."""
    for name in sorted(store.names("")):
        found = parse_topic_folder(name)
        if found is None or _is_file(store, name):
            if topic is None:
                yield from _foreign(store, name)
        elif topic in {None, found}:
            yield from _strays_of_topic(store, found)


def _strays_of_topic(store: SegmentStore, topic: str) -> Iterator[Defect]:
    folder = topic_folder(topic)
    names = sorted(store.names(folder))
    if not names:
        yield Defect(folder, DefectKind.CHAIN_MISSING, "the topic's folder holds no partition")
    for name in names:
        number = parse_partition_folder(name)
        if number is None or _is_file(store, f"{folder}/{name}"):
            yield from _foreign(store, f"{folder}/{name}")
            continue
        inside = partition_folder(TopicPartition(topic, number))
        for child in sorted(store.names(inside)):
            is_own = child == GENESIS_NAME or is_temporary(child)
            if not is_own and parse_segment_name(child) is None:
                yield from _foreign(store, f"{inside}/{child}")


def _foreign(store: SegmentStore, path: str) -> Iterator[Defect]:
    """Name what is not the log's. Readers pass over hidden names, but a glob of Parquet files."""
    if not is_hidden(path.rsplit("/", 1)[-1]) or _LIKE_PARQUET.fullmatch(path):
        detail = "not a file of the log, and readers may read it"
    elif count := _parquet_files(store, path):
        detail = f"holds {count} Parquet files that are not the log's, and readers may read them"
    else:
        return
    yield Defect(path, DefectKind.STRAY_FILE, detail)


def _parquet_files(store: SegmentStore, path: str) -> int:
    """How many are named as Parquet files are, below a folder. No link is followed."""
    above, _, name = path.rpartition("/")
    count, waiting = 0, [path] if name in store.folders(above) else []
    while waiting:
        folder = waiting.pop()
        try:
            names, folders = store.names(folder), store.folders(folder)
        except ScoredLogError as error:
            structlog.get_logger().warning(
                "folder_not_listed", folder=folder, problem=error.problem
            )
            continue
        count += sum(1 for name in names if _LIKE_PARQUET.fullmatch(name))
        waiting += [f"{folder}/{name}" for name in folders if not _LIKE_PARQUET.fullmatch(name)]
    return count


def _is_file(store: SegmentStore, path: str) -> bool:
    try:
        file = store.open(path)
    except ScoredLogError:
        # Some stores have folders, which cannot be opened.
        return False
    if file is not None:
        file.close()
    return file is not None
