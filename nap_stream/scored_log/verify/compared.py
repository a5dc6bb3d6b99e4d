"""Chains beside what a broker has, and beside the ends that an earlier report has kept elsewhere.

A chain goes on, so its end is another one by now. But a segment's digest covers all before it:
where a segment of the chain still ends at the kept offset with the kept digest, nothing up to there
was changed, added or cut off.
"""

from bisect import bisect_left
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from nap_stream.errors import ChainBrokenError, ScoredLogError
from nap_stream.records import PartitionOffsets, TopicPartition
from nap_stream.scored_log.events import event_path, event_sha256
from nap_stream.scored_log.footer import SegmentFooter, segment_sha256
from nap_stream.scored_log.format import (
    genesis_path,
    partition_folder,
    segment_path,
)
from nap_stream.scored_log.read import LOOK_BACK, complete_bases
from nap_stream.scored_log.seals import read_seal, read_span, seal_paths
from nap_stream.scored_log.segment import read_footer
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.verify.chain import read_genesis
from nap_stream.scored_log.verify.report import (
    BrokerComparison,
    BrokerReport,
    ChainHead,
    DeclaredGap,
    Defect,
    DefectKind,
    EventsHead,
    Head,
    VerifyReport,
    sorted_defects,
)

THREADS = 16
"""Footers wait for the disk or the network."""


def compare_with_broker(
    report: VerifyReport,
    offsets: Sequence[PartitionOffsets],
    *,
    topic: str,
    group_id: str,
    from_earliest: bool = True,
    reads: Container[str] | None = None,
) -> BrokerReport:
    """Compare the chains of a topic, or of all that a monitor ``reads``, with their partitions.

    Offsets that a chain declares missing, or that lie before its start, must not be in the topic
    any more: what retention deleted does not come back. ``from_earliest`` says that chains start at
    a topic's first offset; where they may start later, what lies before is told and no defect.

    Beside running workers the committed offsets must be read before the log is, and the
    partitions' ends after it: a worker commits what it has published before.

    ``report`` is of the log, or of these topics in it; ``offsets`` are of every partition that
    they have. ``topic`` is what the report calls them.
    """
    own = (topic,) if reads is None else reads
    heads = {head.partition: head for head in report.heads if head.partition.topic in own}
    broken = {defect.file.rsplit("/", 1)[0] for defect in report.defects}
    known = {one.partition for one in offsets}
    defects = [_beyond(heads[partition], None) for partition in sorted(heads.keys() - known)]
    for one in offsets:
        head = heads.get(one.partition)
        defects += _retained_gaps(report.gaps, one)
        if head is not None:
            defects += _chain_defects(head, one, from_earliest=from_earliest)
        elif one.committed is not None and partition_folder(one.partition) not in broken:
            detail = f"the group has committed {one.committed}, and there is no chain"
            defects.append(Defect(genesis_path(one.partition), DefectKind.CHAIN_MISSING, detail))
    ordered = sorted(offsets, key=lambda found: found.partition)
    comparisons = tuple(_comparison(heads.get(one.partition), one) for one in ordered)
    return BrokerReport(topic, group_id, comparisons, sorted_defects(defects))


def _comparison(head: ChainHead | None, one: PartitionOffsets) -> BrokerComparison:
    if head is None:
        return BrokerComparison(one, None, None, None, 0, 0)
    start, end = head.start_offset, head.end_offset
    lag, gap_to_come = max(0, one.end - end), max(0, one.earliest - end)
    before_chain = max(0, min(start, one.end) - one.earliest)
    return BrokerComparison(one, start, end, lag, gap_to_come, before_chain)


def _retained_gaps(gaps: Iterable[DeclaredGap], one: PartitionOffsets) -> Iterator[Defect]:
    for gap in gaps:
        first, end = max(gap.base_offset, one.earliest), min(gap.end_offset, one.end)
        if first < end and gap.file.startswith(f"{partition_folder(one.partition)}/"):
            detail = (
                f"offsets [{first}, {end}) are declared missing ({gap.reason}), and the broker "
                f"still has them: it has all from {one.earliest} on{_honest_gap(gap)}"
            )
            yield Defect(gap.file, DefectKind.GAP_RETAINED, detail)


def _honest_gap(gap: DeclaredGap) -> str:
    if "kafka.resume_from" not in gap.reason:
        return ""
    return (
        ". That setting leaves out what the topic has: if it made the gap, the alert topic has an "
        "event of it"
    )


def _chain_defects(
    head: ChainHead, one: PartitionOffsets, *, from_earliest: bool
) -> Iterator[Defect]:
    folder = partition_folder(head.partition)
    if None not in (head.topic_id, one.topic_id) and head.topic_id != one.topic_id:
        detail = (
            f"the chain is of the topic with id {head.topic_id}, the broker's is {one.topic_id}"
        )
        yield Defect(folder, DefectKind.TOPIC_ID, detail)
    if from_earliest and one.earliest < min(head.start_offset, one.end):
        detail = (
            f"the chain starts at {head.start_offset}, and the broker has offsets from "
            f"{one.earliest} on: those between are in no segment. It was begun there if the group "
            "had committed before there was a log, or under `kafka.start: latest`: then the "
            f"worker's log has `chain_begun` with offset={head.start_offset}, and the first kept "
            "report this start"
        )
        yield Defect(genesis_path(head.partition), DefectKind.START_RETAINED, detail)
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


def compare_with_kept(store: SegmentStore, kept: Iterable[Head]) -> Iterator[Defect]:
    """Kept ends that are no longer in their chains.

    It looks at one segment of each chain, and at one event. So it proves something only where the
    chains have been verified.

    Raises:
        ScoredLogError: The store cannot be read.
    """
    for head in kept:
        if isinstance(head, EventsHead):
            yield from _events_defect(store, head)
            continue
        end = (head.end_offset, head.sha256)
        there = digests_at(store, head.partition, [end])[head.end_offset]
        if head.sha256 not in there:
            said = f"it is {', '.join(sorted(there))}" if there else "no segment ends"
            detail = (
                f"the kept report has the digest {head.sha256} where the chain ended at "
                f"{head.end_offset}; now {said} there"
            )
            yield Defect(partition_folder(head.partition), DefectKind.KEPT_DIGEST, detail)


def _events_defect(store: SegmentStore, head: EventsHead) -> Iterator[Defect]:
    found = readable_event_sha256(store, head.count - 1)
    if found != head.sha256:
        detail = (
            f"the kept report has the digest {head.sha256} for event {head.count - 1}; now "
            f"{'there is none to read' if found is None else f'it is {found}'}"
        )
        yield Defect(event_path(head.count - 1), DefectKind.KEPT_DIGEST, detail)


def readable_event_sha256(store: SegmentStore, number: int) -> str | None:
    """The digest of an event's file; None where there is none that can be read."""
    # One that cannot be read is a defect of its own.
    with suppress(ScoredLogError):
        return event_sha256(store, number)
    return None


def still_ends(store: SegmentStore, head: ChainHead) -> bool:
    """Whether a chain still has this end: its next segment says so, or one that ends there.

    Raises:
        ScoredLogError: The store cannot be listed.
    """
    following = _parts(store, segment_path(head.partition, head.end_offset))
    if following and following[0].previous_sha256 == head.sha256:
        return True
    end = (head.end_offset, head.sha256)
    return head.sha256 in digests_at(store, head.partition, [end])[head.end_offset]


def digests_at(
    store: SegmentStore, partition: TopicPartition, ends: Iterable[tuple[int, str]]
) -> dict[int, set[str]]:
    """Digests of what ends at offsets: segments, merged or pruned ones too, or the genesis marker.

    ``ends`` are offsets and the digests that are looked for there. Beside an interrupted
    compaction, or where a file was put in, there can be several.

    Raises:
        ScoredLogError: The store cannot be listed.
    """
    wanted = sorted(set(ends), reverse=True)
    found: dict[int, set[str]] = {end: set() for end, _ in wanted}
    for end, sha256 in _before_files(store, partition, found):
        found[end].add(sha256)
    bases = complete_bases(store, partition)
    is_there: dict[int, bool] = {}

    def look(base: int, parts: tuple[SegmentFooter, ...] | None) -> None:
        is_there[base] = parts is not None
        for part in parts or ():
            if part.end_offset in found:
                found[part.end_offset].add(segment_sha256(part))

    likely = sorted({bases[at - 1] for end in found if (at := bisect_left(bases, end))})
    with ThreadPoolExecutor(THREADS, "digests") as pool:
        read = pool.map(lambda base: _parts(store, segment_path(partition, base)), likely)
        for base, parts in zip(likely, read, strict=True):
            look(base, parts)
    for end, sha256 in wanted:
        looked_at = 0
        for base in reversed(bases[: bisect_left(bases, end)]):
            if sha256 in found[end] or looked_at == LOOK_BACK:
                break
            if base not in is_there:
                look(base, _parts(store, segment_path(partition, base)))
            looked_at += is_there[base]
    return found


def _before_files(
    store: SegmentStore, partition: TopicPartition, ends: Collection[int]
) -> Iterator[tuple[int, str]]:
    """What ends at some offsets that is in no file of rows: the marker, and pruned segments."""
    start = read_genesis(store, partition, needed=False).position
    if start is not None and start.offset in ends:
        yield start.offset, start.previous_sha256
    for path in seal_paths(store, partition):
        # One that is not valid is a defect of its own.
        with suppress(ChainBrokenError):
            span = read_span(store, path)
            if any(span.start_offset < end <= span.end_offset for end in ends):
                parts = (part for part in read_seal(store, path).parts if part.end_offset in ends)
                yield from ((part.end_offset, segment_sha256(part)) for part in parts)


def _parts(store: SegmentStore, path: str) -> tuple[SegmentFooter, ...] | None:
    """Footers of what a file holds, none where it cannot be read; None where it is gone."""
    try:
        footer = read_footer(store, path)
    except ScoredLogError:
        return ()
    return None if footer is None else footer.parts
