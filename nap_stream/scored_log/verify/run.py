"""Proof that the log is whole: every partition's chain, from its genesis marker to its end.

Reads footers alone, unless asked for every value. May run beside writers and beside a compaction:
it checks what was there when it listed a partition.

Beside that, chains are compared with what a broker has, and with the ends that a report of an
earlier verification has kept elsewhere. A chain goes on, so its end is another one by now. But a
segment's digest covers all before it: where a segment of the chain still ends at the kept offset
with the kept digest, nothing up to there was changed, added or cut off.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from nap_stream.clock import Clock, Progress, SystemClock
from nap_stream.errors import ScoredLogError
from nap_stream.records import PartitionOffsets, TopicPartition
from nap_stream.scored_log.footer import segment_sha256
from nap_stream.scored_log.format import (
    genesis_path,
    is_hidden,
    parse_partition_folder,
    parse_segment_name,
    parse_topic_folder,
    partition_folder,
    segment_path,
    topic_folder,
)
from nap_stream.scored_log.read import LOOK_BACK, complete_bases, partitions, require_root, segments
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.verify.chain import ChainFindings, examine_chain, read_genesis
from nap_stream.scored_log.verify.report import (
    BrokerComparison,
    BrokerReport,
    ChainHead,
    CompactedFile,
    Defect,
    DefectKind,
    VerifyReport,
)
from nap_stream.scored_log.verify.segment import SegmentFindings, inspect_segment, merged_parts

FOOTER_THREADS = 16
"""Footers wait for the disk or the network."""
DEEP_THREADS = 4
"""Each holds a whole file's rows in memory."""


def verify(
    store: SegmentStore,
    *,
    deep: bool = False,
    topic: str | None = None,
    clock: Clock | None = None,
    advance: Progress | None = None,
) -> VerifyReport:
    """Check the log and name every defect.

    Always: genesis markers, that segments follow each other without holes or overlaps, the digest
    of each one's predecessor, topic ids, footers, schema, row counts, the range of the rows'
    offsets, files that do not belong there. What the last segment of a partition holds is covered
    by no other file: see `ChainHead`.

    ``deep`` also reads every value, with page checksums, and compares the rows with the digests
    that were taken when they were published, with the footer, and with each other. The clock waits
    while files change. ``advance`` is told how many files have been read, of how many (None while
    unknown).

    Raises:
        LogRootError: There is no folder at the root.
        ConfigError: No topic can have that name.
        ScoredLogError: The store cannot be listed.
    """
    require_root(store)
    strays = list(_strays(store, topic))
    names = partitions(store, topic)
    with ThreadPoolExecutor(DEEP_THREADS if deep else FOOTER_THREADS, "verify") as pool:
        total = sum(len(segments(store, name)) for name in names) if advance else 0
        reading = _Reading(store, pool, advance, total, deep=deep)
        clock = clock or SystemClock()
        chains = [examine_chain(store, name, reading.inspect, clock) for name in names]
    return _report(chains, strays, deep=deep)


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
    defects = [*strays, *(defect for chain in chains for defect in chain.defects)]
    return VerifyReport(
        partitions=len(chains),
        segments=sum(found.segments for found in files),
        rows=sum(footer.rows for footer in footers),
        offsets=sum(footer.end_offset - footer.base_offset for footer in footers) - gap_offsets,
        gap_offsets=gap_offsets,
        gaps=gaps,
        heads=tuple(chain.head for chain in chains if chain.head is not None),
        defects=sorted_defects(defects),
        compacted=tuple(_compacted(files)),
        deep=deep,
    )


def sorted_defects(defects: Iterable[Defect]) -> tuple[Defect, ...]:
    """By file, then by kind."""
    return tuple(sorted(defects, key=lambda defect: (defect.file, defect.kind)))


def _compacted(files: Iterable[SegmentFindings]) -> Iterator[CompactedFile]:
    for found in files:
        if found.segments > 1 and found.footer is not None:
            footer = found.footer
            yield CompactedFile(found.path, footer.base_offset, footer.end_offset, found.segments)


def _strays(store: SegmentStore, topic: str | None) -> Iterator[Defect]:
    """Files that do not belong to the log, and that Parquet readers do not pass over."""
    for name in _visible(store.names("")):
        if parse_topic_folder(name) is None or _is_file(store, name):
            if topic is None:
                yield _stray(name)
        elif topic is None or name == topic_folder(topic):
            yield from _strays_of_topic(store, name)


def _strays_of_topic(store: SegmentStore, folder: str) -> Iterator[Defect]:
    topic = parse_topic_folder(folder)
    for name in _visible(store.names(folder)):
        number = parse_partition_folder(name)
        if topic is None or number is None or _is_file(store, f"{folder}/{name}"):
            yield _stray(f"{folder}/{name}")
            continue
        inside = partition_folder(TopicPartition(topic, number))
        for child in _visible(store.names(inside)):
            if parse_segment_name(child) is None:
                yield _stray(f"{inside}/{child}")


def _is_file(store: SegmentStore, path: str) -> bool:
    try:
        file = store.open(path)
    except ScoredLogError:
        # Some stores have folders, which cannot be opened.
        return False
    if file is not None:
        file.close()
    return file is not None


def _visible(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not is_hidden(name))


def _stray(path: str) -> Defect:
    return Defect(path, DefectKind.STRAY_FILE, "not a file of the log, and readers may read it")


def compare_with_broker(
    report: VerifyReport, offsets: Sequence[PartitionOffsets], *, topic: str, group_id: str
) -> BrokerReport:
    """Compare the chains of one topic with its partitions.

    Beside running workers the committed offsets must be read before the log is, and the
    partitions' ends after it: a worker commits what it has published before.

    ``report`` is of the log, or of this topic in it; ``offsets`` are of every partition that the
    topic has.
    """
    heads = {head.partition: head for head in report.heads if head.partition.topic == topic}
    broken = {defect.file.rsplit("/", 1)[0] for defect in report.defects}
    known = {one.partition for one in offsets}
    defects = [_beyond(heads[partition], None) for partition in sorted(heads.keys() - known)]
    for one in offsets:
        head = heads.get(one.partition)
        if head is not None:
            defects += _chain_defects(head, one)
        elif one.committed is not None and partition_folder(one.partition) not in broken:
            detail = f"the group has committed {one.committed}, and there is no chain"
            defects.append(Defect(genesis_path(one.partition), DefectKind.CHAIN_MISSING, detail))
    ordered = sorted(offsets, key=lambda found: found.partition)
    comparisons = tuple(_comparison(heads.get(one.partition), one) for one in ordered)
    return BrokerReport(topic, group_id, comparisons, sorted_defects(defects))


def _comparison(head: ChainHead | None, one: PartitionOffsets) -> BrokerComparison:
    if head is None:
        return BrokerComparison(one, None, None, None, 0)
    end = head.end_offset
    lag, gap_to_come = max(0, one.end - end), max(0, one.earliest - end)
    return BrokerComparison(one, head.start_offset, end, lag, gap_to_come)


def _chain_defects(head: ChainHead, one: PartitionOffsets) -> Iterator[Defect]:
    folder = partition_folder(head.partition)
    if None not in (head.topic_id, one.topic_id) and head.topic_id != one.topic_id:
        detail = (
            f"the chain is of the topic with id {head.topic_id}, the broker's is {one.topic_id}"
        )
        yield Defect(folder, DefectKind.TOPIC_ID, detail)
    if head.end_offset > one.end:
        yield _beyond(head, one.end)
    if one.committed is not None and one.committed > head.end_offset:
        detail = (
            f"the group has committed {one.committed}, the chain ends at {head.end_offset}: "
            f"{one.committed - head.end_offset} offsets are committed and in no segment"
        )
        yield Defect(folder, DefectKind.BEHIND_COMMITTED, detail)


def _beyond(head: ChainHead, end: int | None) -> Defect:
    there = "the topic has no such partition" if end is None else f"the partition at {end}"
    detail = (
        f"the chain ends at {head.end_offset}, {there}: the topic was made anew, or the broker has "
        "lost messages"
    )
    return Defect(partition_folder(head.partition), DefectKind.BEYOND_BROKER, detail)


def compare_with_kept(store: SegmentStore, kept: Iterable[ChainHead]) -> Iterator[Defect]:
    """Kept ends that are no longer in their chains.

    It looks at one segment of each chain. So it proves something only where the chains have been
    verified.

    Raises:
        ScoredLogError: The store cannot be read.
    """
    for head in kept:
        found = _digest_at(store, head)
        if found != head.sha256:
            there = "no segment ends there" if found is None else f"it is {found} there"
            detail = (
                f"the kept report has the digest {head.sha256} where the chain ended at "
                f"{head.end_offset}; now {there}"
            )
            yield Defect(partition_folder(head.partition), DefectKind.KEPT_DIGEST, detail)


def _digest_at(store: SegmentStore, head: ChainHead) -> str | None:
    """The digest of the segment, or of the genesis marker, that ends where the chain ended."""
    partition, end = head.partition, head.end_offset
    start = read_genesis(store, partition, needed=False).position
    if start is not None and start.offset == end:
        return start.previous_sha256
    looked_at = 0
    for base in reversed([base for base in complete_bases(store, partition) if base < end]):
        path = segment_path(partition, base)
        found = inspect_segment(store, path, deep=False)
        if found is None:
            continue
        looked_at += 1
        if found.footer is not None and found.footer.end_offset == end:
            return found.sha256
        for part in merged_parts(store, path):
            if part.end_offset == end:
                return segment_sha256(part)
        if looked_at == LOOK_BACK:
            break
    return None
